package managed

import (
	"errors"
	"fmt"
	"strings"
	"unsafe"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
)

// node is a path element and what is below it. As a set of fields, marks says
// whether the element itself is a member; as a comparison, what happened to it.
type node struct {
	key   string
	marks marks
	kids  []node // sorted by compareKeys
}

type marks uint8

const (
	member  marks = 1 << iota // of a set
	taken                     // was added or modified
	removed                   // was removed
)

// maxDepth bounds the nesting of a set that is read.
const maxDepth = 256

var errSyntax = errors.New("this is no set of fields")

// parse reads fieldsV1 in the form in which it is written here and by
// Kubernetes: no spaces, elements with canonical escapes. What it returns uses
// text, and memory of c.
func parse(c *comparer, text string) (node, error) {
	if text == "" {
		return node{}, nil
	}
	p := parser{c: c, text: text}
	defer func() { c.stack = c.stack[:0] }()
	_, kids, err := p.object(0)
	if err != nil {
		return node{}, err
	}
	if p.at != len(p.text) {
		return node{}, errSyntax
	}
	return node{kids: kids}, nil
}

type parser struct {
	c    *comparer
	text string
	at   int
}

func (p *parser) take(c byte) bool {
	if p.at < len(p.text) && p.text[p.at] == c {
		p.at++
		return true
	}
	return false
}

// object reads what is below a node, and whether the node itself is a member.
func (p *parser) object(depth int) (m marks, kids []node, err error) {
	if depth > maxDepth || !p.take('{') {
		return 0, nil, errSyntax
	}
	if p.take('}') {
		return member, nil, nil
	}
	c := p.c
	from, sorted := len(c.stack), true
	for {
		key, err := p.key()
		if err != nil {
			return 0, nil, err
		}
		if !p.take(':') {
			return 0, nil, errSyntax
		}
		if key == "." {
			if !p.take('{') || !p.take('}') {
				return 0, nil, errSyntax
			}
			m = member
		} else {
			if len(key) < 2 || key[1] != ':' || (key[0] != 'f' && key[0] != 'k' && key[0] != 'v' && key[0] != 'i') {
				return 0, nil, errSyntax
			}
			childMarks, childKids, err := p.object(depth + 1)
			if err != nil {
				return 0, nil, err
			}
			if n := len(c.stack); n > from && compareKeys(c.stack[n-1].key, key) >= 0 {
				sorted = false
			}
			c.stack = append(c.stack, node{key: key, marks: childMarks, kids: childKids})
		}
		if p.take(',') {
			continue
		}
		if !p.take('}') {
			return 0, nil, errSyntax
		}
		break
	}
	kids = c.close(from, sorted)
	if !sorted {
		for i := 1; i < len(kids); i++ {
			if kids[i].key == kids[i-1].key {
				return 0, nil, errSyntax
			}
		}
	}
	if kids == nil {
		m = member
	}
	return m, kids, nil
}

// key reads a string and returns what stands between its quotes.
func (p *parser) key() (string, error) {
	if !p.take('"') {
		return "", errSyntax
	}
	for i := p.at; i < len(p.text); i++ {
		switch p.text[i] {
		case '\\':
			i++
		case '"':
			key := p.text[p.at:i]
			p.at = i + 1
			return key, nil
		}
	}
	return "", errSyntax
}

// appendSet appends fieldsV1 of the nodes that have one of the marks in mask.
// Every leaf of n has one.
func appendSet(b []byte, n *node, mask marks, root bool) []byte {
	b = append(b, '{')
	first := true
	if !root && n.marks&mask != 0 && len(n.kids) > 0 {
		b = append(b, `".":{}`...)
		first = false
	}
	for i := range n.kids {
		if !first {
			b = append(b, ',')
		}
		first = false
		b = append(b, '"')
		b = append(b, n.kids[i].key...)
		b = append(b, '"', ':')
		b = appendSet(b, &n.kids[i], mask, false)
	}
	return append(b, '}')
}

// only returns the part of a comparison with a mark, as a set.
func only(n *node, mark marks) node {
	out := node{key: n.key}
	if n.marks&mark != 0 {
		out.marks = member
	}
	for i := range n.kids {
		if k := only(&n.kids[i], mark); k.marks != 0 || len(k.kids) > 0 {
			if out.kids == nil {
				out.kids = make([]node, 0, len(n.kids)-i)
			}
			out.kids = append(out.kids, k)
		}
	}
	return out
}

// without returns set less the elements that have any mark in changes, and
// whether that is less. What stays is shared.
func without(set, changes *node) (node, bool) {
	out, less := *set, false
	if set.marks != 0 && changes.marks != 0 {
		out.marks, less = 0, true
	}
	if len(set.kids) == 0 || len(changes.kids) == 0 {
		return out, less
	}
	copied := false
	out.kids = set.kids
	j := 0
	for i := range set.kids {
		kid := &set.kids[i]
		for j < len(changes.kids) && compareKeys(changes.kids[j].key, kid.key) < 0 {
			j++
		}
		left, fewer := *kid, false
		if j < len(changes.kids) && changes.kids[j].key == kid.key {
			left, fewer = without(kid, &changes.kids[j])
		}
		if fewer && !copied {
			copied, less = true, true
			out.kids = append(make([]node, 0, len(set.kids)), set.kids[:i]...)
		}
		if copied && (left.marks != 0 || len(left.kids) > 0) {
			out.kids = append(out.kids, left)
		}
	}
	return out, less
}

// union returns the elements of a and b, and whether b had any that a had not.
func union(a, b *node) (node, bool) {
	out := node{key: a.key, marks: a.marks | b.marks}
	more := a.marks == 0 && b.marks != 0
	if len(b.kids) == 0 {
		out.kids = a.kids
		return out, more
	}
	if len(a.kids) == 0 {
		out.kids = b.kids
		return out, true
	}
	out.kids = make([]node, 0, max(len(a.kids), len(b.kids)))
	i, j := 0, 0
	for i < len(a.kids) || j < len(b.kids) {
		c := 0
		switch {
		case i == len(a.kids):
			c = 1
		case j == len(b.kids):
			c = -1
		default:
			c = compareKeys(a.kids[i].key, b.kids[j].key)
		}
		switch {
		case c < 0:
			out.kids = append(out.kids, a.kids[i])
			i++
		case c > 0:
			out.kids = append(out.kids, b.kids[j])
			j, more = j+1, true
		default:
			k, m := union(&a.kids[i], &b.kids[j])
			out.kids = append(out.kids, k)
			i, j, more = i+1, j+1, more || m
		}
	}
	return out, more
}

func (n *node) empty() bool { return n.marks == 0 && len(n.kids) == 0 }

// textOf returns a set without copying it: sets are replaced, never written to.
func textOf(f *metav1.FieldsV1) string {
	b := f.GetRawBytes()
	return unsafe.String(unsafe.SliceData(b), len(b))
}

// canonical reads fieldsV1 of any origin and returns it as Kubernetes writes it.
func canonical(text string) (string, error) {
	if text == "" {
		return "{}", nil
	}
	set := fieldpath.NewSet()
	if err := set.FromJSON(strings.NewReader(text)); err != nil {
		return "", fmt.Errorf("decode a set of fields: %w", err)
	}
	out, err := set.ToJSON()
	if err != nil {
		return "", fmt.Errorf("encode a set of fields: %w", err)
	}
	return string(out), nil
}
