// Package authn says who makes a request: by client certificate (common name and
// organizations), by service account token, or nobody known. It also issues the
// service account tokens.
package authn

import (
	"crypto/x509"
	"errors"
	"net/http"
	"strings"

	"k8s.io/apiserver/pkg/authentication/user"
)

// Authenticator tries the ways in order.
type Authenticator struct {
	clientCA  *x509.CertPool
	tokens    *Tokens
	bootstrap *Bootstrap
	anonymous func(path string) bool
}

// New returns an authenticator. Certificates must be signed by clientCA; tokens may be
// nil; anonymous says for which paths a request without credentials is let in
// as system:anonymous (nil: none).
func New(clientCA *x509.CertPool, tokens *Tokens, anonymous func(path string) bool) *Authenticator {
	return &Authenticator{clientCA: clientCA, tokens: tokens, anonymous: anonymous}
}

var errBadToken = errors.New("invalid bearer token")

// Authenticate returns who sent r; ok is false when nobody vouches for it.
func (a *Authenticator) Authenticate(r *http.Request) (user.Info, bool, error) {
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		leaf := r.TLS.PeerCertificates[0]
		// The handshake has verified the chain when the server was told to
		// (VerifyClientCertIfGiven); VerifiedChains is empty otherwise.
		if len(r.TLS.VerifiedChains) == 0 {
			if err := a.verify(r.TLS.PeerCertificates); err != nil {
				return nil, false, err
			}
		}
		return authenticated(&user.DefaultInfo{Name: leaf.Subject.CommonName, Groups: leaf.Subject.Organization}), true, nil
	}
	if token, ok := bearer(r); ok {
		if a.bootstrap != nil {
			if who, ok := a.bootstrap.Authenticate(token); ok {
				return authenticated(who), true, nil
			}
		}
		if a.tokens == nil {
			return nil, false, errBadToken
		}
		who, _, ok, err := a.tokens.Authenticate(token, nil)
		if err != nil {
			return nil, false, err
		}
		if !ok {
			return nil, false, errBadToken
		}
		return authenticated(who), true, nil
	}
	if a.anonymous != nil && a.anonymous(r.URL.Path) {
		return &user.DefaultInfo{Name: user.Anonymous, Groups: []string{user.AllUnauthenticated}}, true, nil
	}
	return nil, false, nil
}

func (a *Authenticator) verify(chain []*x509.Certificate) error {
	intermediates := x509.NewCertPool()
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots: a.clientCA, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	return err
}

func authenticated(who user.Info) user.Info {
	for _, g := range who.GetGroups() {
		if g == user.AllAuthenticated {
			return who
		}
	}
	return &user.DefaultInfo{
		Name: who.GetName(), UID: who.GetUID(), Extra: who.GetExtra(),
		Groups: append(append([]string{}, who.GetGroups()...), user.AllAuthenticated),
	}
}

// bearerProtocol carries a token in a browser's WebSocket handshake.
const bearerProtocol = "base64url.bearer.authorization.k8s.io."

func bearer(r *http.Request) (string, bool) {
	scheme, token, ok := strings.Cut(strings.TrimSpace(r.Header.Get("Authorization")), " ")
	if ok && strings.EqualFold(scheme, "bearer") {
		token = strings.TrimSpace(token)
		return token, token != ""
	}
	for _, h := range r.Header.Values("Sec-Websocket-Protocol") {
		for _, p := range strings.Split(h, ",") {
			if enc, ok := strings.CutPrefix(strings.TrimSpace(p), bearerProtocol); ok {
				return decodeToken(enc)
			}
		}
	}
	return "", false
}
