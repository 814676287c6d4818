// Package daemonset keeps a pod of each DaemonSet (apps/v1) on every node that it
// fits: it makes pods that the scheduler can bind to that node only, replaces them
// when the template changes, and keeps the history that `kubectl rollout` reads.
package daemonset

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
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
	// burst bounds the pods that one pass creates or deletes.
	burst   = 250
	workers = 2
	// lateAfter is when to look again for a write that the watch has not told of.
	lateAfter = 10 * time.Second
)

type key = types.NamespacedName

// Controller writes the pods, ControllerRevisions and status of DaemonSets.
type Controller struct {
	client    client.Interface
	loop      *loop.Loop[key]
	events    *events.Recorder
	control   owned.Control
	sets      client.Typed[*appsv1.DaemonSet]
	nodes     client.Typed[*corev1.Node]
	pods      client.Informer
	revisions client.Informer
	index     *owned.Index[*corev1.Pod]
	writes    *owned.Writes[key, *corev1.Pod]
	history   revision.History
	failures  failures
	templates revision.Cache[key]
}

// New returns the controller.
func New(c client.Interface, log *slog.Logger) *Controller {
	kind := client.DaemonSets.GVK
	x := &Controller{client: c, events: events.New(c, "daemonset-controller", "", log), sets: client.DaemonSets.Informer(c, client.Scope{}),
		nodes: client.Nodes.Informer(c, client.Scope{}), pods: client.Pods.Informer(c, client.Scope{}).Informer,
		revisions: client.ControllerRevisions.Informer(c, client.Scope{}).Informer, index: owned.NewIndex[*corev1.Pod](kind.GroupKind()),
		history: revision.History{Client: c, Index: owned.NewIndex[*appsv1.ControllerRevision](kind.GroupKind()), GVK: kind, HashLabel: revision.PodLabel}}
	x.control = owned.Control{Client: c, Recorder: x.events}
	x.writes = owned.NewWrites[key](x.pods, x.index)
	x.loop = loop.New("daemonset", log, x.sync)
	return x
}

func (x *Controller) Name() string { return "daemonset" }

// Run works until ctx ends.
func (x *Controller) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() { _ = x.events.Run(ctx) })
	return x.loop.Run(ctx, workers,
		loop.Source{Informer: x.pods, Handle: x.podChanged},
		// What others do to revisions is looked at with the next event: it changes no pod.
		loop.Source{Informer: x.revisions, Handle: func(e client.Event) { x.history.Index.Apply(e) }},
		loop.Source{Informer: x.nodes.Informer, Handle: x.nodeChanged},
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
	if e.Type == client.Deleted || pod.DeletionTimestamp != nil || metav1.GetControllerOfNoCopy(pod) != nil ||
		old != nil && metav1.GetControllerOfNoCopy(old) == nil && labels.Equals(old.Labels, pod.Labels) {
		return
	}
	for _, set := range x.sets.List(pod.Namespace, nil) {
		if s, err := metav1.LabelSelectorAsSelector(set.Spec.Selector); err == nil && !s.Empty() && s.Matches(labels.Set(pod.Labels)) {
			x.loop.Add(keyOf(set))
		}
	}
}

// nodeChanged asks for the sets to which the change makes a difference. What a node
// reports of itself all the time, makes none.
func (x *Controller) nodeChanged(e client.Event) {
	now, ok := e.Object.(*corev1.Node)
	if !ok {
		return
	}
	before, _ := e.Old.(*corev1.Node)
	switch {
	case e.Type == client.Deleted:
		before, now = now, nil
	case before != nil && maps.Equal(before.Labels, now.Labels) && slices.EqualFunc(before.Spec.Taints, now.Spec.Taints, sameTaint):
		return
	}
	for _, set := range x.sets.List("", nil) {
		f := newFit(set)
		if run, stay := f.on(now); !changed(f, before, run, stay) {
			continue
		}
		x.loop.Add(keyOf(set))
	}
}

func changed(f fit, before *corev1.Node, run, stay bool) bool {
	ran, stayed := f.on(before)
	return ran != run || stayed != stay
}

func sameTaint(a, b corev1.Taint) bool {
	return a.Key == b.Key && a.Value == b.Value && a.Effect == b.Effect
}

func (x *Controller) sync(ctx context.Context, k key) error {
	set, ok := x.sets.Get(k.Namespace, k.Name)
	if !ok {
		x.writes.Forget(k)
		x.failures.forget(k)
		x.templates.Forget(k)
		return nil
	}
	selector, err := metav1.LabelSelectorAsSelector(set.Spec.Selector)
	if err != nil {
		return fmt.Errorf("selector of daemon set %s: %w", k, err)
	}
	if selector.Empty() {
		x.events.Eventf(set, corev1.EventTypeWarning, "SelectingAll", "This daemon set is selecting all pods. A non-empty selector is required.")
		return nil
	}
	if set.DeletionTimestamp != nil {
		return nil // its pods and history go, or are orphaned, at any moment
	}
	settled := x.writes.Settled(k) // before the index is read
	p := &pass{Controller: x, key: k, set: set, live: func(ctx context.Context) (client.Object, error) {
		return client.DaemonSets.Get(ctx, x.client, k.Namespace, k.Name)
	}}
	if p.pods, err = (owned.Claim[*corev1.Pod]{Client: x.client, Kind: client.Pods, Owner: set, OwnerGVK: client.DaemonSets.GVK, Selector: selector, Live: p.live}).
		Of(ctx, x.index.OwnedOrOrphaned(k.Namespace, set.UID)); err != nil {
		return fmt.Errorf("claim the pods of daemon set %s: %w", k, err)
	}
	if err := p.revisions(ctx, selector); err != nil {
		return err
	}
	p.places()
	if !settled {
		x.loop.After(k, lateAfter)
		return p.writeStatus(ctx, false)
	}
	return errors.Join(p.act(ctx), p.writeStatus(ctx, true))
}

// pass is one pass over one DaemonSet.
type pass struct {
	*Controller
	key     key
	set     *appsv1.DaemonSet
	live    func(context.Context) (client.Object, error)
	pods    []*corev1.Pod
	place   []place
	fit     fit
	current *appsv1.ControllerRevision
	old     []*appsv1.ControllerRevision
	hash    string
}

// act does what comes next: first what every node should have, then a step of the
// update, then the history that is no longer needed.
func (p *pass) act(ctx context.Context) error {
	create, remove := p.manage(time.Now())
	if len(create) == 0 && len(remove) == 0 && p.set.Spec.UpdateStrategy.Type == appsv1.RollingUpdateDaemonSetStrategyType {
		create, remove = p.update(time.Now())
	}
	if err := p.apply(ctx, create, remove); err != nil {
		return err
	}
	return p.trim(ctx)
}

// apply deletes pods and makes some on nodes.
func (p *pass) apply(ctx context.Context, create []string, remove []*corev1.Pod) error {
	remove = remove[:min(len(remove), burst)]
	_, failed := owned.SlowStart(len(remove), func(i int) error {
		p.writes.Deleting(p.key, remove[i])
		err := p.control.Delete(ctx, p.set, remove[i])
		if err != nil {
			p.writes.Kept(p.key, remove[i])
		}
		return err
	})
	if len(create) == 0 {
		return failed
	}
	create = create[:min(len(create), burst)]
	template := p.template()
	_, err := owned.SlowStart(len(create), func(i int) error {
		pod := owned.Pod(template, p.set, client.DaemonSets.GVK, p.set.Name+"-")
		pinTo(&pod.Spec, create[i])
		made, err := p.control.Create(ctx, p.set, pod)
		if err != nil {
			return err
		}
		p.writes.Created(p.key, made)
		return nil
	})
	if ending(err) {
		err = nil
	}
	return errors.Join(failed, err)
}
