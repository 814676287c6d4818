// Package cmp stands in for the package of the same path, written for proa from
// its documented signatures. etcd's storage calls Diff in a self-check that is
// off outside its own tests; the full package looks up methods by name, which
// makes the linker keep every method of every type of the program. This one
// knows no options and no Equal methods: it compares as reflect.DeepEqual does.
package cmp

import (
	"fmt"
	"reflect"
)

// Option exists so that calls with options compile only where none is passed:
// there is no way to make one.
type Option interface{ option() }

// Equal reports whether x and y are deeply equal.
func Equal(x, y any, _ ...Option) bool { return reflect.DeepEqual(x, y) }

// Diff is empty for equal values, else both of them.
func Diff(x, y any, _ ...Option) string {
	if reflect.DeepEqual(x, y) {
		return ""
	}
	return fmt.Sprintf("- %#v\n+ %#v\n", x, y)
}
