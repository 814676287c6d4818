// Package control gives a test the control plane's API without a process or a
// network: the real registry, with its admission and validation, on the memory
// store, and the in-process client of it. It works inside testing/synctest.
package control

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/user"

	"github.com/proa-dev/proa/internal/api/resources"
	"github.com/proa-dev/proa/internal/apiserver/admission"
	"github.com/proa-dev/proa/internal/apiserver/customresource"
	"github.com/proa-dev/proa/internal/apiserver/discovery"
	"github.com/proa-dev/proa/internal/apiserver/rest"
	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/cluster/local"
	"github.com/proa-dev/proa/internal/store/memory"
)

// New returns a client of a fresh API that holds the namespace "default" with its
// service account. It ends with the test.
func New(t testing.TB) *local.Client {
	t.Helper()
	var registry *rest.Registry
	state := local.State{Registry: func() *rest.Registry { return registry }}
	list := resources.All()
	addresses := admission.NewAddresses(state, netip.MustParsePrefix("10.96.0.0/16"), 30000, 32767, time.Now)
	st := memory.New()
	var c *local.Client
	chain := admission.New(admission.Config{Reader: state, Addresses: addresses, UpdateQuota: func(ctx context.Context, q *corev1.ResourceQuota) (*corev1.ResourceQuota, error) {
		return client.ResourceQuotas.UpdateStatus(ctx, c, q)
	}})
	registry, err := rest.New(rest.Config{Store: st, Resources: list, Scheme: resources.Scheme(), Admission: chain, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	if err := registry.Start(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); registry.Close(); st.Close() })
	c = local.New(registry, list, nil, &user.DefaultInfo{Name: "kubernetes-admin", Groups: []string{user.SystemPrivilegedGroup, user.AllAuthenticated}})
	Namespace(t, c, metav1.NamespaceDefault)
	return c
}

// CustomResources returns what serves custom resources to a client that New made.
func CustomResources(t testing.TB, c *local.Client) Part {
	t.Helper()
	catalog, err := discovery.NewCatalog(nil)
	if err != nil {
		t.Fatal(err)
	}
	d, err := customresource.New(customresource.Config{Registry: c.Registry(), Catalog: catalog})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// Namespace makes a namespace with its service account.
func Namespace(t testing.TB, c client.Interface, name string) {
	t.Helper()
	if _, err := client.Namespaces.Create(t.Context(), c, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}); err != nil {
		t.Fatal(err)
	}
	if _, err := client.ServiceAccounts.Create(t.Context(), c, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: name, Name: "default"}}); err != nil {
		t.Fatal(err)
	}
}

// Part is a controller, or anything else that runs beside the API.
type Part interface {
	Run(context.Context) error
}

// Run runs parts until stop is called or the test ends.
func Run(t testing.TB, parts ...Part) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, p := range parts {
		wg.Go(func() {
			if err := p.Run(ctx); err != nil && !errors.Is(err, context.Canceled) {
				t.Errorf("%T: %v", p, err)
			}
		})
	}
	stop = func() { cancel(); wg.Wait() }
	t.Cleanup(stop)
	return stop
}
