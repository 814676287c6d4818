// Package webhook asks the webhooks of Mutating- and
// ValidatingWebhookConfigurations about a write (admission.k8s.io AdmissionReview,
// v1 and v1beta1). Who is called how is parsed once for each state of the
// configurations; a cluster without any pays an atomic load.
package webhook

import (
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authorization/authorizer"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver/admission/callout"
	"github.com/proa-dev/proa/internal/apiserver/admission/expression"
	"github.com/proa-dev/proa/internal/apiserver/admission/request"
)

var (
	mutatingGVR   = admissionregistrationv1.SchemeGroupVersion.WithResource("mutatingwebhookconfigurations")
	validatingGVR = admissionregistrationv1.SchemeGroupVersion.WithResource("validatingwebhookconfigurations")
)

// Cluster is what has to be known of the cluster.
type Cluster interface {
	request.Cluster
	List(gvr schema.GroupVersionResource, namespace string) []api.Object
}

// Config is what webhooks are asked with.
type Config struct {
	Cluster Cluster
	// Version tells changes of a resource (see admission.Versioned).
	Version      func(gvr schema.GroupVersionResource) func() (any, int)
	Client       *callout.Client
	Environments *expression.Environments
	Authorizer   authorizer.UnconditionalAuthorizer
	Metrics      *Metrics
	Logger       *slog.Logger
}

// hook is one webhook of a configuration.
type hook struct {
	id, name, configuration string
	index                   int // among those of all configurations
	target                  callout.Target
	criteria                *request.Criteria
	broken                  error // the criteria cannot be parsed
	conditions              *expression.Conditions
	ignore                  bool
	timeout                 time.Duration
	sideEffects             *admissionregistrationv1.SideEffectClass
	versions                []string
	reinvoke                bool
}

// set is the parsed state of a resource.
type set struct {
	version any
	hooks   []*hook
}

// source parses the configurations of one resource when they have changed.
type source struct {
	cfg     Config
	gvr     schema.GroupVersionResource
	version func() (any, int)
	parse   func(obj api.Object) []*hook

	mu      sync.Mutex
	current atomic.Pointer[set]
	parsed  map[string][]*hook // by UID and resourceVersion
}

func newSource(cfg Config, gvr schema.GroupVersionResource, parse func(api.Object) []*hook) *source {
	return &source{cfg: cfg, gvr: gvr, version: cfg.Version(gvr), parse: parse}
}

// active reports whether there is any configuration.
func (s *source) active() bool {
	_, n := s.version()
	return n > 0
}

func (s *source) hooks() []*hook {
	version, n := s.version()
	if n == 0 {
		return nil
	}
	if c := s.current.Load(); c != nil && c.version == version {
		return c.hooks
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	version, _ = s.version() // before the list: it has at least this
	if c := s.current.Load(); c != nil && c.version == version {
		return c.hooks
	}
	list := slices.Clone(s.cfg.Cluster.List(s.gvr, ""))
	slices.SortFunc(list, func(a, b api.Object) int { return strings.Compare(a.GetName(), b.GetName()) })
	next := &set{version: version}
	parsed := make(map[string][]*hook, len(list))
	for _, obj := range list {
		key := string(obj.GetUID()) + "@" + obj.GetResourceVersion()
		hooks, ok := s.parsed[key]
		if !ok {
			hooks = s.parse(obj)
		}
		parsed[key] = hooks
		for _, h := range hooks {
			copied := *h
			copied.index = len(next.hooks)
			next.hooks = append(next.hooks, &copied)
		}
	}
	s.parsed = parsed
	s.current.Store(next)
	return next.hooks
}

func (s *source) mutating(obj api.Object) (out []*hook) {
	c := obj.(*admissionregistrationv1.MutatingWebhookConfiguration)
	for i := range c.Webhooks {
		w := &c.Webhooks[i]
		h := s.hook(c, i, w.Name, w.ClientConfig, w.FailurePolicy, w.TimeoutSeconds, w.MatchConditions)
		h.criteria, h.broken = request.NewCriteria(rules(w.Rules), equivalent(w.MatchPolicy), w.NamespaceSelector, w.ObjectSelector)
		h.sideEffects, h.versions = w.SideEffects, w.AdmissionReviewVersions
		h.reinvoke = w.ReinvocationPolicy != nil && *w.ReinvocationPolicy == admissionregistrationv1.IfNeededReinvocationPolicy
		out = append(out, h)
	}
	return out
}

func (s *source) validating(obj api.Object) (out []*hook) {
	c := obj.(*admissionregistrationv1.ValidatingWebhookConfiguration)
	for i := range c.Webhooks {
		w := &c.Webhooks[i]
		h := s.hook(c, i, w.Name, w.ClientConfig, w.FailurePolicy, w.TimeoutSeconds, w.MatchConditions)
		h.criteria, h.broken = request.NewCriteria(rules(w.Rules), equivalent(w.MatchPolicy), w.NamespaceSelector, w.ObjectSelector)
		h.sideEffects, h.versions = w.SideEffects, w.AdmissionReviewVersions
		out = append(out, h)
	}
	return out
}

func (s *source) hook(c api.Object, i int, name string, client admissionregistrationv1.WebhookClientConfig, fail *admissionregistrationv1.FailurePolicyType,
	timeout *int32, conditions []admissionregistrationv1.MatchCondition) *hook {
	h := &hook{id: c.GetName() + "/" + name + "/" + strconv.Itoa(i), name: name, configuration: c.GetName(),
		ignore: fail != nil && *fail == admissionregistrationv1.Ignore, target: callout.Target{CABundle: client.CABundle}}
	if timeout != nil {
		h.timeout = time.Duration(*timeout) * time.Second
	}
	if client.URL != nil {
		h.target.URL = *client.URL
	}
	if svc := client.Service; svc != nil {
		h.target.Namespace, h.target.Service = svc.Namespace, svc.Name
		if svc.Path != nil {
			h.target.Path = *svc.Path
		}
		if svc.Port != nil {
			h.target.Port = *svc.Port
		}
	}
	h.conditions = s.cfg.Environments.Conditions(conditions, h.ignore, nil, false)
	return h
}

func rules(list []admissionregistrationv1.RuleWithOperations) []request.Rule {
	out := make([]request.Rule, len(list))
	for i := range list {
		out[i].RuleWithOperations = list[i]
	}
	return out
}

func equivalent(p *admissionregistrationv1.MatchPolicyType) bool {
	return p != nil && *p == admissionregistrationv1.Equivalent
}
