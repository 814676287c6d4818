package scheduler

import (
	"math"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/klog/v2"

	v1helper "k8s.io/component-helpers/scheduling/corev1"
)

// reason is why a node was refused, in kube-scheduler's words. The words are part
// of what people and tools read.
type reason string

const (
	reasonUnschedulable reason = "node(s) were unschedulable"
	reasonName          reason = "node(s) didn't match the requested node name"
	reasonTaint         reason = "node(s) had untolerated taint(s)"
	reasonAffinity      reason = "node(s) didn't match Pod's node affinity/selector"
	reasonPorts         reason = "node(s) didn't have free ports for the requested pod ports"
	reasonPods          reason = "Too many pods"
	reasonCPU           reason = "Insufficient cpu"
	reasonMemory        reason = "Insufficient memory"
	reasonEphemeral     reason = "Insufficient ephemeral-storage"
	reasonPodAffinity   reason = "node(s) didn't match pod affinity rules"
	reasonPodAnti       reason = "node(s) didn't match pod anti-affinity rules"
	reasonExistingAnti  reason = "node(s) didn't satisfy existing pods anti-affinity rules"
	reasonSpread        reason = "node(s) didn't match pod topology spread constraints"
	reasonSpreadLabel   reason = "node(s) didn't match pod topology spread constraints (missing required label)"
	reasonVolume        reason = "node(s) had volume node affinity conflict"

	// Not shown: what a parked pod waits for.
	reasonTopology reason = "topology"
	reasonClaim    reason = "claim"
	reasonBinding  reason = "binding"
)

// resolvable reports whether deleting pods could make the node fit.
func (r reason) resolvable() bool {
	switch r {
	case reasonUnschedulable, reasonName, reasonTaint, reasonAffinity, reasonSpreadLabel, reasonVolume, reasonPodAffinity:
		return false
	}
	return true
}

// shape is what of a pod the class rules look at, worked out once.
type shape struct {
	pod       *corev1.Pod
	want      amounts
	ports     []hostPort
	affinity  nodeaffinity.RequiredNodeAffinity
	preferred *nodeaffinity.PreferredSchedulingTerms
	maxPrefer int64
}

func shapeOf(pod *corev1.Pod) *shape {
	s := &shape{pod: pod, want: requestsOf(pod), ports: hostPorts(pod), affinity: nodeaffinity.GetRequiredNodeAffinity(pod)}
	if a := pod.Spec.Affinity; a != nil && a.NodeAffinity != nil {
		// The API server has validated the terms.
		if terms, err := nodeaffinity.NewPreferredSchedulingTerms(a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution); err == nil {
			s.preferred = terms
			for _, t := range a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution {
				s.maxPrefer += int64(max(t.Weight, 0))
			}
		}
	}
	return s
}

// filter says why a pod of this shape cannot go to a node (nil: it can).
func (s *shape) filter(n *node) []reason {
	if n.obj.Spec.Unschedulable && !tolerates(s.pod, &corev1.Taint{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule}) {
		return []reason{reasonUnschedulable}
	}
	for i := range n.obj.Spec.Taints {
		t := &n.obj.Spec.Taints[i]
		if t.Effect != corev1.TaintEffectPreferNoSchedule && !tolerates(s.pod, t) {
			return []reason{reasonTaint}
		}
	}
	if ok, err := s.affinity.Match(n.obj); err != nil || !ok {
		return []reason{reasonAffinity}
	}
	for _, p := range s.ports {
		if portTaken(n, p) {
			return []reason{reasonPorts}
		}
	}
	return s.fit(n)
}

func portTaken(n *node, want hostPort) bool {
	for have := range n.ports {
		if have.protocol == want.protocol && have.port == want.port &&
			(have.ip == want.ip || have.ip == anyIP || want.ip == anyIP) {
			return true
		}
	}
	return false
}

func (s *shape) fit(n *node) (out []reason) {
	if n.used.pods+1 > n.alloc.pods {
		out = append(out, reasonPods)
	}
	if s.want.cpu > 0 && s.want.cpu > n.alloc.cpu-n.used.cpu {
		out = append(out, reasonCPU)
	}
	if s.want.memory > 0 && s.want.memory > n.alloc.memory-n.used.memory {
		out = append(out, reasonMemory)
	}
	if s.want.ephemeral > 0 && s.want.ephemeral > n.alloc.ephemeral-n.used.ephemeral {
		out = append(out, reasonEphemeral)
	}
	for name, v := range s.want.other {
		if v > 0 && v > n.alloc.other[name]-n.used.other[name] {
			out = append(out, reason("Insufficient "+string(name)))
		}
	}
	return out
}

func tolerates(pod *corev1.Pod, taint *corev1.Taint) bool {
	return v1helper.TolerationsTolerateTaint(klog.Logger{}, pod.Spec.Tolerations, taint, false)
}

// Weights of the scores, those of kube-scheduler's default profile. Each score is 0 to 100.
const (
	weightFit      = 1
	weightBalance  = 1
	weightAffinity = 2
	weightTaint    = 3
	weightSpread   = 2
	weightImage    = 1
)

// A container without requests counts as this much in scores, so that pods that
// ask for nothing spread too.
const (
	defaultCPU    = 100               // thousandths
	defaultMemory = 200 * 1024 * 1024 // bytes
)

// score rates a node that fits; higher is better.
func (s *shape) score(n *node) int64 {
	cpu, memory := max(s.want.cpu, defaultCPU), max(s.want.memory, defaultMemory)
	usedCPU := max(n.used.cpu, n.used.pods*defaultCPU) + cpu
	usedMemory := max(n.used.memory, n.used.pods*defaultMemory) + memory
	fc, fm := fraction(usedCPU, n.alloc.cpu), fraction(usedMemory, n.alloc.memory)
	total := int64(weightFit * 100 * ((1 - fc) + (1 - fm)) / 2)
	// The standard deviation of two fractions is half their distance.
	total += int64(weightBalance * 100 * (1 - math.Abs(fc-fm)/2))
	if s.maxPrefer > 0 {
		total += weightAffinity * 100 * s.preferred.Score(n.obj) / s.maxPrefer
	}
	avoid := int64(0)
	for i := range n.obj.Spec.Taints {
		if t := &n.obj.Spec.Taints[i]; t.Effect == corev1.TaintEffectPreferNoSchedule && !tolerates(s.pod, t) {
			avoid++
		}
	}
	total += weightTaint * 100 / (1 + avoid)
	if owner := ownerOf(s.pod); owner != "" {
		total += weightSpread * 100 / int64(1+n.owners[owner])
	}
	return total + weightImage*s.imageScore(n)
}

func fraction(used, alloc int64) float64 {
	if alloc <= 0 {
		return 1
	}
	return min(1, float64(used)/float64(alloc))
}

// imageScore prefers nodes that have large images of the pod already.
func (s *shape) imageScore(n *node) int64 {
	const low, high = 23 << 20, 1000 << 20
	sum := int64(0)
	for i := range s.pod.Spec.Containers {
		for j := range n.obj.Status.Images {
			img := &n.obj.Status.Images[j]
			for _, name := range img.Names {
				if name == s.pod.Spec.Containers[i].Image {
					sum += img.SizeBytes
				}
			}
		}
	}
	ceiling := int64(high * max(1, len(s.pod.Spec.Containers)))
	return 100 * (min(max(sum, low), ceiling) - low) / (ceiling - low)
}
