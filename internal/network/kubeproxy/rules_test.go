package kubeproxy

import (
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func ptr[T any](v T) *T { return &v }

func endpoint(ip, node string, ready, serving, terminating bool) discoveryv1.Endpoint {
	return discoveryv1.Endpoint{Addresses: []string{ip}, NodeName: &node,
		Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating}}
}

func slice(endpoints ...discoveryv1.Endpoint) []*discoveryv1.EndpointSlice {
	return []*discoveryv1.EndpointSlice{{AddressType: discoveryv1.AddressTypeIPv4, Endpoints: endpoints,
		Ports: []discoveryv1.EndpointPort{{Name: ptr(""), Port: ptr(int32(8080)), Protocol: ptr(corev1.ProtocolTCP)}}}}
}

func service(change ...func(*corev1.ServiceSpec)) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: "s"}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort,
		ClusterIPs: []string{"10.96.0.9"}, ClusterIP: "10.96.0.9",
		Ports: []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP, NodePort: 30080}}}}
	for _, c := range change {
		c(&s.Spec)
	}
	return s
}

func TestPlan(t *testing.T) {
	both := slice(endpoint("10.0.0.2", "here", true, true, false), endpoint("10.0.0.1", "there", true, true, false))
	for name, c := range map[string]struct {
		svc      *corev1.Service
		slices   []*discoveryv1.EndpointSlice
		portals  int
		inside   []string // backends of the cluster IP
		outside  []string // backends of the node port
		hidesSrc bool
	}{
		"every ready endpoint, sorted": {service(), both, 2, []string{"10.0.0.1:8080", "10.0.0.2:8080"}, []string{"10.0.0.1:8080", "10.0.0.2:8080"}, true},
		"external traffic stays on the node and keeps its source": {
			service(func(s *corev1.ServiceSpec) { s.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal }), both, 2,
			[]string{"10.0.0.1:8080", "10.0.0.2:8080"}, []string{"10.0.0.2:8080"}, false},
		"internal traffic stays on the node": {
			service(func(s *corev1.ServiceSpec) { s.InternalTrafficPolicy = ptr(corev1.ServiceInternalTrafficPolicyLocal) }), both, 2,
			[]string{"10.0.0.2:8080"}, []string{"10.0.0.1:8080", "10.0.0.2:8080"}, true},
		"what is not ready gets nothing": {service(), slice(endpoint("10.0.0.1", "here", false, false, false), endpoint("10.0.0.2", "here", true, true, false)), 2,
			[]string{"10.0.0.2:8080"}, []string{"10.0.0.2:8080"}, true},
		"those that still serve when all terminate": {service(), slice(endpoint("10.0.0.1", "here", false, true, true), endpoint("10.0.0.2", "here", false, false, true)), 2,
			[]string{"10.0.0.1:8080"}, []string{"10.0.0.1:8080"}, true},
		"headless": {service(func(s *corev1.ServiceSpec) {
			s.ClusterIP, s.ClusterIPs = corev1.ClusterIPNone, []string{corev1.ClusterIPNone}
		}), both, 0, nil, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			got := plan(c.svc, c.slices, "here")
			if len(got) != c.portals {
				t.Fatalf("%d portals, want %d", len(got), c.portals)
			}
			if c.portals == 0 {
				return
			}
			for i, want := range [][]string{c.inside, c.outside} {
				var have []string
				for _, b := range got[i].backends {
					have = append(have, b.String())
				}
				if !slices.Equal(have, want) {
					t.Errorf("portal %d: %v, want %v", i, have, want)
				}
			}
			if f := got[0].frontends[0]; f.addr != netip.MustParseAddr("10.96.0.9") || f.port != 80 {
				t.Errorf("cluster IP frontend %+v", f)
			}
			if f := got[1].frontends[0]; f.addr.IsValid() || f.port != 30080 || got[1].masquerade != c.hidesSrc || got[0].masquerade {
				t.Errorf("node port frontend %+v, source hidden %v", f, got[1].masquerade)
			}
			if again := plan(c.svc, c.slices, "here"); !again[0].equal(got[0]) || !again[1].equal(got[1]) {
				t.Error("the same state makes another plan: rules would be written for nothing")
			}
		})
	}
}

func TestLostUDPBackendsAreForgotten(t *testing.T) {
	a, b := netip.MustParseAddrPort("10.0.0.1:53"), netip.MustParseAddrPort("10.0.0.2:53")
	old := &portal{udp: true, backends: []backend{a, b}}
	if got := goneUDP(old, &portal{udp: true, backends: []backend{b}}); len(got) != 1 || got[0] != a {
		t.Errorf("got %v", got)
	}
	if got := goneUDP(&portal{backends: []backend{a}}, nil); got != nil {
		t.Errorf("a TCP backend is forgotten: %v", got)
	}
}
