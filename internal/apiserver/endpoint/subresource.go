package endpoint

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"

	authenticationv1 "k8s.io/api/authentication/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver/rest"
)

var (
	scaleKind        = autoscalingv1.SchemeGroupVersion.WithKind("Scale")
	bindingKind      = corev1.SchemeGroupVersion.WithKind("Binding")
	evictionKind     = policyv1.SchemeGroupVersion.WithKind("Eviction")
	tokenRequestKind = authenticationv1.SchemeGroupVersion.WithKind("TokenRequest")

	bindingsGVR = corev1.SchemeGroupVersion.WithResource("bindings")
	podsGVR     = corev1.SchemeGroupVersion.WithResource("pods")
)

// HasSubresource reports whether a resource has a subresource.
func HasSubresource(res *api.Resource, name string) bool {
	switch name {
	case "status":
		return res.CopyStatus != nil
	case "scale":
		return res.Scale != nil
	}
	return slices.Contains(res.Subresources, name)
}

func (q *request) subresource() error {
	name := q.info.Subresource
	if q.info.Name == "" || !HasSubresource(q.res, name) {
		return notServed()
	}
	connects := false
	switch name {
	case "log", "exec", "attach", "portforward":
		connects = true
	case "proxy":
		return q.connect()
	}
	if q.info.Rest != "" && q.info.Rest != "/" {
		return notServed()
	}
	if connects {
		return q.connect()
	}
	if err := q.open(); err != nil {
		return err
	}
	switch name {
	case "scale":
		return q.scale()
	case "binding":
		return q.createSubresource(bindingKind)
	case "eviction":
		return q.createSubresource(evictionKind)
	case "token":
		return q.token()
	case "finalize":
		if q.info.Verb != "update" {
			return methodNotAllowed()
		}
		return q.update(name)
	}
	switch q.info.Verb { // the object itself, of which the subresource may write a part
	case "get":
		return q.get()
	case "update":
		return q.update(name)
	case "patch":
		return q.patch(name)
	}
	return methodNotAllowed()
}

// subresources is the storage's other half.
func (q *request) subresources() (rest.Subresources, error) {
	s, ok := q.storage.(rest.Subresources)
	if !ok {
		return nil, notServed()
	}
	return s, nil
}

func (q *request) createSubresource(gvk schema.GroupVersionKind) error {
	if q.info.Verb != "create" {
		return methodNotAllowed()
	}
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
	obj, err := q.decode(b, gvk, opts.FieldValidation)
	if err != nil {
		return err
	}
	return q.createDecoded(f, q.info.Name, q.info.Subresource, obj, opts)
}

func (q *request) createDecoded(f form, name, subresource string, obj runtime.Object, opts metav1.CreateOptions) error {
	s, err := q.subresources()
	if err != nil {
		return err
	}
	out, err := s.CreateSubresource(q.ctx, q.info.Namespace, name, subresource, obj, opts)
	if err != nil {
		return err
	}
	gvk := statusKind
	if _, ok := out.(*metav1.Status); !ok {
		kinds, _, err := q.h.cfg.Scheme.ObjectKinds(out)
		if err != nil {
			return fmt.Errorf("answer of %s/%s: %w", q.info.Resource, subresource, err)
		}
		gvk = kinds[0]
	}
	q.writeObject(f, http.StatusCreated, out, gvk)
	return nil
}

// legacyBinding is POST of a Binding to the namespace: old schedulers do that.
func (q *request) legacyBinding() error {
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
	obj, err := q.decode(b, bindingKind, opts.FieldValidation)
	if err != nil {
		return err
	}
	binding := obj.(*corev1.Binding)
	if binding.Name == "" {
		return apierrors.NewBadRequest("name is required: metadata.name of the binding is the pod's")
	}
	var ok bool
	if q.storage, ok = q.h.cfg.Registry.Storage(podsGVR); !ok {
		return notServed()
	}
	return q.createDecoded(f, binding.Name, "binding", binding, opts)
}

func (q *request) token() error {
	if q.info.Verb != "create" {
		return methodNotAllowed()
	}
	if q.h.cfg.TokenIssuer == nil {
		return notServed()
	}
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
	obj, err := q.decode(b, tokenRequestKind, opts.FieldValidation)
	if err != nil {
		return err
	}
	req := obj.(*authenticationv1.TokenRequest)
	if req.Name != "" && req.Name != q.info.Name {
		return apierrors.NewBadRequest(fmt.Sprintf("the name of the object (%s) does not match the name on the URL (%s)", req.Name, q.info.Name))
	}
	if req.Namespace != "" && req.Namespace != q.info.Namespace {
		return apierrors.NewBadRequest("the namespace of the provided object does not match the namespace sent on the request")
	}
	if a := q.h.cfg.Admission; a != nil {
		attrs := &rest.Attributes{
			Verb: rest.Create, Resource: q.res, Subresource: "token", Namespace: q.info.Namespace, Name: q.info.Name,
			Object: req, User: q.user, DryRun: len(opts.DryRun) > 0, Options: &opts,
		}
		if err := a.Admit(q.ctx, attrs); err != nil {
			return err
		}
		if err := a.Validate(q.ctx, attrs); err != nil {
			return err
		}
	}
	out, err := q.h.cfg.TokenIssuer.Issue(q.ctx, q.info.Namespace, q.info.Name, req)
	if err != nil {
		return err
	}
	q.writeObject(f, http.StatusCreated, out, tokenRequestKind)
	return nil
}

func (q *request) scale() error {
	f, err := q.negotiate(formOptions{})
	if err != nil {
		return err
	}
	s, err := q.subresources()
	if err != nil {
		return err
	}
	var out *autoscalingv1.Scale
	switch q.info.Verb {
	case "get":
		out, err = s.GetScale(q.ctx, q.info.Namespace, q.info.Name)
	case "update":
		out, err = q.updateScale(s)
	case "patch":
		kind, data, opts, rerr := q.readPatch()
		if rerr != nil {
			return rerr
		}
		out, err = s.PatchScale(q.ctx, q.info.Namespace, q.info.Name, kind, data, opts)
	default:
		return methodNotAllowed()
	}
	if err != nil {
		return err
	}
	q.writeObject(f, http.StatusOK, out, scaleKind)
	return nil
}

func (q *request) updateScale(s rest.Subresources) (*autoscalingv1.Scale, error) {
	opts, err := q.updateOptions()
	if err != nil {
		return nil, err
	}
	b, err := q.readBody(false)
	if err != nil {
		return nil, err
	}
	obj, err := q.decode(b, scaleKind, opts.FieldValidation)
	if err != nil {
		return nil, err
	}
	scale := obj.(*autoscalingv1.Scale)
	if scale.Name != "" && scale.Name != q.info.Name {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("the name of the object (%s) does not match the name on the URL (%s)", scale.Name, q.info.Name))
	}
	return s.UpdateScale(q.ctx, q.info.Namespace, q.info.Name, func(*autoscalingv1.Scale) (*autoscalingv1.Scale, error) {
		return scale.DeepCopy(), nil
	}, rest.UpdateOptions{UpdateOptions: opts})
}

// connect hands the request over to who speaks with the node.
func (q *request) connect() error {
	if q.h.cfg.Connecter == nil {
		return notServed()
	}
	switch q.info.Subresource {
	case "log":
		if q.info.Verb != "get" {
			return methodNotAllowed()
		}
	case "exec", "attach", "portforward":
		if q.info.Verb != "get" && q.info.Verb != "create" {
			return methodNotAllowed()
		}
	}
	if a := q.h.cfg.Admission; a != nil && q.info.Subresource != "log" {
		attrs := &rest.Attributes{
			Verb: rest.Connect, Resource: q.res, Subresource: q.info.Subresource,
			Namespace: q.info.Namespace, Name: q.info.Name, User: q.user, Object: connectOptions(&q.info, q.r.URL.Query()),
		}
		if err := a.Admit(q.ctx, attrs); err != nil {
			return err
		}
		if err := a.Validate(q.ctx, attrs); err != nil {
			return err
		}
	}
	defer q.h.metrics.open(q)()
	err := q.h.cfg.Connecter.Connect(&q.w, q.r.WithContext(q.ctx), &q.info)
	if err != nil && errors.Is(err, context.Canceled) && q.w.code != 0 {
		return nil
	}
	return err
}
