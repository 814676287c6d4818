// Package discovery holds the rules of the API group of k8s.io/api/discovery/v1.
package discovery

import (
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

// Resources returns the resources of the group.
func Resources() []*api.Resource {
	gv := discoveryv1.SchemeGroupVersion
	resources := []api.Resource{
		rules.Namespaced[discoveryv1.EndpointSlice, discoveryv1.EndpointSliceList](gv, "endpointslices"),
	}
	out := make([]*api.Resource, len(resources))
	for i := range resources {
		out[i] = &resources[i]
	}
	return out
}
