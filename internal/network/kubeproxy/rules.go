package kubeproxy

import (
	"cmp"
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"net/netip"
	"slices"
	"strings"

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

// portal is what one port of a Service is turned into: frontends that share a list
// of backends. It is compared with the one before to see what changed.
type portal struct {
	chain     string
	frontends []frontend
	backends  []backend
	affinity  bool // the same client goes to the same backend
	// masquerade hides the client's address, so that the answer comes back this way:
	// for traffic that entered at a node port.
	masquerade bool
	udp        bool
}

func (p *portal) equal(q *portal) bool {
	return q != nil && p.chain == q.chain && p.affinity == q.affinity && p.masquerade == q.masquerade &&
		slices.Equal(p.frontends, q.frontends) && slices.Equal(p.backends, q.backends)
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

// plan says what a Service needs on a node: one portal for each port for its
// cluster and external addresses, and one for its node port. It has no I/O.
func plan(svc *corev1.Service, endpoints []*discoveryv1.EndpointSlice, node string) []*portal {
	if svc == nil || svc.Spec.Type == corev1.ServiceTypeExternalName || svc.Spec.ClusterIP == corev1.ClusterIPNone {
		return nil
	}
	var inside []netip.Addr
	for _, ip := range append(append([]string(nil), svc.Spec.ClusterIPs...), svc.Spec.ExternalIPs...) {
		if a, err := netip.ParseAddr(ip); err == nil && a.Is4() {
			inside = append(inside, a)
		}
	}
	var outside []netip.Addr
	for _, in := range svc.Status.LoadBalancer.Ingress {
		if a, err := netip.ParseAddr(in.IP); err == nil && a.Is4() && (in.IPMode == nil || *in.IPMode == corev1.LoadBalancerIPModeVIP) {
			outside = append(outside, a)
		}
	}
	internalLocal := svc.Spec.InternalTrafficPolicy != nil && *svc.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal
	externalLocal := svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
	affinity := svc.Spec.SessionAffinity == corev1.ServiceAffinityClientIP
	var out []*portal
	for i := range svc.Spec.Ports {
		port := &svc.Spec.Ports[i]
		proto, ok := protocolNumber(port.Protocol)
		if !ok {
			continue
		}
		build := func(kind string, fronts []frontend, local, masquerade bool) {
			if len(fronts) == 0 {
				return
			}
			slices.SortFunc(fronts, func(a, b frontend) int { return cmp.Or(a.addr.Compare(b.addr), cmp.Compare(a.port, b.port)) })
			out = append(out, &portal{
				chain:     chainName(kind, svc.Namespace, svc.Name, port.Name, string(port.Protocol)),
				frontends: fronts, backends: backends(endpoints, port, node, local),
				affinity: affinity, masquerade: masquerade, udp: proto == unix.IPPROTO_UDP,
			})
		}
		var fronts []frontend
		for _, a := range inside {
			fronts = append(fronts, frontend{a, proto, uint16(port.Port)})
		}
		build("svc", fronts, internalLocal, false)
		fronts = nil
		for _, a := range outside {
			fronts = append(fronts, frontend{a, proto, uint16(port.Port)})
		}
		if port.NodePort != 0 {
			fronts = append(fronts, frontend{proto: proto, port: uint16(port.NodePort)})
		}
		build("ext", fronts, externalLocal, !externalLocal)
	}
	return out
}

// backends lists the endpoints of a Service's port: the ready ones; when there
// are none, those that still serve while they terminate (KEP-1669).
func backends(list []*discoveryv1.EndpointSlice, port *corev1.ServicePort, node string, local bool) []backend {
	var ready, serving []backend
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
				if local && (e.NodeName == nil || *e.NodeName != node) || len(e.Addresses) == 0 {
					continue
				}
				addr, err := netip.ParseAddr(e.Addresses[0])
				if err != nil || !addr.Is4() {
					continue
				}
				b := netip.AddrPortFrom(addr, uint16(*p.Port))
				c := e.Conditions
				switch {
				case c.Ready == nil || *c.Ready:
					ready = append(ready, b)
				case c.Serving != nil && *c.Serving && c.Terminating != nil && *c.Terminating:
					serving = append(serving, b)
				}
			}
		}
	}
	if len(ready) == 0 {
		ready = serving
	}
	slices.SortFunc(ready, backend.Compare)
	return slices.Compact(ready)
}

// chainName is short, stable and one for each port of a Service.
func chainName(kind string, parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return fmt.Sprintf("%s-%s", kind, base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:10]))
}
