package managed

import "reflect"

// lists compares lists whose items are told apart by keys, or are their own keys.
func (c *comparer) lists(p *plan, l, r side) (marks, []node) {
	l, r = l.nullable(), r.nullable()
	nl, nr := l.length(), r.length()
	if nl == 0 && nr == 0 {
		return mark(l, r, l.v.IsValid() == r.v.IsValid()), nil
	}
	from, text, ends := len(c.stack), len(c.text), len(c.ends)
	c.keys(p, l, nl)
	c.keys(p, r, nr)
	w := listWalk{c: c, p: p, l: l, r: r, nl: nl, nr: nr, text: text, ends: ends}
	sorted := w.inStep()
	if !sorted {
		w.byKey()
	}
	c.text, c.ends = c.text[:text], c.ends[:ends]
	return outcome(l, r), c.close(from, false)
}

// keys appends the path elements of a list's items.
func (c *comparer) keys(p *plan, s side, n int) {
	for i := range n {
		item := s.v.Index(i)
		if p.shape == sets {
			c.text = append(c.text, 'v', ':')
			var err error
			if c.text, err = appendScalar(c.text, item); err != nil {
				c.fail("an item of a set: %w", err)
			}
		} else {
			c.key(p, item)
		}
		c.ends = append(c.ends, len(c.text))
	}
}

func (c *comparer) key(p *plan, item reflect.Value) {
	c.text = append(c.text, 'k', ':', '{')
	some := false
	for i := range p.keys {
		k := &p.keys[i]
		v := k.field.of(item)
		absent := k.field.omit != nil && k.field.omit(v)
		if !absent && k.field.plan.deref {
			if v = v.Elem(); !v.IsValid() { // null
				if some {
					c.text = append(c.text, ',')
				}
				c.text, some = append(append(c.text, k.prefix...), "null"...), true
				continue
			}
		}
		if absent && k.def == nil {
			continue
		}
		if some {
			c.text = append(c.text, ',')
		}
		some = true
		c.text = append(c.text, k.prefix...)
		if absent {
			c.text = append(c.text, k.def...)
			continue
		}
		var err error
		if c.text, err = appendScalar(c.text, v); err != nil {
			c.fail("the key %s of a list item: %w", k.field.name, err)
		}
	}
	if !some {
		c.fail("an item of a list has none of its keys")
	}
	c.text = append(c.text, '}')
}

type listWalk struct {
	c          *comparer
	p          *plan
	l, r       side
	nl, nr     int
	text, ends int // where the path elements of l begin; those of r follow
}

// at returns the path element of item i, those of r counted after those of l.
func (w *listWalk) at(i int) []byte {
	from := w.text
	if i > 0 {
		from = w.c.ends[w.ends+i-1]
	}
	return w.c.text[from:w.c.ends[w.ends+i]]
}

// inStep compares lists with the same items in the same order, or of which one
// is empty, and returns whether they were such.
func (w *listWalk) inStep() bool {
	if w.nl != w.nr && w.nl != 0 && w.nr != 0 {
		return false
	}
	n := max(w.nl, w.nr)
	if n > maxLinear {
		return false
	}
	for i := range n {
		if w.nl == w.nr && string(w.at(i)) != string(w.at(w.nl+i)) {
			return false
		}
		for j := range i {
			if string(w.at(i)) == string(w.at(j)) {
				return false // twice the same
			}
		}
	}
	for i := range n {
		l, r := -1, -1
		if w.nl > 0 {
			l = i
		}
		if w.nr > 0 {
			r = i
		}
		w.pair(l, r)
	}
	return true
}

// maxLinear is up to how many items duplicates are looked for one by one.
const maxLinear = 24

// pair compares item i of l with item j of r (-1: there is none).
func (w *listWalk) pair(i, j int) {
	var l, r side
	var key int
	if i >= 0 {
		l, key = side{v: w.l.v.Index(i), present: true}, i
	}
	if j >= 0 {
		r, key = side{v: w.r.v.Index(j), present: true}, w.nl+j
	}
	if m, kids := w.c.walk(w.p.elem, l, r); m != 0 || kids != nil {
		w.push(key, m, kids)
	}
}

func (w *listWalk) push(key int, m marks, kids []node) {
	w.c.stack = append(w.c.stack, node{key: string(w.at(key)), marks: m, kids: kids})
}

// byKey compares lists in any order. Items that a list has more than once are
// owned together.
func (w *listWalk) byKey() {
	type where struct{ l, r []int }
	index := make(map[string]*where, max(w.nl, w.nr))
	order := make([]*where, 0, max(w.nl, w.nr))
	for i := range w.nl + w.nr {
		key := w.at(i)
		at, ok := index[string(key)]
		if !ok {
			at = &where{}
			index[string(key)] = at
			order = append(order, at)
		}
		if i < w.nl {
			at.l = append(at.l, i)
		} else {
			at.r = append(at.r, i-w.nl)
		}
	}
	for _, at := range order {
		switch {
		case len(at.l) <= 1 && len(at.r) <= 1:
			w.pair(first(at.l), first(at.r))
		case len(at.l) >= 2 && len(at.r) >= 2:
			if !w.sameItems(at.l, at.r) {
				w.push(at.l[0], taken, nil)
			}
		case len(at.l) >= 2:
			// From several to one or none: what is there now is new.
			var kids []node
			if len(at.r) == 1 {
				_, kids = w.c.walk(w.p.elem, side{}, side{v: w.r.v.Index(at.r[0]), present: true})
			}
			m := removed
			if len(at.r) == 1 {
				m |= taken
			}
			w.push(at.l[0], m, kids)
		default:
			var kids []node
			m := taken
			if len(at.l) == 1 {
				_, kids = w.c.walk(w.p.elem, side{v: w.l.v.Index(at.l[0]), present: true}, side{})
				m |= removed
			}
			w.push(w.nl+at.r[0], m, kids)
		}
	}
}

func first(i []int) int {
	if len(i) == 0 {
		return -1
	}
	return i[0]
}

func (w *listWalk) sameItems(l, r []int) bool {
	if len(l) != len(r) {
		return false
	}
	for i := range l {
		if !sameJSON(w.l.v.Index(l[i]).Addr().Interface(), w.r.v.Index(r[i]).Addr().Interface()) {
			return false
		}
	}
	return true
}
