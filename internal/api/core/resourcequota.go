package core

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

// resourceQuantity is a quantity that may be absent.
type resourceQuantity struct {
	resource.Quantity
	set bool
}

func resourceQuota() *api.Resource {
	k := api.Kind[*corev1.ResourceQuota]{Resource: rules.Namespaced[corev1.ResourceQuota, corev1.ResourceQuotaList](gv, "resourcequotas", "quota")}
	k.Resource.UnconditionalUpdate = true
	k.Validate = validateQuota
	k.ValidateUpdate = func(o, old *corev1.ResourceQuota) field.ErrorList {
		errs := validateQuota(o)
		scopes := func(q *corev1.ResourceQuota) []corev1.ResourceQuotaScope {
			return slices.Sorted(slices.Values(q.Spec.Scopes))
		}
		if !slices.Equal(slices.Compact(scopes(o)), slices.Compact(scopes(old))) {
			errs = append(errs, field.Invalid(field.NewPath("spec", "scopes"), o.Spec.Scopes, validation.FieldImmutableErrorMsg))
		}
		return errs
	}
	k.CopyStatus = func(dst, src *corev1.ResourceQuota) { src.Status.DeepCopyInto(&dst.Status) }
	k.ValidateStatusUpdate = func(o, _ *corev1.ResourceQuota) (errs field.ErrorList) {
		for _, list := range []struct {
			name string
			list corev1.ResourceList
		}{{"hard", o.Status.Hard}, {"used", o.Status.Used}} {
			errs = append(errs, validateQuotaList(list.list, field.NewPath("status", list.name))...)
		}
		return errs
	}
	k.Resource.Columns = []metav1.TableColumnDefinition{
		rules.Name(), rules.Text("Request", "Request represents a minimum amount of cpu/memory that a container may consume."),
		rules.Text("Limit", "Limits control the maximum amount of cpu/memory that a container may use independent of contention on the node."), rules.Age(),
	}
	k.Row = func(o *corev1.ResourceQuota) []any {
		var requests, limits []string
		for _, name := range sorted(o.Status.Hard) {
			hard, used := o.Status.Hard[name], o.Status.Used[name]
			text := fmt.Sprintf("%s: %s/%s", name, used.String(), hard.String())
			if strings.HasPrefix(string(name), "limits") {
				limits = append(limits, text)
			} else {
				requests = append(requests, text)
			}
		}
		return []any{o.Name, strings.Join(requests, ", "), strings.Join(limits, ", "), rules.Created(o)}
	}
	return k.Erase()
}

func validateQuotaList(list corev1.ResourceList, p *field.Path) (errs field.ErrorList) {
	for _, name := range sorted(list) {
		kp := p.Key(string(name))
		errs = append(errs, resourceName(name, kp)...)
		if !strings.Contains(string(name), "/") && !isQuotaResource(name) {
			errs = append(errs, field.Invalid(kp, string(name), "must be a standard resource for quota"))
		}
		errs = append(errs, quantity(name, list[name], kp)...)
	}
	return errs
}

func isQuotaResource(name corev1.ResourceName) bool {
	return standardResources[name] && name != corev1.ResourceStorage || isHugePages(name) || isHugePagesQuota(name)
}

var quotaScopes = []corev1.ResourceQuotaScope{corev1.ResourceQuotaScopeTerminating, corev1.ResourceQuotaScopeNotTerminating, corev1.ResourceQuotaScopeBestEffort,
	corev1.ResourceQuotaScopeNotBestEffort, corev1.ResourceQuotaScopePriorityClass, corev1.ResourceQuotaScopeCrossNamespacePodAffinity, corev1.ResourceQuotaScopeVolumeAttributesClass}

// scopeCounts says which resources a scope can be used with: best effort pods have no requests to count.
func scopeCounts(scope corev1.ResourceQuotaScope, name corev1.ResourceName) bool {
	switch scope {
	case corev1.ResourceQuotaScopeBestEffort:
		return name == corev1.ResourcePods
	case corev1.ResourceQuotaScopeVolumeAttributesClass:
		return name == corev1.ResourcePersistentVolumeClaims || name == corev1.ResourceRequestsStorage
	}
	switch name {
	case corev1.ResourcePods, corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage, corev1.ResourceRequestsCPU, corev1.ResourceRequestsMemory,
		corev1.ResourceRequestsEphemeralStorage, corev1.ResourceLimitsCPU, corev1.ResourceLimitsMemory, corev1.ResourceLimitsEphemeralStorage:
		return true
	}
	return !standardResources[name]
}

func validateQuota(o *corev1.ResourceQuota) field.ErrorList {
	s, p := &o.Spec, field.NewPath("spec")
	errs := validateQuotaList(s.Hard, p.Child("hard"))
	check := func(scope corev1.ResourceQuotaScope, sp *field.Path, shown any) {
		for _, name := range sorted(s.Hard) {
			if isQuotaResource(name) && !scopeCounts(scope, name) {
				errs = append(errs, field.Invalid(sp, shown, "unsupported scope applied to resource"))
			}
		}
	}
	conflicts := func(scopes []corev1.ResourceQuotaScope, sp *field.Path) {
		for _, pair := range [][2]corev1.ResourceQuotaScope{{corev1.ResourceQuotaScopeBestEffort, corev1.ResourceQuotaScopeNotBestEffort}, {corev1.ResourceQuotaScopeTerminating, corev1.ResourceQuotaScopeNotTerminating}} {
			if slices.Contains(scopes, pair[0]) && slices.Contains(scopes, pair[1]) {
				errs = append(errs, field.Invalid(sp, s.Scopes, "conflicting scopes"))
			}
		}
	}
	for _, scope := range s.Scopes {
		if !slices.Contains(quotaScopes, scope) {
			errs = append(errs, field.Invalid(p.Child("scopes"), s.Scopes, "unsupported scope"))
		}
		check(scope, p.Child("scopes"), s.Scopes)
	}
	conflicts(s.Scopes, p.Child("scopes"))
	if s.ScopeSelector == nil {
		return errs
	}
	mp := p.Child("scopeSelector", "matchExpressions")
	var scopes []corev1.ResourceQuotaScope
	for _, r := range s.ScopeSelector.MatchExpressions {
		scopes = append(scopes, r.ScopeName)
		if !slices.Contains(quotaScopes, r.ScopeName) {
			errs = append(errs, field.Invalid(mp.Child("scopeName"), r.ScopeName, "unsupported scope"))
		}
		check(r.ScopeName, mp, s.ScopeSelector)
		errs = append(errs, validateScopeRequirement(&r, mp)...)
	}
	conflicts(scopes, mp)
	return errs
}

func validateScopeRequirement(r *corev1.ScopedResourceSelectorRequirement, p *field.Path) (errs field.ErrorList) {
	valued := r.ScopeName == corev1.ResourceQuotaScopePriorityClass || r.ScopeName == corev1.ResourceQuotaScopeVolumeAttributesClass
	if slices.Contains(quotaScopes, r.ScopeName) && !valued && r.Operator != corev1.ScopeSelectorOpExists {
		errs = append(errs, field.Invalid(p.Child("operator"), r.Operator, "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity"))
	}
	switch r.Operator {
	case corev1.ScopeSelectorOpIn, corev1.ScopeSelectorOpNotIn:
		if len(r.Values) == 0 {
			errs = append(errs, field.Required(p.Child("values"), "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector"))
		}
	case corev1.ScopeSelectorOpExists, corev1.ScopeSelectorOpDoesNotExist:
		if len(r.Values) > 0 {
			errs = append(errs, field.Invalid(p.Child("values"), r.Values, "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector"))
		}
	default:
		errs = append(errs, field.Invalid(p.Child("operator"), r.Operator, "not a valid selector operator"))
	}
	return errs
}
