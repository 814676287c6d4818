package rbac

import (
	"slices"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/user"

	"github.com/proa-dev/proa/internal/api"
)

// The verbs that the built-in roles give.
var (
	readVerbs  = []string{"get", "list", "watch"}
	writeVerbs = []string{"create", "update", "patch", "delete", "deletecollection"}
	allVerbs   = []string{"*"}
)

func rule(verbs []string, groups []string, resources ...string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{Verbs: verbs, APIGroups: groups, Resources: resources}
}

func verbs(v ...string) []string  { return v }
func groups(g ...string) []string { return g }

func urls(list ...string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{Verbs: []string{"get"}, NonResourceURLs: list}
}

// What the user-facing roles read and write, by group (Kubernetes'
// documentation, "Using RBAC Authorization", user-facing roles).
var (
	viewRules = []rbacv1.PolicyRule{
		rule(readVerbs, groups(""), "bindings", "configmaps", "endpoints", "events", "limitranges", "namespaces", "namespaces/status",
			"persistentvolumeclaims", "persistentvolumeclaims/status", "pods", "pods/log", "pods/status", "replicationcontrollers",
			"replicationcontrollers/scale", "replicationcontrollers/status", "resourcequotas", "resourcequotas/status", "serviceaccounts",
			"services", "services/status"),
		rule(readVerbs, groups("discovery.k8s.io"), "endpointslices"),
		rule(readVerbs, groups("apps"), "controllerrevisions", "daemonsets", "daemonsets/status", "deployments", "deployments/scale",
			"deployments/status", "replicasets", "replicasets/scale", "replicasets/status", "statefulsets", "statefulsets/scale", "statefulsets/status"),
		rule(readVerbs, groups("autoscaling"), "horizontalpodautoscalers", "horizontalpodautoscalers/status"),
		rule(readVerbs, groups("batch"), "cronjobs", "cronjobs/status", "jobs", "jobs/status"),
		rule(readVerbs, groups("policy"), "poddisruptionbudgets", "poddisruptionbudgets/status"),
		rule(readVerbs, groups("networking.k8s.io"), "ingresses", "ingresses/status", "networkpolicies"),
		rule(readVerbs, groups("resource.k8s.io"), "resourceclaims", "resourceclaims/status", "resourceclaimtemplates"),
	}
	editRules = []rbacv1.PolicyRule{
		rule(readVerbs, groups(""), "pods/attach", "pods/exec", "pods/portforward", "pods/proxy", "secrets", "services/proxy"),
		rule(verbs("impersonate"), groups(""), "serviceaccounts"),
		rule(writeVerbs, groups(""), "pods", "pods/attach", "pods/exec", "pods/portforward", "pods/proxy", "configmaps", "events",
			"persistentvolumeclaims", "replicationcontrollers", "replicationcontrollers/scale", "secrets", "serviceaccounts", "services", "services/proxy"),
		rule(verbs("create"), groups(""), "pods/eviction", "serviceaccounts/token"),
		rule(writeVerbs, groups("apps"), "daemonsets", "deployments", "deployments/rollback", "deployments/scale", "replicasets",
			"replicasets/scale", "statefulsets", "statefulsets/scale"),
		rule(writeVerbs, groups("autoscaling"), "horizontalpodautoscalers"),
		rule(writeVerbs, groups("batch"), "cronjobs", "jobs"),
		rule(writeVerbs, groups("policy"), "poddisruptionbudgets"),
		rule(writeVerbs, groups("networking.k8s.io"), "ingresses", "networkpolicies"),
		rule(slices.Concat(readVerbs, writeVerbs), groups("coordination.k8s.io"), "leases"),
		rule(writeVerbs, groups("resource.k8s.io"), "resourceclaims", "resourceclaimtemplates"),
	}
	adminRules = []rbacv1.PolicyRule{
		rule(verbs("create"), groups("authorization.k8s.io"), "localsubjectaccessreviews"),
		rule(slices.Concat(readVerbs, writeVerbs), groups("rbac.authorization.k8s.io"), "roles", "rolebindings"),
	}
)

// Roles returns the cluster roles that every cluster has.
func Roles() []*rbacv1.ClusterRole {
	eventRule := rule(verbs("create", "patch", "update"), groups("", "events.k8s.io"), "events")
	leaseRule := rule(verbs("create", "get", "list", "watch", "update", "patch"), groups("coordination.k8s.io"), "leases")
	reviewRules := []rbacv1.PolicyRule{
		rule(verbs("create"), groups("authentication.k8s.io"), "tokenreviews"),
		rule(verbs("create"), groups("authorization.k8s.io"), "subjectaccessreviews"),
	}
	discovery := urls("/healthz", "/livez", "/readyz", "/version", "/version/", "/openapi", "/openapi/*", "/api", "/api/*", "/apis", "/apis/*")
	roles := []*rbacv1.ClusterRole{
		role("cluster-admin", rule(allVerbs, allVerbs, "*"), rbacv1.PolicyRule{Verbs: allVerbs, NonResourceURLs: []string{"*"}}),
		role("system:discovery", discovery),
		role("system:monitoring", urls("/healthz", "/healthz/*", "/livez", "/livez/*", "/readyz", "/readyz/*", "/metrics", "/metrics/slis")),
		role("system:public-info-viewer", urls("/healthz", "/livez", "/readyz", "/version", "/version/")),
		role("system:basic-user",
			rule(verbs("create"), groups("authorization.k8s.io"), "selfsubjectaccessreviews", "selfsubjectrulesreviews"),
			rule(verbs("create"), groups("authentication.k8s.io"), "selfsubjectreviews")),
		role("system:auth-delegator", reviewRules...),
		role("system:heapster", rule(readVerbs, groups(""), "events", "namespaces", "nodes", "pods"), rule(readVerbs, groups("apps"), "deployments")),
		role("system:service-account-issuer-discovery", urls("/.well-known/openid-configuration", "/.well-known/openid-configuration/", "/openid/v1/jwks", "/openid/v1/jwks/")),
		role("system:kubelet-api-admin",
			rule(readVerbs, groups(""), "nodes"), rule(verbs("proxy"), groups(""), "nodes"),
			rule(allVerbs, groups(""), "nodes/proxy", "nodes/metrics", "nodes/stats", "nodes/log", "nodes/healthz", "nodes/pods", "nodes/configz", "nodes/checkpoint")),
		role("system:node-bootstrapper", rule(verbs("create", "get", "list", "watch"), groups("certificates.k8s.io"), "certificatesigningrequests")),
		role("system:node-problem-detector", rule(verbs("get"), groups(""), "nodes"), rule(verbs("patch"), groups(""), "nodes/status"), eventRule),
		role("system:node-proxier", rule(readVerbs, groups(""), "services", "endpoints", "nodes"), rule(readVerbs, groups("discovery.k8s.io"), "endpointslices"),
			rule(readVerbs, groups("networking.k8s.io"), "servicecidrs"), eventRule),
		role("system:persistent-volume-provisioner", rule(slices.Concat(readVerbs, verbs("create", "delete")), groups(""), "persistentvolumes"),
			rule(slices.Concat(readVerbs, verbs("update")), groups(""), "persistentvolumeclaims"), rule(readVerbs, groups("storage.k8s.io"), "storageclasses"), eventRule),
		role("system:certificates.k8s.io:certificatesigningrequests:nodeclient", rule(verbs("create"), groups("certificates.k8s.io"), "certificatesigningrequests/nodeclient")),
		role("system:certificates.k8s.io:certificatesigningrequests:selfnodeclient", rule(verbs("create"), groups("certificates.k8s.io"), "certificatesigningrequests/selfnodeclient")),
		role("system:kube-dns", rule(readVerbs, groups(""), "endpoints", "services"), rule(readVerbs, groups("discovery.k8s.io"), "endpointslices")),
		role("system:node", slices.Concat([]rbacv1.PolicyRule{
			rule(slices.Concat(readVerbs, verbs("create", "update", "patch", "delete")), groups(""), "nodes"),
			rule(verbs("patch", "update"), groups(""), "nodes/status", "pods/status"),
			rule(slices.Concat(readVerbs, verbs("create", "delete")), groups(""), "pods"),
			rule(verbs("create"), groups(""), "pods/eviction", "serviceaccounts/token"),
			rule(readVerbs, groups(""), "configmaps", "secrets", "services", "persistentvolumeclaims", "persistentvolumes", "namespaces"),
			rule(slices.Concat(readVerbs, verbs("create", "update", "patch", "delete")), groups("coordination.k8s.io", "storage.k8s.io"), "leases", "csinodes"),
			rule(readVerbs, groups("storage.k8s.io"), "csidrivers", "volumeattachments"),
			rule(readVerbs, groups("node.k8s.io"), "runtimeclasses"),
			rule(slices.Concat(readVerbs, writeVerbs), groups("resource.k8s.io"), "resourceslices", "resourceclaims"),
			rule(verbs("create", "get", "list", "watch"), groups("certificates.k8s.io"), "certificatesigningrequests", "podcertificaterequests"),
			rule(readVerbs, groups("certificates.k8s.io"), "clustertrustbundles"),
			eventRule,
		}, reviewRules)...),
		role("system:kube-scheduler", eventRule, leaseRule,
			rule(slices.Concat(readVerbs, verbs("delete")), groups(""), "pods"), rule(readVerbs, groups(""), "nodes", "namespaces", "replicationcontrollers", "services", "persistentvolumes"),
			rule(verbs("create"), groups(""), "pods/binding", "bindings"), rule(verbs("patch", "update"), groups(""), "pods/status"),
			rule(readVerbs, groups("apps"), "replicasets", "statefulsets"), rule(readVerbs, groups("policy"), "poddisruptionbudgets"),
			rule(slices.Concat(readVerbs, verbs("update", "patch")), groups(""), "persistentvolumeclaims"),
			rule(readVerbs, groups("storage.k8s.io"), "storageclasses", "csinodes", "csidrivers", "csistoragecapacities", "volumeattachments"),
			rule(slices.Concat(readVerbs, verbs("update", "patch")), groups("resource.k8s.io"), "resourceclaims", "resourceclaims/status"),
			rule(readVerbs, groups("resource.k8s.io"), "deviceclasses", "resourceslices")),
		role("system:kube-controller-manager", eventRule, leaseRule,
			rule(allVerbs, allVerbs, "*")),
		role("system:volume-scheduler", rule(slices.Concat(readVerbs, verbs("patch", "update")), groups(""), "persistentvolumes", "persistentvolumeclaims"),
			rule(readVerbs, groups("storage.k8s.io"), "storageclasses")),
		role("system:aggregate-to-view", viewRules...),
		role("system:aggregate-to-edit", editRules...),
		role("system:aggregate-to-admin", adminRules...),
		role("view", viewRules...),
		role("edit", slices.Concat(viewRules, editRules)...),
		role("admin", slices.Concat(viewRules, editRules, adminRules)...),
	}
	for _, r := range roles {
		const aggregate = "rbac.authorization.k8s.io/aggregate-to-"
		switch r.Name {
		case "system:aggregate-to-view", "system:aggregate-to-edit", "system:aggregate-to-admin":
			r.Labels[aggregate+r.Name[len("system:aggregate-to-"):]] = "true"
		case "view", "edit", "admin":
			r.AggregationRule = &rbacv1.AggregationRule{ClusterRoleSelectors: []metav1.LabelSelector{{MatchLabels: map[string]string{aggregate + r.Name: "true"}}}}
			// view is part of edit, edit of admin.
			switch r.Name {
			case "view":
				r.Labels[aggregate+"edit"] = "true"
			case "edit":
				r.Labels[aggregate+"admin"] = "true"
			}
		}
	}
	return roles
}

// Bindings returns the cluster role bindings that every cluster has.
func Bindings() []*rbacv1.ClusterRoleBinding {
	g := func(name string) rbacv1.Subject {
		return rbacv1.Subject{Kind: rbacv1.GroupKind, APIGroup: rbacv1.GroupName, Name: name}
	}
	u := func(name string) rbacv1.Subject {
		return rbacv1.Subject{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: name}
	}
	return []*rbacv1.ClusterRoleBinding{
		bind("cluster-admin", g(user.SystemPrivilegedGroup)),
		bind("system:discovery", g(user.AllAuthenticated)),
		bind("system:basic-user", g(user.AllAuthenticated)),
		bind("system:public-info-viewer", g(user.AllAuthenticated), g(user.AllUnauthenticated)),
		bind("system:monitoring", g("system:monitoring")),
		bind("system:service-account-issuer-discovery", g("system:serviceaccounts")),
		bind("system:node", g("system:nodes")),
		// A node's one certificate is for its kube-proxy and its name server too.
		bind("system:node-proxier", u("system:kube-proxy"), g("system:nodes")),
		bind("system:node-bootstrapper", g("system:bootstrappers")),
		bind("system:kube-scheduler", u("system:kube-scheduler")),
		bind("system:volume-scheduler", u("system:kube-scheduler")),
		bind("system:kube-controller-manager", u("system:kube-controller-manager")),
		bind("system:kubelet-api-admin", u("kube-apiserver")),
		bind("system:kube-dns", rbacv1.Subject{Kind: rbacv1.ServiceAccountKind, Namespace: "kube-system", Name: "kube-dns"}),
	}
}

// Objects returns the roles and bindings together, for whoever stores them.
func Objects() []api.Object {
	var out []api.Object
	for _, r := range Roles() {
		out = append(out, r)
	}
	for _, b := range Bindings() {
		out = append(out, b)
	}
	return out
}

func role(name string, rules ...rbacv1.PolicyRule) *rbacv1.ClusterRole {
	return &rbacv1.ClusterRole{ObjectMeta: bootstrapMeta(name), Rules: rules}
}

func bind(name string, subjects ...rbacv1.Subject) *rbacv1.ClusterRoleBinding {
	return &rbacv1.ClusterRoleBinding{
		ObjectMeta: bootstrapMeta(name),
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name},
		Subjects:   subjects,
	}
}

func bootstrapMeta(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Name:        name,
		Labels:      map[string]string{"kubernetes.io/bootstrapping": "rbac-defaults"},
		Annotations: map[string]string{rbacv1.AutoUpdateAnnotationKey: "true"},
	}
}
