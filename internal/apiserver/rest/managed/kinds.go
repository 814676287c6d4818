package managed

import (
	"fmt"
	"reflect"
	"sync"

	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/structured-merge-diff/v6/typed"
)

// Kinds are the built-in kinds. A Kind is made at its first use.
type Kinds struct {
	mu        sync.Mutex
	defs      definitions
	plans     map[planKey]*plan
	whole     map[reflect.Type]*equality
	kinds     map[reflect.Type]*Kind
	comparers sync.Pool
}

// NewKinds returns Kinds that have read nothing yet.
func NewKinds() *Kinds {
	return &Kinds{plans: map[planKey]*plan{}, whole: map[reflect.Type]*equality{}, kinds: map[reflect.Type]*Kind{}}
}

// Kind compares objects of one Go type.
type Kind struct {
	kinds *Kinds
	name  string
	plan  *plan

	once     sync.Once
	types    *typed.ParseableType
	typesErr error
}

// modelNamer is what the generated types of the API implement.
type modelNamer interface{ OpenAPIModelName() string }

// Of returns the Kind of an object's type, nil when the schema does not have it.
func (k *Kinds) Of(obj runtime.Object) (*Kind, error) {
	t := reflect.TypeOf(obj)
	k.mu.Lock()
	defer k.mu.Unlock()
	if kind, ok := k.kinds[t]; ok {
		return kind, nil
	}
	kind, err := k.kind(obj, t)
	k.defs.done()
	if err != nil {
		return nil, fmt.Errorf("read how the fields of %T are owned: %w", obj, err)
	}
	k.kinds[t] = kind
	return kind, nil
}

func (k *Kinds) kind(obj runtime.Object, t reflect.Type) (*Kind, error) {
	n, ok := obj.(modelNamer)
	if !ok {
		return nil, nil
	}
	name := n.OpenAPIModelName()
	if def, err := k.defs.find(name); def == nil {
		return nil, err
	}
	c := compiler{defs: &k.defs, plans: k.plans, whole: k.whole}
	p, err := c.compile(t.Elem(), Ref{Name: name})
	if err != nil {
		return nil, err
	}
	if p.shape != structs {
		return nil, fmt.Errorf("%s is no struct", t)
	}
	return &Kind{kinds: k, name: name, plan: p}, nil
}

// parseable returns the type for merging.
func (k *Kind) parseable() (*typed.ParseableType, error) {
	k.once.Do(func() {
		k.kinds.mu.Lock()
		defer k.kinds.mu.Unlock()
		k.types, k.typesErr = k.kinds.defs.parseable(k.name)
		k.kinds.defs.done()
	})
	return k.types, k.typesErr
}

// Reset lists the fields that a write cannot change, by the name of a field or of
// a field and one in it: what a client says of them is neither owned nor disowned.
type Reset [][]string

// Skips reports whether a field is reset as a whole, and whether fields in it are.
func (r Reset) Skips(name string) (whole, part bool) {
	for _, path := range r {
		if path[0] == name {
			if len(path) == 1 {
				return true, false
			}
			part = true
		}
	}
	return false, part
}

// SkipsIn reports whether a field in a field is reset.
func (r Reset) SkipsIn(name, inner string) bool {
	for _, path := range r {
		if len(path) == 2 && path[0] == name && path[1] == inner {
			return true
		}
	}
	return false
}

// unowned reports which fields of an object's metadata belong to the server, or name the object.
func unowned(name string) bool {
	switch name {
	case "name", "namespace", "creationTimestamp", "selfLink", "uid", "clusterName", "generation", "managedFields", "resourceVersion":
		return true
	}
	return false
}

// Comparison is what a write changes. Free it when it is not needed any more.
type Comparison struct {
	c     *comparer
	kinds *Kinds
	root  node
}

// Free lets another comparison use the memory of this one.
func (c *Comparison) Free() {
	if c.c != nil {
		c.c.reset()
		c.kinds.comparers.Put(c.c)
		c.c, c.root = nil, node{}
	}
}

// IsSame reports whether nothing changes.
func (c *Comparison) IsSame() bool { return len(c.root.kids) == 0 }

// Compare returns what is different in now, of the type of the Kind as old is
// (an empty one for an object that is new).
func (k *Kind) Compare(old, now runtime.Object, reset Reset) (*Comparison, error) {
	c, _ := k.kinds.comparers.Get().(*comparer)
	if c == nil {
		c = &comparer{}
	}
	out := &Comparison{c: c, kinds: k.kinds}
	l, r := side{v: reflect.ValueOf(old).Elem(), present: true}, side{v: reflect.ValueOf(now).Elem(), present: true}
	for i := range k.plan.fields {
		f := &k.plan.fields[i]
		if f.name == "apiVersion" || f.name == "kind" {
			continue
		}
		whole, part := reset.Skips(f.name)
		switch {
		case whole:
		case part || f.name == "metadata":
			c.parts(f, l, r, reset)
		default:
			c.field(f, l, r)
		}
	}
	out.root.kids = c.close(0, true)
	if err := c.err; err != nil {
		out.Free()
		return nil, err
	}
	return out, nil
}

// parts compares those fields of a struct at the top of an object that a write can change.
func (c *comparer) parts(f *planField, l, r side, reset Reset) {
	fl, fr := side{v: f.of(l.v), present: true}, side{v: f.of(r.v), present: true}
	if f.plan.deref {
		fl, fr = fl.elem(), fr.elem()
	}
	from := len(c.stack)
	for i := range f.plan.fields {
		inner := &f.plan.fields[i]
		if f.name == "metadata" && unowned(inner.name) || reset.SkipsIn(f.name, inner.name) {
			continue
		}
		c.field(inner, fl, fr)
	}
	if kids := c.close(from, true); kids != nil {
		c.stack = append(c.stack, node{key: f.key, kids: kids})
	}
}
