package rest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/version"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver/cache"
)

// Custom is a custom resource with all its versions. Its objects are cached as
// they are stored, each in the version that was the storage version when it was
// written, and keep their apiVersion in the cache: a version's FromStored makes of
// any of them its own (of one that is in that version already, the same object).
type Custom struct {
	Resource   schema.GroupResource
	Namespaced bool
	// Stored is the kind, in the version in which objects are written from now on.
	Stored schema.GroupVersionKind
	// Prepare completes an object that was read in the stored version (defaults of
	// fields that came after it was written).
	Prepare func(obj *unstructured.Unstructured) error
	// Main is the resource in the stored version, which need not be served.
	Main *api.Resource
	// Versions are those that are served; each has ToStored and FromStored.
	Versions []*api.Resource
}

// custom is what a Registry keeps of a custom resource, whether a version is served or not.
type custom struct {
	main  *storage
	cache *cache.Cache
}

// SetCustom serves a custom resource, in place of what was served of it. Its
// objects are there when it returns. Watches of a resource that was served end:
// its objects may look different now.
func (r *Registry) SetCustom(ctx context.Context, c *Custom) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	dir := c.Resource.Group + "/" + c.Resource.Resource
	codec := cache.NewCustomCodec(c.Stored, c.Prepare)
	var old *cache.Cache
	if k := r.customs[dir]; k != nil {
		old = k.cache
	}
	for gvr := range r.storages {
		if gvr.GroupResource() == c.Resource && old == nil {
			return fmt.Errorf("serve %s: it is served already, and no custom resource", c.Resource)
		}
	}
	if old != nil && old.Namespaced() != c.Namespaced {
		r.set.Remove(dir)
		old = nil
	}
	cached := old
	var err error
	if old != nil {
		err = r.set.Reload(ctx, dir, codec)
	} else {
		cached, err = r.set.Add(ctx, cache.Config{Dir: dir, Namespaced: c.Namespaced, Codec: codec})
	}
	if err != nil {
		return fmt.Errorf("serve %s: %w", c.Resource, err)
	}
	for gvr := range r.storages {
		if gvr.GroupResource() == c.Resource {
			delete(r.storages, gvr)
		}
	}
	base := &storage{reg: r, gr: c.Resource, codec: codec, cache: cached, dir: dir}
	view := func(res *api.Resource) *storage {
		s := &storage{reg: r, res: res, gr: c.Resource, codec: cache.NewCustomCodec(res.GVK, nil), cache: cached, dir: dir, base: base}
		s.view = &cache.View{Encoder: s.codec, Convert: s.fromStored, ConvertAll: res.FromStoredAll}
		return s
	}
	for _, res := range c.Versions {
		r.storages[res.GVR] = view(res)
	}
	r.customs[dir] = &custom{main: view(c.Main), cache: cached}
	return nil
}

// Custom returns the storage of a custom resource in the version that is stored.
func (r *Registry) Custom(gr schema.GroupResource) (Storage, *cache.Cache, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	k := r.customs[gr.Group+"/"+gr.Resource]
	if k == nil {
		return nil, nil, false
	}
	return k.main, k.cache, true
}

// Customs returns the custom resources, sorted by name, each in one of its served versions.
func (r *Registry) Customs() []*api.Resource {
	r.mu.RLock()
	byName := make(map[schema.GroupResource]*api.Resource, len(r.customs))
	for gvr, s := range r.storages {
		if k := r.customs[s.dir]; k == nil || s.base == nil {
			continue
		} else if have := byName[gvr.GroupResource()]; have == nil || gvr == k.main.res.GVR ||
			have.GVR != k.main.res.GVR && version.CompareKubeAwareVersionStrings(gvr.Version, have.GVR.Version) > 0 {
			byName[gvr.GroupResource()] = s.res
		}
	}
	r.mu.RUnlock()
	return slices.SortedFunc(maps.Values(byName), func(a, b *api.Resource) int {
		return cmp.Or(cmp.Compare(a.GVR.Group, b.GVR.Group), cmp.Compare(a.GVR.Resource, b.GVR.Resource))
	})
}

// RemoveCustom stops to serve a custom resource and ends its watches. Its objects
// stay in the store.
func (r *Registry) RemoveCustom(gr schema.GroupResource) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for gvr := range r.storages {
		if gvr.GroupResource() == gr {
			delete(r.storages, gvr)
		}
	}
	dir := gr.Group + "/" + gr.Resource
	if r.customs[dir] != nil {
		delete(r.customs, dir)
		r.set.Remove(dir)
	}
}

// closed refuses to create objects of a resource that is going away.
func (s *storage) closed(name string) error {
	if s.res.Closed == nil {
		return nil
	}
	if why := s.res.Closed(); why != "" {
		return apierrors.NewForbidden(s.gr, name, errors.New(why))
	}
	return nil
}
