// Package admission is the plugins that are asked before each write: they fill in
// what depends on other objects and refuse what the cluster's state does not
// allow. Each plugin is one small type; Chain asks them in order.
package admission

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver/admission/callout"
	"github.com/proa-dev/proa/internal/apiserver/admission/expression"
	"github.com/proa-dev/proa/internal/apiserver/admission/noderestriction"
	"github.com/proa-dev/proa/internal/apiserver/admission/podsecurity"
	"github.com/proa-dev/proa/internal/apiserver/admission/policy"
	"github.com/proa-dev/proa/internal/apiserver/admission/request"
	"github.com/proa-dev/proa/internal/apiserver/admission/webhook"
	"github.com/proa-dev/proa/internal/apiserver/auth"
	"github.com/proa-dev/proa/internal/apiserver/rest"
)

// Reader looks objects up in the newest known state. They are shared: read only.
type Reader interface {
	Get(gvr schema.GroupVersionResource, namespace, name string) (api.Object, bool)
	List(gvr schema.GroupVersionResource, namespace string) []api.Object
}

// Versioned is a Reader that tells at the cost of an atomic load whether a
// resource has changed: version returns a value that is another one after each
// change, and how many objects there are.
type Versioned interface {
	Reader
	Version(gvr schema.GroupVersionResource) (version func() (any, int))
}

// versionOf returns the version function of a resource. For Readers that have
// none, each call's result differs.
func versionOf(r Reader, gvr schema.GroupVersionResource) func() (any, int) {
	if v, ok := r.(Versioned); ok {
		return v.Version(gvr)
	}
	return func() (any, int) { return new(int), len(r.List(gvr, "")) }
}

// Admitter may change the object of a write.
type Admitter interface {
	Admit(ctx context.Context, a *rest.Attributes) error
}

// Validator may only refuse it.
type Validator interface {
	Validate(ctx context.Context, a *rest.Attributes) error
}

// Mutator is an Admitter that others configure: whoever changes an object has
// all plugins look at it once more, in a second round.
type Mutator interface {
	// Active reports whether anything is configured; it costs next to nothing.
	Active() bool
	Mutate(ctx context.Context, a *rest.Attributes, round *request.Round) error
}

// Late is an Admitter that comes after the Mutators, and once.
type Late interface {
	AdmitLast(ctx context.Context, a *rest.Attributes) error
}

// Chain asks plugins in order; a plugin is an Admitter, a Mutator, a Validator or several of them.
type Chain struct {
	admitters  []Admitter
	mutators   []Mutator
	late       []Late
	validators []Validator
}

// NewChain returns a chain of plugins.
func NewChain(plugins ...any) *Chain {
	c := &Chain{}
	for _, p := range plugins {
		if a, ok := p.(Admitter); ok {
			c.admitters = append(c.admitters, a)
		}
		if m, ok := p.(Mutator); ok {
			c.mutators = append(c.mutators, m)
		}
		if l, ok := p.(Late); ok {
			c.late = append(c.late, l)
		}
		if v, ok := p.(Validator); ok {
			c.validators = append(c.validators, v)
		}
	}
	return c
}

// Config is what the plugins of a cluster need.
type Config struct {
	Reader Reader // a Versioned one makes the plugins that nobody uses cost nothing
	// Addresses hands out cluster IPs and node ports.
	Addresses *Addresses
	// UpdateQuota writes the status of a ResourceQuota. Nil: quotas are not enforced.
	UpdateQuota func(ctx context.Context, q *corev1.ResourceQuota) (*corev1.ResourceQuota, error)
	// Authorizer answers what policies and match conditions ask of rights.
	Authorizer auth.Authorizer
	Metrics    prometheus.Registerer // nil: calls of webhooks are not counted
	Logger     *slog.Logger
	Now        func() time.Time // nil: time.Now
}

// Served is a Reader that knows which resources are served.
type Served interface {
	// Equivalents returns the other resources that show the same stored objects.
	Equivalents(gvr schema.GroupVersionResource) []*api.Resource
	OfKind(gvk schema.GroupVersionKind) (*api.Resource, bool)
	// Types returns how objects of a resource are merged; nil: it is not served.
	Types(gvr schema.GroupVersionResource) managedfields.TypeConverter
}

// clusterState is a Reader with what else webhooks and policies ask of it.
type clusterState struct{ Reader }

func (s clusterState) Equivalents(gvr schema.GroupVersionResource) []*api.Resource {
	if v, ok := s.Reader.(Served); ok {
		return v.Equivalents(gvr)
	}
	return nil
}

func (s clusterState) OfKind(gvk schema.GroupVersionKind) (*api.Resource, bool) {
	if v, ok := s.Reader.(Served); ok {
		return v.OfKind(gvk)
	}
	return nil, false
}

func (s clusterState) Types(gvr schema.GroupVersionResource) managedfields.TypeConverter {
	if v, ok := s.Reader.(Served); ok {
		return v.Types(gvr)
	}
	return nil
}

// Default returns the plugins that need nothing but the state of the cluster.
func Default(reader Reader, addresses *Addresses) *Chain {
	return New(Config{Reader: reader, Addresses: addresses})
}

// New returns the plugins of a proa cluster, in Kubernetes' order.
func New(cfg Config) *Chain {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	reader := cfg.Reader
	environments := &expression.Environments{}
	authorizer := expression.Authorizer(cfg.Authorizer)
	version := func(gvr schema.GroupVersionResource) func() (any, int) { return versionOf(reader, gvr) }
	hooks := webhook.Config{Cluster: clusterState{reader}, Client: callout.New(callout.Services{Reader: reader}), Environments: environments, Authorizer: authorizer, Version: version, Logger: cfg.Logger}
	if cfg.Metrics != nil {
		hooks.Metrics = webhook.NewMetrics(cfg.Metrics)
	}
	policies := policy.Config{Cluster: clusterState{reader}, Environments: environments, Authorizer: authorizer, Version: version}
	plugins := []any{
		NamespaceLifecycle{reader},
		LimitRanger{reader},
		ServiceAccount{reader},
		noderestriction.Plugin{Reader: reader, Authorizer: cfg.Authorizer},
		NodeTaints{},
		Priority{reader},
		DefaultTolerations{},
		StorageInUse{},
		DefaultStorageClass{reader},
		RuntimeClass{reader},
		DefaultIngressClass{reader},
		PodTopologyLabels{reader},
		podsecurity.New(reader),
		PersistentVolumeClaimResize{reader},
		Certificates{cfg.Authorizer},
		Escalation{reader, cfg.Authorizer},
		PodResize{reader},
		policy.Expressions{Environments: environments},
		policy.NewMutating(policies),
		webhook.NewMutating(hooks),
		cfg.Addresses,
		policy.NewValidating(policies),
		webhook.NewValidating(hooks),
	}
	if cfg.UpdateQuota != nil { // the last: it charges what all others have admitted
		plugins = append(plugins, NewResourceQuota(reader, cfg.Now, cfg.UpdateQuota))
	}
	return NewChain(plugins...)
}

func (c *Chain) Admit(ctx context.Context, a *rest.Attributes) error {
	if err := c.admit(ctx, a); err != nil {
		return err
	}
	for _, m := range c.mutators {
		if m.Active() {
			if err := c.mutate(ctx, a); err != nil {
				return err
			}
			break
		}
	}
	for _, p := range c.late {
		if err := p.AdmitLast(ctx, a); err != nil {
			return err
		}
	}
	return nil
}

func (c *Chain) admit(ctx context.Context, a *rest.Attributes) error {
	for _, p := range c.admitters {
		if err := p.Admit(ctx, a); err != nil {
			return err
		}
	}
	return nil
}

func (c *Chain) mutate(ctx context.Context, a *rest.Attributes) error {
	round := &request.Round{}
	for _, m := range c.mutators {
		if err := m.Mutate(ctx, a, round); err != nil {
			return err
		}
	}
	if !round.Changed() {
		return nil
	}
	if err := c.admit(ctx, a); err != nil {
		return err
	}
	round.Second = true
	for _, m := range c.mutators {
		if err := m.Mutate(ctx, a, round); err != nil {
			return err
		}
	}
	return nil
}

func (c *Chain) Validate(ctx context.Context, a *rest.Attributes) error {
	for _, p := range c.validators {
		if err := p.Validate(ctx, a); err != nil {
			return err
		}
	}
	return nil
}

// is reports whether a write is to a main resource (no subresource).
func is(a *rest.Attributes, group, resource string, verbs ...rest.Verb) bool {
	if a.Subresource != "" || a.Resource.GVR.Resource != resource || a.Resource.GVR.Group != group {
		return false
	}
	for _, v := range verbs {
		if a.Verb == v {
			return true
		}
	}
	return false
}
