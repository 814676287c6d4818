package managed

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"

	"github.com/proa-dev/proa/internal/api"
)

// applier returns the field manager of a kind that has one version.
func applier(t testing.TB, kinds *Kinds, gvk schema.GroupVersionKind, newObject func() api.Object, sub string, reset Reset) *managedfields.FieldManager {
	t.Helper()
	of := func(want schema.GroupVersionKind) runtime.Object {
		if want != gvk {
			return nil
		}
		return newObject()
	}
	a := &Applier{GVK: gvk, Subresource: sub, Reset: reset, Versions: []string{gvk.GroupVersion().String()}, Types: kinds.Types(of), New: of,
		Convert: func(runtime.Object, schema.GroupVersion) (runtime.Object, error) {
			return nil, fmt.Errorf("one version")
		},
		Default: func(runtime.Object) {}}
	m, err := a.FieldManager()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// track is what package rest does with a write that is no apply.
func track(t testing.TB, k *Kind, old, obj api.Object, version, manager, sub string, reset Reset, now metav1.Time) []metav1.ManagedFieldsEntry {
	t.Helper()
	start := Start(obj.GetManagedFields(), old.GetManagedFields(), sub == "")
	if len(start) == 0 && old.GetUID() != "" {
		return nil
	}
	c, err := k.Compare(old, obj, reset)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Free()
	u := &Update{Manager: manager, APIVersion: version, Subresource: sub, Now: now, Compare: func(string) (*Comparison, error) { return nil, nil }}
	out, err := u.Apply(start, c)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

var (
	podKind        = corev1.SchemeGroupVersion.WithKind("Pod")
	deploymentKind = appsv1.SchemeGroupVersion.WithKind("Deployment")
	serviceKind    = corev1.SchemeGroupVersion.WithKind("Service")
)

var trackedKinds = map[schema.GroupVersionKind]func() api.Object{
	podKind:        func() api.Object { return &corev1.Pod{} },
	deploymentKind: func() api.Object { return &appsv1.Deployment{} },
	serviceKind:    func() api.Object { return &corev1.Service{} },
}

func TestTrackingIsThatOfTheFieldManager(t *testing.T) {
	kinds := NewKinds()
	for gvk, newObject := range trackedKinds {
		t.Run(gvk.Kind, func(t *testing.T) {
			for seed := range uint64(12) {
				synctest.Test(t, func(t *testing.T) { history(t, kinds, gvk, newObject, seed) })
			}
		})
	}
}

// history writes one object again and again and compares the owners after each write.
func history(t *testing.T, kinds *Kinds, gvk schema.GroupVersionKind, newObject func() api.Object, seed uint64) {
	k, err := kinds.Of(newObject())
	if err != nil {
		t.Fatal(err)
	}
	resets := map[string]Reset{"": {{"status"}}, "status": {{"spec"}, {"metadata", "ownerReferences"}}}
	fields := map[string]*managedfields.FieldManager{}
	for sub, reset := range resets {
		fields[sub] = applier(t, kinds, gvk, newObject, sub, reset)
	}
	r, f := rand.New(rand.NewPCG(seed, 7)), filler(int64(seed))
	stored := newObject()
	stored.GetObjectKind().SetGroupVersionKind(gvk)
	for step := range 24 {
		time.Sleep(time.Duration(r.IntN(3)+1) * time.Second)
		obj := stored.DeepCopyObject().(api.Object)
		switch {
		case step == 0:
			f.Fill(obj)
			obj.SetManagedFields(nil)
		case r.IntN(6) > 0:
			entries := obj.GetManagedFields()
			obj.SetManagedFields(nil)
			mutate(reflect.ValueOf(obj).Elem(), f, r, 0)
			obj.SetManagedFields(entries)
			if r.IntN(5) == 0 {
				obj.SetManagedFields(nil)
			}
		}
		obj = throughJSON(t, obj).(api.Object)
		obj.SetUID(stored.GetUID())
		obj.GetObjectKind().SetGroupVersionKind(gvk)
		sub := []string{"", "status"}[r.IntN(2)]
		if step == 0 {
			sub = ""
		}
		manager := fmt.Sprintf("m%d", r.IntN(14))
		now := metav1.NewTime(time.Now().Truncate(time.Second))
		mine := track(t, k, stored, obj, gvk.GroupVersion().String(), manager, sub, resets[sub], now)
		want, err := fields[sub].Update(stored.DeepCopyObject(), obj.DeepCopyObject(), manager)
		if err != nil {
			t.Logf("seed %d, step %d: the field manager refuses it: %v", seed, step, err)
			continue
		}
		entries := want.(api.Object).GetManagedFields()
		if !Same(throughSeconds(entries), throughSeconds(mine)) {
			t.Fatalf("seed %d, step %d (%s %q):\nwant %s\nhave %s", seed, step, manager, sub, text(entries), text(mine))
		}
		obj.SetManagedFields(mine)
		obj.SetUID("u")
		stored = obj
	}
}

// throughSeconds returns entries with times as they are stored.
func throughSeconds(entries []metav1.ManagedFieldsEntry) []metav1.ManagedFieldsEntry {
	out := append([]metav1.ManagedFieldsEntry(nil), entries...)
	for i := range out {
		if out[i].Time != nil {
			out[i].Time = &metav1.Time{Time: out[i].Time.Truncate(time.Second)}
		}
	}
	return out
}

func text(entries []metav1.ManagedFieldsEntry) string {
	s := ""
	for _, e := range entries {
		s += fmt.Sprintf("\n%s %s %s %q %v %s", e.Manager, e.Operation, e.APIVersion, e.Subresource, e.Time, e.FieldsV1.GetRawString())
	}
	return s
}
