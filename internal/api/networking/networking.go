// Package networking holds the rules of the API group of k8s.io/api/networking/v1.
package networking

import (
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

// Resources returns the resources of the group.
func Resources() []*api.Resource {
	gv := networkingv1.SchemeGroupVersion
	resources := []api.Resource{
		rules.Namespaced[networkingv1.NetworkPolicy, networkingv1.NetworkPolicyList](gv, "networkpolicies", "netpol"),
		rules.Namespaced[networkingv1.Ingress, networkingv1.IngressList](gv, "ingresses", "ing"),
		rules.Cluster[networkingv1.IngressClass, networkingv1.IngressClassList](gv, "ingressclasses"),
		rules.Cluster[networkingv1.IPAddress, networkingv1.IPAddressList](gv, "ipaddresses", "ip"),
		rules.Cluster[networkingv1.ServiceCIDR, networkingv1.ServiceCIDRList](gv, "servicecidrs"),
	}
	out := make([]*api.Resource, len(resources))
	for i := range resources {
		out[i] = &resources[i]
	}
	return out
}
