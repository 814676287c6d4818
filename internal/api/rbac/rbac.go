// Package rbac holds the rules of the API group of k8s.io/api/rbac/v1.
package rbac

import (
	rbacv1 "k8s.io/api/rbac/v1"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

// Resources returns the resources of the group.
func Resources() []*api.Resource {
	gv := rbacv1.SchemeGroupVersion
	resources := []api.Resource{
		rules.Namespaced[rbacv1.Role, rbacv1.RoleList](gv, "roles"),
		rules.Namespaced[rbacv1.RoleBinding, rbacv1.RoleBindingList](gv, "rolebindings"),
		rules.Cluster[rbacv1.ClusterRole, rbacv1.ClusterRoleList](gv, "clusterroles"),
		rules.Cluster[rbacv1.ClusterRoleBinding, rbacv1.ClusterRoleBindingList](gv, "clusterrolebindings"),
	}
	out := make([]*api.Resource, len(resources))
	for i := range resources {
		out[i] = &resources[i]
	}
	return out
}
