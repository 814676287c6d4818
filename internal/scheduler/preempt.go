package scheduler

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/proa-dev/proa/internal/client"
)

// preemption is which pods go so that another fits on a node.
type preemption struct {
	node       int
	victims    []*placed // the most important first
	violations int       // of PodDisruptionBudgets
}

// mayPreempt says why a pod may not have others deleted; "": it may.
func (s *state) mayPreempt(pod *corev1.Pod) string {
	if p := pod.Spec.PreemptionPolicy; p != nil && *p == corev1.PreemptNever {
		return "not eligible due to preemptionPolicy=Never."
	}
	if r, ok := s.nominated[pod.UID]; ok && r.node >= 0 {
		for _, p := range s.nodes[r.node].pods {
			if p.pod.DeletionTimestamp != nil && priorityOf(p.pod) < priorityOf(pod) {
				return "not eligible due to a terminating pod on the nominated node."
			}
		}
	}
	return ""
}

// candidates bounds how many nodes are tried: a tenth, but at least a hundred.
func candidates(nodes int) int { return max(100, nodes/10) }

// preempt looks for the node where a pod that was refused does the least harm by
// taking the place of pods of lower priority; nil: there is none. start is where
// the search begins; why counts what is in the way also without those pods.
func (s *state) preempt(pod *corev1.Pod, cl *class, start int) (best *preemption, why map[reason]int) {
	why = map[reason]int{}
	budgets := s.budgets.List("", nil)
	tried := 0
	for k := range s.nodes {
		i := (start + k) % len(s.nodes)
		n := &s.nodes[i]
		if n.obj == nil || !hasLower(n, pod) || slices.ContainsFunc(cl.verdict[i].reasons, func(r reason) bool { return !r.resolvable() }) {
			continue
		}
		p, still := s.victims(pod, cl.shape, i, budgets)
		if p != nil && (best == nil || p.better(best)) {
			best = p
		}
		for _, r := range still {
			why[r]++
		}
		if tried++; tried >= candidates(s.live) {
			break
		}
	}
	return best, why
}

// victims works out who has to go from a node, or says why it would not help.
func (s *state) victims(pod *corev1.Pod, sh *shape, i int, budgets []*policyv1.PodDisruptionBudget) (*preemption, []reason) {
	n := &s.nodes[i]
	var lower []*placed
	for _, p := range n.pods {
		if priorityOf(p.pod) < priorityOf(pod) {
			lower = append(lower, p)
		}
	}
	away := func(p *placed) { s.take(p, -1); p.node = -1 }
	back := func(p *placed) { p.node = i; s.take(p, 1) }
	refuses := func() []reason {
		if why := sh.filter(n); len(why) > 0 {
			return why
		}
		if rules := topologyOf(s, pod); rules != nil {
			if why, _ := rules.check(s, i); why != "" {
				return []reason{why}
			}
		}
		return nil
	}
	for _, p := range lower {
		away(p)
	}
	out := &preemption{node: i}
	why := refuses()
	if len(why) == 0 {
		// Those that can stay do: first those that a budget protects, then the most important.
		slices.SortFunc(lower, moreImportant)
		protected, others := split(lower, budgets)
		for _, list := range [][]*placed{protected, others} {
			for _, p := range list {
				if back(p); len(refuses()) == 0 {
					continue
				}
				away(p)
				out.victims = append(out.victims, p)
				if len(protected) > 0 && &list[0] == &protected[0] {
					out.violations++
				}
			}
		}
		slices.SortFunc(out.victims, moreImportant)
	}
	for _, p := range lower {
		if p.node < 0 {
			back(p)
		}
	}
	if len(out.victims) == 0 {
		return nil, why
	}
	return out, nil
}

// moreImportant orders pods by priority, then by how long they run.
func moreImportant(a, b *placed) int {
	if c := cmp.Compare(priorityOf(b.pod), priorityOf(a.pod)); c != 0 {
		return c
	}
	return startOf(a.pod).Compare(startOf(b.pod))
}

func startOf(p *corev1.Pod) time.Time {
	if p.Status.StartTime != nil {
		return p.Status.StartTime.Time
	}
	return p.CreationTimestamp.Time
}

// split tells the pods whose deletion would go against a PodDisruptionBudget.
func split(pods []*placed, budgets []*policyv1.PodDisruptionBudget) (protected, others []*placed) {
	left := map[types.UID]int32{}
	for _, b := range budgets {
		left[b.UID] = b.Status.DisruptionsAllowed
	}
	for _, p := range pods {
		violates := false
		for _, b := range budgets {
			if b.Namespace != p.pod.Namespace || len(p.pod.Labels) == 0 {
				continue
			}
			selector, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
			if err != nil || selector.Empty() || !selector.Matches(labels.Set(p.pod.Labels)) {
				continue
			}
			if _, counted := b.Status.DisruptedPods[p.pod.Name]; counted {
				continue
			}
			left[b.UID]--
			violates = violates || left[b.UID] < 0
		}
		if violates {
			protected = append(protected, p)
		} else {
			others = append(others, p)
		}
	}
	return protected, others
}

// better compares two preemptions as kube-scheduler does: fewer violated budgets, a
// lower highest priority, a lower sum of priorities, fewer pods, and then the one
// whose most important pods have run the shortest.
func (p *preemption) better(q *preemption) bool {
	top := func(x *preemption) int32 { return priorityOf(x.victims[0].pod) }
	sum := func(x *preemption) (n int64) {
		for _, v := range x.victims {
			n += int64(priorityOf(v.pod)) + math.MaxInt32 + 1
		}
		return n
	}
	earliest := func(x *preemption) (t time.Time) {
		for _, v := range x.victims {
			if s := startOf(v.pod); priorityOf(v.pod) == top(x) && (t.IsZero() || s.Before(t)) {
				t = s
			}
		}
		return t
	}
	if c := cmp.Or(cmp.Compare(p.violations, q.violations), cmp.Compare(top(p), top(q)), cmp.Compare(sum(p), sum(q)), cmp.Compare(len(p.victims), len(q.victims))); c != 0 {
		return c < 0
	}
	return earliest(p).After(earliest(q))
}

// nominate keeps room on a node for a pod whose place is being made; "": no more.
func (s *state) nominate(pod *corev1.Pod, name string) {
	if r, ok := s.nominated[pod.UID]; ok {
		s.reserve(r, -1)
		delete(s.nominated, pod.UID)
	}
	i, ok := s.index[name]
	if name == "" || !ok {
		return
	}
	r := &placed{pod: pod, node: i, want: requestsOf(pod)}
	s.nominated[pod.UID] = r
	s.reserve(r, 1)
}

// reserve adds (1) or takes away (-1) room that is kept.
func (s *state) reserve(r *placed, sign int64) {
	if r.node < 0 || s.nodes[r.node].obj == nil {
		return
	}
	n := &s.nodes[r.node]
	n.used.add(&r.want, sign)
	for _, hp := range hostPorts(r.pod) {
		count(n.ports, hp, int(sign))
	}
	s.changed(r.node)
}

// lift frees for a moment what is kept for the pod itself and for less important
// ones; the returned function takes it back.
func (s *state) lift(pod *corev1.Pod) (restore func()) {
	if len(s.nominated) == 0 {
		return func() {}
	}
	var lifted []types.UID
	for uid, r := range s.nominated {
		if uid == pod.UID || priorityOf(r.pod) < priorityOf(pod) {
			s.reserve(r, -1)
			lifted = append(lifted, uid)
		}
	}
	return func() {
		for _, uid := range lifted {
			if r, ok := s.nominated[uid]; ok {
				s.reserve(r, 1)
			}
		}
	}
}

// lesser are the less important pods that wait for room on a node.
func (s *state) lesser(pod *corev1.Pod, node int) (out []*corev1.Pod) {
	for _, r := range s.nominated {
		if r.node == node && priorityOf(r.pod) < priorityOf(pod) {
			out = append(out, r.pod)
		}
	}
	return out
}

// makeRoom writes down where a pod will go, and deletes those in its place.
func (s *Scheduler) makeRoom(ctx context.Context, pod *corev1.Pod, node string, victims, lesser []*corev1.Pod, wg *sync.WaitGroup) {
	wg.Go(func() {
		err := s.nominated(ctx, pod, node)
		for _, p := range lesser {
			if err == nil {
				err = s.nominated(ctx, p, "")
			}
		}
		for _, v := range victims {
			if err == nil {
				err = s.evict(ctx, v, pod, node)
			}
		}
		if err == nil || ctx.Err() != nil {
			return
		}
		s.log.Warn("preempt pods", "kind", "Pod", "namespace", pod.Namespace, "name", pod.Name, "node", node, "err", err)
		s.mu.Lock()
		s.state.nominate(pod, "")
		s.queue.park(pod, []reason{reasonBinding}, time.Now()) // tried again after its back-off
		s.mu.Unlock()
		s.signal()
	})
}

// nominated writes status.nominatedNodeName.
func (s *Scheduler) nominated(ctx context.Context, pod *corev1.Pod, node string) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": pod.UID}, "status": map[string]any{"nominatedNodeName": node}})
	if err == nil {
		_, err = client.Pods.Patch(ctx, s.cfg.Client, pod.Namespace, pod.Name, "status", types.StrategicMergePatchType, patch)
	}
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("nominate node %q for pod %s/%s: %w", node, pod.Namespace, pod.Name, err)
	}
	return nil
}

// evict deletes a pod in favour of another, and says so in its status (KEP-3329).
func (s *Scheduler) evict(ctx context.Context, victim, preemptor *corev1.Pod, node string) error {
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": victim.UID},
		"status": map[string]any{"conditions": []corev1.PodCondition{{
			Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: corev1.PodReasonPreemptionByScheduler,
			Message: s.cfg.Name + ": preempting to accommodate a higher priority pod", LastTransitionTime: metav1.Now(), ObservedGeneration: victim.Generation,
		}}},
	})
	if err == nil {
		_, err = client.Pods.Patch(ctx, s.cfg.Client, victim.Namespace, victim.Name, "status", types.StrategicMergePatchType, patch)
	}
	if err == nil {
		err = client.Pods.Delete(ctx, s.cfg.Client, victim.Namespace, victim.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &victim.UID}})
	}
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("delete pod %s/%s: %w", victim.Namespace, victim.Name, err)
	}
	s.cfg.Recorder.Eventf(victim, corev1.EventTypeNormal, "Preempted", "Preempted by pod %v on node %v", preemptor.UID, node)
	return nil
}
