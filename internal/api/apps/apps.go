// Package apps holds the rules of the API group of k8s.io/api/apps/v1.
package apps

import (
	appsv1 "k8s.io/api/apps/v1"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

// Resources returns the resources of the group.
func Resources() []*api.Resource {
	gv := appsv1.SchemeGroupVersion
	resources := []api.Resource{
		rules.Namespaced[appsv1.ControllerRevision, appsv1.ControllerRevisionList](gv, "controllerrevisions"),
		rules.Namespaced[appsv1.DaemonSet, appsv1.DaemonSetList](gv, "daemonsets", "ds"),
		rules.Namespaced[appsv1.Deployment, appsv1.DeploymentList](gv, "deployments", "deploy"),
		rules.Namespaced[appsv1.ReplicaSet, appsv1.ReplicaSetList](gv, "replicasets", "rs"),
		rules.Namespaced[appsv1.StatefulSet, appsv1.StatefulSetList](gv, "statefulsets", "sts"),
	}
	out := make([]*api.Resource, len(resources))
	for i := range resources {
		out[i] = &resources[i]
	}
	return out
}
