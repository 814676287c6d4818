package managed

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
)

func read(t testing.TB, text string) (*fieldpath.Set, bool) {
	t.Helper()
	s := fieldpath.NewSet()
	if text == "" {
		return s, true
	}
	return s, s.FromJSON(strings.NewReader(text)) == nil
}

// Whatever Kubernetes reads and writes again is read here, and written as the same.
func FuzzFieldsV1(f *testing.F) {
	for _, s := range []string{
		`{}`, ``, `{"f:a":{}}`, `{"f:a":{".":{},"f:b":{}}}`, `{"f:a":{"k:{\"name\":\"x\"}":{".":{},"f:b":{}}},"v:1":{}}`,
		`{"k:{\"p\":10}":{},"k:{\"p\":9}":{}}`, `{"f:é\n":{}}`, `{"f:a":{}`, `{"x:a":{}}`, `{"f:a":1}`, `[]`, `null`, `{"f:a":{},"f:a":{"f:b":{}}}`,
		`{"v:\"a\\\"b\"":{},"v:\"a\"":{},"v:null":{},"v:true":{},"v:1.5":{},"i:3":{}}`, `{ "f:b" : { } , "f:a":{}}`,
	} {
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		if strings.Count(a, "{") > maxDepth || strings.Count(b, "{") > maxDepth {
			t.Skip("deeper than any object")
		}
		entry := func(text string) metav1.ManagedFieldsEntry {
			return metav1.ManagedFieldsEntry{Manager: "m", Operation: "Update", APIVersion: "v1", FieldsType: "FieldsV1", FieldsV1: metav1.NewFieldsV1(text)}
		}
		_, _ = parse(&comparer{}, a) // never panics
		theirs, ok := read(t, a)
		clean, err := Clean([]metav1.ManagedFieldsEntry{entry(a)})
		if err != nil {
			if ok {
				if text, cerr := canonical(a); cerr == nil && stable(text) {
					t.Fatalf("%q is refused: %v", a, err)
				}
			}
			return
		}
		if !ok {
			t.Fatalf("%q is taken, which Kubernetes refuses", a)
		}
		set, err := parse(&comparer{}, clean[0].FieldsV1.GetRawString())
		if err != nil {
			t.Fatal(err)
		}
		again, ok := read(t, string(appendSet(nil, &set, member, true)))
		if !ok || !again.Equals(theirs) && stable(clean[0].FieldsV1.GetRawString()) {
			t.Fatalf("%q became %s", a, appendSet(nil, &set, member, true))
		}
		other, err := Clean([]metav1.ManagedFieldsEntry{entry(b)})
		if err != nil {
			return
		}
		set2, err := parse(&comparer{}, other[0].FieldsV1.GetRawString())
		if err != nil {
			t.Fatal(err)
		}
		all, _ := union(&set, &set2)
		back, ok := read(t, string(appendSet(nil, &all, member, true)))
		theirs2, _ := read(t, b)
		if stable(clean[0].FieldsV1.GetRawString()) && stable(other[0].FieldsV1.GetRawString()) {
			if !ok || !back.Equals(theirs.Union(theirs2)) {
				t.Fatalf("union of %s and %s: %v", a, b, back)
			}
			left, _ := without(&set, &set2)
			if back, ok = read(t, string(appendSet(nil, &left, member, true))); !ok || !back.Equals(theirs.Difference(theirs2)) {
				t.Fatalf("%s less %s: %v", a, b, back)
			}
		}
	})
}

// stable reports whether Kubernetes itself reads what it has written as the same
// (not so for numbers beyond int64, and for lists and maps as values).
func stable(text string) bool {
	if text == "{}" {
		return true
	}
	s := fieldpath.NewSet()
	if s.FromJSON(strings.NewReader(text)) != nil {
		return false
	}
	again, err := s.ToJSON()
	if err != nil || string(again) != text {
		return false
	}
	return !strings.Contains(text, ".") || !strings.ContainsAny(text, "0123456789") || !strings.Contains(text, `"v:`) && !strings.Contains(text, `"k:`)
}
