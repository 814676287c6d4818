package scheduler

import (
	"fmt"
	"sort"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
)

// refusal is why no node will do, as data: String words it as kube-scheduler does.
type refusal struct {
	total     int
	count     map[reason]int
	unhelpful int            // nodes where evicting pods would not help
	noVictims int            // nodes without pods of lower priority
	still     map[reason]int // what is in the way without those pods too
	text      string
	// preemption says why no pod is deleted in favour of this one, whatever the nodes.
	preemption string
	reasons    []reason // what the pod waits for
}

func (r *refusal) String() string {
	if r.text != "" && r.total == 0 {
		return r.text
	}
	if r.total == 0 {
		return "no nodes available to schedule pods"
	}
	var parts []string
	for why, n := range r.count {
		parts = append(parts, fmt.Sprintf("%d %s", n, why))
	}
	sort.Strings(parts)
	out := fmt.Sprintf("0/%d nodes are available", r.total)
	if r.text != "" {
		out += ": " + r.text
	} else if len(parts) > 0 {
		out += ": " + strings.Join(parts, ", ")
	}
	out += "."
	if r.preemption != "" {
		return out + " preemption: " + r.preemption
	}
	var why []string
	for reason, n := range r.still {
		why = append(why, fmt.Sprintf("%d %s", n, reason))
	}
	if r.noVictims > 0 {
		why = append(why, fmt.Sprintf("%d No preemption victims found for incoming pod", r.noVictims))
	}
	if r.unhelpful > 0 {
		why = append(why, fmt.Sprintf("%d Preemption is not helpful for scheduling", r.unhelpful))
	}
	sort.Strings(why)
	if len(why) > 0 {
		out += fmt.Sprintf(" preemption: 0/%d nodes are available: %s.", r.total, strings.Join(why, ", "))
	}
	return out
}

// claimsRefuse says which PersistentVolumeClaim of a pod keeps it from every node.
func (s *state) claimsRefuse(pod *corev1.Pod) *refusal {
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		name := ""
		switch {
		case v.PersistentVolumeClaim != nil:
			name = v.PersistentVolumeClaim.ClaimName
		case v.Ephemeral != nil:
			name = pod.Name + "-" + v.Name
		default:
			continue
		}
		refuse := func(format string, args ...any) *refusal {
			return &refusal{total: s.live, text: fmt.Sprintf(format, args...), unhelpful: s.live, reasons: []reason{reasonClaim}}
		}
		claim, ok := s.claims.Get(pod.Namespace, name)
		switch {
		case !ok && v.Ephemeral != nil:
			return refuse("waiting for ephemeral volume controller to create the persistentvolumeclaim %q", name)
		case !ok:
			return refuse("persistentvolumeclaim %q not found", name)
		case claim.DeletionTimestamp != nil:
			return refuse("persistentvolumeclaim %q is being deleted", name)
		case claim.Status.Phase == corev1.ClaimLost:
			return refuse("persistentvolumeclaim %q bound to non-existent persistentvolume %q", name, claim.Spec.VolumeName)
		case claim.Spec.VolumeName == "":
			return refuse("pod has unbound immediate PersistentVolumeClaims")
		}
		pv, ok := s.volumes.Get("", claim.Spec.VolumeName)
		if !ok {
			return refuse("persistentvolumeclaim %q bound to non-existent persistentvolume %q", name, claim.Spec.VolumeName)
		}
		if !s.anyNodeReaches(pv) {
			return refuse("%d %s", s.live, reasonVolume)
		}
	}
	return nil
}

func (s *state) anyNodeReaches(pv *corev1.PersistentVolume) bool {
	for i := range s.nodes {
		if s.nodes[i].obj != nil && reaches(pv, s.nodes[i].obj) {
			return true
		}
	}
	return s.live == 0
}

// localVolumes are the volumes behind a pod's claims that only some nodes reach.
func (s *state) localVolumes(pod *corev1.Pod) (out []*corev1.PersistentVolume) {
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		name := ""
		switch {
		case v.PersistentVolumeClaim != nil:
			name = v.PersistentVolumeClaim.ClaimName
		case v.Ephemeral != nil:
			name = pod.Name + "-" + v.Name
		default:
			continue
		}
		if claim, ok := s.claims.Get(pod.Namespace, name); ok {
			if pv, ok := s.volumes.Get("", claim.Spec.VolumeName); ok && pv.Spec.NodeAffinity != nil {
				out = append(out, pv)
			}
		}
	}
	return out
}

// reaches reports whether a node can use a volume.
func reaches(pv *corev1.PersistentVolume, node *corev1.Node) bool {
	if pv.Spec.NodeAffinity == nil || pv.Spec.NodeAffinity.Required == nil {
		return true
	}
	ok, err := nodeaffinity.NewLazyErrorNodeSelector(pv.Spec.NodeAffinity.Required).Match(node)
	return err == nil && ok
}
