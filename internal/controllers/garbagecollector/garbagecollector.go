// Package garbagecollector deletes objects whose owners are gone, and carries out
// foreground and orphaning deletion (metadata.ownerReferences and the finalizers
// foregroundDeletion and orphan).
//
// The informers are its graph: of its own it keeps only, for each owner, who
// depends on it.
package garbagecollector

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/client/events"
	"github.com/proa-dev/proa/internal/controllers/loop"
)

const workers = 8

// ref names one object.
type ref struct {
	gvr             schema.GroupVersionResource
	namespace, name string
	uid             types.UID
}

// Controller deletes what nobody owns any more; it reads every resource.
type Controller struct {
	client client.Interface
	log    *slog.Logger
	loop   *loop.Loop[ref]
	events *events.Recorder

	kinds   kinds
	defined chan struct{} // a definition of a custom resource has changed

	mu         sync.Mutex
	dependents map[types.UID]map[ref]struct{}
}

// New returns the controller.
func New(c client.Interface, log *slog.Logger) *Controller {
	x := &Controller{client: c, log: log, events: events.New(c, "garbage-collector-controller", "", log), dependents: map[types.UID]map[ref]struct{}{}, defined: make(chan struct{}, 1),
		kinds: kinds{byKind: map[schema.GroupKind]client.ResourceInfo{}, views: map[schema.GroupVersionResource]client.Informer{}}}
	x.loop = loop.New("garbagecollector", log, x.sync)
	return x
}

func (x *Controller) Name() string { return "garbagecollector" }

// Run works until ctx ends.
func (x *Controller) Run(ctx context.Context) error {
	resources, err := x.client.Resources(ctx)
	if err != nil {
		return fmt.Errorf("garbage collector: list resources: %w", err)
	}
	var wg sync.WaitGroup // of what follows custom resources
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	sources := x.sources(resources, x.again)
	if err := x.custom(ctx, &wg); err != nil {
		return err
	}
	wg.Go(func() { x.follow(ctx, &wg) })
	recorded := make(chan error, 1)
	go func() { recorded <- x.events.Run(ctx) }()
	err = x.loop.Run(ctx, workers, sources...)
	cancel()
	<-recorded
	return err
}

func (x *Controller) changed(gvr schema.GroupVersionResource, e client.Event) {
	if e.Object == nil {
		return
	}
	o := e.Object
	me := ref{gvr, o.GetNamespace(), o.GetName(), o.GetUID()}
	owners := o.GetOwnerReferences()
	var before []metav1.OwnerReference
	if e.Old != nil {
		before = e.Old.GetOwnerReferences()
		if e.Old.GetUID() != me.uid { // another object of the same name
			old := me
			old.uid = e.Old.GetUID()
			x.gone(old, before)
			before = nil
		}
	}
	if e.Type == client.Deleted {
		x.gone(me, append(before, owners...))
		return
	}
	if len(owners) > 0 || len(before) > 0 {
		x.relate(me, before, owners)
	}
	deleting := o.GetDeletionTimestamp() != nil
	switch {
	case deleting && special(o.GetFinalizers()):
		x.loop.Add(me)
	case !deleting && len(owners) > 0 && !sameOwners(before, owners):
		x.loop.Add(me)
	}
	// A dependent that stops blocking lets its owner go.
	if !sameOwners(before, owners) {
		x.addOwners(me.namespace, before)
	}
}

func special(finalizers []string) bool {
	return slices.Contains(finalizers, metav1.FinalizerOrphanDependents) || slices.Contains(finalizers, metav1.FinalizerDeleteDependents)
}

func sameOwners(a, b []metav1.OwnerReference) bool {
	return slices.EqualFunc(a, b, func(a, b metav1.OwnerReference) bool { return a.UID == b.UID && blocks(a) == blocks(b) })
}

func blocks(r metav1.OwnerReference) bool {
	return r.BlockOwnerDeletion != nil && *r.BlockOwnerDeletion
}

// relate notes who owns an object.
func (x *Controller) relate(me ref, before, owners []metav1.OwnerReference) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, o := range before {
		x.forget(o.UID, me)
	}
	for _, o := range owners {
		if x.dependents[o.UID] == nil {
			x.dependents[o.UID] = map[ref]struct{}{}
		}
		x.dependents[o.UID][me] = struct{}{}
	}
}

func (x *Controller) forget(owner types.UID, me ref) {
	delete(x.dependents[owner], me)
	if len(x.dependents[owner]) == 0 {
		delete(x.dependents, owner)
	}
}

// gone takes an object out; its dependents are looked at, and owners that waited for it.
func (x *Controller) gone(me ref, owners []metav1.OwnerReference) {
	x.mu.Lock()
	for _, o := range owners {
		x.forget(o.UID, me)
	}
	x.mu.Unlock()
	for _, d := range x.dependentsOf(me.uid) {
		x.loop.Add(d)
	}
	x.addOwners(me.namespace, owners)
}

// addOwners asks to look at owners that wait in foreground deletion.
func (x *Controller) addOwners(namespace string, owners []metav1.OwnerReference) {
	for _, o := range owners {
		at, ok := x.resolve(namespace, o)
		if !ok {
			continue
		}
		if obj, ok := x.kinds.get(at.gvr, at.namespace, at.name); ok && obj.GetUID() == o.UID && obj.GetDeletionTimestamp() != nil && special(obj.GetFinalizers()) {
			x.loop.Add(at)
		}
	}
}

func (x *Controller) dependentsOf(uid types.UID) []ref {
	x.mu.Lock()
	defer x.mu.Unlock()
	out := make([]ref, 0, len(x.dependents[uid]))
	for d := range x.dependents[uid] {
		out = append(out, d)
	}
	return out
}

// resolve finds where an owner is, by the namespace of who depends on it. It is
// not found when its kind is not served, or is namespaced and the dependent is not.
func (x *Controller) resolve(namespace string, o metav1.OwnerReference) (ref, bool) {
	group, err := schema.ParseGroupVersion(o.APIVersion)
	if err != nil {
		return ref{}, false
	}
	kind, ok := x.kinds.kind(schema.GroupKind{Group: group.Group, Kind: o.Kind})
	if !ok || kind.Namespaced && namespace == "" {
		return ref{}, false
	}
	if !kind.Namespaced {
		namespace = ""
	}
	return ref{kind.GVR, namespace, o.Name, o.UID}, true
}

// warn says that a reference crosses namespaces.
func (x *Controller) warn(obj client.Object, o metav1.OwnerReference) {
	where := "namespace " + fmt.Sprintf("%q", obj.GetNamespace())
	if obj.GetNamespace() == "" {
		where = "the cluster scope"
	}
	x.events.Eventf(obj, corev1.EventTypeWarning, "OwnerRefInvalidNamespace", "ownerRef [%s/%s, name: %s, uid: %s] does not exist in %s", o.APIVersion, o.Kind, o.Name, o.UID, where)
}
