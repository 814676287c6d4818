package authn_test

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver/authn"
)

type secrets map[string]*corev1.Secret

func (s secrets) Get(_ schema.GroupVersionResource, namespace, name string) (api.Object, bool) {
	x, ok := s[namespace+"/"+name]
	return x, ok
}

func TestBootstrapTokens(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	const token = "abcdef.0123456789abcdef"
	for name, tc := range map[string]struct {
		token  string
		change func(*corev1.Secret)
		want   string
	}{
		"right":            {token, func(*corev1.Secret) {}, "system:bootstrap:abcdef [system:bootstrappers system:bootstrappers:lab]"},
		"no end":           {token, func(s *corev1.Secret) { delete(s.Data, "expiration") }, "system:bootstrap:abcdef [system:bootstrappers system:bootstrappers:lab]"},
		"another secret":   {"abcdef.0123456789abcdee", func(*corev1.Secret) {}, ""},
		"another token":    {"abcdeg.0123456789abcdef", func(*corev1.Secret) {}, ""},
		"no token":         {"abcdef.0123456789ABCDEF", func(*corev1.Secret) {}, ""},
		"expired":          {token, func(s *corev1.Secret) { s.Data["expiration"] = []byte("2026-01-02T03:04:05Z") }, ""},
		"end that is none": {token, func(s *corev1.Secret) { s.Data["expiration"] = []byte("tomorrow") }, ""},
		"another type":     {token, func(s *corev1.Secret) { s.Type = corev1.SecretTypeOpaque }, ""},
		"other use":        {token, func(s *corev1.Secret) { delete(s.Data, "usage-bootstrap-authentication") }, ""},
		"group of others":  {token, func(s *corev1.Secret) { s.Data["auth-extra-groups"] = []byte("system:masters") }, ""},
	} {
		s := &corev1.Secret{Type: "bootstrap.kubernetes.io/token", Data: map[string][]byte{"token-id": []byte("abcdef"), "token-secret": []byte("0123456789abcdef"),
			"expiration": []byte("2026-01-02T03:04:06Z"), "usage-bootstrap-authentication": []byte("true"), "auth-extra-groups": []byte("system:bootstrappers:lab")}}
		tc.change(s)
		b := authn.NewBootstrap(secrets{"kube-system/bootstrap-token-abcdef": s}, func() time.Time { return now })
		got := ""
		if who, ok := b.Authenticate(tc.token); ok {
			got = fmt.Sprint(who.GetName(), " ", who.GetGroups())
		}
		if got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}
