// Package aggregator hands groups and versions of the API to the servers that
// APIService objects name (extension API servers, the aggregation layer of
// Kubernetes). Aggregator follows these objects, asks each server whether it is
// there, says so in the object's status, shows what it serves in discovery and
// OpenAPI, and passes requests on with the user's name in headers that the
// server trusts by the front proxy's certificate.
//
// It also keeps an APIService for each group and version that this server
// answers itself, as clients expect to find. Who asks and whether they may is
// decided before a request comes here.
package aggregator

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/runtime/schema"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver/cache"
	"github.com/proa-dev/proa/internal/apiserver/discovery"
	"github.com/proa-dev/proa/internal/apiserver/rest"
)

// Reader looks objects up in the newest known state. They are shared: read only.
type Reader interface {
	Get(gvr schema.GroupVersionResource, namespace, name string) (api.Object, bool)
	List(gvr schema.GroupVersionResource, namespace string) []api.Object
}

// Resolver says at which address a Service's port can be reached.
type Resolver interface {
	Resolve(namespace, name string, port int32) (address string, err error)
}

// Config is what an Aggregator is made of. All but Certificate, Metrics and
// Logger are needed.
type Config struct {
	Registry *rest.Registry
	Catalog  *discovery.Catalog
	Reader   Reader
	Resolver Resolver
	// Certificate is the front proxy's: extension API servers believe who shows it.
	Certificate *tls.Certificate
	Metrics     prometheus.Registerer
	Logger      *slog.Logger
}

// Aggregator passes groups of the API on to other servers.
type Aggregator struct {
	cfg     Config
	log     *slog.Logger
	cache   *cache.Cache
	store   rest.Storage
	metrics *metrics

	// served is never written to: a change makes a new map.
	served atomic.Pointer[map[schema.GroupVersion]*service]
	wg     sync.WaitGroup
}

var (
	apiServicesGVR = apiregistrationv1.SchemeGroupVersion.WithResource("apiservices")
	servicesGVR    = corev1.SchemeGroupVersion.WithResource("services")
	slicesGVR      = discoveryv1.SchemeGroupVersion.WithResource("endpointslices")
)

// New returns an Aggregator over a started registry.
func New(cfg Config) (*Aggregator, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	a := &Aggregator{cfg: cfg, log: cfg.Logger, metrics: newMetrics(cfg.Metrics)}
	a.served.Store(&map[schema.GroupVersion]*service{})
	var ok bool
	if a.cache, _, ok = cfg.Registry.Cache(apiServicesGVR); ok {
		a.store, ok = cfg.Registry.Storage(apiServicesGVR)
	}
	if !ok {
		return nil, fmt.Errorf("aggregate APIs: %s are not served", apiServicesGVR.Resource)
	}
	return a, nil
}

// Delegate returns who answers for a group and version, nil when no APIService
// names another server for it.
func (a *Aggregator) Delegate(group, version string) http.Handler {
	served := *a.served.Load()
	if len(served) == 0 {
		return nil
	}
	if s := served[schema.GroupVersion{Group: group, Version: version}]; s != nil {
		return s
	}
	return nil
}

// Run follows APIServices until ctx ends.
func (a *Aggregator) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer a.wg.Wait()
	defer func() {
		for _, s := range *a.served.Load() {
			s.end()
		}
	}()
	defer cancel()
	a.wg.Go(func() { a.keepLocal(ctx) })
	for {
		err := a.follow(ctx)
		if ctx.Err() != nil {
			return nil
		}
		a.log.Warn("the watch of APIServices begins again", "err", err)
	}
}

// follow serves APIServices as they change, until the watch or ctx ends.
func (a *Aggregator) follow(ctx context.Context) error {
	w, snapshot, _, err := a.cache.Watch(cache.WatchOptions{})
	if err != nil {
		return err
	}
	defer w.Stop()
	now := map[string]*apiregistrationv1.APIService{}
	snapshot.Scan(cache.Scope{}, "", func(e *cache.Entry) bool {
		o := e.Object().(*apiregistrationv1.APIService)
		now[o.Name] = o
		return true
	})
	a.serve(ctx, now)
	stop := func() {}
	defer func() { stop() }()
	watching := false
	var buf []*cache.Event
	for {
		// Services matter only while one of them serves a group.
		if some := len(*a.served.Load()) > 0; some != watching {
			stop()
			stop, watching = func() {}, some
			if some {
				stop = a.watchServices(ctx)
			}
		}
		if buf, err = w.Poll(buf[:0]); err != nil {
			return err
		}
		if len(buf) == 0 {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-w.Wake():
			}
			continue
		}
		for _, e := range buf {
			o := e.Entry.Object().(*apiregistrationv1.APIService)
			if now[o.Name] = o; e.Type == cache.Deleted {
				delete(now, o.Name)
			}
		}
		a.serve(ctx, now)
	}
}

// watchServices has APIServices checked when their Services change, until ctx ends
// or the returned function is called.
func (a *Aggregator) watchServices(ctx context.Context) context.CancelFunc {
	ctx, stop := context.WithCancel(ctx)
	a.wg.Go(func() { a.followServices(ctx, servicesGVR, func(o api.Object) string { return o.GetName() }) })
	a.wg.Go(func() {
		a.followServices(ctx, slicesGVR, func(o api.Object) string { return o.GetLabels()[discoveryv1.LabelServiceName] })
	})
	return stop
}

// followServices has those APIServices checked whose Service or its endpoints change.
func (a *Aggregator) followServices(ctx context.Context, gvr schema.GroupVersionResource, name func(api.Object) string) {
	c, _, ok := a.cfg.Registry.Cache(gvr)
	if !ok {
		return
	}
	for ctx.Err() == nil {
		w, _, _, err := c.Watch(cache.WatchOptions{})
		if err != nil {
			a.log.Warn("the watch of what serves APIs ended", "resource", gvr.Resource, "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
			continue
		}
		var buf []*cache.Event
		for err == nil {
			if buf, err = w.Poll(buf[:0]); err != nil {
				break
			}
			for _, e := range buf {
				o := e.Entry.Object()
				for _, s := range *a.served.Load() {
					if ref := s.spec.Service; ref.Namespace == o.GetNamespace() && ref.Name == name(o) {
						s.check()
					}
				}
			}
			if len(buf) > 0 {
				continue
			}
			select {
			case <-ctx.Done():
				err = ctx.Err()
			case <-w.Wake():
			}
		}
		w.Stop()
		for _, s := range *a.served.Load() {
			s.check() // changes may have been missed
		}
	}
}

// serve makes what is served what the objects say.
func (a *Aggregator) serve(ctx context.Context, now map[string]*apiregistrationv1.APIService) {
	old := *a.served.Load()
	next := make(map[schema.GroupVersion]*service, len(old))
	changed := false
	for _, o := range now {
		if o.Spec.Service == nil {
			continue
		}
		gv := schema.GroupVersion{Group: o.Spec.Group, Version: o.Spec.Version}
		if s := old[gv]; s != nil && s.uid == o.UID && equality.Semantic.DeepEqual(s.spec, o.Spec) {
			next[gv] = s
			continue
		}
		s := a.newService(o)
		changed, next[gv] = true, s
		a.wg.Go(func() { s.run(ctx) })
	}
	var ended []*service
	for gv, s := range old {
		if next[gv] != s {
			changed = true
			ended = append(ended, s)
		}
	}
	if !changed {
		return
	}
	a.served.Store(&next)
	a.list()
	for _, s := range ended { // no new request comes to it
		s.end()
	}
}

// list has discovery show what others serve.
func (a *Aggregator) list() {
	served := *a.served.Load()
	list := make([]discovery.External, 0, len(served))
	for gv, s := range served {
		e := discovery.External{Group: gv.Group, Version: gv.Version, GroupPriority: s.spec.GroupPriorityMinimum, VersionPriority: s.spec.VersionPriority,
			Stale: !s.available.Load(), OpenAPI: s}
		if r := s.resources.Load(); r != nil {
			e.Resources = *r
		}
		list = append(list, e)
	}
	slices.SortFunc(list, func(x, y discovery.External) int {
		return cmp.Or(cmp.Compare(x.Group, y.Group), cmp.Compare(x.Version, y.Version))
	})
	a.cfg.Catalog.SetExternal(list)
}
