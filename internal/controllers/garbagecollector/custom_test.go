package garbagecollector_test

import (
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/controllers/garbagecollector"
	"github.com/proa-dev/proa/test/control"
)

var ponds = schema.GroupVersionResource{Group: "example.com", Version: "v1", Resource: "ponds"}

func pondCRD() *apiextensionsv1.CustomResourceDefinition {
	open := true
	return &apiextensionsv1.CustomResourceDefinition{ObjectMeta: metav1.ObjectMeta{Name: "ponds.example.com"},
		Spec: apiextensionsv1.CustomResourceDefinitionSpec{Group: "example.com", Scope: apiextensionsv1.NamespaceScoped,
			Names: apiextensionsv1.CustomResourceDefinitionNames{Plural: "ponds", Kind: "Pond"},
			Versions: []apiextensionsv1.CustomResourceDefinitionVersion{{Name: "v1", Served: true, Storage: true, Schema: &apiextensionsv1.CustomResourceValidation{
				OpenAPIV3Schema: &apiextensionsv1.JSONSchemaProps{Type: "object", XPreserveUnknownFields: &open}}}}}}
}

// Custom resources that are defined while the collector runs own and are owned,
// also after their definition went and came back.
func TestCustomResourcesOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := control.New(t)
		control.Run(t, control.CustomResources(t, c), garbagecollector.New(c, slog.New(slog.DiscardHandler)))
		for range 2 {
			if _, err := client.CustomResourceDefinitions.Create(t.Context(), c, pondCRD()); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			pond := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "example.com/v1", "kind": "Pond", "metadata": map[string]any{"name": "a"}}}
			made, err := c.Create(t.Context(), ponds, "default", "a", "", pond, metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			frog := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "frog",
				OwnerReferences: []metav1.OwnerReference{{APIVersion: "example.com/v1", Kind: "Pond", Name: "a", UID: made.GetUID()}}}}
			owner, err := client.ConfigMaps.Create(t.Context(), c, frog)
			if err != nil {
				t.Fatal(err)
			}
			small := pond.DeepCopy()
			small.SetName("small")
			small.SetOwnerReferences([]metav1.OwnerReference{{APIVersion: "v1", Kind: "ConfigMap", Name: "frog", UID: owner.UID}})
			if _, err := c.Create(t.Context(), ponds, "default", "small", "", small, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if _, err := c.Get(t.Context(), ponds, "default", "small"); err != nil {
				t.Fatal("collected too early")
			}
			foreground := metav1.DeletePropagationForeground
			if err := c.Delete(t.Context(), ponds, "default", "a", metav1.DeleteOptions{PropagationPolicy: &foreground}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
			for gvr, name := range map[schema.GroupVersionResource]string{ponds: "small", client.ConfigMaps.GVR: "frog"} {
				if _, err := c.Get(t.Context(), gvr, "default", name); !apierrors.IsNotFound(err) {
					t.Fatalf("%s %s stays: %v", gvr.Resource, name, err)
				}
			}
			if _, err := c.Get(t.Context(), ponds, "default", "a"); !apierrors.IsNotFound(err) {
				t.Fatalf("the owner stays: %v", err)
			}
			if err := client.CustomResourceDefinitions.Delete(t.Context(), c, "", "ponds.example.com", metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Minute)
			if _, err := client.CustomResourceDefinitions.Get(t.Context(), c, "", "ponds.example.com"); !apierrors.IsNotFound(err) {
				t.Fatalf("the definition stays: %v", err)
			}
		}
	})
}
