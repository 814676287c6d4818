// Package managed keeps metadata.managedFields: who has set which field of an
// object. A write that is no apply is tracked by comparing two Go values along a
// plan that is compiled once for each kind (Kind.Compare, Update): nothing is
// converted, and what did not change costs nothing. Server-side apply, which is
// rare, goes through k8s.io/apimachinery's field manager (Appliers) with the
// same types.
//
// The types say of each list and map whether its items are owned one by one
// (merged by key) or as a whole. They come from the schema that client-go's
// apply configurations carry (zz_generated.schema.gz), of which only what a kind
// needs is decoded, at the first write of that kind.
//
// The package knows neither the store nor the verbs: that is package rest.
package managed

import (
	"bytes"
	"compress/gzip"
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"weak"

	"sigs.k8s.io/structured-merge-diff/v6/schema"
	"sigs.k8s.io/structured-merge-diff/v6/typed"
)

//go:generate go run ./gen

// compressed holds a line for each type: its name, a space, its Type in JSON.
//
//go:embed zz_generated.schema.gz
var compressed []byte

// Type is a schema.TypeDef without its name, in a short form.
type Type struct {
	Scalar string `json:"s,omitempty"`
	List   *List  `json:"l,omitempty"`
	Map    *Map   `json:"m,omitempty"`
}

// Ref refers to a named type or holds one.
type Ref struct {
	Name         string `json:"n,omitempty"`
	Relationship string `json:"r,omitempty"`
	Type
}

// List is a schema.List.
type List struct {
	Element      Ref      `json:"e"`
	Relationship string   `json:"r,omitempty"`
	Keys         []string `json:"k,omitempty"`
}

// Map is a schema.Map: a struct, a map or both.
type Map struct {
	Fields       []Field `json:"f,omitempty"`
	Element      Ref     `json:"e,omitzero"`
	Relationship string  `json:"r,omitempty"`
}

// Field is a schema.StructField. Default is kept where a list may have the field as its key.
type Field struct {
	Name    string `json:"n"`
	Type    Ref    `json:"t"`
	Default any    `json:"d,omitempty"`
}

// definitions reads types by their OpenAPI name. What it has read it keeps as
// long as the garbage collector lets it: plans are made once, and most soon after
// the start.
type definitions struct {
	lines weak.Pointer[map[string][]byte] // types that are not decoded
	types map[string]*Type                // of the plan that is made
}

// find returns a type, nil when there is none of that name.
func (d *definitions) find(name string) (*Type, error) {
	if t, ok := d.types[name]; ok {
		return t, nil
	}
	lines, err := d.open()
	if err != nil {
		return nil, err
	}
	raw, ok := lines[name]
	if !ok {
		return nil, nil
	}
	t := &Type{}
	if err := json.Unmarshal(raw, t); err != nil {
		return nil, fmt.Errorf("read the schema of %s: %w", name, err)
	}
	if d.types == nil {
		d.types = map[string]*Type{}
	}
	d.types[name] = t
	return t, nil
}

// done forgets the types of the plan that was made.
func (d *definitions) done() { d.types = nil }

func (d *definitions) open() (map[string][]byte, error) {
	if lines := d.lines.Value(); lines != nil {
		return *lines, nil
	}
	z, err := gzip.NewReader(bytes.NewReader(compressed))
	if err != nil {
		return nil, fmt.Errorf("read the schema of the built-in types: %w", err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		return nil, fmt.Errorf("read the schema of the built-in types: %w", err)
	}
	lines := map[string][]byte{}
	for line := range bytes.Lines(b) {
		name, def, ok := bytes.Cut(line, []byte{' '})
		if !ok {
			return nil, fmt.Errorf("read the schema of the built-in types: a line without a type")
		}
		lines[string(name)] = def
	}
	d.lines = weak.Make(&lines)
	return lines, nil
}

// resolve returns the type that r refers to.
func (d *definitions) resolve(r Ref) (Type, error) {
	if r.Name == "" {
		return r.Type, nil
	}
	t, err := d.find(r.Name)
	if err != nil {
		return Type{}, err
	}
	if t == nil {
		return Type{}, fmt.Errorf("the schema has no type %s", r.Name)
	}
	out := *t
	switch {
	case r.Relationship == "":
	case out.Map != nil:
		m := *out.Map
		m.Relationship = r.Relationship
		out.Map = &m
	case out.List != nil:
		l := *out.List
		l.Relationship = r.Relationship
		out.List = &l
	}
	return out, nil
}

// parseable returns a type with everything that it refers to, as structured-merge-diff wants it.
func (d *definitions) parseable(name string) (*typed.ParseableType, error) {
	s := &schema.Schema{}
	seen := map[string]bool{name: true}
	for todo := []string{name}; len(todo) > 0; {
		n := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		t, err := d.find(n)
		if err != nil {
			return nil, err
		}
		if t == nil {
			return nil, fmt.Errorf("the schema has no type %s", n)
		}
		var c converter
		s.Types = append(s.Types, schema.TypeDef{Name: n, Atom: c.atom(*t)})
		for _, u := range c.uses {
			if !seen[u] {
				seen[u] = true
				todo = append(todo, u)
			}
		}
	}
	return &typed.ParseableType{Schema: s, TypeRef: schema.TypeRef{NamedType: &name}}, nil
}

// converter makes schema types and notes the names that they use.
type converter struct{ uses []string }

func (c *converter) atom(t Type) schema.Atom {
	var a schema.Atom
	if t.Scalar != "" {
		s := schema.Scalar(t.Scalar)
		a.Scalar = &s
	}
	if l := t.List; l != nil {
		a.List = &schema.List{ElementType: c.ref(l.Element), ElementRelationship: schema.ElementRelationship(l.Relationship), Keys: l.Keys}
	}
	if m := t.Map; m != nil {
		a.Map = &schema.Map{ElementType: c.ref(m.Element), ElementRelationship: schema.ElementRelationship(m.Relationship)}
		for _, f := range m.Fields {
			a.Map.Fields = append(a.Map.Fields, schema.StructField{Name: f.Name, Type: c.ref(f.Type), Default: number(f.Default)})
		}
	}
	return a
}

func (c *converter) ref(r Ref) schema.TypeRef {
	out := schema.TypeRef{Inlined: c.atom(r.Type)}
	if r.Name != "" {
		name := r.Name
		out.NamedType = &name
		c.uses = append(c.uses, name)
	}
	if r.Relationship != "" {
		rel := schema.ElementRelationship(r.Relationship)
		out.ElementRelationship = &rel
	}
	return out
}

// number makes an integer of what JSON has made a float.
func number(v any) any {
	if f, ok := v.(float64); ok && f == float64(int64(f)) {
		return int64(f)
	}
	return v
}
