package apiserver_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
)

var (
	crds     = apiextensionsv1.SchemeGroupVersion.WithResource("customresourcedefinitions")
	crontabs = schema.GroupVersionResource{Group: "stable.example.com", Version: "v1", Resource: "crontabs"}
)

// crontabCRD defines cron tabs; change (nil: nothing) changes the definition.
func crontabCRD(change func(*apiextensionsv1.CustomResourceDefinition)) *apiextensionsv1.CustomResourceDefinition {
	text := func(s string) *apiextensionsv1.JSON { return &apiextensionsv1.JSON{Raw: []byte(s)} }
	one := float64(1)
	c := &apiextensionsv1.CustomResourceDefinition{
		TypeMeta:   metav1.TypeMeta{APIVersion: "apiextensions.k8s.io/v1", Kind: "CustomResourceDefinition"},
		ObjectMeta: metav1.ObjectMeta{Name: "crontabs.stable.example.com"},
		Spec: apiextensionsv1.CustomResourceDefinitionSpec{
			Group: "stable.example.com", Scope: apiextensionsv1.NamespaceScoped,
			Names: apiextensionsv1.CustomResourceDefinitionNames{Plural: "crontabs", Singular: "crontab", Kind: "CronTab", ShortNames: []string{"ct"}, Categories: []string{"all"}},
			Versions: []apiextensionsv1.CustomResourceDefinitionVersion{{
				Name: "v1", Served: true, Storage: true,
				Subresources: &apiextensionsv1.CustomResourceSubresources{
					Status: &apiextensionsv1.CustomResourceSubresourceStatus{},
					Scale:  &apiextensionsv1.CustomResourceSubresourceScale{SpecReplicasPath: ".spec.replicas", StatusReplicasPath: ".status.replicas"},
				},
				SelectableFields:         []apiextensionsv1.SelectableField{{JSONPath: ".spec.image"}},
				AdditionalPrinterColumns: []apiextensionsv1.CustomResourceColumnDefinition{{Name: "Spec", Type: "string", JSONPath: ".spec.cronSpec"}, {Name: "Replicas", Type: "integer", JSONPath: ".spec.replicas"}},
				Schema: &apiextensionsv1.CustomResourceValidation{OpenAPIV3Schema: &apiextensionsv1.JSONSchemaProps{
					Type: "object", Description: "CronTab runs things.",
					Properties: map[string]apiextensionsv1.JSONSchemaProps{
						"spec": {Type: "object", Required: []string{"cronSpec"}, Properties: map[string]apiextensionsv1.JSONSchemaProps{
							"cronSpec": {Type: "string", Pattern: `^(\d+|\*)(/\d+)?(\s+(\d+|\*)(/\d+)?){4}$`, Description: "When."},
							"image":    {Type: "string", Default: text(`"busybox"`)},
							"replicas": {Type: "integer", Minimum: &one, Default: text("1")},
							"ports": {Type: "array", XListType: pointer("map"), XListMapKeys: []string{"name"}, Items: &apiextensionsv1.JSONSchemaPropsOrArray{Schema: &apiextensionsv1.JSONSchemaProps{
								Type: "object", Required: []string{"name"}, Properties: map[string]apiextensionsv1.JSONSchemaProps{"name": {Type: "string"}, "port": {XIntOrString: true}}}}},
						}, XValidations: apiextensionsv1.ValidationRules{
							{Rule: "!has(self.replicas) || self.replicas <= 10", Message: "too many"},
							{Rule: "self.cronSpec == oldSelf.cronSpec", Message: "is immutable"},
						}},
						"status": {Type: "object", Properties: map[string]apiextensionsv1.JSONSchemaProps{"replicas": {Type: "integer"}}},
					},
				}},
			}},
		},
	}
	if change != nil {
		change(c)
	}
	return c
}

func pointer[T any](v T) *T { return &v }

func unstructuredOf(t testing.TB, v any) *unstructured.Unstructured {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	u := &unstructured.Unstructured{}
	if err := json.Unmarshal(b, &u.Object); err != nil {
		t.Fatal(err)
	}
	return u
}

// define creates a definition and waits until it is established.
func (s *server) define(t testing.TB, c *apiextensionsv1.CustomResourceDefinition) {
	t.Helper()
	d := s.dynamic(t).Resource(crds)
	if _, err := d.Create(t.Context(), unstructuredOf(t, c), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	s.condition(t, c.Name, "Established", "True")
}

// condition waits for a condition of a definition and returns it.
func (s *server) condition(t testing.TB, name, kind, want string) map[string]any {
	t.Helper()
	var last any
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		u, err := s.dynamic(t).Resource(crds).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		list, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
		last = list
		for _, c := range list {
			if c := c.(map[string]any); c["type"] == kind && c["status"] == want {
				return c
			}
		}
	}
	t.Fatalf("%s never became %s=%s: %v", name, kind, want, last)
	return nil
}

func crontab(name string, spec map[string]any) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{"apiVersion": "stable.example.com/v1", "kind": "CronTab",
		"metadata": map[string]any{"name": name}, "spec": spec}}
}

func TestCustomResourcesLive(t *testing.T) {
	s := start(t)
	s.define(t, crontabCRD(nil))
	ctx := t.Context()
	c := s.dynamic(t).Resource(crontabs).Namespace("default")
	w, err := c.Watch(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	in := crontab("a", map[string]any{"cronSpec": "* * * * *", "unknown": true, "ports": []any{map[string]any{"name": "x", "port": int64(1)}}})
	in.Object["status"] = map[string]any{"replicas": int64(7)}
	got, err := c.Create(ctx, in, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	spec := got.Object["spec"].(map[string]any)
	if spec["image"] != "busybox" || spec["replicas"] != int64(1) || spec["unknown"] != nil || got.Object["status"] != nil || got.GetGeneration() != 1 {
		t.Fatalf("created %v", got.Object)
	}
	if e := next(t, w); e.Type != watch.Added || e.Object.(*unstructured.Unstructured).GetUID() != got.GetUID() {
		t.Fatalf("event %v", e)
	}
	got, err = c.Patch(ctx, "a", types.MergePatchType, []byte(`{"spec":{"replicas":3}}`), metav1.PatchOptions{})
	if err != nil || got.GetGeneration() != 2 {
		t.Fatalf("patched: %v %v", got, err)
	}
	got.Object["status"] = map[string]any{"replicas": int64(2)}
	got.SetLabels(map[string]string{"not": "this"})
	if got, err = c.UpdateStatus(ctx, got, metav1.UpdateOptions{}); err != nil || got.GetGeneration() != 2 || len(got.GetLabels()) > 0 {
		t.Fatalf("status: %v %v", got, err)
	}
	scale, err := c.Get(ctx, "a", metav1.GetOptions{}, "scale")
	if err != nil || scale.GetKind() != "Scale" {
		t.Fatalf("scale: %v %v", scale, err)
	}
	if n, _, _ := unstructured.NestedInt64(scale.Object, "status", "replicas"); n != 2 {
		t.Fatalf("scale: %v", scale.Object)
	}
	if _, err := c.Patch(ctx, "a", types.MergePatchType, []byte(`{"spec":{"replicas":4}}`), metav1.PatchOptions{}, "scale"); err != nil {
		t.Fatal(err)
	}
	list, err := c.List(ctx, metav1.ListOptions{FieldSelector: "spec.image=busybox"})
	if err != nil || len(list.Items) != 1 || list.GetKind() != "CronTabList" {
		t.Fatalf("list: %v %v", list, err)
	}
	if list, err = c.List(ctx, metav1.ListOptions{FieldSelector: "spec.image=other"}); err != nil || len(list.Items) != 0 {
		t.Fatalf("list: %v %v", list, err)
	}
	a := s.do(t, "PATCH", "/apis/stable.example.com/v1/namespaces/default/crontabs/a", `{}`, "Content-Type", "application/strategic-merge-patch+json")
	if a.code != http.StatusUnsupportedMediaType || !strings.Contains(a.body, "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml") {
		t.Fatalf("%d %s", a.code, a.body)
	}
	if a = s.do(t, "GET", "/apis/stable.example.com/v1/namespaces/default/crontabs/a", "", "Accept", "application/vnd.kubernetes.protobuf"); a.code != http.StatusNotAcceptable {
		t.Fatalf("%d %s", a.code, a.body)
	}
	a = s.do(t, "GET", "/apis/stable.example.com/v1/crontabs", "", "Accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
	var table metav1.Table
	if err := json.Unmarshal([]byte(a.body), &table); err != nil || len(table.Rows) != 1 || len(table.ColumnDefinitions) != 3 {
		t.Fatalf("table: %v %s", err, a.body)
	}
	if cells := table.Rows[0].Cells; cells[0] != "a" || cells[1] != "* * * * *" || cells[2] != float64(4) {
		t.Fatalf("cells: %v", cells)
	}
	if err := c.Delete(ctx, "a", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
}

func TestCustomResourcesAreValidated(t *testing.T) {
	s := start(t)
	s.define(t, crontabCRD(nil))
	c := s.dynamic(t).Resource(crontabs).Namespace("default")
	for _, x := range []struct {
		spec map[string]any
		want string
	}{
		{map[string]any{}, "spec.cronSpec: Required value"},
		{map[string]any{"cronSpec": "nonsense"}, `spec.cronSpec: Invalid value: "nonsense": spec.cronSpec in body should match`},
		{map[string]any{"cronSpec": "* * * * *", "replicas": int64(0)}, "spec.replicas: Invalid value: 0: spec.replicas in body should be greater than or equal to 1"},
		{map[string]any{"cronSpec": "* * * * *", "replicas": int64(11)}, `spec: Invalid value: too many`},
		{map[string]any{"cronSpec": "* * * * *", "ports": []any{map[string]any{"name": "x"}, map[string]any{"name": "x"}}}, "spec.ports[1]: Duplicate value"},
	} {
		_, err := c.Create(t.Context(), crontab("bad", x.spec), metav1.CreateOptions{})
		if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%v: %v", x.spec, err)
		}
	}
	if _, err := c.Create(t.Context(), crontab("a", map[string]any{"cronSpec": "* * * * *", "spell": "x"}), metav1.CreateOptions{FieldValidation: "Strict"}); err == nil ||
		!strings.Contains(err.Error(), `strict decoding error: unknown field "spec.spell"`) {
		t.Errorf("strict: %v", err)
	}
	if _, err := c.Create(t.Context(), crontab("a", map[string]any{"cronSpec": "* * * * *"}), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Patch(t.Context(), "a", types.MergePatchType, []byte(`{"spec":{"cronSpec":"1 * * * *"}}`), metav1.PatchOptions{}); err == nil || !strings.Contains(err.Error(), "is immutable") {
		t.Errorf("transition: %v", err)
	}
	if _, err := c.Patch(t.Context(), "a", types.MergePatchType, []byte(`{"spec":{"spell":1}}`), metav1.PatchOptions{FieldValidation: "Strict"}); err == nil || !strings.Contains(err.Error(), `unknown field "spec.spell"`) {
		t.Errorf("patch: %v", err)
	}
}

func TestCustomResourcesAreApplied(t *testing.T) {
	s := start(t)
	s.define(t, crontabCRD(nil))
	c := s.dynamic(t).Resource(crontabs).Namespace("default")
	apply := func(manager string, ports ...any) error {
		_, err := c.Apply(t.Context(), "a", crontab("a", map[string]any{"cronSpec": "* * * * *", "ports": ports}), metav1.ApplyOptions{FieldManager: manager})
		return err
	}
	if err := apply("one", map[string]any{"name": "x", "port": int64(1)}); err != nil {
		t.Fatal(err)
	}
	if err := apply("two", map[string]any{"name": "y", "port": "http"}); err != nil {
		t.Fatal(err)
	}
	got, err := c.Get(t.Context(), "a", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if ports, _, _ := unstructured.NestedSlice(got.Object, "spec", "ports"); len(ports) != 2 {
		t.Fatalf("merged %v", ports)
	}
	if err := apply("two", map[string]any{"name": "x", "port": int64(2)}); !apierrors.IsConflict(err) {
		t.Fatalf("conflict: %v", err)
	}
	if err := apply("one"); err != nil {
		t.Fatal(err)
	}
	got, _ = c.Get(t.Context(), "a", metav1.GetOptions{})
	if ports, _, _ := unstructured.NestedSlice(got.Object, "spec", "ports"); len(ports) != 1 {
		t.Fatalf("what nobody wants stays: %v", ports)
	}
	_, err = c.Apply(t.Context(), "a", crontab("a", map[string]any{"cronSpec": "* * * * *", "spell": "x"}), metav1.ApplyOptions{FieldManager: "one"})
	if err == nil || !strings.Contains(err.Error(), "field not declared in schema") {
		t.Fatalf("unknown field: %v", err)
	}
}

func TestDefinitionsTakeTheirObjectsAlong(t *testing.T) {
	s := start(t)
	s.define(t, crontabCRD(nil))
	ctx := t.Context()
	c := s.dynamic(t).Resource(crontabs).Namespace("default")
	held := crontab("held", map[string]any{"cronSpec": "* * * * *"})
	held.SetFinalizers([]string{"example.com/hold"})
	for _, u := range []*unstructured.Unstructured{crontab("a", map[string]any{"cronSpec": "* * * * *"}), held} {
		if _, err := c.Create(ctx, u, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	d := s.dynamic(t).Resource(crds)
	if err := d.Delete(ctx, "crontabs.stable.example.com", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := s.condition(t, "crontabs.stable.example.com", "Terminating", "True"); !strings.HasPrefix(got["reason"].(string), "InstanceDeletion") {
		t.Fatalf("condition %v", got)
	}
	eventually(t, "the free object goes", func() bool {
		_, err := c.Get(ctx, "a", metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	})
	if _, err := c.Create(ctx, crontab("late", map[string]any{"cronSpec": "* * * * *"}), metav1.CreateOptions{}); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "create not allowed while custom resource definition is terminating") {
		t.Fatalf("create: %v", err)
	}
	if _, err := c.Patch(ctx, "held", types.JSONPatchType, []byte(`[{"op":"remove","path":"/metadata/finalizers"}]`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the definition goes", func() bool {
		_, err := d.Get(ctx, "crontabs.stable.example.com", metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	})
	eventually(t, "the resource is not served", func() bool {
		_, err := c.List(ctx, metav1.ListOptions{})
		return apierrors.IsNotFound(err)
	})
	s.define(t, crontabCRD(func(c *apiextensionsv1.CustomResourceDefinition) { c.Spec.Scope = apiextensionsv1.ClusterScoped }))
	if _, err := s.dynamic(t).Resource(crontabs).Create(ctx, crontab("wide", map[string]any{"cronSpec": "* * * * *"}), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("never: %s", what)
}

func TestNamesOfDefinitionsDoNotMeet(t *testing.T) {
	s := start(t)
	s.define(t, crontabCRD(nil))
	other := crontabCRD(func(c *apiextensionsv1.CustomResourceDefinition) {
		c.Name, c.Spec.Names.Plural, c.Spec.Names.Singular = "tabs.stable.example.com", "tabs", "tab"
	})
	d := s.dynamic(t).Resource(crds)
	if _, err := d.Create(t.Context(), unstructuredOf(t, other), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if c := s.condition(t, other.Name, "NamesAccepted", "False"); c["reason"] != "ListKindConflict" || c["message"] != `"CronTabList" is already in use` {
		t.Fatalf("condition %v", c)
	}
	if c := s.condition(t, other.Name, "Established", "False"); c["reason"] != "NotAccepted" {
		t.Fatalf("condition %v", c)
	}
	if err := d.Delete(t.Context(), "crontabs.stable.example.com", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	s.condition(t, other.Name, "Established", "True")
}
