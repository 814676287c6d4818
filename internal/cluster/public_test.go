package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/proa-dev/proa/internal/apiserver/authn"
)

func TestIssuerDescribesItselfAndItsKeys(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	const issuer = "https://kubernetes.default.svc.cluster.local"
	tokens, err := authn.NewTokens(issuer, []string{issuer}, key, nil, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	paths, err := issuerPaths(tokens)
	if err != nil {
		t.Fatal(err)
	}
	get := func(path, contentType string, into any) {
		t.Helper()
		w := httptest.NewRecorder()
		paths[path].ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if w.Code != 200 || w.Header().Get("Content-Type") != contentType || json.Unmarshal(w.Body.Bytes(), into) != nil {
			t.Errorf("%s: %d %v %s", path, w.Code, w.Header(), w.Body)
		}
	}
	var about struct {
		Issuer string   `json:"issuer"`
		Keys   string   `json:"jwks_uri"`
		Algs   []string `json:"id_token_signing_alg_values_supported"`
	}
	get("/.well-known/openid-configuration", "application/json", &about)
	if about.Issuer != issuer || about.Keys != issuer+"/openid/v1/jwks" || len(about.Algs) != 1 || about.Algs[0] != "ES256" {
		t.Errorf("%+v", about)
	}
	var keys jose.JSONWebKeySet
	get("/openid/v1/jwks", "application/jwk-set+json", &keys)
	if len(keys.Keys) != 1 || !keys.Keys[0].IsPublic() || !keys.Keys[0].Valid() {
		t.Errorf("%+v", keys)
	}
	w := httptest.NewRecorder()
	paths["/openid/v1/jwks"].ServeHTTP(w, httptest.NewRequest("POST", "/openid/v1/jwks", nil))
	if w.Code != 405 {
		t.Errorf("POST: %d", w.Code)
	}
}
