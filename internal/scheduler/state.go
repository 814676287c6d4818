package scheduler

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/types"
	helper "k8s.io/component-helpers/resource"

	"github.com/proa-dev/proa/internal/client"
)

// state is the cluster as the scheduler sees it: nodes in an array, what each
// has and what is taken. Places in the array are reused, never moved.
type state struct {
	nodes []node
	index map[string]int
	free  []int
	pods  map[types.UID]*placed
	live  int // nodes that exist

	// log lists, in order, the nodes that changed; a class reads on from where it
	// stopped. base is the sequence number of log[0].
	log  []int
	base int

	// anti holds the placed pods with required anti-affinity: each new pod must
	// ask them. Most clusters have few.
	anti map[types.UID]*placed

	// nominated are pods that others make room for, with the room that is kept for them.
	nominated map[types.UID]*placed

	namespaces client.Typed[*corev1.Namespace]
	budgets    client.Typed[*policyv1.PodDisruptionBudget]
	claims     client.Typed[*corev1.PersistentVolumeClaim]
	volumes    client.Typed[*corev1.PersistentVolume]
}

type node struct {
	obj    *corev1.Node // nil: a free place
	name   string
	alloc  amounts
	used   amounts
	ports  map[hostPort]int
	pods   map[types.UID]*placed
	owners map[types.UID]int // pods by controller, to spread them
}

// amounts are CPU in thousandths, bytes, and counts. pods is the pod count.
type amounts struct {
	cpu, memory, ephemeral, pods int64
	other                        map[corev1.ResourceName]int64
}

type hostPort struct {
	protocol corev1.Protocol
	port     int32
	ip       string
}

type placed struct {
	pod     *corev1.Pod
	node    int
	want    amounts
	assumed bool // bound by us, not yet seen so
}

func newState() *state {
	return &state{index: map[string]int{}, pods: map[types.UID]*placed{}, anti: map[types.UID]*placed{}, nominated: map[types.UID]*placed{}}
}

// maxLog bounds the change log; a class that is further behind looks at every node.
const maxLog = 1 << 14

func (s *state) changed(i int) {
	if len(s.log) >= maxLog {
		drop := maxLog / 2
		s.log = append(s.log[:0], s.log[drop:]...)
		s.base += drop
	}
	s.log = append(s.log, i)
}

// setNode adds or updates a node and reports whether pods that were refused
// should be looked at again.
func (s *state) setNode(obj *corev1.Node) bool {
	i, ok := s.index[obj.Name]
	if !ok {
		if n := len(s.free); n > 0 {
			i, s.free = s.free[n-1], s.free[:n-1]
		} else {
			i = len(s.nodes)
			s.nodes = append(s.nodes, node{})
		}
		s.nodes[i] = node{name: obj.Name, ports: map[hostPort]int{}, pods: map[types.UID]*placed{}, owners: map[types.UID]int{}}
		s.index[obj.Name] = i
		s.live++
		// Pods may have been seen before their node.
		for _, p := range s.pods {
			if p.node == -1 && p.pod.Spec.NodeName == obj.Name {
				p.node = i
				s.take(p, 1)
			}
		}
	}
	n := &s.nodes[i]
	old := n.obj
	n.obj = obj
	if old != nil && sameForScheduling(old, obj) {
		return false
	}
	n.alloc = amountsOf(obj.Status.Allocatable)
	s.changed(i)
	return true
}

// sameForScheduling leaves out what heartbeats change.
func sameForScheduling(a, b *corev1.Node) bool {
	return a.Spec.Unschedulable == b.Spec.Unschedulable &&
		slices.EqualFunc(a.Spec.Taints, b.Spec.Taints, func(x, y corev1.Taint) bool {
			return x.Key == y.Key && x.Value == y.Value && x.Effect == y.Effect
		}) &&
		sameMap(a.Labels, b.Labels) && sameList(a.Status.Allocatable, b.Status.Allocatable)
}

func sameMap(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if w, ok := b[k]; !ok || v != w {
			return false
		}
	}
	return true
}

func sameList(a, b corev1.ResourceList) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if w, ok := b[k]; !ok || v.Cmp(w) != 0 {
			return false
		}
	}
	return true
}

func (s *state) removeNode(name string) {
	i, ok := s.index[name]
	if !ok {
		return
	}
	for _, p := range s.nodes[i].pods {
		p.node = -1
	}
	for uid, r := range s.nominated {
		if r.node == i {
			delete(s.nominated, uid)
		}
	}
	s.nodes[i] = node{}
	delete(s.index, name)
	s.free = append(s.free, i)
	s.live--
	s.changed(i)
}

func (s *state) assumed(uid types.UID) bool {
	p, ok := s.pods[uid]
	return ok && p.assumed
}

// assume counts a pod on a node before its binding is written.
func (s *state) assume(pod *corev1.Pod, name string) {
	s.addPod(pod, name)
	if p := s.pods[pod.UID]; p != nil {
		p.assumed = true
	}
}

// forget takes back an assumption; a binding that was seen is kept.
func (s *state) forget(uid types.UID) {
	if s.assumed(uid) {
		s.removePod(uid)
	}
}

// addPod counts a pod on a node and reports whether anything changed.
func (s *state) addPod(pod *corev1.Pod, name string) bool {
	i, ok := s.index[name]
	if !ok {
		i = -1
	}
	if p, ok := s.pods[pod.UID]; ok {
		if p.node == i && !resized(p.pod, pod) {
			relabeled := !sameMap(p.pod.Labels, pod.Labels)
			if p.assumed && pod.Spec.NodeName != "" {
				p.assumed = false
			}
			p.pod = pod
			if a, ok := s.anti[pod.UID]; ok {
				a.pod = pod
			}
			return relabeled
		}
		s.removePod(pod.UID)
	}
	p := &placed{pod: pod, node: i, want: requestsOf(pod)}
	s.pods[pod.UID] = p
	if i >= 0 {
		s.take(p, 1)
	}
	if a := pod.Spec.Affinity; a != nil && a.PodAntiAffinity != nil && len(a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution) > 0 {
		s.anti[pod.UID] = p
	}
	return true
}

// resized reports an in-place change of what a pod asks for.
func resized(a, b *corev1.Pod) bool {
	if len(a.Spec.Containers) != len(b.Spec.Containers) {
		return true
	}
	for i := range a.Spec.Containers {
		if !sameList(a.Spec.Containers[i].Resources.Requests, b.Spec.Containers[i].Resources.Requests) {
			return true
		}
	}
	return false
}

func (s *state) removePod(uid types.UID) bool {
	p, ok := s.pods[uid]
	if !ok {
		return false
	}
	delete(s.pods, uid)
	delete(s.anti, uid)
	if p.node >= 0 {
		s.take(p, -1)
	}
	return true
}

// take adds (1) or takes away (-1) a pod's share of its node.
func (s *state) take(p *placed, sign int64) {
	n := &s.nodes[p.node]
	n.used.add(&p.want, sign)
	if sign > 0 {
		n.pods[p.pod.UID] = p
	} else {
		delete(n.pods, p.pod.UID)
	}
	count(n.owners, ownerOf(p.pod), int(sign))
	for _, hp := range hostPorts(p.pod) {
		count(n.ports, hp, int(sign))
	}
	s.changed(p.node)
}

func count[K comparable](m map[K]int, k K, by int) {
	if m[k] += by; m[k] <= 0 {
		delete(m, k)
	}
}

func ownerOf(pod *corev1.Pod) types.UID {
	for i := range pod.OwnerReferences {
		if c := pod.OwnerReferences[i].Controller; c != nil && *c {
			return pod.OwnerReferences[i].UID
		}
	}
	return ""
}

// hostPorts lists the host ports that a pod holds while it runs: those of its
// containers and of its sidecars, not of init containers, which end before.
func hostPorts(pod *corev1.Pod) (out []hostPort) {
	add := func(c *corev1.Container) {
		for _, p := range c.Ports {
			if p.HostPort <= 0 {
				continue
			}
			proto := p.Protocol
			if proto == "" {
				proto = corev1.ProtocolTCP
			}
			ip := p.HostIP
			if ip == "" || ip == "::" {
				ip = anyIP
			}
			out = append(out, hostPort{proto, p.HostPort, ip})
		}
	}
	for i := range pod.Spec.Containers {
		add(&pod.Spec.Containers[i])
	}
	for i := range pod.Spec.InitContainers {
		if c := &pod.Spec.InitContainers[i]; c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			add(c)
		}
	}
	return out
}

const anyIP = "0.0.0.0"

func requestsOf(pod *corev1.Pod) amounts {
	a := amountsOf(helper.PodRequests(pod, helper.PodResourcesOptions{UseStatusResources: true}))
	a.pods = 1
	return a
}

func amountsOf(list corev1.ResourceList) amounts {
	var a amounts
	for name, q := range list {
		switch name {
		case corev1.ResourceCPU:
			a.cpu = q.MilliValue()
		case corev1.ResourceMemory:
			a.memory = q.Value()
		case corev1.ResourceEphemeralStorage:
			a.ephemeral = q.Value()
		case corev1.ResourcePods:
			a.pods = q.Value()
		default:
			if a.other == nil {
				a.other = map[corev1.ResourceName]int64{}
			}
			a.other[name] = q.Value()
		}
	}
	return a
}

func (a *amounts) add(b *amounts, sign int64) {
	a.cpu += sign * b.cpu
	a.memory += sign * b.memory
	a.ephemeral += sign * b.ephemeral
	a.pods += sign * b.pods
	for name, v := range b.other {
		if a.other == nil {
			a.other = map[corev1.ResourceName]int64{}
		}
		a.other[name] += sign * v
	}
}
