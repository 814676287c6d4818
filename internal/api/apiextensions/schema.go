package apiextensions

import (
	"maps"
	"regexp"
	"slices"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api/rules"
)

// maxDepth bounds the walk of a schema. Requests cannot nest deeper.
const maxDepth = 200

// validateRoot checks that a schema is structural (KEP-2330): each value has one
// known type, so that objects can be pruned, defaulted and merged by it.
func validateRoot(s *apiextensionsv1.JSONSchemaProps, at *field.Path) (errs field.ErrorList) {
	switch s.Type {
	case "object":
	case "":
		errs = append(errs, field.Required(at.Child("type"), "must not be empty at the root"))
	default:
		errs = append(errs, field.Invalid(at.Child("type"), s.Type, "must be object at the root"))
	}
	if s.Nullable {
		errs = append(errs, field.Forbidden(at.Child("nullable"), "nullable cannot be true at the root"))
	}
	return append(errs, validateSchema(s, at, 0)...)
}

func validateSchema(s *apiextensionsv1.JSONSchemaProps, at *field.Path, depth int) (errs field.ErrorList) {
	if depth > maxDepth {
		return field.ErrorList{field.Invalid(at, "", "must not be nested deeper")}
	}
	anything := s.XIntOrString || (s.XPreserveUnknownFields != nil && *s.XPreserveUnknownFields)
	switch s.Type {
	case "":
		if depth > 0 && !anything {
			errs = append(errs, field.Required(at.Child("type"), "must not be empty for specified object fields"))
		}
	case "array", "boolean", "integer", "number", "object", "string":
	case "null":
		errs = append(errs, field.Forbidden(at.Child("type"), "type cannot be set to null, use nullable as an alternative"))
	default:
		errs = append(errs, field.NotSupported(at.Child("type"), s.Type, []string{"array", "boolean", "integer", "number", "object", "string"}))
	}
	errs = append(errs, validateForbidden(s, at)...)
	if s.Pattern != "" {
		if _, err := regexp.Compile(s.Pattern); err != nil {
			errs = append(errs, field.Invalid(at.Child("pattern"), s.Pattern, "must be a valid regular expression, but isn't: "+err.Error()))
		}
	}
	if p := s.XPreserveUnknownFields; p != nil && !*p {
		errs = append(errs, field.Invalid(at.Child("x-kubernetes-preserve-unknown-fields"), *p, "must be true or undefined"))
	}
	errs = append(errs, validateLists(s, at)...)
	if s.AdditionalProperties != nil {
		if len(s.Properties) > 0 && (s.AdditionalProperties.Schema != nil || !s.AdditionalProperties.Allows) {
			errs = append(errs, field.Forbidden(at.Child("additionalProperties"), "additionalProperties and properties are mutual exclusive"))
		}
		if s.AdditionalProperties.Schema != nil {
			errs = append(errs, validateSchema(s.AdditionalProperties.Schema, at.Child("additionalProperties"), depth+1)...)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.Properties)) {
		property := s.Properties[name]
		errs = append(errs, validateSchema(&property, at.Child("properties").Key(name), depth+1)...)
	}
	if s.Items != nil && s.Items.Schema != nil {
		errs = append(errs, validateSchema(s.Items.Schema, at.Child("items"), depth+1)...)
	}
	return errs
}

// validateForbidden refuses what JSON schema has and a structural one may not use.
func validateForbidden(s *apiextensionsv1.JSONSchemaProps, at *field.Path) (errs field.ErrorList) {
	if s.UniqueItems {
		errs = append(errs, field.Forbidden(at.Child("uniqueItems"), "uniqueItems cannot be set to true since the runtime complexity becomes quadratic"))
	}
	if s.Ref != nil {
		errs = append(errs, field.Forbidden(at.Child("$ref"), "$ref is not supported"))
	}
	if s.ID != "" {
		errs = append(errs, field.Forbidden(at.Child("id"), "id is not supported"))
	}
	if len(s.Definitions) > 0 {
		errs = append(errs, field.Forbidden(at.Child("definitions"), "definitions is not supported"))
	}
	if len(s.Dependencies) > 0 {
		errs = append(errs, field.Forbidden(at.Child("dependencies"), "dependencies is not supported"))
	}
	if len(s.PatternProperties) > 0 {
		errs = append(errs, field.Forbidden(at.Child("patternProperties"), "patternProperties is not supported"))
	}
	if s.AdditionalItems != nil {
		errs = append(errs, field.Forbidden(at.Child("additionalItems"), "additionalItems is not supported"))
	}
	return errs
}

func validateLists(s *apiextensionsv1.JSONSchemaProps, at *field.Path) (errs field.ErrorList) {
	if s.Items != nil && len(s.Items.JSONSchemas) > 0 {
		errs = append(errs, field.Forbidden(at.Child("items"), "items must be a schema object and not an array"))
	}
	if s.Type == "array" && (s.Items == nil || s.Items.Schema == nil) {
		errs = append(errs, field.Required(at.Child("items"), "must be specified"))
	}
	kind := at.Child("x-kubernetes-list-type")
	list := rules.Or(s.XListType, "")
	if s.XListType != nil {
		if s.Type != "array" {
			errs = append(errs, field.Invalid(at.Child("type"), s.Type, "must be array if x-kubernetes-list-type is specified"))
		}
		if !slices.Contains([]string{"atomic", "map", "set"}, list) {
			errs = append(errs, field.NotSupported(kind, list, []string{"atomic", "map", "set"}))
		}
	}
	keys := at.Child("x-kubernetes-list-map-keys")
	if len(s.XListMapKeys) > 0 && list != "map" {
		errs = append(errs, field.Invalid(kind, s.XListType, "must be map if x-kubernetes-list-map-keys is non-empty"))
	}
	if list == "map" && len(s.XListMapKeys) == 0 {
		errs = append(errs, field.Required(keys, "must not be empty if x-kubernetes-list-type is map"))
	}
	if m := s.XMapType; m != nil {
		if s.Type != "object" {
			errs = append(errs, field.Invalid(at.Child("type"), s.Type, "must be object if x-kubernetes-map-type is specified"))
		}
		if *m != "atomic" && *m != "granular" {
			errs = append(errs, field.NotSupported(at.Child("x-kubernetes-map-type"), *m, []string{"atomic", "granular"}))
		}
	}
	if s.XEmbeddedResource && s.Type != "object" {
		errs = append(errs, field.Invalid(at.Child("type"), s.Type, "must be object if x-kubernetes-embedded-resource is true"))
	}
	return errs
}
