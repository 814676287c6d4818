package replicaset

import (
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/proa-dev/proa/internal/controllers/owned"
)

// status works out what there is of a set. failed is the error of the last
// creates or deletes, which were missing in number.
func (x *Controller) status(set *appsv1.ReplicaSet, pods []*corev1.Pod, terminating int32, failed error, missing int) appsv1.ReplicaSetStatus {
	s := appsv1.ReplicaSetStatus{Replicas: int32(len(pods)), ObservedGeneration: set.Generation, Conditions: slices.Clone(set.Status.Conditions)}
	if x.source.gvk.Kind == "ReplicaSet" {
		s.TerminatingReplicas = &terminating
	}
	template := labels.Set(set.Spec.Template.Labels).AsSelectorPreValidated()
	now := time.Now()
	for _, p := range pods {
		if template.Matches(labels.Set(p.Labels)) {
			s.FullyLabeledReplicas++
		}
		if !owned.Ready(p) {
			continue
		}
		s.ReadyReplicas++
		if owned.Available(p, set.Spec.MinReadySeconds, now) {
			s.AvailableReplicas++
		}
	}
	at := slices.IndexFunc(s.Conditions, func(c appsv1.ReplicaSetCondition) bool { return c.Type == appsv1.ReplicaSetReplicaFailure })
	switch {
	case failed == nil && at >= 0:
		s.Conditions = slices.Delete(s.Conditions, at, at+1)
	case failed != nil && at < 0:
		reason := "FailedCreate"
		if missing < 0 {
			reason = "FailedDelete"
		}
		s.Conditions = append(s.Conditions, appsv1.ReplicaSetCondition{Type: appsv1.ReplicaSetReplicaFailure, Status: corev1.ConditionTrue,
			LastTransitionTime: metav1.NewTime(now), Reason: reason, Message: failed.Error()})
	}
	return s
}
