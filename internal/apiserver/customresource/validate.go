package customresource

import (
	"context"
	"fmt"
	"math"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel/model"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/listtype"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/objectmeta"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/cel/common"

	"github.com/proa-dev/proa/internal/api"
)

// whole returns the content of an object with its kind, as schemas and rules see it.
func (v *version) whole(obj api.Object) map[string]any {
	content := obj.(*unstructured.Unstructured).Object
	out := make(map[string]any, len(content)+2)
	for k, value := range content {
		out[k] = value
	}
	out["apiVersion"], out["kind"] = v.gvk.GroupVersion().String(), v.gvk.Kind
	return out
}

func (v *version) validate(obj api.Object) field.ErrorList {
	c, err := v.compiled()
	if err != nil {
		return field.ErrorList{field.InternalError(nil, err)}
	}
	object := v.whole(obj)
	errs := validation.ValidateCustomResource(nil, object, c.object)
	errs = append(errs, v.validateScale(object, true)...)
	errs = append(errs, objectmeta.Validate(context.Background(), nil, object, c.schema, false)...)
	errs = append(errs, listtype.ValidateListSetsAndMaps(nil, c.schema, object)...)
	return v.rules(c, errs, object, nil)
}

func (v *version) validateUpdate(obj, old api.Object) field.ErrorList {
	c, err := v.compiled()
	if err != nil {
		return field.ErrorList{field.InternalError(nil, err)}
	}
	object, before := v.whole(obj), v.whole(old)
	// What was invalid already and did not change may stay (KEP-4008).
	same := common.NewCorrelatedObject(object, before, &model.Structural{Structural: c.schema})
	errs := validation.ValidateCustomResourceUpdate(nil, object, before, c.object, validation.WithRatcheting(same))
	errs = append(errs, v.validateScale(object, true)...)
	errs = append(errs, objectmeta.Validate(context.Background(), nil, object, c.schema, false)...)
	if len(listtype.ValidateListSetsAndMaps(nil, c.schema, before)) == 0 {
		errs = append(errs, listtype.ValidateListSetsAndMaps(nil, c.schema, object)...)
	}
	return v.rules(c, errs, object, before, cel.WithRatcheting(same))
}

func (v *version) validateStatus(obj, old api.Object) field.ErrorList {
	c, err := v.compiled()
	if err != nil {
		return field.ErrorList{field.InternalError(nil, err)}
	}
	object, before := v.whole(obj), v.whole(old)
	same := common.NewCorrelatedObject(object, before, &model.Structural{Structural: c.schema})
	var options []validation.ValidationOption
	if c.schema != nil {
		options = append(options, validation.WithRatcheting(same.Key("status")))
	}
	var errs field.ErrorList
	if status, ok := object["status"]; ok {
		errs = append(errs, validation.ValidateCustomResourceUpdate(field.NewPath("status"), status, before["status"], c.status, options...)...)
	}
	errs = append(errs, v.validateScale(object, false)...)
	if found := listtype.ValidateListSetsAndMaps(nil, c.schema, object); len(found) > 0 && len(listtype.ValidateListSetsAndMaps(nil, c.schema, before)) == 0 {
		errs = append(errs, found...)
	}
	return v.rules(c, errs, object, before, cel.WithRatcheting(same))
}

// rules appends what x-kubernetes-validations have against an object.
func (v *version) rules(c *compiled, errs field.ErrorList, object, before map[string]any, options ...cel.Option) field.ErrorList {
	if c.rules == nil {
		return errs
	}
	for _, e := range errs {
		switch e.Type { // the rules could not rely on the types
		case field.ErrorTypeNotSupported, field.ErrorTypeRequired, field.ErrorTypeTooLong, field.ErrorTypeTooMany, field.ErrorTypeTypeInvalid:
			return append(errs, field.Invalid(nil, nil, "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation"))
		}
	}
	var was any
	if before != nil {
		was = before
	}
	found, _ := c.rules.Validate(context.Background(), nil, c.schema, object, was, celconfig.RuntimeCELCostBudget, options...)
	return append(errs, found...)
}

// validateScale checks what the scale subresource reads, of the spec too when spec is set.
func (v *version) validateScale(object map[string]any, spec bool) (errs field.ErrorList) {
	sub := v.spec.Load().Subresources
	if sub == nil || sub.Scale == nil {
		return nil
	}
	scale := sub.Scale
	count := func(path string) {
		at := field.NewPath(path)
		n, _, err := unstructured.NestedInt64(object, pathOf(path)...)
		switch {
		case err != nil:
			errs = append(errs, field.Invalid(at, n, err.Error()))
		case n < 0:
			errs = append(errs, field.Invalid(at, n, "should be a non-negative integer"))
		case n > math.MaxInt32:
			errs = append(errs, field.Invalid(at, n, fmt.Sprintf("should be less than or equal to %v", math.MaxInt32)))
		}
	}
	if spec {
		count(scale.SpecReplicasPath)
	}
	count(scale.StatusReplicasPath)
	if p := scale.LabelSelectorPath; p != nil && *p != "" {
		if s, _, err := unstructured.NestedString(object, pathOf(*p)...); err != nil {
			errs = append(errs, field.Invalid(field.NewPath(*p), s, err.Error()))
		}
	}
	return errs
}

// pathOf splits a JSON path like .spec.replicas.
func pathOf(path string) []string { return strings.Split(strings.TrimPrefix(path, "."), ".") }

// warnings are about finalizers whose names can meet with others.
func warnings(obj api.Object) (out []string) {
	const at = "metadata.finalizers"
	for _, f := range obj.GetFinalizers() {
		for _, msg := range utilvalidation.IsQualifiedName(f) {
			out = append(out, fmt.Sprintf("%s: %q: %s", at, f, msg))
		}
		if strings.Contains(f, "/") || f == metav1.FinalizerOrphanDependents || f == metav1.FinalizerDeleteDependents || f == string(corev1.FinalizerKubernetes) {
			continue
		}
		if strings.Contains(f, ".") {
			out = append(out, fmt.Sprintf("%s: %q: prefer a domain-qualified finalizer name including a path (/) to avoid accidental conflicts with other finalizer writers", at, f))
		} else {
			out = append(out, fmt.Sprintf("%s: %q: prefer a domain-qualified finalizer name to avoid accidental conflicts with other finalizer writers", at, f))
		}
	}
	return out
}
