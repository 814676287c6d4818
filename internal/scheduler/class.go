package scheduler

import (
	"crypto/sha256"
	"encoding/json"
	"math/rand/v2"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// maxClasses bounds how many decisions are kept; the oldest used goes first.
const maxClasses = 256

// classes keeps, for each kind of pod, what was decided for every node.
type classes struct {
	byKey map[classKey]*class
	clock uint64
	rand  *rand.Rand
}

type classKey [sha256.Size]byte

// class is the verdict on every node for pods that are alike. seen is how far it
// has read the state's change log.
type class struct {
	shape   *shape
	verdict []verdict
	seen    int
	used    uint64
}

type verdict struct {
	score   int64 // valid when fits
	fits    bool
	reasons []reason
}

func newClasses(seed uint64) *classes {
	return &classes{byKey: map[classKey]*class{}, rand: rand.New(rand.NewPCG(seed, seed^0x9e3779b97f4a7c15))}
}

// keyOf hashes what the class rules look at.
func keyOf(pod *corev1.Pod) (classKey, error) {
	type container struct {
		Image     string
		Resources corev1.ResourceRequirements
		Ports     []corev1.ContainerPort
		Policy    *corev1.ContainerRestartPolicy
	}
	collect := func(list []corev1.Container) []container {
		out := make([]container, len(list))
		for i := range list {
			out[i] = container{list[i].Image, list[i].Resources, list[i].Ports, list[i].RestartPolicy}
		}
		return out
	}
	var affinity *corev1.NodeAffinity
	if pod.Spec.Affinity != nil {
		affinity = pod.Spec.Affinity.NodeAffinity
	}
	b, err := json.Marshal(struct {
		Owner       types.UID
		Selector    map[string]string
		Affinity    *corev1.NodeAffinity
		Tolerations []corev1.Toleration
		Init, Main  []container
		Resources   *corev1.ResourceRequirements
		Overhead    corev1.ResourceList
	}{ownerOf(pod), pod.Spec.NodeSelector, affinity, pod.Spec.Tolerations,
		collect(pod.Spec.InitContainers), collect(pod.Spec.Containers), pod.Spec.Resources, pod.Spec.Overhead})
	if err != nil {
		return classKey{}, err
	}
	return sha256.Sum256(b), nil
}

// place returns the best node for a pod, or why there is none.
func (c *classes) place(s *state, pod *corev1.Pod) (string, *refusal) {
	cl, err := c.class(pod)
	if err != nil {
		return "", &refusal{text: "cannot read the pod: " + err.Error()}
	}
	cl.refresh(s)
	rules := topologyOf(s, pod)
	best, ties := -1, 0
	var bestScore int64
	var extra map[int]reason // nodes that fit but for the rules between pods
	for i := range cl.verdict {
		v := &cl.verdict[i]
		if !v.fits {
			continue
		}
		score := v.score
		if rules != nil {
			why, bonus := rules.check(s, i)
			if why != "" {
				if extra == nil {
					extra = map[int]reason{}
				}
				extra[i] = why
				continue
			}
			score += bonus
		}
		switch {
		case best < 0 || score > bestScore:
			best, bestScore, ties = i, score, 1
		case score == bestScore:
			// Reservoir sampling: each of the equal nodes is as likely.
			if ties++; c.rand.IntN(ties) == 0 {
				best = i
			}
		}
	}
	if best >= 0 {
		return s.nodes[best].name, nil
	}
	return "", cl.explain(s, pod, extra)
}

func (c *classes) class(pod *corev1.Pod) (*class, error) {
	key, err := keyOf(pod)
	if err != nil {
		return nil, err
	}
	c.clock++
	cl, ok := c.byKey[key]
	if !ok {
		if len(c.byKey) >= maxClasses {
			c.evict()
		}
		cl = &class{shape: shapeOf(pod), seen: -1}
		c.byKey[key] = cl
	}
	cl.used = c.clock
	return cl, nil
}

func (c *classes) evict() {
	var oldest classKey
	age := uint64(0)
	for k, cl := range c.byKey {
		if a := c.clock - cl.used; a >= age {
			oldest, age = k, a
		}
	}
	delete(c.byKey, oldest)
}

// refresh judges again the nodes that changed since the last look.
func (cl *class) refresh(s *state) {
	end := s.base + len(s.log)
	if cl.seen < s.base || end-cl.seen >= len(s.nodes) {
		cl.verdict = make([]verdict, len(s.nodes))
		for i := range s.nodes {
			cl.judge(s, i)
		}
	} else {
		for len(cl.verdict) < len(s.nodes) {
			cl.verdict = append(cl.verdict, verdict{})
		}
		for _, i := range s.log[cl.seen-s.base:] {
			cl.judge(s, i)
		}
	}
	cl.seen = end
}

func (cl *class) judge(s *state, i int) {
	n := &s.nodes[i]
	if n.obj == nil {
		cl.verdict[i] = verdict{}
		return
	}
	if why := cl.shape.filter(n); len(why) > 0 {
		cl.verdict[i] = verdict{reasons: why}
		return
	}
	cl.verdict[i] = verdict{fits: true, score: cl.shape.score(n)}
}

func (cl *class) explain(s *state, pod *corev1.Pod, extra map[int]reason) *refusal {
	r := &refusal{total: s.live, count: map[reason]int{}}
	topology := len(extra) > 0
	for i := range cl.verdict {
		if s.nodes[i].obj == nil {
			continue
		}
		why := cl.verdict[i].reasons
		if x, ok := extra[i]; ok {
			why = []reason{x}
		}
		helps := len(why) > 0
		for _, w := range why {
			r.count[w]++
			helps = helps && w.resolvable()
		}
		switch {
		case !helps:
			r.unhelpful++
		case !hasLower(&s.nodes[i], pod):
			r.noVictims++
		}
	}
	if topology {
		r.reasons = []reason{reasonTopology}
	}
	return r
}

func hasLower(n *node, pod *corev1.Pod) bool {
	for _, p := range n.pods {
		if priorityOf(p.pod) < priorityOf(pod) {
			return true
		}
	}
	return false
}

func priorityOf(pod *corev1.Pod) int32 {
	if pod.Spec.Priority == nil {
		return 0
	}
	return *pod.Spec.Priority
}
