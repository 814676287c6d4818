package managed

import (
	"cmp"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// maxUpdaters is how many managers besides appliers an object remembers; the
	// oldest become ancientManager.
	maxUpdaters    = 10
	ancientManager = "ancient-changes"

	fieldsType = "FieldsV1"
)

// Update is one write that is no apply.
type Update struct {
	Manager     string
	APIVersion  string
	Subresource string
	Now         metav1.Time
	// Compare returns what changes as objects of another version see it; nil when
	// no such version is served (any more).
	Compare func(apiVersion string) (*Comparison, error)
}

// Apply returns the entries after a write that changes what changed says: what
// it sets is the manager's, and nobody else's. entries is not written to.
func (u *Update) Apply(entries []metav1.ManagedFieldsEntry, changed *Comparison) ([]metav1.ManagedFieldsEntry, error) {
	if changed.IsSame() && u.keeps(entries) {
		return entries, nil
	}
	out := make([]metav1.ManagedFieldsEntry, 0, len(entries)+1)
	same, memory := true, changed.c
	var others map[string]*Comparison
	defer func() {
		for _, c := range others {
			if c != nil {
				c.Free()
			}
		}
	}()
	mine := -1
	for i := range entries {
		e := &entries[i]
		c := changed
		if e.APIVersion != u.APIVersion {
			var known bool
			if c, known = others[e.APIVersion]; !known {
				var err error
				if c, err = u.Compare(e.APIVersion); err != nil {
					return nil, err
				}
				if others == nil {
					others = map[string]*Comparison{}
				}
				others[e.APIVersion] = c
			}
		}
		own := u.is(e)
		left, less, err := release(memory, e, c, own)
		if err != nil {
			return nil, err
		}
		same = same && !less
		if left == nil {
			continue
		}
		if own {
			mine = len(out)
		}
		out = append(out, *left)
	}
	if changed.root.has(taken) {
		same = false
		if mine < 0 {
			mine = len(out)
			out = append(out, metav1.ManagedFieldsEntry{Manager: u.Manager, Operation: metav1.ManagedFieldsOperationUpdate,
				APIVersion: u.APIVersion, FieldsType: fieldsType, Subresource: u.Subresource})
		}
		if err := take(&out[mine], changed); err != nil {
			return nil, err
		}
		now := u.Now
		out[mine].Time = &now
	}
	if same && slices.IsSortedFunc(entries, compareEntries) {
		return entries, nil
	}
	out, err := limit(memory, out)
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(out, compareEntries)
	return out, nil
}

// keeps reports whether entries are such that a write which changes nothing keeps them.
func (u *Update) keeps(entries []metav1.ManagedFieldsEntry) bool {
	for i := range entries {
		e := &entries[i]
		if e.APIVersion != u.APIVersion || e.FieldsV1 == nil || len(e.FieldsV1.GetRawBytes()) <= len("{}") ||
			i > 0 && compareEntries(entries[i-1], *e) > 0 {
			return false
		}
	}
	return true
}

func (u *Update) is(e *metav1.ManagedFieldsEntry) bool {
	return e.Operation == metav1.ManagedFieldsOperationUpdate && e.Manager == u.Manager && e.APIVersion == u.APIVersion && e.Subresource == u.Subresource
}

// has reports whether a node below has the mark.
func (n *node) has(m marks) bool {
	if n.marks&m != 0 {
		return true
	}
	for i := range n.kids {
		if n.kids[i].has(m) {
			return true
		}
	}
	return false
}

// release returns e less what has changed (nil: nothing is left, or changed is
// nil), and whether that is less. An own entry keeps what the same write takes
// again, which would be added back.
func release(memory *comparer, e *metav1.ManagedFieldsEntry, changed *Comparison, own bool) (*metav1.ManagedFieldsEntry, bool, error) {
	if changed == nil {
		return nil, true, nil
	}
	text := textOf(e.FieldsV1)
	if text == "" || text == "{}" {
		return nil, true, nil
	}
	if !touches(text, &changed.root) || (own && !changed.root.has(removed)) {
		return e, false, nil
	}
	set, err := parse(memory, text)
	if err != nil {
		return nil, false, err
	}
	left, less := without(&set, &changed.root)
	if !less {
		return e, false, nil
	}
	if left.empty() {
		return nil, true, nil
	}
	out := *e
	out.FieldsV1 = encode(&left, member)
	return &out, true, nil
}

// touches reports whether a manager's fields can include something that changed,
// by the names at the top: who writes a status mostly owns nothing else, and that
// need not be read for a change of the spec.
func touches(text string, changed *node) bool {
	for i := range changed.kids {
		if strings.Contains(text, changed.kids[i].key) {
			return true
		}
	}
	return false
}

func encode(n *node, mask marks) *metav1.FieldsV1 {
	return metav1.NewFieldsV1(string(appendSet(make([]byte, 0, 512), n, mask, true)))
}

// take adds what the write sets to e.
func take(e *metav1.ManagedFieldsEntry, changed *Comparison) error {
	set := &changed.root
	if set.has(removed) {
		s := only(set, taken)
		set = &s
	} else if e.FieldsV1 == nil {
		e.FieldsV1 = encode(set, taken)
		return nil
	}
	if e.FieldsV1 == nil {
		e.FieldsV1 = encode(set, member)
		return nil
	}
	had, err := parse(changed.c, textOf(e.FieldsV1))
	if err != nil {
		return err
	}
	// Marks of had and set differ in kind; union keeps both, and the mask takes either.
	all, more := union(&had, set)
	if more || set.marks != 0 {
		e.FieldsV1 = encode(&all, member|taken)
	}
	return nil
}

// limit merges the oldest updaters of a version into one while there are more than maxUpdaters.
func limit(memory *comparer, entries []metav1.ManagedFieldsEntry) ([]metav1.ManagedFieldsEntry, error) {
	var order []int
	for i := range entries {
		if entries[i].Operation == metav1.ManagedFieldsOperationUpdate {
			order = append(order, i)
		}
	}
	updaters := len(order)
	if updaters <= maxUpdaters {
		return entries, nil
	}
	slices.SortStableFunc(order, func(a, b int) int { return compareEntries(entries[a], entries[b]) })
	oldest := map[string]int{} // by version: which entry the later ones go into
	for i := range entries {
		if e := &entries[i]; e.Operation == metav1.ManagedFieldsOperationUpdate && e.Manager == ancientManager && e.Subresource == "" {
			oldest[e.APIVersion] = i
		}
	}
	gone := map[int]bool{}
	for _, i := range order {
		if updaters <= maxUpdaters {
			break
		}
		to, ok := oldest[entries[i].APIVersion]
		if !ok {
			oldest[entries[i].APIVersion] = i
			continue
		}
		if to == i {
			continue
		}
		a, err := parse(memory, textOf(entries[to].FieldsV1))
		if err != nil {
			return nil, err
		}
		b, err := parse(memory, textOf(entries[i].FieldsV1))
		if err != nil {
			return nil, err
		}
		all, _ := union(&a, &b)
		entries[to].Manager, entries[to].Subresource = ancientManager, ""
		entries[to].FieldsV1, entries[to].Time = encode(&all, member), entries[i].Time
		gone[i] = true
		updaters--
	}
	kept := entries[:0]
	for i := range entries {
		if !gone[i] {
			kept = append(kept, entries[i])
		}
	}
	return kept, nil
}

func seconds(e *metav1.ManagedFieldsEntry) int64 {
	if e.Time == nil {
		return 0
	}
	return e.Time.Unix()
}

// compareEntries orders appliers first, then by time, manager, version and subresource.
func compareEntries(a, b metav1.ManagedFieldsEntry) int {
	return cmp.Or(
		cmp.Compare(a.Operation, b.Operation),
		cmp.Compare(seconds(&a), seconds(&b)),
		cmp.Compare(a.Manager, b.Manager),
		cmp.Compare(a.APIVersion, b.APIVersion),
		cmp.Compare(a.Subresource, b.Subresource),
	)
}
