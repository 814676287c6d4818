// Package storagemigration holds the rules of the API group
// storagemigration.k8s.io. It migrates nothing.
package storagemigration

import (
	storagemigrationv1 "k8s.io/api/storagemigration/v1"
	"k8s.io/apimachinery/pkg/api/validation/path"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

// Resources returns the resources of the group.
func Resources() []*api.Resource {
	r := rules.Cluster[storagemigrationv1.StorageVersionMigration, storagemigrationv1.StorageVersionMigrationList](storagemigrationv1.SchemeGroupVersion, "storageversionmigrations")
	r.Columns = []metav1.TableColumnDefinition{
		rules.Name(), rules.Text("Resource", "The resource that is migrated."), rules.Age(),
	}
	return []*api.Resource{api.Kind[*storagemigrationv1.StorageVersionMigration]{
		Resource: r,
		Validate: validateMigration,
		ValidateUpdate: func(m, old *storagemigrationv1.StorageVersionMigration) field.ErrorList {
			return append(validateMigration(m), rules.Immutable(m.Spec.Resource, old.Spec.Resource, field.NewPath("spec", "resource"))...)
		},
		CopyStatus: func(dst, src *storagemigrationv1.StorageVersionMigration) { dst.Status = *src.Status.DeepCopy() },
		ValidateStatusUpdate: func(m, _ *storagemigrationv1.StorageVersionMigration) field.ErrorList {
			return rules.Conditions(m.Status.Conditions, field.NewPath("status", "conditions"))
		},
		SpecChanged: func(m, old *storagemigrationv1.StorageVersionMigration) bool { return !rules.Same(m.Spec, old.Spec) },
		Row: func(m *storagemigrationv1.StorageVersionMigration) []any {
			return []any{m.Name, m.Spec.Resource.String(), rules.Created(m)}
		},
	}.Erase()}
}

func validateMigration(m *storagemigrationv1.StorageVersionMigration) field.ErrorList {
	at := field.NewPath("spec", "resource")
	errs := rules.Required(m.Spec.Resource.Resource, at.Child("resource"), "resource is required")
	if m.Spec.Resource.Resource != "" {
		errs = append(errs, rules.Messages(m.Spec.Resource.Resource, at.Child("resource"), path.IsValidPathSegmentName(m.Spec.Resource.Resource))...)
	}
	if m.Spec.Resource.Group != "" {
		errs = append(errs, rules.Subdomain(m.Spec.Resource.Group, at.Child("group"))...)
	}
	return errs
}
