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
		svc     *corev1.Service
		slices  []*discoveryv1.EndpointSlice
		portals int
		inside  []string // backends of the cluster IP
		outside []string // backends of the node port
	}{
		"every ready endpoint, sorted": {service(), both, 1, []string{"10.0.0.1:8080", "10.0.0.2:8080"}, []string{"10.0.0.1:8080", "10.0.0.2:8080"}},
		"external traffic stays on the node and keeps its source": {
			service(func(s *corev1.ServiceSpec) { s.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal }), both, 1,
			[]string{"10.0.0.1:8080", "10.0.0.2:8080"}, []string{"10.0.0.2:8080"}},
		"internal traffic stays on the node": {
			service(func(s *corev1.ServiceSpec) { s.InternalTrafficPolicy = ptr(corev1.ServiceInternalTrafficPolicyLocal) }), both, 1,
			[]string{"10.0.0.2:8080"}, []string{"10.0.0.1:8080", "10.0.0.2:8080"}},
		"what is not ready gets nothing": {service(), slice(endpoint("10.0.0.1", "here", false, false, false), endpoint("10.0.0.2", "here", true, true, false)), 1,
			[]string{"10.0.0.2:8080"}, []string{"10.0.0.2:8080"}},
		"those that still serve when all terminate": {service(), slice(endpoint("10.0.0.1", "here", false, true, true), endpoint("10.0.0.2", "here", false, false, true)), 1,
			[]string{"10.0.0.1:8080"}, []string{"10.0.0.1:8080"}},
		"headless": {service(func(s *corev1.ServiceSpec) {
			s.ClusterIP, s.ClusterIPs = corev1.ClusterIPNone, []string{corev1.ClusterIPNone}
		}), both, 0, nil, nil},
		"given to another proxy": {func() *corev1.Service {
			s := service()
			s.Labels = map[string]string{"service.kubernetes.io/service-proxy-name": "other"}
			return s
		}(), both, 0, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			got := plan(c.svc, c.slices, "here", netip.MustParseAddr("192.0.2.1"))
			if len(got) != c.portals {
				t.Fatalf("%d portals, want %d", len(got), c.portals)
			}
			if c.portals == 0 {
				return
			}
			p := got[0]
			for _, way := range []struct {
				name  string
				local bool
				want  []string
			}{{"inside", p.insideLocal, c.inside}, {"outside", p.outsideLocal, c.outside}} {
				list := p.all
				if way.local {
					list = p.own
				}
				var have []string
				for _, b := range list {
					have = append(have, b.String())
				}
				if !slices.Equal(have, way.want) {
					t.Errorf("%s: %v, want %v", way.name, have, way.want)
				}
			}
			if f := p.inside[0]; f.addr != netip.MustParseAddr("10.96.0.9") || f.port != 80 {
				t.Errorf("cluster IP frontend %+v", f)
			}
			if f := p.outside[0]; f.addr.IsValid() || f.port != 30080 {
				t.Errorf("node port frontend %+v", f)
			}
			if again := plan(c.svc, c.slices, "here", netip.MustParseAddr("192.0.2.1")); !again[0].equal(p) {
				t.Error("the same state makes another plan: rules would be written for nothing")
			}
		})
	}
}
