package policy

import (
	"errors"
	"fmt"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/proa-dev/proa/internal/apiserver/admission/request"
)

var namespaces = schema.GroupResource{Resource: "namespaces"}

// bound returns the parameters of a binding that is in force for a write; none:
// it is not.
func bound(cluster Cluster, r *request.Request, kind *admissionregistrationv1.ParamKind, b *binding) ([]runtime.Object, error) {
	if b.broken != nil {
		return nil, b.broken
	}
	if b.criteria != nil {
		if t, err := r.Match(b.criteria); t == nil || err != nil {
			return nil, err
		}
	}
	return params(cluster, kind, b.paramRef, r.Scope())
}

// params returns the parameters with which a binding's policy is evaluated, once
// for each: a nil one when there is no parameter, none when they may be missing.
func params(cluster Cluster, kind *admissionregistrationv1.ParamKind, ref *admissionregistrationv1.ParamRef, namespace string) ([]runtime.Object, error) {
	if kind == nil || ref == nil {
		return []runtime.Object{nil}, nil
	}
	gv, err := schema.ParseGroupVersion(kind.APIVersion)
	if err != nil {
		return nil, fmt.Errorf("paramKind: %w", err)
	}
	gvk := gv.WithKind(kind.Kind)
	res, ok := cluster.OfKind(gvk)
	if !ok {
		return nil, fmt.Errorf("paramKind kind `%v` not known", kind.String())
	}
	switch {
	case !res.Namespaced && ref.Namespace != "":
		return nil, errors.New("paramRef.namespace must not be provided for a cluster-scoped `paramKind`")
	case !res.Namespaced:
		namespace = ""
	case ref.Namespace != "":
		namespace = ref.Namespace
	case namespace == "":
		return nil, errors.New("cannot use namespaced paramRef in policy binding that matches cluster-scoped resources")
	}
	var out []runtime.Object
	switch {
	case ref.Name != "" && ref.Selector != nil:
		return nil, errors.New("paramRef.name and paramRef.selector are mutually exclusive")
	case ref.Name != "":
		if obj, ok := cluster.Get(res.GVR, namespace, ref.Name); ok {
			out = append(out, request.WithKind(obj, gvk))
		}
	case ref.Selector != nil:
		selector, err := metav1.LabelSelectorAsSelector(ref.Selector)
		if err != nil {
			return nil, err
		}
		for _, obj := range cluster.List(res.GVR, namespace) {
			if selector.Matches(labels.Set(obj.GetLabels())) {
				out = append(out, request.WithKind(obj, gvk))
			}
		}
	default:
		return nil, errors.New("one of name or selector must be provided")
	}
	if len(out) == 0 && ref.ParameterNotFoundAction != nil && *ref.ParameterNotFoundAction == admissionregistrationv1.DenyAction {
		return nil, errors.New("no params found for policy binding with `Deny` parameterNotFoundAction")
	}
	return out, nil
}
