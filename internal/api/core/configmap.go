package core

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

const (
	// maxData is what a Secret or ConfigMap holds at most.
	maxData = corev1.MaxSecretSize

	whenImmutable = "field is immutable when `immutable` is set"
)

func configMap() *api.Resource {
	k := api.Kind[*corev1.ConfigMap]{Resource: rules.Namespaced[corev1.ConfigMap, corev1.ConfigMapList](gv, "configmaps", "cm")}
	k.Resource.UnconditionalUpdate = true
	k.Validate = validateConfigMap
	k.ValidateUpdate = func(o, old *corev1.ConfigMap) (errs field.ErrorList) {
		if old.Immutable != nil && *old.Immutable {
			errs = append(errs, staysImmutable(o.Immutable)...)
			if !apiequality.Semantic.DeepEqual(o.Data, old.Data) {
				errs = append(errs, field.Forbidden(field.NewPath("data"), whenImmutable))
			}
			if !apiequality.Semantic.DeepEqual(o.BinaryData, old.BinaryData) {
				errs = append(errs, field.Forbidden(field.NewPath("binaryData"), whenImmutable))
			}
		}
		return append(errs, validateConfigMap(o)...)
	}
	k.Resource.Columns = []metav1.TableColumnDefinition{rules.Name(), rules.Text("Data", corev1.ConfigMap{}.SwaggerDoc()["data"]), rules.Age()}
	k.Row = func(o *corev1.ConfigMap) []any {
		return []any{o.Name, int64(len(o.Data) + len(o.BinaryData)), rules.Created(o)}
	}
	return k.Erase()
}

func staysImmutable(now *bool) field.ErrorList {
	if now == nil || !*now {
		return field.ErrorList{field.Forbidden(field.NewPath("immutable"), whenImmutable)}
	}
	return nil
}

func validateConfigMap(o *corev1.ConfigMap) (errs field.ErrorList) {
	size := 0
	for _, key := range slices.Sorted(maps.Keys(o.Data)) {
		p := field.NewPath("data").Key(key)
		errs = append(errs, dataKey(p, key)...)
		if _, both := o.BinaryData[key]; both {
			errs = append(errs, field.Invalid(p, key, "duplicate of key present in binaryData"))
		}
		size += len(o.Data[key])
	}
	for _, key := range slices.Sorted(maps.Keys(o.BinaryData)) {
		errs = append(errs, dataKey(field.NewPath("binaryData").Key(key), key)...)
		size += len(o.BinaryData[key])
	}
	if size > maxData {
		errs = append(errs, field.TooLong(field.NewPath(""), "", maxData))
	}
	return errs
}
