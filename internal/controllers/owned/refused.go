package owned

import (
	"time"

	corev1 "k8s.io/api/core/v1"
)

const (
	refusedLeast = 100 * time.Millisecond
	refusedMost  = 30 * time.Second
	// refusedFor is how long a refusal counts.
	refusedFor = 10 * time.Minute
)

// Refused says that a node refused a pod (no such port free, no room for it):
// it failed before any container of it ran.
func Refused(pod *corev1.Pod) bool {
	if pod.Status.Phase != corev1.PodFailed {
		return false
	}
	for _, list := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
		for i := range list {
			s := &list[i]
			if s.RestartCount > 0 || s.State.Running != nil || s.State.Terminated != nil && !s.State.Terminated.StartedAt.IsZero() {
				return false
			}
		}
	}
	return true
}

// HoldBack returns how long to wait before another pod is made in place of those
// that were refused: a node that refuses at once, and a controller that makes a new
// one at once, would fill the store. It doubles with each refusal.
func HoldBack(pods []*corev1.Pod, now time.Time) time.Duration {
	var newest time.Time
	wait := time.Duration(0)
	for _, p := range pods {
		at := p.CreationTimestamp.Time
		if now.Sub(at) > refusedFor || !Refused(p) {
			continue
		}
		if at.After(newest) {
			newest = at
		}
		switch {
		case wait == 0:
			wait = refusedLeast
		case wait < refusedMost:
			wait = min(2*wait, refusedMost)
		}
	}
	if wait == 0 {
		return 0
	}
	return max(0, newest.Add(wait).Sub(now))
}
