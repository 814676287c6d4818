// Package apiextensions holds the rules of the API group of k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1.
package apiextensions

import (
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

// Resources returns the resources of the group.
func Resources() []*api.Resource {
	gv := apiextensionsv1.SchemeGroupVersion
	resources := []api.Resource{
		rules.Cluster[apiextensionsv1.CustomResourceDefinition, apiextensionsv1.CustomResourceDefinitionList](gv, "customresourcedefinitions", "crd", "crds"),
	}
	out := make([]*api.Resource, len(resources))
	for i := range resources {
		out[i] = &resources[i]
	}
	return out
}
