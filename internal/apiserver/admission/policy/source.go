// Package policy evaluates ValidatingAdmissionPolicies and
// MutatingAdmissionPolicies for a write (KEP-3488, KEP-3962). A policy is
// compiled once for each of its states; a cluster without any pays an atomic load.
package policy

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/apiserver/pkg/authorization/authorizer"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver/admission/expression"
	"github.com/proa-dev/proa/internal/apiserver/admission/request"
)

// Cluster is what has to be known of the cluster. Objects are shared: read only.
type Cluster interface {
	request.Cluster
	List(gvr schema.GroupVersionResource, namespace string) []api.Object
	// OfKind returns the resource of a kind.
	OfKind(gvk schema.GroupVersionKind) (*api.Resource, bool)
	// Types returns how objects of a resource are merged; nil: it is not served.
	Types(gvr schema.GroupVersionResource) managedfields.TypeConverter
}

// Config is what policies are evaluated with.
type Config struct {
	Cluster Cluster
	// Version tells changes of a resource (see admission.Versioned).
	Version      func(gvr schema.GroupVersionResource) func() (any, int)
	Environments *expression.Environments
	Authorizer   authorizer.UnconditionalAuthorizer
}

var (
	validatingGVR         = admissionregistrationv1.SchemeGroupVersion.WithResource("validatingadmissionpolicies")
	validatingBindingsGVR = admissionregistrationv1.SchemeGroupVersion.WithResource("validatingadmissionpolicybindings")
	mutatingGVR           = admissionregistrationv1.SchemeGroupVersion.WithResource("mutatingadmissionpolicies")
	mutatingBindingsGVR   = admissionregistrationv1.SchemeGroupVersion.WithResource("mutatingadmissionpolicybindings")
)

// policy is a policy with what was compiled of it.
type policy[E any] struct {
	name       string
	ignore     bool // its failures are ignored
	criteria   *request.Criteria
	broken     error // why it cannot be evaluated
	paramKind  *admissionregistrationv1.ParamKind
	conditions *expression.Conditions
	evaluator  E
	bindings   []*binding
}

// binding says where a policy is in force.
type binding struct {
	policy, name string
	criteria     *request.Criteria // nil: everywhere
	broken       error
	paramRef     *admissionregistrationv1.ParamRef
	actions      []admissionregistrationv1.ValidationAction
}

// source compiles the policies of one resource when they have changed.
type source[E any] struct {
	cfg                        Config
	policiesGVR, bindingsGVR   schema.GroupVersionResource
	policyVersion, bindVersion func() (any, int)
	compile                    func(api.Object) *policy[E]
	parse                      func(api.Object) *binding
	mu                         sync.Mutex
	current                    atomic.Pointer[set[E]]
	compiled                   map[string]*policy[E] // by UID and resourceVersion
}

type set[E any] struct {
	policyVersion, bindVersion any
	policies                   []*policy[E]
}

func newSource[E any](cfg Config, policies, bindings schema.GroupVersionResource, compile func(api.Object) *policy[E], parse func(api.Object) *binding) *source[E] {
	return &source[E]{cfg: cfg, policiesGVR: policies, bindingsGVR: bindings, policyVersion: cfg.Version(policies), bindVersion: cfg.Version(bindings), compile: compile, parse: parse}
}

// active reports whether any policy can be in force.
func (s *source[E]) active() bool {
	if _, n := s.bindVersion(); n == 0 {
		return false
	}
	_, n := s.policyVersion()
	return n > 0
}

// policies returns those that are bound, sorted by name.
func (s *source[E]) policies() []*policy[E] {
	if !s.active() {
		return nil
	}
	fresh := func() *set[E] {
		c := s.current.Load()
		if c == nil {
			return nil
		}
		pv, _ := s.policyVersion()
		bv, _ := s.bindVersion()
		if c.policyVersion != pv || c.bindVersion != bv {
			return nil
		}
		return c
	}
	if c := fresh(); c != nil {
		return c.policies
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := fresh(); c != nil {
		return c.policies
	}
	next := &set[E]{}
	next.policyVersion, _ = s.policyVersion() // before the lists: they have at least this
	next.bindVersion, _ = s.bindVersion()
	bound := map[string][]*binding{}
	for _, obj := range sorted(s.cfg.Cluster.List(s.bindingsGVR, "")) {
		b := s.parse(obj)
		bound[b.policy] = append(bound[b.policy], b)
	}
	kept := map[string]*policy[E]{}
	for _, obj := range sorted(s.cfg.Cluster.List(s.policiesGVR, "")) {
		if len(bound[obj.GetName()]) == 0 {
			continue
		}
		key := string(obj.GetUID()) + "@" + obj.GetResourceVersion()
		p := s.compiled[key]
		if p == nil {
			p = s.compile(obj)
		}
		kept[key] = p
		copied := *p
		copied.bindings = bound[obj.GetName()]
		next.policies = append(next.policies, &copied)
	}
	s.compiled = kept
	s.current.Store(next)
	return next.policies
}

func sorted(list []api.Object) []api.Object {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b api.Object) int { return strings.Compare(a.GetName(), b.GetName()) })
	return list
}

func criteria(m *admissionregistrationv1.MatchResources) (*request.Criteria, error) {
	named := func(list []admissionregistrationv1.NamedRuleWithOperations) []request.Rule {
		out := make([]request.Rule, len(list))
		for i := range list {
			out[i] = request.Rule{RuleWithOperations: list[i].RuleWithOperations, Names: list[i].ResourceNames}
		}
		return out
	}
	equivalent := m.MatchPolicy != nil && *m.MatchPolicy == admissionregistrationv1.Equivalent
	c, err := request.NewCriteria(named(m.ResourceRules), equivalent, m.NamespaceSelector, m.ObjectSelector)
	if err != nil {
		return nil, err
	}
	c.Exclude = named(m.ExcludeResourceRules)
	c.Any = len(m.ResourceRules) == 0
	return c, nil
}

func newBinding(name, policy string, m *admissionregistrationv1.MatchResources, ref *admissionregistrationv1.ParamRef) *binding {
	b := &binding{name: name, policy: policy, paramRef: ref}
	if m != nil {
		b.criteria, b.broken = criteria(m)
	}
	return b
}
