// Package authorization holds the rules of the API group of k8s.io/api/authorization/v1.
package authorization

import (
	authorizationv1 "k8s.io/api/authorization/v1"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

// Resources returns the resources of the group.
func Resources() []*api.Resource {
	gv := authorizationv1.SchemeGroupVersion
	resources := []api.Resource{
		rules.Review[authorizationv1.SubjectAccessReview](gv, "subjectaccessreviews"),
		rules.With(rules.Review[authorizationv1.LocalSubjectAccessReview](gv, "localsubjectaccessreviews"), func(r *api.Resource) { r.Namespaced = true }),
		rules.Review[authorizationv1.SelfSubjectAccessReview](gv, "selfsubjectaccessreviews"),
		rules.Review[authorizationv1.SelfSubjectRulesReview](gv, "selfsubjectrulesreviews"),
	}
	out := make([]*api.Resource, len(resources))
	for i := range resources {
		out[i] = &resources[i]
	}
	return out
}
