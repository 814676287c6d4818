package core

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

func limitRange() *api.Resource {
	k := api.Kind[*corev1.LimitRange]{Resource: rules.Namespaced[corev1.LimitRange, corev1.LimitRangeList](gv, "limitranges", "limits")}
	k.Resource.CreateOnUpdate, k.Resource.UnconditionalUpdate = true, true
	k.Default = func(o *corev1.LimitRange) {
		for i := range o.Spec.Limits {
			if l := &o.Spec.Limits[i]; l.Type == corev1.LimitTypeContainer {
				fillList(&l.Default, l.Max)
				fillList(&l.DefaultRequest, l.Default)
				fillList(&l.DefaultRequest, l.Min)
			}
		}
	}
	k.Validate = func(o *corev1.LimitRange) (errs field.ErrorList) {
		seen := map[corev1.LimitType]bool{}
		for i := range o.Spec.Limits {
			l, p := &o.Spec.Limits[i], field.NewPath("spec", "limits").Index(i)
			if seen[l.Type] {
				errs = append(errs, field.Duplicate(p.Child("type"), l.Type))
			}
			seen[l.Type] = true
			errs = append(errs, validateLimit(l, p)...)
		}
		return errs
	}
	k.Resource.Columns = []metav1.TableColumnDefinition{rules.Name(), rules.CreatedAt()}
	k.Row = func(o *corev1.LimitRange) []any { return []any{o.Name, rules.Timestamp(o)} }
	return k.Erase()
}

func validateLimit(l *corev1.LimitRangeItem, p *field.Path) (errs field.ErrorList) {
	of := resourceName
	switch l.Type {
	case corev1.LimitTypeContainer:
		of = containerResourceName
	case corev1.LimitTypePod:
		of = containerResourceName
		if len(l.Default) > 0 {
			errs = append(errs, field.Forbidden(p.Child("default"), "may not be specified when `type` is 'Pod'"))
		}
		if len(l.DefaultRequest) > 0 {
			errs = append(errs, field.Forbidden(p.Child("defaultRequest"), "may not be specified when `type` is 'Pod'"))
		}
	case corev1.LimitTypePersistentVolumeClaim:
		_, least := l.Min[corev1.ResourceStorage]
		_, most := l.Max[corev1.ResourceStorage]
		if !least && !most {
			errs = append(errs, field.Required(p.Child("limits"), "either minimum or maximum storage value is required, but neither was provided"))
		}
	default:
		bad := qualified(p.Child("type"), string(l.Type))
		if len(bad) == 0 && !strings.Contains(string(l.Type), "/") {
			bad = field.ErrorList{field.Invalid(p.Child("type"), l.Type, "must be a standard limit type or fully qualified")}
		}
		errs = append(errs, bad...)
	}
	names := map[corev1.ResourceName]bool{}
	for _, list := range []struct {
		name string
		list corev1.ResourceList
	}{{"max", l.Max}, {"min", l.Min}, {"default", l.Default}, {"defaultRequest", l.DefaultRequest}, {"maxLimitRequestRatio", l.MaxLimitRequestRatio}} {
		for _, name := range sorted(list.list) {
			names[name] = true
			errs = append(errs, of(name, p.Child(list.name).Key(string(name)))...)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		q := func(list corev1.ResourceList) (v resourceQuantity) {
			v.Quantity, v.set = list[name]
			return v
		}
		least, most, limit, request, ratio := q(l.Min), q(l.Max), q(l.Default), q(l.DefaultRequest), q(l.MaxLimitRequestRatio)
		above := func(a, b, shown resourceQuantity, list, format string) {
			if a.set && b.set && a.Cmp(b.Quantity) > 0 {
				errs = append(errs, field.Invalid(p.Child(list).Key(string(name)), shown.String(), fmt.Sprintf(format, a.String(), b.String())))
			}
		}
		above(least, most, least, "min", "min value %s is greater than max value %s")
		above(least, request, request, "defaultRequest", "min value %s is greater than default request value %s")
		above(request, most, request, "defaultRequest", "default request value %s is greater than max value %s")
		above(request, limit, request, "defaultRequest", "default request value %s is greater than default limit value %s")
		above(least, limit, least, "default", "min value %s is greater than default value %s")
		above(limit, most, most, "default", "default value %s is greater than max value %s")
		rp := p.Child("maxLimitRequestRatio").Key(string(name))
		if ratio.set && ratio.Value() < 1 {
			errs = append(errs, field.Invalid(rp, ratio.String(), fmt.Sprintf("ratio %s is less than 1", ratio.String())))
		}
		if ratio.set && least.set && most.set {
			if got, allowed := ratio.AsApproximateFloat64(), most.AsApproximateFloat64()/least.AsApproximateFloat64(); got > allowed {
				errs = append(errs, field.Invalid(rp, ratio.String(), fmt.Sprintf("ratio %s is greater than max/min = %f", ratio.String(), allowed)))
			}
		}
		if !isOvercommittable(name) && limit.set && request.set && limit.Cmp(request.Quantity) != 0 {
			errs = append(errs, field.Invalid(p.Child("defaultRequest").Key(string(name)), request.String(), fmt.Sprintf("default value %s must equal to defaultRequest value %s in %s", limit.String(), request.String(), name)))
		}
	}
	return errs
}
