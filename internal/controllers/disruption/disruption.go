// Package disruption keeps the status of PodDisruptionBudgets: how many of the
// pods that a budget covers are healthy, how many must be, and so how many may be
// disrupted now (policy/v1). The eviction subresource of pods spends what this
// controller allows.
//
// It also takes the condition DisruptionTarget from pods whose disruption did not
// come (KEP-3329).
package disruption

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/client/events"
	"github.com/proa-dev/proa/internal/controllers/loop"
)

const (
	// deletionTimeout is how long an evicted pod counts as disrupted before its
	// deletion is seen.
	deletionTimeout = 2 * time.Minute
	// staleTarget is how long a pod keeps DisruptionTarget without being deleted.
	staleTarget = 2 * time.Minute
)

// Controller writes the status of budgets; it reads pods and what scales them.
type Controller struct {
	client  client.Interface
	loop    *loop.Loop[types.NamespacedName]
	targets *loop.Loop[types.NamespacedName]
	events  *events.Recorder
	log     *slog.Logger
	budgets client.Typed[*policyv1.PodDisruptionBudget]
	pods    client.Typed[*corev1.Pod]
}

// New returns the controller.
func New(c client.Interface, log *slog.Logger) *Controller {
	x := &Controller{client: c, log: log, events: events.New(c, "controllermanager", "", log),
		budgets: client.PodDisruptionBudgets.Informer(c, client.Scope{}), pods: client.Pods.Informer(c, client.Scope{})}
	x.loop = loop.New("disruption", log, x.sync)
	x.targets = loop.New("stale pod disruption", log, x.dropStaleTarget)
	return x
}

func (x *Controller) Name() string { return "disruption" }

// Run works until ctx ends.
func (x *Controller) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 2)
	go func() { done <- x.events.Run(ctx) }()
	go func() { done <- x.targets.Run(ctx, 1) }()
	err := x.loop.Run(ctx, 1,
		loop.Source{Informer: x.budgets.Informer, Handle: func(e client.Event) {
			if e.Object != nil {
				x.loop.Add(types.NamespacedName{Namespace: e.Object.GetNamespace(), Name: e.Object.GetName()})
			}
		}},
		loop.Source{Informer: x.pods.Informer, Handle: x.podChanged})
	cancel()
	<-done
	<-done
	return err
}

func (x *Controller) podChanged(e client.Event) {
	if e.Object == nil {
		return
	}
	pod := e.Object.(*corev1.Pod)
	old, _ := e.Old.(*corev1.Pod)
	for _, b := range x.budgets.List(pod.Namespace, nil) {
		if covers(b, pod) || old != nil && covers(b, old) {
			x.loop.Add(types.NamespacedName{Namespace: b.Namespace, Name: b.Name})
		}
	}
	if wait, ok := targetWaits(pod); ok && e.Type != client.Deleted {
		x.targets.After(types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}, wait)
	}
}

// covers says whether a budget is about a pod: an empty selector takes all pods of
// the namespace, none takes no pod.
func covers(b *policyv1.PodDisruptionBudget, pod *corev1.Pod) bool {
	if b.Spec.Selector == nil {
		return false
	}
	s, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
	return err == nil && s.Matches(labels.Set(pod.Labels))
}

func (x *Controller) sync(ctx context.Context, key types.NamespacedName) error {
	b, ok := x.budgets.Get(key.Namespace, key.Name)
	if !ok {
		return nil
	}
	var pods []*corev1.Pod
	for _, pod := range x.pods.List(key.Namespace, nil) {
		if covers(b, pod) {
			pods = append(pods, pod)
		}
	}
	if len(pods) == 0 {
		x.events.Eventf(b, corev1.EventTypeNormal, "NoPods", "No matching pods found")
	}
	status := policyv1.PodDisruptionBudgetStatus{ObservedGeneration: b.Generation, Conditions: b.Status.DeepCopy().Conditions}
	expected, desired, err := x.wanted(ctx, b, pods)
	if err != nil {
		// Nothing may be disrupted while it is unknown what is wanted.
		x.events.Eventf(b, corev1.EventTypeWarning, "CalculateExpectedPodCountFailed", "Failed to calculate the number of expected pods: %v", err)
		out := b.DeepCopy()
		out.Status.DisruptionsAllowed = 0
		out.Status.ObservedGeneration = b.Generation
		setCondition(&out.Status, b.Generation, metav1.ConditionFalse, policyv1.SyncFailedReason, err.Error())
		return x.write(ctx, b, out)
	}
	now := time.Now()
	disrupted, again := stillDisrupted(b, pods, now)
	if again > 0 {
		x.loop.After(key, again)
	}
	for _, pod := range pods {
		if _, gone := disrupted[pod.Name]; pod.DeletionTimestamp == nil && !gone && podReady(pod) {
			status.CurrentHealthy++
		}
	}
	status.ExpectedPods, status.DesiredHealthy = expected, desired
	if len(disrupted) > 0 {
		status.DisruptedPods = disrupted
	}
	if expected > 0 {
		status.DisruptionsAllowed = max(0, status.CurrentHealthy-desired)
	}
	if status.DisruptionsAllowed > 0 {
		setCondition(&status, b.Generation, metav1.ConditionTrue, policyv1.SufficientPodsReason, "")
	} else {
		setCondition(&status, b.Generation, metav1.ConditionFalse, policyv1.InsufficientPodsReason, "")
	}
	out := b.DeepCopy()
	out.Status = status
	return x.write(ctx, b, out)
}

// write writes a status that differs, guarded by the revision that it was worked
// out from: an eviction in between is never overwritten.
func (x *Controller) write(ctx context.Context, b, out *policyv1.PodDisruptionBudget) error {
	if apiequality.Semantic.DeepEqual(b.Status, out.Status) {
		return nil
	}
	_, err := client.PodDisruptionBudgets.UpdateStatus(ctx, x.client, out)
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("write the status of pod disruption budget %s/%s: %w", b.Namespace, b.Name, err)
	}
	return nil
}

func setCondition(s *policyv1.PodDisruptionBudgetStatus, generation int64, status metav1.ConditionStatus, reason, message string) {
	meta.SetStatusCondition(&s.Conditions, metav1.Condition{Type: policyv1.DisruptionAllowedCondition, Status: status, Reason: reason, Message: message, ObservedGeneration: generation})
}

// stillDisrupted returns the evictions that are not yet seen as deletions, and when
// to look again (0: never).
func stillDisrupted(b *policyv1.PodDisruptionBudget, pods []*corev1.Pod, now time.Time) (map[string]metav1.Time, time.Duration) {
	out := map[string]metav1.Time{}
	var again time.Duration
	for _, pod := range pods {
		at, ok := b.Status.DisruptedPods[pod.Name]
		if !ok || pod.DeletionTimestamp != nil {
			continue
		}
		left := at.Add(deletionTimeout).Sub(now)
		if left <= 0 {
			continue
		}
		out[pod.Name] = at
		if again == 0 || left < again {
			again = left
		}
	}
	return out, again
}

// wanted returns how many pods there should be and how many of them healthy.
func (x *Controller) wanted(ctx context.Context, b *policyv1.PodDisruptionBudget, pods []*corev1.Pod) (expected, desired int32, err error) {
	switch {
	case b.Spec.MaxUnavailable != nil:
		if expected, err = x.expected(ctx, pods); err != nil {
			return 0, 0, err
		}
		n, err := intstr.GetScaledValueFromIntOrPercent(b.Spec.MaxUnavailable, int(expected), true)
		if err != nil {
			return 0, 0, err
		}
		return expected, max(0, expected-int32(n)), nil
	case b.Spec.MinAvailable != nil && b.Spec.MinAvailable.Type == intstr.Int:
		return int32(len(pods)), b.Spec.MinAvailable.IntVal, nil
	case b.Spec.MinAvailable != nil:
		if expected, err = x.expected(ctx, pods); err != nil {
			return 0, 0, err
		}
		n, err := intstr.GetScaledValueFromIntOrPercent(b.Spec.MinAvailable, int(expected), true)
		if err != nil {
			return 0, 0, err
		}
		return expected, int32(n), nil
	}
	return int32(len(pods)), 0, nil
}

func podReady(pod *corev1.Pod) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}
