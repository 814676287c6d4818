// Package apiregistration holds the rules of the API group of k8s.io/kube-aggregator/pkg/apis/apiregistration/v1.
package apiregistration

import (
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

// Resources returns the resources of the group.
func Resources() []*api.Resource {
	gv := apiregistrationv1.SchemeGroupVersion
	resources := []api.Resource{
		rules.Cluster[apiregistrationv1.APIService, apiregistrationv1.APIServiceList](gv, "apiservices"),
	}
	out := make([]*api.Resource, len(resources))
	for i := range resources {
		out[i] = &resources[i]
	}
	return out
}
