package dns_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/network/dns"
	"github.com/proa-dev/proa/test/control"
)

func world(t testing.TB) (client.Interface, *dns.Server, *atomic.Int32) {
	t.Helper()
	c := control.New(t)
	file, asked := upstream(t)
	s, err := dns.New(dns.Config{Client: c, Domain: "cluster.local", Listen: netip.MustParseAddrPort("127.0.0.1:0"), Resolvers: file, Logger: slog.New(slog.DiscardHandler),
		Ranges: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("10.244.0.0/16")}})
	if err != nil {
		t.Fatal(err)
	}
	control.Run(t, s)
	create := func(svc corev1.ServiceSpec, name string) {
		t.Helper()
		if _, err := client.Services.Create(t.Context(), c, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: svc}); err != nil {
			t.Fatal(err)
		}
	}
	ports := []corev1.ServicePort{{Name: "http", Port: 80}, {Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP}}
	create(corev1.ServiceSpec{ClusterIP: "10.96.1.1", Ports: ports, Selector: map[string]string{"a": "b"}}, "web")
	create(corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone, Ports: ports[:1], Selector: map[string]string{"a": "b"}}, "pods")
	create(corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "example.com"}, "out")
	create(corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "web.default.svc.cluster.local"}, "alias")
	create(corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone, Ports: ports[:1], Selector: map[string]string{"a": "c"}}, "many")
	slice := func(service string, endpoints ...discoveryv1.Endpoint) {
		t.Helper()
		if _, err := client.EndpointSlices.Create(t.Context(), c, &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: service, Labels: map[string]string{discoveryv1.LabelServiceName: service}},
			AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: ptr.To("http"), Port: ptr.To[int32](8080), Protocol: ptr.To(corev1.ProtocolTCP)}}, Endpoints: endpoints}); err != nil {
			t.Fatal(err)
		}
	}
	slice("pods", discoveryv1.Endpoint{Addresses: []string{"10.244.0.5"}, Hostname: ptr.To("first")}, discoveryv1.Endpoint{Addresses: []string{"10.244.0.6"}},
		discoveryv1.Endpoint{Addresses: []string{"10.244.0.7"}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(false)}})
	var lots []discoveryv1.Endpoint
	for i := range 100 {
		lots = append(lots, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.244.1.%d", i+1)}})
	}
	slice("many", lots...)
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if r := ask(t, s, "udp", "many.default.svc.cluster.local.", mdns.TypeA); r != nil && r.Rcode == mdns.RcodeSuccess {
			return c, s, asked
		}
		if time.Now().After(deadline) {
			t.Fatal("the server does not answer")
		}
	}
}

// upstream stands for the host's resolver; it counts what it is asked. resolv.conf
// names no ports, so each test has a loopback address of its own.
func upstream(t testing.TB) (string, *atomic.Int32) {
	t.Helper()
	asked := new(atomic.Int32)
	n := addresses.Add(1)
	host := fmt.Sprintf("127.53.%d.%d", os.Getpid()%250, n)
	conn, err := net.ListenPacket("udp", host+":53")
	if err != nil {
		t.Skipf("a resolver on port 53 of loopback is needed: %v", err)
	}
	server := &mdns.Server{PacketConn: conn, Handler: mdns.HandlerFunc(func(w mdns.ResponseWriter, r *mdns.Msg) {
		asked.Add(1)
		m := new(mdns.Msg)
		m.SetReply(r)
		switch r.Question[0].Name {
		case "example.com.":
			rr, _ := mdns.NewRR("example.com. 60 IN A 192.0.2.1")
			m.Answer = []mdns.RR{rr}
		case "broken.example.":
			m.Rcode = mdns.RcodeServerFailure
		default:
			m.Rcode = mdns.RcodeNameError
			rr, _ := mdns.NewRR("example. 60 IN SOA a. b. 1 2 3 4 30")
			m.Ns = []mdns.RR{rr}
		}
		_ = w.WriteMsg(m)
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.ActivateAndServe() }()
	t.Cleanup(func() { _ = conn.Close(); <-done })
	file := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(file, []byte("nameserver "+host+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file, asked
}

var addresses atomic.Int32

func ask(t testing.TB, s *dns.Server, network, name string, qtype uint16) *mdns.Msg {
	t.Helper()
	m := new(mdns.Msg)
	m.SetQuestion(name, qtype)
	c := mdns.Client{Net: network, Timeout: 2 * time.Second}
	r, _, err := c.ExchangeContext(context.Background(), m, s.Addr().String())
	if err != nil {
		return nil
	}
	return r
}

// text is a reply in a line: the code, then the data of the records, sorted.
func text(r *mdns.Msg) string {
	if r == nil {
		return "no answer"
	}
	var out []string
	for _, rr := range append(slices.Clone(r.Answer), r.Extra...) {
		out = append(out, strings.Join(strings.Fields(strings.TrimPrefix(rr.String(), rr.Header().String())), " "))
	}
	slices.Sort(out)
	return strings.TrimSpace(mdns.RcodeToString[r.Rcode] + " " + strings.Join(out, ", "))
}

func TestAnswers(t *testing.T) {
	_, s, _ := world(t)
	for _, c := range []struct {
		name  string
		qtype uint16
		want  string
	}{
		{"web.default.svc.cluster.local.", mdns.TypeA, "NOERROR 10.96.1.1"},
		{"WEB.Default.SVC.cluster.LOCAL.", mdns.TypeA, "NOERROR 10.96.1.1"},
		{"web.default.svc.cluster.local.", mdns.TypeAAAA, "NOERROR"},
		{"web.other.svc.cluster.local.", mdns.TypeA, "NXDOMAIN"},
		{"none.default.svc.cluster.local.", mdns.TypeA, "NXDOMAIN"},
		{"default.svc.cluster.local.", mdns.TypeA, "NOERROR"},
		{"svc.cluster.local.", mdns.TypeA, "NOERROR"},
		{"other.cluster.local.", mdns.TypeA, "NXDOMAIN"},
		{"example.com.default.svc.cluster.local.", mdns.TypeA, "NXDOMAIN"},
		{"_http._tcp.web.default.svc.cluster.local.", mdns.TypeSRV, "NOERROR 0 100 80 web.default.svc.cluster.local., 10.96.1.1"},
		{"_dns._udp.web.default.svc.cluster.local.", mdns.TypeSRV, "NOERROR 0 100 53 web.default.svc.cluster.local., 10.96.1.1"},
		{"_dns._tcp.web.default.svc.cluster.local.", mdns.TypeSRV, "NXDOMAIN"},
		{"pods.default.svc.cluster.local.", mdns.TypeA, "NOERROR 10.244.0.5, 10.244.0.6"},
		{"first.pods.default.svc.cluster.local.", mdns.TypeA, "NOERROR 10.244.0.5"},
		{"10-244-0-6.pods.default.svc.cluster.local.", mdns.TypeA, "NOERROR 10.244.0.6"},
		{"10-244-0-7.pods.default.svc.cluster.local.", mdns.TypeA, "NXDOMAIN"},
		{"_http._tcp.pods.default.svc.cluster.local.", mdns.TypeSRV, "NOERROR 0 50 8080 10-244-0-6.pods.default.svc.cluster.local., 0 50 8080 first.pods.default.svc.cluster.local., 10.244.0.5, 10.244.0.6"},
		{"1-2-3-4.default.pod.cluster.local.", mdns.TypeA, "NOERROR 1.2.3.4"},
		{"1-2-3-4.other.pod.cluster.local.", mdns.TypeA, "NXDOMAIN"},
		{"dns-version.cluster.local.", mdns.TypeTXT, `NOERROR "1.1.0"`},
		{"1.1.96.10.in-addr.arpa.", mdns.TypePTR, "NOERROR web.default.svc.cluster.local."},
		{"5.0.244.10.in-addr.arpa.", mdns.TypePTR, "NOERROR first.pods.default.svc.cluster.local."},
		{"9.9.96.10.in-addr.arpa.", mdns.TypePTR, "NXDOMAIN"},
		{"out.default.svc.cluster.local.", mdns.TypeCNAME, "NOERROR example.com."},
		{"out.default.svc.cluster.local.", mdns.TypeA, "NOERROR 192.0.2.1, example.com."},
		{"alias.default.svc.cluster.local.", mdns.TypeA, "NOERROR 10.96.1.1, web.default.svc.cluster.local."},
		{"example.com.", mdns.TypeA, "NOERROR 192.0.2.1"},
		{"unknown.example.", mdns.TypeA, "NXDOMAIN"},
		{"broken.example.", mdns.TypeA, "SERVFAIL"},
	} {
		for _, network := range []string{"udp", "tcp"} {
			if network == "tcp" && strings.Contains(c.name, "example.") && !strings.HasSuffix(c.name, "cluster.local.") {
				continue // the resolver of the test has no TCP
			}
			if network == "tcp" && strings.HasPrefix(c.name, "out.") && c.qtype == mdns.TypeA {
				continue
			}
			if got := text(ask(t, s, network, c.name, c.qtype)); got != c.want {
				t.Errorf("%s %s over %s: %s, want %s", c.name, mdns.TypeToString[c.qtype], network, got, c.want)
			}
		}
	}
}

func TestALongAnswerIsCutOverUDP(t *testing.T) {
	_, s, _ := world(t)
	r := ask(t, s, "udp", "many.default.svc.cluster.local.", mdns.TypeA)
	if r == nil || !r.Truncated || len(r.Answer) == 0 || len(r.Answer) == 100 {
		t.Errorf("over UDP: %v", text(r))
	}
	if r := ask(t, s, "tcp", "many.default.svc.cluster.local.", mdns.TypeA); r == nil || r.Truncated || len(r.Answer) != 100 {
		t.Errorf("over TCP: %v", text(r))
	}
}

func TestChangesAreSeen(t *testing.T) {
	c, s, _ := world(t)
	slice, err := client.EndpointSlices.Get(t.Context(), c, "default", "pods")
	if err != nil {
		t.Fatal(err)
	}
	slice.Endpoints = slice.Endpoints[1:2]
	if _, err := client.EndpointSlices.Update(t.Context(), c, slice); err != nil {
		t.Fatal(err)
	}
	until(t, s, "pods.default.svc.cluster.local.", "NOERROR 10.244.0.6")
	if err := client.Services.Delete(t.Context(), c, "default", "web", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	until(t, s, "web.default.svc.cluster.local.", "NXDOMAIN")
	if got := text(ask(t, s, "udp", "1.1.96.10.in-addr.arpa.", mdns.TypePTR)); got != "NXDOMAIN" {
		t.Errorf("the address of a deleted service: %s", got)
	}
}

func until(t *testing.T, s *dns.Server, name, want string) {
	t.Helper()
	got := ""
	for range 2000 {
		if got = text(ask(t, s, "udp", name, mdns.TypeA)); got == want {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Errorf("%s: %s, want %s", name, got, want)
}

func TestForeignAnswersAreKept(t *testing.T) {
	_, s, asked := world(t)
	for range 20 {
		if got := text(ask(t, s, "udp", "example.com.", mdns.TypeA)); got != "NOERROR 192.0.2.1" {
			t.Fatal(got)
		}
		if got := text(ask(t, s, "udp", "unknown.example.", mdns.TypeA)); got != "NXDOMAIN" {
			t.Fatal(got)
		}
	}
	if n := asked.Load(); n != 2 {
		t.Errorf("the resolver was asked %d times, want once for each name", n)
	}
}

// FuzzAnswer: no message makes the server fail, and every reply can be sent.
func FuzzAnswer(f *testing.F) {
	for _, name := range []string{"web.default.svc.cluster.local.", "_http._tcp.pods.default.svc.cluster.local.", "1.1.96.10.in-addr.arpa.", "cluster.local.", "1.0.0.0.ip6.arpa."} {
		m := new(mdns.Msg)
		m.SetQuestion(name, mdns.TypeA)
		m.SetEdns0(4096, true)
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	_, s, _ := world(f)
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // nothing is asked of other resolvers
	f.Fuzz(func(t *testing.T, data []byte) {
		m := new(mdns.Msg)
		if m.Unpack(data) != nil {
			return
		}
		if _, err := s.Answer(ctx, m, false).Pack(); err != nil && len(m.Question) == 1 {
			// A name that was read can be written.
			if _, again := m.Pack(); again == nil {
				t.Errorf("the reply cannot be sent: %v", err)
			}
		}
	})
}

func BenchmarkServiceAddress(b *testing.B) {
	_, s, _ := world(b)
	m := new(mdns.Msg)
	m.SetQuestion("web.default.svc.cluster.local.", mdns.TypeA)
	wire, err := m.Pack()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		q := new(mdns.Msg)
		if err := q.Unpack(wire); err != nil {
			b.Fatal(err)
		}
		if _, err := s.Answer(context.Background(), q, false).Pack(); err != nil {
			b.Fatal(err)
		}
	}
}
