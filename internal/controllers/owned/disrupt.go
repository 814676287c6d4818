package owned

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/proa-dev/proa/internal/client"
)

// Disrupt says on a pod why it is about to be deleted (KEP-3329), and deletes it.
// fail also ends it, for pods that no kubelet will end. force deletes it at once.
func Disrupt(ctx context.Context, c client.Interface, pod *corev1.Pod, reason, message string, fail, force bool) error {
	out := pod.DeepCopy()
	changed := SetCondition(&out.Status, corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: reason, Message: message,
		ObservedGeneration: pod.Generation})
	if fail && out.Status.Phase != corev1.PodSucceeded && out.Status.Phase != corev1.PodFailed {
		out.Status.Phase, changed = corev1.PodFailed, true
	}
	if changed {
		_, err := client.Pods.UpdateStatus(ctx, c, out)
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("say why pod %s/%s is deleted: %w", pod.Namespace, pod.Name, err)
		}
	}
	options := metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &pod.UID}}
	if force {
		options.GracePeriodSeconds = new(int64)
	}
	if err := client.Pods.Delete(ctx, c, pod.Namespace, pod.Name, options); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return nil
}

// SetCondition puts a condition into a pod's status; false when it says the same already.
func SetCondition(s *corev1.PodStatus, c corev1.PodCondition) bool {
	c.LastTransitionTime = metav1.Now()
	for i := range s.Conditions {
		have := &s.Conditions[i]
		if have.Type != c.Type {
			continue
		}
		if have.Status == c.Status {
			if have.Reason == c.Reason && have.Message == c.Message {
				return false
			}
			c.LastTransitionTime = have.LastTransitionTime
		}
		*have = c
		return true
	}
	s.Conditions = append(s.Conditions, c)
	return true
}
