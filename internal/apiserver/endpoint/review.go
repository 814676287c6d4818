package endpoint

import (
	"fmt"
	"net/http"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/authentication/user"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver/auth"
)

// reviewed says that a resource is a question: its answer is not stored.
func reviewed(res *api.Resource) bool {
	switch res.GVR.Group {
	case authenticationv1.GroupName, authorizationv1.GroupName:
		return true
	}
	return false
}

func (q *request) review() error {
	f, err := q.negotiate(formOptions{})
	if err != nil {
		return err
	}
	opts, err := q.createOptions()
	if err != nil {
		return err
	}
	b, err := q.readBody(false)
	if err != nil {
		return err
	}
	obj, err := q.decode(b, q.res.GVK, opts.FieldValidation)
	if err != nil {
		return err
	}
	var answer error
	switch o := obj.(type) {
	case *authenticationv1.TokenReview:
		answer = q.reviewToken(o)
	case *authenticationv1.SelfSubjectReview:
		o.Status.UserInfo = userInfo(q.user)
		if o.CreationTimestamp.IsZero() {
			o.CreationTimestamp = metav1.Now()
		}
	case *authorizationv1.SubjectAccessReview:
		answer = q.reviewSubject(&o.Spec, &o.Status)
	case *authorizationv1.LocalSubjectAccessReview:
		answer = q.reviewLocal(o)
	case *authorizationv1.SelfSubjectAccessReview:
		answer = q.reviewSelf(o)
	case *authorizationv1.SelfSubjectRulesReview:
		answer = q.reviewRules(o)
	default:
		return notServed()
	}
	if answer != nil {
		return answer
	}
	q.writeObject(f, http.StatusCreated, obj, q.res.GVK)
	return nil
}

func (q *request) invalidReview(errs ...*field.Error) error {
	return apierrors.NewInvalid(q.res.GVK.GroupKind(), "", errs)
}

func (q *request) reviewToken(o *authenticationv1.TokenReview) error {
	if o.Spec.Token == "" {
		return apierrors.NewBadRequest("token is required for TokenReview in authentication")
	}
	if q.h.cfg.TokenReviewer == nil {
		return apierrors.NewInternalError(fmt.Errorf("no token authenticator is configured"))
	}
	who, audiences, ok, err := q.h.cfg.TokenReviewer.Authenticate(o.Spec.Token, o.Spec.Audiences)
	o.Status = authenticationv1.TokenReviewStatus{Authenticated: ok && err == nil}
	if err != nil {
		o.Status.Error = err.Error()
	}
	if o.Status.Authenticated {
		o.Status.User = userInfo(&user.DefaultInfo{
			Name: who.GetName(), UID: who.GetUID(), Extra: who.GetExtra(),
			Groups: withAuthenticated(who.GetName(), append([]string(nil), who.GetGroups()...)),
		})
		o.Status.Audiences = audiences
	}
	return nil
}

func userInfo(u user.Info) authenticationv1.UserInfo {
	info := authenticationv1.UserInfo{Username: u.GetName(), UID: u.GetUID(), Groups: u.GetGroups()}
	if extra := u.GetExtra(); len(extra) > 0 {
		info.Extra = make(map[string]authenticationv1.ExtraValue, len(extra))
		for k, v := range extra {
			info.Extra[k] = v
		}
	}
	return info
}

func (q *request) reviewSubject(spec *authorizationv1.SubjectAccessReviewSpec, status *authorizationv1.SubjectAccessReviewStatus) error {
	path := field.NewPath("spec")
	if spec.User == "" && len(spec.Groups) == 0 {
		return q.invalidReview(field.Invalid(path.Child("user"), spec.User, "at least one of user or group must be specified"))
	}
	who := &user.DefaultInfo{Name: spec.User, UID: spec.UID, Groups: spec.Groups}
	if len(spec.Extra) > 0 {
		who.Extra = make(map[string][]string, len(spec.Extra))
		for k, v := range spec.Extra {
			who.Extra[k] = v
		}
	}
	return q.answerAccess(who, spec.ResourceAttributes, spec.NonResourceAttributes, status)
}

func (q *request) reviewLocal(o *authorizationv1.LocalSubjectAccessReview) error {
	path := field.NewPath("spec")
	switch r := o.Spec.ResourceAttributes; {
	case r == nil:
		return q.invalidReview(field.Invalid(path.Child("resourceAttributes"), nil, "must be specified"))
	case r.Namespace != q.info.Namespace:
		return q.invalidReview(field.Invalid(path.Child("resourceAttributes", "namespace"), r.Namespace, "must match metadata.namespace"))
	case o.Spec.NonResourceAttributes != nil:
		return q.invalidReview(field.Invalid(path.Child("nonResourceAttributes"), o.Spec.NonResourceAttributes, "disallowed on this kind of request"))
	case o.Namespace != "" && o.Namespace != q.info.Namespace:
		return apierrors.NewBadRequest("the namespace of the provided object does not match the namespace sent on the request")
	}
	o.Namespace = q.info.Namespace
	return q.reviewSubject(&o.Spec, &o.Status)
}

func (q *request) reviewSelf(o *authorizationv1.SelfSubjectAccessReview) error {
	return q.answerAccess(q.user, o.Spec.ResourceAttributes, o.Spec.NonResourceAttributes, &o.Status)
}

func (q *request) answerAccess(who user.Info, r *authorizationv1.ResourceAttributes, n *authorizationv1.NonResourceAttributes, status *authorizationv1.SubjectAccessReviewStatus) error {
	path := field.NewPath("spec")
	if r != nil && n != nil {
		return q.invalidReview(field.Invalid(path.Child("nonResourceAttributes"), n, "cannot be specified in combination with resourceAttributes"))
	}
	if r == nil && n == nil {
		return q.invalidReview(field.Invalid(path.Child("resourceAttributes"), r, "exactly one of nonResourceAttributes or resourceAttributes must be specified"))
	}
	a := auth.Attributes{User: who}
	if r != nil {
		a.Verb, a.Namespace, a.APIGroup, a.APIVersion = r.Verb, r.Namespace, r.Group, r.Version
		a.Resource, a.Subresource, a.Name, a.ResourceRequest = r.Resource, r.Subresource, r.Name, true
	} else {
		a.Verb, a.Path = n.Verb, n.Path
	}
	allowed, reason, err := q.h.cfg.Authorizer.Authorize(q.ctx, a)
	*status = authorizationv1.SubjectAccessReviewStatus{Allowed: allowed, Reason: reason}
	if err != nil {
		status.EvaluationError = err.Error()
	}
	return nil
}

func (q *request) reviewRules(o *authorizationv1.SelfSubjectRulesReview) error {
	if o.Spec.Namespace == "" {
		return apierrors.NewBadRequest("no namespace on request")
	}
	lister, ok := q.h.cfg.Authorizer.(RuleLister)
	if !ok {
		o.Status = authorizationv1.SubjectRulesReviewStatus{
			ResourceRules: []authorizationv1.ResourceRule{}, NonResourceRules: []authorizationv1.NonResourceRule{},
			Incomplete: true, EvaluationError: "the authorizer does not support rule resolution",
		}
		return nil
	}
	rules, err := lister.RulesFor(q.ctx, q.user, o.Spec.Namespace)
	o.Status = authorizationv1.SubjectRulesReviewStatus{
		ResourceRules: []authorizationv1.ResourceRule{}, NonResourceRules: []authorizationv1.NonResourceRule{},
	}
	if err != nil {
		o.Status.Incomplete = true
		o.Status.EvaluationError = err.Error()
	}
	for i := range rules {
		r := &rules[i]
		if len(r.Resources) > 0 {
			o.Status.ResourceRules = append(o.Status.ResourceRules, authorizationv1.ResourceRule{
				Verbs: r.Verbs, APIGroups: r.APIGroups, Resources: r.Resources, ResourceNames: r.ResourceNames,
			})
		}
		if len(r.NonResourceURLs) > 0 {
			o.Status.NonResourceRules = append(o.Status.NonResourceRules, authorizationv1.NonResourceRule{
				Verbs: r.Verbs, NonResourceURLs: r.NonResourceURLs,
			})
		}
	}
	return nil
}
