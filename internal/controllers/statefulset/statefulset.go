// Package statefulset keeps the pods of StatefulSets (apps/v1): one for each
// ordinal, with a name and claims that stay its own, made, updated and removed in
// order (or all at once, with Parallel), and the history of their template.
//
// It never deletes a PersistentVolumeClaim: by the retention policy it makes pods
// or the set their owners, and the garbage collector does the rest.
package statefulset

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/client/events"
	"github.com/proa-dev/proa/internal/controllers/loop"
	"github.com/proa-dev/proa/internal/controllers/owned"
	"github.com/proa-dev/proa/internal/controllers/revision"
)

const (
	workers = 4
	// lateAfter is when to look again for a write that the watch has not told of.
	lateAfter = 10 * time.Second
	// refusedFor is the least time between pods that a node refuses.
	refusedFor = 2 * time.Second
)

type key = types.NamespacedName

// Controller writes the pods, claims, ControllerRevisions and status of StatefulSets.
type Controller struct {
	client    client.Interface
	loop      *loop.Loop[key]
	events    *events.Recorder
	sets      client.Typed[*appsv1.StatefulSet]
	claims    client.Typed[*corev1.PersistentVolumeClaim]
	pods      client.Informer
	revisions client.Informer
	index     *owned.Index[*corev1.Pod]
	writes    *owned.Writes[key, *corev1.Pod]
	history   revision.History
	templates revision.Cache[key]
}

// New returns the controller.
func New(c client.Interface, log *slog.Logger) *Controller {
	kind := client.StatefulSets.GVK
	x := &Controller{client: c, events: events.New(c, "statefulset-controller", "", log), sets: client.StatefulSets.Informer(c, client.Scope{}),
		claims: client.PersistentVolumeClaims.Informer(c, client.Scope{}), pods: client.Pods.Informer(c, client.Scope{}).Informer,
		revisions: client.ControllerRevisions.Informer(c, client.Scope{}).Informer, index: owned.NewIndex[*corev1.Pod](kind.GroupKind()),
		history: revision.History{Client: c, Index: owned.NewIndex[*appsv1.ControllerRevision](kind.GroupKind()), GVK: kind, HashLabel: "controller.kubernetes.io/hash"}}
	x.writes = owned.NewWrites[key](x.pods, x.index)
	x.loop = loop.New("statefulset", log, x.sync)
	return x
}

func (x *Controller) Name() string { return "statefulset" }

// Run works until ctx ends.
func (x *Controller) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() { _ = x.events.Run(ctx) })
	return x.loop.Run(ctx, workers,
		loop.Source{Informer: x.pods, Handle: x.podChanged},
		loop.Source{Informer: x.revisions, Handle: func(e client.Event) { x.history.Index.Apply(e) }},
		loop.Source{Informer: x.claims.Informer, Handle: x.claimChanged},
		loop.Source{Informer: x.sets.Informer, Handle: func(e client.Event) {
			if e.Object != nil {
				x.loop.Add(keyOf(e.Object))
			}
		}})
}

func keyOf(o client.Object) key { return key{Namespace: o.GetNamespace(), Name: o.GetName()} }

func (x *Controller) podChanged(e client.Event) {
	pod, ok := e.Object.(*corev1.Pod)
	if !ok {
		return
	}
	x.index.Apply(e)
	ref := x.index.Of(pod)
	if ref != nil {
		x.loop.Add(key{Namespace: pod.Namespace, Name: ref.Name})
	}
	old, _ := e.Old.(*corev1.Pod)
	if old != nil {
		if was := x.index.Of(old); was != nil && (ref == nil || was.UID != ref.UID) {
			x.loop.Add(key{Namespace: pod.Namespace, Name: was.Name})
		}
	}
	parent, ordinal := split(pod.Name)
	if ordinal < 0 || ref != nil {
		return
	}
	// Whoever it belongs to, its name is that of a member: the set may adopt it, or
	// make its own when it has gone.
	if set, ok := x.sets.Get(pod.Namespace, parent); ok {
		if s, err := metav1.LabelSelectorAsSelector(set.Spec.Selector); err == nil && (e.Type == client.Deleted || s.Matches(labels.Set(pod.Labels))) {
			x.loop.Add(keyOf(set))
		}
	}
}

// claimChanged wakes the set whose pod waits until an old claim has gone.
func (x *Controller) claimChanged(e client.Event) {
	if e.Type != client.Deleted {
		return
	}
	for _, set := range x.sets.List(e.Object.GetNamespace(), nil) {
		for i := range set.Spec.VolumeClaimTemplates {
			if parent, ordinal := split(e.Object.GetName()); ordinal >= 0 && parent == set.Spec.VolumeClaimTemplates[i].Name+"-"+set.Name {
				x.loop.Add(keyOf(set))
			}
		}
	}
}

func (x *Controller) sync(ctx context.Context, k key) error {
	set, ok := x.sets.Get(k.Namespace, k.Name)
	if !ok {
		x.writes.Forget(k)
		x.templates.Forget(k)
		return nil
	}
	selector, err := metav1.LabelSelectorAsSelector(set.Spec.Selector)
	if err != nil {
		return nil // admitted before today's rules: nothing that trying again could mend
	}
	settled := x.writes.Settled(k) // before the index is read
	p := &pass{Controller: x, key: k, set: set, now: time.Now(), live: func(ctx context.Context) (client.Object, error) {
		return client.StatefulSets.Get(ctx, x.client, k.Namespace, k.Name)
	}}
	if p.pods, err = (owned.Claim[*corev1.Pod]{Client: x.client, Kind: client.Pods, Owner: set, OwnerGVK: client.StatefulSets.GVK, Selector: selector, Live: p.live,
		Adoptable: func(pod *corev1.Pod) bool { return member(set, pod) }}).
		Of(ctx, x.index.OwnedOrOrphaned(k.Namespace, set.UID)); err != nil {
		return fmt.Errorf("claim the pods of stateful set %s: %w", k, err)
	}
	if err := p.revise(ctx, selector); err != nil {
		return err
	}
	p.divide()
	var failed error
	switch {
	case set.DeletionTimestamp != nil:
	case !settled:
		x.loop.After(k, lateAfter)
	default:
		failed = p.act(ctx)
	}
	if wait, some := owned.NextAvailable(p.pods, set.Spec.MinReadySeconds, p.now); some {
		x.loop.After(k, wait)
	}
	return errors.Join(failed, p.writeStatus(ctx), p.trim(ctx))
}
