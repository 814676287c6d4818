package daemonset

import (
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/proa-dev/proa/internal/controllers/owned"
	"github.com/proa-dev/proa/internal/controllers/revision"
)

// updated says that a pod is of the present version.
func (p *pass) updated(pod *corev1.Pod) bool {
	if g, ok := generation(p.set); ok && pod.Labels[generationLabel] == g {
		return true
	}
	return p.hash != "" && pod.Labels[revision.PodLabel] == p.hash
}

// versions returns the pod of the present version on a node and that of an older
// one. With more than one of either, ok is false: manage has to prune first.
func (p *pass) versions(at *place) (fresh, old *corev1.Pod, ok bool) {
	for _, pod := range at.pods {
		switch {
		case pod.DeletionTimestamp != nil:
		case p.updated(pod) && fresh == nil:
			fresh = pod
		case !p.updated(pod) && old == nil:
			old = pod
		default:
			return nil, nil, false
		}
	}
	return fresh, old, true
}

// update works out the next step of a rolling update. It comes after manage had
// nothing to do: there is at most one pod on a node, two when surging.
func (p *pass) update(now time.Time) (create []string, remove []*corev1.Pod) {
	desired := 0
	for i := range p.place {
		if p.place[i].run {
			desired++
		}
	}
	surge, unavailable := surgeOf(p.set, desired), unavailableOf(p.set, desired)
	if desired > 0 && surge == 0 && unavailable == 0 {
		unavailable = 1 // or nothing could ever move
	}
	if surge == 0 {
		return nil, p.replace(unavailable, now)
	}
	return p.surge(surge, desired, now)
}

// replace deletes old pods: those that are not available in any case, and as many
// others as may be unavailable. manage makes the new ones.
func (p *pass) replace(most int, now time.Time) (remove []*corev1.Pod) {
	missing := 0
	var candidates []*corev1.Pod
	for i := range p.place {
		at := &p.place[i]
		if len(at.pods) == 0 && !at.run {
			continue
		}
		fresh, old, ok := p.versions(at)
		switch {
		case !ok, (fresh == nil) == (old == nil): // manage is at work on it
			missing++
		case fresh != nil:
			if !p.available(fresh, now) {
				missing++
			}
		case !p.available(old, now):
			remove = append(remove, old)
			missing++
		default:
			candidates = append(candidates, old)
		}
	}
	return append(remove, candidates[:max(0, min(most-missing, len(candidates)))]...)
}

// surge makes new pods beside old ones, which go when the new one is available.
func (p *pass) surge(most, desired int, now time.Time) (create []string, remove []*corev1.Pod) {
	surging, available := 0, 0
	var candidates []string
	var leaving []*corev1.Pod // good pods of nodes that are to have none any more
	for i := range p.place {
		at := &p.place[i]
		fresh, old, ok := p.versions(at)
		if !ok {
			surging++
			continue
		}
		oldAvailable := old != nil && p.available(old, now)
		freshAvailable := fresh != nil && p.available(fresh, now)
		if oldAvailable || old == nil && freshAvailable {
			available++
		}
		switch {
		case old == nil:
		case fresh != nil && freshAvailable:
			remove = append(remove, old)
		case fresh != nil:
			surging++
		case !at.run && !oldAvailable:
			remove = append(remove, old)
		case !at.run:
			leaving = append(leaving, old)
		case !oldAvailable:
			create = append(create, at.name)
		default:
			candidates = append(candidates, at.name)
		}
	}
	remove = append(remove, leaving[:max(0, min(available-desired, len(leaving)))]...)
	return append(create, candidates[:max(0, min(most-surging, len(candidates)))]...), remove
}

func (p *pass) available(pod *corev1.Pod, now time.Time) bool {
	return owned.Available(pod, p.set.Spec.MinReadySeconds, now)
}
