package garbagecollector

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/controllers/loop"
)

// kinds are the resources that the graph is made of. Custom ones come and go with
// their definitions.
type kinds struct {
	mu     sync.RWMutex
	byKind map[schema.GroupKind]client.ResourceInfo
	views  map[schema.GroupVersionResource]client.Informer
}

func (k *kinds) kind(gk schema.GroupKind) (client.ResourceInfo, bool) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	r, ok := k.byKind[gk]
	return r, ok
}

// get looks an object up in the view of its resource.
func (k *kinds) get(gvr schema.GroupVersionResource, namespace, name string) (client.Object, bool) {
	k.mu.RLock()
	view := k.views[gvr]
	k.mu.RUnlock()
	if view == nil {
		return nil, false
	}
	return view.Get(namespace, name)
}

// add notes a resource; false: it is known.
func (k *kinds) add(r client.ResourceInfo, view client.Informer) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.views[r.GVR] != nil {
		return false
	}
	k.byKind[schema.GroupKind{Group: r.GVR.Group, Kind: r.Kind}] = r
	k.views[r.GVR] = view
	return true
}

func (k *kinds) remove(r client.ResourceInfo) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.views, r.GVR)
	if gk := (schema.GroupKind{Group: r.GVR.Group, Kind: r.Kind}); k.byKind[gk].GVR == r.GVR {
		delete(k.byKind, gk)
	}
}

// collectable reports whether objects of a resource can be followed and deleted.
func collectable(r client.ResourceInfo) bool {
	return slices.Contains(r.Verbs, "delete") && slices.Contains(r.Verbs, "watch")
}

// sources returns what the loop follows: the built-in resources, and the
// definitions of custom ones, of whose changes it tells.
func (x *Controller) sources(resources []client.ResourceInfo, changed func()) (sources []loop.Source) {
	for _, r := range resources {
		if !collectable(r) || r.Custom {
			continue
		}
		view := x.client.Informer(r.GVR, client.Scope{})
		x.kinds.add(r, view)
		if r.GVR.Resource == "events" {
			continue // nobody owns them, and there are many
		}
		definitions := r.GVR == client.CustomResourceDefinitions.GVR
		sources = append(sources, loop.Source{Informer: view, Handle: func(e client.Event) {
			x.changed(r.GVR, e)
			if definitions {
				changed()
			}
		}})
	}
	return sources
}

// custom follows the custom resources that are served and not followed yet, each
// until ctx or the resource ends. It returns when all are known.
func (x *Controller) custom(ctx context.Context, wg *sync.WaitGroup) error {
	resources, err := x.client.Resources(ctx)
	if err != nil {
		return fmt.Errorf("garbage collector: list resources: %w", err)
	}
	var synced sync.WaitGroup
	for _, r := range resources {
		if !collectable(r) || !r.Custom {
			continue
		}
		view := x.client.Informer(r.GVR, client.Scope{})
		if !x.kinds.add(r, view) {
			continue
		}
		synced.Add(1)
		wg.Go(func() {
			var once sync.Once
			err := view.Watch(ctx, func(e client.Event) {
				x.changed(r.GVR, e)
				if e.Type == client.Synced {
					once.Do(synced.Done)
				}
			})
			once.Do(synced.Done)
			x.kinds.remove(r)
			x.forgetAll(r.GVR)
			if err != nil && ctx.Err() == nil {
				x.log.Debug("a custom resource is not followed any more", "resource", r.GVR.Resource, "group", r.GVR.Group, "err", err)
				x.again() // it may be served in another version
			}
		})
	}
	synced.Wait()
	return nil
}

// follow takes up custom resources as they are defined, until ctx ends.
func (x *Controller) follow(ctx context.Context, wg *sync.WaitGroup) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-x.defined:
		}
		if err := x.custom(ctx, wg); err != nil && ctx.Err() == nil {
			x.log.Error("follow custom resources", "err", err)
		}
	}
}

// again asks follow to look.
func (x *Controller) again() {
	select {
	case x.defined <- struct{}{}:
	default:
	}
}

// forgetAll takes the objects of a resource out of the graph.
func (x *Controller) forgetAll(gvr schema.GroupVersionResource) {
	x.mu.Lock()
	defer x.mu.Unlock()
	empty := []types.UID{}
	for owner, refs := range x.dependents {
		for me := range refs {
			if me.gvr == gvr {
				delete(refs, me)
			}
		}
		if len(refs) == 0 {
			empty = append(empty, owner)
		}
	}
	for _, owner := range empty {
		delete(x.dependents, owner)
	}
}
