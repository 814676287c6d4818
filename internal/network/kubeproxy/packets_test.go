package kubeproxy_test

import (
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/network/kubeproxy"
	"github.com/proa-dev/proa/test/control"
	"github.com/proa-dev/proa/test/netns"
)

func TestMain(m *testing.M) { netns.Main(m) }

const (
	podA, podB = "10.244.0.2", "10.244.0.6"
	nodeIP     = "192.0.2.1"
	farIP      = "192.0.2.9"
	clusterIP  = "10.96.0.9"
)

// world is a node with two pods, another machine, and the proxy on an API.
type world struct {
	t         *testing.T
	c         client.Interface
	a, b, far *netns.Namespace
}

func newWorld(t *testing.T) *world {
	t.Helper()
	netns.Need(t)
	w := &world{t: t, c: control.New(t), a: netns.New(t), b: netns.New(t), far: netns.New(t)}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
		t.Fatal(err)
	}
	netns.Join(t, w.a, "a", netip.MustParsePrefix("10.244.0.1/30"), netip.MustParsePrefix(podA+"/30"))
	netns.Join(t, w.b, "b", netip.MustParsePrefix("10.244.0.5/30"), netip.MustParsePrefix(podB+"/30"))
	netns.Join(t, w.far, "far", netip.MustParsePrefix(nodeIP+"/24"), netip.MustParsePrefix(farIP+"/24"))
	if err := netlink.RouteReplace(&netlink.Route{Gw: netip.MustParseAddr(farIP).AsSlice()}); err != nil {
		t.Fatal(err)
	}
	// What the other machine sends to nobody goes back out to it: no hint to go there directly.
	for _, name := range []string{"all", "far"} {
		if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+name+"/send_redirects", []byte("0"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	control.Run(t, kubeproxy.New(kubeproxy.Config{Client: w.c, NodeName: "here", NodeIP: netip.MustParseAddr(nodeIP), Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Pods: netip.MustParsePrefix("10.244.0.0/24"), Services: netip.MustParsePrefix("10.96.0.0/16")}))
	t.Cleanup(func() {
		if err := kubeproxy.Remove(); err != nil {
			t.Error(err)
		}
	})
	for _, network := range []string{"tcp", "udp"} {
		w.a.Serve(t, network, podA+":8080", "a")
		w.b.Serve(t, network, podB+":8080", "b")
	}
	return w
}

func (w *world) service(name string, change func(*corev1.Service)) {
	w.t.Helper()
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, ClusterIP: clusterIP,
		Ports: []corev1.ServicePort{{Name: "t", Port: 80, NodePort: 30080, Protocol: corev1.ProtocolTCP}, {Name: "u", Port: 80, NodePort: 30080, Protocol: corev1.ProtocolUDP}}}}
	if change != nil {
		change(s)
	}
	if _, err := client.Services.Create(w.t.Context(), w.c, s); err != nil {
		w.t.Fatal(err)
	}
	if len(s.Status.LoadBalancer.Ingress) > 0 {
		have, err := client.Services.Get(w.t.Context(), w.c, "default", name)
		if err != nil {
			w.t.Fatal(err)
		}
		have.Status = s.Status
		if _, err := client.Services.UpdateStatus(w.t.Context(), w.c, have); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *world) change(name string, change func(*corev1.Service)) {
	w.t.Helper()
	s, err := client.Services.Get(w.t.Context(), w.c, "default", name)
	if err != nil {
		w.t.Fatal(err)
	}
	change(s)
	if _, err := client.Services.Update(w.t.Context(), w.c, s); err != nil {
		w.t.Fatal(err)
	}
}

// endpoints sets what is behind a Service: addresses on this node, or with a "~"
// before them on another.
func (w *world) endpoints(name string, addresses ...string) {
	w.t.Helper()
	s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{
			{Name: ptr.To("t"), Port: ptr.To[int32](8080), Protocol: ptr.To(corev1.ProtocolTCP)}, {Name: ptr.To("u"), Port: ptr.To[int32](8080), Protocol: ptr.To(corev1.ProtocolUDP)}}}
	for _, a := range addresses {
		addr, elsewhere := strings.CutPrefix(a, "~")
		e := discoveryv1.Endpoint{Addresses: []string{addr}, NodeName: ptr.To("here")}
		if elsewhere {
			e.NodeName = ptr.To("there")
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	have, err := client.EndpointSlices.Get(w.t.Context(), w.c, "default", name)
	if err == nil {
		s.ResourceVersion = have.ResourceVersion
		_, err = client.EndpointSlices.Update(w.t.Context(), w.c, s)
	} else {
		_, err = client.EndpointSlices.Create(w.t.Context(), w.c, s)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// ask waits until the rules give an answer, then wants that one to stay.
func (w *world) ask(from *netns.Namespace, network, address, want string) {
	w.t.Helper()
	got := ""
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if got = from.Ask(network, address); got == want {
			return
		}
	}
	w.t.Errorf("%s %s from %s: %q, want %q", network, address, from.Path, got, want)
}

// names asks often and says which servers answered. About one connection in ten
// thousand meets the remains of another one whose source was hidden behind the
// same port, and is lost: one may be asked again.
func names(from *netns.Namespace, network, address string, times int) map[string]int {
	out, again := map[string]int{}, 1
	for i := 0; i < times; i++ {
		name := netns.Name(from.Ask(network, address))
		if (name == "lost" || name == "refused") && again > 0 {
			again--
			i--
			continue
		}
		out[name]++
	}
	return out
}

func TestEveryWayIntoAService(t *testing.T) {
	w := newWorld(t)
	w.service("web", nil)
	w.endpoints("web", podA)
	for _, network := range []string{"tcp", "udp"} {
		w.ask(w.b, network, clusterIP+":80", "a "+podB) // the pod's own address is seen
		w.ask(w.a, network, clusterIP+":80", "a 10.244.0.1")
		w.ask(netns.Host, network, clusterIP+":80", "a 10.244.0.1")
		w.ask(netns.Host, network, nodeIP+":30080", "a 10.244.0.1")
		w.ask(w.b, network, nodeIP+":30080", "a 10.244.0.1")
		w.ask(w.b, network, "10.244.0.5:30080", "a 10.244.0.1")
		w.ask(w.a, network, nodeIP+":30080", "a 10.244.0.1") // its own node port
		w.ask(w.far, network, nodeIP+":30080", "a 10.244.0.1")
		w.ask(w.far, network, clusterIP+":80", "a 10.244.0.1")
		w.ask(netns.Host, network, "127.0.0.1:30080", "refused") // nothing of the node listens
		w.ask(w.b, network, clusterIP+":81", "refused")
		w.ask(netns.Host, network, clusterIP+":81", "refused")
		w.ask(w.b, network, "10.96.0.77:80", "lost") // a ClusterIP that nobody has
	}
}

func TestEndpointsShareTheLoad(t *testing.T) {
	w := newWorld(t)
	w.service("web", nil)
	w.endpoints("web", podA, podB)
	w.ask(w.far, "tcp", clusterIP+":80", "b 10.244.0.5")
	if n := names(w.far, "tcp", clusterIP+":80", 100); n["a"] < 20 || n["b"] < 20 {
		t.Errorf("answers of %v", n)
	}
}

func TestAServiceWithoutEndpointsRefuses(t *testing.T) {
	w := newWorld(t)
	w.service("web", func(s *corev1.Service) { s.Spec.ExternalIPs = []string{"198.51.100.7"} })
	check := func(answer string) {
		t.Helper()
		want := ""
		for _, network := range []string{"tcp", "udp"} {
			for _, from := range []*netns.Namespace{w.a, w.far, netns.Host} {
				for _, to := range []string{clusterIP + ":80", nodeIP + ":30080", "198.51.100.7:80"} {
					if want = answer; answer == "b" {
						want = "b 10.244.0.5"
						if from == w.a && to == clusterIP+":80" {
							want = "b " + podA
						}
					}
					w.ask(from, network, to, want)
				}
			}
		}
	}
	check("refused")
	w.endpoints("web", podB)
	check("b")
	w.endpoints("web")
	check("refused")
	w.endpoints("web", podB)
	check("b")
	if err := client.Services.Delete(t.Context(), w.c, "default", "web", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.ask(w.a, "tcp", clusterIP+":80", "lost")
	w.ask(w.far, "tcp", nodeIP+":30080", "refused")
}

func TestPoliciesHoldTrafficToTheNode(t *testing.T) {
	w := newWorld(t)
	w.service("web", func(s *corev1.Service) {
		s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		s.Spec.InternalTrafficPolicy = ptr.To(corev1.ServiceInternalTrafficPolicyLocal)
		s.Spec.ExternalIPs = []string{"198.51.100.7"}
	})
	w.endpoints("web", podA, "~"+podB)
	// From outside only the endpoint of this node, and it sees the client.
	w.ask(w.far, "tcp", nodeIP+":30080", "a "+farIP)
	w.ask(w.far, "udp", "198.51.100.7:80", "a "+farIP)
	if n := names(w.far, "tcp", nodeIP+":30080", 30); n["a"] != 30 {
		t.Errorf("from outside: %v", n)
	}
	if n := names(w.b, "tcp", clusterIP+":80", 30); n["a"] != 30 {
		t.Errorf("the ClusterIP from a pod: %v", n)
	}
	// The node itself and its pods reach all.
	for name, from := range map[string]*netns.Namespace{"pod": w.b, "host": netns.Host} {
		if n := names(from, "tcp", nodeIP+":30080", 60); n["a"] == 0 || n["b"] == 0 || n["a"]+n["b"] != 60 {
			t.Errorf("the node port from the %s: %v", name, n)
		}
	}
	// No endpoint here: dropped, so that a load balancer tries another node.
	w.endpoints("web", "~"+podB)
	w.ask(w.far, "tcp", nodeIP+":30080", "lost")
	w.ask(w.far, "udp", "198.51.100.7:80", "lost")
	w.ask(w.a, "tcp", clusterIP+":80", "lost")
	w.ask(w.a, "tcp", nodeIP+":30080", "b "+podA)
	w.ask(netns.Host, "tcp", nodeIP+":30080", "b 10.244.0.5")
	w.endpoints("web")
	w.ask(w.far, "tcp", nodeIP+":30080", "refused")
}

func TestAClientStaysWithItsEndpoint(t *testing.T) {
	w := newWorld(t)
	w.service("web", func(s *corev1.Service) {
		s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: ptr.To[int32](2)}}
	})
	w.endpoints("web", podA)
	w.ask(w.far, "tcp", clusterIP+":80", "a 10.244.0.1")
	// Another endpoint comes: who has one keeps it, by the node port too.
	w.endpoints("web", podA, podB)
	for _, to := range []string{clusterIP + ":80", nodeIP + ":30080"} {
		if n := names(w.far, "tcp", to, 20); n["a"] != 20 {
			t.Errorf("%s: %v", to, n)
		}
	}
	// Its endpoint goes: another one, which it keeps when the first comes back.
	w.endpoints("web", podB)
	w.ask(w.far, "tcp", clusterIP+":80", "b 10.244.0.5")
	w.endpoints("web", podA, podB)
	if n := names(w.far, "tcp", clusterIP+":80", 20); n["b"] != 20 {
		t.Errorf("after a change: %v", n)
	}
	// After the time it may get another.
	other := false
	for range 20 {
		time.Sleep(2100 * time.Millisecond)
		if other = netns.Name(w.far.Ask("tcp", clusterIP+":80")) == "a"; other {
			break
		}
	}
	if !other {
		t.Error("the same endpoint after its time, 20 times")
	}
	w.change("web", func(s *corev1.Service) {
		s.Spec.SessionAffinity, s.Spec.SessionAffinityConfig = corev1.ServiceAffinityNone, nil
	})
	for deadline := time.Now().Add(5 * time.Second); ; {
		if n := names(w.far, "tcp", clusterIP+":80", 30); n["a"] > 0 && n["b"] > 0 {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("without affinity: %v", n)
		}
	}
}

func TestUDPFlowsLeaveAnEndpointThatGoes(t *testing.T) {
	w := newWorld(t)
	w.service("web", nil)
	w.endpoints("web", podA)
	from := func(want string) {
		t.Helper()
		got := ""
		for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
			if got = netns.Name(w.far.AskFrom("udp", clusterIP+":80", 5555)); got == want {
				break
			}
		}
		if got != want {
			t.Errorf("the flow goes to %q, want %q", got, want)
		}
		got = ""
		for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
			if got = netns.Name(w.far.AskFrom("udp", nodeIP+":30080", 5556)); got == want {
				return
			}
		}
		t.Errorf("the flow by the node port goes to %q, want %q", got, want)
	}
	from("a")
	w.endpoints("web", podB)
	from("b")
	w.endpoints("web")
	from("refused")
	w.endpoints("web", podA)
	from("a")
}

func TestAFlowThatWasBeforeTheServiceFindsIt(t *testing.T) {
	w := newWorld(t)
	// Nobody has the address: with neither rule nor Service it leaves by the default route.
	if got := netns.Name(w.a.AskFrom("udp", "198.51.100.7:80", 5555)); got != "refused" && got != "lost" && got != "unreachable" {
		t.Fatalf("before: %q", got)
	}
	w.service("web", func(s *corev1.Service) { s.Spec.ExternalIPs = []string{"198.51.100.7"} })
	w.endpoints("web", podB)
	got := ""
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); {
		if got = netns.Name(w.a.AskFrom("udp", "198.51.100.7:80", 5555)); got == "b" {
			return
		}
	}
	t.Errorf("after: %q", got)
}

func TestSourceRangesOfALoadBalancer(t *testing.T) {
	w := newWorld(t)
	const vip = "198.51.100.8"
	w.service("web", func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeLoadBalancer
		s.Spec.LoadBalancerSourceRanges = []string{"192.0.2.8/29", "203.0.113.0/24"}
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: vip}, {IP: "198.51.100.9", IPMode: ptr.To(corev1.LoadBalancerIPModeProxy)}}
	})
	w.endpoints("web", podA)
	w.ask(w.far, "tcp", vip+":80", "a 10.244.0.1")
	w.ask(w.b, "tcp", vip+":80", "lost")
	w.ask(w.b, "tcp", nodeIP+":30080", "a 10.244.0.1") // the node port is not the balancer's
	if got := w.b.Ask("tcp", "198.51.100.9:80"); got == "a 10.244.0.1" {
		t.Error("an address of mode Proxy is taken by the node")
	}
	w.change("web", func(s *corev1.Service) { s.Spec.LoadBalancerSourceRanges = nil })
	w.ask(w.b, "tcp", vip+":80", "a 10.244.0.1")
}

func TestAnAddressThatTwoServicesWant(t *testing.T) {
	w := newWorld(t)
	for i, name := range []string{"first", "second"} {
		w.service(name, func(s *corev1.Service) {
			s.Spec.ClusterIP = []string{"10.96.0.21", "10.96.0.22"}[i]
			s.Spec.Ports = []corev1.ServicePort{{Name: "t", Port: 80, Protocol: corev1.ProtocolTCP}}
			s.Spec.ExternalIPs = []string{"198.51.100.7"}
		})
		w.endpoints(name, []string{podA, podB}[i])
		w.ask(w.far, "tcp", []string{"10.96.0.21:80", "10.96.0.22:80"}[i], []string{"a 10.244.0.1", "b 10.244.0.5"}[i])
	}
	w.ask(w.far, "tcp", "198.51.100.7:80", "a 10.244.0.1")
	w.endpoints("first", podA, podA)
	w.ask(w.far, "tcp", "198.51.100.7:80", "a 10.244.0.1")
	if err := client.Services.Delete(t.Context(), w.c, "default", "first", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.ask(w.far, "tcp", "198.51.100.7:80", "b 10.244.0.5")
}
