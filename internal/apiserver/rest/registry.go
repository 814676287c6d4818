package rest

import (
	"context"
	"fmt"
	"log/slog"
	"sort"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/apimachinery/pkg/util/uuid"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver/cache"
	"github.com/proa-dev/proa/internal/apiserver/rest/managed"
	"github.com/proa-dev/proa/internal/store"
)

// Config is what a Registry is made of.
type Config struct {
	Store     store.Store
	Resources []*api.Resource
	Scheme    *runtime.Scheme
	Admission Admission // nil: everything is admitted
	Logger    *slog.Logger
	// Shared says that other servers write to the same store.
	Shared bool
	// CompactEvery lets the store forget its history (0: someone else does).
	CompactEvery time.Duration
	// EventTTL is how long core Events live (0: one hour).
	EventTTL time.Duration
	// Types returns how the fields of a custom resource are owned. Nil, and for
	// resources of which it returns nil: maps field by field, lists as a whole.
	Types func(res *api.Resource) managedfields.TypeConverter

	Now    func() time.Time // nil: time.Now
	NewUID func() types.UID // nil: random
}

// Registry is the storage of every resource over one watch cache.
type Registry struct {
	cfg    Config
	set    *cache.Set
	log    *slog.Logger
	kinds  *managed.Kinds
	events *eventExpiry

	mu       sync.RWMutex
	storages map[schema.GroupVersionResource]*storage
	customs  map[string]*custom // by their place
	started  bool
}

// New returns a Registry of cfg.Resources. Start makes it ready.
func New(cfg Config) (*Registry, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Admission == nil {
		cfg.Admission = admitAll{}
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.NewUID == nil {
		cfg.NewUID = uuid.NewUUID
	}
	if cfg.EventTTL == 0 {
		cfg.EventTTL = time.Hour
	}
	r := &Registry{
		cfg:      cfg,
		log:      cfg.Logger,
		set:      cache.NewSet(cache.Options{Store: cfg.Store, Logger: cfg.Logger, Shared: cfg.Shared, CompactEvery: cfg.CompactEvery}),
		storages: map[schema.GroupVersionResource]*storage{},
		customs:  map[string]*custom{},
		kinds:    managed.NewKinds(),
	}
	for _, views := range []bool{false, true} {
		for _, res := range cfg.Resources {
			if !stored(res) || isView(res) != views {
				continue
			}
			if err := r.Add(context.Background(), res); err != nil {
				return nil, err
			}
		}
	}
	return r, nil
}

type admitAll struct{}

func (admitAll) Admit(context.Context, *Attributes) error    { return nil }
func (admitAll) Validate(context.Context, *Attributes) error { return nil }

// stored reports whether objects of the resource are kept: reviews are answered
// and forgotten.
func stored(res *api.Resource) bool {
	if len(res.Verbs) == 0 {
		return true
	}
	for _, v := range res.Verbs {
		if v == "get" || v == "list" {
			return true
		}
	}
	return false
}

func isView(res *api.Resource) bool {
	return !res.StoredAs.Empty() && res.StoredAs != res.GVR
}

// dirs are the places of built-in resources that Kubernetes does not keep under
// the resource's own name.
var dirs = map[schema.GroupResource]string{
	{Resource: "nodes"}:                                                    "minions",
	{Resource: "services"}:                                                 "services/specs",
	{Resource: "endpoints"}:                                                "services/endpoints",
	{Resource: "replicationcontrollers"}:                                   "controllers",
	{Group: "networking.k8s.io", Resource: "ingresses"}:                    "ingress",
	{Group: "apiregistration.k8s.io", Resource: "apiservices"}:             "apiregistration.k8s.io/apiservices",
	{Group: "apiextensions.k8s.io", Resource: "customresourcedefinitions"}: "apiextensions.k8s.io/customresourcedefinitions",
}

// dir returns where a resource is kept: under its own name when it is built in
// and the first of that name, else under its group.
func (r *Registry) dir(res *api.Resource) string {
	gr := res.GVR.GroupResource()
	if d, ok := dirs[gr]; ok {
		return d
	}
	if _, custom := res.New().(*unstructured.Unstructured); custom {
		return gr.Group + "/" + gr.Resource
	}
	for _, s := range r.storages {
		if other := s.res.GVR.GroupResource(); other != gr && s.cache.Prefix("") == cache.Prefix+gr.Resource+"/" {
			return gr.Group + "/" + gr.Resource
		}
	}
	return gr.Resource
}

// Add serves one more resource (a custom one). When the Registry has started, it
// returns when the resource's objects are there. A second version of a custom
// resource names the first with StoredAs.
func (r *Registry) Add(ctx context.Context, res *api.Resource) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.storages[res.GVR]; ok {
		return fmt.Errorf("add %s: served already", res.GVR)
	}
	s := &storage{reg: r, res: res, gr: res.GVR.GroupResource(), codec: cache.NewCodec(res.GVK, res.New)}
	if isView(res) {
		base, ok := r.storages[res.StoredAs]
		if !ok {
			return fmt.Errorf("add %s: %s, as which it is stored, is not served", res.GVR, res.StoredAs)
		}
		s.cache = base.cache
		s.base = base
		s.view = &cache.View{Encoder: s.codec, Convert: s.fromStored}
	} else {
		cfg := cache.Config{Dir: r.dir(res), Namespaced: res.Namespaced, Codec: s.codec}
		if s.gr == podsGR {
			cfg.Index = func(obj api.Object) string { return obj.(*corev1.Pod).Spec.NodeName }
			s.indexField = "spec.nodeName"
		}
		s.dir = cfg.Dir
		c, err := r.set.Add(ctx, cfg)
		if err != nil {
			return fmt.Errorf("add %s: %w", res.GVR, err)
		}
		s.cache = c
	}
	r.storages[res.GVR] = s
	return nil
}

var (
	podsGR       = schema.GroupResource{Resource: "pods"}
	nodesGR      = schema.GroupResource{Resource: "nodes"}
	namespacesGR = schema.GroupResource{Resource: "namespaces"}
	eventsGVR    = schema.GroupVersionResource{Version: "v1", Resource: "events"}
)

// Remove stops to serve a resource and ends its watches. Its objects stay in the store.
func (r *Registry) Remove(gvr schema.GroupVersionResource) {
	r.mu.Lock()
	s := r.storages[gvr]
	delete(r.storages, gvr)
	r.mu.Unlock()
	if s != nil && s.view == nil {
		r.set.Remove(s.dir)
	}
}

// Start fills the caches and returns when reads can be served; the caches follow
// the store until ctx ends or Close is called.
func (r *Registry) Start(ctx context.Context) error {
	if err := r.set.Start(ctx); err != nil {
		return fmt.Errorf("fill the watch cache: %w", err)
	}
	r.mu.Lock()
	r.started = true
	events := r.storages[eventsGVR]
	r.mu.Unlock()
	if events != nil {
		r.events = newEventExpiry(events, r.cfg.EventTTL)
		if err := r.events.start(ctx); err != nil {
			return fmt.Errorf("follow events to expire them: %w", err)
		}
	}
	return nil
}

// Close ends what Start began. The store stays open.
func (r *Registry) Close() {
	if r.events != nil {
		r.events.close()
	}
	r.set.Close()
}

// Storage returns the storage of a resource.
func (r *Registry) Storage(gvr schema.GroupVersionResource) (Storage, bool) {
	s, ok := r.storage(gvr)
	return s, ok
}

func (r *Registry) storage(gvr schema.GroupVersionResource) (*storage, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	s, ok := r.storages[gvr]
	return s, ok
}

// All returns every storage, sorted by group, version and resource.
func (r *Registry) All() []Storage {
	r.mu.RLock()
	list := make([]*storage, 0, len(r.storages))
	for _, s := range r.storages {
		list = append(list, s)
	}
	r.mu.RUnlock()
	sort.Slice(list, func(i, j int) bool { return list[i].res.GVR.String() < list[j].res.GVR.String() })
	all := make([]Storage, len(list))
	for i, s := range list {
		all[i] = s
	}
	return all
}

// Cache returns the watch cache of a resource and the view in which the resource
// sees it (nil: as stored).
func (r *Registry) Cache(gvr schema.GroupVersionResource) (*cache.Cache, *cache.View, bool) {
	s, ok := r.storage(gvr)
	if !ok {
		return nil, nil, false
	}
	return s.cache, s.view, true
}

// Equivalents returns the other resources that show the same stored objects:
// other versions, and other groups' names of them.
func (r *Registry) Equivalents(gvr schema.GroupVersionResource) (out []*api.Resource) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	s, ok := r.storages[gvr]
	if !ok {
		return nil
	}
	for other, x := range r.storages {
		if other != gvr && x.cache == s.cache {
			out = append(out, x.res)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].GVR.String() < out[j].GVR.String() })
	return out
}

// OfKind returns the resource of a kind.
func (r *Registry) OfKind(gvk schema.GroupVersionKind) (*api.Resource, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, s := range r.storages {
		if s.res.GVK == gvk {
			return s.res, true
		}
	}
	return nil, false
}

// TypeConverter returns how objects of a resource are merged; nil: it is not served.
func (r *Registry) TypeConverter(gvr schema.GroupVersionResource) managedfields.TypeConverter {
	s, ok := r.storage(gvr)
	if !ok {
		return nil
	}
	return s.types()
}

// Revision is the store revision that reads have reached.
func (r *Registry) Revision() int64 { return r.set.Revision() }

// Set is the watch cache.
func (r *Registry) Set() *cache.Set { return r.set }
