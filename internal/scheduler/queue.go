package scheduler

import (
	"container/heap"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Back-off of a pod that was refused, as kube-scheduler's defaults.
const (
	firstBackoff = time.Second
	maxBackoff   = 10 * time.Second
	// maxParked is how long a pod waits at most for an event that would help it: a
	// net under the events.
	maxParked = 5 * time.Minute
)

// queue holds the pods to be scheduled: ready ones by priority and age, those
// that back off by time, and parked ones that wait for the cluster to change.
type queue struct {
	items map[types.UID]*item
	ready readyHeap
	later laterHeap // backing off or parked, by when they are tried again
	order uint64
}

type item struct {
	pod      *corev1.Pod
	order    uint64 // arrival, breaks ties of priority
	attempts int
	refused  time.Time // the last refusal
	at       time.Time // when it is ready again
	parked   bool
	waits    []reason
	place    int // in its heap
	where    where
}

type where uint8

const (
	nowhere where = iota
	inReady
	inLater
)

func newQueue() *queue { return &queue{items: map[types.UID]*item{}} }

// add takes a pod in, or its newer state. It reports whether there is new work.
func (q *queue) add(pod *corev1.Pod, now time.Time) bool {
	it, ok := q.items[pod.UID]
	if !ok {
		q.order++
		it = &item{pod: pod, order: q.order}
		q.items[pod.UID] = it
		q.push(it, now)
		return true
	}
	old := it.pod
	it.pod = pod
	// A change of the pod's own spec or labels may make it fit; one of its status
	// (such as our condition) does not.
	if it.parked && (old.Generation != pod.Generation || !sameMap(old.Labels, pod.Labels) || len(old.Spec.SchedulingGates) != len(pod.Spec.SchedulingGates)) {
		q.unpark(it, now)
		return true
	}
	if it.where == inReady {
		heap.Fix(&q.ready, it.place)
	}
	return false
}

func (q *queue) remove(uid types.UID) {
	if it, ok := q.items[uid]; ok {
		q.take(it)
		delete(q.items, uid)
	}
}

func (q *queue) take(it *item) {
	switch it.where {
	case inReady:
		heap.Remove(&q.ready, it.place)
	case inLater:
		heap.Remove(&q.later, it.place)
	}
	it.where = nowhere
}

func (q *queue) push(it *item, now time.Time) {
	q.take(it)
	if it.at.After(now) {
		it.where = inLater
		heap.Push(&q.later, it)
		return
	}
	it.parked, it.where = false, inReady
	heap.Push(&q.ready, it)
}

// pop returns the next pod, or how long until there may be one.
func (q *queue) pop(now time.Time) (*corev1.Pod, time.Duration) {
	for len(q.later) > 0 && !q.later[0].at.After(now) {
		q.push(q.later[0], now)
	}
	if len(q.ready) > 0 {
		it := heap.Pop(&q.ready).(*item)
		it.where = nowhere
		return it.pod, 0
	}
	if len(q.later) > 0 {
		return nil, q.later[0].at.Sub(now)
	}
	return nil, idle
}

// park puts a refused pod aside until the cluster changes.
func (q *queue) park(pod *corev1.Pod, waits []reason, now time.Time) {
	it, ok := q.items[pod.UID]
	if !ok {
		return // deleted meanwhile
	}
	it.attempts++
	it.refused, it.waits = now, waits
	it.parked = true
	it.at = now.Add(maxParked)
	if slices.Contains(waits, reasonBinding) {
		it.parked, it.at = false, now.Add(backoff(it.attempts))
	}
	q.push(it, now)
}

func backoff(attempts int) time.Duration {
	d := firstBackoff
	for i := 1; i < attempts && d < maxBackoff; i++ {
		d *= 2
	}
	return min(d, maxBackoff)
}

// unpark makes a parked pod ready once its back-off has ended.
func (q *queue) unpark(it *item, now time.Time) {
	it.parked = false
	it.at = it.refused.Add(backoff(it.attempts))
	q.push(it, now)
}

// retryAll tries every parked pod again.
func (q *queue) retryAll(now time.Time) { q.retryIf(now, func(*item) bool { return true }) }

// retryFor tries the parked pods that wait for a reason, and reports whether there are any.
func (q *queue) retryFor(why reason, now time.Time) bool {
	return q.retryIf(now, func(it *item) bool { return slices.Contains(it.waits, why) })
}

func (q *queue) retryIf(now time.Time, want func(*item) bool) bool {
	var list []*item
	for _, it := range q.later {
		if it.parked && want(it) {
			list = append(list, it)
		}
	}
	for _, it := range list {
		q.unpark(it, now)
	}
	return len(list) > 0
}

// waiting reports whether a parked pod waits for a reason.
func (q *queue) waiting(why reason) bool {
	return slices.ContainsFunc(q.later, func(it *item) bool { return it.parked && slices.Contains(it.waits, why) })
}

type readyHeap []*item

func (h readyHeap) Len() int { return len(h) }
func (h readyHeap) Less(i, j int) bool {
	if a, b := priorityOf(h[i].pod), priorityOf(h[j].pod); a != b {
		return a > b
	}
	return h[i].order < h[j].order
}
func (h readyHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].place, h[j].place = i, j
}
func (h *readyHeap) Push(x any) {
	it := x.(*item)
	it.place = len(*h)
	*h = append(*h, it)
}
func (h *readyHeap) Pop() any { return popLast((*[]*item)(h)) }

type laterHeap []*item

func (h laterHeap) Len() int           { return len(h) }
func (h laterHeap) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h laterHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].place, h[j].place = i, j
}
func (h *laterHeap) Push(x any) {
	it := x.(*item)
	it.place = len(*h)
	*h = append(*h, it)
}
func (h *laterHeap) Pop() any { return popLast((*[]*item)(h)) }

func popLast(h *[]*item) *item {
	n := len(*h) - 1
	it := (*h)[n]
	(*h)[n] = nil
	*h = (*h)[:n]
	return it
}
