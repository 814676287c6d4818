// Package coordination holds the rules of the API group of k8s.io/api/coordination/v1.
package coordination

import (
	coordinationv1 "k8s.io/api/coordination/v1"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

// Resources returns the resources of the group.
func Resources() []*api.Resource {
	gv := coordinationv1.SchemeGroupVersion
	resources := []api.Resource{
		rules.Namespaced[coordinationv1.Lease, coordinationv1.LeaseList](gv, "leases"),
	}
	out := make([]*api.Resource, len(resources))
	for i := range resources {
		out[i] = &resources[i]
	}
	return out
}
