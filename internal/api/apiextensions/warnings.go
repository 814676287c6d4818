package apiextensions

import (
	"fmt"
	"maps"
	"slices"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

// maxDepth bounds the walk of a schema. Requests cannot nest deeper.
const maxDepth = 200

// release is the Kubernetes whose formats are known.
var release = version.MajorMinor(1, 37)

// warnings are about parts of schemas that do not do what one may think.
func warnings(c *apiextensionsv1.CustomResourceDefinition) (out []string) {
	seen := map[string]bool{}
	warn := func(text string) {
		if !seen[text] {
			seen[text] = true
			out = append(out, text)
		}
	}
	for i := range c.Spec.Versions {
		if s := c.Spec.Versions[i].Schema; s != nil && s.OpenAPIV3Schema != nil {
			walk(s.OpenAPIV3Schema, 0, func(s *apiextensionsv1.JSONSchemaProps) {
				if s.Format != "" {
					for _, f := range validation.GetUnrecognizedFormats(&spec.Schema{SchemaProps: spec.SchemaProps{Format: s.Format, Type: []string{s.Type}}}, release) {
						warn(fmt.Sprintf("unrecognized format %q", f))
					}
				}
				if s.XListType != nil && *s.XListType == "set" && s.Items != nil && s.Items.Schema != nil {
					if t := s.Items.Schema.Type; t == "object" || t == "array" {
						warn(fmt.Sprintf("x-kubernetes-list-type: set for items of type %q is not supported by server-side apply or CEL validation rules", t))
					}
				}
			})
		}
	}
	return out
}

func walk(s *apiextensionsv1.JSONSchemaProps, depth int, fn func(*apiextensionsv1.JSONSchemaProps)) {
	if s == nil || depth > maxDepth {
		return
	}
	fn(s)
	for _, name := range slices.Sorted(maps.Keys(s.Properties)) {
		p := s.Properties[name]
		walk(&p, depth+1, fn)
	}
	if s.Items != nil {
		walk(s.Items.Schema, depth+1, fn)
	}
	if s.AdditionalProperties != nil {
		walk(s.AdditionalProperties.Schema, depth+1, fn)
	}
}
