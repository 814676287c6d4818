// Package admissionregistration holds the rules of the API group
// admissionregistration.k8s.io: webhooks and policies of admission. It calls and
// evaluates none of them.
package admissionregistration

import (
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

// Resources returns the resources of the group.
func Resources() []*api.Resource {
	gv := admissionregistrationv1.SchemeGroupVersion
	return []*api.Resource{
		mutatingPolicies(gv), mutatingBindings(gv), mutatingWebhooks(gv),
		validatingPolicies(gv), validatingBindings(gv), validatingWebhooks(gv),
	}
}

func extension(r api.Resource) api.Resource {
	r.Categories = []string{"api-extensions"}
	return r
}

func defaultMatch(m *admissionregistrationv1.MatchResources) {
	if m == nil {
		return
	}
	rules.Refer(&m.MatchPolicy, admissionregistrationv1.Equivalent)
	rules.Refer(&m.NamespaceSelector, metav1.LabelSelector{})
	rules.Refer(&m.ObjectSelector, metav1.LabelSelector{})
	for _, list := range [][]admissionregistrationv1.NamedRuleWithOperations{m.ResourceRules, m.ExcludeResourceRules} {
		for i := range list {
			rules.Refer(&list[i].Scope, admissionregistrationv1.AllScopes)
		}
	}
}

func paramKind(k *admissionregistrationv1.ParamKind) string {
	if k == nil {
		return rules.Unset
	}
	return k.APIVersion + "/" + k.Kind
}

func paramRef(r *admissionregistrationv1.ParamRef) string {
	switch {
	case r == nil:
		return rules.Unset
	case r.Name == "":
		return metav1.FormatLabelSelector(r.Selector)
	case r.Namespace == "":
		return r.Name
	}
	return r.Namespace + "/" + r.Name
}
