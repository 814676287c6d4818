package apiserver_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver"
	"github.com/proa-dev/proa/internal/apiserver/authn"
	"github.com/proa-dev/proa/internal/apiserver/endpoint"
	"github.com/proa-dev/proa/internal/apiserver/rbac"
	"github.com/proa-dev/proa/internal/apiserver/rest"
)

// What the lead hands in fits.
var (
	_ endpoint.TokenIssuer   = (*authn.Tokens)(nil)
	_ endpoint.TokenReviewer = (*authn.Tokens)(nil)
	_ endpoint.RuleLister    = (*rbac.Authorizer)(nil)
	_ endpoint.Registry      = (*rest.Registry)(nil)
)

func deployment(name string) *appsv1.Deployment {
	one := int32(1)
	labels := map[string]string{"app": name}
	return &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: appsv1.DeploymentSpec{
		Replicas: &one, Selector: &metav1.LabelSelector{MatchLabels: labels},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: pod("x").Spec},
	}}
}

func TestSubresourcesWriteTheirPartOnly(t *testing.T) {
	s := start(t)
	c := s.protobuf(t)
	ctx := t.Context()
	pods := c.CoreV1().Pods("default")
	made, err := pods.Create(ctx, pod("p"), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	made.Status.Phase = corev1.PodRunning
	made.Labels["app"] = "other"
	made.Spec.Containers[0].Image = "other"
	got, err := pods.UpdateStatus(ctx, made, metav1.UpdateOptions{})
	if err != nil || got.Status.Phase != corev1.PodRunning || got.Spec.Containers[0].Image != "nginx" {
		t.Fatalf("status: %+v %v", got, err)
	}

	if _, err := pods.Create(ctx, pod("q"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	bind := func(name string) *corev1.Binding {
		return &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: name}, Target: corev1.ObjectReference{Kind: "Node", Name: "n1"}}
	}
	if err := pods.Bind(ctx, bind("p"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	a := s.do(t, "POST", "/api/v1/namespaces/default/bindings", `{"kind":"Binding","apiVersion":"v1","metadata":{"name":"q"},"target":{"kind":"Node","name":"n1"}}`)
	if a.code != 201 || a.status(t).Status != "Success" {
		t.Fatalf("legacy binding: %d %s", a.code, a.body)
	}
	for _, name := range []string{"p", "q"} {
		if got, err := pods.Get(ctx, name, metav1.GetOptions{}); err != nil || got.Spec.NodeName != "n1" {
			t.Errorf("%s is on %q, %v", name, got.Spec.NodeName, err)
		}
	}
	if err := pods.Bind(ctx, bind("p"), metav1.CreateOptions{}); !apierrors.IsConflict(err) {
		t.Errorf("bound twice: %v", err)
	}
	if err := pods.EvictV1(ctx, &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: "q"}}); err != nil {
		t.Errorf("evict: %v", err)
	}
	if a := s.do(t, "POST", "/api/v1/namespaces/default/pods/nobody/eviction", `{"kind":"Eviction","apiVersion":"policy/v1","metadata":{"name":"nobody"}}`); a.code != 404 {
		t.Errorf("evict nobody: %d %s", a.code, a.body)
	}
}

func TestScale(t *testing.T) {
	s := start(t)
	c := s.clientset(t)
	deps := c.AppsV1().Deployments("default")
	if _, err := deps.Create(t.Context(), deployment("web"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	scale, err := deps.GetScale(t.Context(), "web", metav1.GetOptions{})
	if err != nil || scale.Spec.Replicas != 1 || scale.Status.Selector != "app=web" {
		t.Fatalf("%+v %v", scale, err)
	}
	scale.Spec.Replicas = 3
	if scale, err = deps.UpdateScale(t.Context(), "web", scale, metav1.UpdateOptions{}); err != nil || scale.Spec.Replicas != 3 {
		t.Fatalf("%+v %v", scale, err)
	}
	patched := &autoscalingv1.Scale{}
	err = c.AppsV1().RESTClient().Patch(types.MergePatchType).Resource("deployments").Namespace("default").Name("web").SubResource("scale").
		Body([]byte(`{"spec":{"replicas":4}}`)).Do(t.Context()).Into(patched)
	if err != nil || patched.Spec.Replicas != 4 {
		t.Fatalf("%+v %v", patched, err)
	}
	got, err := deps.Get(t.Context(), "web", metav1.GetOptions{})
	if err != nil || *got.Spec.Replicas != 4 {
		t.Fatalf("%v %v", got, err)
	}
	scale.Spec.Replicas = -1
	scale.ResourceVersion = ""
	if _, err := deps.UpdateScale(t.Context(), "web", scale, metav1.UpdateOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("negative scale: %v", err)
	}
}

// newest reads from the registry what tokens are bound to.
type newest struct{ registry endpoint.Registry }

func (n newest) Get(gvr schema.GroupVersionResource, namespace, name string) (api.Object, bool) {
	s, ok := n.registry.Storage(gvr)
	if !ok {
		return nil, false
	}
	e, err := s.Get(context.Background(), namespace, name, metav1.GetOptions{ResourceVersion: "0"})
	if err != nil {
		return nil, false
	}
	return e.Object(), true
}

func TestServiceAccountTokens(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s := start(t, func(c *apiserver.Config) {
		tokens, err := authn.NewTokens("https://issuer", []string{"https://issuer"}, key, newest{c.Registry}, time.Now)
		if err != nil {
			t.Fatal(err)
		}
		c.TokenIssuer, c.TokenReviewer = tokens, tokens
	})
	c := s.clientset(t)
	if _, err := c.CoreV1().ServiceAccounts("default").Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "robot"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	issued, err := c.CoreV1().ServiceAccounts("default").CreateToken(t.Context(), "robot", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil || issued.Status.Token == "" {
		t.Fatalf("%+v %v", issued, err)
	}
	review, err := c.AuthenticationV1().TokenReviews().Create(t.Context(), &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: issued.Status.Token}}, metav1.CreateOptions{})
	if err != nil || !review.Status.Authenticated || review.Status.User.Username != "system:serviceaccount:default:robot" {
		t.Fatalf("%+v %v", review, err)
	}
	review, err = c.AuthenticationV1().TokenReviews().Create(t.Context(), &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: "nonsense"}}, metav1.CreateOptions{})
	if err != nil || review.Status.Authenticated {
		t.Fatalf("%+v %v", review, err)
	}
	if _, err := c.CoreV1().ServiceAccounts("default").CreateToken(t.Context(), "nobody", &authenticationv1.TokenRequest{}, metav1.CreateOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("token of nobody: %v", err)
	}
	self, err := c.AuthenticationV1().SelfSubjectReviews().Create(t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil || self.Status.UserInfo.Username != "admin" {
		t.Errorf("%+v %v", self, err)
	}
}

func TestDryRunWritesNothing(t *testing.T) {
	s := start(t)
	c := s.clientset(t)
	if _, err := c.CoreV1().ConfigMaps("default").Create(t.Context(), configMap("x"), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.CoreV1().ConfigMaps("default").Get(t.Context(), "x", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("dry run created: %v", err)
	}
	if _, err := c.CoreV1().ConfigMaps("default").Create(t.Context(), configMap("x"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, a := range []answer{
		s.do(t, "DELETE", "/api/v1/namespaces/default/configmaps/x?dryRun=All", ""),
		s.do(t, "DELETE", "/api/v1/namespaces/default/configmaps/x", `{"kind":"DeleteOptions","apiVersion":"v1","dryRun":["All"]}`),
		s.do(t, "DELETE", "/api/v1/namespaces/default/configmaps?dryRun=All", `{"kind":"DeleteOptions","apiVersion":"v1"}`),
	} {
		if a.code != 200 {
			t.Errorf("%d %s", a.code, a.body)
		}
	}
	if a := s.do(t, "DELETE", "/api/v1/namespaces/default/configmaps/x?dryRun=Some", ""); a.code != 422 || !strings.Contains(a.body, "dryRun") {
		t.Errorf("%d %s", a.code, a.body)
	}
	if a := s.do(t, "DELETE", "/api/v1/namespaces/default/configmaps/x", `{"kind":"Pod","apiVersion":"v1"}`); a.code != 400 {
		t.Errorf("a pod for options: %d %s", a.code, a.body)
	}
	if _, err := c.CoreV1().ConfigMaps("default").Get(t.Context(), "x", metav1.GetOptions{}); err != nil {
		t.Errorf("dry runs deleted: %v", err)
	}
}
