// Package authorization holds the rules of the API group authorization.k8s.io,
// whose objects are answered and not stored. Answering them is the server's work.
package authorization

import (
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

// Resources returns the resources of the group.
func Resources() []*api.Resource {
	gv := authorizationv1.SchemeGroupVersion
	local := rules.Review[authorizationv1.LocalSubjectAccessReview](gv, "localsubjectaccessreviews")
	local.Namespaced = true
	return []*api.Resource{
		api.Kind[*authorizationv1.LocalSubjectAccessReview]{
			Resource: local,
			Validate: validateLocal,
		}.Erase(),
		api.Kind[*authorizationv1.SelfSubjectAccessReview]{
			Resource: rules.Review[authorizationv1.SelfSubjectAccessReview](gv, "selfsubjectaccessreviews"),
			Validate: func(r *authorizationv1.SelfSubjectAccessReview) field.ErrorList {
				return append(noMetadata(&r.ObjectMeta), validateAttributes(r.Spec.ResourceAttributes, r.Spec.NonResourceAttributes, field.NewPath("spec"))...)
			},
		}.Erase(),
		api.Kind[*authorizationv1.SelfSubjectRulesReview]{
			Resource: rules.Review[authorizationv1.SelfSubjectRulesReview](gv, "selfsubjectrulesreviews"),
			Validate: func(r *authorizationv1.SelfSubjectRulesReview) field.ErrorList {
				return rules.Required(r.Spec.Namespace, field.NewPath("spec", "namespace"), "no namespace on request")
			},
		}.Erase(),
		api.Kind[*authorizationv1.SubjectAccessReview]{
			Resource: rules.Review[authorizationv1.SubjectAccessReview](gv, "subjectaccessreviews"),
			Validate: func(r *authorizationv1.SubjectAccessReview) field.ErrorList {
				return append(noMetadata(&r.ObjectMeta), validateSpec(&r.Spec, field.NewPath("spec"))...)
			},
		}.Erase(),
	}
}

// noMetadata refuses metadata on what has no life of its own; managed fields and the namespace of the request aside.
func noMetadata(m *metav1.ObjectMeta) field.ErrorList {
	rest := *m
	rest.ManagedFields, rest.Namespace = nil, ""
	rest.CreationTimestamp, rest.UID = metav1.Time{}, "" // set by the server itself
	if !rules.Same(rest, metav1.ObjectMeta{}) {
		return field.ErrorList{field.Invalid(field.NewPath("metadata"), m, "must be empty except for managedFields")}
	}
	return nil
}

func validateLocal(r *authorizationv1.LocalSubjectAccessReview) field.ErrorList {
	spec := field.NewPath("spec")
	errs := append(noMetadata(&r.ObjectMeta), validateSpec(&r.Spec, spec)...)
	if a := r.Spec.ResourceAttributes; a != nil && a.Namespace != r.Namespace {
		errs = append(errs, field.Invalid(spec.Child("resourceAttributes").Child("namespace"), a.Namespace, "must match metadata.namespace"))
	}
	if r.Spec.NonResourceAttributes != nil {
		errs = append(errs, field.Invalid(spec.Child("nonResourceAttributes"), r.Spec.NonResourceAttributes, "disallowed on this kind of request"))
	}
	return errs
}

func validateSpec(s *authorizationv1.SubjectAccessReviewSpec, spec *field.Path) field.ErrorList {
	errs := validateAttributes(s.ResourceAttributes, s.NonResourceAttributes, spec)
	if s.User == "" && len(s.Groups) == 0 {
		errs = append(errs, field.Invalid(spec.Child("user"), s.User, "at least one of user or group must be specified"))
	}
	return errs
}

func validateAttributes(r *authorizationv1.ResourceAttributes, n *authorizationv1.NonResourceAttributes, spec *field.Path) (errs field.ErrorList) {
	switch {
	case r != nil && n != nil:
		errs = append(errs, field.Invalid(spec.Child("nonResourceAttributes"), n, "cannot be specified in combination with resourceAttributes"))
	case r == nil && n == nil:
		errs = append(errs, field.Invalid(spec.Child("resourceAttributes"), r, "exactly one of nonResourceAttributes or resourceAttributes must be specified"))
	}
	if r == nil {
		return errs
	}
	at := spec.Child("resourceAttributes")
	if f := r.FieldSelector; f != nil {
		errs = append(errs, validateSelector(f.RawSelector, len(f.Requirements), at.Child("fieldSelector"))...)
	}
	if l := r.LabelSelector; l != nil {
		errs = append(errs, validateSelector(l.RawSelector, len(l.Requirements), at.Child("labelSelector"))...)
	}
	return errs
}

func validateSelector(raw string, requirements int, at *field.Path) (errs field.ErrorList) {
	switch {
	case raw != "" && requirements > 0:
		errs = append(errs, field.Invalid(at.Child("rawSelector"), raw, "may not specified at the same time as requirements"))
	case raw == "" && requirements == 0:
		errs = append(errs, field.Required(at.Child("requirements"), "when "+at.String()+" is specified, requirements or rawSelector is required"))
	}
	return errs
}
