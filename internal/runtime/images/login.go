package images

import (
	"fmt"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
)

// Login returns what docker's config.json (with its credential helpers), or the
// same file of podman, has for the registry of an image; anonymous when nothing.
func Login(ref string) (Auth, error) {
	r, err := name.ParseReference(ref, name.WeakValidation)
	if err != nil {
		return Auth{}, fmt.Errorf("image name %q: %w", ref, err)
	}
	a, err := authn.DefaultKeychain.Resolve(r.Context())
	if err != nil {
		return Auth{}, fmt.Errorf("look for a login to %s: %w", r.Context().RegistryStr(), err)
	}
	c, err := a.Authorization()
	if err != nil {
		return Auth{}, fmt.Errorf("look for a login to %s: %w", r.Context().RegistryStr(), err)
	}
	return Auth{Username: c.Username, Password: c.Password, Auth: c.Auth, IdentityToken: c.IdentityToken, RegistryToken: c.RegistryToken}, nil
}
