package admission

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver/rest"
)

var servicesGVR = corev1.SchemeGroupVersion.WithResource("services")

// pendingFor is how long an address that was handed out stays taken before the
// Service that asked for it is seen in the store. The write that follows is over
// in far less; a refused one gives its address back by this time-out, so a crash
// or an error never leaks one: the Services themselves are the only record.
const pendingFor = 30 * time.Second

// Addresses gives Services their cluster IPs and node ports.
type Addresses struct {
	reader    Reader
	cidr      netip.Prefix
	low, high int32 // node ports, inclusive
	now       func() time.Time

	mu    sync.Mutex
	ips   map[netip.Addr]pending
	ports map[portKey]pending
	ipv4  bool
}

type pending struct {
	owner string // namespace/name
	until time.Time
}

type portKey struct {
	protocol corev1.Protocol
	port     int32
}

// NewAddresses returns an allocator over an IPv4 or IPv6 range and a range of node ports.
func NewAddresses(reader Reader, cidr netip.Prefix, low, high int32, now func() time.Time) *Addresses {
	return &Addresses{reader: reader, cidr: cidr.Masked(), low: low, high: high, now: now,
		ips: map[netip.Addr]pending{}, ports: map[portKey]pending{}, ipv4: cidr.Addr().Is4()}
}

// family is the only IP family of the range.
func (p *Addresses) family() corev1.IPFamily {
	if p.ipv4 {
		return corev1.IPv4Protocol
	}
	return corev1.IPv6Protocol
}

func (p *Addresses) AdmitLast(_ context.Context, a *rest.Attributes) error {
	if !is(a, "", "services", rest.Create, rest.Update) {
		return nil
	}
	svc, ok := a.Object.(*corev1.Service)
	if !ok {
		return nil
	}
	old, _ := a.Old.(*corev1.Service)
	p.mu.Lock()
	defer p.mu.Unlock()
	owner := svc.Namespace + "/" + svc.Name
	used := p.used(owner)
	if errs := p.clusterIP(svc, old, owner, used, a.DryRun); len(errs) > 0 {
		return apierrors.NewInvalid(a.Resource.GVK.GroupKind(), svc.Name, errs)
	}
	if errs := p.nodePorts(svc, old, owner, used, a.DryRun); len(errs) > 0 {
		return apierrors.NewInvalid(a.Resource.GVK.GroupKind(), svc.Name, errs)
	}
	return nil
}

type usage struct {
	ips   map[netip.Addr]bool
	ports map[portKey]bool
}

// used collects what other Services hold, from the state and from writes under way.
func (p *Addresses) used(owner string) usage {
	u := usage{ips: map[netip.Addr]bool{}, ports: map[portKey]bool{}}
	for _, obj := range p.reader.List(servicesGVR, "") {
		s := obj.(*corev1.Service)
		if key(s) == owner {
			continue
		}
		for _, ip := range s.Spec.ClusterIPs {
			if addr, err := netip.ParseAddr(ip); err == nil {
				u.ips[addr] = true
			}
		}
		for _, port := range s.Spec.Ports {
			if port.NodePort != 0 {
				u.ports[portKey{port.Protocol, port.NodePort}] = true
			}
		}
		if s.Spec.HealthCheckNodePort != 0 {
			u.ports[portKey{corev1.ProtocolTCP, s.Spec.HealthCheckNodePort}] = true
		}
	}
	now := p.now()
	for ip, w := range p.ips {
		if now.After(w.until) {
			delete(p.ips, ip)
		} else if w.owner != owner {
			u.ips[ip] = true
		}
	}
	for k, w := range p.ports {
		if now.After(w.until) {
			delete(p.ports, k)
		} else if w.owner != owner {
			u.ports[k] = true
		}
	}
	return u
}

func key(o api.Object) string { return o.GetNamespace() + "/" + o.GetName() }

func (p *Addresses) clusterIP(svc, old *corev1.Service, owner string, used usage, dry bool) field.ErrorList {
	spec := &svc.Spec
	if spec.Type == corev1.ServiceTypeExternalName {
		return nil
	}
	if len(spec.ClusterIPs) == 0 && spec.ClusterIP != "" {
		spec.ClusterIPs = []string{spec.ClusterIP}
	}
	if spec.ClusterIP == "" && len(spec.ClusterIPs) > 0 {
		spec.ClusterIP = spec.ClusterIPs[0]
	}
	if spec.ClusterIP == "" && old != nil && old.Spec.Type != corev1.ServiceTypeExternalName && old.Spec.ClusterIP != "" {
		// A writer that does not mention the address keeps it.
		spec.ClusterIP, spec.ClusterIPs = old.Spec.ClusterIP, append([]string(nil), old.Spec.ClusterIPs...)
	}
	if len(spec.IPFamilies) == 0 {
		spec.IPFamilies = []corev1.IPFamily{p.family()}
	} else if spec.IPFamilies[0] != p.family() {
		return field.ErrorList{field.Invalid(field.NewPath("spec", "ipFamilies").Index(0), spec.IPFamilies[0], "not configured on this cluster")}
	}
	if spec.IPFamilyPolicy == nil {
		single := corev1.IPFamilyPolicySingleStack
		spec.IPFamilyPolicy = &single
	} else if *spec.IPFamilyPolicy == corev1.IPFamilyPolicyRequireDualStack {
		return field.ErrorList{field.Invalid(field.NewPath("spec", "ipFamilyPolicy"), *spec.IPFamilyPolicy, "this cluster is not configured for dual-stack services")}
	}
	if spec.ClusterIP == corev1.ClusterIPNone {
		return nil
	}
	if spec.ClusterIP != "" {
		if old != nil && old.Spec.ClusterIP == spec.ClusterIP {
			return nil
		}
		path := field.NewPath("spec", "clusterIPs").Index(0)
		addr, err := netip.ParseAddr(spec.ClusterIP)
		if err != nil {
			return nil // validation says what is wrong with it
		}
		fail := func(why string) field.ErrorList {
			return field.ErrorList{field.Invalid(path, spec.ClusterIPs, "failed to allocate IP "+spec.ClusterIP+": "+why)}
		}
		switch {
		case !p.usable(addr):
			return fail(fmt.Sprintf("the provided IP is not in the valid range. The range of valid IPs is %s", p.cidr))
		case used.ips[addr]:
			return fail("provided IP is already allocated")
		}
		p.takeIP(addr, owner, dry)
		return nil
	}
	addr, ok := p.pick(used)
	if !ok {
		return field.ErrorList{field.InternalError(field.NewPath("spec", "clusterIPs"), fmt.Errorf("failed to allocate a serviceIP: range %s is full", p.cidr))}
	}
	p.takeIP(addr, owner, dry)
	spec.ClusterIP, spec.ClusterIPs = addr.String(), []string{addr.String()}
	return nil
}

func (p *Addresses) takeIP(addr netip.Addr, owner string, dry bool) {
	if !dry {
		p.ips[addr] = pending{owner, p.now().Add(pendingFor)}
	}
}

// usable leaves out the network's own address and, for IPv4, the broadcast one.
func (p *Addresses) usable(addr netip.Addr) bool {
	return p.cidr.Contains(addr) && addr != p.cidr.Addr() && (!p.ipv4 || p.cidr.Contains(addr.Next()))
}

// reservedLow is how many addresses at the start of the range are left to those
// who ask for one by name (KEP-3070: the lower part of the range).
func (p *Addresses) reservedLow() int {
	size := p.size()
	return max(0, min(256, max(16, size/16)))
}

func (p *Addresses) size() int {
	bits := p.cidr.Addr().BitLen() - p.cidr.Bits()
	if bits > 20 {
		return 1 << 20
	}
	return 1 << bits
}

// pick chooses a free address at random from the upper part, then from anywhere.
func (p *Addresses) pick(used usage) (netip.Addr, bool) {
	size, low := p.size(), p.reservedLow()
	if low >= size-2 {
		low = 1
	}
	for range 8 {
		if addr := p.at(low + rand.IntN(size-low)); p.usable(addr) && !used.ips[addr] {
			return addr, true
		}
	}
	for _, r := range [][2]int{{low, size}, {1, low}} {
		for i := r[0]; i < r[1]; i++ {
			if addr := p.at(i); p.usable(addr) && !used.ips[addr] {
				return addr, true
			}
		}
	}
	return netip.Addr{}, false
}

func (p *Addresses) at(offset int) netip.Addr {
	b := p.cidr.Addr().AsSlice()
	for i := len(b) - 1; i >= 0 && offset > 0; i-- {
		sum := int(b[i]) + offset&0xff
		b[i] = byte(sum)
		offset = offset>>8 + sum>>8
	}
	addr, _ := netip.AddrFromSlice(b)
	return addr
}

func (p *Addresses) nodePorts(svc, old *corev1.Service, owner string, used usage, dry bool) field.ErrorList {
	spec := &svc.Spec
	wants := spec.Type == corev1.ServiceTypeNodePort ||
		spec.Type == corev1.ServiceTypeLoadBalancer && (spec.AllocateLoadBalancerNodePorts == nil || *spec.AllocateLoadBalancerNodePorts)
	may := spec.Type == corev1.ServiceTypeNodePort || spec.Type == corev1.ServiceTypeLoadBalancer
	if !may {
		// A Service that stops to need node ports gives up those it had; asking for
		// one is refused by validation.
		if old != nil && old.Spec.Type != spec.Type {
			for i := range spec.Ports {
				if i < len(old.Spec.Ports) && spec.Ports[i].NodePort == old.Spec.Ports[i].NodePort {
					spec.Ports[i].NodePort = 0
				}
			}
		}
		return nil
	}
	had := map[portKey]bool{}
	if old != nil {
		keepPorts(spec, &old.Spec)
		for _, port := range old.Spec.Ports {
			had[portKey{port.Protocol, port.NodePort}] = true
		}
	}
	mine := map[portKey]bool{}
	same := map[int32]int32{} // service port -> node port, so that TCP and UDP of one port share it
	for i := range spec.Ports {
		port := &spec.Ports[i]
		if port.NodePort == 0 {
			continue
		}
		path := field.NewPath("spec", "ports").Index(i).Child("nodePort")
		k := portKey{port.Protocol, port.NodePort}
		if !had[k] {
			if port.NodePort < p.low || port.NodePort > p.high {
				return field.ErrorList{field.Invalid(path, port.NodePort, fmt.Sprintf("provided port is not in the valid range. The range of valid ports is %d-%d", p.low, p.high))}
			}
			if used.ports[k] || mine[k] {
				return field.ErrorList{field.Invalid(path, port.NodePort, "provided port is already allocated")}
			}
			p.takePort(k, owner, dry)
		}
		mine[k] = true
		same[port.Port] = port.NodePort
	}
	if !wants {
		return nil
	}
	for i := range spec.Ports {
		port := &spec.Ports[i]
		if port.NodePort != 0 {
			continue
		}
		free := func(n int32) bool {
			k := portKey{port.Protocol, n}
			return !used.ports[k] && !mine[k]
		}
		n, ok := same[port.Port]
		if !ok || !free(n) {
			if n, ok = p.pickPort(free); !ok {
				return field.ErrorList{field.InternalError(field.NewPath("spec", "ports").Index(i).Child("nodePort"),
					fmt.Errorf("failed to allocate a nodePort: range %d-%d is full", p.low, p.high))}
			}
		}
		port.NodePort = n
		same[port.Port] = n
		k := portKey{port.Protocol, n}
		mine[k] = true
		p.takePort(k, owner, dry)
	}
	return nil
}

// keepPorts carries node ports over for a writer that does not mention them.
func keepPorts(spec, old *corev1.ServiceSpec) {
	taken := map[portKey]bool{}
	for _, port := range spec.Ports {
		taken[portKey{port.Protocol, port.NodePort}] = true
	}
	for i := range spec.Ports {
		if spec.Ports[i].NodePort != 0 {
			continue
		}
		for _, was := range old.Ports {
			k := portKey{was.Protocol, was.NodePort}
			if was.Port == spec.Ports[i].Port && was.Protocol == spec.Ports[i].Protocol && was.NodePort != 0 && !taken[k] {
				spec.Ports[i].NodePort = was.NodePort
				taken[k] = true
			}
		}
	}
}

func (p *Addresses) takePort(k portKey, owner string, dry bool) {
	if !dry {
		p.ports[k] = pending{owner, p.now().Add(pendingFor)}
	}
}

func (p *Addresses) pickPort(free func(int32) bool) (int32, bool) {
	n := p.high - p.low + 1
	start := rand.Int32N(n)
	for i := range n {
		if port := p.low + (start+i)%n; free(port) {
			return port, true
		}
	}
	return 0, false
}
