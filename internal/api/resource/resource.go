// Package resource holds the rules of the API group of k8s.io/api/resource/v1.
package resource

import (
	resourcev1 "k8s.io/api/resource/v1"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

// Resources returns the resources of the group.
func Resources() []*api.Resource {
	gv := resourcev1.SchemeGroupVersion
	resources := []api.Resource{
		rules.Cluster[resourcev1.DeviceClass, resourcev1.DeviceClassList](gv, "deviceclasses"),
		rules.Cluster[resourcev1.DeviceTaintRule, resourcev1.DeviceTaintRuleList](gv, "devicetaintrules"),
		rules.Namespaced[resourcev1.ResourceClaim, resourcev1.ResourceClaimList](gv, "resourceclaims"),
		rules.Namespaced[resourcev1.ResourceClaimTemplate, resourcev1.ResourceClaimTemplateList](gv, "resourceclaimtemplates"),
		rules.Cluster[resourcev1.ResourceSlice, resourcev1.ResourceSliceList](gv, "resourceslices"),
	}
	out := make([]*api.Resource, len(resources))
	for i := range resources {
		out[i] = &resources[i]
	}
	return out
}
