package deployment

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/proa-dev/proa/internal/client"
)

// Reasons of the condition Progressing that decide something.
const (
	reasonAvailable = "NewReplicaSetAvailable"
	reasonTimedOut  = "ProgressDeadlineExceeded"
	reasonPaused    = "DeploymentPaused"
	reasonResumed   = "DeploymentResumed"
)

func (r *rollout) hasDeadline() bool {
	return r.d.Spec.ProgressDeadlineSeconds != nil && *r.d.Spec.ProgressDeadlineSeconds != math.MaxInt32
}

func (r *rollout) condition(t appsv1.DeploymentConditionType) *appsv1.DeploymentCondition {
	for i := range r.d.Status.Conditions {
		if r.d.Status.Conditions[i].Type == t {
			return &r.d.Status.Conditions[i]
		}
	}
	return nil
}

// setCondition sets a condition; one with the same status and reason is left as it is.
func (r *rollout) setCondition(t appsv1.DeploymentConditionType, status corev1.ConditionStatus, reason, message string) {
	have := r.condition(t)
	if have != nil && have.Status == status && have.Reason == reason {
		return
	}
	now := metav1.Now()
	c := appsv1.DeploymentCondition{Type: t, Status: status, LastUpdateTime: now, LastTransitionTime: now, Reason: reason, Message: message}
	if have == nil {
		r.d.Status.Conditions = append(r.d.Status.Conditions, c)
		return
	}
	if have.Status == status {
		c.LastTransitionTime = have.LastTransitionTime
	}
	// The condition last changed is the last.
	r.d.Status.Conditions = append(slices.DeleteFunc(r.d.Status.Conditions, func(x appsv1.DeploymentCondition) bool { return x.Type == t }), c)
}

func (r *rollout) dropCondition(t appsv1.DeploymentConditionType) {
	r.d.Status.Conditions = slices.DeleteFunc(r.d.Status.Conditions, func(c appsv1.DeploymentCondition) bool { return c.Type == t })
}

// pauseConditions says in Progressing that a Deployment is paused, or was.
func (r *rollout) pauseConditions() {
	if !r.hasDeadline() {
		return
	}
	c := r.condition(appsv1.DeploymentProgressing)
	if c != nil && c.Reason == reasonTimedOut {
		return
	}
	paused := c != nil && c.Reason == reasonPaused
	switch {
	case r.d.Spec.Paused && !paused:
		r.setCondition(appsv1.DeploymentProgressing, corev1.ConditionUnknown, reasonPaused, "Deployment is paused")
	case !r.d.Spec.Paused && paused:
		r.setCondition(appsv1.DeploymentProgressing, corev1.ConditionUnknown, reasonResumed, "Deployment is resumed")
	}
}

// counts works out the numbers of the status.
func (r *rollout) counts() appsv1.DeploymentStatus {
	s := appsv1.DeploymentStatus{ObservedGeneration: r.d.Generation, CollisionCount: r.d.Status.CollisionCount}
	terminating, known := int32(0), true
	for _, set := range r.all() {
		s.Replicas += set.Status.Replicas
		s.ReadyReplicas += set.Status.ReadyReplicas
		s.AvailableReplicas += set.Status.AvailableReplicas
		if set.Status.TerminatingReplicas == nil {
			known = false
		} else {
			terminating += *set.Status.TerminatingReplicas
		}
	}
	if known {
		s.TerminatingReplicas = &terminating
	}
	if r.new != nil {
		s.UpdatedReplicas = r.new.Status.Replicas
	}
	s.UnavailableReplicas = max(0, total(r.all())-s.AvailableReplicas)
	return s
}

// complete says that all pods are of the present version and available.
func (r *rollout) complete() bool { return r.done(r.counts()) }

func (r *rollout) done(s appsv1.DeploymentStatus) bool {
	want := *r.d.Spec.Replicas
	return s.UpdatedReplicas == want && s.Replicas == want && s.AvailableReplicas == want && s.ObservedGeneration >= r.d.Generation
}

func (r *rollout) writeStatus(ctx context.Context) error {
	before := r.shared.Status
	now := r.counts()
	if now.AvailableReplicas >= *r.d.Spec.Replicas-r.maxUnavailable() {
		r.setCondition(appsv1.DeploymentAvailable, corev1.ConditionTrue, "MinimumReplicasAvailable", "Deployment has minimum availability.")
	} else {
		r.setCondition(appsv1.DeploymentAvailable, corev1.ConditionFalse, "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
	}
	r.progress(before, now)
	r.failures()
	now.Conditions = r.d.Status.Conditions
	if apiequality.Semantic.DeepEqual(before, now) {
		return nil
	}
	out := r.d
	out.Status = now
	if _, err := client.Deployments.UpdateStatus(ctx, r.client, out); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("write the status of deployment %s: %w", r.key, err)
	}
	return nil
}

// progress keeps the condition Progressing.
func (r *rollout) progress(before, now appsv1.DeploymentStatus) {
	if !r.hasDeadline() {
		r.dropCondition(appsv1.DeploymentProgressing)
		return
	}
	c := r.condition(appsv1.DeploymentProgressing)
	// A finished rollout stays so while only numbers move.
	if now.Replicas == now.UpdatedReplicas && c != nil && c.Reason == reasonAvailable {
		return
	}
	what := fmt.Sprintf("Deployment %q", r.d.Name)
	if r.new != nil {
		what = fmt.Sprintf("ReplicaSet %q", r.new.Name)
	}
	switch {
	case r.done(now):
		r.setCondition(appsv1.DeploymentProgressing, corev1.ConditionTrue, reasonAvailable, what+" has successfully progressed.")
	case progressed(before, now):
		fresh := appsv1.DeploymentCondition{Type: appsv1.DeploymentProgressing, Status: corev1.ConditionTrue, Reason: "ReplicaSetUpdated", Message: what + " is progressing.",
			LastUpdateTime: metav1.Now(), LastTransitionTime: metav1.Now()}
		if c != nil && c.Status == fresh.Status {
			fresh.LastTransitionTime = c.LastTransitionTime
		}
		r.dropCondition(appsv1.DeploymentProgressing)
		r.d.Status.Conditions = append(r.d.Status.Conditions, fresh)
	case r.timedOut(c, now):
		r.setCondition(appsv1.DeploymentProgressing, corev1.ConditionFalse, reasonTimedOut, what+" has timed out progressing.")
	}
}

func progressed(before, now appsv1.DeploymentStatus) bool {
	oldBefore, oldNow := before.Replicas-before.UpdatedReplicas, now.Replicas-now.UpdatedReplicas
	return now.UpdatedReplicas > before.UpdatedReplicas || oldNow < oldBefore || now.ReadyReplicas > before.ReadyReplicas || now.AvailableReplicas > before.AvailableReplicas
}

// timedOut says that nothing has moved for the progress deadline.
func (r *rollout) timedOut(c *appsv1.DeploymentCondition, now appsv1.DeploymentStatus) bool {
	if c == nil || c.Reason == reasonAvailable || c.Reason == reasonPaused {
		return false
	}
	if c.Reason == reasonTimedOut {
		return true
	}
	return !r.done(now) && !time.Now().Before(c.LastUpdateTime.Add(time.Duration(*r.d.Spec.ProgressDeadlineSeconds)*time.Second))
}

// deadline is when to look whether the rollout has timed out (0: never).
func (r *rollout) deadline() time.Duration {
	c := r.condition(appsv1.DeploymentProgressing)
	if !r.hasDeadline() || r.d.Spec.Paused || c == nil || c.Reason == reasonTimedOut || c.Reason == reasonAvailable || r.complete() {
		return 0
	}
	// A second more, since the API keeps whole seconds.
	return max(0, time.Until(c.LastUpdateTime.Add(time.Duration(*r.d.Spec.ProgressDeadlineSeconds)*time.Second))) + time.Second
}

// failures takes over why a set cannot make pods: the new one's before the others'.
func (r *rollout) failures() {
	all := r.all()
	slices.Reverse(all)
	for _, set := range all {
		for _, c := range set.Status.Conditions {
			if c.Type == appsv1.ReplicaSetReplicaFailure {
				r.setCondition(appsv1.DeploymentReplicaFailure, c.Status, c.Reason, c.Message)
				return
			}
		}
	}
	r.dropCondition(appsv1.DeploymentReplicaFailure)
}
