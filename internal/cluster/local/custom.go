package local

import (
	"context"
	"errors"
	"fmt"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/proa-dev/proa/internal/apiserver/cache"
	"github.com/proa-dev/proa/internal/apiserver/rest"
	"github.com/proa-dev/proa/internal/client"
)

// customInformer is a view of a custom resource, whose cache comes and goes with
// its definition. Objects are seen in the version in which they are stored.
type customInformer struct {
	*informer
	registry *rest.Registry
	gvr      schema.GroupVersionResource
}

// now is the view of what is served now, nil when nothing is.
func (c *customInformer) now() *informer {
	served, _, ok := c.registry.Cache(c.gvr)
	if !ok {
		return nil
	}
	return &informer{cache: served, scope: c.scope, narrow: c.narrow}
}

func (c *customInformer) Get(namespace, name string) (client.Object, bool) {
	if i := c.now(); i != nil {
		return i.Get(namespace, name)
	}
	return nil, false
}

func (c *customInformer) List(namespace string) []client.Object {
	if i := c.now(); i != nil {
		return i.List(namespace)
	}
	return nil
}

func (c *customInformer) Revision() int64 { return c.registry.Revision() }

// Watch fails when the resource is served no more.
func (c *customInformer) Watch(ctx context.Context, fn func(client.Event)) error {
	known := map[string]client.Object{}
	for first := true; ; first = false {
		i := c.now()
		if i == nil {
			for _, o := range known {
				fn(client.Event{Type: client.Deleted, Object: o, Old: o})
			}
			return fmt.Errorf("watch %s: it is served no more", c.gvr)
		}
		if err := i.watch(ctx, known, first, fn); !errors.Is(err, cache.ErrOver) {
			return err
		}
	}
}
