//go:build e2e

package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

func TestManifestsWithMistakes(t *testing.T) {
	t.Parallel()
	n := inNamespace(t)
	for name, c := range map[string]struct{ manifest, want string }{
		"an unknown field":          {`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"x"},"spec":{"foo":1,"containers":[{"name":"c","image":"i"}]}}`, `unknown field "spec.foo"`},
		"a wrong type":              {`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x"},"data":{"a":1}}`, "cannot unmarshal number"},
		"a name that is no label":   {`{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"A_b"}}`, "a lowercase RFC 1123 label must consist of"},
		"a container without image": {`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"x"},"spec":{"containers":[{"name":"c"}]}}`, "spec.containers[0].image: Required value"},
		"an unknown kind":           {`{"apiVersion":"v1","kind":"Pode","metadata":{"name":"x"}}`, `no matches for kind "Pode" in version "v1"`},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := []string{"-n", n.name, "create", "-f", writeFile(t, "m.json", c.manifest)}
			if out, err := try("kubectl", cmd...); err == nil || !strings.Contains(out, c.want) {
				t.Errorf("got %v: %s", err, out)
			}
		})
	}
}

// api sends one request as the administrator and returns the status and the body.
func api(t *testing.T, method, path, contentType string, body io.Reader) (int, string) {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", data+"/admin.kubeconfig")
	if err != nil {
		t.Fatal(err)
	}
	c, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(t.Context(), method, config.Host+path, body)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", contentType)
	answer, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(text)
}

func TestBodiesThatAreNotObjects(t *testing.T) {
	t.Parallel()
	n := inNamespace(t)
	path := "/api/v1/namespaces/" + n.name + "/configmaps"
	for name, c := range map[string]struct {
		contentType string
		body        []byte
		status      int
		want        string
	}{
		"4 MiB":              {"application/json", fmt.Appendf(nil, `{"metadata":{"name":"x"},"data":{"a":"%s"}}`, strings.Repeat("a", 4<<20)), http.StatusRequestEntityTooLarge, "Request entity too large: limit is 3145728"},
		"truncated protobuf": {"application/vnd.kubernetes.protobuf", []byte("k8s\x00\x0a\x0f\x0a\x02v1\x12\x09Config"), http.StatusBadRequest, "unexpected EOF"},
		"no protobuf":        {"application/vnd.kubernetes.protobuf", []byte("garbage"), http.StatusBadRequest, "proto"},
		"nested JSON":        {"application/json", bytes.Repeat([]byte("["), 1<<20), http.StatusBadRequest, "BadRequest"},
		"nested in an object": {"application/json", []byte(`{"metadata":{"name":"x"},"data":` + strings.Repeat(`{"a":`, 100_000) + "1" + strings.Repeat("}", 100_000) + "}"),
			http.StatusBadRequest, "BadRequest"},
		"no JSON":             {"application/json", []byte(`{"metadata":`), http.StatusBadRequest, "BadRequest"},
		"an unknown form":     {"text/plain", []byte(`x`), http.StatusUnsupportedMediaType, "UnsupportedMediaType"},
		"another kind":        {"application/json", []byte(`{"apiVersion":"v1","kind":"Secret","metadata":{"name":"x"}}`), http.StatusBadRequest, "cannot be handled as a ConfigMap"},
		"another namespace":   {"application/json", []byte(`{"metadata":{"name":"x","namespace":"other"}}`), http.StatusBadRequest, "the namespace of the provided object does not match the namespace sent on the request"},
		"data that is binary": {"application/json", []byte(`{"metadata":{"name":"x"},"binaryData":{"a":"%%"}}`), http.StatusBadRequest, "illegal base64"},
	} {
		t.Run(name, func(t *testing.T) {
			status, body := api(t, "POST", path, c.contentType, bytes.NewReader(c.body))
			if status != c.status || !strings.Contains(body, c.want) || !strings.Contains(body, `"kind":"Status"`) {
				t.Errorf("status %d (want %d), body %.500s", status, c.status, body)
			}
		})
	}
	if out := n.kubectl("get", "configmaps", "-o", "name"); out != "configmap/kube-root-ca.crt\n" {
		t.Errorf("something was half done: %s", out)
	}
}

func TestOldRevisions(t *testing.T) {
	t.Parallel()
	n := inNamespace(t)
	n.kubectl("create", "configmap", "c", "--from-literal=a=1")
	old := n.kubectl("get", "configmap", "c", "-o", "json")
	n.kubectl("patch", "configmap", "c", "-p", `{"data":{"a":"2"}}`)
	status, body := api(t, "PUT", "/api/v1/namespaces/"+n.name+"/configmaps/c", "application/json", strings.NewReader(old))
	if status != http.StatusConflict || !strings.Contains(body, `Operation cannot be fulfilled on configmaps \"c\": the object has been modified; please apply your changes to the latest version and try again`) {
		t.Errorf("an update with an old resourceVersion: %d %s", status, body)
	}
	if out := n.field("configmap/c", ".data.a"); out != "2" {
		t.Errorf("the value is %q", out)
	}
	status, body = api(t, "GET", "/api/v1/configmaps?watch=1&resourceVersion=1&timeoutSeconds=5", "application/json", nil)
	gone := strings.Contains(body, `"code":410`) && strings.Contains(body, `"reason":"Expired"`)
	if !gone || status != http.StatusOK && status != http.StatusGone {
		t.Errorf("a watch from revision 1, which is before the cache: %d %s", status, body)
	}
	status, body = api(t, "GET", "/api/v1/configmaps?watch=1&resourceVersion=999999999&timeoutSeconds=2", "application/json", nil)
	if strings.Contains(body, `"ADDED"`) {
		t.Errorf("a watch from a revision to come: %d %s", status, body)
	}
}

func TestPortInUse(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	other := t.TempDir()
	out, err := try(proa, "--data-dir", other, "up", "--listen", l.Addr().String())
	if err == nil || !strings.Contains(out, l.Addr().String()) || !strings.Contains(out, "--listen") {
		t.Errorf("got %v: %s", err, out)
	}
}

func TestASecondProaOnTheFolder(t *testing.T) {
	t.Parallel()
	out, err := try(proa, "--data-dir", data, "up", "--listen", "127.0.0.1:0")
	if err == nil || !strings.Contains(out, "a proa runs on "+data+" already") {
		t.Errorf("got %v: %s", err, out)
	}
}
