package customresource

import (
	"fmt"
	"sync"
	"sync/atomic"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structural "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/objectmeta"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
)

// version is one version of a definition. What its schema means is worked out at
// the first use: most definitions of a cluster are hardly ever used.
type version struct {
	gvk        schema.GroupVersionKind
	namespaced bool
	preserve   bool // spec.preserveUnknownFields of definitions that v1beta1 left behind
	// spec is part of the newest definition in the cache, so that there is no other copy of it.
	spec atomic.Pointer[apiextensionsv1.CustomResourceDefinitionVersion]

	once sync.Once
	made *compiled
	err  error
}

// compiled is what a version's schema means. A version without a schema has none
// of its parts.
type compiled struct {
	schema    *structural.Structural
	object    validation.SchemaValidator
	status    validation.SchemaValidator
	rules     *cel.Validator
	hasStatus bool
}

func (v *version) compiled() (*compiled, error) {
	v.once.Do(func() {
		if v.made, v.err = compile(v.spec.Load(), v.preserve); v.err != nil {
			v.err = fmt.Errorf("use the schema of %s: %w", v.gvk, v.err)
		}
	})
	return v.made, v.err
}

func compile(spec *apiextensionsv1.CustomResourceDefinitionVersion, preserve bool) (*compiled, error) {
	c := &compiled{hasStatus: spec.Subresources != nil && spec.Subresources.Status != nil}
	if spec.Schema == nil || spec.Schema.OpenAPIV3Schema == nil {
		var err error
		c.object, _, err = validation.NewSchemaValidator(nil)
		return c, err
	}
	internal := &apiextensions.JSONSchemaProps{}
	if err := apiextensionsv1.Convert_v1_JSONSchemaProps_To_apiextensions_JSONSchemaProps(spec.Schema.OpenAPIV3Schema, internal, nil); err != nil {
		return nil, err
	}
	s, err := structural.NewStructural(internal)
	switch {
	case err == nil:
		c.schema = s.DeepCopy() // the defaults would be the definition's own
		if !preserve {
			if err := defaulting.PruneDefaults(c.schema); err != nil {
				return nil, err
			}
		}
	case !preserve:
		return nil, err
	}
	if c.object, _, err = validation.NewSchemaValidator(internal); err != nil {
		return nil, err
	}
	if status, ok := internal.Properties["status"]; ok && c.hasStatus {
		if c.status, _, err = validation.NewSchemaValidator(&status); err != nil {
			return nil, err
		}
	}
	c.rules = cel.NewValidator(c.schema, true, celconfig.PerCallLimit)
	return c, nil
}

// coerce makes of an object, which has its kind, what the schema knows: fields that
// it does not know go, as do nulls that it does not allow, and metadata gets its
// types. lax drops what cannot be understood, as of objects that were stored long
// ago. With report it returns the paths of unknown fields.
func (v *version) coerce(object map[string]any, lax, report bool) (unknown []string, err error) {
	c, err := v.compiled()
	if err != nil {
		return nil, err
	}
	kind, hasKind := object["kind"]
	apiVersion, hasVersion := object["apiVersion"]
	meta, hasMeta, unknown, err := objectmeta.GetObjectMetaWithOptions(object, objectmeta.ObjectMetaOptions{DropMalformedFields: lax, ReturnUnknownFieldPaths: report})
	if err != nil {
		return nil, err
	}
	if !v.preserve {
		unknown = append(unknown, pruning.PruneWithOptions(object, c.schema, true, structural.UnknownFieldPathOptions{TrackUnknownFieldPaths: report})...)
		defaulting.PruneNonNullableNullsWithoutDefaults(object, c.schema)
	}
	invalid, more := objectmeta.CoerceWithOptions(nil, object, c.schema, false, objectmeta.CoerceOptions{DropInvalidFields: lax, ReturnUnknownFieldPaths: report})
	if invalid != nil {
		return nil, invalid
	}
	unknown = append(unknown, more...)
	if hasKind {
		object["kind"] = kind
	}
	if hasVersion {
		object["apiVersion"] = apiVersion
	}
	if hasMeta {
		if lax && meta.Generation == 0 {
			meta.Generation = 1
		}
		if err := objectmeta.SetObjectMeta(object, meta); err != nil {
			return nil, err
		}
	}
	return unknown, nil
}

// fill sets the defaults of the schema.
func (v *version) fill(object map[string]any) {
	if c, err := v.compiled(); err == nil && c.schema != nil {
		defaulting.Default(object, c.schema)
	}
}

// prepare completes an object that was stored in this version.
func (v *version) prepare(u *unstructured.Unstructured) error {
	if _, err := v.coerce(u.Object, true, false); err != nil {
		return err
	}
	v.fill(u.Object)
	return nil
}
