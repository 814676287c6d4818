package replicaset

import (
	"cmp"
	"math"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/proa-dev/proa/internal/controllers/owned"
)

// doom picks the pods to delete: those whose loss costs least first. The order is
// that of the API's documentation: not assigned, not begun, not ready, of lower
// deletion cost, with more siblings on the node, ready for less long (by orders of
// magnitude), restarted more, younger.
func doom(pods, related []*corev1.Pod, count int) []*corev1.Pod {
	if count >= len(pods) {
		return pods
	}
	onNode := map[string]int{}
	for _, p := range related {
		if p.Spec.NodeName != "" && owned.Active(p) {
			onNode[p.Spec.NodeName]++
		}
	}
	now := time.Now()
	sorted := slices.Clone(pods)
	slices.SortStableFunc(sorted, func(a, b *corev1.Pod) int {
		sinceA, readyA := owned.ReadySince(a)
		sinceB, readyB := owned.ReadySince(b)
		if c := cmp.Or(
			yesFirst(a.Spec.NodeName == "", b.Spec.NodeName == ""),
			cmp.Compare(phase(a), phase(b)),
			yesFirst(!readyA, !readyB),
			cmp.Compare(cost(a), cost(b)),
			cmp.Compare(onNode[b.Spec.NodeName], onNode[a.Spec.NodeName]),
		); c != 0 {
			return c
		}
		if readyA && readyB {
			if c := cmp.Compare(magnitude(now.Sub(sinceA.Time)), magnitude(now.Sub(sinceB.Time))); c != 0 {
				return c
			}
		}
		regularA, sidecarA := restarts(a)
		regularB, sidecarB := restarts(b)
		if c := cmp.Or(cmp.Compare(regularB, regularA), cmp.Compare(sidecarB, sidecarA)); c != 0 {
			return c
		}
		if c := cmp.Compare(magnitude(now.Sub(a.CreationTimestamp.Time)), magnitude(now.Sub(b.CreationTimestamp.Time))); c != 0 {
			return c
		}
		return cmp.Compare(a.UID, b.UID)
	})
	return sorted[:count]
}

func yesFirst(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

func phase(p *corev1.Pod) int {
	switch p.Status.Phase {
	case corev1.PodRunning:
		return 2
	case corev1.PodUnknown:
		return 1
	}
	return 0
}

func cost(p *corev1.Pod) int64 {
	text := p.Annotations[corev1.PodDeletionCost]
	n, err := strconv.ParseInt(text, 10, 32)
	// A plus sign and leading zeros make it invalid.
	if err != nil || text[0] == '+' || text[0] == '0' && text != "0" {
		return 0
	}
	return n
}

// magnitude groups ages by powers of two: pods of about the same age are alike.
func magnitude(d time.Duration) int {
	if d <= 0 {
		return -1
	}
	return int(math.Log2(float64(d)))
}

func restarts(p *corev1.Pod) (regular, sidecar int32) {
	for _, c := range p.Status.ContainerStatuses {
		regular = max(regular, c.RestartCount)
	}
	for _, c := range p.Status.InitContainerStatuses {
		if slices.ContainsFunc(p.Spec.InitContainers, func(i corev1.Container) bool {
			return i.Name == c.Name && i.RestartPolicy != nil && *i.RestartPolicy == corev1.ContainerRestartPolicyAlways
		}) {
			sidecar = max(sidecar, c.RestartCount)
		}
	}
	return regular, sidecar
}
