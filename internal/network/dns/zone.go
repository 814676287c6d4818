package dns

import (
	"net/netip"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/proa-dev/proa/internal/client"
)

// zone is what the cluster's names stand for. It is kept by events, a Service at a
// time; a lookup reads maps.
type zone struct {
	mu         sync.RWMutex
	namespaces map[string]bool
	services   map[types.NamespacedName]*service
	slices     map[types.NamespacedName]map[string]*discoveryv1.EndpointSlice // by Service, then slice
	// owners are the Services with an address, as ClusterIP or as endpoint.
	clusterIPs map[netip.Addr]types.NamespacedName
	endpoints  map[netip.Addr]map[types.NamespacedName]bool
}

// service is one Service as it is answered. It is never changed, but replaced.
type service struct {
	spec      *corev1.Service // nil: only slices are known yet
	addresses []netip.Addr    // ClusterIPs; none when headless
	external  string          // of an ExternalName, with a final dot
	hosts     []host          // of a headless Service
	all       []host          // of any Service, for reverse lookups
}

// host is one address behind a Service.
type host struct {
	name  string // the hostname, or the address with dashes
	addr  netip.Addr
	ports []port
}

type port struct {
	name, protocol string
	number         uint16
}

func newZone() *zone {
	return &zone{namespaces: map[string]bool{}, services: map[types.NamespacedName]*service{}, slices: map[types.NamespacedName]map[string]*discoveryv1.EndpointSlice{},
		clusterIPs: map[netip.Addr]types.NamespacedName{}, endpoints: map[netip.Addr]map[types.NamespacedName]bool{}}
}

func (z *zone) namespaceEvent(e client.Event) {
	if e.Object == nil {
		return
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	if e.Type == client.Deleted {
		delete(z.namespaces, e.Object.GetName())
	} else {
		z.namespaces[e.Object.GetName()] = true
	}
}

func (z *zone) serviceEvent(e client.Event) {
	if e.Object == nil {
		return
	}
	svc := e.Object.(*corev1.Service)
	if e.Type == client.Deleted {
		svc = nil
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	z.rebuild(types.NamespacedName{Namespace: e.Object.GetNamespace(), Name: e.Object.GetName()}, svc)
}

func (z *zone) sliceEvent(e client.Event) {
	if e.Object == nil {
		return
	}
	s := e.Object.(*discoveryv1.EndpointSlice)
	key := types.NamespacedName{Namespace: s.Namespace, Name: s.Labels[discoveryv1.LabelServiceName]}
	z.mu.Lock()
	defer z.mu.Unlock()
	if old, ok := e.Old.(*discoveryv1.EndpointSlice); ok {
		if was := old.Labels[discoveryv1.LabelServiceName]; was != key.Name {
			z.setSlice(types.NamespacedName{Namespace: s.Namespace, Name: was}, old.Name, nil)
		}
	}
	if e.Type == client.Deleted {
		z.setSlice(key, s.Name, nil)
	} else {
		z.setSlice(key, s.Name, s)
	}
}

func (z *zone) setSlice(key types.NamespacedName, name string, s *discoveryv1.EndpointSlice) {
	if key.Name == "" {
		return
	}
	switch {
	case s == nil:
		delete(z.slices[key], name)
		if len(z.slices[key]) == 0 {
			delete(z.slices, key)
		}
	case z.slices[key] == nil:
		z.slices[key] = map[string]*discoveryv1.EndpointSlice{name: s}
	default:
		z.slices[key][name] = s
	}
	var svc *corev1.Service
	if have := z.services[key]; have != nil {
		svc = have.spec
	}
	z.rebuild(key, svc)
}

// rebuild works out a Service anew from its spec (nil: it is gone) and its slices.
func (z *zone) rebuild(key types.NamespacedName, svc *corev1.Service) {
	if old := z.services[key]; old != nil {
		for _, a := range old.addresses {
			if z.clusterIPs[a] == key {
				delete(z.clusterIPs, a)
			}
		}
		for _, h := range old.all {
			delete(z.endpoints[h.addr], key)
			if len(z.endpoints[h.addr]) == 0 {
				delete(z.endpoints, h.addr)
			}
		}
		delete(z.services, key)
	}
	if svc == nil {
		return
	}
	s := &service{spec: svc}
	for _, ip := range svc.Spec.ClusterIPs {
		if a, err := netip.ParseAddr(ip); err == nil {
			s.addresses = append(s.addresses, a)
			z.clusterIPs[a] = key
		}
	}
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		s.external = strings.TrimSuffix(svc.Spec.ExternalName, ".") + "."
	}
	s.all = hosts(z.slices[key], svc.Spec.PublishNotReadyAddresses)
	if svc.Spec.ClusterIP == corev1.ClusterIPNone {
		s.hosts = s.all
	}
	for _, h := range s.all {
		if z.endpoints[h.addr] == nil {
			z.endpoints[h.addr] = map[types.NamespacedName]bool{}
		}
		z.endpoints[h.addr][key] = true
	}
	z.services[key] = s
}

// hosts lists the ready endpoints of slices, each address once, in the order of
// slices and of endpoints in them.
func hosts(slicesOf map[string]*discoveryv1.EndpointSlice, unready bool) (out []host) {
	names := make([]string, 0, len(slicesOf))
	for name := range slicesOf {
		names = append(names, name)
	}
	slices.Sort(names)
	at := map[netip.Addr]int{}
	for _, name := range names {
		s := slicesOf[name]
		var ports []port
		for _, p := range s.Ports {
			if p.Port != nil {
				ports = append(ports, port{name: deref(p.Name, ""), protocol: strings.ToLower(string(deref(p.Protocol, corev1.ProtocolTCP))), number: uint16(*p.Port)})
			}
		}
		for _, e := range s.Endpoints {
			if !unready && !deref(e.Conditions.Ready, true) {
				continue
			}
			for _, text := range e.Addresses {
				a, err := netip.ParseAddr(text)
				if err != nil {
					continue
				}
				if i, ok := at[a]; ok { // the same pod in a slice of other ports
					out[i].ports = append(slices.Clone(out[i].ports), ports...)
					continue
				}
				at[a] = len(out)
				out = append(out, host{name: hostName(e.Hostname, a), addr: a, ports: ports})
			}
		}
	}
	return out
}

func hostName(name *string, a netip.Addr) string {
	if name != nil && *name != "" {
		return strings.ToLower(*name)
	}
	return dashed(a)
}

// dashed is an address as a label: 10-0-0-1, or fd00--1.
func dashed(a netip.Addr) string {
	return strings.NewReplacer(".", "-", ":", "-").Replace(a.String())
}

func deref[T any](p *T, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}
