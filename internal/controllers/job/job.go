// Package job runs Jobs to their end (batch/v1): it makes pods up to the
// parallelism, counts each finished pod exactly once with the help of a finalizer,
// tries failed ones again with back-off, and ends the Job by its completions,
// limits, deadlines and policies.
package job

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
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
	workers = 5
	// burst bounds the pods that one pass creates or deletes.
	burst = 500
	// manager is the value of spec.managedBy that means this controller.
	manager = "kubernetes.io/job-controller"
)

// Controller writes pods and the status of Jobs.
type Controller struct {
	client  client.Interface
	loop    *loop.Loop[types.NamespacedName]
	orphans *loop.Loop[types.NamespacedName]
	events  *events.Recorder
	jobs    client.Typed[*batchv1.Job]
	pods    client.Typed[*corev1.Pod]
	pending owned.Pending[types.NamespacedName]

	mu       sync.Mutex
	backoffs map[types.NamespacedName]*backoff
}

// New returns the controller.
func New(c client.Interface, log *slog.Logger) *Controller {
	x := &Controller{client: c, events: events.New(c, "job-controller", "", log), jobs: client.Jobs.Informer(c, client.Scope{}), pods: client.Pods.Informer(c, client.Scope{}),
		backoffs: map[types.NamespacedName]*backoff{}}
	x.loop = loop.New("job", log, x.sync)
	x.orphans = loop.New("job: pods without a job", log, x.letGo)
	return x
}

func (x *Controller) Name() string { return "job" }

// Run works until ctx ends.
func (x *Controller) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { _ = x.events.Run(ctx) })
	wg.Go(func() { _ = x.orphans.Run(ctx, 1) })
	err := x.loop.Run(ctx, workers,
		loop.Source{Informer: x.jobs.Informer, Handle: func(e client.Event) {
			if e.Object == nil {
				return
			}
			x.loop.Add(keyOf(e.Object))
			if e.Type == client.Deleted {
				x.addPodsOf(e.Object)
			}
		}},
		loop.Source{Informer: x.pods.Informer, Handle: x.podChanged})
	cancel()
	wg.Wait()
	return err
}

func keyOf(o client.Object) types.NamespacedName {
	return types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}
}

// addPodsOf asks to free the pods of a Job that is gone.
func (x *Controller) addPodsOf(j client.Object) {
	for _, p := range x.pods.List(j.GetNamespace(), nil) {
		if metav1.IsControlledBy(p, j) && tracked(p) {
			x.orphans.Add(keyOf(p))
		}
	}
}

func (x *Controller) podChanged(e client.Event) {
	if e.Object == nil {
		return
	}
	pod := e.Object.(*corev1.Pod)
	ref := metav1.GetControllerOfNoCopy(pod)
	if old, ok := e.Old.(*corev1.Pod); ok {
		if was := metav1.GetControllerOfNoCopy(old); was != nil && (ref == nil || ref.UID != was.UID) {
			x.addOwner(old, was)
		}
	}
	switch {
	case ref != nil:
		if !x.addOwner(pod, ref) && tracked(pod) && e.Type != client.Deleted && ref.Kind == "Job" {
			x.orphans.Add(keyOf(pod))
		}
	case e.Type == client.Deleted:
	default:
		if tracked(pod) {
			x.orphans.Add(keyOf(pod))
		}
		for _, j := range x.jobs.List(pod.Namespace, nil) {
			if s, err := metav1.LabelSelectorAsSelector(j.Spec.Selector); err == nil && s.Matches(labels.Set(pod.Labels)) {
				x.loop.Add(keyOf(j))
			}
		}
	}
}

func (x *Controller) addOwner(pod *corev1.Pod, ref *metav1.OwnerReference) bool {
	if ref.Kind != "Job" {
		return false
	}
	j, ok := x.jobs.Get(pod.Namespace, ref.Name)
	if !ok || j.UID != ref.UID {
		return false
	}
	x.loop.Add(keyOf(j))
	return true
}

func tracked(p *corev1.Pod) bool { return slices.Contains(p.Finalizers, batchv1.JobTrackingFinalizer) }

// letGo frees a pod whose Job does not exist any more, or is not ours.
func (x *Controller) letGo(ctx context.Context, key types.NamespacedName) error {
	pod, ok := x.pods.Get(key.Namespace, key.Name)
	if !ok || !tracked(pod) {
		return nil
	}
	if ref := metav1.GetControllerOfNoCopy(pod); ref != nil && ref.Kind == "Job" {
		// A managedBy elsewhere has the pods of its Job in its own hands.
		if j, err := client.Jobs.Get(ctx, x.client, pod.Namespace, ref.Name); err == nil && j.UID == ref.UID {
			return nil
		} else if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("read job %s/%s: %w", pod.Namespace, ref.Name, err)
		}
	}
	return x.untrack(ctx, pod)
}

// untrack takes the tracking finalizer from a pod.
func (x *Controller) untrack(ctx context.Context, pod *corev1.Pod) error {
	data, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": pod.UID, "$deleteFromPrimitiveList/finalizers": []string{batchv1.JobTrackingFinalizer}}})
	if err != nil {
		return err
	}
	if _, err := client.Pods.Patch(ctx, x.client, pod.Namespace, pod.Name, "", types.StrategicMergePatchType, data); err != nil && !apierrors.IsNotFound(err) {
		if apierrors.IsConflict(err) { // another pod of that name: this one is gone
			return nil
		}
		return fmt.Errorf("take the finalizer from pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return nil
}

// Finished says how a Job has ended ("": it has not).
func Finished(j *batchv1.Job) (batchv1.JobConditionType, metav1.Time) {
	for _, c := range j.Status.Conditions {
		if (c.Type == batchv1.JobComplete || c.Type == batchv1.JobFailed) && c.Status == corev1.ConditionTrue {
			return c.Type, c.LastTransitionTime
		}
	}
	return "", metav1.Time{}
}

func (x *Controller) sync(ctx context.Context, key types.NamespacedName) error {
	shared, ok := x.jobs.Get(key.Namespace, key.Name)
	if !ok || shared.Spec.ManagedBy != nil && *shared.Spec.ManagedBy != manager {
		x.pending.Forget(key)
		x.forgetBackoff(key)
		return nil
	}
	if end, _ := Finished(shared); end != "" {
		x.forgetBackoff(key)
		return x.freeAll(ctx, shared)
	}
	if !x.pending.Shown(key, x.pods.Informer) {
		x.loop.After(key, time.Second)
		return nil
	}
	selector, err := metav1.LabelSelectorAsSelector(shared.Spec.Selector)
	if err != nil {
		return fmt.Errorf("selector of job %s: %w", key, err)
	}
	pods, err := owned.Claim[*corev1.Pod]{Client: x.client, Kind: client.Pods, Owner: shared, OwnerGVK: client.Jobs.GVK, Selector: selector,
		Live: func(ctx context.Context) (client.Object, error) {
			return client.Jobs.Get(ctx, x.client, key.Namespace, key.Name)
		}}.
		Of(ctx, x.pods.List(key.Namespace, nil))
	if err != nil {
		return err
	}
	r := &run{Controller: x, key: key, shared: shared, job: shared.DeepCopy(), now: time.Now()}
	r.divide(pods)
	return r.step(ctx)
}

// freeAll frees the pods of a Job that has ended.
func (x *Controller) freeAll(ctx context.Context, j *batchv1.Job) error {
	var errs []error
	for _, p := range x.pods.List(j.Namespace, nil) {
		if metav1.IsControlledBy(p, j) && tracked(p) {
			errs = append(errs, x.untrack(ctx, p))
		}
	}
	return errors.Join(errs...)
}

// run is one pass over one Job.
type run struct {
	*Controller
	key    types.NamespacedName
	shared *batchv1.Job
	job    *batchv1.Job // a copy, whose status becomes the new one
	now    time.Time

	active, terminating []*corev1.Pod
	// succeeded and failed are finished pods that are not counted yet.
	succeeded, failed []*corev1.Pod
	// all are those that the Job owns.
	all []*corev1.Pod

	// Of an Indexed Job: the finished indexes, with those not counted yet.
	done, lost intervals
	// ignored failures count nowhere (podFailurePolicy).
	ignored map[types.UID]bool
	// failIndex are indexes that podFailurePolicy gives up.
	failIndex intervals
}

func (r *run) indexed() bool {
	return r.job.Spec.CompletionMode != nil && *r.job.Spec.CompletionMode == batchv1.IndexedCompletion
}

func (r *run) perIndex() bool { return r.indexed() && r.job.Spec.BackoffLimitPerIndex != nil }

// failedOnly says that a pod which is being deleted counts only once it has ended.
func (r *run) failedOnly() bool {
	p := r.job.Spec.PodReplacementPolicy
	return p != nil && *p == batchv1.Failed || r.job.Spec.PodFailurePolicy != nil
}

// divide sorts the pods by what they mean for the Job.
func (r *run) divide(pods []*corev1.Pod) {
	u := ptr.Deref(r.job.Status.UncountedTerminatedPods, batchv1.UncountedTerminatedPods{})
	known := map[types.UID]bool{}
	for _, uid := range append(slices.Clone(u.Succeeded), u.Failed...) {
		known[uid] = true
	}
	r.all, r.ignored = pods, map[types.UID]bool{}
	for _, p := range pods {
		gone := p.DeletionTimestamp != nil
		switch {
		case p.Status.Phase == corev1.PodSucceeded:
			if tracked(p) && !known[p.UID] && r.counts(p) {
				r.succeeded = append(r.succeeded, p)
			}
		case p.Status.Phase == corev1.PodFailed || gone && !r.failedOnly():
			if tracked(p) && !known[p.UID] && r.counts(p) {
				r.failed = append(r.failed, p)
			}
			if p.Status.Phase != corev1.PodFailed {
				r.terminating = append(r.terminating, p)
			}
		case gone:
			r.terminating = append(r.terminating, p)
		default:
			r.active = append(r.active, p)
		}
	}
}

// counts says whether a finished pod is one of those that an Indexed Job wants.
func (r *run) counts(p *corev1.Pod) bool {
	if !r.indexed() {
		return true
	}
	i, ok := index(p)
	return ok && i < int(ptr.Deref(r.job.Spec.Completions, 0))
}
