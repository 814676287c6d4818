package scheduler

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// rules are what a pod asks of its neighbours: affinity and anti-affinity to
// other pods, and spreading over a topology. They depend on where every pod is,
// so they are worked out for each pod and not kept in its class.
type rules struct {
	affinity []term
	anti     []term
	prefer   []weighted
	spread   []spread
	// banned are topology values that placed pods with anti-affinity keep this pod from.
	banned map[string]map[string]bool
	// first: no pod matches the affinity anywhere, and the pod itself does, so that
	// it may be the first of its group.
	first bool
	// volumes are those the pod uses that not every node reaches.
	volumes []*corev1.PersistentVolume
}

// term is an affinity term with the number of matching pods by topology value.
type term struct {
	key   string
	count map[string]int
}

type weighted struct {
	term
	weight int64
}

type spread struct {
	key     string
	hard    bool
	maxSkew int
	self    int
	count   map[string]int
	minimum int
}

// topologyOf returns the rules for a pod; nil: it has none and none concern it.
func topologyOf(s *state, pod *corev1.Pod) *rules {
	a := pod.Spec.Affinity
	asks := a != nil && (a.PodAffinity != nil || a.PodAntiAffinity != nil) || len(pod.Spec.TopologySpreadConstraints) > 0
	volumes := s.localVolumes(pod)
	if !asks && len(s.anti) == 0 && len(volumes) == 0 {
		return nil
	}
	r := &rules{banned: map[string]map[string]bool{}, volumes: volumes}
	for _, p := range s.anti {
		if p.node < 0 {
			continue
		}
		for i := range p.pod.Spec.Affinity.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution {
			t := &p.pod.Spec.Affinity.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution[i]
			if !s.matcher(t, p.pod)(pod) {
				continue
			}
			if v, ok := s.nodes[p.node].obj.Labels[t.TopologyKey]; ok {
				if r.banned[t.TopologyKey] == nil {
					r.banned[t.TopologyKey] = map[string]bool{}
				}
				r.banned[t.TopologyKey][v] = true
			}
		}
	}
	if a != nil && a.PodAffinity != nil {
		self, any := true, false
		for i := range a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution {
			t := &a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution[i]
			counted := s.countTerm(t, pod)
			r.affinity = append(r.affinity, counted)
			self = self && s.matcher(t, pod)(pod)
			any = any || len(counted.count) > 0
		}
		r.first = len(r.affinity) > 0 && self && !any
		for i := range a.PodAffinity.PreferredDuringSchedulingIgnoredDuringExecution {
			p := &a.PodAffinity.PreferredDuringSchedulingIgnoredDuringExecution[i]
			r.prefer = append(r.prefer, weighted{s.countTerm(&p.PodAffinityTerm, pod), int64(p.Weight)})
		}
	}
	if a != nil && a.PodAntiAffinity != nil {
		for i := range a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution {
			r.anti = append(r.anti, s.countTerm(&a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution[i], pod))
		}
		for i := range a.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution {
			p := &a.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution[i]
			r.prefer = append(r.prefer, weighted{s.countTerm(&p.PodAffinityTerm, pod), -int64(p.Weight)})
		}
	}
	for i := range pod.Spec.TopologySpreadConstraints {
		r.spread = append(r.spread, s.countSpread(&pod.Spec.TopologySpreadConstraints[i], pod))
	}
	return r
}

// check says whether the rules refuse a node, and how much they like it.
func (r *rules) check(s *state, i int) (reason, int64) {
	have := s.nodes[i].obj.Labels
	for _, pv := range r.volumes {
		if !reaches(pv, s.nodes[i].obj) {
			return reasonVolume, 0
		}
	}
	for _, t := range r.affinity {
		v, ok := have[t.key]
		if !ok || t.count[v] == 0 && !r.first {
			return reasonPodAffinity, 0
		}
	}
	for _, t := range r.anti {
		if v, ok := have[t.key]; ok && t.count[v] > 0 {
			return reasonPodAnti, 0
		}
	}
	for key, values := range r.banned {
		if v, ok := have[key]; ok && values[v] {
			return reasonExistingAnti, 0
		}
	}
	bonus := int64(0)
	for _, c := range r.spread {
		v, ok := have[c.key]
		if !ok {
			if c.hard {
				return reasonSpreadLabel, 0
			}
			continue
		}
		if c.hard && c.count[v]+c.self-c.minimum > c.maxSkew {
			return reasonSpread, 0
		}
		bonus += weightSpread * 100 / int64(1+c.count[v])
	}
	for _, w := range r.prefer {
		if v, ok := have[w.key]; ok && w.count[v] > 0 {
			bonus += 2 * w.weight
		}
	}
	return "", bonus
}

// matcher returns what tells whether a pod matches a term of another pod.
func (s *state) matcher(t *corev1.PodAffinityTerm, of *corev1.Pod) func(*corev1.Pod) bool {
	selector, err := selectorOf(t.LabelSelector, of, t.MatchLabelKeys, t.MismatchLabelKeys)
	if err != nil {
		return func(*corev1.Pod) bool { return false } // the API server refuses such terms
	}
	var namespaces labels.Selector
	if t.NamespaceSelector != nil {
		if namespaces, err = metav1.LabelSelectorAsSelector(t.NamespaceSelector); err != nil {
			namespaces = labels.Nothing()
		}
	}
	names := t.Namespaces
	if len(names) == 0 && namespaces == nil {
		names = []string{of.Namespace}
	}
	return func(p *corev1.Pod) bool {
		if !selector.Matches(labels.Set(p.Labels)) {
			return false
		}
		if slices.Contains(names, p.Namespace) {
			return true
		}
		if namespaces == nil {
			return false
		}
		if namespaces.Empty() {
			return true
		}
		ns, ok := s.namespaces.Get("", p.Namespace)
		return ok && namespaces.Matches(labels.Set(ns.Labels))
	}
}

// selectorOf is a label selector with the pod's own values of matchLabelKeys
// (and not those of mismatchLabelKeys) added (KEP-3633).
func selectorOf(in *metav1.LabelSelector, pod *corev1.Pod, match, mismatch []string) (labels.Selector, error) {
	if in == nil {
		return labels.Nothing(), nil
	}
	if len(match)+len(mismatch) > 0 {
		in = in.DeepCopy()
		add := func(keys []string, op metav1.LabelSelectorOperator) {
			for _, k := range keys {
				if v, ok := pod.Labels[k]; ok {
					in.MatchExpressions = append(in.MatchExpressions, metav1.LabelSelectorRequirement{Key: k, Operator: op, Values: []string{v}})
				}
			}
		}
		add(match, metav1.LabelSelectorOpIn)
		add(mismatch, metav1.LabelSelectorOpNotIn)
	}
	return metav1.LabelSelectorAsSelector(in)
}

func (s *state) countTerm(t *corev1.PodAffinityTerm, pod *corev1.Pod) term {
	matches := s.matcher(t, pod)
	out := term{key: t.TopologyKey, count: map[string]int{}}
	for _, p := range s.pods {
		if p.node < 0 || !matches(p.pod) {
			continue
		}
		if v, ok := s.nodes[p.node].obj.Labels[t.TopologyKey]; ok {
			out.count[v]++
		}
	}
	return out
}

func (s *state) countSpread(c *corev1.TopologySpreadConstraint, pod *corev1.Pod) spread {
	out := spread{key: c.TopologyKey, hard: c.WhenUnsatisfiable == corev1.DoNotSchedule, maxSkew: int(c.MaxSkew), count: map[string]int{}}
	selector, err := selectorOf(c.LabelSelector, pod, c.MatchLabelKeys, nil)
	if err != nil {
		selector = labels.Nothing()
	}
	if selector.Matches(labels.Set(pod.Labels)) {
		out.self = 1
	}
	sh := shapeOf(pod)
	honorTaints := c.NodeTaintsPolicy != nil && *c.NodeTaintsPolicy == corev1.NodeInclusionPolicyHonor
	honorAffinity := c.NodeAffinityPolicy == nil || *c.NodeAffinityPolicy == corev1.NodeInclusionPolicyHonor
	eligible := make([]bool, len(s.nodes))
	for i := range s.nodes {
		n := &s.nodes[i]
		if n.obj == nil {
			continue
		}
		v, ok := n.obj.Labels[c.TopologyKey]
		if !ok {
			continue
		}
		if honorAffinity {
			if match, err := sh.affinity.Match(n.obj); err != nil || !match {
				continue
			}
		}
		if honorTaints && slices.ContainsFunc(n.obj.Spec.Taints, func(t corev1.Taint) bool {
			return t.Effect != corev1.TaintEffectPreferNoSchedule && !tolerates(pod, &t)
		}) {
			continue
		}
		eligible[i] = true
		out.count[v] += 0 // a value without pods counts as zero
	}
	for _, p := range s.pods {
		if p.node < 0 || !eligible[p.node] || p.pod.Namespace != pod.Namespace || p.pod.DeletionTimestamp != nil || !selector.Matches(labels.Set(p.pod.Labels)) {
			continue
		}
		out.count[s.nodes[p.node].obj.Labels[c.TopologyKey]]++
	}
	out.minimum = -1
	for _, n := range out.count {
		if out.minimum < 0 || n < out.minimum {
			out.minimum = n
		}
	}
	if out.minimum < 0 || c.MinDomains != nil && len(out.count) < int(*c.MinDomains) {
		out.minimum = 0
	}
	return out
}
