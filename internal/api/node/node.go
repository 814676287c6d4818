// Package node holds the rules of the API group of k8s.io/api/node/v1.
package node

import (
	nodev1 "k8s.io/api/node/v1"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

// Resources returns the resources of the group.
func Resources() []*api.Resource {
	gv := nodev1.SchemeGroupVersion
	resources := []api.Resource{
		rules.Cluster[nodev1.RuntimeClass, nodev1.RuntimeClassList](gv, "runtimeclasses"),
	}
	out := make([]*api.Resource, len(resources))
	for i := range resources {
		out[i] = &resources[i]
	}
	return out
}
