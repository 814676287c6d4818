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

// sameScalars returns the equality of scalars, nil for other types.
func sameScalars(t reflect.Type) func(a, b reflect.Value) bool {
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
	return nil
}

// equality is that of a struct, list or map which is owned as a whole.
type equality struct {
	kind   reflect.Kind
	same   func(a, b reflect.Value) bool // set: decides
	fields []equalField
	elem   *equality
}

type equalField struct {
	field planField
	as    *equality
}

func (c *compiler) equality(t reflect.Type) (*equality, error) {
	if e, ok := c.whole[t]; ok {
		return e, nil
	}
	e := &equality{kind: t.Kind()}
	c.whole[t] = e // before what is inside, which may be of the same type
	if marshals(t) && t.Kind() != reflect.Pointer {
		e.same = sameMarshaled
		return e, nil
	}
	if e.same = sameScalars(t); e.same != nil {
		return e, nil
	}
	var err error
	switch e.kind {
	case reflect.Pointer, reflect.Slice, reflect.Map:
		e.elem, err = c.equality(t.Elem())
	case reflect.Struct:
		err = eachField(t, nil, func(f planField, ft reflect.Type) error {
			as, err := c.equality(ft)
			e.fields = append(e.fields, equalField{f, as})
			return err
		})
	default:
		e.same = sameMarshaled
	}
	return e, err
}

func (e *equality) equal(a, b reflect.Value) bool {
	if e.same != nil {
		return e.same(a, b)
	}
	if e.kind != reflect.Struct {
		if a.IsNil() || b.IsNil() {
			return a.IsNil() == b.IsNil()
		}
	}
	switch e.kind {
	case reflect.Pointer:
		return a.UnsafePointer() == b.UnsafePointer() || e.elem.equal(a.Elem(), b.Elem())
	case reflect.Slice:
		if a.Len() != b.Len() {
			return false
		}
		for i := range a.Len() {
			if !e.elem.equal(a.Index(i), b.Index(i)) {
				return false
			}
		}
	case reflect.Map:
		if a.Len() != b.Len() {
			return false
		}
		for it := a.MapRange(); it.Next(); {
			if other := b.MapIndex(it.Key()); !other.IsValid() || !e.elem.equal(it.Value(), other) {
				return false
			}
		}
	case reflect.Struct:
		for i := range e.fields {
			f := &e.fields[i]
			x, y := f.field.of(a), f.field.of(b)
			if f.field.omit != nil {
				if left, right := f.field.omit(x), f.field.omit(y); left || right {
					if left != right {
						return false
					}
					continue
				}
			}
			if !f.as.equal(x, y) {
				return false
			}
		}
	}
	return true
}

func sameJSON(a, b any) bool {
	ja, err := json.Marshal(a)
	if err != nil {
		return false
	}
	jb, err := json.Marshal(b)
	return err == nil && bytes.Equal(ja, jb)
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
