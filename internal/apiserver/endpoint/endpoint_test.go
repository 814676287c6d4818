package endpoint

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/resources"
)

func TestParseRequest(t *testing.T) {
	for _, tc := range []struct {
		method, url string
		want        RequestInfo
	}{
		{"GET", "/api/v1/namespaces", RequestInfo{Verb: "list", Version: "v1", Resource: "namespaces"}},
		{"GET", "/api/v1/namespaces/other", RequestInfo{Verb: "get", Version: "v1", Resource: "namespaces", Name: "other", Namespace: "other"}},
		{"PUT", "/api/v1/namespaces/other/finalize", RequestInfo{Verb: "update", Version: "v1", Resource: "namespaces", Name: "other", Namespace: "other", Subresource: "finalize"}},
		{"GET", "/api/v1/namespaces/other/pods", RequestInfo{Verb: "list", Version: "v1", Resource: "pods", Namespace: "other"}},
		{"GET", "/api/v1/namespaces/other/pods/foo", RequestInfo{Verb: "get", Version: "v1", Resource: "pods", Name: "foo", Namespace: "other"}},
		{"GET", "/api/v1/namespaces/other/pods?watch=1", RequestInfo{Verb: "watch", Version: "v1", Resource: "pods", Namespace: "other"}},
		{"GET", "/api/v1/namespaces/other/pods?watch=false", RequestInfo{Verb: "list", Version: "v1", Resource: "pods", Namespace: "other"}},
		{"GET", "/api/v1/pods?fieldSelector=metadata.name%3Dx", RequestInfo{Verb: "list", Version: "v1", Resource: "pods", Selected: "x"}},
		{"GET", "/api/v1/watch/pods", RequestInfo{Verb: "watch", Version: "v1", Resource: "pods"}},
		{"GET", "/api/v1/watch/namespaces/other/pods/foo", RequestInfo{Verb: "watch", Version: "v1", Resource: "pods", Namespace: "other", Selected: "foo"}},
		{"DELETE", "/apis/apps/v1/namespaces/other/deployments", RequestInfo{Verb: "deletecollection", Group: "apps", Version: "v1", Resource: "deployments", Namespace: "other"}},
		{"PATCH", "/apis/apps/v1/namespaces/other/deployments/d/status", RequestInfo{Verb: "patch", Group: "apps", Version: "v1", Resource: "deployments", Namespace: "other", Name: "d", Subresource: "status"}},
		{"POST", "/api/v1/namespaces/other/pods/p/proxy/a//b/", RequestInfo{Verb: "create", Version: "v1", Resource: "pods", Namespace: "other", Name: "p", Subresource: "proxy", Rest: "/a//b/"}},
		{"GET", "/api/v1/nodes/n/proxy/", RequestInfo{Verb: "get", Version: "v1", Resource: "nodes", Name: "n", Subresource: "proxy", Rest: "/"}},
		{"GET", "/api/v1/nodes/n/proxy", RequestInfo{Verb: "get", Version: "v1", Resource: "nodes", Name: "n", Subresource: "proxy"}},
	} {
		r := httptest.NewRequest(tc.method, tc.url, nil)
		tc.want.IsResourceRequest = true
		tc.want.Path = r.URL.Path
		if got := ParseRequest(r); got != tc.want {
			t.Errorf("%s %s:\n got %+v\nwant %+v", tc.method, tc.url, got, tc.want)
		}
	}
	for _, path := range []string{"/", "", "/api", "/apis", "/api/v1", "/apis/apps", "/apis/apps/v1", "/healthz", "/openapi/v3/api/v1", "//"} {
		if got := ParseRequest(&http.Request{Method: "GET", URL: &url.URL{Path: path}}); got.IsResourceRequest || got.Verb != "get" {
			t.Errorf("%q: %+v", path, got)
		}
	}
}

func FuzzParseRequest(f *testing.F) {
	for _, p := range []string{"/api/v1/namespaces/a/pods/b/proxy/c", "/apis/x/y/watch/namespaces", "/api/v1//", "/api/v1/watch/namespaces/n/pods/x"} {
		f.Add("GET", p, "watch=1&fieldSelector=metadata.name=x")
	}
	f.Fuzz(func(t *testing.T, method, path, query string) {
		i := ParseRequest(&http.Request{Method: method, URL: &url.URL{Path: path, RawQuery: query}})
		if !i.IsResourceRequest {
			return
		}
		for _, part := range []string{i.Group, i.Version, i.Namespace, i.Resource, i.Name, i.Subresource} {
			if strings.Contains(part, "/") {
				t.Errorf("%q is more than a segment: %+v", part, i)
			}
		}
		if i.Resource == "" || i.Version == "" {
			t.Errorf("nothing is asked for: %+v", i)
		}
		if i.Subresource != "" && i.Name == "" && i.Verb != "watch" {
			t.Errorf("a subresource of nothing: %+v", i)
		}
	})
}

func FuzzDecode(f *testing.F) {
	h := New(Config{Scheme: resources.Scheme()})
	gvk := corev1.SchemeGroupVersion.WithKind("Pod")
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "x"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c"}}}}
	proto, err := appendObject(nil, form{encoding: encodeProto}, pod, gvk)
	if err != nil {
		f.Fatal(err)
	}
	js, err := appendObject(nil, form{}, pod, gvk)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(js, uint8(encodeJSON), false)
	f.Add(proto, uint8(encodeProto), false)
	f.Add([]byte("kind: Pod\napiVersion: v1\nmetadata: {name: x}\n"), uint8(encodeYAML), true)
	f.Add([]byte(`{"apiVersion":"v1","kind":"Pod","metadata":{"labels":{"a":1}}}`), uint8(encodeJSON), true)
	f.Fuzz(func(t *testing.T, data []byte, e uint8, custom bool) {
		if len(data) > 1<<16 {
			return
		}
		var res *api.Resource
		if custom {
			res = &api.Resource{GVK: gvk}
		}
		obj, _, err := h.decoders.decode(body{data: data, encoding: encoding(e % 3)}, gvk, res, true)
		if err != nil {
			if s := StatusOf(err); s.Code != 400 && s.Code != 415 {
				t.Fatalf("%d %s", s.Code, s.Message)
			}
			return
		}
		if custom {
			u := obj.(*unstructured.Unstructured)
			if u.GetKind() != "Pod" {
				t.Fatalf("kind %q", u.GetKind())
			}
			_, _, _ = u.GetName(), u.GetLabels(), u.DeepCopy()
			return
		}
		if _, ok := obj.(*corev1.Pod); !ok {
			t.Fatalf("decoded a %T", obj)
		}
		// What was read can be written.
		if _, err := appendObject(nil, form{}, obj.(*corev1.Pod), gvk); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzNegotiate(f *testing.F) {
	f.Add("application/json;as=Table;v=v1;g=meta.k8s.io,application/json;q=0.5, */*;q=0.1", false)
	f.Add("application/vnd.kubernetes.protobuf;stream=watch", true)
	f.Fuzz(func(t *testing.T, accept string, stream bool) {
		got, err := negotiate([]string{accept}, formOptions{views: true, stream: stream})
		if err == nil && stream && got.encoding == encodeYAML {
			t.Errorf("%q: a watch in YAML", accept)
		}
		if err == nil && got.as == asTable && got.encoding == encodeProto {
			t.Errorf("%q: a Table in protobuf", accept)
		}
	})
}

func TestNegotiate(t *testing.T) {
	for _, tc := range []struct {
		accept string
		want   form
		fails  bool
	}{
		{"", form{}, false},
		{"*/*", form{}, false},
		{"application/*", form{}, false},
		{"application/json;as=Table;v=v1;g=meta.k8s.io,application/json", form{as: "Table", version: "v1"}, false},
		{"application/json;as=Table;v=v2;g=meta.k8s.io,application/json", form{}, false},
		{"application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io,application/vnd.kubernetes.protobuf", form{encoding: encodeProto}, false},
		{"application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io", form{encoding: encodeProto, as: "PartialObjectMetadataList", version: "v1"}, false},
		{"application/json;q=0.5,application/yaml", form{encoding: encodeYAML}, false},
		{"*/*;q=0.1,application/vnd.kubernetes.protobuf;q=0.2", form{encoding: encodeProto}, false},
		{"text/html", form{}, true},
		{"application/json;q=0", form{}, true},
	} {
		got, err := negotiate([]string{tc.accept}, formOptions{views: true})
		if (err != nil) != tc.fails || got != tc.want {
			t.Errorf("%q: %+v %v", tc.accept, got, err)
		}
	}
}

func TestJSONField(t *testing.T) {
	for in, want := range map[string]string{
		`{"metadata":{"a":"}\"{"},"spec":1}`:        `{"a":"}\"{"}`,
		`{"spec":[1,{"metadata":2}],"metadata":{}}`: `{}`,
		`{"x":"metadata","y":null}`:                 "",
		`{}`:                                        "",
	} {
		if got := string(jsonField([]byte(in), "metadata")); got != want {
			t.Errorf("%s: %q", in, got)
		}
	}
}

func FuzzJSONField(f *testing.F) {
	f.Add(`{"a":[{}],"metadata":{"x":"\\"}}`, "metadata")
	f.Fuzz(func(t *testing.T, text, name string) {
		var m map[string]json.RawMessage
		if json.Unmarshal([]byte(text), &m) != nil {
			jsonField([]byte(text+" "), name) // must not panic
			return
		}
		compact, err := json.Marshal(m)
		if err != nil || strings.ContainsAny(name, "\"\\<>&") || !slices.Contains([]byte(text), '{') {
			return
		}
		want, ok := m[name]
		if !ok || strings.Contains(string(compact), `\u`) {
			return
		}
		var a, b any
		if err := json.Unmarshal(want, &a); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(jsonField(compact, name), &b); err != nil {
			t.Fatalf("%s: %v", compact, err)
		}
	})
}

func TestEnvelopeLength(t *testing.T) {
	for _, size := range []int{0, 1, 127, 128, 16383, 16384, 1 << 20} {
		gvk := schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "DeploymentList"}
		b := appendProto(nil, gvk, make([]byte, size))
		if len(b) != envelopeLen(gvk, size) {
			t.Errorf("size %d: %d, computed %d", size, len(b), envelopeLen(gvk, size))
		}
		var u runtime.Unknown
		if err := u.Unmarshal(b[len(protoMagic):]); err != nil || u.Kind != gvk.Kind || u.APIVersion != "apps/v1" || len(u.Raw) != size {
			t.Errorf("size %d: %v", size, err)
		}
	}
}
