// Package batch holds the rules of the API group of k8s.io/api/batch/v1.
package batch

import (
	batchv1 "k8s.io/api/batch/v1"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

// Resources returns the resources of the group.
func Resources() []*api.Resource {
	gv := batchv1.SchemeGroupVersion
	resources := []api.Resource{
		rules.Namespaced[batchv1.Job, batchv1.JobList](gv, "jobs"),
		rules.Namespaced[batchv1.CronJob, batchv1.CronJobList](gv, "cronjobs", "cj"),
	}
	out := make([]*api.Resource, len(resources))
	for i := range resources {
		out[i] = &resources[i]
	}
	return out
}
