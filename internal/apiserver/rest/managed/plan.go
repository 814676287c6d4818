package managed

import (
	"cmp"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// plan says how the values of a Go type are compared: it is the type and its
// schema put together.
type plan struct {
	shape shape
	deref bool // the value is a pointer

	fields []planField                   // structs, sorted by name
	keys   []listKey                     // keyed lists
	elem   *plan                         // lists and maps
	same   func(a, b reflect.Value) bool // leaves
}

type shape uint8

const (
	leaf    shape = iota // scalars, and what is owned as a whole
	structs              // fields are owned one by one
	maps
	sets  // lists whose items are their own keys
	lists // lists whose items have keys
)

type planField struct {
	name  string
	key   string // the path element: `f:name`
	index int
	path  []int // instead of index, for a field of an embedded struct
	omit  func(reflect.Value) bool
	plan  *plan
}

func (f *planField) of(v reflect.Value) reflect.Value {
	if f.path == nil {
		return v.Field(f.index)
	}
	return v.FieldByIndex(f.path)
}

// listKey is a field by which the items of a list are told apart.
type listKey struct {
	prefix []byte // `\"name\":`
	field  planField
	def    []byte // the value when the item has none; nil: the key is left out
}

// compiler makes plans; equal types share one, which also ends recursion.
type compiler struct {
	defs  *definitions
	plans map[planKey]*plan
	whole map[reflect.Type]*equality
}

type planKey struct {
	goType       reflect.Type
	name         string
	relationship string
}

var marshaler = reflect.TypeFor[json.Marshaler]()

func marshals(t reflect.Type) bool {
	return t.Implements(marshaler) || reflect.PointerTo(t).Implements(marshaler)
}

// compile returns the plan of values of a Go type that the schema has at r.
func (c *compiler) compile(t reflect.Type, r Ref) (*plan, error) {
	key := planKey{goType: t, name: r.Name, relationship: r.Relationship}
	if r.Name != "" {
		if p, ok := c.plans[key]; ok {
			return p, nil
		}
	}
	p := &plan{}
	if r.Name != "" {
		c.plans[key] = p
	}
	if err := c.fill(p, t, r); err != nil {
		delete(c.plans, key)
		return nil, err
	}
	return p, nil
}

func (c *compiler) fill(p *plan, t reflect.Type, r Ref) error {
	if t.Kind() == reflect.Pointer {
		p.deref = true
		t = t.Elem()
	}
	def, err := c.defs.resolve(r)
	if err != nil {
		return err
	}
	switch {
	case marshals(t):
		// Times, quantities and other scalars; what JSON has inside is owned as a whole.
		p.same = sameMarshaled
		return nil
	case def.Map != nil && def.Map.Relationship != "atomic" && t.Kind() == reflect.Struct:
		p.shape = structs
		return c.structure(p, t, def.Map)
	case def.Map != nil && def.Map.Relationship != "atomic" && t.Kind() == reflect.Map:
		p.shape = maps
		if t.Key().Kind() != reflect.String {
			return fmt.Errorf("%s: the keys are no strings", t)
		}
		p.elem, err = c.compile(t.Elem(), def.Map.Element)
		return err
	case def.List != nil && def.List.Relationship == "associative" && t.Kind() == reflect.Slice:
		if len(def.List.Keys) == 0 {
			p.shape = sets
			if !scalar(t.Elem().Kind()) || marshals(t.Elem()) {
				return fmt.Errorf("%s: the items of a set are no scalars", t)
			}
			p.elem = &plan{same: sameScalars(t.Elem())}
			return nil
		}
		p.shape = lists
		if p.elem, err = c.compile(t.Elem(), def.List.Element); err != nil {
			return err
		}
		return c.listKeys(p, t.Elem(), def.List)
	}
	p.same = sameScalars(t)
	if p.same == nil {
		e, err := c.equality(t)
		if err != nil {
			return err
		}
		p.same = e.equal
	}
	return nil
}

func isNil(v reflect.Value) bool { return v.IsNil() }

func scalar(k reflect.Kind) bool {
	return k == reflect.String || k == reflect.Bool || reflect.Int <= k && k <= reflect.Uint64
}

func (c *compiler) structure(p *plan, t reflect.Type, m *Map) error {
	types := map[string]Ref{}
	for _, f := range m.Fields {
		types[f.Name] = f.Type
	}
	err := eachField(t, nil, func(f planField, ft reflect.Type) error {
		r, ok := types[f.name]
		if !ok {
			r = m.Element
		}
		sub, err := c.compile(ft, r)
		if err != nil {
			return fmt.Errorf("%s.%s: %w", t, f.name, err)
		}
		f.plan = sub
		p.fields = append(p.fields, f)
		return nil
	})
	slices.SortFunc(p.fields, func(a, b planField) int { return cmp.Compare(a.name, b.name) })
	return err
}

// eachField calls fn for each field that JSON has of a struct.
func eachField(t reflect.Type, path []int, fn func(planField, reflect.Type) error) error {
	for i := range t.NumField() {
		sf := t.Field(i)
		name, options, _ := strings.Cut(sf.Tag.Get("json"), ",")
		if name == "-" || (!sf.IsExported() && !sf.Anonymous) {
			continue
		}
		at := append(slices.Clone(path), i)
		if sf.Anonymous && name == "" {
			if sf.Type.Kind() != reflect.Struct {
				return fmt.Errorf("%s embeds %s", t, sf.Type)
			}
			if err := eachField(sf.Type, at, fn); err != nil {
				return err
			}
			continue
		}
		if name == "" {
			name = sf.Name
		}
		f := planField{name: name, key: string(appendEscaped([]byte("f:"), name)), index: i, omit: omission(sf.Type, options)}
		if path != nil {
			f.path = at
		}
		if err := fn(f, sf.Type); err != nil {
			return err
		}
	}
	return nil
}

// omission returns when JSON leaves a field out; nil: never.
func omission(t reflect.Type, options string) func(reflect.Value) bool {
	opts := strings.Split(options, ",")
	empty := slices.Contains(opts, "omitempty")
	zero := slices.Contains(opts, "omitzero")
	var whenEmpty, whenZero func(reflect.Value) bool
	if empty {
		switch t.Kind() {
		case reflect.Slice, reflect.Map:
			whenEmpty = func(v reflect.Value) bool { return v.Len() == 0 }
		case reflect.Pointer, reflect.Interface:
			whenEmpty = isNil
		case reflect.Struct, reflect.Array:
		default:
			whenEmpty = reflect.Value.IsZero
		}
	}
	if zero {
		whenZero = reflect.Value.IsZero
		if reflect.PointerTo(t).Implements(isZeroer) {
			whenZero = func(v reflect.Value) bool { return addressable(v).Addr().Interface().(zeroer).IsZero() }
		}
	}
	switch {
	case whenZero == nil:
		return whenEmpty
	case whenEmpty == nil:
		return whenZero
	}
	return func(v reflect.Value) bool { return whenEmpty(v) || whenZero(v) }
}

type zeroer interface{ IsZero() bool }

var isZeroer = reflect.TypeFor[zeroer]()

// addressable returns v or a copy of it that has an address.
func addressable(v reflect.Value) reflect.Value {
	if v.CanAddr() {
		return v
	}
	n := reflect.New(v.Type()).Elem()
	n.Set(v)
	return n
}

func (c *compiler) listKeys(p *plan, t reflect.Type, l *List) error {
	if t.Kind() != reflect.Struct {
		return fmt.Errorf("items of type %s have no keys", t)
	}
	element, err := c.defs.resolve(l.Element)
	if err != nil {
		return err
	}
	names := slices.Sorted(slices.Values(l.Keys))
	for _, name := range names {
		i := slices.IndexFunc(p.elem.fields, func(f planField) bool { return f.name == name })
		if i < 0 {
			// The items are owned as a whole: the field is not in the plan.
			var found *planField
			if err := eachField(t, nil, func(f planField, ft reflect.Type) error {
				if f.name == name {
					f.plan = &plan{deref: ft.Kind() == reflect.Pointer}
					found = &f
				}
				return nil
			}); err != nil {
				return err
			}
			if found == nil {
				return fmt.Errorf("%s has no field %s, which is a key", t, name)
			}
			p.keys = append(p.keys, listKey{field: *found})
		} else {
			p.keys = append(p.keys, listKey{field: p.elem.fields[i]})
		}
		k := &p.keys[len(p.keys)-1]
		k.prefix = append(appendString(nil, name), ':')
		if element.Map == nil {
			continue
		}
		for _, f := range element.Map.Fields {
			if f.Name == name && f.Default != nil {
				if k.def, err = appendScalar(nil, reflect.ValueOf(number(f.Default))); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// appendScalar appends a key's value as it stands inside a path element.
func appendScalar(b []byte, v reflect.Value) ([]byte, error) {
	switch k := v.Kind(); {
	case k == reflect.String:
		return appendString(b, v.String()), nil
	case k == reflect.Bool:
		return appendBool(b, v.Bool()), nil
	case v.CanInt():
		return appendInt(b, v.Int()), nil
	case v.CanUint() && v.Uint() <= 1<<62:
		return appendInt(b, int64(v.Uint())), nil
	}
	// IntOrString and the like.
	if m, ok := addressable(v).Addr().Interface().(json.Marshaler); ok {
		text, err := m.MarshalJSON()
		if err != nil {
			return nil, err
		}
		return appendEscaped(b, string(text)), nil
	}
	return nil, fmt.Errorf("a %s is no key", v.Type())
}
