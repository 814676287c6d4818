package managed

import (
	"bytes"
	"encoding/json"
	"reflect"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Equality is that of the JSON that values have: what is left out there, and
// what has two forms in Go and one in JSON, makes no difference.

// sameValues returns the equality of values that are owned as a whole.
func sameValues(t reflect.Type) func(a, b reflect.Value) bool {
	switch k := t.Kind(); {
	case k == reflect.String:
		return func(a, b reflect.Value) bool { return a.String() == b.String() }
	case k == reflect.Bool:
		return func(a, b reflect.Value) bool { return a.Bool() == b.Bool() }
	case reflect.Int <= k && k <= reflect.Int64:
		return func(a, b reflect.Value) bool { return a.Int() == b.Int() }
	case reflect.Uint <= k && k <= reflect.Uint64:
		return func(a, b reflect.Value) bool { return a.Uint() == b.Uint() }
	case k == reflect.Float32 || k == reflect.Float64:
		return func(a, b reflect.Value) bool { return a.Float() == b.Float() }
	case k == reflect.Slice && t.Elem().Kind() == reflect.Uint8:
		return func(a, b reflect.Value) bool { return a.IsNil() == b.IsNil() && bytes.Equal(a.Bytes(), b.Bytes()) }
	}
	return sameDeep
}

// sameDeep compares structs, lists and maps that are owned as a whole. Most are
// equal in Go; the others are compared as JSON.
func sameDeep(a, b reflect.Value) bool {
	if k := a.Kind(); k == reflect.Slice || k == reflect.Map {
		if a.Len() != b.Len() || a.IsNil() != b.IsNil() {
			return false
		}
		if a.Len() == 0 {
			return true
		}
	}
	a, b = addressable(a), addressable(b)
	if deepEqual(a, b) {
		return true
	}
	return sameJSON(a.Addr().Interface(), b.Addr().Interface())
}

func sameJSON(a, b any) bool {
	ja, err := json.Marshal(a)
	if err != nil {
		return false
	}
	jb, err := json.Marshal(b)
	return err == nil && bytes.Equal(ja, jb)
}

// deepEqual is reflect.DeepEqual for trees of the API's types, without garbage.
// It may say no of what is equal in JSON.
func deepEqual(a, b reflect.Value) bool {
	switch a.Kind() {
	case reflect.Pointer:
		if a.UnsafePointer() == b.UnsafePointer() || a.IsNil() || b.IsNil() {
			return a.UnsafePointer() == b.UnsafePointer()
		}
		return deepEqual(a.Elem(), b.Elem())
	case reflect.Struct:
		for i := range a.NumField() {
			if !deepEqual(a.Field(i), b.Field(i)) {
				return false
			}
		}
		return true
	case reflect.Slice:
		if a.Len() != b.Len() || a.IsNil() != b.IsNil() {
			return false
		}
		for i := range a.Len() {
			if !deepEqual(a.Index(i), b.Index(i)) {
				return false
			}
		}
		return true
	case reflect.Map:
		if a.Len() != b.Len() || a.IsNil() != b.IsNil() {
			return false
		}
		for it := a.MapRange(); it.Next(); {
			other := b.MapIndex(it.Key())
			if !other.IsValid() || !deepEqual(it.Value(), other) {
				return false
			}
		}
		return true
	case reflect.String:
		return a.String() == b.String()
	case reflect.Bool:
		return a.Bool() == b.Bool()
	case reflect.Float32, reflect.Float64:
		return a.Float() == b.Float()
	case reflect.Interface:
		return a.IsNil() && b.IsNil()
	}
	switch {
	case a.CanInt():
		return a.Int() == b.Int()
	case a.CanUint():
		return a.Uint() == b.Uint()
	}
	return false
}

// sameMarshaled is the equality of types that write their own JSON.
func sameMarshaled(a, b reflect.Value) bool {
	a, b = addressable(a), addressable(b)
	switch x := a.Addr().Interface().(type) {
	case *metav1.Time:
		y := b.Addr().Interface().(*metav1.Time)
		return x.IsZero() == y.IsZero() && x.Unix() == y.Unix()
	case *metav1.MicroTime:
		y := b.Addr().Interface().(*metav1.MicroTime)
		return x.IsZero() == y.IsZero() && x.UnixMicro() == y.UnixMicro()
	case *intstr.IntOrString:
		y := b.Addr().Interface().(*intstr.IntOrString)
		if x.Type != y.Type {
			return false
		}
		return x.Type == intstr.Int && x.IntVal == y.IntVal || x.Type == intstr.String && x.StrVal == y.StrVal
	case *resource.Quantity:
		return sameQuantity(x, b.Addr().Interface().(*resource.Quantity))
	}
	return sameJSON(a.Addr().Interface(), b.Addr().Interface())
}

// sameQuantity is equality of the text, which has one form for a value and a
// format: 1 and 1000m are the same, 1Ki and 1024 are not.
func sameQuantity(a, b *resource.Quantity) bool {
	if *a == *b {
		return true
	}
	return a.Format == b.Format && a.Cmp(*b) == 0 || a.String() == b.String()
}
