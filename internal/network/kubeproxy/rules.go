package kubeproxy

import (
	"cmp"
	"crypto/sha256"
	"encoding/base32"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// frontend is one way into a Service: an address (zero: any of the node's own)
// with a protocol and port.
type frontend struct {
	addr  netip.Addr
	proto uint8
	port  uint16
}

// backend is an endpoint's address and port.
type backend = netip.AddrPort

// portal is what one port of a Service is turned into. It is compared with the
// one before to see what changed.
type portal struct {
	id    string // names its chains
	proto uint8
	// inside are the ClusterIPs; outside the external addresses and the node port;
	// guarded the load balancer's addresses when only ranges may use them.
	inside, outside, guarded []frontend
	ranges                   []netip.Prefix
	// all are the endpoints of the cluster, own those on this node, which a policy
	// "Local" holds traffic to.
	all, own                  []backend
	insideLocal, outsideLocal bool
	affinity                  time.Duration // the same client goes to the same endpoint for so long (0: no)
	serving                   []backend     // every endpoint that serves: flows to others are stale
}

func (p *portal) equal(q *portal) bool {
	return q != nil && p.id == q.id && p.affinity == q.affinity && p.insideLocal == q.insideLocal && p.outsideLocal == q.outsideLocal &&
		slices.Equal(p.inside, q.inside) && slices.Equal(p.outside, q.outside) && slices.Equal(p.guarded, q.guarded) &&
		slices.Equal(p.ranges, q.ranges) && slices.Equal(p.all, q.all) && slices.Equal(p.own, q.own)
}

// refusal is what becomes of traffic that no endpoint takes.
type refusal uint8

const (
	taken    refusal = iota // there is an endpoint
	rejected                // there is none at all: the client is told
	dropped                 // there is one elsewhere, which the policy forbids
)

func (p *portal) refusal(local bool) refusal {
	switch {
	case len(p.all) == 0:
		return rejected
	case local && len(p.own) == 0:
		return dropped
	}
	return taken
}

func protocolNumber(p corev1.Protocol) (uint8, bool) {
	switch p {
	case corev1.ProtocolTCP, "":
		return unix.IPPROTO_TCP, true
	case corev1.ProtocolUDP:
		return unix.IPPROTO_UDP, true
	case corev1.ProtocolSCTP:
		return unix.IPPROTO_SCTP, true
	}
	return 0, false
}

// ours says whether a Service is for this proxy: neither headless by its label nor
// given to another one (KEP-2447).
func ours(svc *corev1.Service) bool {
	if svc == nil || svc.Spec.Type == corev1.ServiceTypeExternalName || svc.Spec.ClusterIP == corev1.ClusterIPNone || svc.Spec.ClusterIP == "" {
		return false
	}
	_, headless := svc.Labels[corev1.IsHeadlessService]
	_, other := svc.Labels["service.kubernetes.io/service-proxy-name"]
	return !headless && !other
}

// plan says what a Service needs on a node: a portal for each port. It has no I/O.
func plan(svc *corev1.Service, endpoints []*discoveryv1.EndpointSlice, node string, nodeIP netip.Addr) []*portal {
	if !ours(svc) {
		return nil
	}
	spec := &svc.Spec
	inside := addresses(spec.ClusterIPs)
	outside := addresses(spec.ExternalIPs)
	var balancer []netip.Addr
	for _, in := range svc.Status.LoadBalancer.Ingress {
		// An address of mode Proxy takes traffic elsewhere: it stays outside (KEP-1860).
		if in.IPMode == nil || *in.IPMode == corev1.LoadBalancerIPModeVIP {
			balancer = append(balancer, addresses([]string{in.IP})...)
		}
	}
	ranges := allowed(spec.LoadBalancerSourceRanges, balancer, nodeIP)
	var out []*portal
	for i := range spec.Ports {
		port := &spec.Ports[i]
		proto, ok := protocolNumber(port.Protocol)
		if !ok {
			continue
		}
		p := &portal{id: portalID(svc.Namespace, svc.Name, port.Name, string(port.Protocol)), proto: proto, ranges: ranges}
		fronts := func(list []netip.Addr) (out []frontend) {
			for _, a := range list {
				out = append(out, frontend{a, proto, uint16(port.Port)})
			}
			return out
		}
		p.inside, p.outside = fronts(inside), fronts(outside)
		if ranges == nil {
			p.outside = append(p.outside, fronts(balancer)...)
		} else {
			p.guarded = fronts(balancer)
		}
		if port.NodePort != 0 {
			p.outside = append(p.outside, frontend{proto: proto, port: uint16(port.NodePort)})
		}
		for _, list := range []*[]frontend{&p.inside, &p.outside, &p.guarded} {
			slices.SortFunc(*list, func(a, b frontend) int { return cmp.Or(a.addr.Compare(b.addr), cmp.Compare(a.port, b.port)) })
			*list = slices.Compact(*list)
		}
		p.insideLocal = spec.InternalTrafficPolicy != nil && *spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal
		p.outsideLocal = spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal && len(p.outside)+len(p.guarded) > 0
		p.all, p.serving = backends(endpoints, port, "")
		if p.insideLocal || p.outsideLocal {
			p.own, _ = backends(endpoints, port, node)
		}
		if spec.SessionAffinity == corev1.ServiceAffinityClientIP {
			p.affinity = time.Duration(corev1.DefaultClientIPServiceAffinitySeconds) * time.Second
			if c := spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
				p.affinity = time.Duration(*c.ClientIP.TimeoutSeconds) * time.Second
			}
		}
		out = append(out, p)
	}
	return out
}

func addresses(texts []string) (out []netip.Addr) {
	for _, text := range texts {
		if a, err := netip.ParseAddr(text); err == nil && a.Is4() {
			out = append(out, a)
		}
	}
	return out
}

// allowed reads the ranges that may use a load balancer's addresses; nil: all may.
// A node in a range reaches such an address with that address as its own source,
// when it is one of the node's.
func allowed(texts []string, balancer []netip.Addr, nodeIP netip.Addr) (out []netip.Prefix) {
	if len(texts) == 0 {
		return nil
	}
	out = []netip.Prefix{} // ranges of another family let nobody in
	fromNode := false
	for _, text := range texts {
		p, err := netip.ParsePrefix(strings.TrimSpace(text))
		if err != nil || !p.Addr().Is4() {
			continue
		}
		if p.Bits() == 0 {
			return nil
		}
		out = append(out, p.Masked())
		fromNode = fromNode || p.Contains(nodeIP)
	}
	if fromNode {
		for _, a := range balancer {
			out = append(out, netip.PrefixFrom(a, 32))
		}
	}
	return out
}

// backends lists the endpoints of a Service's port, on one node or on all (""):
// the ready ones; when there are none, those that still serve while they
// terminate (KEP-1669). serving are all that may keep what flows to them.
func backends(list []*discoveryv1.EndpointSlice, port *corev1.ServicePort, node string) (ready, serving []backend) {
	var leaving []backend
	for _, s := range list {
		if s.AddressType != discoveryv1.AddressTypeIPv4 {
			continue
		}
		for _, p := range s.Ports {
			if p.Port == nil || p.Name == nil && port.Name != "" || p.Name != nil && *p.Name != port.Name {
				continue
			}
			if p.Protocol != nil && *p.Protocol != port.Protocol && port.Protocol != "" {
				continue
			}
			for i := range s.Endpoints {
				e := &s.Endpoints[i]
				if node != "" && (e.NodeName == nil || *e.NodeName != node) || len(e.Addresses) == 0 {
					continue
				}
				addr, err := netip.ParseAddr(e.Addresses[0])
				if err != nil || !addr.Is4() {
					continue
				}
				b := netip.AddrPortFrom(addr, uint16(*p.Port))
				c := e.Conditions
				isReady := c.Ready == nil || *c.Ready
				if isReady {
					ready = append(ready, b)
				} else if c.Serving != nil && *c.Serving && c.Terminating != nil && *c.Terminating {
					leaving = append(leaving, b)
				}
				if isReady || c.Serving != nil && *c.Serving {
					serving = append(serving, b)
				}
			}
		}
	}
	if len(ready) == 0 {
		ready = leaving
	}
	for _, l := range []*[]backend{&ready, &serving} {
		slices.SortFunc(*l, backend.Compare)
		*l = slices.Compact(*l)
	}
	return ready, serving
}

// portalID is short, stable and one for each port of a Service.
func portalID(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:10])
}
