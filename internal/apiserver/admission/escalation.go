package admission

import (
	"context"
	"fmt"
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/component-helpers/auth/rbac/validation"

	"github.com/proa-dev/proa/internal/apiserver/auth"
	"github.com/proa-dev/proa/internal/apiserver/rest"
)

// Escalation keeps users from giving more rights than they have: who writes a role
// must hold all its rules, or may "escalate" it; who writes a binding must hold all
// rules of its role, or may "bind" it (Kubernetes' privilege escalation prevention).
type Escalation struct {
	Reader     Reader
	Authorizer auth.Authorizer
}

// ruleLister is an Authorizer that knows all rules of a user.
type ruleLister interface {
	RulesFor(ctx context.Context, who user.Info, namespace string) ([]rbacv1.PolicyRule, error)
}

var everything = []rbacv1.PolicyRule{
	{Verbs: []string{"*"}, APIGroups: []string{"*"}, Resources: []string{"*"}},
	{Verbs: []string{"*"}, NonResourceURLs: []string{"*"}},
}

func (p Escalation) Validate(ctx context.Context, a *rest.Attributes) error {
	if a.Resource.GVR.Group != rbacv1.GroupName || a.Subresource != "" || a.Verb != rest.Create && a.Verb != rest.Update ||
		rest.Trusted(ctx) || p.Authorizer == nil || a.User == nil || slices.Contains(a.User.GetGroups(), user.SystemPrivilegedGroup) {
		return nil
	}
	switch o := a.Object.(type) {
	case *rbacv1.Role:
		if old, ok := a.Old.(*rbacv1.Role); ok && apiequality.Semantic.DeepEqual(o.Rules, old.Rules) {
			return nil
		}
		return p.role(ctx, a, o.Rules)
	case *rbacv1.ClusterRole:
		rules := o.Rules
		old, _ := a.Old.(*rbacv1.ClusterRole)
		if old != nil && apiequality.Semantic.DeepEqual(o.Rules, old.Rules) && apiequality.Semantic.DeepEqual(o.AggregationRule, old.AggregationRule) {
			return nil
		}
		// What will be aggregated can be anything.
		if o.AggregationRule != nil && (old == nil || !apiequality.Semantic.DeepEqual(o.AggregationRule, old.AggregationRule)) {
			rules = everything
		}
		return p.role(ctx, a, rules)
	case *rbacv1.RoleBinding:
		if old, ok := a.Old.(*rbacv1.RoleBinding); ok && o.RoleRef == old.RoleRef && apiequality.Semantic.DeepEqual(o.Subjects, old.Subjects) {
			return nil
		}
		return p.binding(ctx, a, o.RoleRef)
	case *rbacv1.ClusterRoleBinding:
		if old, ok := a.Old.(*rbacv1.ClusterRoleBinding); ok && o.RoleRef == old.RoleRef && apiequality.Semantic.DeepEqual(o.Subjects, old.Subjects) {
			return nil
		}
		return p.binding(ctx, a, o.RoleRef)
	}
	return nil
}

func (p Escalation) role(ctx context.Context, a *rest.Attributes, rules []rbacv1.PolicyRule) error {
	gvr := a.Resource.GVR
	if p.may(ctx, auth.Attributes{User: a.User, Verb: "escalate", APIGroup: gvr.Group, APIVersion: gvr.Version, Resource: gvr.Resource, Namespace: a.Namespace, Name: a.Name, ResourceRequest: true}) {
		return nil
	}
	return p.holds(ctx, a, rules)
}

func (p Escalation) binding(ctx context.Context, a *rest.Attributes, ref rbacv1.RoleRef) error {
	resource := map[string]string{"Role": "roles", "ClusterRole": "clusterroles"}[ref.Kind]
	if p.may(ctx, auth.Attributes{User: a.User, Verb: "bind", APIGroup: ref.APIGroup, APIVersion: "*", Resource: resource, Namespace: a.Namespace, Name: ref.Name, ResourceRequest: true}) {
		return nil
	}
	gvr, namespace := rbacv1.SchemeGroupVersion.WithResource(resource), ""
	if ref.Kind == "Role" {
		namespace = a.Namespace
	}
	role, ok := p.Reader.Get(gvr, namespace, ref.Name)
	if !ok {
		return apierrors.NewNotFound(gvr.GroupResource(), ref.Name)
	}
	if r, ok := role.(*rbacv1.ClusterRole); ok {
		return p.holds(ctx, a, r.Rules)
	}
	return p.holds(ctx, a, role.(*rbacv1.Role).Rules)
}

func (p Escalation) may(ctx context.Context, what auth.Attributes) bool {
	ok, _, err := p.Authorizer.Authorize(ctx, what)
	return ok && err == nil
}

// holds refuses a request of somebody who lacks one of the rules.
func (p Escalation) holds(ctx context.Context, a *rest.Attributes, rules []rbacv1.PolicyRule) error {
	lister, ok := p.Authorizer.(ruleLister)
	if !ok {
		return forbid(a, "the rights of user %q cannot be listed, to see whether they hold what they grant", a.User.GetName())
	}
	own, err := lister.RulesFor(ctx, a.User, a.Namespace)
	if err != nil {
		return apierrors.NewInternalError(fmt.Errorf("list the rules of user %q: %w", a.User.GetName(), err))
	}
	covered, missing := validation.Covers(own, rules)
	if covered {
		return nil
	}
	return forbid(a, "user %q (groups=%q) is attempting to grant RBAC permissions not currently held:\n%s", a.User.GetName(), a.User.GetGroups(), strings.Join(written(missing), "\n"))
}

// written says rules in short, those that differ in their verbs only as one.
func written(rules []rbacv1.PolicyRule) []string {
	verbs := map[string][]string{}
	for _, r := range rules {
		var parts []string
		for _, f := range []struct {
			name   string
			values []string
		}{{"APIGroups", r.APIGroups}, {"Resources", r.Resources}, {"NonResourceURLs", r.NonResourceURLs}, {"ResourceNames", r.ResourceNames}} {
			if len(f.values) > 0 {
				parts = append(parts, fmt.Sprintf("%s:%q", f.name, f.values))
			}
		}
		what := strings.Join(parts, ", ")
		for _, v := range r.Verbs {
			if !slices.Contains(verbs[what], v) {
				verbs[what] = append(verbs[what], v)
			}
		}
	}
	var out []string
	for what, v := range verbs {
		out = append(out, fmt.Sprintf("{%s, Verbs:%s}", strings.ReplaceAll(what, `" "`, `", "`), strings.ReplaceAll(fmt.Sprintf("%q", v), `" "`, `", "`)))
	}
	slices.Sort(out)
	return out
}
