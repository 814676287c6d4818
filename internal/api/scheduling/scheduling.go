// Package scheduling holds the rules of the API group of k8s.io/api/scheduling/v1.
package scheduling

import (
	schedulingv1 "k8s.io/api/scheduling/v1"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

// Resources returns the resources of the group.
func Resources() []*api.Resource {
	gv := schedulingv1.SchemeGroupVersion
	resources := []api.Resource{
		rules.Cluster[schedulingv1.PriorityClass, schedulingv1.PriorityClassList](gv, "priorityclasses", "pc"),
	}
	out := make([]*api.Resource, len(resources))
	for i := range resources {
		out[i] = &resources[i]
	}
	return out
}
