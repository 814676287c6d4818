package customresource_test

import (
	"encoding/json"
	"fmt"
	"runtime"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/proa-dev/proa/internal/api/resources"
	"github.com/proa-dev/proa/internal/apiserver/customresource"
	"github.com/proa-dev/proa/internal/apiserver/discovery"
	"github.com/proa-dev/proa/internal/apiserver/rest"
	"github.com/proa-dev/proa/internal/store"
	"github.com/proa-dev/proa/internal/store/memory"
)

var crdGVR = apiextensionsv1.SchemeGroupVersion.WithResource("customresourcedefinitions")

// large is a definition of some 10 kB.
func large(name string) *apiextensionsv1.CustomResourceDefinition {
	fields := map[string]apiextensionsv1.JSONSchemaProps{}
	for j := range 60 {
		fields[fmt.Sprintf("field%d", j)] = apiextensionsv1.JSONSchemaProps{Type: "string", Description: "What this field is for is said in a sentence of a usual length, as in most definitions."}
	}
	return &apiextensionsv1.CustomResourceDefinition{ObjectMeta: metav1.ObjectMeta{Name: name + "s.example.com"},
		Spec: apiextensionsv1.CustomResourceDefinitionSpec{Group: "example.com", Scope: apiextensionsv1.NamespaceScoped,
			Names: apiextensionsv1.CustomResourceDefinitionNames{Plural: name + "s", Kind: name},
			Versions: []apiextensionsv1.CustomResourceDefinitionVersion{{Name: "v1", Served: true, Storage: true, Schema: &apiextensionsv1.CustomResourceValidation{
				OpenAPIV3Schema: &apiextensionsv1.JSONSchemaProps{Type: "object", Properties: map[string]apiextensionsv1.JSONSchemaProps{"spec": {Type: "object", Properties: fields}}}}}}},
		Status: apiextensionsv1.CustomResourceDefinitionStatus{StoredVersions: []string{"v1"},
			AcceptedNames: apiextensionsv1.CustomResourceDefinitionNames{Plural: name + "s", Singular: name, Kind: name, ListKind: name + "List"},
			Conditions: []apiextensionsv1.CustomResourceDefinitionCondition{{Type: apiextensionsv1.NamesAccepted, Status: apiextensionsv1.ConditionTrue},
				{Type: apiextensionsv1.Established, Status: apiextensionsv1.ConditionTrue}}},
	}
}

// BenchmarkDefinitions measures what a server holds of 1,000 definitions that are
// stored and served: at most 100 MiB. What is used of them costs more, since its
// schema is compiled.
func BenchmarkDefinitions(b *testing.B) {
	const n = 1000
	st := memory.New()
	defer st.Close()
	for i := range n {
		c := large(fmt.Sprintf("thing%d", i))
		c.APIVersion, c.Kind = "apiextensions.k8s.io/v1", "CustomResourceDefinition"
		value, err := json.Marshal(c)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := st.Create(b.Context(), "/registry/apiextensions.k8s.io/customresourcedefinitions/"+c.Name, value); err != nil {
			b.Fatal(err)
		}
	}
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	for b.Loop() {
		before := heap()
		definitions, catalog, stop := serve(b, st)
		if got := len(catalog.Resources()); got != n {
			b.Fatalf("%d are served", got)
		}
		b.ReportMetric(float64(heap()-before)/(1<<20), "MiB")
		runtime.KeepAlive(definitions)
		stop()
	}
}

// serve serves what is defined in a store.
func serve(t testing.TB, st store.Store) (*customresource.Definitions, *discovery.Catalog, func()) {
	t.Helper()
	registry, err := rest.New(rest.Config{Store: st, Resources: resources.All(), Scheme: resources.Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	if err := registry.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	catalog, err := discovery.NewCatalog(nil)
	if err != nil {
		t.Fatal(err)
	}
	d, err := customresource.New(customresource.Config{Registry: registry, Catalog: catalog})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	return d, catalog, registry.Close
}
