// Package auth is what the request path asks of authentication and
// authorization: two questions, and the words they are asked in.
package auth

import (
	"context"
	"net/http"

	"k8s.io/apiserver/pkg/authentication/user"
)

// Authenticator says who sends a request; ok is false when nobody vouches for it.
type Authenticator interface {
	Authenticate(r *http.Request) (who user.Info, ok bool, err error)
}

// Authorizer says whether a request is allowed, and if not, why (may be empty).
type Authorizer interface {
	Authorize(ctx context.Context, a Attributes) (allowed bool, reason string, err error)
}

// Attributes describe a request.
type Attributes struct {
	User            user.Info
	Verb            string
	Namespace       string
	APIGroup        string
	APIVersion      string
	Resource        string
	Subresource     string
	Name            string
	ResourceRequest bool   // false: Path is what is asked for
	Path            string // of the URL
}
