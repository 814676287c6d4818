package customresource_test

import (
	"context"
	"encoding/json"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/proa-dev/proa/internal/api/resources"
	"github.com/proa-dev/proa/internal/apiserver/customresource"
	"github.com/proa-dev/proa/internal/apiserver/discovery"
	"github.com/proa-dev/proa/internal/apiserver/rest"
	"github.com/proa-dev/proa/internal/store/memory"
)

// Whatever schema the server accepts it can serve: objects are pruned, defaulted,
// validated, stored, converted for OpenAPI and for server-side apply, or refused
// with a client's error.
func FuzzSchema(f *testing.F) {
	for _, seed := range []string{
		`{"type":"object","properties":{"spec":{"type":"object","properties":{"a":{"type":"string","default":"x","maxLength":3}},"x-kubernetes-validations":[{"rule":"self.a == 'x'"}]}}}`,
		`{"type":"object","x-kubernetes-preserve-unknown-fields":true}`,
		`{"type":"object","properties":{"l":{"type":"array","x-kubernetes-list-type":"map","x-kubernetes-list-map-keys":["k"],"items":{"type":"object","required":["k"],"properties":{"k":{"type":"string"},"v":{"x-kubernetes-int-or-string":true}}}}}}`,
		`{"type":"object","properties":{"e":{"type":"object","x-kubernetes-embedded-resource":true,"x-kubernetes-preserve-unknown-fields":true},"n":{"type":"string","nullable":true}}}`,
		`{"type":"object","properties":{"m":{"type":"object","additionalProperties":{"type":"integer","minimum":1},"oneOf":[{"required":["a"]},{"required":["b"]}]}}}`,
	} {
		f.Add([]byte(seed), []byte(`{"spec":{"a":"x","b":1},"l":[{"k":"a","v":1},{"k":"a"}],"e":{"kind":"X","apiVersion":"v1","metadata":{"name":1}},"n":null,"m":{"a":0}}`))
	}
	f.Fuzz(func(t *testing.T, schema, object []byte) {
		if len(schema) > 4<<10 || len(object) > 4<<10 {
			return
		}
		props, content := &apiextensionsv1.JSONSchemaProps{}, map[string]any{}
		if json.Unmarshal(schema, props) != nil || json.Unmarshal(object, &content) != nil || content == nil {
			return
		}
		st := memory.New()
		defer st.Close()
		var d *customresource.Definitions
		registry, err := rest.New(rest.Config{Store: st, Resources: resources.All(), Scheme: resources.Scheme()})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		if err := registry.Start(ctx); err != nil {
			t.Fatal(err)
		}
		defer registry.Close()
		definitions, _ := registry.Storage(crdGVR)
		crd := large("thing")
		crd.Spec.Versions[0].Schema.OpenAPIV3Schema = props
		if _, err := definitions.Create(ctx, "", crd, metav1.CreateOptions{}); err != nil {
			refused(t, err)
			return
		}
		catalog, _ := discovery.NewCatalog(nil)
		if d, err = customresource.New(customresource.Config{Registry: registry, Catalog: catalog}); err != nil {
			t.Fatal(err)
		}
		following := make(chan error, 1)
		go func() { following <- d.Run(ctx) }()
		defer func() { cancel(); <-following }()
		gvr := apiextensionsv1.SchemeGroupVersion.WithResource("things")
		gvr.Group = "example.com"
		storage, served := registry.Storage(gvr)
		for !served {
			storage, served = registry.Storage(gvr)
		}
		res := storage.Resource()
		for _, v3 := range []bool{false, true} {
			if _, err := res.Model(v3); err != nil {
				t.Errorf("the model of a schema that was accepted: %v", err)
			}
		}
		d.Types(res)
		content["apiVersion"], content["kind"], content["metadata"] = "example.com/v1", "thing", map[string]any{"name": "a"}
		u := &unstructured.Unstructured{}
		b, _ := json.Marshal(content)
		if u.UnmarshalJSON(b) != nil {
			return
		}
		if _, err := res.Coerce(u, true); err != nil {
			return
		}
		e, err := storage.Create(ctx, "default", u, metav1.CreateOptions{})
		if err != nil {
			refused(t, err)
			return
		}
		if _, err := e.JSON(); err != nil {
			t.Errorf("encode what was stored: %v", err)
		}
		res.Row(e.Object())
	})
}

func refused(t *testing.T, err error) {
	t.Helper()
	if !apierrors.IsInvalid(err) && !apierrors.IsBadRequest(err) && !apierrors.IsRequestEntityTooLargeError(err) {
		t.Fatalf("no client's error: %v", err)
	}
}
