// Package rbac holds the rules of the API group rbac.authorization.k8s.io. It
// does not decide whether a request is allowed.
package rbac

import (
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/validation/path"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

// Resources returns the resources of the group.
func Resources() []*api.Resource {
	gv := rbacv1.SchemeGroupVersion
	return []*api.Resource{clusterRoleBindings(gv), clusterRoles(gv), roleBindings(gv), roles(gv)}
}

func writable(r api.Resource) api.Resource {
	r.CreateOnUpdate, r.UnconditionalUpdate = true, true
	// Names like system:node are usual here: whatever can stand in a URL will do.
	r.ValidateName = path.ValidatePathSegmentName
	return r
}

func roles(gv schema.GroupVersion) *api.Resource {
	r := writable(rules.Namespaced[rbacv1.Role, rbacv1.RoleList](gv, "roles"))
	r.Columns = []metav1.TableColumnDefinition{rules.Name(), rules.CreatedAt()}
	return api.Kind[*rbacv1.Role]{
		Resource: r,
		Validate: func(r *rbacv1.Role) field.ErrorList { return validateRules(r.Rules, true) },
		Row:      func(r *rbacv1.Role) []any { return []any{r.Name, rules.Timestamp(r)} },
	}.Erase()
}

func clusterRoles(gv schema.GroupVersion) *api.Resource {
	r := writable(rules.Cluster[rbacv1.ClusterRole, rbacv1.ClusterRoleList](gv, "clusterroles"))
	r.Columns = []metav1.TableColumnDefinition{rules.Name(), rules.CreatedAt()}
	return api.Kind[*rbacv1.ClusterRole]{
		Resource: r,
		Validate: validateClusterRole,
		Row:      func(r *rbacv1.ClusterRole) []any { return []any{r.Name, rules.Timestamp(r)} },
	}.Erase()
}

func roleBindings(gv schema.GroupVersion) *api.Resource {
	r := writable(rules.Namespaced[rbacv1.RoleBinding, rbacv1.RoleBindingList](gv, "rolebindings"))
	r.Columns = bindingColumns()
	return api.Kind[*rbacv1.RoleBinding]{
		Resource: r,
		Default:  func(b *rbacv1.RoleBinding) { defaultBinding(&b.RoleRef, b.Subjects) },
		Validate: func(b *rbacv1.RoleBinding) field.ErrorList { return validateBinding(b.RoleRef, b.Subjects, true) },
		ValidateUpdate: func(b, old *rbacv1.RoleBinding) field.ErrorList {
			return append(validateBinding(b.RoleRef, b.Subjects, true), sameRole(b.RoleRef, old.RoleRef)...)
		},
		Row: func(b *rbacv1.RoleBinding) []any { return bindingRow(b, b.RoleRef, b.Subjects) },
	}.Erase()
}

func clusterRoleBindings(gv schema.GroupVersion) *api.Resource {
	r := writable(rules.Cluster[rbacv1.ClusterRoleBinding, rbacv1.ClusterRoleBindingList](gv, "clusterrolebindings"))
	r.Columns = bindingColumns()
	return api.Kind[*rbacv1.ClusterRoleBinding]{
		Resource: r,
		Default:  func(b *rbacv1.ClusterRoleBinding) { defaultBinding(&b.RoleRef, b.Subjects) },
		Validate: func(b *rbacv1.ClusterRoleBinding) field.ErrorList {
			return validateBinding(b.RoleRef, b.Subjects, false)
		},
		ValidateUpdate: func(b, old *rbacv1.ClusterRoleBinding) field.ErrorList {
			return append(validateBinding(b.RoleRef, b.Subjects, false), sameRole(b.RoleRef, old.RoleRef)...)
		},
		Row: func(b *rbacv1.ClusterRoleBinding) []any { return bindingRow(b, b.RoleRef, b.Subjects) },
	}.Erase()
}

func bindingColumns() []metav1.TableColumnDefinition {
	return []metav1.TableColumnDefinition{
		rules.Name(),
		rules.Text("Role", "The role that the binding refers to."),
		rules.Age(),
		rules.Wide("Users", "Users to whom the role is bound."),
		rules.Wide("Groups", "Groups to which the role is bound."),
		rules.Wide("ServiceAccounts", "Service accounts, with their namespaces, to which the role is bound."),
	}
}

func bindingRow(obj metav1.Object, ref rbacv1.RoleRef, subjects []rbacv1.Subject) []any {
	var users, groups, accounts []string
	for _, s := range subjects {
		switch s.Kind {
		case rbacv1.UserKind:
			users = append(users, s.Name)
		case rbacv1.GroupKind:
			groups = append(groups, s.Name)
		case rbacv1.ServiceAccountKind:
			accounts = append(accounts, s.Namespace+"/"+s.Name)
		}
	}
	return []any{
		obj.GetName(), ref.Kind + "/" + ref.Name, rules.Created(obj),
		strings.Join(users, ", "), strings.Join(groups, ", "), strings.Join(accounts, ", "),
	}
}

func defaultBinding(ref *rbacv1.RoleRef, subjects []rbacv1.Subject) {
	rules.Fill(&ref.APIGroup, rbacv1.GroupName)
	for i := range subjects {
		if s := &subjects[i]; s.APIGroup == "" && (s.Kind == rbacv1.UserKind || s.Kind == rbacv1.GroupKind) {
			s.APIGroup = rbacv1.GroupName
		}
	}
}

func sameRole(ref, old rbacv1.RoleRef) field.ErrorList {
	if ref != old {
		return field.ErrorList{field.Invalid(field.NewPath("roleRef"), ref, "cannot change roleRef")}
	}
	return nil
}

func validateClusterRole(r *rbacv1.ClusterRole) field.ErrorList {
	errs := validateRules(r.Rules, false)
	if r.AggregationRule == nil {
		return errs
	}
	selectors := field.NewPath("aggregationRule", "clusterRoleSelectors")
	if len(r.AggregationRule.ClusterRoleSelectors) == 0 {
		return append(errs, field.Required(selectors, "at least one clusterRoleSelector required if aggregationRule is non-nil"))
	}
	for i := range r.AggregationRule.ClusterRoleSelectors {
		selector := &r.AggregationRule.ClusterRoleSelectors[i]
		errs = append(errs, rules.Selector(selector, selectors.Index(i))...)
		if _, err := metav1.LabelSelectorAsSelector(selector); err != nil {
			errs = append(errs, field.Invalid(selectors.Index(i), selector, "invalid label selector."))
		}
	}
	return errs
}

func validateRules(list []rbacv1.PolicyRule, namespaced bool) (errs field.ErrorList) {
	for i, rule := range list {
		at := field.NewPath("rules").Index(i)
		if len(rule.Verbs) == 0 {
			errs = append(errs, field.Required(at.Child("verbs"), "verbs must contain at least one value"))
		}
		if len(rule.NonResourceURLs) > 0 {
			if namespaced {
				errs = append(errs, field.Invalid(at.Child("nonResourceURLs"), rule.NonResourceURLs, "namespaced rules cannot apply to non-resource URLs"))
			}
			if len(rule.APIGroups) > 0 || len(rule.Resources) > 0 || len(rule.ResourceNames) > 0 {
				errs = append(errs, field.Invalid(at.Child("nonResourceURLs"), rule.NonResourceURLs, "rules cannot apply to both regular resources and non-resource URLs"))
			}
			continue
		}
		if len(rule.APIGroups) == 0 {
			errs = append(errs, field.Required(at.Child("apiGroups"), "resource rules must supply at least one api group"))
		}
		if len(rule.Resources) == 0 {
			errs = append(errs, field.Required(at.Child("resources"), "resource rules must supply at least one resource"))
		}
	}
	return errs
}

func validateBinding(ref rbacv1.RoleRef, subjects []rbacv1.Subject, namespaced bool) (errs field.ErrorList) {
	at := field.NewPath("roleRef")
	if ref.APIGroup != rbacv1.GroupName {
		errs = append(errs, field.NotSupported(at.Child("apiGroup"), ref.APIGroup, []string{rbacv1.GroupName}))
	}
	kinds := []string{"ClusterRole"}
	if namespaced {
		kinds = []string{"Role", "ClusterRole"}
	}
	if !slices.Contains(kinds, ref.Kind) {
		errs = append(errs, field.NotSupported(at.Child("kind"), ref.Kind, kinds))
	}
	if ref.Name == "" {
		errs = append(errs, field.Required(at.Child("name"), ""))
	} else {
		errs = append(errs, rules.Messages(ref.Name, at.Child("name"), path.ValidatePathSegmentName(ref.Name, false))...)
	}
	for i := range subjects {
		errs = append(errs, validateSubject(&subjects[i], field.NewPath("subjects").Index(i), namespaced)...)
	}
	return errs
}

func validateSubject(s *rbacv1.Subject, at *field.Path, namespaced bool) (errs field.ErrorList) {
	if s.Name == "" {
		errs = append(errs, field.Required(at.Child("name"), ""))
	}
	group := rbacv1.GroupName
	switch s.Kind {
	case rbacv1.ServiceAccountKind:
		group = ""
		if s.Name != "" {
			errs = append(errs, rules.Subdomain(s.Name, at.Child("name"))...)
		}
		if !namespaced && s.Namespace == "" {
			errs = append(errs, field.Required(at.Child("namespace"), ""))
		}
	case rbacv1.UserKind, rbacv1.GroupKind:
	default:
		return append(errs, field.NotSupported(at.Child("kind"), s.Kind, []string{rbacv1.ServiceAccountKind, rbacv1.UserKind, rbacv1.GroupKind}))
	}
	if s.APIGroup != group {
		errs = append(errs, field.NotSupported(at.Child("apiGroup"), s.APIGroup, []string{group}))
	}
	return errs
}
