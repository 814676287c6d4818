// Package local is the in-process form of client.Interface: the API server's own
// verbs, with its admission and validation, and its watch cache as the informers'
// store. Nothing is encoded, and nothing is authorised: what runs in the process
// shares its memory, so no rule could hold it back. Admission sees the user.
package local

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"

	authenticationv1 "k8s.io/api/authentication/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/apiserver/pkg/authentication/user"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver/authn"
	"github.com/proa-dev/proa/internal/apiserver/cache"
	"github.com/proa-dev/proa/internal/apiserver/rest"
	"github.com/proa-dev/proa/internal/client"
)

// Client calls a registry as one user.
type Client struct {
	registry  *rest.Registry
	resources []*api.Resource
	tokens    *authn.Tokens
	who       user.Info
}

var _ client.Interface = (*Client)(nil)

// New returns a client of a registry. Tokens serves the subresource "token" of
// service accounts; who is the user that admission sees.
func New(registry *rest.Registry, resources []*api.Resource, tokens *authn.Tokens, who user.Info) *Client {
	return &Client{registry: registry, resources: resources, tokens: tokens, who: who}
}

// Registry is what the client calls.
func (l *Client) Registry() *rest.Registry { return l.registry }

// As returns the client under another name.
func (l *Client) As(name string, groups ...string) *Client {
	out := *l
	out.who = &user.DefaultInfo{Name: name, Groups: append(groups, user.AllAuthenticated)}
	return &out
}

func (l *Client) ctx(ctx context.Context) context.Context {
	return rest.WithFieldManager(rest.WithUser(rest.WithTrust(ctx), l.who), program(l.who.GetName()))
}

// program is the name under which a component owns fields: that of Kubernetes'
// program for it, as its User-Agent has it over the network.
func program(user string) string {
	switch {
	case strings.HasPrefix(user, "system:node:"):
		return "kubelet"
	case strings.HasPrefix(user, "system:serviceaccount:kube-system:"):
		return "kube-controller-manager"
	}
	return strings.TrimPrefix(user, "system:")
}

func (l *Client) storage(gvr schema.GroupVersionResource) (rest.Storage, error) {
	s, ok := l.registry.Storage(gvr)
	if !ok {
		return nil, apierrors.NewNotFound(gvr.GroupResource(), "")
	}
	return s, nil
}

// mine is a copy that the caller may change.
func mine(e *cache.Entry, err error) (client.Object, error) {
	if err != nil {
		return nil, err
	}
	return e.Object().DeepCopyObject().(client.Object), nil
}

func (l *Client) Get(ctx context.Context, gvr schema.GroupVersionResource, namespace, name string) (client.Object, error) {
	s, err := l.storage(gvr)
	if err != nil {
		return nil, err
	}
	return mine(s.Get(l.ctx(ctx), namespace, name, metav1.GetOptions{}))
}

func (l *Client) List(ctx context.Context, gvr schema.GroupVersionResource, namespace string, opts metav1.ListOptions) (client.List, error) {
	s, err := l.storage(gvr)
	if err != nil {
		return client.List{}, err
	}
	o := rest.ListOptions{ListOptions: opts}
	if opts.LabelSelector != "" {
		if o.Labels, err = labels.Parse(opts.LabelSelector); err != nil {
			return client.List{}, apierrors.NewBadRequest(err.Error())
		}
	}
	if opts.FieldSelector != "" {
		if o.Fields, err = fields.ParseSelector(opts.FieldSelector); err != nil {
			return client.List{}, apierrors.NewBadRequest(err.Error())
		}
	}
	r, err := s.List(l.ctx(ctx), namespace, o)
	if err != nil {
		return client.List{}, err
	}
	out := client.List{ResourceVersion: cache.FormatRevision(r.Revision), Continue: r.Continue, Items: make([]client.Object, len(r.Entries))}
	for i, e := range r.Entries {
		out.Items[i] = e.Object()
	}
	return out, nil
}

func (l *Client) Create(ctx context.Context, gvr schema.GroupVersionResource, namespace, name, subresource string, obj client.Object, opts metav1.CreateOptions) (client.Object, error) {
	s, err := l.storage(gvr)
	if err != nil {
		return nil, err
	}
	body := obj.DeepCopyObject() // it belongs to the storage from here on
	switch {
	case subresource == "":
		return mine(s.Create(l.ctx(ctx), namespace, body, opts))
	case subresource == "token":
		req, ok := obj.(*authenticationv1.TokenRequest)
		if !ok {
			return nil, apierrors.NewBadRequest(fmt.Sprintf("a TokenRequest is wanted, not %T", obj))
		}
		return l.tokens.Issue(ctx, namespace, name, req)
	}
	sub, ok := s.(rest.Subresources)
	if !ok {
		return nil, apierrors.NewNotFound(gvr.GroupResource(), name)
	}
	if _, err := sub.CreateSubresource(l.ctx(ctx), namespace, name, subresource, body, opts); err != nil {
		return nil, err
	}
	return obj, nil
}

func (l *Client) Update(ctx context.Context, gvr schema.GroupVersionResource, namespace, subresource string, obj client.Object, opts metav1.UpdateOptions) (client.Object, error) {
	s, err := l.storage(gvr)
	if err != nil {
		return nil, err
	}
	if scale, ok := obj.(*autoscalingv1.Scale); ok && subresource == "scale" {
		sub, ok := s.(rest.Subresources)
		if !ok {
			return nil, apierrors.NewNotFound(gvr.GroupResource(), obj.GetName())
		}
		return sub.UpdateScale(l.ctx(ctx), namespace, obj.GetName(), func(*autoscalingv1.Scale) (*autoscalingv1.Scale, error) { return scale.DeepCopy(), nil },
			rest.UpdateOptions{UpdateOptions: opts})
	}
	change := func(context.Context, api.Object) (api.Object, error) { return obj.DeepCopyObject().(api.Object), nil }
	e, _, err := s.Update(l.ctx(ctx), namespace, obj.GetName(), subresource, change, rest.UpdateOptions{UpdateOptions: opts})
	return mine(e, err)
}

func (l *Client) Patch(ctx context.Context, gvr schema.GroupVersionResource, namespace, name, subresource string, kind types.PatchType, data []byte, opts metav1.PatchOptions) (client.Object, error) {
	s, err := l.storage(gvr)
	if err != nil {
		return nil, err
	}
	e, _, err := s.Patch(l.ctx(ctx), namespace, name, subresource, kind, data, opts)
	return mine(e, err)
}

func (l *Client) Delete(ctx context.Context, gvr schema.GroupVersionResource, namespace, name string, opts metav1.DeleteOptions) error {
	s, err := l.storage(gvr)
	if err != nil {
		return err
	}
	_, _, err = s.Delete(l.ctx(ctx), namespace, name, opts)
	return err
}

func (l *Client) Resources(context.Context) ([]client.ResourceInfo, error) {
	var out []client.ResourceInfo
	for _, r := range l.resources {
		if len(r.Verbs) > 0 || !r.StoredAs.Empty() {
			continue // reviews, and views of what another resource stores
		}
		out = append(out, info(r))
	}
	for _, r := range l.registry.Customs() {
		one := info(r)
		one.Custom = true
		out = append(out, one)
	}
	return out, nil
}

func info(r *api.Resource) client.ResourceInfo {
	return client.ResourceInfo{GVR: r.GVR, Kind: r.GVK.Kind, Namespaced: r.Namespaced,
		Verbs: []string{"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"}}
}

func (l *Client) Informer(gvr schema.GroupVersionResource, scope client.Scope) client.Informer {
	c, _, ok := l.registry.Cache(gvr)
	if !ok {
		return missing{fmt.Errorf("no resource %s is served", gvr)}
	}
	i := &informer{cache: c, scope: scope, narrow: cache.Scope{Namespace: scope.Namespace, Name: scope.Name, Index: scope.NodeName}}
	if _, _, custom := l.registry.Custom(gvr.GroupResource()); custom {
		return &customInformer{informer: i, registry: l.registry, gvr: gvr}
	}
	return i
}

// missing is the informer of a resource that does not exist.
type missing struct{ err error }

func (missing) Get(string, string) (client.Object, bool)          { return nil, false }
func (missing) List(string) []client.Object                       { return nil }
func (missing) Revision() int64                                   { return 0 }
func (m missing) Watch(context.Context, func(client.Event)) error { return m.err }
func (m missing) WaitSynced(context.Context) error                { return m.err }

// informer is a view of the watch cache.
type informer struct {
	cache  *cache.Cache
	scope  client.Scope
	narrow cache.Scope
}

func (i *informer) has(obj client.Object) bool {
	if i.scope.Namespace != "" && obj.GetNamespace() != i.scope.Namespace || i.scope.Name != "" && obj.GetName() != i.scope.Name {
		return false
	}
	return i.scope.NodeName == "" || nodeOf(obj) == i.scope.NodeName
}

func (i *informer) Get(namespace, name string) (client.Object, bool) {
	e, ok := i.cache.Get(i.cache.Key(namespace, name))
	if !ok || !i.has(e.Object()) {
		return nil, false
	}
	return e.Object(), true
}

func (i *informer) List(namespace string) []client.Object {
	snapshot, _ := i.cache.Read()
	scope := i.narrow
	if scope.Namespace == "" {
		scope.Namespace = namespace
	}
	var out []client.Object
	snapshot.Scan(scope, "", func(e *cache.Entry) bool {
		obj := e.Object()
		if i.has(obj) && (namespace == "" || obj.GetNamespace() == namespace) {
			out = append(out, obj)
		}
		return true
	})
	return out
}

func (i *informer) Revision() int64 {
	_, revision := i.cache.Read()
	return revision
}

// WaitSynced has nothing to wait for: the cache is whole before a client exists.
func (i *informer) WaitSynced(ctx context.Context) error { return ctx.Err() }

func (i *informer) Watch(ctx context.Context, fn func(client.Event)) error {
	return i.watch(ctx, map[string]client.Object{}, true, fn)
}

// watch is Watch of who knows some objects already. It ends with cache.ErrOver
// when the cache holds the resource no more.
func (i *informer) watch(ctx context.Context, known map[string]client.Object, first bool, fn func(client.Event)) error {
	for ; ; first = false {
		w, snapshot, _, err := i.cache.Watch(cache.WatchOptions{Scope: i.narrow})
		if err != nil {
			return err
		}
		gone := make(map[string]client.Object, len(known))
		for k, o := range known {
			gone[k] = o
		}
		snapshot.Scan(i.narrow, "", func(e *cache.Entry) bool {
			delete(gone, e.Key)
			i.tell(known, e.Key, e.Object(), fn)
			return true
		})
		for k, o := range gone {
			delete(known, k)
			fn(client.Event{Type: client.Deleted, Object: o, Old: o})
		}
		if first {
			fn(client.Event{Type: client.Synced})
		}
		err = i.follow(ctx, w, known, fn)
		w.Stop()
		if ctx.Err() != nil {
			return nil
		}
		if err == nil || errors.Is(err, cache.ErrOver) {
			return err
		}
		// It fell too far behind: begin again from the present state.
	}
}

// tell reports an object's state when it is new.
func (i *informer) tell(known map[string]client.Object, key string, obj client.Object, fn func(client.Event)) {
	old, had := known[key]
	switch has := i.has(obj); {
	case has && !had:
		known[key] = obj
		fn(client.Event{Type: client.Added, Object: obj})
	case has && old.GetResourceVersion() != obj.GetResourceVersion():
		known[key] = obj
		fn(client.Event{Type: client.Modified, Object: obj, Old: old})
	case !has && had:
		delete(known, key)
		fn(client.Event{Type: client.Deleted, Object: obj, Old: old})
	}
}

func (i *informer) follow(ctx context.Context, w *cache.Watcher, known map[string]client.Object, fn func(client.Event)) error {
	var buf []*cache.Event
	for {
		var err error
		buf, err = w.Poll(buf[:0])
		if err != nil {
			return err
		}
		if len(buf) == 0 {
			select {
			case <-ctx.Done():
				return nil
			case <-w.Wake():
			}
			continue
		}
		for _, e := range buf {
			obj := e.Entry.Object()
			if e.Type != cache.Deleted {
				i.tell(known, e.Entry.Key, obj, fn)
			} else if old, had := known[e.Entry.Key]; had {
				delete(known, e.Entry.Key)
				fn(client.Event{Type: client.Deleted, Object: obj, Old: old})
			}
		}
	}
}

// State is the newest state, for authentication, authorization and admission,
// which exist before the registry does.
type State struct{ Registry func() *rest.Registry }

func (r State) Get(gvr schema.GroupVersionResource, namespace, name string) (api.Object, bool) {
	c, view, ok := r.Registry().Cache(gvr)
	if !ok {
		return nil, false
	}
	e, ok := c.Get(c.Key(namespace, name))
	if ok && view != nil {
		var err error
		e, err = e.As(view)
		ok = err == nil
	}
	if !ok {
		return nil, false
	}
	return e.Object(), true
}

func (r State) List(gvr schema.GroupVersionResource, namespace string) (out []api.Object) {
	c, view, ok := r.Registry().Cache(gvr)
	if !ok {
		return nil
	}
	snapshot, _ := c.Read()
	snapshot.Scan(cache.Scope{Namespace: namespace}, "", func(e *cache.Entry) bool {
		if view != nil {
			seen, err := e.As(view)
			if err != nil {
				return true
			}
			e = seen
		}
		out = append(out, e.Object())
		return true
	})
	return out
}

// Version returns what admission asks whether a built-in resource has changed.
func (r State) Version(gvr schema.GroupVersionResource) func() (any, int) {
	var found atomic.Pointer[cache.Cache]
	return func() (any, int) {
		c := found.Load()
		if c == nil {
			var ok bool
			if c, _, ok = r.Registry().Cache(gvr); !ok {
				return nil, 0
			}
			found.Store(c)
		}
		s, _ := c.Read()
		return s, s.Len()
	}
}

// Equivalents returns the other resources that show the same stored objects.
func (r State) Equivalents(gvr schema.GroupVersionResource) []*api.Resource {
	return r.Registry().Equivalents(gvr)
}

// OfKind returns the resource of a kind.
func (r State) OfKind(gvk schema.GroupVersionKind) (*api.Resource, bool) {
	return r.Registry().OfKind(gvk)
}

// Types returns how objects of a resource are merged; nil: it is not served.
func (r State) Types(gvr schema.GroupVersionResource) managedfields.TypeConverter {
	return r.Registry().TypeConverter(gvr)
}

// nodeOf is the node of a pod.
func nodeOf(obj client.Object) string {
	if pod, ok := obj.(*corev1.Pod); ok {
		return pod.Spec.NodeName
	}
	return ""
}
