package apiserver_test

import (
	"context"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/resources"
	"github.com/proa-dev/proa/internal/apiserver/admission"
	"github.com/proa-dev/proa/internal/apiserver/rest"
	"github.com/proa-dev/proa/internal/cluster/local"
	"github.com/proa-dev/proa/internal/store/memory"
)

// What admission adds to a write when nobody has configured anything: below a
// microsecond, 0 allocations.
func BenchmarkAdmissionOfWhatNothingConcerns(b *testing.B) {
	var registry *rest.Registry
	state := local.State{Registry: func() *rest.Registry { return registry }}
	chain := admission.New(admission.Config{Reader: state, Addresses: admission.NewAddresses(state, netip.MustParsePrefix("10.96.0.0/16"), 30000, 32767, time.Now),
		UpdateQuota: func(_ context.Context, q *corev1.ResourceQuota) (*corev1.ResourceQuota, error) { return q, nil }})
	store := memory.New()
	defer store.Close()
	all := resources.All()
	registry, err := rest.New(rest.Config{Store: store, Resources: all, Scheme: resources.Scheme(), Admission: chain})
	if err != nil {
		b.Fatal(err)
	}
	if err := registry.Start(b.Context()); err != nil {
		b.Fatal(err)
	}
	defer registry.Close()
	var res *api.Resource
	for _, r := range all {
		if r.GVR == corev1.SchemeGroupVersion.WithResource("configmaps") {
			res = r
		}
	}
	namespaces, _ := registry.Storage(corev1.SchemeGroupVersion.WithResource("namespaces"))
	if _, err := namespaces.Create(b.Context(), "", &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{}); err != nil {
		b.Fatal(err)
	}
	a := &rest.Attributes{Verb: rest.Create, Resource: res, Namespace: "default", Name: "m", Object: &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "m", Namespace: "default"}}}
	b.ReportAllocs()
	for b.Loop() {
		if err := chain.Admit(b.Context(), a); err != nil {
			b.Fatal(err)
		}
		if err := chain.Validate(b.Context(), a); err != nil {
			b.Fatal(err)
		}
	}
}
