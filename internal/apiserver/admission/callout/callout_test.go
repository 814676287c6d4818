package callout

import (
	"context"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/utils/ptr"

	"github.com/proa-dev/proa/internal/api"
)

type state map[string]api.Object

func (s state) Get(gvr schema.GroupVersionResource, ns, name string) (api.Object, bool) {
	o, ok := s[gvr.Resource+"/"+ns+"/"+name]
	return o, ok
}

func (s state) List(gvr schema.GroupVersionResource, ns string) (out []api.Object) {
	for k, o := range s {
		if strings.HasPrefix(k, gvr.Resource+"/"+ns+"/") {
			out = append(out, o)
		}
	}
	return out
}

func service(change func(*corev1.ServiceSpec)) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "s"}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.7", Ports: []corev1.ServicePort{{Name: "https", Port: 443, Protocol: corev1.ProtocolTCP}}}}
	if change != nil {
		change(&s.Spec)
	}
	return s
}

func endpoints(port int32, ready bool, addresses ...string) *discoveryv1.EndpointSlice {
	e := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "s-1", Labels: map[string]string{discoveryv1.LabelServiceName: "s"}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: ptr.To("https"), Port: &port}}}
	for _, a := range addresses {
		e.Endpoints = append(e.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}})
	}
	return e
}

func TestServicesAreResolved(t *testing.T) {
	for _, x := range []struct {
		name  string
		state state
		port  int32
		want  string // address, or a part of the error
	}{
		{"a ready endpoint", state{"services/n/s": service(nil), "endpointslices/n/s-1": endpoints(8443, true, "10.244.0.3")}, 443, "10.244.0.3:8443"},
		{"none that is ready", state{"services/n/s": service(nil), "endpointslices/n/s-1": endpoints(8443, false, "10.244.0.3")}, 443, `no endpoints available for service "s"`},
		{"no slices yet", state{"services/n/s": service(nil)}, 443, "10.96.0.7:443"},
		{"another port", state{"services/n/s": service(nil)}, 80, `no service port 80 found for service "s"`},
		{"headless and empty", state{"services/n/s": service(func(s *corev1.ServiceSpec) { s.ClusterIP = corev1.ClusterIPNone })}, 443, "no endpoints available"},
		{"outside", state{"services/n/s": service(func(s *corev1.ServiceSpec) {
			s.Type, s.ExternalName = corev1.ServiceTypeExternalName, "hooks.example.com"
		})}, 443, "hooks.example.com:443"},
		{"no service", state{}, 443, `service "s" not found`},
	} {
		t.Run(x.name, func(t *testing.T) {
			got, err := Services{x.state}.Resolve("n", "s", x.port)
			if err != nil {
				got = err.Error()
			}
			if got != x.want && !(err != nil && strings.Contains(got, x.want)) {
				t.Errorf("got %s, want %s", got, x.want)
			}
		})
	}
}

func TestAServiceIsCalledByItsName(t *testing.T) {
	var host, sni, query string
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, sni, query = r.Host, r.TLS.ServerName, r.URL.RawQuery
		_, _ = io.Copy(w, r.Body)
	}))
	srv.StartTLS()
	defer srv.Close()
	ip, port, err := net.SplitHostPort(srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	c := New(Services{state{"services/n/s": service(nil), "endpointslices/n/s-1": endpoints(int32(n), true, ip)}})
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
	defer cancel()
	_, err = c.Post(ctx, Target{Namespace: "n", Service: "s", Path: "/x", CABundle: ca}, []byte("{}"))
	// httptest's certificate is for example.com: the name that is verified is the Service's.
	if want := `Post "https://s.n.svc:443/x?timeout=2s": tls: failed to verify certificate: x509: certificate is valid for example.com, *.example.com, not s.n.svc`; err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	answer, err := c.Post(ctx, Target{URL: srv.URL + "/y", CABundle: ca}, []byte(`{"a":1}`))
	if err != nil || string(answer) != `{"a":1}` || !strings.HasPrefix(query, "timeout=") {
		t.Errorf("by URL: %s, %v (host %s, name %s, query %s)", answer, err, host, sni, query)
	}
}
