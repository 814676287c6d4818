// Package storagemigration holds the rules of the API group of k8s.io/api/storagemigration/v1.
package storagemigration

import (
	storagemigrationv1 "k8s.io/api/storagemigration/v1"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

// Resources returns the resources of the group.
func Resources() []*api.Resource {
	gv := storagemigrationv1.SchemeGroupVersion
	resources := []api.Resource{
		rules.Cluster[storagemigrationv1.StorageVersionMigration, storagemigrationv1.StorageVersionMigrationList](gv, "storageversionmigrations"),
	}
	out := make([]*api.Resource, len(resources))
	for i := range resources {
		out[i] = &resources[i]
	}
	return out
}
