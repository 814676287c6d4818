// Package authentication holds the rules of the API group
// authentication.k8s.io, whose objects are answered and not stored. Answering
// them is the server's work.
package authentication

import (
	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

// Resources returns the resources of the group.
func Resources() []*api.Resource {
	gv := authenticationv1.SchemeGroupVersion
	return []*api.Resource{
		api.Kind[*authenticationv1.SelfSubjectReview]{
			Resource: rules.Review[authenticationv1.SelfSubjectReview](gv, "selfsubjectreviews"),
		}.Erase(),
		api.Kind[*authenticationv1.TokenReview]{
			Resource: rules.Review[authenticationv1.TokenReview](gv, "tokenreviews"),
			Validate: func(r *authenticationv1.TokenReview) field.ErrorList {
				return rules.Required(r.Spec.Token, field.NewPath("spec", "token"), "token is required for TokenReview in authentication")
			},
		}.Erase(),
	}
}
