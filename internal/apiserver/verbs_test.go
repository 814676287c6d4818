package apiserver_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	restclient "k8s.io/client-go/rest"

	"github.com/proa-dev/proa/internal/apiserver"
)

func TestObjectsLiveInEveryEncoding(t *testing.T) {
	s := start(t)
	for name, c := range map[string]*kubernetes.Clientset{"json": s.clientset(t), "protobuf": s.protobuf(t)} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			maps := c.CoreV1().ConfigMaps("default")
			made, err := maps.Create(ctx, configMap("a-"+name), metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if made.UID == "" || made.ResourceVersion == "" || made.Data["k"] != "v" {
				t.Fatalf("created %+v", made)
			}
			got, err := maps.Get(ctx, made.Name, metav1.GetOptions{})
			if err != nil || got.UID != made.UID || got.ResourceVersion != made.ResourceVersion {
				t.Fatalf("got %+v, %v", got, err)
			}
			got.Data["k"] = "w"
			updated, err := maps.Update(ctx, got, metav1.UpdateOptions{})
			if err != nil || updated.Data["k"] != "w" || updated.ResourceVersion == made.ResourceVersion {
				t.Fatalf("updated %+v, %v", updated, err)
			}
			if _, err := maps.Update(ctx, made, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
				t.Fatalf("update of an old state: %v", err)
			}
			patched, err := maps.Patch(ctx, made.Name, types.MergePatchType, []byte(`{"data":{"n":"1"}}`), metav1.PatchOptions{})
			if err != nil || patched.Data["n"] != "1" {
				t.Fatalf("patched %+v, %v", patched, err)
			}
			list, err := maps.List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + made.Name})
			if err != nil || len(list.Items) != 1 || list.Items[0].Data["n"] != "1" || list.ResourceVersion == "" {
				t.Fatalf("listed %+v, %v", list, err)
			}
			if err := maps.Delete(ctx, made.Name, metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			if _, err := maps.Get(ctx, made.Name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
				t.Fatalf("get after delete: %v", err)
			}
		})
	}
}

func TestListsOfManyObjectsAreWholeInEveryEncoding(t *testing.T) {
	s := start(t)
	c := s.clientset(t)
	const n = 300
	for i := range n {
		if _, err := c.CoreV1().ConfigMaps("default").Create(t.Context(), configMap(fmt.Sprintf("m%03d", i)), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]*kubernetes.Clientset{"json": c, "protobuf": s.protobuf(t)} {
		list, err := c.CoreV1().ConfigMaps("").List(t.Context(), metav1.ListOptions{})
		if err != nil || len(list.Items) != n || list.Items[n-1].Name != "m299" || list.Items[7].Data["k"] != "v" {
			t.Fatalf("%s: %d items, %v", name, len(list.Items), err)
		}
		page, err := c.CoreV1().ConfigMaps("").List(t.Context(), metav1.ListOptions{Limit: 100})
		if err != nil || len(page.Items) != 100 || page.Continue == "" || page.RemainingItemCount == nil || *page.RemainingItemCount != 200 {
			t.Fatalf("%s: page %+v, %v", name, page.ListMeta, err)
		}
	}
	y := s.do(t, "GET", "/api/v1/configmaps?limit=2", "", "Accept", "application/yaml")
	if y.header.Get("Content-Type") != "application/yaml" || !strings.Contains(y.body, "kind: ConfigMapList") {
		t.Fatalf("yaml: %s", y.body)
	}
	pretty := s.do(t, "GET", "/api/v1/configmaps?limit=2&pretty=true", "", "Accept", "application/json")
	if !strings.HasPrefix(pretty.body, "{\n  \"kind\": \"ConfigMapList\"") {
		t.Fatalf("pretty: %s", pretty.body)
	}

	// Far clients get large bodies compressed; the loopback does not.
	for range 2 { // the second answer uses the pooled writer
		req := httptest.NewRequest("GET", "/api/v1/configmaps", nil) // from 192.0.2.1
		req.Header.Set("Authorization", "Bearer admin")
		req.Header.Set("Accept-Encoding", "gzip")
		w := httptest.NewRecorder()
		big := strings.Repeat("x", 200<<10)
		if _, err := c.CoreV1().ConfigMaps("default").Patch(t.Context(), "m000", types.MergePatchType, []byte(`{"data":{"big":"`+big+`"}}`), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		s.api.ServeHTTP(w, req)
		if w.Header().Get("Content-Encoding") != "gzip" {
			t.Fatalf("not compressed: %v", w.Header())
		}
		z, err := gzip.NewReader(w.Body)
		if err != nil {
			t.Fatal(err)
		}
		plain, err := io.ReadAll(z)
		list := &corev1.ConfigMapList{}
		if err != nil || json.Unmarshal(plain, list) != nil || len(list.Items) != n {
			t.Fatalf("compressed list: %v", err)
		}
	}
}

func TestTableAndPartialMetadata(t *testing.T) {
	s := start(t)
	c := s.clientset(t)
	for _, n := range []string{"a", "b"} {
		if _, err := c.CoreV1().ConfigMaps("default").Create(t.Context(), configMap(n), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	const kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json"
	for _, path := range []string{"/api/v1/namespaces/default/configmaps", "/api/v1/namespaces/default/configmaps/a"} {
		a := s.do(t, "GET", path, "", "Accept", kubectl)
		table := &metav1.Table{}
		if err := json.Unmarshal([]byte(a.body), table); err != nil || table.Kind != "Table" || table.APIVersion != "meta.k8s.io/v1" {
			t.Fatalf("%s: %v", a.body, err)
		}
		if len(table.ColumnDefinitions) == 0 || len(table.Rows) == 0 || len(table.Rows[0].Cells) != len(table.ColumnDefinitions) || table.Rows[0].Cells[0] != "a" {
			t.Fatalf("table %s", a.body)
		}
		m := &metav1.PartialObjectMetadata{}
		if err := json.Unmarshal(table.Rows[0].Object.Raw, m); err != nil || m.Name != "a" || m.Kind != "PartialObjectMetadata" {
			t.Fatalf("row object %s", table.Rows[0].Object.Raw)
		}
	}
	none := s.do(t, "GET", "/api/v1/configmaps?includeObject=None", "", "Accept", kubectl)
	if !strings.Contains(none.body, `"object":null`) {
		t.Fatalf("includeObject=None: %s", none.body)
	}
	if a := s.do(t, "GET", "/api/v1/configmaps?includeObject=Some", "", "Accept", kubectl); a.code != 400 {
		t.Fatalf("includeObject=Some: %d", a.code)
	}

	for _, kind := range []string{"", "application/vnd.kubernetes.protobuf"} {
		config := restclient.CopyConfig(s.config)
		if kind != "" {
			config = metadata.ConfigFor(config)
		}
		m, err := metadata.NewForConfig(config)
		if err != nil {
			t.Fatal(err)
		}
		gvr := corev1.SchemeGroupVersion.WithResource("configmaps")
		list, err := m.Resource(gvr).List(t.Context(), metav1.ListOptions{})
		if err != nil || len(list.Items) != 2 || list.Items[1].Name != "b" || list.Items[1].UID == "" {
			t.Fatalf("metadata list: %+v, %v", list, err)
		}
		one, err := m.Resource(gvr).Namespace("default").Get(t.Context(), "b", metav1.GetOptions{})
		if err != nil || one.UID != list.Items[1].UID {
			t.Fatalf("metadata get: %+v, %v", one, err)
		}
		w, err := m.Resource(gvr).Watch(t.Context(), metav1.ListOptions{ResourceVersion: "0"})
		if err != nil {
			t.Fatal(err)
		}
		ev := next(t, w)
		if o, ok := ev.Object.(*metav1.PartialObjectMetadata); !ok || o.Name == "" {
			t.Fatalf("metadata watch: %+v", ev)
		}
		w.Stop()
	}
}

func next(t *testing.T, w watch.Interface) watch.Event {
	t.Helper()
	select {
	case ev, ok := <-w.ResultChan():
		if !ok {
			t.Fatal("the watch ended")
		}
		return ev
	case <-time.After(10 * time.Second):
		t.Fatal("no event")
	}
	return watch.Event{}
}

func TestWatchTellsEverything(t *testing.T) {
	s := start(t)
	for name, c := range map[string]*kubernetes.Clientset{"json": s.clientset(t), "protobuf": s.protobuf(t)} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			maps := c.CoreV1().ConfigMaps(name)
			first, err := maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "one"}}, metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			yes := true
			w, err := maps.Watch(ctx, metav1.ListOptions{SendInitialEvents: &yes, AllowWatchBookmarks: true, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan})
			if err != nil {
				t.Fatal(err)
			}
			defer w.Stop()
			if ev := next(t, w); ev.Type != watch.Added || ev.Object.(*corev1.ConfigMap).UID != first.UID {
				t.Fatalf("initial event %+v", ev)
			}
			if ev := next(t, w); ev.Type != watch.Bookmark || ev.Object.(*corev1.ConfigMap).Annotations[metav1.InitialEventsAnnotationKey] != "true" || ev.Object.(*corev1.ConfigMap).ResourceVersion == "" {
				t.Fatalf("bookmark %+v", ev)
			}
			first.Data = map[string]string{"a": "b"}
			if _, err := maps.Update(ctx, first, metav1.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
			if ev := next(t, w); ev.Type != watch.Modified || ev.Object.(*corev1.ConfigMap).Data["a"] != "b" {
				t.Fatalf("update %+v", ev)
			}
			if err := maps.Delete(ctx, "one", metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			if ev := next(t, w); ev.Type != watch.Deleted || ev.Object.(*corev1.ConfigMap).Data["a"] != "b" {
				t.Fatalf("delete %+v", ev)
			}
		})
	}
}

func TestWatchEndsInOrder(t *testing.T) {
	s := start(t)
	c := s.clientset(t)
	one := int64(1)
	began := time.Now()
	w, err := c.CoreV1().ConfigMaps("").Watch(t.Context(), metav1.ListOptions{TimeoutSeconds: &one})
	if err != nil {
		t.Fatal(err)
	}
	if ev, ok := <-w.ResultChan(); ok {
		t.Fatalf("unexpected %+v", ev)
	}
	if d := time.Since(began); d < 900*time.Millisecond || d > 5*time.Second {
		t.Fatalf("timeoutSeconds=1 ended after %v", d)
	}
	// The old path of watches answers too, also for one name.
	a := s.do(t, "GET", "/api/v1/watch/namespaces/default/configmaps/x?timeoutSeconds=1", "")
	if a.code != 200 || a.body != "" {
		t.Fatalf("legacy watch: %d %s", a.code, a.body)
	}
	w, err = c.CoreV1().ConfigMaps("").Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.stop(); err != nil {
		t.Fatalf("shutdown with an open watch: %v", err)
	}
	if ev, ok := <-w.ResultChan(); ok {
		t.Fatalf("shutdown sent %+v", ev)
	}
}

func TestTableWatchHasColumnsOnce(t *testing.T) {
	s := start(t)
	c := s.clientset(t)
	for _, n := range []string{"a", "b"} {
		if _, err := c.CoreV1().ConfigMaps("default").Create(t.Context(), configMap(n), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	a := s.do(t, "GET", "/api/v1/configmaps?watch=1&timeoutSeconds=1", "", "Accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
	var columns []int
	sc := bufio.NewScanner(strings.NewReader(a.body))
	for sc.Scan() {
		ev := struct {
			Type   string
			Object metav1.Table
		}{}
		if err := json.Unmarshal(sc.Bytes(), &ev); err != nil || ev.Type != "ADDED" || len(ev.Object.Rows) != 1 {
			t.Fatalf("%s: %v", sc.Text(), err)
		}
		columns = append(columns, len(ev.Object.ColumnDefinitions))
	}
	if len(columns) != 2 || columns[0] == 0 || columns[1] != 0 {
		t.Fatalf("columns %v", columns)
	}
}

func TestWatchOverWebSocket(t *testing.T) {
	s := start(t)
	c := s.clientset(t)
	if _, err := c.CoreV1().ConfigMaps("default").Create(t.Context(), configMap("a"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	d := websocket.Dialer{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	conn, resp, err := d.Dial("wss"+strings.TrimPrefix(s.url, "https")+"/api/v1/configmaps?watch=true", http.Header{"Authorization": {"Bearer admin"}})
	if err != nil {
		t.Fatal(err, resp)
	}
	defer conn.Close()
	kind, msg, err := conn.ReadMessage()
	if err != nil || kind != websocket.TextMessage || !bytes.HasPrefix(msg, []byte(`{"type":"ADDED","object":{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a"`)) {
		t.Fatalf("%d %s %v", kind, msg, err)
	}
}

func TestWatchFromTheForgottenPastSaysSo(t *testing.T) {
	s := start(t)
	a := s.do(t, "GET", "/api/v1/configmaps?watch=1&resourceVersion=999999999&timeoutSeconds=1", "")
	if a.code != 200 && a.code != 504 {
		t.Fatalf("future revision: %d %s", a.code, a.body)
	}
}

func TestErrorsSpeakAsKubernetes(t *testing.T) {
	s := start(t)
	okBody := `{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"x"}}`
	deep := `{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"x"},"data":` + strings.Repeat(`{"a":`, 20000) + "1" + strings.Repeat("}", 20001)
	for _, tc := range []struct {
		name, method, path, body string
		header                   []string
		code                     int
		reason                   metav1.StatusReason
		message                  string // part of it
	}{
		{"nobody", "GET", "/api/v1/pods", "", []string{"Authorization", ""}, 401, "Unauthorized", "Unauthorized"},
		{"bad token", "GET", "/api/v1/pods", "", []string{"Authorization", "", "Authorization", "Bearer broken"}, 401, "Unauthorized", "Unauthorized"},
		{"not allowed in a namespace", "GET", "/api/v1/namespaces/y/secrets", "", []string{"Authorization", "", "Authorization", "Bearer viewer"}, 403, "Forbidden", `secrets is forbidden: User "viewer" cannot list resource "secrets" in API group "" in the namespace "y"`},
		{"not allowed in the cluster", "GET", "/apis/apps/v1/deployments?watch=1", "", []string{"Authorization", "", "Authorization", "Bearer viewer"}, 403, "Forbidden", `deployments.apps is forbidden: User "viewer" cannot watch resource "deployments" in API group "apps" at the cluster scope`},
		{"not allowed by name", "DELETE", "/api/v1/namespaces/y/pods/p", "", []string{"Authorization", "", "Authorization", "Bearer viewer"}, 403, "Forbidden", `pods "p" is forbidden: User "viewer" cannot delete resource "pods" in API group "" in the namespace "y"`},
		{"not allowed path", "GET", "/metrics", "", []string{"Authorization", "", "Authorization", "Bearer viewer"}, 403, "Forbidden", `forbidden: User "viewer" cannot get path "/metrics"`},
		{"no such object", "GET", "/api/v1/namespaces/y/pods/p", "", nil, 404, "NotFound", `pods "p" not found`},
		{"no such resource", "GET", "/api/v1/namespaces/y/frogs", "", nil, 404, "NotFound", "the server could not find the requested resource"},
		{"no such group", "GET", "/apis/frogs.io/v1/frogs", "", nil, 404, "NotFound", "the server could not find the requested resource"},
		{"cluster resource in a namespace", "GET", "/api/v1/namespaces/y/nodes", "", nil, 404, "NotFound", "could not find"},
		{"no such subresource", "GET", "/api/v1/namespaces/y/configmaps/x/status", "", nil, 404, "NotFound", "could not find"},
		{"post to a name", "POST", "/api/v1/namespaces/y/pods/p", okBody, nil, 405, "MethodNotAllowed", "does not allow this method"},
		{"create outside of a namespace", "POST", "/api/v1/pods", okBody, nil, 405, "MethodNotAllowed", "does not allow this method"},
		{"put to a collection", "PUT", "/api/v1/namespaces/y/pods", okBody, nil, 405, "MethodNotAllowed", "does not allow this method"},
		{"not acceptable", "GET", "/api/v1/pods", "", []string{"Accept", "text/html"}, 406, "NotAcceptable", "only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf"},
		{"unsupported body", "POST", "/api/v1/namespaces/default/configmaps", "x", []string{"Content-Type", "text/plain"}, 415, "UnsupportedMediaType", "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml, application/vnd.kubernetes.protobuf"},
		{"unsupported patch", "PATCH", "/api/v1/namespaces/default/configmaps/x", "{}", []string{"Content-Type", "application/json"}, 415, "UnsupportedMediaType", "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, application/apply-patch+yaml"},
		{"empty body", "POST", "/api/v1/namespaces/default/configmaps", "", nil, 400, "BadRequest", "the object provided is unrecognized (must be of type ConfigMap): couldn't get version/kind; json parse error: unexpected end of JSON input (<empty>)"},
		{"broken JSON", "POST", "/api/v1/namespaces/default/configmaps", `{"kind":"ConfigMap"`, nil, 400, "BadRequest", "the object provided is unrecognized (must be of type ConfigMap): couldn't get version/kind; json parse error"},
		{"wrong type", "POST", "/api/v1/namespaces/default/configmaps", `{"kind":"ConfigMap","apiVersion":"v1","data":3}`, nil, 400, "BadRequest", `ConfigMap in version "v1" cannot be handled as a ConfigMap: json: cannot unmarshal number into Go struct field ConfigMap.data of type map[string]string`},
		{"other kind", "POST", "/api/v1/namespaces/default/configmaps", `{"kind":"Secret","apiVersion":"v1","metadata":{"name":"x"}}`, nil, 400, "BadRequest", `Secret in version "v1" cannot be handled as a ConfigMap`},
		{"unknown kind", "POST", "/api/v1/namespaces/default/configmaps", `{"kind":"Frog","apiVersion":"v1"}`, nil, 400, "BadRequest", `Frog in version "v1" cannot be handled as a ConfigMap: no kind "Frog" is registered for version "v1"`},
		{"other version", "POST", "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers", `{"kind":"HorizontalPodAutoscaler","apiVersion":"autoscaling/v1","metadata":{"name":"x"}}`, nil, 400, "BadRequest", "the API version in the data (autoscaling/v1) does not match the expected API version (autoscaling/v2)"},
		{"unknown field, strict", "POST", "/api/v1/namespaces/default/configmaps?fieldValidation=Strict", `{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"x","foo":1},"bar":2}`, nil, 400, "BadRequest", `strict decoding error: unknown field "metadata.foo", unknown field "bar"`},
		{"bad fieldValidation", "POST", "/api/v1/namespaces/default/configmaps?fieldValidation=Loose", okBody, nil, 422, "Invalid", `fieldValidation`},
		{"bad dryRun", "POST", "/api/v1/namespaces/default/configmaps?dryRun=some", okBody, nil, 422, "Invalid", `dryRun`},
		{"bad label selector", "GET", "/api/v1/pods?labelSelector=a=b=c", "", nil, 400, "BadRequest", "found"},
		{"bad field selector", "GET", "/api/v1/pods?fieldSelector=frog=1", "", nil, 400, "BadRequest", "field label not supported: frog"},
		{"bad limit", "GET", "/api/v1/pods?limit=many", "", nil, 400, "BadRequest", "many"},
		{"bad timeout", "GET", "/api/v1/pods?timeout=soon", "", nil, 400, "BadRequest", "invalid timeout"},
		{"other name than the URL", "PUT", "/api/v1/namespaces/default/configmaps/y", okBody, nil, 400, "BadRequest", "the name of the object (x) does not match the name on the URL (y)"},
		{"no name", "PUT", "/api/v1/namespaces/default/configmaps/y", `{"kind":"ConfigMap","apiVersion":"v1"}`, nil, 400, "BadRequest", "the name of the object (y based on URL) was undeterminable: name must be provided"},
		{"other namespace than the URL, update", "PUT", "/api/v1/namespaces/default/configmaps/y", `{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"y","namespace":"z"}}`, nil, 400, "BadRequest", "the namespace of the object (z) does not match the namespace on the URL (default)"},
		{"other namespace than the URL, create", "POST", "/api/v1/namespaces/default/configmaps", `{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"y","namespace":"z"}}`, nil, 400, "BadRequest", "the namespace of the provided object does not match the namespace sent on the request"},
		{"too large", "POST", "/api/v1/namespaces/default/configmaps", `{"data":{"a":"` + strings.Repeat("x", 3<<20) + `"}}`, nil, 413, "RequestEntityTooLarge", "Request entity too large: limit is 3145728"},
		{"too deep", "POST", "/api/v1/namespaces/default/configmaps", deep, nil, 400, "BadRequest", "ConfigMap"},
		{"cut protobuf", "POST", "/api/v1/namespaces/default/configmaps", "k8s\x00\n\x0f\n\x02v1\x12\tConfigMap\x12\x50\x0a", []string{"Content-Type", "application/vnd.kubernetes.protobuf"}, 400, "BadRequest", "ConfigMap"},
		{"impersonation by who may not", "GET", "/api/v1/pods", "", []string{"Authorization", "", "Authorization", "Bearer viewer", "Impersonate-User", "admin"}, 403, "Forbidden", `users "admin" is forbidden: User "viewer" cannot impersonate resource "users" in API group "" at the cluster scope`},
		{"impersonation of a group alone", "GET", "/api/v1/pods", "", []string{"Impersonate-Group", "a"}, 400, "BadRequest", "without impersonating a user"},
		{"impersonated", "GET", "/api/v1/secrets", "", []string{"Impersonate-User", "viewer"}, 403, "Forbidden", `secrets is forbidden: User "viewer" cannot list`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := s.do(t, tc.method, tc.path, tc.body, tc.header...)
			st := a.status(t)
			if a.code != tc.code || int(st.Code) != tc.code || st.Reason != tc.reason || !strings.Contains(st.Message, tc.message) {
				t.Errorf("%d %s", a.code, a.body)
			}
			if a.header.Get("Audit-Id") == "" {
				t.Error("no Audit-Id")
			}
		})
	}
}

func TestUnknownFieldsWarnByDefault(t *testing.T) {
	s := start(t)
	body := `{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"x"},"bar":2,"data":{"a":"b","a":"c"}}`
	a := s.do(t, "POST", "/api/v1/namespaces/default/configmaps", body)
	warnings := a.header.Values("Warning")
	slices.Sort(warnings)
	if a.code != 201 || len(warnings) != 2 || warnings[0] != `299 - "duplicate field \"data.a\""` || warnings[1] != `299 - "unknown field \"bar\""` {
		t.Fatalf("%d %v %s", a.code, warnings, a.body)
	}
	a = s.do(t, "PUT", "/api/v1/namespaces/default/configmaps/x?fieldValidation=Ignore", strings.Replace(body, `"name":"x"`, `"name":"x","uid":""`, 1))
	if a.code != 200 || len(a.header.Values("Warning")) != 0 {
		t.Fatalf("%d %v %s", a.code, a.header, a.body)
	}
}

func TestDeleteAnswers(t *testing.T) {
	s := start(t)
	c := s.clientset(t)
	ctx := t.Context()
	cm, err := c.CoreV1().ConfigMaps("default").Create(ctx, configMap("x"), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	a := s.do(t, "DELETE", "/api/v1/namespaces/default/configmaps/x", "")
	st := a.status(t)
	if a.code != 200 || st.Status != "Success" || st.Details.Name != "x" || st.Details.Kind != "configmaps" || st.Details.UID != cm.UID {
		t.Fatalf("%d %s", a.code, a.body)
	}
	held := configMap("held")
	held.Finalizers = []string{"example.com/hold"}
	if _, err := c.CoreV1().ConfigMaps("default").Create(ctx, held, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	a = s.do(t, "DELETE", "/api/v1/namespaces/default/configmaps/held", `{"kind":"DeleteOptions","apiVersion":"v1"}`)
	got := &corev1.ConfigMap{}
	if err := json.Unmarshal([]byte(a.body), got); err != nil || got.Kind != "ConfigMap" || got.DeletionTimestamp == nil {
		t.Fatalf("%d %s", a.code, a.body)
	}
	for _, n := range []string{"p", "q"} {
		if _, err := c.CoreV1().ConfigMaps("default").Create(ctx, configMap(n), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	wrong := types.UID("wrong")
	err = c.CoreV1().ConfigMaps("default").Delete(ctx, "p", metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &wrong}})
	if !apierrors.IsConflict(err) {
		t.Fatalf("precondition: %v", err)
	}
	err = s.protobuf(t).CoreV1().ConfigMaps("default").DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{FieldSelector: "metadata.name!=held"})
	if err != nil {
		t.Fatal(err)
	}
	list, err := c.CoreV1().ConfigMaps("default").List(ctx, metav1.ListOptions{})
	if err != nil || len(list.Items) != 1 || list.Items[0].Name != "held" {
		t.Fatalf("after deletecollection %d, %v", len(list.Items), err)
	}
}

func TestReviewsAreAnswered(t *testing.T) {
	s := start(t)
	c := s.clientset(t)
	self, err := c.AuthorizationV1().SelfSubjectAccessReviews().Create(t.Context(), &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
		ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: "list", Resource: "pods"}}}, metav1.CreateOptions{})
	if err != nil || !self.Status.Allowed {
		t.Fatalf("%+v %v", self, err)
	}
	other, err := c.AuthorizationV1().SubjectAccessReviews().Create(t.Context(), &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: "viewer", ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: "delete", Resource: "pods"}}}, metav1.CreateOptions{})
	if err != nil || other.Status.Allowed {
		t.Fatalf("%+v %v", other, err)
	}
	_, err = c.AuthorizationV1().SubjectAccessReviews().Create(t.Context(), &authorizationv1.SubjectAccessReview{}, metav1.CreateOptions{})
	if !apierrors.IsInvalid(err) {
		t.Fatalf("empty review: %v", err)
	}
}

func TestTooManyRequestsAreRefused(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	s := start(t, func(c *apiserver.Config) {
		c.MaxReadOnly = 1
		c.Paths = map[string]http.Handler{"/slow": http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			close(entered)
			<-leave
		})}
		c.Authorizer = everyone{}
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.do(t, "GET", "/slow", "")
	}()
	<-entered
	a := s.do(t, "GET", "/api/v1/pods", "", "Authorization", "", "Authorization", "Bearer viewer")
	if a.code != 429 || a.header.Get("Retry-After") != "1" || a.status(t).Reason != metav1.StatusReasonTooManyRequests {
		t.Errorf("%d %v %s", a.code, a.header, a.body)
	}
	if a := s.do(t, "GET", "/livez", "", "Authorization", "", "Authorization", "Bearer viewer"); a.code != 200 {
		t.Errorf("a busy server does not live: %s", a.body)
	}
	if a := s.do(t, "GET", "/api/v1/pods", ""); a.code != 200 {
		t.Errorf("the administrators are refused: %s", a.body)
	}
	close(leave)
	<-done
	if a := s.do(t, "GET", "/api/v1/pods", "", "Authorization", "", "Authorization", "Bearer viewer"); a.code != 200 {
		t.Errorf("the slot is not given back: %s", a.body)
	}
}

func TestPanicIsAnswered(t *testing.T) {
	s := start(t, func(c *apiserver.Config) {
		c.Paths = map[string]http.Handler{"/panic": http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("frog") })}
	})
	if a := s.do(t, "GET", "/panic", ""); a.code != 500 || a.status(t).Reason != metav1.StatusReasonInternalError || strings.Contains(a.body, "frog") {
		t.Fatalf("%d %s", a.code, a.body)
	}
}

func TestDynamicClientSeesTheSame(t *testing.T) {
	s := start(t)
	d := s.dynamic(t).Resource(schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}).Namespace("default")
	u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": "dyn"}, "data": map[string]any{"a": "b"}}}
	if _, err := d.Create(t.Context(), u, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	list, err := d.List(t.Context(), metav1.ListOptions{})
	if err != nil || len(list.Items) != 1 || list.GetKind() != "ConfigMapList" || list.Items[0].GetName() != "dyn" {
		t.Fatalf("%+v %v", list, err)
	}
}
