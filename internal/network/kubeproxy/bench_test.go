package kubeproxy

import (
	"fmt"
	"log/slog"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	k8sptr "k8s.io/utils/ptr"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/test/netns"
)

func many(services, endpoints int) *Proxy {
	p := New(Config{NodeName: "here", NodeIP: netip.MustParseAddr("192.0.2.1"), Logger: slog.New(slog.DiscardHandler),
		Pods: netip.MustParsePrefix("10.128.0.0/9"), Services: netip.MustParsePrefix("10.96.0.0/12")})
	for i := range services {
		name := fmt.Sprintf("s%d", i)
		p.serviceEvent(client.Event{Type: client.Added, Object: &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
			Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIP: netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}).String(),
				Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}}}}})
		p.sliceEvent(client.Event{Type: client.Added, Object: sliceOf(name, i, endpoints)})
	}
	return p
}

func sliceOf(service string, i, endpoints int) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: service, Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: k8sptr.To("http"), Port: k8sptr.To(int32(8080)), Protocol: k8sptr.To(corev1.ProtocolTCP)}}}
	for k := range endpoints {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{netip.AddrFrom4([4]byte{10, byte(128 + i>>8), byte(i), byte(k + 1)}).String()},
			NodeName: k8sptr.To("there"), Conditions: discoveryv1.EndpointConditions{Ready: k8sptr.To(true)}})
	}
	return s
}

// Aim: 1 s for 10,000 Services of 10 endpoints.
func BenchmarkFirstSync(b *testing.B) {
	netns.Need(b)
	for _, services := range []int{100, 10000} {
		b.Run(fmt.Sprintf("services=%d", services), func(b *testing.B) {
			p := many(services, 10)
			b.Cleanup(func() { _ = Remove() })
			for b.Loop() {
				if _, err := p.fresh(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// Aim: 1 ms, and the same beside 100 and beside 10,000 Services.
func BenchmarkOneEndpoint(b *testing.B) {
	netns.Need(b)
	for _, services := range []int{100, 10000} {
		b.Run(fmt.Sprintf("services=%d", services), func(b *testing.B) {
			p := many(services, 10)
			b.Cleanup(func() { _ = Remove() })
			t, err := p.fresh()
			if err != nil {
				b.Fatal(err)
			}
			n := 0
			for b.Loop() {
				n++
				p.sliceEvent(client.Event{Type: client.Modified, Object: sliceOf("s7", 7, 9+n%2)})
				if err := p.sync(t); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
