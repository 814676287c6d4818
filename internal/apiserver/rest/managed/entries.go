package managed

import (
	"fmt"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Start returns the entries that a write starts from: those that the client
// sent, when it may write them and they can be understood, else those of the
// stored object. A client that sends an empty list, or a list of one empty
// entry, asks to forget all owners.
func Start(sent, stored []metav1.ManagedFieldsEntry, mayWrite bool) []metav1.ManagedFieldsEntry {
	if !mayWrite || sent == nil {
		return stored
	}
	if isReset(sent) {
		return nil
	}
	if Same(sent, stored) {
		return stored
	}
	if clean, err := Clean(sent); err == nil && len(clean) > 0 {
		return clean
	}
	return stored
}

func isReset(entries []metav1.ManagedFieldsEntry) bool {
	if len(entries) != 1 {
		return len(entries) == 0
	}
	e := &entries[0]
	return e.Manager == "" && e.Operation == "" && e.APIVersion == "" && e.Time == nil && e.FieldsType == "" && e.FieldsV1 == nil && e.Subresource == ""
}

// Clean returns entries of any origin as they are kept: their sets in the one
// form, and each manager once. It refuses what cannot be understood.
func Clean(entries []metav1.ManagedFieldsEntry) ([]metav1.ManagedFieldsEntry, error) {
	out := make([]metav1.ManagedFieldsEntry, 0, len(entries))
	for i := range entries {
		e := entries[i]
		switch e.Operation {
		case metav1.ManagedFieldsOperationApply, metav1.ManagedFieldsOperationUpdate:
		default:
			return nil, fmt.Errorf("operation must be `Apply` or `Update`")
		}
		switch {
		case e.APIVersion == "":
			return nil, fmt.Errorf("apiVersion must not be empty")
		case e.FieldsType == "":
			return nil, fmt.Errorf("missing fieldsType in managed fields entry %d", i)
		case e.FieldsType != fieldsType:
			return nil, fmt.Errorf("invalid fieldsType %q in managed fields entry %d", e.FieldsType, i)
		}
		text, err := canonical(e.FieldsV1.GetRawString())
		if err != nil {
			return nil, fmt.Errorf("managed fields of %q: %w", e.Manager, err)
		}
		if _, err := parse(&comparer{}, text); err != nil {
			return nil, fmt.Errorf("managed fields of %q: %w", e.Manager, err)
		}
		e.FieldsV1 = metav1.NewFieldsV1(text)
		kept := false
		for j := range out {
			if sameManager(&out[j], &e) {
				out[j], kept = e, true // the last one counts
			}
		}
		if !kept {
			out = append(out, e)
		}
	}
	return out, nil
}

// sameManager reports whether two entries are of one manager: an applier is the
// same in all versions.
func sameManager(a, b *metav1.ManagedFieldsEntry) bool {
	return a.Manager == b.Manager && a.Operation == b.Operation && a.Subresource == b.Subresource &&
		(a.Operation == metav1.ManagedFieldsOperationApply || a.APIVersion == b.APIVersion)
}

// Same reports whether two lists are equal.
func Same(a, b []metav1.ManagedFieldsEntry) bool {
	return SameButTimes(a, b) && sameTimes(a, b)
}

func sameTimes(a, b []metav1.ManagedFieldsEntry) bool {
	for i := range a {
		if !a[i].Time.Equal(b[i].Time) {
			return false
		}
	}
	return true
}

// SameButTimes reports whether two lists are equal but for the entries' times.
func SameButTimes(a, b []metav1.ManagedFieldsEntry) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		x, y := &a[i], &b[i]
		if x.Manager != y.Manager || x.Operation != y.Operation || x.APIVersion != y.APIVersion ||
			x.FieldsType != y.FieldsType || x.Subresource != y.Subresource {
			return false
		}
		if x.FieldsV1 != y.FieldsV1 && (x.FieldsV1 == nil || y.FieldsV1 == nil || !x.FieldsV1.Equal(*y.FieldsV1)) {
			return false
		}
	}
	return true
}

// AllTimed reports whether every entry has a time.
func AllTimed(entries []metav1.ManagedFieldsEntry) bool {
	for i := range entries {
		if entries[i].Time == nil {
			return false
		}
	}
	return true
}

// SetTimes gives the entries that are new since before, or have another time than
// before, the time now: the server's clock in the form in which it is stored.
func SetTimes(entries, before []metav1.ManagedFieldsEntry, now metav1.Time) {
	for i := range entries {
		e := &entries[i]
		was := false
		for j := range before {
			if sameManager(e, &before[j]) && e.Time.Equal(before[j].Time) {
				was = true
			}
		}
		if !was {
			t := now
			e.Time = &t
		}
	}
	slices.SortStableFunc(entries, compareEntries)
}
