package client

import (
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// KindOf names the kind of an object that does not carry it itself, as those of
// an informer; the zero kind when no component writes about it.
func KindOf(obj Object) schema.GroupVersionKind {
	switch obj.(type) {
	case *corev1.Pod:
		return Pods.GVK
	case *corev1.Node:
		return Nodes.GVK
	case *corev1.Namespace:
		return Namespaces.GVK
	case *corev1.Service:
		return Services.GVK
	case *corev1.ReplicationController:
		return ReplicationControllers.GVK
	case *corev1.PersistentVolumeClaim:
		return PersistentVolumeClaims.GVK
	case *corev1.PersistentVolume:
		return PersistentVolumes.GVK
	case *appsv1.Deployment:
		return Deployments.GVK
	case *appsv1.ReplicaSet:
		return ReplicaSets.GVK
	case *appsv1.StatefulSet:
		return StatefulSets.GVK
	case *appsv1.DaemonSet:
		return DaemonSets.GVK
	case *batchv1.Job:
		return Jobs.GVK
	case *batchv1.CronJob:
		return CronJobs.GVK
	case *policyv1.PodDisruptionBudget:
		return PodDisruptionBudgets.GVK
	}
	return schema.GroupVersionKind{}
}
