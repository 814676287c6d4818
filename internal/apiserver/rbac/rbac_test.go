package rbac

import (
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/user"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver/auth"
)

type objects map[string]api.Object

func (o objects) Get(gvr schema.GroupVersionResource, ns, name string) (api.Object, bool) {
	obj, ok := o[gvr.Resource+"/"+ns+"/"+name]
	return obj, ok
}

func TestAuthorize(t *testing.T) {
	state := objects{
		"roles/shop/logs": &rbacv1.Role{Rules: []rbacv1.PolicyRule{
			{Verbs: []string{"get"}, APIGroups: []string{""}, Resources: []string{"pods/log"}},
			{Verbs: []string{"update"}, APIGroups: []string{""}, Resources: []string{"configmaps"}, ResourceNames: []string{"mine"}},
			{Verbs: []string{"patch"}, APIGroups: []string{"apps"}, Resources: []string{"*/scale"}},
		}},
	}
	for _, r := range Roles() {
		state["clusterroles//"+r.Name] = r
	}
	a := New(state)
	for _, b := range Bindings() {
		a.Set(b)
	}
	logs := &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "b"},
		RoleRef:  rbacv1.RoleRef{Kind: "Role", Name: "logs"},
		Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Name: "web"}, {Kind: "User", Name: "jane"}}}
	a.Set(logs)
	view := &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "v"},
		RoleRef: rbacv1.RoleRef{Kind: "ClusterRole", Name: "view"}, Subjects: []rbacv1.Subject{{Kind: "Group", Name: "devs"}}}
	a.Set(view)

	jane := &user.DefaultInfo{Name: "jane", Groups: []string{"devs", user.AllAuthenticated}}
	web := &user.DefaultInfo{Name: "system:serviceaccount:shop:web"}
	root := &user.DefaultInfo{Name: "root", Groups: []string{user.SystemPrivilegedGroup}}
	anyone := &user.DefaultInfo{Name: user.Anonymous, Groups: []string{user.AllUnauthenticated}}
	on := func(u user.Info, verb, ns, group, resource, sub, name string) auth.Attributes {
		return auth.Attributes{User: u, Verb: verb, Namespace: ns, APIGroup: group, Resource: resource, Subresource: sub, Name: name, ResourceRequest: true}
	}
	path := func(u user.Info, p string) auth.Attributes { return auth.Attributes{User: u, Verb: "get", Path: p} }
	for name, c := range map[string]struct {
		attrs auth.Attributes
		want  bool
	}{
		"masters may do everything":                      {on(root, "delete", "", "", "nodes", "", "n"), true},
		"a service account by its role":                  {on(web, "get", "shop", "", "pods", "log", "p"), true},
		"a subresource is not its parent":                {on(web, "get", "shop", "", "pods", "", "p"), false},
		"a role holds in its namespace only":             {on(web, "get", "other", "", "pods", "log", "p"), false},
		"a named resource":                               {on(jane, "update", "shop", "", "configmaps", "", "mine"), true},
		"another name":                                   {on(jane, "update", "shop", "", "configmaps", "", "yours"), false},
		"any parent's scale":                             {on(jane, "patch", "shop", "apps", "deployments", "scale", "d"), true},
		"a cluster role bound in a namespace":            {on(jane, "list", "shop", "", "services", "", ""), true},
		"view reads no secrets":                          {on(jane, "get", "shop", "", "secrets", "", "s"), false},
		"a cluster role bound in a namespace, elsewhere": {on(jane, "list", "", "", "services", "", ""), false},
		"discovery for the authenticated":                {path(jane, "/apis/apps/v1"), true},
		"no discovery for the anonymous":                 {path(anyone, "/apis"), false},
		"health for the anonymous":                       {path(anyone, "/readyz"), true},
	} {
		t.Run(name, func(t *testing.T) {
			got, reason, err := a.Authorize(t.Context(), c.attrs)
			if err != nil || got != c.want {
				t.Errorf("allowed %v (%s, %v), want %v", got, reason, err, c.want)
			}
		})
	}

	a.Remove(view)
	if got, _, _ := a.Authorize(t.Context(), on(jane, "list", "shop", "", "services", "", "")); got {
		t.Error("a removed binding still holds")
	}
	logs = logs.DeepCopy()
	logs.Subjects = logs.Subjects[:1]
	a.Set(logs)
	if got, _, _ := a.Authorize(t.Context(), on(jane, "update", "shop", "", "configmaps", "", "mine")); got {
		t.Error("a subject that was taken out of a binding still has its rights")
	}
	if len(a.bySubject) == 0 || a.bySubject[subject{"User", "jane"}] != nil {
		t.Error("the index keeps subjects without bindings")
	}
}

func TestARoleThatDoesNotExistIsNamed(t *testing.T) {
	a := New(objects{})
	a.Set(&rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "b"}, RoleRef: rbacv1.RoleRef{Kind: "ClusterRole", Name: "gone"},
		Subjects: []rbacv1.Subject{{Kind: "User", Name: "jane"}}})
	_, reason, _ := a.Authorize(t.Context(), auth.Attributes{User: &user.DefaultInfo{Name: "jane"}, Verb: "get", Resource: "pods", ResourceRequest: true})
	if want := `RBAC: clusterrole.rbac.authorization.k8s.io "gone" not found`; reason != want {
		t.Errorf("reason %q, want %q", reason, want)
	}
}
