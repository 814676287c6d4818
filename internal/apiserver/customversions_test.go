package apiserver_test

import (
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
)

// twoVersions adds v2 to cron tabs, in which the image is called picture.
func twoVersions(c *apiextensionsv1.CustomResourceDefinition) {
	v2 := *c.Spec.Versions[0].DeepCopy()
	v2.Name, v2.Storage, v2.SelectableFields = "v2", false, nil
	spec := v2.Schema.OpenAPIV3Schema.Properties["spec"]
	spec.Properties["picture"] = apiextensionsv1.JSONSchemaProps{Type: "string"}
	delete(spec.Properties, "image")
	spec.XValidations = nil
	v2.Schema.OpenAPIV3Schema.Properties["spec"] = spec
	c.Spec.Versions[0].Deprecated = true
	c.Spec.Versions = append(c.Spec.Versions, v2)
}

// converter is a conversion webhook; break, when set, changes its answers.
func converter(t *testing.T, calls *atomic.Int32, spoil func(*apiextensionsv1.ConversionReview)) *apiextensionsv1.CustomResourceConversion {
	t.Helper()
	h := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		var review apiextensionsv1.ConversionReview
		if err := json.NewDecoder(r.Body).Decode(&review); err != nil {
			t.Error(err)
		}
		review.Response = &apiextensionsv1.ConversionResponse{UID: review.Request.UID, Result: metav1.Status{Status: metav1.StatusSuccess}}
		for _, raw := range review.Request.Objects {
			u := &unstructured.Unstructured{}
			if err := u.UnmarshalJSON(raw.Raw); err != nil {
				t.Error(err)
			}
			from, to := "image", "picture"
			if strings.HasSuffix(review.Request.DesiredAPIVersion, "/v1") {
				from, to = to, from
			}
			if v, ok, _ := unstructured.NestedString(u.Object, "spec", from); ok {
				unstructured.RemoveNestedField(u.Object, "spec", from)
				_ = unstructured.SetNestedField(u.Object, v, "spec", to)
			}
			u.SetAPIVersion(review.Request.DesiredAPIVersion)
			review.Response.ConvertedObjects = append(review.Response.ConvertedObjects, runtime.RawExtension{Object: u})
		}
		review.Request = nil
		if spoil != nil {
			spoil(&review)
		}
		_ = json.NewEncoder(w).Encode(&review)
	}))
	t.Cleanup(h.Close)
	return &apiextensionsv1.CustomResourceConversion{Strategy: apiextensionsv1.WebhookConverter, Webhook: &apiextensionsv1.WebhookConversion{
		ConversionReviewVersions: []string{"v1"},
		ClientConfig: &apiextensionsv1.WebhookClientConfig{URL: &h.URL,
			CABundle: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: h.Certificate().Raw})},
	}}
}

func TestCustomResourcesHaveVersions(t *testing.T) {
	s := start(t)
	var calls atomic.Int32
	s.define(t, crontabCRD(func(c *apiextensionsv1.CustomResourceDefinition) {
		twoVersions(c)
		c.Spec.Conversion = converter(t, &calls, nil)
	}))
	ctx := t.Context()
	v2 := crontabs.GroupResource().WithVersion("v2")
	one, two := s.dynamic(t).Resource(crontabs).Namespace("default"), s.dynamic(t).Resource(v2).Namespace("default")
	field := func(u *unstructured.Unstructured, err error, name string) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		v, _, _ := unstructured.NestedString(u.Object, "spec", name)
		return v
	}
	got, err := one.Create(ctx, crontab("old", map[string]any{"cronSpec": "* * * * *", "image": "a"}), metav1.CreateOptions{})
	if field(got, err, "image") != "a" || calls.Load() != 0 {
		t.Fatalf("%v, %d calls", got, calls.Load())
	}
	if got, err = two.Get(ctx, "old", metav1.GetOptions{}); field(got, err, "picture") != "a" || got.GetAPIVersion() != "stable.example.com/v2" {
		t.Fatalf("%v", got)
	}
	if got, err = two.Patch(ctx, "old", types.MergePatchType, []byte(`{"spec":{"picture":"b"}}`), metav1.PatchOptions{}); field(got, err, "picture") != "b" {
		t.Fatalf("%v", got)
	}
	if got, err = one.Get(ctx, "old", metav1.GetOptions{}); field(got, err, "image") != "b" {
		t.Fatalf("%v", got)
	}
	// The other version becomes the one that is stored: both kinds of objects are read as either.
	d := s.dynamic(t).Resource(crds)
	_, err = d.Patch(ctx, "crontabs.stable.example.com", types.JSONPatchType,
		[]byte(`[{"op":"replace","path":"/spec/versions/0/storage","value":false},{"op":"replace","path":"/spec/versions/1/storage","value":true}]`), metav1.PatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	crd, err := d.Get(ctx, "crontabs.stable.example.com", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if stored, _, _ := unstructured.NestedStringSlice(crd.Object, "status", "storedVersions"); len(stored) != 2 {
		t.Fatalf("stored versions %v", stored)
	}
	young := crontab("young", map[string]any{"cronSpec": "* * * * *", "picture": "c"})
	young.SetAPIVersion("stable.example.com/v2")
	if got, err = two.Create(ctx, young, metav1.CreateOptions{}); field(got, err, "picture") != "c" {
		t.Fatalf("%v", got)
	}
	for _, name := range []string{"younger", "youngest"} {
		u := young.DeepCopy()
		u.SetName(name)
		if _, err := two.Create(ctx, u, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	before := calls.Load()
	list, err := one.List(ctx, metav1.ListOptions{})
	if err != nil || len(list.Items) != 4 {
		t.Fatalf("%v %v", list, err)
	}
	for i, want := range []string{"b", "c"} {
		if v, _, _ := unstructured.NestedString(list.Items[i].Object, "spec", "image"); v != want {
			t.Errorf("%s is %q", list.Items[i].GetName(), v)
		}
	}
	if n := calls.Load() - before; n != 1 {
		t.Errorf("%d calls for a list", n)
	}
	a := s.do(t, "GET", "/apis/stable.example.com/v1/namespaces/default/crontabs/old", "")
	if w := a.header.Get("Warning"); !strings.Contains(w, "stable.example.com/v1 CronTab is deprecated; use stable.example.com/v2 CronTab") {
		t.Errorf("warning %q", w)
	}
}

func TestWrongConversionsAreRefused(t *testing.T) {
	for name, x := range map[string]struct {
		spoil func(*apiextensionsv1.ConversionReview)
		want  string
	}{
		"failure": {func(r *apiextensionsv1.ConversionReview) {
			r.Response.Result = metav1.Status{Status: metav1.StatusFailure, Message: "no way"}
		}, "conversion webhook for stable.example.com/v1, Kind=CronTab failed: no way"},
		"another uid":   {func(r *apiextensionsv1.ConversionReview) { r.Response.UID = "x" }, "expected response.uid="},
		"no objects":    {func(r *apiextensionsv1.ConversionReview) { r.Response.ConvertedObjects = nil }, "returned 0 objects, expected 1"},
		"no response":   {func(r *apiextensionsv1.ConversionReview) { r.Response = nil }, "no response provided"},
		"another name":  {func(r *apiextensionsv1.ConversionReview) { rename(r, "name", "b") }, "must have the same name: a != b"},
		"broken labels": {func(r *apiextensionsv1.ConversionReview) { rename(r, "labels", map[string]any{"a": int64(1)}) }, "invalid metadata.labels"},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t)
			var calls atomic.Int32
			s.define(t, crontabCRD(func(c *apiextensionsv1.CustomResourceDefinition) {
				twoVersions(c)
				c.Spec.Conversion = converter(t, &calls, x.spoil)
			}))
			if _, err := s.dynamic(t).Resource(crontabs).Namespace("default").Create(t.Context(), crontab("a", map[string]any{"cronSpec": "* * * * *"}), metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			v2 := crontabs.GroupResource().WithVersion("v2")
			if _, err := s.dynamic(t).Resource(v2).Namespace("default").Get(t.Context(), "a", metav1.GetOptions{}); err == nil || !strings.Contains(err.Error(), x.want) {
				t.Fatalf("%v", err)
			}
		})
	}
}

func rename(r *apiextensionsv1.ConversionReview, name string, value any) {
	_ = unstructured.SetNestedField(r.Response.ConvertedObjects[0].Object.(*unstructured.Unstructured).Object, value, "metadata", name)
}
