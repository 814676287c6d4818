// Package admission is the plugins that are asked before each write: they fill in
// what depends on other objects and refuse what the cluster's state does not
// allow. Each plugin is one small type; Chain asks them in order.
package admission

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/proa-dev/proa/internal/api"
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

// Chain asks plugins in order; a plugin is an Admitter, a Validator or both.
type Chain struct {
	admitters  []Admitter
	validators []Validator
}

// NewChain returns a chain of plugins.
func NewChain(plugins ...any) *Chain {
	c := &Chain{}
	for _, p := range plugins {
		if a, ok := p.(Admitter); ok {
			c.admitters = append(c.admitters, a)
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
	Now         func() time.Time // nil: time.Now
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
	reader := cfg.Reader
	plugins := []any{
		NamespaceLifecycle{reader},
		LimitRanger{reader},
		ServiceAccount{reader},
		NodeTaints{},
		Priority{reader},
		DefaultTolerations{},
		StorageInUse{},
		DefaultStorageClass{reader},
		RuntimeClass{reader},
		cfg.Addresses,
	}
	if cfg.UpdateQuota != nil { // the last: it charges what all others have admitted
		plugins = append(plugins, NewResourceQuota(reader, cfg.Now, cfg.UpdateQuota))
	}
	return NewChain(plugins...)
}

func (c *Chain) Admit(ctx context.Context, a *rest.Attributes) error {
	for _, p := range c.admitters {
		if err := p.Admit(ctx, a); err != nil {
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
