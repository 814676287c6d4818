package admission_test

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/user"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/resources"
	"github.com/proa-dev/proa/internal/apiserver/admission"
	"github.com/proa-dev/proa/internal/apiserver/rbac"
	"github.com/proa-dev/proa/internal/apiserver/rest"
)

// roles are found by namespace and name.
type roles map[string]api.Object

func (r roles) Get(_ schema.GroupVersionResource, namespace, name string) (api.Object, bool) {
	o, ok := r[namespace+"/"+name]
	return o, ok
}

func (roles) List(schema.GroupVersionResource, string) []api.Object { return nil }

func TestNobodyGrantsMoreThanTheyHave(t *testing.T) {
	pods := []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"get", "list"}}}
	secrets := []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"secrets"}, Verbs: []string{"get", "list"}}}
	objects := roles{
		"/reader": &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "reader"}, Rules: pods},
		"/spy":    &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "spy"}, Rules: secrets},
		"/binder": &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "binder"}, Rules: []rbacv1.PolicyRule{
			{APIGroups: []string{rbacv1.GroupName}, Resources: []string{"clusterroles"}, ResourceNames: []string{"spy"}, Verbs: []string{"bind", "escalate"}}}},
		"n/local": &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "local"}, Rules: secrets},
	}
	authorizer := rbac.New(objects)
	bind := func(who, role string) {
		authorizer.Set(&rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: who + role}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
			Subjects: []rbacv1.Subject{{Kind: "User", APIGroup: rbacv1.GroupName, Name: who}}})
	}
	bind("jane", "reader")
	bind("bob", "binder")
	role := func(name string, rules []rbacv1.PolicyRule) *rbacv1.ClusterRole {
		return &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: rules}
	}
	binding := func(kind, name string) *rbacv1.RoleBinding {
		return &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "b"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: kind, Name: name}}
	}
	aggregated := role("sum", nil)
	aggregated.AggregationRule = &rbacv1.AggregationRule{ClusterRoleSelectors: []metav1.LabelSelector{{}}}
	const lacks = "is attempting to grant RBAC permissions not currently held:\n"
	for _, x := range []struct {
		name     string
		who      string
		now, old api.Object
		want     string
	}{
		{"a role of one's own rights", "jane", role("x", pods), nil, ""},
		{"a role of more", "jane", role("x", secrets), nil, `user "jane" (groups=["system:authenticated"]) ` + lacks + `{APIGroups:[""], Resources:["secrets"], Verbs:["get", "list"]}`},
		{"a role that stays", "jane", role("x", secrets), role("x", secrets), ""},
		{"a role that grows", "jane", role("x", append(slices.Clone(pods), secrets...)), role("x", pods), lacks},
		{"an aggregated role", "jane", aggregated, nil, `{NonResourceURLs:["*"], Verbs:["*"]}`},
		{"a role that one may escalate", "bob", role("spy", secrets), nil, ""},
		{"another role", "bob", role("other", secrets), nil, lacks},
		{"a binding of one's own rights", "jane", binding("ClusterRole", "reader"), nil, ""},
		{"a binding of more", "jane", binding("ClusterRole", "spy"), nil, lacks},
		{"a binding of more in the namespace", "jane", binding("Role", "local"), nil, lacks},
		{"a binding that stays", "jane", binding("ClusterRole", "spy"), binding("ClusterRole", "spy"), ""},
		{"a binding that one may make", "bob", binding("ClusterRole", "spy"), nil, ""},
		{"a binding of a role that is not there", "jane", binding("ClusterRole", "none"), nil, `clusterroles.rbac.authorization.k8s.io "none" not found`},
		{"an administrator", "admin", role("x", secrets), nil, ""},
	} {
		t.Run(x.name, func(t *testing.T) {
			who := &user.DefaultInfo{Name: x.who, Groups: []string{user.AllAuthenticated}}
			if x.who == "admin" {
				who.Groups = append(who.Groups, user.SystemPrivilegedGroup)
			}
			a := &rest.Attributes{Verb: rest.Create, Object: x.now, User: who, Name: x.now.GetName(), Namespace: x.now.GetNamespace()}
			for _, r := range resources.All() {
				if reflect.TypeOf(r.New()) == reflect.TypeOf(x.now) {
					a.Resource = r
				}
			}
			if x.old != nil {
				a.Verb, a.Old = rest.Update, x.old
			}
			err := admission.Escalation{Reader: objects, Authorizer: authorizer}.Validate(t.Context(), a)
			if (x.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), x.want) {
				t.Errorf("got %v, want %q", err, x.want)
			}
		})
	}
}
