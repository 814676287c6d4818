// Package resourcequota keeps the status of ResourceQuotas: the limits that
// admission enforces, and what the namespace's objects use of them. Admission
// charges writes; what only the objects' own life gives back (deletes, pods that
// end, services that need fewer ports) is counted here. It follows only
// resources that some quota limits.
package resourcequota

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/quota"
	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/controllers/loop"
)

const (
	// gather is how long a count waits for more of what asked for it.
	gather = 50 * time.Millisecond
	// recount is when a count that found less than was charged is made again: a
	// write that was charged but not yet stored was missed by it.
	recount = 5 * time.Second
)

var definitions = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

// Controller counts.
type Controller struct {
	client     client.Interface
	log        *slog.Logger
	loop       *loop.Loop[types.NamespacedName]
	quotas     client.Typed[*corev1.ResourceQuota]
	evaluators quota.Evaluators

	mu        sync.Mutex
	resources []client.ResourceInfo
	unknown   map[types.NamespacedName]bool // quotas that name resources which are not served
	followers map[schema.GroupVersionResource]context.CancelFunc
	again     map[types.NamespacedName]time.Time // when to count once more
	wg        sync.WaitGroup
}

// New returns the controller.
func New(c client.Interface, log *slog.Logger) *Controller {
	x := &Controller{client: c, log: log, quotas: client.ResourceQuotas.Informer(c, client.Scope{}),
		unknown: map[types.NamespacedName]bool{}, followers: map[schema.GroupVersionResource]context.CancelFunc{},
		again: map[types.NamespacedName]time.Time{}}
	x.evaluators = quota.Evaluators{Reader: views{c}, Now: time.Now}
	x.loop = loop.New("resourcequota", log, x.sync)
	return x
}

func (x *Controller) Name() string { return "resourcequota" }

// Run works until ctx ends.
func (x *Controller) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer x.wg.Wait()
	defer cancel()
	return x.loop.Run(ctx, 5, loop.Source{Informer: x.quotas.Informer, Handle: func(e client.Event) {
		if e.Object == nil {
			return
		}
		q := e.Object.(*corev1.ResourceQuota)
		old, _ := e.Old.(*corev1.ResourceQuota)
		if e.Type != client.Deleted && old != nil && old.UID == q.UID && apiequality.Semantic.DeepEqual(old.Spec, q.Spec) &&
			apiequality.Semantic.DeepEqual(q.Spec.Hard, q.Status.Hard) {
			return // a charge
		}
		x.follow(ctx, key(q))
		if e.Type != client.Deleted {
			x.loop.Add(key(q))
		}
	}})
}

func key(o client.Object) types.NamespacedName {
	return types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}
}

// counted returns the resources that a quota limits, and whether it names some
// that are not served.
func (x *Controller) counted(ctx context.Context, q *corev1.ResourceQuota) (gvrs []schema.GroupVersionResource, whole bool, err error) {
	for fresh := len(x.resources) == 0; ; fresh = true {
		if fresh {
			if x.resources, err = x.client.Resources(ctx); err != nil {
				return nil, false, fmt.Errorf("list the resources: %w", err)
			}
		}
		gvrs = gvrs[:0]
		known := map[corev1.ResourceName]bool{}
		for _, r := range x.resources {
			if !r.Namespaced {
				continue
			}
			if names := x.names(r.GVR.GroupResource(), q); len(names) > 0 {
				gvrs = append(gvrs, r.GVR)
				for _, n := range names {
					known[n] = true
				}
			}
		}
		whole = true
		for name := range q.Spec.Hard {
			whole = whole && (known[name] || !strings.HasPrefix(string(name), "count/"))
		}
		if whole || fresh {
			return gvrs, whole, nil
		}
	}
}

func (x *Controller) names(gr schema.GroupResource, q *corev1.ResourceQuota) []corev1.ResourceName {
	e := x.evaluators.Of(gr)
	if e == nil {
		return nil
	}
	names := make([]corev1.ResourceName, 0, len(q.Spec.Hard))
	for name := range q.Spec.Hard {
		names = append(names, name)
	}
	return e.Counts(names)
}

// follow sees to it that exactly the resources that some quota limits are
// followed; changed is the quota that may have changed that.
func (x *Controller) follow(ctx context.Context, changed types.NamespacedName) {
	x.mu.Lock()
	defer x.mu.Unlock()
	wanted := map[schema.GroupVersionResource]bool{}
	clear(x.unknown)
	for _, q := range x.quotas.List("", nil) {
		gvrs, whole, err := x.counted(ctx, q)
		if err != nil {
			x.log.Warn("The resources of a quota cannot be found", "kind", "ResourceQuota", "namespace", q.Namespace, "name", q.Name, "err", err)
			x.loop.After(changed, time.Second)
			return
		}
		for _, gvr := range gvrs {
			wanted[gvr] = true
		}
		if !whole {
			x.unknown[key(q)] = true
			wanted[definitions] = true // it may be defined later
		}
	}
	for gvr, cancel := range x.followers {
		if !wanted[gvr] {
			cancel()
			delete(x.followers, gvr)
		}
	}
	for gvr := range wanted {
		if x.followers[gvr] != nil || ctx.Err() != nil {
			continue
		}
		following, cancel := context.WithCancel(ctx)
		x.followers[gvr] = cancel
		x.wg.Go(func() {
			defer cancel()
			handle := func(e client.Event) { x.changed(gvr.GroupResource(), e) }
			if gvr == definitions {
				handle = func(client.Event) { x.defined(ctx) }
			}
			if err := x.client.Informer(gvr, client.Scope{}).Watch(following, handle); err != nil && following.Err() == nil {
				x.log.Warn("A resource that a quota limits cannot be followed", "resource", gvr.String(), "err", err)
				x.mu.Lock()
				delete(x.followers, gvr)
				x.mu.Unlock()
			}
		})
	}
}

// defined looks again at quotas whose resources were not served.
func (x *Controller) defined(ctx context.Context) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for k := range x.unknown {
		x.loop.After(k, time.Second) // served a moment after it is defined
	}
	x.resources = nil
}

// changed asks for a count when an object gave something back.
func (x *Controller) changed(gr schema.GroupResource, e client.Event) {
	if e.Object == nil {
		return
	}
	quotas := x.quotas.List(e.Object.GetNamespace(), nil)
	if len(quotas) == 0 {
		return
	}
	evaluator := x.evaluators.Of(gr)
	for _, q := range quotas {
		switch {
		case e.Type == client.Added:
			// Admission has charged it.
		case e.Type == client.Deleted:
			if len(x.names(gr, q)) > 0 {
				x.loop.After(key(q), gather)
			}
		case e.Old == nil || e.Old.GetUID() != e.Object.GetUID() || quota.Differs(evaluator, q, e.Object, e.Old):
			x.loop.After(key(q), gather)
		}
		if pod, ok := e.Object.(*corev1.Pod); ok && e.Type != client.Deleted {
			if at, ok := quota.Expiry(pod); ok {
				x.countAt(key(q), at.Add(time.Second))
			}
		}
	}
}

func (x *Controller) sync(ctx context.Context, k types.NamespacedName) error {
	q, ok := x.quotas.Get(k.Namespace, k.Name)
	x.mu.Lock()
	if at, waits := x.again[k]; !ok || waits && !time.Now().Before(at) {
		delete(x.again, k)
	} else if waits {
		x.loop.After(k, time.Until(at)) // the queue has forgotten it for this call
	}
	if !ok {
		x.mu.Unlock()
		return nil
	}
	gvrs, whole, err := x.counted(ctx, q)
	waits := x.unknown[k]
	x.mu.Unlock()
	if err != nil {
		return err
	}
	if whole && waits {
		x.follow(ctx, k)
	}
	used := corev1.ResourceList{}
	for _, gvr := range gvrs {
		view := x.client.Informer(gvr, client.Scope{})
		if err := view.WaitSynced(ctx); err != nil {
			return fmt.Errorf("wait for %s: %w", gvr, err)
		}
		objs := view.List(k.Namespace)
		sum, err := quota.Sum(x.evaluators.Of(gvr.GroupResource()), q, objs)
		if err != nil {
			return fmt.Errorf("count %s for quota %s: %w", gvr.GroupResource(), k, err)
		}
		used = quota.Add(used, sum)
		for _, obj := range objs {
			pod, ok := obj.(*corev1.Pod)
			if !ok {
				break
			}
			if at, ok := quota.Expiry(pod); ok && !at.Before(time.Now()) {
				x.countAt(k, at.Add(time.Second))
			}
		}
	}
	if quota.Equal(q.Status.Used, used) && q.Status.Used != nil && apiequality.Semantic.DeepEqual(q.Spec.Hard, q.Status.Hard) {
		return nil
	}
	less := !apiequality.Semantic.DeepEqual(q.Spec.Hard, q.Status.Hard) // writes under way were charged by other limits
	for name, was := range q.Status.Used {
		now, ok := used[name]
		less = less || ok && now.Cmp(was) < 0
	}
	out := q.DeepCopy()
	out.Status = corev1.ResourceQuotaStatus{Hard: q.Spec.Hard.DeepCopy(), Used: used}
	if out.Status.Hard == nil {
		out.Status.Hard = corev1.ResourceList{}
	}
	if _, err := client.ResourceQuotas.UpdateStatus(ctx, x.client, out); err != nil {
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("write the status of quota %s: %w", k, err)
	}
	if less {
		x.countAt(k, time.Now().Add(recount))
	}
	return nil
}

// countAt has a quota counted at a time.
func (x *Controller) countAt(k types.NamespacedName, at time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if have, ok := x.again[k]; ok && !at.Before(have) {
		return // what it leaves to do, that count will find
	}
	x.again[k] = at
	x.loop.After(k, time.Until(at))
}

// views reads from the informers.
type views struct{ client client.Interface }

func (v views) Get(gvr schema.GroupVersionResource, namespace, name string) (api.Object, bool) {
	return v.client.Informer(gvr, client.Scope{}).Get(namespace, name)
}

func (v views) List(gvr schema.GroupVersionResource, namespace string) []api.Object {
	return v.client.Informer(gvr, client.Scope{}).List(namespace)
}
