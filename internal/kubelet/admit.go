package kubelet

import (
	"fmt"
	"runtime"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	resourcehelper "k8s.io/component-helpers/resource"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"

	"github.com/proa-dev/proa/internal/kubelet/pod"
)

// safeSysctls are namespaced and cannot harm others.
var safeSysctls = []string{
	"kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range",
	"net.ipv4.ip_unprivileged_port_start", "net.ipv4.ip_local_reserved_ports", "net.ipv4.tcp_keepalive_time",
	"net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem",
}

// admit says whether the node can take a new pod. Called with mu held.
func (k *Kubelet) admit(p *corev1.Pod) *pod.Rejection {
	n := k.node.Object()
	if p.Spec.OS != nil && string(p.Spec.OS.Name) != runtime.GOOS {
		return &pod.Rejection{Reason: "PodOSNotSupported", Message: "Failed to admit pod as the OS field doesn't match node OS"}
	}
	if v, ok := p.Spec.NodeSelector[corev1.LabelOSStable]; ok && v != runtime.GOOS {
		return &pod.Rejection{Reason: "PodOSSelectorNodeLabelDoesNotMatch", Message: "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label"}
	}
	if sc := p.Spec.SecurityContext; sc != nil {
		for _, s := range sc.Sysctls {
			name := strings.ReplaceAll(s.Name, "/", ".")
			if !slices.Contains(safeSysctls, name) {
				return &pod.Rejection{Reason: "SysctlForbidden", Message: fmt.Sprintf("forbidden sysctl: %q not allowlisted", s.Name)}
			}
			if p.Spec.HostNetwork && strings.HasPrefix(name, "net.") {
				return &pod.Rejection{Reason: "SysctlForbidden", Message: fmt.Sprintf("forbidden sysctl: %q not allowed with host net enabled", s.Name)}
			}
			if p.Spec.HostIPC && strings.HasPrefix(name, "kernel.shm") {
				return &pod.Rejection{Reason: "SysctlForbidden", Message: fmt.Sprintf("forbidden sysctl: %q not allowed with host ipc enabled", s.Name)}
			}
		}
	}
	if pr := k.node.Pressure(); pr.Memory && pod.QOS(p) == corev1.PodQOSBestEffort && !tolerates(p, corev1.TaintNodeMemoryPressure) {
		return &pod.Rejection{Reason: "Evicted", Message: "The node had condition: [MemoryPressure]. "}
	} else if pr.Disk && !critical(p) {
		return &pod.Rejection{Reason: "Evicted", Message: "The node had condition: [DiskPressure]. "}
	}
	if r := k.fits(p); r != nil {
		return r
	}
	if n == nil {
		return nil
	}
	if ok, err := nodeaffinity.GetRequiredNodeAffinity(p).Match(n); err != nil || !ok {
		return &pod.Rejection{Reason: "NodeAffinity", Message: "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"}
	}
	for i := range n.Spec.Taints {
		t := &n.Spec.Taints[i]
		if t.Effect == corev1.TaintEffectNoExecute && !toleratesTaint(p, t) {
			return &pod.Rejection{Reason: "TaintToleration", Message: fmt.Sprintf("Predicate TaintToleration failed: node(s) had untolerated taint {%s: %s}", t.Key, t.Value)}
		}
	}
	return k.portsFree(p)
}

func critical(p *corev1.Pod) bool { return p.Spec.Priority != nil && *p.Spec.Priority >= 2000000000 }

func tolerates(p *corev1.Pod, key string) bool {
	return toleratesTaint(p, &corev1.Taint{Key: key, Effect: corev1.TaintEffectNoSchedule})
}

func toleratesTaint(p *corev1.Pod, t *corev1.Taint) bool {
	for i := range p.Spec.Tolerations {
		o := &p.Spec.Tolerations[i]
		if o.Effect != "" && o.Effect != t.Effect || o.Key != "" && o.Key != t.Key {
			continue
		}
		switch o.Operator {
		case corev1.TolerationOpExists:
			return true
		case "", corev1.TolerationOpEqual:
			if o.Key != "" && o.Value == t.Value {
				return true
			}
		}
	}
	return false
}

// fits compares requests with what the active pods leave.
func (k *Kubelet) fits(p *corev1.Pod) *pod.Rejection {
	alloc := k.node.Allocatable()
	if n := k.node.Object(); n != nil && len(n.Status.Allocatable) > 0 {
		alloc = n.Status.Allocatable
	}
	var pods int64
	used := corev1.ResourceList{}
	for _, e := range k.actors {
		if e.settled || e.pod == nil {
			continue
		}
		pods++
		for r, q := range resourcehelper.PodRequests(e.pod, resourcehelper.PodResourcesOptions{}) {
			u := used[r]
			u.Add(q)
			used[r] = u
		}
	}
	short := func(r corev1.ResourceName, want, have, limit int64) *pod.Rejection {
		return &pod.Rejection{Reason: "OutOf" + string(r), Message: fmt.Sprintf("Node didn't have enough resource: %s, requested: %d, used: %d, capacity: %d", r, want, have, limit)}
	}
	if limit := alloc.Pods().Value(); pods+1 > limit {
		return short(corev1.ResourcePods, 1, pods, limit)
	}
	requests := resourcehelper.PodRequests(p, resourcehelper.PodResourcesOptions{})
	names := make([]string, 0, len(requests))
	for r := range requests {
		names = append(names, string(r))
	}
	slices.Sort(names)
	for _, name := range names {
		r := corev1.ResourceName(name)
		want := requests[r]
		if want.IsZero() || r == corev1.ResourcePods {
			continue
		}
		have, limit := used[r], alloc[r]
		sum := have.DeepCopy()
		sum.Add(want)
		if sum.Cmp(limit) > 0 {
			if r == corev1.ResourceCPU {
				return short(r, want.MilliValue(), have.MilliValue(), limit.MilliValue())
			}
			return short(r, want.Value(), have.Value(), limit.Value())
		}
	}
	return nil
}

// portsFree looks for host ports that a pod of this node already has.
func (k *Kubelet) portsFree(p *corev1.Pod) *pod.Rejection {
	type port struct {
		proto corev1.Protocol
		n     int32
	}
	taken := map[port][]string{}
	for _, e := range k.actors {
		if e.settled || e.pod == nil {
			continue
		}
		hostPorts(e.pod, func(proto corev1.Protocol, ip string, n int32) {
			taken[port{proto, n}] = append(taken[port{proto, n}], ip)
		})
	}
	var clash bool
	hostPorts(p, func(proto corev1.Protocol, ip string, n int32) {
		for _, other := range taken[port{proto, n}] {
			clash = clash || other == ip || other == "0.0.0.0" || ip == "0.0.0.0"
		}
	})
	if clash {
		return &pod.Rejection{Reason: "NodePorts", Message: "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports"}
	}
	return nil
}

func hostPorts(p *corev1.Pod, fn func(corev1.Protocol, string, int32)) {
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			for _, c := range list[i].Ports {
				if c.HostPort <= 0 {
					continue
				}
				proto, ip := c.Protocol, c.HostIP
				if proto == "" {
					proto = corev1.ProtocolTCP
				}
				if ip == "" || ip == "::" {
					ip = "0.0.0.0"
				}
				fn(proto, ip, c.HostPort)
			}
		}
	}
}
