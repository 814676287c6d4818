// Package apiextensions holds the rules of the API group apiextensions.k8s.io:
// definitions of custom resources. It does not serve what they define. Their
// schemas, names and rules are checked by Kubernetes' own library.
package apiextensions

import (
	"context"
	"fmt"
	"slices"

	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

// Resources returns the resources of the group.
func Resources() []*api.Resource {
	r := rules.Cluster[apiextensionsv1.CustomResourceDefinition, apiextensionsv1.CustomResourceDefinitionList](apiextensionsv1.SchemeGroupVersion, "customresourcedefinitions", "crd", "crds")
	r.Categories = []string{"api-extensions"}
	r.Columns = []metav1.TableColumnDefinition{rules.Name(), rules.CreatedAt()}
	r.MarkDeleted = markDeleted
	return []*api.Resource{api.Kind[*apiextensionsv1.CustomResourceDefinition]{
		Resource: r,
		Default: func(c *apiextensionsv1.CustomResourceDefinition) {
			apiextensionsv1.SetDefaults_CustomResourceDefinition(c)
			if w := c.Spec.Conversion.Webhook; w != nil && w.ClientConfig != nil && w.ClientConfig.Service != nil {
				apiextensionsv1.SetDefaults_ServiceReference(w.ClientConfig.Service)
			}
		},
		PrepareForCreate: storeVersion,
		PrepareForUpdate: func(c, _ *apiextensionsv1.CustomResourceDefinition) { storeVersion(c) },
		Validate: func(c *apiextensionsv1.CustomResourceDefinition) field.ErrorList {
			in, err := internal(c)
			if err != nil {
				return field.ErrorList{field.InternalError(nil, err)}
			}
			return validation.ValidateCustomResourceDefinition(context.Background(), in)
		},
		ValidateUpdate: func(c, old *apiextensionsv1.CustomResourceDefinition) field.ErrorList {
			return validateUpdate(c, old, validation.ValidateCustomResourceDefinitionUpdate)
		},
		CopyStatus: func(dst, src *apiextensionsv1.CustomResourceDefinition) { dst.Status = *src.Status.DeepCopy() },
		ValidateStatusUpdate: func(c, old *apiextensionsv1.CustomResourceDefinition) field.ErrorList {
			return validateUpdate(c, old, validation.ValidateUpdateCustomResourceDefinitionStatus)
		},
		SpecChanged: func(c, old *apiextensionsv1.CustomResourceDefinition) bool { return !rules.Same(c.Spec, old.Spec) },
		Warnings:    warnings,
		Row:         func(c *apiextensionsv1.CustomResourceDefinition) []any { return []any{c.Name, rules.Timestamp(c)} },
	}.Erase()}
}

// internal returns a definition as Kubernetes' library takes it. It shares parts with c.
func internal(c *apiextensionsv1.CustomResourceDefinition) (*apiextensions.CustomResourceDefinition, error) {
	out := &apiextensions.CustomResourceDefinition{}
	if err := apiextensionsv1.Convert_v1_CustomResourceDefinition_To_apiextensions_CustomResourceDefinition(c.DeepCopy(), out, nil); err != nil {
		return nil, fmt.Errorf("convert the definition: %w", err)
	}
	return out, nil
}

func validateUpdate(c, old *apiextensionsv1.CustomResourceDefinition, check func(ctx context.Context, c, old *apiextensions.CustomResourceDefinition) field.ErrorList) field.ErrorList {
	in, err := internal(c)
	if err != nil {
		return field.ErrorList{field.InternalError(nil, err)}
	}
	was, err := internal(old)
	if err != nil {
		return field.ErrorList{field.InternalError(nil, err)}
	}
	return check(context.Background(), in, was)
}

// storeVersion notes the version in which objects are stored from now on; which
// of them are still stored in others is for a migration to say.
func storeVersion(c *apiextensionsv1.CustomResourceDefinition) {
	for _, v := range c.Spec.Versions {
		if v.Storage && !slices.Contains(c.Status.StoredVersions, v.Name) {
			c.Status.StoredVersions = append(c.Status.StoredVersions, v.Name)
		}
	}
}

// markDeleted keeps a definition until its objects are gone.
func markDeleted(obj api.Object) {
	c := obj.(*apiextensionsv1.CustomResourceDefinition)
	if !apihelpers.CRDHasFinalizer(c, apiextensionsv1.CustomResourceCleanupFinalizer) {
		c.Finalizers = append(c.Finalizers, apiextensionsv1.CustomResourceCleanupFinalizer)
	}
	apihelpers.SetCRDCondition(c, apiextensionsv1.CustomResourceDefinitionCondition{
		Type: apiextensionsv1.Terminating, Status: apiextensionsv1.ConditionTrue, Reason: "InstanceDeletionPending",
		Message: "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon",
	})
}
