// Package admission is the plugins that are asked before each write: they fill in
// what depends on other objects and refuse what the cluster's state does not
// allow. Each plugin is one small type; Chain asks them in order.
package admission

import (
	"context"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver/rest"
)

// Reader looks objects up in the newest known state. They are shared: read only.
type Reader interface {
	Get(gvr schema.GroupVersionResource, namespace, name string) (api.Object, bool)
	List(gvr schema.GroupVersionResource, namespace string) []api.Object
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

// Default returns the plugins of every proa cluster. addresses hands out cluster
// IPs and node ports.
func Default(reader Reader, addresses *Addresses) *Chain {
	return NewChain(
		NamespaceLifecycle{reader},
		LimitRanger{reader},
		ServiceAccount{reader},
		NodeTaints{},
		Priority{reader},
		DefaultTolerations{},
		StorageInUse{},
		DefaultStorageClass{reader},
		RuntimeClass{reader},
		addresses,
	)
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
