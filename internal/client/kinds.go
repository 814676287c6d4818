package client

import (
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	storagev1 "k8s.io/api/storage/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// The resources that components use, each at the version that is stored.
var (
	ConfigMaps             = kind[*corev1.ConfigMap]("", "v1", "configmaps", "ConfigMap")
	Endpoints              = kind[*corev1.Endpoints]("", "v1", "endpoints", "Endpoints") //nolint:staticcheck // still served, and written for old clients
	Events                 = kind[*corev1.Event]("", "v1", "events", "Event")
	LimitRanges            = kind[*corev1.LimitRange]("", "v1", "limitranges", "LimitRange")
	Namespaces             = kind[*corev1.Namespace]("", "v1", "namespaces", "Namespace")
	Nodes                  = kind[*corev1.Node]("", "v1", "nodes", "Node")
	PersistentVolumeClaims = kind[*corev1.PersistentVolumeClaim]("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim")
	PersistentVolumes      = kind[*corev1.PersistentVolume]("", "v1", "persistentvolumes", "PersistentVolume")
	Pods                   = kind[*corev1.Pod]("", "v1", "pods", "Pod")
	ReplicationControllers = kind[*corev1.ReplicationController]("", "v1", "replicationcontrollers", "ReplicationController")
	ResourceQuotas         = kind[*corev1.ResourceQuota]("", "v1", "resourcequotas", "ResourceQuota")
	Secrets                = kind[*corev1.Secret]("", "v1", "secrets", "Secret")
	ServiceAccounts        = kind[*corev1.ServiceAccount]("", "v1", "serviceaccounts", "ServiceAccount")
	Services               = kind[*corev1.Service]("", "v1", "services", "Service")

	ControllerRevisions = kind[*appsv1.ControllerRevision]("apps", "v1", "controllerrevisions", "ControllerRevision")
	DaemonSets          = kind[*appsv1.DaemonSet]("apps", "v1", "daemonsets", "DaemonSet")
	Deployments         = kind[*appsv1.Deployment]("apps", "v1", "deployments", "Deployment")
	ReplicaSets         = kind[*appsv1.ReplicaSet]("apps", "v1", "replicasets", "ReplicaSet")
	StatefulSets        = kind[*appsv1.StatefulSet]("apps", "v1", "statefulsets", "StatefulSet")

	CronJobs = kind[*batchv1.CronJob]("batch", "v1", "cronjobs", "CronJob")
	Jobs     = kind[*batchv1.Job]("batch", "v1", "jobs", "Job")

	HorizontalPodAutoscalers   = kind[*autoscalingv2.HorizontalPodAutoscaler]("autoscaling", "v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler")
	CertificateSigningRequests = kind[*certificatesv1.CertificateSigningRequest]("certificates.k8s.io", "v1", "certificatesigningrequests", "CertificateSigningRequest")
	ClusterTrustBundles        = kind[*certificatesv1.ClusterTrustBundle]("certificates.k8s.io", "v1", "clustertrustbundles", "ClusterTrustBundle")
	PodCertificateRequests     = kind[*certificatesv1.PodCertificateRequest]("certificates.k8s.io", "v1", "podcertificaterequests", "PodCertificateRequest")
	Leases                     = kind[*coordinationv1.Lease]("coordination.k8s.io", "v1", "leases", "Lease")
	EndpointSlices             = kind[*discoveryv1.EndpointSlice]("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice")
	NetworkPolicies            = kind[*networkingv1.NetworkPolicy]("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy")
	ServiceCIDRs               = kind[*networkingv1.ServiceCIDR]("networking.k8s.io", "v1", "servicecidrs", "ServiceCIDR")
	PodDisruptionBudgets       = kind[*policyv1.PodDisruptionBudget]("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget")
	PriorityClasses            = kind[*schedulingv1.PriorityClass]("scheduling.k8s.io", "v1", "priorityclasses", "PriorityClass")
	StorageClasses             = kind[*storagev1.StorageClass]("storage.k8s.io", "v1", "storageclasses", "StorageClass")

	CustomResourceDefinitions = kind[*apiextensionsv1.CustomResourceDefinition]("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition")

	ClusterRoles        = kind[*rbacv1.ClusterRole]("rbac.authorization.k8s.io", "v1", "clusterroles", "ClusterRole")
	ClusterRoleBindings = kind[*rbacv1.ClusterRoleBinding]("rbac.authorization.k8s.io", "v1", "clusterrolebindings", "ClusterRoleBinding")
	Roles               = kind[*rbacv1.Role]("rbac.authorization.k8s.io", "v1", "roles", "Role")
	RoleBindings        = kind[*rbacv1.RoleBinding]("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding")
)

func kind[T Object](group, version, resource, name string) Kind[T] {
	return Kind[T]{
		GVR: schema.GroupVersionResource{Group: group, Version: version, Resource: resource},
		GVK: schema.GroupVersionKind{Group: group, Version: version, Kind: name},
	}
}
