// Package discovery knows which groups, versions and resources are served, and
// tells clients so: /api and /apis in both their plain and their aggregated form.
//
// Catalog is the list; custom resources come and go in it at run time. Handler
// answers over HTTP. It knows nothing of what the resources mean.
package discovery

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/version"

	"github.com/proa-dev/proa/internal/api"
)

// Catalog is the set of resources that are served. Reads take no lock.
type Catalog struct {
	mu       sync.Mutex
	state    atomic.Pointer[snapshot]
	watchers map[chan struct{}]bool
}

// snapshot is the catalog at one moment; it is never written to.
type snapshot struct {
	generation uint64
	resources  []*api.Resource // in the order of discovery
	byGVR      map[schema.GroupVersionResource]*api.Resource
	announced  []*api.Resource // served, and not listed yet
	external   []External      // groups that others serve

	once sync.Once
	docs *documents // made at the first question
}

// External is a group and version that is served by someone else (an APIService).
type External struct {
	Group, Version string
	// Priorities of the APIService: higher comes first.
	GroupPriority, VersionPriority int32
	// Resources are those that the other server named last; Stale says that it
	// does not answer now.
	Resources []apidiscoveryv2.APIResourceDiscovery
	Stale     bool
	OpenAPI   Described
}

// Described is an API that another server describes in OpenAPI.
type Described interface {
	// Hash changes with the description; empty: there is none.
	Hash() string
	// V3 answers for the document of the group and version.
	V3(w http.ResponseWriter, r *http.Request)
	// V2 returns the server's document as JSON, of all its groups.
	V2(ctx context.Context) ([]byte, error)
}

// NewCatalog returns a catalog of resources.
func NewCatalog(resources []*api.Resource) (*Catalog, error) {
	c := &Catalog{}
	c.state.Store(build(1, nil, nil))
	if err := c.Add(resources...); err != nil {
		return nil, err
	}
	return c, nil
}

func build(generation uint64, resources []*api.Resource, external []External) *snapshot {
	s := &snapshot{generation: generation, resources: resources, external: external, byGVR: make(map[schema.GroupVersionResource]*api.Resource, len(resources))}
	for _, r := range resources {
		s.byGVR[r.GVR] = r
	}
	return s
}

// publish shows a new state; the lock is held.
func (c *Catalog) publish(next *snapshot) {
	c.state.Store(next)
	for w := range c.watchers {
		select {
		case w <- struct{}{}:
		default:
		}
	}
}

// Changes returns a channel that is told after changes of the catalog, and how to
// let go of it.
func (c *Catalog) Changes() (changed <-chan struct{}, stop func()) {
	w := make(chan struct{}, 1)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.watchers == nil {
		c.watchers = map[chan struct{}]bool{}
	}
	c.watchers[w] = true
	return w, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.watchers, w)
	}
}

// External returns the groups and versions that others serve. Read only.
func (c *Catalog) External() []External { return c.state.Load().external }

// Add serves more resources. A resource that is served already is an error.
func (c *Catalog) Add(resources ...*api.Resource) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.state.Load()
	list := slices.Clone(old.resources)
	seen := make(map[schema.GroupVersionResource]bool, len(resources))
	for _, r := range resources {
		if _, ok := old.byGVR[r.GVR]; ok || seen[r.GVR] {
			return fmt.Errorf("add %s to the catalog: it is served already", r.GVR)
		}
		seen[r.GVR] = true
		list = append(list, r)
	}
	next := build(old.generation+1, list, old.external)
	next.announce(old.announced)
	c.publish(next)
	return nil
}

// Set replaces a resource, or adds it.
func (c *Catalog) Set(r *api.Resource) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.state.Load()
	list := slices.Clone(old.resources)
	if i := slices.IndexFunc(list, func(o *api.Resource) bool { return o.GVR == r.GVR }); i >= 0 {
		list[i] = r
	} else {
		list = append(list, r)
	}
	next := build(old.generation+1, list, old.external)
	next.announce(old.announced)
	c.publish(next)
}

// Announce serves resources that discovery does not list yet: Replace lists them.
func (c *Catalog) Announce(add []*api.Resource) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.state.Load()
	next := build(old.generation, old.resources, old.external)
	next.announce(append(slices.Clone(old.announced), add...))
	c.publish(next)
}

func (s *snapshot) announce(resources []*api.Resource) {
	s.announced = resources
	for _, r := range resources {
		s.byGVR[r.GVR] = r
	}
}

// Replace serves and lists resources in place of others, in one step.
func (c *Catalog) Replace(remove []schema.GroupVersionResource, add []*api.Resource) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.state.Load()
	gone := func(o *api.Resource) bool {
		return slices.Contains(remove, o.GVR) || slices.ContainsFunc(add, func(r *api.Resource) bool { return r.GVR == o.GVR })
	}
	next := build(old.generation+1, append(slices.DeleteFunc(slices.Clone(old.resources), gone), add...), old.external)
	next.announce(slices.DeleteFunc(slices.Clone(old.announced), gone))
	c.publish(next)
}

// Remove stops to serve a resource.
func (c *Catalog) Remove(gvr schema.GroupVersionResource) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.state.Load()
	list := slices.DeleteFunc(slices.Clone(old.resources), func(o *api.Resource) bool { return o.GVR == gvr })
	next := build(old.generation+1, list, old.external)
	next.announce(old.announced)
	c.publish(next)
}

// SetExternal replaces the groups and versions that others serve.
func (c *Catalog) SetExternal(list []External) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.state.Load()
	next := build(old.generation+1, old.resources, slices.Clone(list))
	next.announce(old.announced)
	c.publish(next)
}

// Resource returns a resource that is served.
func (c *Catalog) Resource(gvr schema.GroupVersionResource) (*api.Resource, bool) {
	r, ok := c.state.Load().byGVR[gvr]
	return r, ok
}

// Resources returns all that is served, in the order of discovery. Read only.
func (c *Catalog) Resources() []*api.Resource { return c.state.Load().resources }

// Generation changes with every change of the catalog.
func (c *Catalog) Generation() uint64 { return c.state.Load().generation }

// group is a group with its versions, the preferred one first.
type group struct {
	name     string
	versions []groupVersion
}

type groupVersion struct {
	version   string
	resources []*api.Resource
	external  *External
	priority  int32
}

// groups gathers the resources, the core group first, then in the order in
// which the groups were added.
func (s *snapshot) groups() []group {
	var list []group
	at := map[string]int{}
	versionOf := func(name, version string) *groupVersion {
		i, ok := at[name]
		if !ok {
			i = len(list)
			at[name] = i
			list = append(list, group{name: name})
		}
		g := &list[i]
		for j := range g.versions {
			if g.versions[j].version == version {
				return &g.versions[j]
			}
		}
		g.versions = append(g.versions, groupVersion{version: version})
		return &g.versions[len(g.versions)-1]
	}
	for _, r := range s.resources {
		v := versionOf(r.GVR.Group, r.GVR.Version)
		v.resources = append(v.resources, r)
	}
	external := slices.Clone(s.external)
	slices.SortStableFunc(external, func(a, b External) int {
		return cmp.Or(cmp.Compare(b.GroupPriority, a.GroupPriority), cmp.Compare(a.Group, b.Group))
	})
	for i := range external {
		v := versionOf(external[i].Group, external[i].Version)
		v.external, v.priority = &external[i], external[i].VersionPriority
	}
	for i := range list {
		slices.SortStableFunc(list[i].versions, func(a, b groupVersion) int {
			return cmp.Or(cmp.Compare(b.priority, a.priority), version.CompareKubeAwareVersionStrings(b.version, a.version))
		})
		for j := range list[i].versions {
			slices.SortFunc(list[i].versions[j].resources, func(a, b *api.Resource) int { return cmp.Compare(a.GVR.Resource, b.GVR.Resource) })
		}
	}
	return list
}
