package managed

import (
	"encoding/json"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/randfill"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
	"sigs.k8s.io/structured-merge-diff/v6/typed"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/resources"
)

// filler fills objects with few different values, so that two of them share some.
func filler(seed int64) *randfill.Filler {
	return randfill.NewWithSeed(seed).NilChance(0.4).NumElements(0, 3).MaxDepth(12).Funcs(
		func(s *string, c randfill.Continue) {
			*s = []string{"", "a", "b", "web-1", "web", "9", "10", `q"<\`, "é", "a/b.c"}[c.Intn(10)]
		},
		func(t *metav1.Time, c randfill.Continue) {
			if *t = (metav1.Time{}); c.Bool() {
				*t = metav1.Unix(int64(c.Intn(3)), 0)
			}
		},
		func(t *metav1.MicroTime, c randfill.Continue) {
			*t = metav1.NewMicroTime(metav1.Unix(int64(c.Intn(3)), 5000).Time)
		},
		func(q *resource.Quantity, c randfill.Continue) {
			*q = resource.MustParse([]string{"1", "1000m", "2Ki", "2048", "0.5", "1e3"}[c.Intn(6)])
		},
		func(v *intstr.IntOrString, c randfill.Continue) {
			*v = []intstr.IntOrString{intstr.FromInt32(80), intstr.FromInt32(9), intstr.FromString("http")}[c.Intn(3)]
		},
		func(r *runtime.RawExtension, c randfill.Continue) {
			r.Object, r.Raw = nil, []byte([]string{`{"a":1}`, `{"b":{"c":2}}`}[c.Intn(2)])
		},
		func(f *metav1.FieldsV1, _ randfill.Continue) { f.SetRawBytes([]byte("{}")) },
		func(j *apiextensionsv1.JSON, c randfill.Continue) { j.Raw = []byte(`1`) },
		func(j *apiextensionsv1.JSONSchemaProps, c randfill.Continue) { j.Type = "object" },
		func(i *int32, c randfill.Continue) { *i = int32(c.Intn(12)) },
		func(i *int64, c randfill.Continue) { *i = int64(c.Intn(12)) },
	)
}

// sets returns what a Comparison holds in structured-merge-diff's form.
func (c *Comparison) sets(t testing.TB) (took, gone *fieldpath.Set) {
	t.Helper()
	read := func(m marks) *fieldpath.Set {
		n := only(&c.root, m)
		s := fieldpath.NewSet()
		if err := s.FromJSON(strings.NewReader(string(appendSet(nil, &n, member, true)))); err != nil {
			t.Fatal(err)
		}
		if back, err := s.ToJSON(); err != nil || !n.empty() && string(back) != string(appendSet(nil, &n, member, true)) {
			mine := string(appendSet(nil, &n, member, true))
			i := 0
			for i < min(len(mine), len(back)) && mine[i] == back[i] {
				i++
			}
			t.Fatalf("%v: written as …%.100s, Kubernetes writes …%.100s", err, mine[max(0, i-20):], back[max(0, i-20):])
		}
		return s
	}
	return read(taken), read(removed)
}

// theirs is what structured-merge-diff finds, less what no manager can own.
func theirs(t testing.TB, k *Kind, old, now runtime.Object, reset Reset) (took, gone *fieldpath.Set, ok bool) {
	t.Helper()
	p, err := k.parseable()
	if err != nil {
		t.Fatal(err)
	}
	l, err := p.FromStructured(old, typed.AllowDuplicates)
	if err != nil {
		return nil, nil, false
	}
	r, err := p.FromStructured(now, typed.AllowDuplicates)
	if err != nil {
		return nil, nil, false
	}
	c, err := l.Compare(r)
	if err != nil {
		return nil, nil, false
	}
	strip := fieldpath.NewSet(fieldpath.MakePathOrDie("apiVersion"), fieldpath.MakePathOrDie("kind"))
	for _, name := range []string{"name", "namespace", "creationTimestamp", "selfLink", "uid", "generation", "managedFields", "resourceVersion"} {
		strip.Insert(fieldpath.MakePathOrDie("metadata", name))
	}
	for _, path := range reset {
		p := fieldpath.Path{}
		for _, name := range path {
			p = append(p, fieldpath.FieldNameElement(name))
		}
		strip.Insert(p)
	}
	c = c.ExcludeFields(strip)
	return c.Modified.Union(c.Added), c.Removed, true
}

func storedKinds() (out []*api.Resource) {
	for _, res := range resources.All() {
		if len(res.Verbs) == 0 {
			out = append(out, res)
		}
	}
	return out
}

func TestEveryStoredKindHasASchema(t *testing.T) {
	kinds := NewKinds()
	for _, res := range storedKinds() {
		k, err := kinds.Of(res.New())
		if err != nil || k == nil {
			t.Errorf("%s: %v, %v", res.GVK, k, err)
			continue
		}
		if _, err := k.parseable(); err != nil {
			t.Errorf("%s: %v", res.GVK, err)
		}
	}
}

func TestCompareFindsWhatStructuredMergeDiffFinds(t *testing.T) {
	kinds := NewKinds()
	rounds := int64(24)
	if testing.Short() {
		rounds = 6
	}
	for _, res := range storedKinds() {
		t.Run(res.GVR.Resource+"."+res.GVR.Group+"."+res.GVR.Version, func(t *testing.T) {
			k, err := kinds.Of(res.New())
			if err != nil || k == nil {
				t.Skip("no schema")
			}
			compared := 0
			for seed := range rounds {
				f := filler(seed)
				a, b := res.New(), res.New()
				f.Fill(a)
				f.Fill(b)
				if seed%3 == 0 {
					b = a.DeepCopyObject()
					mutate(reflect.ValueOf(b).Elem(), f, rand.New(rand.NewPCG(uint64(seed), 1)), 0)
				}
				// structured-merge-diff compares lists as Go does, where an empty map is not nil.
				a, b = throughJSON(t, a), throughJSON(t, b)
				reset := []Reset{nil, {{"status"}}, {{"spec"}, {"metadata", "labels"}}}[seed%3]
				for _, pair := range [][2]runtime.Object{{res.New(), a}, {a, b}, {b, a}, {a, a.DeepCopyObject()}} {
					took, gone, ok := theirs(t, k, pair[0], pair[1], reset)
					c, err := k.Compare(pair[0], pair[1], reset)
					if err != nil {
						if ok {
							t.Fatalf("seed %d: %v", seed, err)
						}
						continue
					}
					if !ok {
						c.Free()
						continue
					}
					compared++
					myTook, myGone := c.sets(t)
					if !took.Equals(myTook) {
						t.Fatalf("seed %d: taken: only theirs %v, only mine %v", seed, took.Difference(myTook), myTook.Difference(took))
					}
					if !gone.Equals(myGone) {
						t.Fatalf("seed %d: removed: only theirs %v, only mine %v", seed, gone.Difference(myGone), myGone.Difference(gone))
					}
					c.Free()
				}
			}
			if compared == 0 {
				t.Error("nothing could be compared")
			}
		})
	}
}

func throughJSON(t testing.TB, obj runtime.Object) runtime.Object {
	t.Helper()
	b, err := json.Marshal(obj)
	if err != nil {
		t.Fatal(err)
	}
	out := reflect.New(reflect.TypeOf(obj).Elem()).Interface().(runtime.Object)
	if err := json.Unmarshal(b, out); err != nil {
		t.Fatal(err)
	}
	return out
}

// mutate changes some of the fields below v.
func mutate(v reflect.Value, f *randfill.Filler, r *rand.Rand, depth int) {
	if v.Kind() == reflect.Pointer && !v.IsNil() {
		v = v.Elem()
	}
	if v.CanAddr() && marshals(v.Type()) {
		f.Fill(v.Addr().Interface())
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			if !v.Type().Field(i).IsExported() || v.Type().Field(i).Type.Kind() == reflect.Interface {
				continue
			}
			switch r.IntN(8) {
			case 0:
				f.Fill(v.Field(i).Addr().Interface())
			case 1:
				v.Field(i).SetZero()
			default:
				mutate(v.Field(i), f, r, depth+1)
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			if r.IntN(3) == 0 {
				mutate(v.Index(i), f, r, depth+1)
			}
		}
		if v.Len() > 1 && r.IntN(3) == 0 {
			reflect.Swapper(v.Interface())(0, v.Len()-1)
		}
	}
}
