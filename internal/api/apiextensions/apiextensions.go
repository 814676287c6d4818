// Package apiextensions holds the rules of the API group apiextensions.k8s.io:
// definitions of custom resources. It does not serve what they define.
package apiextensions

import (
	"slices"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
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
		Validate:         validateDefinition,
		ValidateUpdate:   validateDefinitionUpdate,
		CopyStatus:       func(dst, src *apiextensionsv1.CustomResourceDefinition) { dst.Status = *src.Status.DeepCopy() },
		ValidateStatusUpdate: func(c, _ *apiextensionsv1.CustomResourceDefinition) field.ErrorList {
			return validateStoredVersions(c)
		},
		SpecChanged: func(c, old *apiextensionsv1.CustomResourceDefinition) bool { return !rules.Same(c.Spec, old.Spec) },
		Row:         func(c *apiextensionsv1.CustomResourceDefinition) []any { return []any{c.Name, rules.Timestamp(c)} },
	}.Erase()}
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
