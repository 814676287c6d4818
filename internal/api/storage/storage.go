// Package storage holds the rules of the API group of k8s.io/api/storage/v1.
package storage

import (
	storagev1 "k8s.io/api/storage/v1"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

// Resources returns the resources of the group.
func Resources() []*api.Resource {
	gv := storagev1.SchemeGroupVersion
	resources := []api.Resource{
		rules.Cluster[storagev1.StorageClass, storagev1.StorageClassList](gv, "storageclasses", "sc"),
		rules.Cluster[storagev1.VolumeAttachment, storagev1.VolumeAttachmentList](gv, "volumeattachments"),
		rules.Cluster[storagev1.CSIDriver, storagev1.CSIDriverList](gv, "csidrivers"),
		rules.Cluster[storagev1.CSINode, storagev1.CSINodeList](gv, "csinodes"),
		rules.Namespaced[storagev1.CSIStorageCapacity, storagev1.CSIStorageCapacityList](gv, "csistoragecapacities"),
		rules.Cluster[storagev1.VolumeAttributesClass, storagev1.VolumeAttributesClassList](gv, "volumeattributesclasses", "vac"),
	}
	out := make([]*api.Resource, len(resources))
	for i := range resources {
		out[i] = &resources[i]
	}
	return out
}
