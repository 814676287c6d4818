package cmp

import "testing"

func TestDiff(t *testing.T) {
	a, b := map[string]string{"k": "1"}, map[string]string{"k": "2"}
	if d := Diff(a, map[string]string{"k": "1"}); d != "" || !Equal(a, a) {
		t.Errorf("equal maps differ: %q", d)
	}
	if d := Diff(a, b); d != "- map[string]string{\"k\":\"1\"}\n+ map[string]string{\"k\":\"2\"}\n" || Equal(a, b) {
		t.Errorf("got %q", d)
	}
}
