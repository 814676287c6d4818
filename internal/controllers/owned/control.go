package owned

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/proa-dev/proa/internal/client"
)

// Recorder records events (see client/events).
type Recorder interface {
	Eventf(obj client.Object, eventType, reason, format string, args ...any)
}

// Control creates and deletes pods for an owner, and records that with it.
type Control struct {
	Client   client.Interface
	Recorder Recorder
}

// Create creates a pod; the argument is not changed.
func (c Control) Create(ctx context.Context, owner client.Object, pod *corev1.Pod) (*corev1.Pod, error) {
	made, err := client.Pods.Create(ctx, c.Client, pod)
	if err != nil {
		// In a namespace that ends everything fails: nobody learns anything from events.
		if !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			c.Recorder.Eventf(owner, corev1.EventTypeWarning, "FailedCreate", "Error creating: %v", err)
		}
		return nil, err
	}
	c.Recorder.Eventf(owner, corev1.EventTypeNormal, "SuccessfulCreate", "Created pod: %v", made.Name)
	return made, nil
}

// Delete deletes a pod. One that has gone, or given its name to another, is no error.
func (c Control) Delete(ctx context.Context, owner client.Object, pod *corev1.Pod) error {
	uid := pod.UID
	err := client.Pods.Delete(ctx, c.Client, pod.Namespace, pod.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
	switch {
	case apierrors.IsNotFound(err), apierrors.IsConflict(err):
		return nil
	case err != nil:
		c.Recorder.Eventf(owner, corev1.EventTypeWarning, "FailedDelete", "Error deleting: %v", err)
		return fmt.Errorf("delete pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	c.Recorder.Eventf(owner, corev1.EventTypeNormal, "SuccessfulDelete", "Deleted pod: %v", pod.Name)
	return nil
}

// Ready says that a pod's condition Ready is true.
func Ready(pod *corev1.Pod) bool {
	_, ready := ReadySince(pod)
	return ready
}

// Available says that a pod has been ready for minReadySeconds.
func Available(pod *corev1.Pod, minReadySeconds int32, now time.Time) bool {
	since, ready := ReadySince(pod)
	return ready && (minReadySeconds == 0 || !since.IsZero() && !since.Add(time.Duration(minReadySeconds)*time.Second).After(now))
}

// NextAvailable returns how long it takes until one more of the ready pods becomes
// available; false: all of them are.
func NextAvailable(pods []*corev1.Pod, minReadySeconds int32, now time.Time) (wait time.Duration, some bool) {
	if minReadySeconds <= 0 {
		return 0, false
	}
	for _, p := range pods {
		since, ready := ReadySince(p)
		if !ready || since.IsZero() {
			continue
		}
		if d := since.Add(time.Duration(minReadySeconds) * time.Second).Sub(now); d > 0 && (!some || d < wait) {
			wait, some = d, true
		}
	}
	return wait, some
}
