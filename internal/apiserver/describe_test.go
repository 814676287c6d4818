package apiserver_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	openapiv3 "github.com/google/gnostic-models/openapiv3"
	"github.com/gorilla/websocket"
	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/openapi"
	"k8s.io/client-go/openapi3"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver"
)

func TestDiscoveryIsTheSamePlainAndAggregated(t *testing.T) {
	s := start(t)
	aggregated, err := discovery.NewDiscoveryClientForConfig(s.config)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := discovery.NewDiscoveryClientForConfig(s.config)
	if err != nil {
		t.Fatal(err)
	}
	plain.UseLegacyDiscovery = true
	count := map[bool]int{}
	for legacy, d := range map[bool]*discovery.DiscoveryClient{false: aggregated, true: plain} {
		groups, lists, err := d.ServerGroupsAndResources()
		if err != nil {
			t.Fatal(err)
		}
		if len(groups) < 15 || groups[0].Name != "" || groups[0].PreferredVersion.Version != "v1" {
			t.Fatalf("groups %v", groups)
		}
		found := map[string]metav1.APIResource{}
		for _, l := range lists {
			for _, r := range l.APIResources {
				found[l.GroupVersion+" "+r.Name] = r
				count[legacy]++
			}
		}
		d := found["apps/v1 deployments"]
		if d.Kind != "Deployment" || !d.Namespaced || d.SingularName != "deployment" || len(d.Verbs) != 8 {
			t.Errorf("deployments %+v", d)
		}
		if r := found["v1 pods/eviction"]; r.Kind != "Eviction" || r.Group != "policy" {
			t.Errorf("eviction %+v", r)
		}
		if r := found["authorization.k8s.io/v1 subjectaccessreviews"]; len(r.Verbs) != 1 || r.Verbs[0] != "create" {
			t.Errorf("reviews %+v", r)
		}
	}
	if count[true] != count[false] {
		t.Errorf("plain %d resources, aggregated %d", count[true], count[false])
	}
	v, err := plain.ServerVersion()
	if err != nil || v.GitVersion != "v1.37.2" {
		t.Errorf("version %v %v", v, err)
	}

	const v2 = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
	first := s.do(t, "GET", "/apis", "", "Accept", v2)
	if first.header.Get("Content-Type") != v2 || first.header.Get("Etag") == "" {
		t.Fatalf("header %v", first.header)
	}
	if again := s.do(t, "GET", "/apis", "", "Accept", v2, "If-None-Match", first.header.Get("Etag")); again.code != 304 || again.body != "" {
		t.Errorf("again: %d", again.code)
	}
	if p := s.do(t, "GET", "/apis/apps/v1", "", "Accept", "application/vnd.kubernetes.protobuf"); !strings.HasPrefix(p.body, "k8s\x00") {
		t.Errorf("protobuf discovery: %d %.40q", p.code, p.body)
	}
	for path, code := range map[string]int{"/apis/nope.io": 404, "/apis/nope.io/v1": 404, "/api/v2": 404, "/nope": 404, "/api/": 200} {
		if a := s.do(t, "GET", path, ""); a.code != code {
			t.Errorf("%s: %d %s", path, a.code, a.body)
		}
	}
}

func TestHealth(t *testing.T) {
	s := start(t, func(c *apiserver.Config) {
		c.Checks = append(c.Checks, apiserver.Check{Name: "sick", ReadyOnly: true, Check: func(context.Context) error { return io.ErrUnexpectedEOF }})
	})
	for _, tc := range []struct {
		path string
		code int
		body string
	}{
		{"/healthz", 200, "ok"},
		{"/livez?verbose", 200, "[+]ping ok\n[+]etcd ok\nlivez check passed\n"},
		{"/livez/etcd", 200, "ok"},
		{"/readyz", 500, "[+]ping ok\n[+]etcd ok\n[-]sick failed: reason withheld\n[+]shutdown ok\nreadyz check failed\n"},
		{"/readyz?exclude=sick", 200, "ok"},
		{"/readyz/nothing", 404, "404 page not found\n"},
	} {
		if a := s.do(t, "GET", tc.path, ""); a.code != tc.code || a.body != tc.body {
			t.Errorf("%s: %d %q", tc.path, a.code, a.body)
		}
	}
	s.do(t, "GET", "/api/v1/pods", "")
	for _, want := range []string{
		`apiserver_request_total{code="200",component="apiserver",dry_run="",group="",resource="pods",scope="cluster",subresource="",verb="LIST",version="v1"} `,
		`apiserver_request_sli_duration_seconds_bucket{component="apiserver",group="",resource="pods",scope="cluster",subresource="",verb="LIST",version="v1",le="1"} `,
		`apiserver_current_inflight_requests{request_kind="mutating"} 0`,
	} {
		if a := s.do(t, "GET", "/metrics", ""); !strings.Contains(a.body, want) {
			t.Errorf("metrics have no %s in %.3000s", want, a.body)
		}
	}
}

func TestOpenAPIServesWhatKubectlAsksFor(t *testing.T) {
	s := start(t)
	d, err := discovery.NewDiscoveryClientForConfig(s.config)
	if err != nil {
		t.Fatal(err)
	}
	paths, err := d.OpenAPIV3().Paths()
	if err != nil || paths["apis/apps/v1"] == nil || paths["api/v1"] == nil {
		t.Fatalf("%v %v", paths, err)
	}
	b, err := paths["apis/apps/v1"].Schema(openapi.ContentTypeOpenAPIV3PB)
	if err != nil {
		t.Fatal(err)
	}
	doc := &openapiv3.Document{}
	if err := proto.Unmarshal(b, doc); err != nil || len(doc.Paths.Path) == 0 {
		t.Fatalf("protobuf document: %v", err)
	}
	root := openapi3.NewRoot(d.OpenAPIV3())
	spec, err := root.GVSpec(schema.GroupVersion{Group: "apps", Version: "v1"})
	if err != nil {
		t.Fatal(err)
	}
	patch := spec.Paths.Paths["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"].Patch
	has := map[string]bool{}
	for _, p := range patch.Parameters {
		has[p.Name] = true
	}
	if !has["fieldValidation"] || !has["fieldManager"] || !has["dryRun"] || !has["force"] {
		t.Errorf("patch has %v", has)
	}
	model := spec.Components.Schemas["io.k8s.api.apps.v1.Deployment"]
	if model == nil || model.Properties["spec"].AllOf[0].Ref.String() != "#/components/schemas/io.k8s.api.apps.v1.DeploymentSpec" {
		t.Errorf("model %+v", model)
	}
	containers := spec.Components.Schemas["io.k8s.api.core.v1.PodSpec"].Properties["containers"]
	if containers.Extensions["x-kubernetes-patch-merge-key"] != "name" {
		t.Errorf("strategic merge key: %v", containers.Extensions)
	}
	gvk, _ := model.Extensions["x-kubernetes-group-version-kind"].([]any)
	if len(gvk) != 1 {
		t.Errorf("kinds %v", model.Extensions)
	}
	for gv := range paths {
		if _, err := paths[gv].Schema("application/json"); err != nil {
			t.Errorf("%s: %v", gv, err)
		}
	}

	v2, err := d.OpenAPISchema()
	if err != nil {
		t.Fatal(err)
	}
	if len(v2.Paths.Path) < 150 || len(v2.Definitions.AdditionalProperties) < 400 {
		t.Errorf("v2: %d paths, %d definitions", len(v2.Paths.Path), len(v2.Definitions.AdditionalProperties))
	}
	a := s.do(t, "GET", "/openapi/v2", "", "Accept", "application/json")
	var plain struct {
		Definitions map[string]struct{ Properties map[string]map[string]any }
	}
	if err := json.Unmarshal([]byte(a.body), &plain); err != nil {
		t.Fatal(err)
	}
	if p := plain.Definitions["io.k8s.api.core.v1.Pod"].Properties["spec"]; p["$ref"] != "#/definitions/io.k8s.api.core.v1.PodSpec" {
		t.Errorf("v2 pod spec %v", p)
	}
	if r := s.do(t, "GET", "/openapi/v3/api/v1?hash=old", ""); r.code != 301 || !strings.Contains(r.header.Get("Location"), "/openapi/v3/api/v1?hash=") {
		t.Errorf("old hash: %d %v", r.code, r.header)
	}
}

// frogs is a custom resource.
func frogs() *api.Resource {
	gvk := schema.GroupVersionKind{Group: "pond.example.com", Version: "v1", Kind: "Frog"}
	return &api.Resource{
		GVR: gvk.GroupVersion().WithResource("frogs"), GVK: gvk, Singular: "frog", Namespaced: true,
		New: func() runtime.Object { return &unstructured.Unstructured{} }, NewList: func() runtime.Object { return &unstructured.UnstructuredList{} },
		CopyStatus: func(dst, src api.Object) {
			if st, ok := src.(*unstructured.Unstructured).Object["status"]; ok {
				dst.(*unstructured.Unstructured).Object["status"] = st
			} else {
				delete(dst.(*unstructured.Unstructured).Object, "status")
			}
		},
	}
}

func TestCustomResourcesComeAndGo(t *testing.T) {
	s := start(t)
	res := frogs()
	res.Model = func(bool) ([]byte, error) {
		return []byte(`{"type":"object","description":"Frog is green.","properties":{"spec":{"type":"object","properties":{"legs":{"type":"integer"}}}}}`), nil
	}
	if err := s.registry.Add(t.Context(), res); err != nil {
		t.Fatal(err)
	}
	if err := s.api.Catalog().Add(res); err != nil {
		t.Fatal(err)
	}
	d := s.dynamic(t).Resource(res.GVR).Namespace("default")
	u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "pond.example.com/v1", "kind": "Frog", "metadata": map[string]any{"name": "kermit"}, "spec": map[string]any{"legs": int64(4)}}}
	if _, err := d.Create(t.Context(), u, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	list, err := d.List(t.Context(), metav1.ListOptions{})
	if err != nil || len(list.Items) != 1 || list.Items[0].GetKind() != "Frog" || list.GetKind() != "FrogList" {
		t.Fatalf("%+v %v", list, err)
	}
	w, err := d.Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if ev := next(t, w); ev.Object.(*unstructured.Unstructured).GetName() != "kermit" {
		t.Fatalf("%+v", ev)
	}
	w.Stop()
	for _, tc := range []struct {
		body, message string
	}{
		{`{"apiVersion":"pond.example.com/v1","metadata":{"name":"x"}}`, "Object 'Kind' is missing"},
		{`{"apiVersion":"pond.example.com/v1","kind":"Toad","metadata":{"name":"x"}}`, "the kind in the data (Toad) does not match the expected kind (Frog)"},
		{`{"apiVersion":"pond.example.com/v2","kind":"Frog","metadata":{"name":"x"}}`, "the API version in the data (pond.example.com/v2) does not match the expected API version (pond.example.com/v1)"},
		{`{"apiVersion":"pond.example.com/v1","kind":"Frog","metadata":{"name":"x","labels":{"a":1}}}`, "cannot unmarshal number"},
		{`[]`, "unrecognized"},
		{`null`, "Object 'Kind' is missing"},
	} {
		if a := s.do(t, "POST", "/apis/pond.example.com/v1/namespaces/default/frogs", tc.body); a.code != 400 || !strings.Contains(a.status(t).Message, tc.message) {
			t.Errorf("%s: %d %s", tc.body, a.code, a.body)
		}
	}
	if a := s.do(t, "GET", "/apis/pond.example.com/v1/frogs", "", "Accept", "application/vnd.kubernetes.protobuf"); a.code != 406 {
		t.Errorf("protobuf of a custom resource: %d", a.code)
	}
	if a := s.do(t, "GET", "/openapi/v3/apis/pond.example.com/v1", ""); a.code != 200 || !strings.Contains(a.body, "com.example.pond.v1.Frog") || !strings.Contains(a.body, "legs") {
		t.Errorf("OpenAPI: %d %.300s", a.code, a.body)
	}
	if a := s.do(t, "GET", "/openapi/v2", "", "Accept", "application/json"); !strings.Contains(a.body, "com.example.pond.v1.Frog") {
		t.Error("OpenAPI v2 does not know the frog")
	}
	s.api.Catalog().Remove(res.GVR)
	s.registry.Remove(res.GVR)
	if a := s.do(t, "GET", "/apis/pond.example.com/v1/frogs", ""); a.code != 404 {
		t.Errorf("after the removal: %d", a.code)
	}
}

func (s *server) runningPod(t *testing.T, name string, containers ...string) {
	t.Helper()
	p := pod(name)
	p.Spec.NodeName = "n1"
	p.Spec.Containers = nil
	for _, c := range containers {
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: c, Image: "i", Ports: []corev1.ContainerPort{{ContainerPort: 80}}})
	}
	if _, err := s.clientset(t).CoreV1().Pods("default").Create(t.Context(), p, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func TestLogs(t *testing.T) {
	seen := make(chan *url.URL, 10)
	k := newKubelet(t, func(w http.ResponseWriter, r *http.Request) {
		seen <- r.URL
		if r.URL.Query().Get("previous") != "" {
			http.Error(w, `previous terminated container "c" in pod "p" not found`, http.StatusBadRequest)
			return
		}
		if r.Header.Get("Authorization") != "" {
			t.Error("the client's token goes to the node")
		}
		_, _ = io.WriteString(w, "hello\n")
	})
	s := start(t, func(c *apiserver.Config) { c.Nodes = k })
	s.runningPod(t, "p", "c")
	s.runningPod(t, "two", "a", "b")
	pods := s.clientset(t).CoreV1().Pods("default")
	five := int64(5)
	b, err := pods.GetLogs("p", &corev1.PodLogOptions{TailLines: &five, Follow: true}).DoRaw(t.Context())
	if err != nil || string(b) != "hello\n" {
		t.Fatalf("%q %v", b, err)
	}
	if u := <-seen; u.Path != "/containerLogs/default/p/c" || u.Query().Get("tailLines") != "5" || u.Query().Get("follow") != "true" {
		t.Errorf("asked %v", u)
	}
	for _, tc := range []struct{ path, message string }{
		{"/p/log?previous=true", `previous terminated container "c" in pod "p" not found`},
		{"/two/log", "a container name must be specified for pod two, choose one of: [a b]"},
		{"/p/log?container=x", "container x is not valid for pod p"},
	} {
		a := s.do(t, "GET", "/api/v1/namespaces/default/pods"+tc.path, "")
		if st := a.status(t); a.code != 400 || st.Reason != metav1.StatusReasonBadRequest || st.Message != tc.message {
			t.Errorf("%s: %d %s", tc.path, a.code, a.body)
		}
	}
	if a := s.do(t, "GET", "/api/v1/namespaces/default/pods/p/log?tailLines=-1", ""); a.code != 422 {
		t.Errorf("tailLines=-1: %d %s", a.code, a.body)
	}
}

func TestLogsOverWebSocket(t *testing.T) {
	k := newKubelet(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello\n") })
	s := start(t, func(c *apiserver.Config) { c.Nodes = k })
	s.runningPod(t, "p", "c")
	for _, tc := range []struct {
		protocols []string
		kind      int
		want      string
	}{
		{nil, websocket.BinaryMessage, "hello\n"},
		{[]string{"binary.k8s.io"}, websocket.BinaryMessage, "hello\n"},
		{[]string{"base64.binary.k8s.io"}, websocket.TextMessage, "aGVsbG8K"},
	} {
		d := websocket.Dialer{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, Subprotocols: tc.protocols}
		conn, resp, err := d.DialContext(t.Context(), "wss"+strings.TrimPrefix(s.url, "https")+"/api/v1/namespaces/default/pods/p/log", http.Header{"Authorization": {"Bearer admin"}})
		if err != nil {
			t.Fatalf("%v: %v (%v)", tc.protocols, err, resp)
		}
		var got string
		for {
			kind, b, err := conn.ReadMessage()
			if err != nil {
				if !websocket.IsCloseError(err, websocket.CloseNormalClosure) {
					t.Errorf("%v: ended with %v", tc.protocols, err)
				}
				break
			}
			if kind != tc.kind {
				t.Errorf("%v: a message of kind %d", tc.protocols, kind)
			}
			got += string(b)
		}
		_ = conn.Close()
		if got != tc.want {
			t.Errorf("%v: %q", tc.protocols, got)
		}
	}
}

func TestExecHandsBytesThrough(t *testing.T) {
	asked := make(chan *http.Request, 2)
	k := newKubelet(t, func(w http.ResponseWriter, r *http.Request) {
		asked <- r
		if r.URL.Query().Get("command") == "refuse" {
			http.Error(w, "no such protocol", http.StatusForbidden)
			return
		}
		up := websocket.Upgrader{Subprotocols: []string{"v5.channel.k8s.io"}}
		conn, err := up.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer conn.Close()
		for {
			kind, msg, err := conn.ReadMessage()
			if err != nil {
				return
			}
			_ = conn.WriteMessage(kind, append([]byte("echo "), msg...))
		}
	})
	s := start(t, func(c *apiserver.Config) { c.Nodes = k })
	s.runningPod(t, "p", "c")
	d := websocket.Dialer{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, Subprotocols: []string{"v5.channel.k8s.io"}}
	base := "wss" + strings.TrimPrefix(s.url, "https") + "/api/v1/namespaces/default/pods/p/exec?stdin=true&stdout=1&command="
	conn, resp, err := d.Dial(base+"sh&command=-c", http.Header{"Authorization": {"Bearer admin"}})
	if err != nil {
		t.Fatal(err, resp)
	}
	defer conn.Close()
	r := <-asked
	if q := r.URL.Query(); r.URL.Path != "/exec/default/p/c" || q.Get("input") != "1" || q.Get("output") != "1" || q.Get("error") != "" || len(q["command"]) != 2 || r.Header.Get("Authorization") != "" {
		t.Errorf("asked %v %v", r.URL, r.Header)
	}
	if conn.Subprotocol() != "v5.channel.k8s.io" {
		t.Errorf("protocol %q", conn.Subprotocol())
	}
	for _, m := range []string{"one", strings.Repeat("x", 100000)} {
		if err := conn.WriteMessage(websocket.BinaryMessage, []byte(m)); err != nil {
			t.Fatal(err)
		}
		if _, got, err := conn.ReadMessage(); err != nil || string(got) != "echo "+m {
			t.Fatalf("%.50q %v", got, err)
		}
	}
	_, resp, err = d.Dial(base+"refuse", http.Header{"Authorization": {"Bearer admin"}})
	if err == nil || resp == nil || resp.StatusCode != http.StatusForbidden {
		t.Fatalf("refusal: %v %v", resp, err)
	}
	// Reading a pod is not enough for a WebSocket into it.
	if _, resp, _ = d.Dial(base+"sh", http.Header{"Authorization": {"Bearer viewer"}}); resp == nil || resp.StatusCode != http.StatusForbidden {
		t.Fatalf("viewer: %v", resp)
	}
	if a := s.do(t, "POST", "/api/v1/namespaces/default/pods/p/exec?stdout=1&command=sh", ""); a.code != 400 || !strings.Contains(a.body, "Upgrade request required") {
		t.Errorf("without upgrade: %d %s", a.code, a.body)
	}
	if a := s.do(t, "GET", "/api/v1/namespaces/default/pods/p/exec?command=sh", ""); a.code != 400 {
		t.Errorf("without streams: %d %s", a.code, a.body)
	}
	// Shutdown ends the connection.
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := conn.ReadMessage(); err == nil {
		t.Error("the connection outlived the server")
	}
}

func TestProxyToNodesAndServices(t *testing.T) {
	k := newKubelet(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/page" {
			w.Header().Set("Content-Type", "text/html")
			_, _ = io.WriteString(w, `<html><a href="/next">on</a></html>`)
			return
		}
		_, _ = io.WriteString(w, r.Method+" "+r.URL.RequestURI())
	})
	s := start(t, func(c *apiserver.Config) { c.Nodes = k })
	a := s.do(t, "GET", "/api/v1/nodes/n1/proxy/stats/a%2Fb?x=1", "")
	if a.code != 200 || a.body != "GET /stats/a%2Fb?x=1" {
		t.Errorf("%d %q", a.code, a.body)
	}
	if a := s.do(t, "GET", "/api/v1/nodes/n1/proxy", ""); a.code != 301 || a.header.Get("Location") != "/api/v1/nodes/n1/proxy/" {
		t.Errorf("%d %v", a.code, a.header)
	}
	if a := s.do(t, "GET", "/api/v1/nodes/n1/proxy/page", ""); !strings.Contains(a.body, `<a href="/api/v1/nodes/n1/proxy/next">`) {
		t.Errorf("the links of a page: %s", a.body)
	}
	if a := s.do(t, "POST", "/api/v1/nodes/n1/proxy/run", "body"); a.body != "POST /run" {
		t.Errorf("%d %q", a.code, a.body)
	}
	c := s.clientset(t)
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: corev1.ServiceSpec{ClusterIP: "None", Ports: []corev1.ServicePort{{Name: "http", Port: 80}}}}
	if _, err := c.CoreV1().Services("default").Create(t.Context(), svc, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	a = s.do(t, "GET", "/api/v1/namespaces/default/services/web:nope/proxy/", "")
	if a.code != 503 || a.status(t).Message != `no service port "nope" found for service "web"` {
		t.Errorf("%d %s", a.code, a.body)
	}
	a = s.do(t, "GET", "/api/v1/namespaces/default/services/web:http/proxy/", "")
	if a.code != 503 || a.status(t).Message != `no endpoints available for service "web"` {
		t.Errorf("%d %s", a.code, a.body)
	}
	// The server's own loopback is nobody's pod.
	port, name := int32(1), "http"
	_, err := c.DiscoveryV1().EndpointSlices("default").Create(t.Context(), &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}}, AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"127.0.0.1"}}}, Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
	}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsInvalid(err) {
		t.Fatal(err)
	}
	if a = s.do(t, "GET", "/api/v1/namespaces/default/services/web:http/proxy/", ""); a.code != 503 {
		t.Errorf("%d %s", a.code, a.body)
	}
}
