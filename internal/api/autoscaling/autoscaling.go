// Package autoscaling holds the rules of the API group of k8s.io/api/autoscaling/v2.
package autoscaling

import (
	autoscalingv2 "k8s.io/api/autoscaling/v2"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

// Resources returns the resources of the group.
func Resources() []*api.Resource {
	gv := autoscalingv2.SchemeGroupVersion
	resources := []api.Resource{
		rules.Namespaced[autoscalingv2.HorizontalPodAutoscaler, autoscalingv2.HorizontalPodAutoscalerList](gv, "horizontalpodautoscalers", "hpa"),
	}
	out := make([]*api.Resource, len(resources))
	for i := range resources {
		out[i] = &resources[i]
	}
	return out
}
