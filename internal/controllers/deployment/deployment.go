// Package deployment rolls Deployments out (apps/v1): a ReplicaSet for each
// version of the template, scaled up and down as the strategy says, with the
// history that `kubectl rollout` reads.
//
// Pods are made by package replicaset.
package deployment

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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
)

const (
	workers = 5
	// lateAfter is when to look again for a write that the watch has not told of.
	lateAfter = 10 * time.Second
)

// Controller writes ReplicaSets, and the status and revision of Deployments.
type Controller struct {
	client      client.Interface
	loop        *loop.Loop[types.NamespacedName]
	events      *events.Recorder
	deployments client.Typed[*appsv1.Deployment]
	sets        client.Typed[*appsv1.ReplicaSet]
	pods        client.Typed[*corev1.Pod]
	index       *owned.Index[*appsv1.ReplicaSet]
	writes      *owned.Writes[types.NamespacedName, *appsv1.ReplicaSet]
}

// New returns the controller.
func New(c client.Interface, log *slog.Logger) *Controller {
	x := &Controller{client: c, events: events.New(c, "deployment-controller", "", log), deployments: client.Deployments.Informer(c, client.Scope{}),
		sets: client.ReplicaSets.Informer(c, client.Scope{}), pods: client.Pods.Informer(c, client.Scope{}),
		index: owned.NewIndex[*appsv1.ReplicaSet](client.Deployments.GVK.GroupKind())}
	x.writes = owned.NewWrites[types.NamespacedName](x.sets.Informer, x.index)
	x.loop = loop.New("deployment", log, x.sync)
	return x
}

func (x *Controller) Name() string { return "deployment" }

// Run works until ctx ends.
func (x *Controller) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	recorded := make(chan error, 1)
	go func() { recorded <- x.events.Run(ctx) }()
	err := x.loop.Run(ctx, workers,
		loop.Source{Informer: x.deployments.Informer, Handle: func(e client.Event) {
			if e.Object != nil {
				x.loop.Add(keyOf(e.Object))
			}
		}},
		loop.Source{Informer: x.sets.Informer, Handle: x.setChanged},
		loop.Source{Informer: x.pods.Informer, Handle: func(e client.Event) {
			// Recreate waits until the last pod is gone.
			if e.Type == client.Deleted {
				if ref := metav1.GetControllerOfNoCopy(e.Object); ref != nil && ref.Kind == "ReplicaSet" {
					if set, ok := x.sets.Get(e.Object.GetNamespace(), ref.Name); ok {
						x.addOwner(set)
					}
				}
			}
		}})
	cancel()
	<-recorded
	return err
}

func keyOf(o client.Object) types.NamespacedName {
	return types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}
}

func (x *Controller) setChanged(e client.Event) {
	if e.Object == nil {
		return
	}
	x.index.Apply(e)
	if e.Old != nil {
		x.addOwner(e.Old)
	}
	x.addOwner(e.Object)
	if metav1.GetControllerOfNoCopy(e.Object) != nil || e.Type == client.Deleted {
		return
	}
	for _, d := range x.deployments.List(e.Object.GetNamespace(), nil) {
		if s, err := metav1.LabelSelectorAsSelector(d.Spec.Selector); err == nil && s.Matches(labels.Set(e.Object.GetLabels())) {
			x.loop.Add(keyOf(d))
		}
	}
}

func (x *Controller) addOwner(o client.Object) {
	ref := metav1.GetControllerOfNoCopy(o)
	if ref == nil || ref.Kind != "Deployment" {
		return
	}
	if d, ok := x.deployments.Get(o.GetNamespace(), ref.Name); ok && d.UID == ref.UID {
		x.loop.Add(keyOf(d))
	}
}

func (x *Controller) sync(ctx context.Context, key types.NamespacedName) error {
	shared, ok := x.deployments.Get(key.Namespace, key.Name)
	if !ok {
		x.writes.Forget(key)
		return nil
	}
	// What the index does not show yet comes as an event, and with it the next pass.
	if !x.writes.Settled(key) {
		x.loop.After(key, lateAfter)
		return nil
	}
	selector, err := metav1.LabelSelectorAsSelector(shared.Spec.Selector)
	if err != nil {
		return fmt.Errorf("selector of deployment %s: %w", key, err)
	}
	d := shared.DeepCopy()
	if selector.Empty() {
		x.events.Eventf(d, corev1.EventTypeWarning, "SelectingAll", "This deployment is selecting all pods. A non-empty selector is required.")
		return nil
	}
	sets, err := owned.Claim[*appsv1.ReplicaSet]{Client: x.client, Kind: client.ReplicaSets, Owner: shared, OwnerGVK: client.Deployments.GVK, Selector: selector,
		Live: func(ctx context.Context) (client.Object, error) {
			return client.Deployments.Get(ctx, x.client, key.Namespace, key.Name)
		}}.
		Of(ctx, x.newest(x.index.OwnedOrOrphaned(key.Namespace, shared.UID)))
	if err != nil {
		return err
	}
	r := &rollout{Controller: x, key: key, d: d, shared: shared}
	r.divide(sets)
	if d.DeletionTimestamp != nil {
		return r.writeStatus(ctx)
	}
	err = r.step(ctx)
	if again := r.deadline(); again > 0 {
		x.loop.After(key, again)
	}
	return err
}

// newest replaces the states that the index has by those of the view, which may be
// newer: sizes are decided on.
func (x *Controller) newest(sets []*appsv1.ReplicaSet) []*appsv1.ReplicaSet {
	out := sets[:0]
	for _, s := range sets {
		if now, ok := x.sets.Get(s.Namespace, s.Name); ok {
			out = append(out, now)
		}
	}
	return out
}

// rollout is one pass over one Deployment.
type rollout struct {
	*Controller
	key    types.NamespacedName
	d      *appsv1.Deployment // a copy: conditions and annotations are changed in it
	shared *appsv1.Deployment // what the view holds
	new    *appsv1.ReplicaSet // that of the present template, nil: there is none
	old    []*appsv1.ReplicaSet
}

// all returns the sets of every version.
func (r *rollout) all() []*appsv1.ReplicaSet {
	if r.new == nil {
		return r.old
	}
	return append(append([]*appsv1.ReplicaSet{}, r.old...), r.new)
}

// step does what comes next and writes the status.
func (r *rollout) step(ctx context.Context) error {
	r.pauseConditions()
	var err error
	switch {
	case r.d.Spec.Paused:
		if err = r.annotate(ctx); err == nil {
			if err = r.scaleAll(ctx); err == nil {
				err = r.forget(ctx)
			}
		}
	case r.scaled():
		if err = r.annotate(ctx); err == nil {
			err = r.scaleAll(ctx)
		}
	case r.d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType:
		err = r.recreate(ctx)
	default:
		err = r.rolling(ctx)
	}
	return errors.Join(err, r.writeStatus(ctx))
}

// scaled says that the wanted number of pods has changed since the sets were
// scaled: then they are brought to it in proportion, before the rollout goes on.
func (r *rollout) scaled() bool {
	for _, set := range r.all() {
		if *set.Spec.Replicas == 0 {
			continue
		}
		if n, ok := number(set, desiredAnnotation); ok && n != *r.d.Spec.Replicas {
			return true
		}
	}
	return false
}

func (r *rollout) rolling(ctx context.Context) error {
	if err := r.ensureNew(ctx); err != nil {
		return err
	}
	if done, err := r.growNew(ctx); done || err != nil {
		return err
	}
	if done, err := r.shrinkOld(ctx); done || err != nil {
		return err
	}
	if r.complete() {
		return r.forget(ctx)
	}
	return nil
}

func (r *rollout) recreate(ctx context.Context) error {
	gone := true
	for _, set := range r.old {
		if *set.Spec.Replicas != 0 {
			gone = false
			if err := r.scale(ctx, set, 0); err != nil {
				return err
			}
		}
	}
	if !gone || r.oldPods() {
		return nil
	}
	if err := r.ensureNew(ctx); err != nil {
		return err
	}
	if *r.new.Spec.Replicas != *r.d.Spec.Replicas {
		return r.scale(ctx, r.new, *r.d.Spec.Replicas)
	}
	if r.complete() {
		return r.forget(ctx)
	}
	return nil
}

// oldPods says whether pods of other versions may still run.
func (r *rollout) oldPods() bool {
	owners := map[types.UID]bool{}
	for _, set := range r.old {
		owners[set.UID] = true
	}
	if len(owners) == 0 {
		return false
	}
	for _, p := range r.pods.List(r.key.Namespace, nil) {
		if ref := metav1.GetControllerOfNoCopy(p); ref != nil && owners[ref.UID] && p.Status.Phase != corev1.PodFailed && p.Status.Phase != corev1.PodSucceeded {
			return true
		}
	}
	return false
}
