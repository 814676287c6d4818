package customresource

import (
	"slices"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structural "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	openapiv2 "k8s.io/apiextensions-apiserver/pkg/controller/openapi/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

const (
	refV2      = "#/definitions/"
	refV3      = "#/components/schemas/"
	objectMeta = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"

	gvkExtension      = "x-kubernetes-group-version-kind"
	fieldsExtension   = "x-kubernetes-selectable-fields"
	preserveExtension = "x-kubernetes-preserve-unknown-fields"
	embeddedExtension = "x-kubernetes-embedded-resource"
)

var (
	describeKind = "Kind is a string value representing the REST resource this object represents. Servers may infer this from the endpoint the client submits requests to. " +
		"Cannot be updated. In CamelCase. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds"
	describeVersion = "APIVersion defines the versioned schema of this representation of an object. Servers should convert recognized schemas to the latest internal value, " +
		"and may reject unrecognized values. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources"
	describeMeta = metav1.PartialObjectMetadata{}.SwaggerDoc()["metadata"]
)

// structureOf returns a version's schema, nil when it has none.
func structureOf(spec *apiextensionsv1.CustomResourceDefinitionVersion) (*structural.Structural, error) {
	if spec.Schema == nil || spec.Schema.OpenAPIV3Schema == nil {
		return nil, nil
	}
	internal := &apiextensions.JSONSchemaProps{}
	if err := apiextensionsv1.Convert_v1_JSONSchemaProps_To_apiextensions_JSONSchemaProps(spec.Schema.OpenAPIV3Schema.DeepCopy(), internal, nil); err != nil {
		return nil, err
	}
	return structural.NewStructural(internal)
}

// model returns the OpenAPI model of a version's kind: its schema with what every
// object has. In OpenAPI v2, of which clients know no nullable values and no
// unknown fields, it says less.
func (v *version) model(v3 bool) (*spec.Schema, error) {
	// Made anew for each question, which are few: what clients ask for is kept by them.
	s, err := structureOf(v.spec.Load())
	if err != nil || s != nil && len(structural.ValidateStructural(nil, s)) > 0 {
		s = nil
	}
	var out *spec.Schema
	ref := refV3
	if !v3 {
		ref = refV2
	}
	if s == nil || !v3 && (s.XPreserveUnknownFields || v.preserve) {
		// Without properties kubectl takes any field; with some it would refuse the others.
		out = &spec.Schema{SchemaProps: spec.SchemaProps{Type: []string{"object"}}}
	} else {
		s = s.Unfold()
		if !v3 {
			s = openapiv2.ToStructuralOpenAPIV2(s)
		}
		out = s.ToKubeOpenAPI()
		out.SetProperty("metadata", metaOf(ref, v3))
		out.SetProperty("apiVersion", *spec.StringProperty().WithDescription(describeVersion))
		out.SetProperty("kind", *spec.StringProperty().WithDescription(describeKind))
		embed(out, ref, v3)
	}
	out.AddExtension(gvkExtension, []any{map[string]any{"group": v.gvk.Group, "version": v.gvk.Version, "kind": v.gvk.Kind}})
	if selectable := v.spec.Load().SelectableFields; v3 && len(selectable) > 0 {
		var fields []any
		for _, f := range selectable {
			fields = append(fields, map[string]any{"fieldPath": pathJoin(f.JSONPath)})
		}
		out.AddExtension(fieldsExtension, fields)
	}
	return out, nil
}

// metaOf refers to the model of metadata; a reference of v3 has nothing beside it.
func metaOf(ref string, v3 bool) spec.Schema {
	if !v3 {
		return *spec.RefSchema(ref + objectMeta).WithDescription(describeMeta)
	}
	out := spec.Schema{SchemaProps: spec.SchemaProps{AllOf: []spec.Schema{*spec.RefSchema(ref + objectMeta)}}}
	return *out.WithDescription(describeMeta)
}

func pathJoin(path string) string {
	if path != "" && path[0] == '.' {
		return path[1:]
	}
	return path
}

// embed gives embedded objects the fields that every object has.
func embed(s *spec.Schema, ref string, v3 bool) {
	if s == nil {
		return
	}
	for name := range s.Properties {
		p := s.Properties[name]
		embed(&p, ref, v3)
		s.Properties[name] = p
	}
	if s.Items != nil {
		embed(s.Items.Schema, ref, v3)
	}
	if s.AdditionalProperties != nil {
		embed(s.AdditionalProperties.Schema, ref, v3)
	}
	if open, ok := s.Extensions.GetBool(preserveExtension); ok && open && !v3 {
		return
	}
	if yes, ok := s.Extensions.GetBool(embeddedExtension); !ok || !yes {
		return
	}
	s.SetProperty("apiVersion", *spec.StringProperty().WithDescription("apiVersion defines the versioned schema of this representation of an object. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources"))
	s.SetProperty("kind", *spec.StringProperty().WithDescription("kind is a string value representing the type of this object. In CamelCase. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds"))
	s.SetProperty("metadata", metaOf(ref, v3))
	for _, name := range []string{"kind", "apiVersion"} {
		if !slices.Contains(s.Required, name) {
			s.Required = append(s.Required, name)
		}
	}
}
