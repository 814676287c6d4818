// Package coordination holds the rules of the API group coordination.k8s.io:
// leases.
package coordination

import (
	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

// Resources returns the resources of the group.
func Resources() []*api.Resource {
	r := rules.Namespaced[coordinationv1.Lease, coordinationv1.LeaseList](coordinationv1.SchemeGroupVersion, "leases")
	r.CreateOnUpdate = true
	r.Columns = []metav1.TableColumnDefinition{
		rules.Name(),
		rules.Text("Holder", "The identity of the holder of the lease."),
		rules.Age(),
	}
	return []*api.Resource{api.Kind[*coordinationv1.Lease]{
		Resource: r,
		Validate: validateLease,
		Row: func(l *coordinationv1.Lease) []any {
			return []any{l.Name, rules.Or(l.Spec.HolderIdentity, ""), rules.Created(l)}
		},
	}.Erase()}
}

func validateLease(l *coordinationv1.Lease) (errs field.ErrorList) {
	spec := field.NewPath("spec")
	if d := l.Spec.LeaseDurationSeconds; d != nil && *d <= 0 {
		errs = append(errs, field.Invalid(spec.Child("leaseDurationSeconds"), *d, "must be greater than 0"))
	}
	if n := l.Spec.LeaseTransitions; n != nil && *n < 0 {
		errs = append(errs, field.Invalid(spec.Child("leaseTransitions"), *n, "must be greater than or equal to 0"))
	}
	if l.Spec.Strategy == nil {
		if holder := l.Spec.PreferredHolder; holder != nil && *holder != "" {
			errs = append(errs, field.Forbidden(spec.Child("preferredHolder"), "may only be specified if `strategy` is defined"))
		}
		return errs
	}
	return append(errs, rules.OneOf(*l.Spec.Strategy, spec.Child("strategy"), "", coordinationv1.OldestEmulationVersion)...)
}
