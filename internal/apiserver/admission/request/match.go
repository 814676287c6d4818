package request

import (
	"fmt"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/proa-dev/proa/internal/api"
)

// Rule is a rule of a configuration, for the objects of some names only when it has names.
type Rule struct {
	admissionv1.RuleWithOperations
	Names []string
}

// Criteria are the conditions under which a webhook or policy concerns a write.
type Criteria struct {
	Rules, Exclude    []Rule
	Any               bool // whatever the rules
	Equivalent        bool
	Namespace, Object labels.Selector
}

// NewCriteria parses the selectors of a configuration (nil: everything).
func NewCriteria(rules []Rule, equivalent bool, namespace, object *metav1.LabelSelector) (*Criteria, error) {
	c := &Criteria{Rules: rules, Equivalent: equivalent, Namespace: labels.Everything(), Object: labels.Everything()}
	for _, s := range []struct {
		from *metav1.LabelSelector
		to   *labels.Selector
	}{{namespace, &c.Namespace}, {object, &c.Object}} {
		if s.from == nil {
			continue
		}
		parsed, err := metav1.LabelSelectorAsSelector(s.from)
		if err != nil {
			return nil, fmt.Errorf("selector: %w", err)
		}
		*s.to = parsed
	}
	return c, nil
}

// Exempt reports whether a write is one of the objects that configure admission
// itself: no configuration may stop its own repair.
func (r *Request) Exempt() bool { return Exempt(r.Resource) }

// Exempt reports whether a resource configures admission.
func Exempt(res *api.Resource) bool {
	return res.GVR.Group == admissionv1.GroupName
}

// Match returns the target as which a write concerns the criteria; nil: it does not.
func (r *Request) Match(c *Criteria) (*Target, error) {
	in, nsErr := r.inNamespace(c.Namespace)
	if !in && nsErr == nil {
		return nil, nil
	}
	if !c.Object.Empty() && !labelled(r.Object, c.Object) && (r.Old == nil || !labelled(r.Old, c.Object)) {
		return nil, nil
	}
	if t := r.find(c.Exclude, c.Equivalent); t != nil {
		return nil, nil
	}
	t := &Target{Resource: r.Resource.GVR, Kind: r.kind}
	if !c.Any {
		if t = r.find(c.Rules, c.Equivalent); t == nil {
			return nil, nil
		}
	}
	return t, nsErr
}

// find returns the target of the first rule that matches the request itself, or
// else, if that is asked for, an equivalent of its resource.
func (r *Request) find(rules []Rule, equivalent bool) *Target {
	if len(rules) == 0 {
		return nil
	}
	for i := range rules {
		if r.matches(&rules[i], r.Resource.GVR) {
			return &Target{Resource: r.Resource.GVR, Kind: r.kind}
		}
	}
	if !equivalent {
		return nil
	}
	if !r.searched {
		r.equivalents, r.searched = r.cluster.Equivalents(r.Resource.GVR), true
	}
	for i := range rules {
		for _, res := range r.equivalents {
			if !r.matches(&rules[i], res.GVR) {
				continue
			}
			if r.kind != r.Resource.GVK { // a subresource's kind is that of all versions
				return &Target{Resource: res.GVR, Kind: r.kind}
			}
			return &Target{Resource: res.GVR, Kind: res.GVK, served: res}
		}
	}
	return nil
}

func (r *Request) matches(rule *Rule, gvr schema.GroupVersionResource) bool {
	if len(rule.Names) > 0 && !slices.Contains(rule.Names, r.Name) {
		return false
	}
	if s := rule.Scope; s != nil && *s != admissionv1.AllScopes {
		cluster := gvr == namespacesGVR || r.Scope() == ""
		if cluster != (*s == admissionv1.ClusterScope) {
			return false
		}
	}
	if !slices.ContainsFunc(rule.Operations, func(o admissionv1.OperationType) bool {
		return o == admissionv1.OperationAll || string(o) == string(r.Verb)
	}) {
		return false
	}
	if !has(rule.APIGroups, gvr.Group) || !has(rule.APIVersions, gvr.Version) {
		return false
	}
	return slices.ContainsFunc(rule.Resources, func(s string) bool {
		resource, sub, _ := strings.Cut(s, "/")
		return (resource == "*" || resource == gvr.Resource) && (sub == "*" || sub == r.Subresource)
	})
}

func has(list []string, s string) bool {
	for _, x := range list {
		if x == "*" || x == s {
			return true
		}
	}
	return false
}

// inNamespace matches the namespace's labels; what is of the cluster matches any selector.
func (r *Request) inNamespace(s labels.Selector) (bool, error) {
	if s.Empty() || r.Scope() == "" && r.Resource.GVR.Resource != "namespaces" {
		return true, nil
	}
	if r.Resource.GVR == namespacesGVR && r.Subresource == "" && r.Object != nil {
		return labelled(r.Object, s), nil // the newest labels are those of the write
	}
	ns, ok := r.cluster.Get(namespacesGVR, "", r.Scope())
	if !ok {
		return false, apierrors.NewNotFound(namespacesGVR.GroupResource(), r.Scope())
	}
	return s.Matches(labels.Set(ns.GetLabels())), nil
}

func labelled(obj runtime.Object, s labels.Selector) bool {
	if obj == nil {
		return false
	}
	m, err := meta.Accessor(obj)
	return err == nil && s.Matches(labels.Set(m.GetLabels()))
}
