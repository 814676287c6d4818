package authn

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/proa-dev/proa/internal/api"
)

type objects map[string]api.Object

func (o objects) Get(gvr schema.GroupVersionResource, ns, name string) (api.Object, bool) {
	obj, ok := o[gvr.Resource+"/"+ns+"/"+name]
	return obj, ok
}

func fixture(t *testing.T) (*Tokens, objects, *time.Time) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	state := objects{
		"serviceaccounts/shop/web": &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "sa-1"}},
		"pods/shop/web-0": &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web-0", UID: "pod-1"},
			Spec: corev1.PodSpec{ServiceAccountName: "web"}},
	}
	tokens, err := NewTokens("https://kubernetes.default.svc", []string{"https://kubernetes.default.svc"}, key, state, func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	return tokens, state, &now
}

func TestATokenNamesItsServiceAccountUntilItsPodIsGone(t *testing.T) {
	tokens, state, now := fixture(t)
	req := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: "web-0", UID: "pod-1"}}}
	got, err := tokens.Issue(t.Context(), "shop", "web", req)
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequest("GET", "/api/v1/pods", nil)
	r.Header.Set("Authorization", "Bearer "+got.Status.Token)
	a := New(nil, tokens, nil)
	who, ok, err := a.Authenticate(r)
	if err != nil || !ok {
		t.Fatalf("the token is refused: ok %v, err %v", ok, err)
	}
	if who.GetName() != "system:serviceaccount:shop:web" || who.GetUID() != "sa-1" {
		t.Errorf("user %q uid %q", who.GetName(), who.GetUID())
	}
	if groups := strings.Join(who.GetGroups(), ","); groups != "system:serviceaccounts,system:serviceaccounts:shop,system:authenticated" {
		t.Errorf("groups %s", groups)
	}
	if who.GetExtra()["authentication.kubernetes.io/pod-name"][0] != "web-0" {
		t.Errorf("extra %v", who.GetExtra())
	}

	state["pods/shop/web-0"].(*corev1.Pod).UID = types.UID("pod-2")
	if _, ok, err := a.Authenticate(r); ok || err == nil {
		t.Error("a token of a deleted pod is accepted")
	}
	state["pods/shop/web-0"].(*corev1.Pod).UID = types.UID("pod-1")
	*now = now.Add(2 * time.Hour)
	if _, ok, err := a.Authenticate(r); ok || err == nil {
		t.Error("an expired token is accepted")
	}
}

func TestWhatIssueRefuses(t *testing.T) {
	tokens, _, _ := fixture(t)
	short := int64(10)
	for name, c := range map[string]struct {
		account string
		spec    authenticationv1.TokenRequestSpec
		is      func(error) bool
	}{
		"an unknown account":        {"nobody", authenticationv1.TokenRequestSpec{}, apierrors.IsNotFound},
		"a life below ten minutes":  {"web", authenticationv1.TokenRequestSpec{ExpirationSeconds: &short}, apierrors.IsInvalid},
		"a pod that does not exist": {"web", authenticationv1.TokenRequestSpec{BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: "x"}}, apierrors.IsNotFound},
		"a pod of another uid":      {"web", authenticationv1.TokenRequestSpec{BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: "web-0", UID: "other"}}, apierrors.IsConflict},
		"a kind that cannot bind":   {"web", authenticationv1.TokenRequestSpec{BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "ConfigMap", APIVersion: "v1", Name: "x"}}, apierrors.IsBadRequest},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := tokens.Issue(t.Context(), "shop", c.account, &authenticationv1.TokenRequest{Spec: c.spec})
			if !c.is(err) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestForeignAndBrokenTokensAreNobody(t *testing.T) {
	tokens, state, now := fixture(t)
	other, _, _ := fixture(t)
	foreign, err := other.Issue(t.Context(), "shop", "web", &authenticationv1.TokenRequest{})
	if err != nil {
		t.Fatal(err)
	}
	_ = state
	_ = now
	for name, header := range map[string]string{
		"signed by another key": "Bearer " + foreign.Status.Token,
		"garbage":               "Bearer abc",
		"for another audience":  "Bearer " + audienceToken(t, tokens),
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest("GET", "/", nil)
			r.Header.Set("Authorization", header)
			if _, ok, err := New(nil, tokens, func(string) bool { return true }).Authenticate(r); ok || err == nil {
				t.Errorf("ok %v, err %v", ok, err)
			}
		})
	}
}

func audienceToken(t *testing.T, tokens *Tokens) string {
	t.Helper()
	got, err := tokens.Issue(t.Context(), "shop", "web", &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: []string{"vault"}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, matched, ok, err := tokens.Authenticate(got.Status.Token, []string{"vault", "x"}); !ok || err != nil || len(matched) != 1 {
		t.Fatalf("audience vault: ok %v, matched %v, err %v", ok, matched, err)
	}
	return got.Status.Token
}
