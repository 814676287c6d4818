package images

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// Auth is what a registry is shown; the zero value is anonymous.
type Auth struct {
	Username, Password string
	Auth               string // base64 of user:password
	IdentityToken      string
	RegistryToken      string
}

func (a Auth) authenticator() authn.Authenticator {
	if a == (Auth{}) {
		return authn.Anonymous
	}
	return authn.FromConfig(authn.AuthConfig{Username: a.Username, Password: a.Password, Auth: a.Auth,
		IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken})
}

// ErrUnauthorized says that the registry refused the credentials, or wants some.
var ErrUnauthorized = errors.New("unauthorized")

// Pull fetches an image for this machine's platform. Registries are spoken to by
// HTTPS, those on a loopback address by plain HTTP too. client may be nil.
func (s *Store) Pull(ctx context.Context, ref string, auth Auth, client http.RoundTripper) (Image, error) {
	r, err := name.ParseReference(ref, name.WeakValidation)
	if err != nil {
		return Image{}, fmt.Errorf("image name %q: %w", ref, err)
	}
	opts := []remote.Option{remote.WithContext(ctx), remote.WithAuth(auth.authenticator()), remote.WithUserAgent("proa"),
		remote.WithPlatform(v1.Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH})}
	if client != nil {
		opts = append(opts, remote.WithTransport(client))
	}
	desc, err := remote.Get(r, opts...)
	if err != nil {
		return Image{}, pullError(r, err)
	}
	img, err := desc.Image()
	if err != nil {
		return Image{}, pullError(r, err)
	}
	digests := []string{display(r.Context().Digest(desc.Digest.String()))}
	var tags []string
	if _, isTag := r.(name.Tag); isTag {
		tags = []string{display(r)}
	}
	out, err := s.add(ctx, img, tags, digests)
	if err != nil {
		return Image{}, pullError(r, err)
	}
	return s.Resolve(out.ID)
}

func pullError(r name.Reference, err error) error {
	var t *transport.Error
	if errors.As(err, &t) {
		switch t.StatusCode {
		case http.StatusUnauthorized, http.StatusForbidden:
			return fmt.Errorf("pull %s: %w: %w", display(r), ErrUnauthorized, err)
		case http.StatusNotFound:
			return fmt.Errorf("pull %s: %w: %w", display(r), ErrNotFound, err)
		}
	}
	return fmt.Errorf("pull %s: %w", display(r), err)
}
