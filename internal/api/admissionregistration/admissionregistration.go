// Package admissionregistration holds the rules of the API group of k8s.io/api/admissionregistration/v1.
package admissionregistration

import (
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

// Resources returns the resources of the group.
func Resources() []*api.Resource {
	gv := admissionregistrationv1.SchemeGroupVersion
	resources := []api.Resource{
		rules.Cluster[admissionregistrationv1.ValidatingWebhookConfiguration, admissionregistrationv1.ValidatingWebhookConfigurationList](gv, "validatingwebhookconfigurations"),
		rules.Cluster[admissionregistrationv1.MutatingWebhookConfiguration, admissionregistrationv1.MutatingWebhookConfigurationList](gv, "mutatingwebhookconfigurations"),
		rules.Cluster[admissionregistrationv1.ValidatingAdmissionPolicy, admissionregistrationv1.ValidatingAdmissionPolicyList](gv, "validatingadmissionpolicies"),
		rules.Cluster[admissionregistrationv1.ValidatingAdmissionPolicyBinding, admissionregistrationv1.ValidatingAdmissionPolicyBindingList](gv, "validatingadmissionpolicybindings"),
		rules.Cluster[admissionregistrationv1.MutatingAdmissionPolicy, admissionregistrationv1.MutatingAdmissionPolicyList](gv, "mutatingadmissionpolicies"),
		rules.Cluster[admissionregistrationv1.MutatingAdmissionPolicyBinding, admissionregistrationv1.MutatingAdmissionPolicyBindingList](gv, "mutatingadmissionpolicybindings"),
	}
	out := make([]*api.Resource, len(resources))
	for i := range resources {
		out[i] = &resources[i]
	}
	return out
}
