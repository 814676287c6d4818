// Package client is how every component reads and writes the cluster. Interface
// has two forms: in process (package cluster adapts the API server, so that
// informers are the server's own watch cache and nothing is encoded), and over
// the network (package client/remote). A component cannot tell which it has.
//
// Kind gives the typed calls: client.Pods.Get(ctx, c, "default", "web").
package client

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/proa-dev/proa/internal/api"
)

// Object is a typed API object.
type Object = api.Object

// Interface reads and writes objects. Errors are the API's own (k8s.io/apimachinery
// api/errors recognises them). Returned objects belong to the caller, except
// where a method says that they are shared.
type Interface interface {
	// Get reads the newest state.
	Get(ctx context.Context, gvr schema.GroupVersionResource, namespace, name string) (Object, error)
	// List reads a namespace ("": all). The objects are shared: read only.
	List(ctx context.Context, gvr schema.GroupVersionResource, namespace string, opts metav1.ListOptions) (List, error)
	// Create writes a new object; subresource "" or e.g. "binding", "eviction",
	// "token", for which name is that of the parent. obj is only read.
	Create(ctx context.Context, gvr schema.GroupVersionResource, namespace, name, subresource string, obj Object, opts metav1.CreateOptions) (Object, error)
	// Update replaces the object, or with subresource "status" its status. A set
	// resourceVersion must be the newest.
	Update(ctx context.Context, gvr schema.GroupVersionResource, namespace, subresource string, obj Object, opts metav1.UpdateOptions) (Object, error)
	// Patch applies a JSON, merge, strategic merge or apply patch.
	Patch(ctx context.Context, gvr schema.GroupVersionResource, namespace, name, subresource string, kind types.PatchType, data []byte, opts metav1.PatchOptions) (Object, error)
	Delete(ctx context.Context, gvr schema.GroupVersionResource, namespace, name string, opts metav1.DeleteOptions) error
	// Informer returns the live view of a resource within scope. Calls with equal
	// arguments share one. It runs until the client is closed. The Watch of a custom
	// resource fails when that is served no more.
	Informer(gvr schema.GroupVersionResource, scope Scope) Informer
	// Resources lists what the server serves (one version per resource, the
	// preferred one), subresources left out.
	Resources(ctx context.Context) ([]ResourceInfo, error)
}

// List is the result of Interface.List.
type List struct {
	Items           []Object
	ResourceVersion string
	Continue        string
}

// ResourceInfo names a served resource.
type ResourceInfo struct {
	GVR        schema.GroupVersionResource
	Kind       string
	Namespaced bool
	Verbs      []string
	// Custom says that a CustomResourceDefinition defines it: it can end.
	Custom bool
}

// Scope limits an informer. The zero value is the whole resource.
type Scope struct {
	Namespace string
	// NodeName keeps only pods with this spec.nodeName.
	NodeName string
	// Name keeps only the object of this name.
	Name string
}

// Informer is a live, read-only view of a resource. Objects are shared with
// everyone: never write to them, DeepCopy first.
//
// In process, a view includes a write as soon as the write has returned.
type Informer interface {
	Get(namespace, name string) (Object, bool)
	// List returns the objects of a namespace ("": all), sorted by namespace and name.
	List(namespace string) []Object
	// Revision is the store revision that the view has reached.
	Revision() int64
	// Watch calls fn from one goroutine for each change, in revision order: first
	// Added for every object present, then one Synced, then the changes. It
	// returns when ctx ends. A slow fn delays only its own events; they are
	// coalesced to the newest state of an object when it falls far behind.
	Watch(ctx context.Context, fn func(Event)) error
	// WaitSynced returns when the view is complete, or with ctx's error.
	WaitSynced(ctx context.Context) error
}

// EventType is what happened to an object in a view.
type EventType string

const (
	Added    EventType = "ADDED"
	Modified EventType = "MODIFIED"
	Deleted  EventType = "DELETED" // Object is the last state
	Synced   EventType = "SYNCED"  // Object is nil
)

// Event is one change of a view. Old is the state before (nil for Added).
type Event struct {
	Type   EventType
	Object Object
	Old    Object
}

// Kind names a resource and its Go type.
type Kind[T Object] struct {
	GVR schema.GroupVersionResource
	GVK schema.GroupVersionKind
}

// Typed is an Informer whose objects have their Go type.
type Typed[T Object] struct{ Informer }

func (t Typed[T]) Get(namespace, name string) (T, bool) {
	o, ok := t.Informer.Get(namespace, name)
	if !ok {
		var zero T
		return zero, false
	}
	return o.(T), true
}

// List returns the objects of a namespace ("": all) that match a selector (nil: all).
func (t Typed[T]) List(namespace string, selector labels.Selector) []T {
	all := t.Informer.List(namespace)
	out := make([]T, 0, len(all))
	for _, o := range all {
		if selector == nil || selector.Matches(labels.Set(o.GetLabels())) {
			out = append(out, o.(T))
		}
	}
	return out
}

func (k Kind[T]) Informer(c Interface, scope Scope) Typed[T] {
	return Typed[T]{c.Informer(k.GVR, scope)}
}

func (k Kind[T]) Get(ctx context.Context, c Interface, namespace, name string) (T, error) {
	return typed[T](c.Get(ctx, k.GVR, namespace, name))
}

// List returns shared objects: read only.
func (k Kind[T]) List(ctx context.Context, c Interface, namespace string, opts metav1.ListOptions) ([]T, error) {
	l, err := c.List(ctx, k.GVR, namespace, opts)
	if err != nil {
		return nil, err
	}
	out := make([]T, 0, len(l.Items))
	for _, o := range l.Items {
		out = append(out, o.(T))
	}
	return out, nil
}

func (k Kind[T]) Create(ctx context.Context, c Interface, obj T) (T, error) {
	return typed[T](c.Create(ctx, k.GVR, obj.GetNamespace(), obj.GetName(), "", obj, metav1.CreateOptions{}))
}

func (k Kind[T]) Update(ctx context.Context, c Interface, obj T) (T, error) {
	return typed[T](c.Update(ctx, k.GVR, obj.GetNamespace(), "", obj, metav1.UpdateOptions{}))
}

func (k Kind[T]) UpdateStatus(ctx context.Context, c Interface, obj T) (T, error) {
	return typed[T](c.Update(ctx, k.GVR, obj.GetNamespace(), "status", obj, metav1.UpdateOptions{}))
}

func (k Kind[T]) Patch(ctx context.Context, c Interface, namespace, name, subresource string, kind types.PatchType, data []byte) (T, error) {
	return typed[T](c.Patch(ctx, k.GVR, namespace, name, subresource, kind, data, metav1.PatchOptions{}))
}

func (k Kind[T]) Delete(ctx context.Context, c Interface, namespace, name string, opts metav1.DeleteOptions) error {
	return c.Delete(ctx, k.GVR, namespace, name, opts)
}

func typed[T Object](o Object, err error) (T, error) {
	var zero T
	if err != nil {
		return zero, err
	}
	t, ok := o.(T)
	if !ok {
		return zero, fmt.Errorf("client: got %T, want %T", o, zero)
	}
	return t, nil
}
