// Package core holds the rules of the core API group (v1): pods, services, nodes,
// namespaces and the rest, one file per kind. The podspec files have what the pod
// templates of other groups share, and are exported for them. It has no rules that
// need to see other objects: those are admission's.
package core

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

var gv = corev1.SchemeGroupVersion

// Resources returns the resources of the group. Component statuses, which are
// deprecated and would need the health of other programs, are left out.
func Resources() []*api.Resource {
	return []*api.Resource{
		binding(), configMap(), endpoints(), event(), limitRange(), namespace(), node(), persistentVolumeClaim(), persistentVolume(),
		pod(), podTemplate(), replicationController(), resourceQuota(), secret(), serviceAccount(), service(),
	}
}

// binding is answered by the subresource of pods that has its name, and never stored.
func binding() *api.Resource {
	r := rules.Namespaced[corev1.Binding, metav1.List](gv, "bindings")
	r.NewList = nil
	r.Verbs = []string{"create"}
	return &r
}
