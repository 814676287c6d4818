// Package policy holds the rules of the API group policy: pod disruption
// budgets. Evictions, the group's other kind, are a subresource of pods and are
// decided by the server.
package policy

import (
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

// Resources returns the resources of the group.
func Resources() []*api.Resource {
	r := rules.Namespaced[policyv1.PodDisruptionBudget, policyv1.PodDisruptionBudgetList](policyv1.SchemeGroupVersion, "poddisruptionbudgets", "pdb")
	r.Columns = []metav1.TableColumnDefinition{
		rules.Name(),
		rules.Text("Min Available", "The minimum number of pods that must be available."),
		rules.Text("Max Unavailable", "The maximum number of pods that may be unavailable."),
		rules.Integer("Allowed Disruptions", "Calculated number of pods that may be disrupted at this time."),
		rules.Age(),
	}
	return []*api.Resource{api.Kind[*policyv1.PodDisruptionBudget]{
		Resource:    r,
		Validate:    validateBudget,
		CopyStatus:  func(dst, src *policyv1.PodDisruptionBudget) { dst.Status = *src.Status.DeepCopy() },
		SpecChanged: func(b, old *policyv1.PodDisruptionBudget) bool { return !rules.Same(b.Spec, old.Spec) },
		ValidateStatusUpdate: func(b, _ *policyv1.PodDisruptionBudget) field.ErrorList {
			path := field.NewPath("status")
			s := &b.Status
			return append(rules.Counts(path,
				rules.Count{Name: "disruptionsAllowed", Value: s.DisruptionsAllowed},
				rules.Count{Name: "currentHealthy", Value: s.CurrentHealthy},
				rules.Count{Name: "desiredHealthy", Value: s.DesiredHealthy},
				rules.Count{Name: "expectedPods", Value: s.ExpectedPods}),
				rules.Conditions(s.Conditions, path.Child("conditions"))...)
		},
		Row: func(b *policyv1.PodDisruptionBudget) []any {
			least, most := "N/A", "N/A"
			if v := b.Spec.MinAvailable; v != nil {
				least = v.String()
			}
			if v := b.Spec.MaxUnavailable; v != nil {
				most = v.String()
			}
			return []any{b.Name, least, most, int64(b.Status.DisruptionsAllowed), rules.Created(b)}
		},
	}.Erase()}
}

func validateBudget(b *policyv1.PodDisruptionBudget) (errs field.ErrorList) {
	spec := field.NewPath("spec")
	s := &b.Spec
	if s.MinAvailable != nil && s.MaxUnavailable != nil {
		errs = append(errs, field.Invalid(spec, s, "minAvailable and maxUnavailable cannot be both set"))
	}
	if v := s.MinAvailable; v != nil {
		errs = append(errs, rules.IntOrPercent(*v, spec.Child("minAvailable"))...)
		errs = append(errs, rules.AtMostAll(*v, spec.Child("minAvailable"))...)
	}
	if v := s.MaxUnavailable; v != nil {
		errs = append(errs, rules.IntOrPercent(*v, spec.Child("maxUnavailable"))...)
		errs = append(errs, rules.AtMostAll(*v, spec.Child("maxUnavailable"))...)
	}
	errs = append(errs, rules.Selector(s.Selector, spec.Child("selector"))...)
	if p := s.UnhealthyPodEvictionPolicy; p != nil && *p != policyv1.IfHealthyBudget && *p != policyv1.AlwaysAllow {
		errs = append(errs, field.NotSupported(spec.Child("unhealthyPodEvictionPolicy"), *p,
			[]policyv1.UnhealthyPodEvictionPolicyType{policyv1.AlwaysAllow, policyv1.IfHealthyBudget}))
	}
	return errs
}
