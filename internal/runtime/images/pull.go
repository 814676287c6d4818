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

	"github.com/proa-dev/proa/internal/runtime/images/registries"
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

// Pull fetches an image for this machine's platform: from the mirrors that
// Store.Registries names for its registry, else from the registry itself. Registries
// are spoken to by HTTPS, those on a loopback address by plain HTTP too. client may
// be nil; it replaces what Registries says of connections.
func (s *Store) Pull(ctx context.Context, ref string, auth Auth, client http.RoundTripper) (Image, error) {
	r, err := name.ParseReference(ref, name.WeakValidation)
	if err != nil {
		return Image{}, fmt.Errorf("image name %q: %w", ref, err)
	}
	if client != nil {
		return s.pullFrom(ctx, r, r, auth, client)
	}
	registry := r.Context().RegistryStr()
	if registry == name.DefaultRegistry {
		registry = "docker.io"
	}
	places, err := registries.Of(s.Registries, registry)
	if err != nil {
		return Image{}, fmt.Errorf("pull %s: %w", display(r), err)
	}
	var failed []error
	for _, e := range places {
		at := place{e}
		from, shown := r, auth
		if at.Mirror {
			shown = Auth{}
		}
		if at.Insecure || at.Host != r.Context().RegistryStr() {
			if from, err = at.reference(r); err != nil {
				return Image{}, fmt.Errorf("pull %s from %s: %w", display(r), at.Host, err)
			}
		}
		img, err := s.pullFrom(ctx, r, from, shown, at)
		at.Transport.CloseIdleConnections()
		if err == nil || ctx.Err() != nil {
			return img, err
		}
		if at.Mirror {
			err = fmt.Errorf("mirror %s: %w", at.Host, err)
		}
		failed = append(failed, err)
	}
	if len(failed) == 1 {
		return Image{}, failed[0]
	}
	return Image{}, errors.Join(failed...)
}

// place is an endpoint as a transport.
type place struct{ registries.Endpoint }

// reference is r at this place.
func (p place) reference(r name.Reference) (name.Reference, error) {
	var opts []name.Option
	if p.Insecure {
		opts = append(opts, name.Insecure)
	}
	reg, err := name.NewRegistry(p.Host, opts...)
	if err != nil {
		return nil, err
	}
	repo := reg.Repo(r.Context().RepositoryStr())
	if d, ok := r.(name.Digest); ok {
		return repo.Digest(d.DigestStr()), nil
	}
	return repo.Tag(r.Identifier()), nil
}

// pullFrom fetches from, and stores it as r.
func (s *Store) pullFrom(ctx context.Context, r, from name.Reference, auth Auth, client http.RoundTripper) (Image, error) {
	desc, err := remote.Get(from, remote.WithContext(ctx), remote.WithAuth(auth.authenticator()), remote.WithUserAgent("proa"),
		remote.WithPlatform(v1.Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH}), remote.WithTransport(client))
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
