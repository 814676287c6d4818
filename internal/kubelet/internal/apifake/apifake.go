// Package apifake is client.Interface over a map, for tests: resource versions,
// conflicts, watches, status, and pods that are deleted in two steps. It has none
// of the API server's rules.
package apifake

import (
	"context"
	"encoding/json"
	"fmt"
	"sort"
	"strconv"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/proa-dev/proa/internal/client"
)

// Client is a cluster's objects.
type Client struct {
	mu      sync.Mutex
	rv      int64
	objects map[schema.GroupVersionResource]map[string]client.Object
	subs    map[*sub]bool
	// StatusWrites counts writes of pod statuses.
	StatusWrites int
	// TokenLife of service account tokens; each is "token-<n>".
	TokenLife time.Duration
	tokens    int
}

type sub struct {
	gvr    schema.GroupVersionResource
	scope  client.Scope
	mu     sync.Mutex
	queue  []client.Event
	notify chan struct{}
}

func New() *Client {
	return &Client{rv: 1000, objects: map[schema.GroupVersionResource]map[string]client.Object{}, subs: map[*sub]bool{}, TokenLife: time.Hour}
}

func key(ns, name string) string { return ns + "/" + name }

func (c *Client) table(g schema.GroupVersionResource) map[string]client.Object {
	t := c.objects[g]
	if t == nil {
		t = map[string]client.Object{}
		c.objects[g] = t
	}
	return t
}

func clone(o client.Object) client.Object { return o.DeepCopyObject().(client.Object) }

func (c *Client) Get(_ context.Context, g schema.GroupVersionResource, ns, name string) (client.Object, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := c.table(g)[key(ns, name)]
	if o == nil {
		return nil, apierrors.NewNotFound(g.GroupResource(), name)
	}
	return clone(o), nil
}

func (c *Client) List(_ context.Context, g schema.GroupVersionResource, ns string, _ metav1.ListOptions) (client.List, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return client.List{Items: c.list(g, client.Scope{Namespace: ns})}, nil
}

func matches(o client.Object, s client.Scope) bool {
	if s.Namespace != "" && o.GetNamespace() != s.Namespace || s.Name != "" && o.GetName() != s.Name {
		return false
	}
	p, ok := o.(*corev1.Pod)
	return s.NodeName == "" || ok && p.Spec.NodeName == s.NodeName
}

func (c *Client) list(g schema.GroupVersionResource, s client.Scope) []client.Object {
	var out []client.Object
	for _, o := range c.table(g) {
		if matches(o, s) {
			out = append(out, o)
		}
	}
	sort.Slice(out, func(i, j int) bool {
		return key(out[i].GetNamespace(), out[i].GetName()) < key(out[j].GetNamespace(), out[j].GetName())
	})
	return out
}

func (c *Client) put(g schema.GroupVersionResource, o client.Object, t client.EventType) client.Object {
	c.rv++
	o = clone(o)
	o.SetResourceVersion(strconv.FormatInt(c.rv, 10))
	k := key(o.GetNamespace(), o.GetName())
	old := c.table(g)[k]
	if t == client.Deleted {
		delete(c.table(g), k)
	} else {
		c.table(g)[k] = o
	}
	for s := range c.subs {
		if s.gvr == g && matches(o, s.scope) {
			s.push(client.Event{Type: t, Object: o, Old: old})
		}
	}
	return clone(o)
}

func (s *sub) push(e client.Event) {
	s.mu.Lock()
	s.queue = append(s.queue, e)
	s.mu.Unlock()
	select {
	case s.notify <- struct{}{}:
	default:
	}
}

func (c *Client) Create(_ context.Context, g schema.GroupVersionResource, ns, name, subresource string, o client.Object, _ metav1.CreateOptions) (client.Object, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if subresource == "token" {
		c.tokens++
		tr := o.(*authenticationv1.TokenRequest).DeepCopy()
		tr.Status.Token = fmt.Sprintf("token-%d", c.tokens)
		tr.Status.ExpirationTimestamp = metav1.NewTime(time.Now().Add(c.TokenLife))
		return tr, nil
	}
	if c.table(g)[key(o.GetNamespace(), o.GetName())] != nil {
		return nil, apierrors.NewAlreadyExists(g.GroupResource(), o.GetName())
	}
	o = clone(o)
	if o.GetUID() == "" {
		o.SetUID(types.UID("uid-" + o.GetName() + "-" + strconv.FormatInt(c.rv, 10)))
	}
	o.SetGeneration(1)
	o.SetCreationTimestamp(metav1.Now())
	return c.put(g, o, client.Added), nil
}

func (c *Client) Update(_ context.Context, g schema.GroupVersionResource, _, subresource string, o client.Object, _ metav1.UpdateOptions) (client.Object, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.table(g)[key(o.GetNamespace(), o.GetName())]
	if old == nil {
		return nil, apierrors.NewNotFound(g.GroupResource(), o.GetName())
	}
	if v := o.GetResourceVersion(); v != "" && v != old.GetResourceVersion() {
		return nil, apierrors.NewConflict(g.GroupResource(), o.GetName(), fmt.Errorf("the object has been modified"))
	}
	if p, ok := o.(*corev1.Pod); ok && subresource == "status" {
		c.StatusWrites++
		n := old.(*corev1.Pod).DeepCopy()
		// What goes over the wire has seconds.
		b, err := json.Marshal(&p.Status)
		if err != nil {
			return nil, err
		}
		n.Status = corev1.PodStatus{}
		if err := json.Unmarshal(b, &n.Status); err != nil {
			return nil, err
		}
		o = n
	}
	return c.put(g, o, client.Modified), nil
}

func (c *Client) Patch(context.Context, schema.GroupVersionResource, string, string, string, types.PatchType, []byte, metav1.PatchOptions) (client.Object, error) {
	return nil, apierrors.NewMethodNotSupported(schema.GroupResource{}, "patch")
}

func (c *Client) Delete(_ context.Context, g schema.GroupVersionResource, ns, name string, opts metav1.DeleteOptions) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := c.table(g)[key(ns, name)]
	if o == nil {
		return apierrors.NewNotFound(g.GroupResource(), name)
	}
	if p := opts.Preconditions; p != nil && p.UID != nil && *p.UID != o.GetUID() {
		return apierrors.NewConflict(g.GroupResource(), name, fmt.Errorf("uid"))
	}
	if pod, ok := o.(*corev1.Pod); ok {
		grace := int64(30)
		if g := pod.Spec.TerminationGracePeriodSeconds; g != nil {
			grace = *g
		}
		if opts.GracePeriodSeconds != nil {
			grace = *opts.GracePeriodSeconds
		}
		if grace > 0 && pod.Spec.NodeName != "" {
			n := pod.DeepCopy()
			t := metav1.NewTime(time.Now().Add(time.Duration(grace) * time.Second))
			n.DeletionTimestamp, n.DeletionGracePeriodSeconds = &t, &grace
			c.put(g, n, client.Modified)
			return nil
		}
	}
	c.put(g, o, client.Deleted)
	return nil
}

func (c *Client) Resources(context.Context) ([]client.ResourceInfo, error) { return nil, nil }

func (c *Client) Informer(g schema.GroupVersionResource, s client.Scope) client.Informer {
	return &informer{c: c, gvr: g, scope: s}
}

type informer struct {
	c     *Client
	gvr   schema.GroupVersionResource
	scope client.Scope
}

func (i *informer) Get(ns, name string) (client.Object, bool) {
	i.c.mu.Lock()
	defer i.c.mu.Unlock()
	o := i.c.table(i.gvr)[key(ns, name)]
	return o, o != nil && matches(o, i.scope)
}

func (i *informer) List(ns string) []client.Object {
	i.c.mu.Lock()
	defer i.c.mu.Unlock()
	s := i.scope
	if ns != "" {
		s.Namespace = ns
	}
	return i.c.list(i.gvr, s)
}

func (i *informer) Revision() int64                  { return 0 }
func (i *informer) WaitSynced(context.Context) error { return nil }

func (i *informer) Watch(ctx context.Context, fn func(client.Event)) error {
	s := &sub{gvr: i.gvr, scope: i.scope, notify: make(chan struct{}, 1)}
	i.c.mu.Lock()
	for _, o := range i.c.list(i.gvr, i.scope) {
		s.queue = append(s.queue, client.Event{Type: client.Added, Object: o})
	}
	s.queue = append(s.queue, client.Event{Type: client.Synced})
	i.c.subs[s] = true
	i.c.mu.Unlock()
	defer func() {
		i.c.mu.Lock()
		delete(i.c.subs, s)
		i.c.mu.Unlock()
	}()
	for {
		s.mu.Lock()
		q := s.queue
		s.queue = nil
		s.mu.Unlock()
		for _, e := range q {
			fn(e)
		}
		if len(q) > 0 {
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.notify:
		}
	}
}
