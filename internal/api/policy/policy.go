// Package policy holds the rules of the API group of k8s.io/api/policy/v1.
package policy

import (
	policyv1 "k8s.io/api/policy/v1"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

// Resources returns the resources of the group.
func Resources() []*api.Resource {
	gv := policyv1.SchemeGroupVersion
	resources := []api.Resource{
		rules.Namespaced[policyv1.PodDisruptionBudget, policyv1.PodDisruptionBudgetList](gv, "poddisruptionbudgets", "pdb"),
	}
	out := make([]*api.Resource, len(resources))
	for i := range resources {
		out[i] = &resources[i]
	}
	return out
}
