package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"strings"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver/authn"
	"github.com/proa-dev/proa/internal/apiserver/rest"
	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/cluster/kubeconfig"
)

// open says which paths need no credentials: how the server is, and where it is.
func open(path string) bool {
	if path == "/api/v1/namespaces/kube-public/configmaps/cluster-info" {
		return true
	}
	switch strings.SplitN(strings.TrimPrefix(path, "/"), "/", 2)[0] {
	case "healthz", "livez", "readyz", "version":
		return true
	}
	return false
}

// prefixes says under which prefix of the store each resource is kept.
func prefixes(registry *rest.Registry, list []*api.Resource) map[string]schema.GroupResource {
	out := map[string]schema.GroupResource{}
	for _, r := range list {
		if c, _, ok := registry.Cache(r.GVR); ok && r.StoredAs.Empty() {
			out[c.Prefix("")] = r.GVR.GroupResource()
		}
	}
	return out
}

// issuerPaths are the documents by which others verify the tokens of service
// accounts (OpenID Connect Discovery 1.0, section 4).
func issuerPaths(tokens *authn.Tokens) (map[string]http.Handler, error) {
	const keysPath = "/openid/v1/jwks"
	about, err := json.Marshal(struct {
		Issuer    string   `json:"issuer"`
		Keys      string   `json:"jwks_uri"`
		Responses []string `json:"response_types_supported"`
		Subjects  []string `json:"subject_types_supported"`
		Algs      []string `json:"id_token_signing_alg_values_supported"`
	}{tokens.Issuer(), tokens.Issuer() + keysPath, []string{"id_token"}, []string{"public"}, algorithms(tokens)})
	if err != nil {
		return nil, fmt.Errorf("encode the issuer's description: %w", err)
	}
	keys, err := json.Marshal(tokens.JWKS())
	if err != nil {
		return nil, fmt.Errorf("encode the issuer's keys: %w", err)
	}
	document := func(contentType string, body []byte) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodGet && r.Method != http.MethodHead {
				w.Header().Set("Allow", "GET, HEAD")
				http.Error(w, "405 method not allowed", http.StatusMethodNotAllowed)
				return
			}
			w.Header().Set("Content-Type", contentType)
			w.Header().Set("Cache-Control", "public, max-age=3600")
			_, _ = w.Write(body)
		})
	}
	return map[string]http.Handler{
		"/.well-known/openid-configuration": document("application/json", about),
		keysPath:                            document("application/jwk-set+json", keys),
	}, nil
}

func algorithms(tokens *authn.Tokens) []string {
	var out []string
	for _, k := range tokens.JWKS().Keys {
		out = append(out, k.Algorithm)
	}
	return out
}

// publish writes what programs in the cluster look up to trust it: how an
// extension's API server tells users apart, and for everyone, where the cluster is
// and who signs for it.
func (c *cluster) publish(ctx context.Context) error {
	about, err := kubeconfig.Public(serverURL(c.Listen), c.ca.CertPEM)
	if err != nil {
		return err
	}
	for _, m := range []*corev1.ConfigMap{
		{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: "extension-apiserver-authentication"},
			Data: map[string]string{
				"client-ca-file":                     string(c.ca.CertPEM),
				"requestheader-client-ca-file":       string(c.frontProxyCA.CertPEM),
				"requestheader-allowed-names":        `["front-proxy-client"]`,
				"requestheader-username-headers":     `["X-Remote-User"]`,
				"requestheader-uid-headers":          `["X-Remote-Uid"]`,
				"requestheader-group-headers":        `["X-Remote-Group"]`,
				"requestheader-extra-headers-prefix": `["X-Remote-Extra-"]`,
			}},
		{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespacePublic, Name: "cluster-info"}, Data: map[string]string{"kubeconfig": string(about)}},
	} {
		have, ok := client.ConfigMaps.Informer(c.local, client.Scope{}).Get(m.Namespace, m.Name)
		if !ok {
			if err := ensure(ctx, c.local, client.ConfigMaps, m); err != nil {
				return err
			}
			continue
		}
		next := have.DeepCopy() // others may have added keys
		if next.Data == nil {
			next.Data = map[string]string{}
		}
		maps.Copy(next.Data, m.Data)
		if maps.Equal(next.Data, have.Data) {
			continue
		}
		if _, err := client.ConfigMaps.Update(ctx, c.local, next); err != nil {
			return fmt.Errorf("update ConfigMap %s/%s: %w", m.Namespace, m.Name, err)
		}
	}
	return c.readers(ctx)
}

// readers lets the two be read: by extensions' API servers that their
// administrator binds to the first role, and by everyone.
func (c *cluster) readers(ctx context.Context) error {
	meta := func(namespace, name string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"kubernetes.io/bootstrapping": "rbac-defaults"},
			Annotations: map[string]string{rbacv1.AutoUpdateAnnotationKey: "true"}}
	}
	read := func(name string, verbs ...string) []rbacv1.PolicyRule {
		return []rbacv1.PolicyRule{{Verbs: verbs, APIGroups: []string{""}, Resources: []string{"configmaps"}, ResourceNames: []string{name}}}
	}
	const info = "proa:cluster-info"
	for _, r := range []*rbacv1.Role{
		{ObjectMeta: meta(metav1.NamespaceSystem, "extension-apiserver-authentication-reader"), Rules: read("extension-apiserver-authentication", "get", "list", "watch")},
		{ObjectMeta: meta(metav1.NamespacePublic, info), Rules: read("cluster-info", "get")},
	} {
		if err := ensure(ctx, c.local, client.Roles, r); err != nil {
			return err
		}
	}
	users := func(names ...string) (out []rbacv1.Subject) {
		for _, n := range names {
			kind := rbacv1.UserKind
			if n == "system:authenticated" || n == "system:unauthenticated" {
				kind = rbacv1.GroupKind
			}
			out = append(out, rbacv1.Subject{Kind: kind, APIGroup: rbacv1.GroupName, Name: n})
		}
		return out
	}
	for _, b := range []*rbacv1.RoleBinding{
		{ObjectMeta: meta(metav1.NamespaceSystem, "system::extension-apiserver-authentication-reader"), Subjects: users("system:kube-controller-manager", "system:kube-scheduler"),
			RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "extension-apiserver-authentication-reader"}},
		{ObjectMeta: meta(metav1.NamespacePublic, info), Subjects: users("system:authenticated", "system:unauthenticated"),
			RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: info}},
	} {
		if err := ensure(ctx, c.local, client.RoleBindings, b); err != nil {
			return err
		}
	}
	return nil
}
