package apiserver_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver"
	"github.com/proa-dev/proa/internal/apiserver/admission/callout"
	"github.com/proa-dev/proa/internal/apiserver/aggregator"
	"github.com/proa-dev/proa/internal/apiserver/cache"
	"github.com/proa-dev/proa/internal/apiserver/rest"
)

// state reads a registry's caches.
type state struct{ registry *rest.Registry }

func (s state) Get(gvr schema.GroupVersionResource, namespace, name string) (api.Object, bool) {
	c, _, ok := s.registry.Cache(gvr)
	if !ok {
		return nil, false
	}
	e, ok := c.Get(c.Key(namespace, name))
	if !ok {
		return nil, false
	}
	return e.Object(), true
}

func (s state) List(gvr schema.GroupVersionResource, namespace string) (out []api.Object) {
	c, _, ok := s.registry.Cache(gvr)
	if !ok {
		return nil
	}
	snapshot, _ := c.Read()
	snapshot.Scan(cache.Scope{Namespace: namespace}, "", func(e *cache.Entry) bool {
		out = append(out, e.Object())
		return true
	})
	return out
}

// loopback is where all endpoints are in truth: they cannot say so.
type loopback struct{ callout.Services }

func (l loopback) Resolve(namespace, name string, port int32) (string, error) {
	address, err := l.Services.Resolve(namespace, name, port)
	return strings.Replace(address, "192.0.2.7:", "127.0.0.1:", 1), err
}

// aggregated is a server that hands on what APIServices say.
func aggregated(t *testing.T) *server {
	t.Helper()
	var others atomic.Pointer[aggregator.Aggregator]
	s := start(t, func(c *apiserver.Config) {
		c.Authorizer = everyone{}
		c.Delegate = func(group, version string) http.Handler {
			if a := others.Load(); a != nil {
				return a.Delegate(group, version)
			}
			return nil
		}
	})
	cert, _ := certificate(t)
	read := state{s.registry}
	a, err := aggregator.New(aggregator.Config{Registry: s.registry, Catalog: s.api.Catalog(), Reader: read, Resolver: loopback{callout.Services{Reader: read}}, Certificate: &cert})
	if err != nil {
		t.Fatal(err)
	}
	others.Store(a)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

// extension is an extension API server for example.test/v1, behind the Service n/ext.
func extension(t *testing.T, s *server, h http.Handler) {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /apis/example.test/v1", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(metav1.APIResourceList{TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, GroupVersion: "example.test/v1",
			APIResources: []metav1.APIResource{{Name: "flunders", SingularName: "flunder", Namespaced: true, Kind: "Flunder", Verbs: metav1.Verbs{"get", "list"}, ShortNames: []string{"fl"}},
				{Name: "flunders/status", Namespaced: true, Kind: "Flunder", Verbs: metav1.Verbs{"get"}}}})
	})
	mux.HandleFunc("GET /openapi/v3", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"paths":{"apis/example.test/v1":{"serverRelativeURL":"/openapi/v3/apis/example.test/v1?hash=ABC"}}}`)
	})
	mux.HandleFunc("GET /openapi/v3/apis/example.test/v1", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"openapi":"3.0.0","info":{"title":"flunders"}}`)
	})
	mux.HandleFunc("GET /openapi/v2", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"swagger":"2.0","paths":{"/apis/example.test/v1/flunders":{"get":{"responses":{"200":{"schema":{"$ref":"#/definitions/test.Flunder"}}}}},"/apis/other/v1/x":{}},
			"definitions":{"test.Flunder":{"type":"object","properties":{"pod":{"$ref":"#/definitions/io.k8s.api.core.v1.Pod"}}},"io.k8s.api.core.v1.Pod":{"description":"not that one"}}}`)
	})
	mux.Handle("/", h)
	srv := httptest.NewUnstartedServer(mux)
	srv.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	srv.EnableHTTP2 = true
	srv.StartTLS()
	t.Cleanup(srv.Close)
	_, port, err := net.SplitHostPort(srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseInt(port, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	c := s.clientset(t)
	if _, err := c.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "n"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.CoreV1().Services("n").Create(t.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "ext"},
		Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.9", Ports: []corev1.ServicePort{{Name: "https", Port: 443}}}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	p, name := int32(n), "https"
	if _, err := c.DiscoveryV1().EndpointSlices("n").Create(t.Context(), &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: "ext-1", Labels: map[string]string{discoveryv1.LabelServiceName: "ext"}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &p}}, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"192.0.2.7"}}}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

var apiServices = apiregistrationv1.SchemeGroupVersion.WithResource("apiservices")

func register(t *testing.T, s *server, service string, port int64) {
	t.Helper()
	o := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": map[string]any{"name": "v1.example.test"},
		"spec": map[string]any{"group": "example.test", "version": "v1", "groupPriorityMinimum": int64(2000), "versionPriority": int64(20), "insecureSkipTLSVerify": true,
			"service": map[string]any{"namespace": "n", "name": service, "port": port}}}}
	if _, err := s.dynamic(t).Resource(apiServices).Create(t.Context(), o, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// until waits for a condition.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited for %s", what)
		}
	}
}

// reason returns why an APIService is or is not available.
func reason(t *testing.T, s *server, name string) string {
	o, err := s.dynamic(t).Resource(apiServices).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		return err.Error()
	}
	list, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
	for _, c := range list {
		if m := c.(map[string]any); m["type"] == "Available" {
			return fmt.Sprint(m["status"], " ", m["reason"])
		}
	}
	return ""
}

func TestAnExtensionServerAnswersForItsGroup(t *testing.T) {
	s := aggregated(t)
	var seen atomic.Pointer[http.Request]
	extension(t, s, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen.Store(r.Clone(context.Background()))
		if r.URL.Query().Get("watch") != "" {
			_, _ = io.WriteString(w, "first\n")
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusTeapot)
		_, _ = io.Copy(w, r.Body)
	}))
	register(t, s, "ext", 443)
	until(t, "the API to be available", func() bool { return reason(t, s, "v1.example.test") == "True Passed" })

	// The request arrives whole, with who asks in place of how they proved it.
	a := s.do(t, "POST", "/apis/example.test/v1/namespaces/n/flunders?x=1", `{"kind":"Flunder"}`, "X-Remote-User", "root", "X-Remote-Group", "system:masters", "Authorization", "", "Authorization", "Bearer jane")
	if a.code != http.StatusTeapot || a.body != `{"kind":"Flunder"}` {
		t.Errorf("answer %d %s", a.code, a.body)
	}
	r := seen.Load()
	if r.Header.Get("X-Remote-User") != "jane" || strings.Join(r.Header.Values("X-Remote-Group"), ",") != "system:authenticated" || r.Header.Get("Authorization") != "" ||
		r.URL.String() != "/apis/example.test/v1/namespaces/n/flunders?x=1" || r.Host != "ext.n.svc:443" || len(r.TLS.PeerCertificates) != 1 {
		t.Errorf("%s %s as %v, shown %d certificates", r.Host, r.URL, r.Header, len(r.TLS.PeerCertificates))
	}

	// Discovery and OpenAPI, in both versions, show what it serves beside what we do.
	if a := s.do(t, "GET", "/apis", "", "Accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"); !strings.Contains(a.body, `"resource":"flunders"`) || !strings.Contains(a.body, `"subresource":"status"`) {
		t.Errorf("discovery without flunders: %d", a.code)
	}
	if a := s.do(t, "GET", "/apis/example.test", ""); !strings.Contains(a.body, `"preferredVersion":{"groupVersion":"example.test/v1"`) {
		t.Errorf("the group: %s", a.body)
	}
	if a := s.do(t, "GET", "/apis/example.test/v1", ""); !strings.Contains(a.body, `"flunders/status"`) {
		t.Errorf("the version: %s", a.body)
	}
	until(t, "its description", func() bool {
		return strings.Contains(s.do(t, "GET", "/openapi/v3", "").body, `"apis/example.test/v1":{"serverRelativeURL":"/openapi/v3/apis/example.test/v1?hash=ABC"}`)
	})
	if a := s.do(t, "GET", "/openapi/v3/apis/example.test/v1?hash=ABC", ""); !strings.Contains(a.body, `"flunders"`) {
		t.Errorf("OpenAPI v3: %d %s", a.code, a.body)
	}
	var v2 struct {
		Paths       map[string]json.RawMessage
		Definitions map[string]struct {
			Description string
			Properties  map[string]map[string]any
		}
	}
	if err := json.Unmarshal([]byte(s.do(t, "GET", "/openapi/v2", "").body), &v2); err != nil {
		t.Fatal(err)
	}
	if v2.Paths["/apis/example.test/v1/flunders"] == nil || v2.Paths["/apis/other/v1/x"] != nil || v2.Paths["/api/v1/pods"] == nil ||
		v2.Definitions["test.Flunder"].Properties["pod"]["$ref"] != "#/definitions/io.k8s.api.core.v1.Pod_v2" || v2.Definitions["io.k8s.api.core.v1.Pod_v2"].Description != "not that one" ||
		v2.Definitions["io.k8s.api.core.v1.Pod"].Properties == nil {
		t.Errorf("OpenAPI v2 of the other server: %v %v", v2.Definitions["test.Flunder"], v2.Definitions["io.k8s.api.core.v1.Pod_v2"])
	}

	// A watch streams, and ends with the APIService.
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+"/apis/example.test/v1/flunders?watch=1", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer jane")
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	first := make([]byte, 6)
	if _, err := io.ReadFull(resp.Body, first); err != nil || string(first) != "first\n" {
		t.Fatalf("watch: %q %v", first, err)
	}
	if err := s.dynamic(t).Resource(apiServices).Delete(t.Context(), "v1.example.test", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if rest, _ := io.ReadAll(resp.Body); len(rest) > 0 {
		t.Errorf("the watch went on: %q", rest)
	}
	until(t, "the group to go", func() bool { return s.do(t, "GET", "/apis/example.test/v1/flunders", "").code == http.StatusNotFound })
}

func TestWhyAnAPIIsUnavailable(t *testing.T) {
	s := aggregated(t)
	extension(t, s, http.NotFoundHandler())
	for _, x := range []struct {
		name, service string
		port          int64
		want          string
	}{
		{"no service", "none", 443, "False ServiceNotFound"},
		{"another port", "ext", 444, "False ServicePortError"},
	} {
		register(t, s, x.service, x.port)
		until(t, x.name, func() bool { return reason(t, s, "v1.example.test") == x.want })
		if a := s.do(t, "GET", "/apis/example.test/v1/flunders", ""); a.code != http.StatusServiceUnavailable {
			t.Errorf("%s: %d %s", x.name, a.code, a.body)
		}
		if err := s.dynamic(t).Resource(apiServices).Delete(t.Context(), "v1.example.test", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	register(t, s, "ext", 443)
	until(t, "the API to be available", func() bool { return reason(t, s, "v1.example.test") == "True Passed" })
	slices := s.clientset(t).DiscoveryV1().EndpointSlices("n")
	slice, err := slices.Get(t.Context(), "ext-1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	slice.Endpoints = nil
	if slice, err = slices.Update(t.Context(), slice, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	until(t, "its endpoints to be missed", func() bool { return reason(t, s, "v1.example.test") == "False MissingEndpoints" })
	// Nobody listens there.
	slice.Endpoints, slice.Ports[0].Port = []discoveryv1.Endpoint{{Addresses: []string{"192.0.2.7"}}}, new(int32)
	*slice.Ports[0].Port = 1
	if _, err = slices.Update(t.Context(), slice, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	until(t, "its answer to be missed", func() bool { return reason(t, s, "v1.example.test") == "False FailedDiscoveryCheck" })
	if a := s.do(t, "GET", "/apis", "", "Accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"); !strings.Contains(a.body, `"resource":"flunders"`) || !strings.Contains(a.body, `"freshness":"Stale"`) {
		t.Errorf("discovery forgot what was served")
	}
}

func TestWhatTheServerAnswersItselfHasAPIServices(t *testing.T) {
	s := aggregated(t)
	until(t, "built-in groups", func() bool {
		return reason(t, s, "v1.") == "True Local" && reason(t, s, "v1.apps") == "True Local" && reason(t, s, "v2.autoscaling") == "True Local"
	})
	crd := `{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","metadata":{"name":"widgets.shop.test"},"spec":{"group":"shop.test","scope":"Namespaced",
		"names":{"plural":"widgets","kind":"Widget"},"versions":[{"name":"v1","served":true,"storage":true,"schema":{"openAPIV3Schema":{"type":"object"}}}]}}`
	if a := s.do(t, "POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd); a.code != http.StatusCreated {
		t.Fatalf("%d %s", a.code, a.body)
	}
	until(t, "a custom group", func() bool { return reason(t, s, "v1.shop.test") == "True Local" })
	if err := s.dynamic(t).Resource(apiServices).Delete(t.Context(), "v1.shop.test", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	until(t, "it to come back", func() bool { return reason(t, s, "v1.shop.test") == "True Local" })
	if a := s.do(t, "DELETE", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/widgets.shop.test", ""); a.code != http.StatusOK {
		t.Fatalf("%d %s", a.code, a.body)
	}
	until(t, "it to go", func() bool { return strings.Contains(reason(t, s, "v1.shop.test"), "not found") })
}
