// Package rbac authorizes by Role and ClusterRole bindings
// (rbac.authorization.k8s.io/v1), and holds the roles that every cluster starts with.
package rbac

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"k8s.io/apiserver/pkg/authentication/user"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver/auth"
)

// Reader looks roles up in the newest known state.
type Reader interface {
	Get(gvr schema.GroupVersionResource, namespace, name string) (api.Object, bool)
}

var (
	RolesGVR               = rbacv1.SchemeGroupVersion.WithResource("roles")
	ClusterRolesGVR        = rbacv1.SchemeGroupVersion.WithResource("clusterroles")
	RoleBindingsGVR        = rbacv1.SchemeGroupVersion.WithResource("rolebindings")
	ClusterRoleBindingsGVR = rbacv1.SchemeGroupVersion.WithResource("clusterrolebindings")
)

// Authorizer answers from an index of bindings by subject, so that a request
// costs what its user is bound to and not what the cluster has. Whoever owns the
// state tells it of every binding with Set and Remove.
type Authorizer struct {
	reader Reader

	mu       sync.RWMutex
	bindings map[bindingKey]binding
	// bySubject holds the bindings that name a subject; namespace "" are the
	// cluster-wide ones.
	bySubject map[subject]map[bindingKey]struct{}
}

type bindingKey struct{ namespace, name string }

type binding struct {
	role     rbacv1.RoleRef
	subjects []subject
}

type subject struct{ kind, name string }

// New returns an authorizer that knows no binding yet.
func New(reader Reader) *Authorizer {
	return &Authorizer{reader: reader, bindings: map[bindingKey]binding{}, bySubject: map[subject]map[bindingKey]struct{}{}}
}

// Set adds or replaces a RoleBinding or ClusterRoleBinding.
func (a *Authorizer) Set(obj api.Object) {
	key, b, ok := read(obj)
	if !ok {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.remove(key)
	a.bindings[key] = b
	for _, s := range b.subjects {
		if a.bySubject[s] == nil {
			a.bySubject[s] = map[bindingKey]struct{}{}
		}
		a.bySubject[s][key] = struct{}{}
	}
}

// Remove forgets a binding.
func (a *Authorizer) Remove(obj api.Object) {
	key, _, ok := read(obj)
	if !ok {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.remove(key)
}

func (a *Authorizer) remove(key bindingKey) {
	for _, s := range a.bindings[key].subjects {
		delete(a.bySubject[s], key)
		if len(a.bySubject[s]) == 0 {
			delete(a.bySubject, s)
		}
	}
	delete(a.bindings, key)
}

func read(obj api.Object) (bindingKey, binding, bool) {
	switch o := obj.(type) {
	case *rbacv1.ClusterRoleBinding:
		return bindingKey{"", o.Name}, binding{o.RoleRef, subjects(o.Subjects, "")}, true
	case *rbacv1.RoleBinding:
		return bindingKey{o.Namespace, o.Name}, binding{o.RoleRef, subjects(o.Subjects, o.Namespace)}, true
	}
	return bindingKey{}, binding{}, false
}

func subjects(in []rbacv1.Subject, namespace string) []subject {
	out := make([]subject, 0, len(in))
	for _, s := range in {
		switch s.Kind {
		case rbacv1.UserKind, rbacv1.GroupKind:
			out = append(out, subject{s.Kind, s.Name})
		case rbacv1.ServiceAccountKind:
			ns := s.Namespace
			if ns == "" {
				ns = namespace
			}
			out = append(out, subject{rbacv1.UserKind, serviceaccount.MakeUsername(ns, s.Name)})
		}
	}
	return out
}

// Authorize says whether the user may do what the attributes describe. The group
// system:masters may do everything, whatever the roles say.
func (a *Authorizer) Authorize(_ context.Context, attrs auth.Attributes) (bool, string, error) {
	if slices.Contains(attrs.User.GetGroups(), user.SystemPrivilegedGroup) {
		return true, "", nil
	}
	allowed := false
	missing := a.visit(attrs.User, attrs.Namespace, func(_ bindingKey, rules []rbacv1.PolicyRule) bool {
		for i := range rules {
			if Allows(&rules[i], &attrs) {
				allowed = true
				return false
			}
		}
		return true
	})
	if allowed {
		return true, "", nil
	}
	if len(missing) > 0 {
		return false, "RBAC: " + strings.Join(missing, ", "), nil
	}
	return false, "", nil
}

// RulesFor returns every rule that holds for the user in a namespace.
func (a *Authorizer) RulesFor(_ context.Context, who user.Info, namespace string) ([]rbacv1.PolicyRule, error) {
	if slices.Contains(who.GetGroups(), user.SystemPrivilegedGroup) {
		return []rbacv1.PolicyRule{
			{Verbs: []string{"*"}, APIGroups: []string{"*"}, Resources: []string{"*"}},
			{Verbs: []string{"*"}, NonResourceURLs: []string{"*"}},
		}, nil
	}
	var out []rbacv1.PolicyRule
	a.visit(who, namespace, func(_ bindingKey, rules []rbacv1.PolicyRule) bool {
		out = append(out, rules...)
		return true
	})
	return out, nil
}

// visit calls fn with the rules of each binding that holds for the user in a
// namespace, cluster-wide ones first, until fn returns false. It returns the
// roles that are bound but do not exist.
func (a *Authorizer) visit(who user.Info, namespace string, fn func(bindingKey, []rbacv1.PolicyRule) bool) (missing []string) {
	type bound struct {
		key  bindingKey
		role rbacv1.RoleRef
	}
	var list []bound
	a.mu.RLock()
	add := func(s subject) {
		for key := range a.bySubject[s] {
			if key.namespace == "" || key.namespace == namespace {
				list = append(list, bound{key, a.bindings[key].role})
			}
		}
	}
	add(subject{rbacv1.UserKind, who.GetName()})
	for _, g := range who.GetGroups() {
		add(subject{rbacv1.GroupKind, g})
	}
	a.mu.RUnlock()
	slices.SortFunc(list, func(x, y bound) int {
		if c := strings.Compare(x.key.namespace, y.key.namespace); c != 0 {
			return c
		}
		return strings.Compare(x.key.name, y.key.name)
	})
	for _, b := range list {
		rules, err := a.rules(b.key.namespace, b.role)
		if err != nil {
			missing = append(missing, err.Error())
			continue
		}
		if !fn(b.key, rules) {
			return missing
		}
	}
	return missing
}

func (a *Authorizer) rules(namespace string, role rbacv1.RoleRef) ([]rbacv1.PolicyRule, error) {
	switch role.Kind {
	case "ClusterRole":
		if o, ok := a.reader.Get(ClusterRolesGVR, "", role.Name); ok {
			return o.(*rbacv1.ClusterRole).Rules, nil
		}
		return nil, fmt.Errorf("clusterrole.rbac.authorization.k8s.io %q not found", role.Name)
	case "Role":
		if o, ok := a.reader.Get(RolesGVR, namespace, role.Name); ok {
			return o.(*rbacv1.Role).Rules, nil
		}
		return nil, fmt.Errorf("role.rbac.authorization.k8s.io %q not found", role.Name)
	}
	return nil, fmt.Errorf("unsupported role reference kind %q", role.Kind)
}

// Allows reports whether one rule covers a request.
func Allows(r *rbacv1.PolicyRule, a *auth.Attributes) bool {
	if !has(r.Verbs, a.Verb) {
		return false
	}
	if !a.ResourceRequest {
		for _, u := range r.NonResourceURLs {
			if u == "*" || u == a.Path {
				return true
			}
			if prefix, ok := strings.CutSuffix(u, "*"); ok && strings.HasPrefix(a.Path, prefix) {
				return true
			}
		}
		return false
	}
	return has(r.APIGroups, a.APIGroup) && resource(r.Resources, a.Resource, a.Subresource) &&
		(len(r.ResourceNames) == 0 || slices.Contains(r.ResourceNames, a.Name))
}

func has(list []string, want string) bool {
	for _, s := range list {
		if s == "*" || s == want {
			return true
		}
	}
	return false
}

func resource(list []string, name, sub string) bool {
	for _, s := range list {
		if s == "*" {
			return true
		}
		if sub == "" {
			if s == name {
				return true
			}
			continue
		}
		// "pods/log" or "*/scale".
		if parent, ok := strings.CutSuffix(s, sub); ok && len(parent) > 0 && parent[len(parent)-1] == '/' {
			if parent = parent[:len(parent)-1]; parent == name || parent == "*" {
				return true
			}
		}
	}
	return false
}
