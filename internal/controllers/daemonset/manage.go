package daemonset

import (
	"cmp"
	"slices"
	"strings"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/proa-dev/proa/internal/controllers/owned"
)

// place is a node with the set's pods on it or for it, the oldest first.
type place struct {
	name      string
	there     bool // the node exists
	run, stay bool // see fit.on
	pods      []*corev1.Pod
}

// places gathers what is on each node. A pod that has ended and is being deleted
// is as good as gone.
func (p *pass) places() {
	p.fit = newFit(p.set)
	at := map[string]int{}
	nodes := p.nodes.List("", nil)
	p.place = make([]place, 0, len(nodes))
	for _, n := range nodes {
		run, stay := p.fit.on(n)
		at[n.Name] = len(p.place)
		p.place = append(p.place, place{name: n.Name, there: true, run: run, stay: stay})
	}
	for _, pod := range p.pods {
		if pod.DeletionTimestamp != nil && ended(pod) {
			continue
		}
		name := target(pod)
		if name == "" {
			continue
		}
		i, ok := at[name]
		if !ok {
			i = len(p.place)
			at[name] = i
			p.place = append(p.place, place{name: name})
		}
		p.place[i].pods = append(p.place[i].pods, pod)
	}
	for i := range p.place {
		slices.SortFunc(p.place[i].pods, func(a, b *corev1.Pod) int {
			if x, y := a.Spec.NodeName == "", b.Spec.NodeName == ""; x != y {
				if y {
					return -1
				}
				return 1
			}
			return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), strings.Compare(a.Name, b.Name))
		})
	}
}

func ended(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded
}

// manage works out which nodes lack a pod and which pods are too many.
func (p *pass) manage(now time.Time) (create []string, remove []*corev1.Pod) {
	surge := surgeOf(p.set, 1) > 0
	for i := range p.place {
		at := &p.place[i]
		switch {
		case !at.there:
			// The scheduler will never bind these, and no kubelet will end them.
			for _, pod := range at.pods {
				if pod.Spec.NodeName == "" && pod.DeletionTimestamp == nil {
					remove = append(remove, pod)
				}
			}
		case at.run && len(at.pods) == 0:
			create = append(create, at.name)
		case !at.stay:
			for _, pod := range at.pods {
				if pod.DeletionTimestamp == nil {
					remove = append(remove, pod)
				}
			}
		default:
			running, dead := p.sort(at, now)
			remove = append(remove, dead...)
			switch {
			case !surge && len(running) > 1:
				remove = append(remove, running[1:]...)
			case surge && len(running) == 0 && at.run:
				create = append(create, at.name)
			case surge:
				remove = append(remove, p.surplus(running, now)...)
			}
		}
	}
	return create, remove
}

// sort tells the pods of a node that run from those that have ended, which are
// replaced: failed ones not faster than their back-off allows, since a kubelet
// that refuses a pod would refuse the next one too.
func (p *pass) sort(at *place, now time.Time) (running, dead []*corev1.Pod) {
	for _, pod := range at.pods {
		switch {
		case pod.DeletionTimestamp != nil:
		case pod.Status.Phase == corev1.PodFailed:
			if wait := p.failures.wait(p.key, p.set, at.name, now); wait > 0 {
				p.loop.After(p.key, wait)
				continue
			}
			p.events.Eventf(p.set, corev1.EventTypeWarning, "FailedDaemonPod", "Found failed daemon pod %s/%s on node %s, will try to kill it", pod.Namespace, pod.Name, at.name)
			dead = append(dead, pod)
		case pod.Status.Phase == corev1.PodSucceeded:
			p.events.Eventf(p.set, corev1.EventTypeNormal, "SucceededDaemonPod", "Found succeeded daemon pod %s/%s on node %s, will try to delete it", pod.Namespace, pod.Name, at.name)
			dead = append(dead, pod)
		default:
			running = append(running, pod)
		}
	}
	return running, dead
}

// surplus returns what goes of a node's running pods when surging: one pod of the
// present version and one of another may be there, until the old one is no longer
// ready or the new one is available.
func (p *pass) surplus(running []*corev1.Pod, now time.Time) (remove []*corev1.Pod) {
	if len(running) <= 1 {
		return nil
	}
	var fresh, old *corev1.Pod
	for _, pod := range running {
		switch current := pod.Labels[appsv1.ControllerRevisionHashLabelKey] == p.hash; {
		case current && fresh == nil:
			fresh = pod
		case !current && old == nil:
			old = pod
		default:
			remove = append(remove, pod)
		}
	}
	if fresh != nil && old != nil && (!owned.Ready(old) || owned.Available(fresh, p.set.Spec.MinReadySeconds, now)) {
		remove = append(remove, old)
	}
	return remove
}

func surgeOf(set *appsv1.DaemonSet, nodes int) int {
	r := set.Spec.UpdateStrategy.RollingUpdate
	if set.Spec.UpdateStrategy.Type != appsv1.RollingUpdateDaemonSetStrategyType || r == nil {
		return 0
	}
	return share(r.MaxSurge, nodes)
}

func unavailableOf(set *appsv1.DaemonSet, nodes int) int {
	r := set.Spec.UpdateStrategy.RollingUpdate
	if set.Spec.UpdateStrategy.Type != appsv1.RollingUpdateDaemonSetStrategyType || r == nil {
		return 0
	}
	return share(r.MaxUnavailable, nodes)
}

// share resolves a percentage, rounded up.
func share(v *intstr.IntOrString, of int) int {
	if v == nil {
		return 0
	}
	n, err := intstr.GetScaledValueFromIntOrPercent(v, of, true)
	if err != nil {
		return 0
	}
	return n
}

// failures remembers how often the pods of a set have failed on a node: the next
// one waits for 1 s, 2 s, 4 s, … up to 15 minutes.
type failures struct {
	mu   sync.Mutex
	sets map[key]map[failure]backoff
}

type failure struct {
	generation int64
	node       string
}

type backoff struct {
	delay time.Duration
	last  time.Time
}

const (
	failureLeast = time.Second
	failureMost  = 15 * time.Minute
)

// wait returns how long a failed pod is left alone still; 0: it goes now, and the
// next one will wait for longer.
func (f *failures) wait(k key, set *appsv1.DaemonSet, node string, now time.Time) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.sets == nil {
		f.sets = map[key]map[failure]backoff{}
	}
	m := f.sets[k]
	if m == nil {
		m = map[failure]backoff{}
		f.sets[k] = m
	}
	id := failure{set.Status.ObservedGeneration, node}
	b, ok := m[id]
	if ok {
		if left := b.last.Add(b.delay).Sub(now); left > 0 {
			return left
		}
	}
	for other, b := range m { // what has been quiet for long starts anew
		if now.Sub(b.last) > 2*failureMost || other.generation != id.generation {
			delete(m, other)
		}
	}
	delay := failureLeast
	if ok && now.Sub(b.last) <= 2*failureMost {
		delay = min(2*b.delay, failureMost)
	}
	m[id] = backoff{delay, now}
	return 0
}

func (f *failures) forget(k key) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.sets, k)
}
