// Package quota says what the objects of a namespace use of a ResourceQuota: for
// each resource which names of a quota's hard list it counts towards, when a
// write is charged, and how much an object takes. Admission charges by it before
// a write, the controller recalculates by it. It keeps no state and writes nothing.
//
// The names and scopes are those of the page "Resource Quotas" of Kubernetes'
// documentation.
package quota

import (
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/selection"

	"github.com/proa-dev/proa/internal/api"
)

// Reader looks up what else is in the cluster. Objects are shared: read only.
type Reader interface {
	Get(gvr schema.GroupVersionResource, namespace, name string) (api.Object, bool)
	List(gvr schema.GroupVersionResource, namespace string) []api.Object
}

// Write is what admission knows of a write.
type Write struct {
	Update      bool // else a create
	Subresource string
	Object, Old api.Object
}

// Evaluator measures the objects of one resource.
type Evaluator interface {
	// Charges reports whether a write can change what its object uses.
	Charges(w Write) bool
	// Counts returns those of names that the resource counts towards.
	Counts(names []corev1.ResourceName) []corev1.ResourceName
	// InScope reports whether an object is in a scope.
	InScope(scope corev1.ScopedResourceSelectorRequirement, obj api.Object) (bool, error)
	// Require returns why an object cannot be charged for names.
	Require(names []corev1.ResourceName, obj api.Object) error
	// Usage is what one object takes.
	Usage(obj api.Object) corev1.ResourceList
}

// Evaluators knows how each resource is measured.
type Evaluators struct {
	Reader Reader
	Now    func() time.Time
}

// ignored are resources that are not stored, or were never counted.
var ignored = map[schema.GroupResource]bool{
	{Resource: "bindings"}:                                                 true,
	{Resource: "componentstatuses"}:                                        true,
	{Resource: "events"}:                                                   true,
	{Group: "events.k8s.io", Resource: "events"}:                           true,
	{Group: "authentication.k8s.io", Resource: "tokenreviews"}:             true,
	{Group: "authentication.k8s.io", Resource: "selfsubjectreviews"}:       true,
	{Group: "authorization.k8s.io", Resource: "subjectaccessreviews"}:      true,
	{Group: "authorization.k8s.io", Resource: "selfsubjectaccessreviews"}:  true,
	{Group: "authorization.k8s.io", Resource: "localsubjectaccessreviews"}: true,
	{Group: "authorization.k8s.io", Resource: "selfsubjectrulesreviews"}:   true,
}

// Of returns the evaluator of a resource; nil when nothing of it is counted.
func (e Evaluators) Of(gr schema.GroupResource) Evaluator {
	if ignored[gr] {
		return nil
	}
	switch gr {
	case schema.GroupResource{Resource: "pods"}:
		return pods{e.Now}
	case schema.GroupResource{Resource: "services"}:
		return services{}
	case schema.GroupResource{Resource: "persistentvolumeclaims"}:
		return volumeClaims{}
	case schema.GroupResource{Group: "resource.k8s.io", Resource: "resourceclaims"}:
		return deviceClaims{e}
	}
	return objects{name: CountName(gr), alias: aliases[gr]}
}

// Special are the resources that are counted by more than their number of objects.
func Special() []schema.GroupVersionResource {
	return []schema.GroupVersionResource{
		{Version: "v1", Resource: "pods"}, {Version: "v1", Resource: "services"}, {Version: "v1", Resource: "persistentvolumeclaims"},
		{Group: "resource.k8s.io", Version: "v1", Resource: "resourceclaims"},
	}
}

// CountName is the name under which a quota limits how many objects there are.
func CountName(gr schema.GroupResource) corev1.ResourceName {
	if gr.Group == "" {
		return corev1.ResourceName("count/" + gr.Resource)
	}
	return corev1.ResourceName("count/" + gr.Resource + "." + gr.Group)
}

// aliases are the names of object counts from before count/.
var aliases = map[schema.GroupResource]corev1.ResourceName{
	{Resource: "configmaps"}:             corev1.ResourceConfigMaps,
	{Resource: "resourcequotas"}:         corev1.ResourceQuotas,
	{Resource: "replicationcontrollers"}: corev1.ResourceReplicationControllers,
	{Resource: "secrets"}:                corev1.ResourceSecrets,
}

// objects counts objects and nothing else.
type objects struct{ name, alias corev1.ResourceName }

func (o objects) Charges(w Write) bool { return w.Subresource == "" && !w.Update }

func (o objects) Counts(names []corev1.ResourceName) (out []corev1.ResourceName) {
	for _, name := range names {
		if name == o.name || o.alias != "" && name == o.alias {
			out = append(out, name)
		}
	}
	return out
}

func (objects) InScope(corev1.ScopedResourceSelectorRequirement, api.Object) (bool, error) {
	return false, nil
}
func (objects) Require([]corev1.ResourceName, api.Object) error { return nil }

func (o objects) Usage(api.Object) corev1.ResourceList {
	out := corev1.ResourceList{o.name: one()}
	if o.alias != "" {
		out[o.alias] = one()
	}
	return out
}

// scopes are a quota's scopes, those of its selector included.
func scopes(q *corev1.ResourceQuota) []corev1.ScopedResourceSelectorRequirement {
	out := make([]corev1.ScopedResourceSelectorRequirement, 0, len(q.Spec.Scopes))
	for _, s := range q.Spec.Scopes {
		out = append(out, corev1.ScopedResourceSelectorRequirement{ScopeName: s, Operator: corev1.ScopeSelectorOpExists})
	}
	if q.Spec.ScopeSelector != nil {
		out = append(out, q.Spec.ScopeSelector.MatchExpressions...)
	}
	return out
}

func inScopes(e Evaluator, q *corev1.ResourceQuota, obj api.Object) (bool, error) {
	for _, s := range scopes(q) {
		in, err := e.InScope(s, obj)
		if err != nil || !in {
			return false, err
		}
	}
	return true, nil
}

// hasValue matches the value that an object has for a scope ("": none).
func hasValue(s corev1.ScopedResourceSelectorRequirement, values ...string) (bool, error) {
	if s.Operator == corev1.ScopeSelectorOpExists {
		return len(values) > 0, nil
	}
	ops := map[corev1.ScopeSelectorOperator]selection.Operator{corev1.ScopeSelectorOpIn: selection.In, corev1.ScopeSelectorOpNotIn: selection.NotIn,
		corev1.ScopeSelectorOpDoesNotExist: selection.DoesNotExist}
	op, ok := ops[s.Operator]
	if !ok {
		return false, fmt.Errorf("%q is not a valid scope selector operator", s.Operator)
	}
	r, err := labels.NewRequirement(string(s.ScopeName), op, s.Values)
	if err != nil {
		return false, fmt.Errorf("scope %s: %w", s.ScopeName, err)
	}
	if len(values) == 0 {
		return r.Matches(labels.Set{}), nil
	}
	return slices.ContainsFunc(values, func(v string) bool { return r.Matches(labels.Set{string(s.ScopeName): v}) }), nil
}

// Sum is what objs use of the names of a quota's hard list that e counts. Every
// such name is in the result.
func Sum(e Evaluator, q *corev1.ResourceQuota, objs []api.Object) (corev1.ResourceList, error) {
	counted := e.Counts(namesOf(q.Spec.Hard))
	if len(counted) == 0 {
		return nil, nil
	}
	out := corev1.ResourceList{}
	for _, name := range counted {
		out[name] = zero()
	}
	for _, obj := range objs {
		in, err := inScopes(e, q, obj)
		if err != nil {
			return nil, err
		}
		if in {
			addTo(out, pick(e.Usage(obj), counted))
		}
	}
	return out, nil
}

// Differs reports whether a change of an object changes what it uses of q.
func Differs(e Evaluator, q *corev1.ResourceQuota, now, was api.Object) bool {
	counted := e.Counts(namesOf(q.Spec.Hard))
	if len(counted) == 0 {
		return false
	}
	in, err1 := inScopes(e, q, now)
	before, err2 := inScopes(e, q, was)
	if err1 != nil || err2 != nil || in != before {
		return true
	}
	return in && !Equal(pick(e.Usage(now), counted), pick(e.Usage(was), counted))
}
