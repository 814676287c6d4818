// Package authentication holds the rules of the API group of k8s.io/api/authentication/v1.
package authentication

import (
	authenticationv1 "k8s.io/api/authentication/v1"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

// Resources returns the resources of the group.
func Resources() []*api.Resource {
	gv := authenticationv1.SchemeGroupVersion
	resources := []api.Resource{
		rules.Review[authenticationv1.TokenReview](gv, "tokenreviews"),
		rules.Review[authenticationv1.SelfSubjectReview](gv, "selfsubjectreviews"),
	}
	out := make([]*api.Resource, len(resources))
	for i := range resources {
		out[i] = &resources[i]
	}
	return out
}
