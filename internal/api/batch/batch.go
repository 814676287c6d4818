// Package batch holds the rules of the API group batch: jobs, and the schedules
// that make them. It does not run them.
package batch

import (
	batchv1 "k8s.io/api/batch/v1"

	"github.com/proa-dev/proa/internal/api"
)

// Resources returns the resources of the group.
func Resources() []*api.Resource {
	gv := batchv1.SchemeGroupVersion
	return []*api.Resource{jobs(gv), cronJobs(gv)}
}
