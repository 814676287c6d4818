// Package replicaset keeps the number of pods of ReplicaSets and
// ReplicationControllers (apps/v1, core/v1): it adopts and lets go, creates and
// deletes pods, and writes the status.
package replicaset

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/client/events"
	"github.com/proa-dev/proa/internal/controllers/loop"
	"github.com/proa-dev/proa/internal/controllers/owned"
)

const (
	// burst bounds the pods that one pass creates or deletes.
	burst   = 500
	workers = 5
	// lateAfter is when to look again for a write that the watch has not told of.
	lateAfter = 10 * time.Second
)

// Controller writes pods and the status of the sets.
type Controller struct {
	client  client.Interface
	name    string
	source  source
	loop    *loop.Loop[types.NamespacedName]
	events  *events.Recorder
	pods    client.Informer
	index   *owned.Index[*corev1.Pod]
	control owned.Control
	writes  *owned.Writes[types.NamespacedName, *corev1.Pod]
}

func build(c client.Interface, log *slog.Logger, name, component string, s source) *Controller {
	x := &Controller{client: c, name: name, source: s, pods: client.Pods.Informer(c, client.Scope{}).Informer, events: events.New(c, component, "", log),
		index: owned.NewIndex[*corev1.Pod](s.gvk.GroupKind())}
	x.control = owned.Control{Client: c, Recorder: x.events}
	x.writes = owned.NewWrites[types.NamespacedName](x.pods, x.index)
	x.loop = loop.New(name, log, x.sync)
	return x
}

func (x *Controller) Name() string { return x.name }

// Run works until ctx ends.
func (x *Controller) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	recorded := make(chan error, 1)
	go func() { recorded <- x.events.Run(ctx) }()
	err := x.loop.Run(ctx, workers,
		loop.Source{Informer: x.source.informer, Handle: func(e client.Event) {
			if e.Object != nil {
				x.loop.Add(keyOf(e.Object))
			}
		}},
		loop.Source{Informer: x.pods, Handle: x.podChanged})
	cancel()
	<-recorded
	return err
}

func keyOf(o client.Object) types.NamespacedName {
	return types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}
}

func (x *Controller) podChanged(e client.Event) {
	pod, ok := e.Object.(*corev1.Pod)
	if !ok {
		return
	}
	x.index.Apply(e)
	ref := x.index.Of(pod)
	if ref != nil {
		x.loop.Add(types.NamespacedName{Namespace: pod.Namespace, Name: ref.Name})
	}
	old, _ := e.Old.(*corev1.Pod)
	if old != nil {
		if was := x.index.Of(old); was != nil && (ref == nil || was.UID != ref.UID) {
			x.loop.Add(types.NamespacedName{Namespace: pod.Namespace, Name: was.Name})
		}
	}
	if e.Type == client.Deleted || pod.DeletionTimestamp != nil || metav1.GetControllerOfNoCopy(pod) != nil {
		return
	}
	// An orphan: whoever matches it may adopt it, when that is new.
	if old != nil && metav1.GetControllerOfNoCopy(old) == nil && labels.Equals(old.Labels, pod.Labels) {
		return
	}
	for _, o := range x.source.informer.List(pod.Namespace) {
		if s, err := metav1.LabelSelectorAsSelector(x.source.of(o).Spec.Selector); err == nil && s.Matches(labels.Set(pod.Labels)) {
			x.loop.Add(keyOf(o))
		}
	}
}

func (x *Controller) sync(ctx context.Context, key types.NamespacedName) error {
	obj, ok := x.source.informer.Get(key.Namespace, key.Name)
	if !ok {
		x.writes.Forget(key)
		return nil
	}
	// What the index does not show yet comes as an event, and with it the next pass.
	if !x.writes.Settled(key) {
		x.loop.After(key, lateAfter)
		return nil
	}
	set := x.source.of(obj)
	selector, err := metav1.LabelSelectorAsSelector(set.Spec.Selector)
	if err != nil {
		return fmt.Errorf("selector of %s %s: %w", x.source.gvk.Kind, key, err)
	}
	var candidates []*corev1.Pod
	all := x.index.OwnedOrOrphaned(key.Namespace, set.UID)
	for _, p := range all {
		if p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed {
			candidates = append(candidates, p)
		}
	}
	pods, err := owned.Claim[*corev1.Pod]{Client: x.client, Kind: client.Pods, Owner: obj, OwnerGVK: x.source.gvk, Selector: selector,
		Live: func(ctx context.Context) (client.Object, error) { return x.source.live(ctx, key.Namespace, key.Name) }}.Of(ctx, candidates)
	if err != nil {
		return err
	}
	var active []*corev1.Pod
	terminating := int32(0)
	for _, p := range pods {
		if p.DeletionTimestamp == nil {
			active = append(active, p)
		} else {
			terminating++
		}
	}
	var failed error
	created := []*corev1.Pod(nil)
	hold := time.Duration(0)
	if len(active) < int(ptr.Deref(set.Spec.Replicas, 1)) {
		hold = owned.HoldBack(slices.DeleteFunc(all, func(p *corev1.Pod) bool { return !metav1.IsControlledBy(p, set) }), time.Now())
	}
	switch {
	case set.DeletionTimestamp != nil:
	case hold > 0:
		x.loop.After(key, hold)
	default:
		created, failed = x.scale(ctx, key, obj, set, active)
	}
	status := x.status(set, append(active, created...), terminating, failed, int(ptr.Deref(set.Spec.Replicas, 1))-len(active))
	if !apiequality.Semantic.DeepEqual(set.Status, status) {
		out := *set
		out.Status = status
		if err := x.source.write(ctx, &out); err != nil && !apierrors.IsNotFound(err) {
			return errors.Join(failed, fmt.Errorf("write the status of %s %s: %w", x.source.gvk.Kind, key, err))
		}
	}
	if wait, some := owned.NextAvailable(active, set.Spec.MinReadySeconds, time.Now()); some {
		x.loop.After(key, wait)
	}
	return failed
}

// scale creates or deletes pods until there are as many as wanted, and returns the
// created ones. What was deleted is taken out of the status by its own event.
func (x *Controller) scale(ctx context.Context, key types.NamespacedName, owner client.Object, set *appsv1.ReplicaSet, pods []*corev1.Pod) ([]*corev1.Pod, error) {
	diff := int(ptr.Deref(set.Spec.Replicas, 1)) - len(pods)
	if diff > 0 {
		diff = min(diff, burst)
		made := make([]*corev1.Pod, diff)
		want := owned.Pod(&set.Spec.Template, owner, x.source.gvk, prefix(set.Name))
		_, err := owned.SlowStart(diff, func(i int) error {
			pod, err := x.control.Create(ctx, owner, want)
			switch {
			case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause), apierrors.IsNotFound(err):
				return nil // the namespace is on its way out, and everything in it
			case err != nil:
				return fmt.Errorf("create a pod of %s %s: %w", x.source.gvk.Kind, key, err)
			}
			x.writes.Created(key, pod)
			made[i] = pod
			return nil
		})
		return slices.DeleteFunc(made, func(p *corev1.Pod) bool { return p == nil }), err
	}
	if diff == 0 {
		return nil, nil
	}
	surplus := min(-diff, burst)
	doomed := doom(pods, x.related(set), surplus)
	_, err := owned.SlowStart(surplus, func(i int) error {
		x.writes.Deleting(key, doomed[i])
		err := x.control.Delete(ctx, owner, doomed[i])
		if err != nil {
			x.writes.Kept(key, doomed[i])
		}
		return err
	})
	return nil, err
}

// prefix leaves room for what makes the name unique.
func prefix(name string) string { return name + "-" }

// related returns the pods of all sets with the same controller: the rank of
// a pod to delete is how many of those share its node.
func (x *Controller) related(set *appsv1.ReplicaSet) []*corev1.Pod {
	up := metav1.GetControllerOfNoCopy(set)
	if up == nil {
		return x.index.Owned(set.UID)
	}
	var out []*corev1.Pod
	for _, o := range x.source.informer.List(set.Namespace) {
		if ref := metav1.GetControllerOfNoCopy(o); ref != nil && ref.UID == up.UID {
			out = append(out, x.index.Owned(o.GetUID())...)
		}
	}
	return out
}
