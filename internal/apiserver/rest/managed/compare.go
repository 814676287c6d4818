package managed

import (
	"fmt"
	"reflect"
	"slices"
)

// comparer compares two values along a plan. What it returns lives until it is
// used again.
type comparer struct {
	stack []node // finished children of the nodes that are open
	slab  []node // children of finished nodes
	text  []byte // path elements of the items of the lists that are open
	ends  []int  // where they end in text
	err   error
}

func (c *comparer) reset() {
	clear(c.stack[:cap(c.stack)])
	clear(c.slab[:cap(c.slab)])
	c.stack, c.slab, c.text, c.ends, c.err = c.stack[:0], c.slab[:0], c.text[:0], c.ends[:0], nil
}

const slabSize = 128

// close takes the children that were pushed since from off the stack.
func (c *comparer) close(from int, sorted bool) []node {
	n := len(c.stack) - from
	if n == 0 {
		return nil
	}
	if cap(c.slab)-len(c.slab) < n {
		c.slab = make([]node, 0, max(slabSize, n))
	}
	at := len(c.slab)
	c.slab = append(c.slab, c.stack[from:]...)
	c.stack = c.stack[:from]
	kids := c.slab[at : at+n : at+n]
	if !sorted && n > 1 {
		slices.SortFunc(kids, func(a, b node) int { return compareKeys(a.key, b.key) })
	}
	return kids
}

// side is one of two values that are compared: a value, null (no value, but
// present) or absent.
type side struct {
	v       reflect.Value
	present bool
}

// ends of a comparison: what is marked where there is nothing to descend into.
func mark(l, r side, same bool) marks {
	switch {
	case !l.present:
		return taken
	case !r.present:
		return removed
	case !same:
		return taken
	}
	return 0
}

// walk returns the marks and the children of the node of two values.
func (c *comparer) walk(p *plan, l, r side) (marks, []node) {
	if p.deref {
		l, r = l.elem(), r.elem()
	}
	switch p.shape {
	case structs:
		return c.structs(p, l, r)
	case maps:
		return c.maps(p, l, r)
	case sets, lists:
		return c.lists(p, l, r)
	}
	if l.v.IsValid() && r.v.IsValid() {
		return mark(l, r, p.same(l.v, r.v)), nil
	}
	return mark(l, r, !l.v.IsValid() && !r.v.IsValid()), nil
}

func (s side) elem() side {
	if s.v.IsValid() {
		s.v = s.v.Elem() // no value for nil
	}
	return s
}

// outcome returns the marks of a map or list whose children have been compared.
func outcome(l, r side) marks {
	switch {
	case !l.present:
		return taken
	case !r.present:
		return removed
	}
	return 0
}

func (c *comparer) structs(p *plan, l, r side) (marks, []node) {
	from := len(c.stack)
	any := false
	for i := range p.fields {
		f := &p.fields[i]
		if c.field(f, l, r) {
			any = true
		}
	}
	if !any {
		return mark(l, r, l.v.IsValid() == r.v.IsValid()), nil
	}
	return outcome(l, r), c.close(from, true)
}

// field pushes the node of a field when something has changed there, and
// returns whether there is the field at all.
func (c *comparer) field(f *planField, l, r side) bool {
	var fl, fr side
	if l.v.IsValid() {
		fl.v = f.of(l.v)
		if fl.present = f.omit == nil || !f.omit(fl.v); !fl.present {
			fl.v = reflect.Value{}
		}
	}
	if r.v.IsValid() {
		fr.v = f.of(r.v)
		if fr.present = f.omit == nil || !f.omit(fr.v); !fr.present {
			fr.v = reflect.Value{}
		}
	}
	if !fl.present && !fr.present {
		return false
	}
	if m, kids := c.walk(f.plan, fl, fr); m != 0 || kids != nil {
		c.stack = append(c.stack, node{key: f.key, marks: m, kids: kids})
	}
	return true
}

func (s side) length() int {
	if !s.v.IsValid() {
		return 0
	}
	return s.v.Len()
}

// nullable returns s without its value when that is null in JSON.
func (s side) nullable() side {
	if s.v.IsValid() && s.v.IsNil() {
		s.v = reflect.Value{}
	}
	return s
}

var stringMap = reflect.TypeFor[map[string]string]()

func (c *comparer) maps(p *plan, l, r side) (marks, []node) {
	l, r = l.nullable(), r.nullable()
	nl, nr := l.length(), r.length()
	if nl == 0 && nr == 0 {
		return mark(l, r, l.v.IsValid() == r.v.IsValid()), nil
	}
	from := len(c.stack)
	if (nl == 0 || l.v.Type() == stringMap) && (nr == 0 || r.v.Type() == stringMap) {
		c.stringMaps(l, r)
		return outcome(l, r), c.close(from, false)
	}
	if nr > 0 {
		for it := r.v.MapRange(); it.Next(); {
			item := side{present: true, v: addressable(it.Value())}
			var other side
			if nl > 0 {
				if v := l.v.MapIndex(it.Key()); v.IsValid() {
					other = side{present: true, v: addressable(v)}
				}
			}
			c.item(p.elem, it.Key().String(), other, item)
		}
	}
	if nl > 0 {
		for it := l.v.MapRange(); it.Next(); {
			if nr > 0 && r.v.MapIndex(it.Key()).IsValid() {
				continue
			}
			c.item(p.elem, it.Key().String(), side{present: true, v: addressable(it.Value())}, side{})
		}
	}
	return outcome(l, r), c.close(from, false)
}

func (c *comparer) item(p *plan, name string, l, r side) {
	if m, kids := c.walk(p, l, r); m != 0 || kids != nil {
		c.stack = append(c.stack, node{key: fieldKey(name), marks: m, kids: kids})
	}
}

func fieldKey(name string) string { return string(appendEscaped([]byte("f:"), name)) }

func (c *comparer) stringMaps(l, r side) {
	var old, now map[string]string
	if l.v.IsValid() {
		old = l.v.Interface().(map[string]string)
	}
	if r.v.IsValid() {
		now = r.v.Interface().(map[string]string)
	}
	for k, v := range now {
		if was, ok := old[k]; !ok || was != v {
			c.stack = append(c.stack, node{key: fieldKey(k), marks: taken})
		}
	}
	for k := range old {
		if _, ok := now[k]; !ok {
			c.stack = append(c.stack, node{key: fieldKey(k), marks: removed})
		}
	}
}

// fail keeps the first error.
func (c *comparer) fail(format string, args ...any) {
	if c.err == nil {
		c.err = fmt.Errorf(format, args...)
	}
}
