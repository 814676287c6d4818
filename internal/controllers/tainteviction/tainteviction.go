// Package tainteviction deletes pods from nodes with a NoExecute taint that they do
// not tolerate, or no longer: spec.tolerations[].tolerationSeconds counts from when
// the taint was seen here.
package tainteviction

import (
	"context"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"
	v1helper "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/klog/v2"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/client/events"
	"github.com/proa-dev/proa/internal/controllers/loop"
	"github.com/proa-dev/proa/internal/controllers/owned"
)

// Controller deletes pods.
type Controller struct {
	client client.Interface
	loop   *loop.Loop[types.NamespacedName]
	events *events.Recorder
	pods   client.Typed[*corev1.Pod]
	nodes  client.Typed[*corev1.Node]

	mu    sync.Mutex
	since map[types.NamespacedName]begin // pods that will have to go
}

// begin is when a pod's toleration began to count.
type begin struct {
	uid types.UID
	at  time.Time
}

// New returns the controller.
func New(c client.Interface, log *slog.Logger) *Controller {
	x := &Controller{client: c, events: events.New(c, "taint-eviction-controller", "", log), pods: client.Pods.Informer(c, client.Scope{}),
		nodes: client.Nodes.Informer(c, client.Scope{}), since: map[types.NamespacedName]begin{}}
	x.loop = loop.New("tainteviction", log, x.sync)
	return x
}

func (x *Controller) Name() string { return "taint-eviction" }

func keyOf(o client.Object) types.NamespacedName {
	return types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}
}

// Run works until ctx ends.
func (x *Controller) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { _ = x.events.Run(ctx) })
	err := x.loop.Run(ctx, 8,
		loop.Source{Informer: x.nodes.Informer, Handle: func(e client.Event) {
			node, ok := e.Object.(*corev1.Node)
			if !ok || e.Type == client.Deleted {
				return
			}
			old, _ := e.Old.(*corev1.Node)
			if old != nil && apiequality.Semantic.DeepEqual(old.Spec.Taints, node.Spec.Taints) || old == nil && len(noExecute(node)) == 0 {
				return
			}
			for _, p := range x.pods.List("", nil) { // taints change seldom
				if p.Spec.NodeName == node.Name {
					x.loop.Add(keyOf(p))
				}
			}
		}},
		loop.Source{Informer: x.pods.Informer, Handle: func(e client.Event) {
			pod, ok := e.Object.(*corev1.Pod)
			if !ok || pod.Spec.NodeName == "" {
				return
			}
			old, _ := e.Old.(*corev1.Pod)
			if e.Type == client.Deleted || old == nil || old.Spec.NodeName == "" || !apiequality.Semantic.DeepEqual(old.Spec.Tolerations, pod.Spec.Tolerations) {
				if n, ok := x.nodes.Get("", pod.Spec.NodeName); e.Type == client.Deleted || !ok || len(noExecute(n)) > 0 {
					x.loop.Add(keyOf(pod))
				}
			}
		}})
	cancel()
	wg.Wait()
	return err
}

func noExecute(n *corev1.Node) (out []corev1.Taint) {
	for _, t := range n.Spec.Taints {
		if t.Effect == corev1.TaintEffectNoExecute {
			out = append(out, t)
		}
	}
	return out
}

// tolerated is how long a pod may stay: false for ever.
func tolerated(taints []corev1.Taint, tolerations []corev1.Toleration) (time.Duration, bool) {
	least, bounded := time.Duration(0), false
	for i := range taints {
		found := false
		for j := range tolerations {
			t := &tolerations[j]
			if !v1helper.TolerationsTolerateTaint(klog.Logger{}, tolerations[j:j+1], &taints[i], false) {
				continue
			}
			found = true
			if t.TolerationSeconds == nil {
				continue
			}
			if d := time.Duration(max(0, *t.TolerationSeconds)) * time.Second; !bounded || d < least {
				least, bounded = d, true
			}
		}
		if !found {
			return 0, true
		}
	}
	return least, bounded
}

func (x *Controller) sync(ctx context.Context, key types.NamespacedName) error {
	pod, ok := x.pods.Get(key.Namespace, key.Name)
	if !ok || pod.DeletionTimestamp != nil {
		x.forget(key)
		return nil
	}
	var taints []corev1.Taint
	if node, ok := x.nodes.Get("", pod.Spec.NodeName); ok {
		taints = noExecute(node)
	}
	stay, bounded := tolerated(taints, pod.Spec.Tolerations)
	if !bounded {
		if x.forget(key) {
			x.events.Eventf(pod, corev1.EventTypeNormal, "TaintManagerEviction", "Cancelling deletion of Pod %s", key)
		}
		return nil
	}
	x.mu.Lock()
	b, ok := x.since[key]
	if !ok || b.uid != pod.UID {
		b = begin{pod.UID, time.Now()}
		x.since[key] = b
	}
	x.mu.Unlock()
	if left := time.Until(b.at.Add(stay)); left > 0 {
		x.loop.After(key, left)
		return nil
	}
	x.events.Eventf(pod, corev1.EventTypeNormal, "TaintManagerEviction", "Marking for deletion Pod %s", key)
	if err := owned.Disrupt(ctx, x.client, pod, "DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint", false, false); err != nil {
		return err
	}
	x.forget(key)
	return nil
}

// forget reports whether the pod was to go.
func (x *Controller) forget(key types.NamespacedName) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	_, ok := x.since[key]
	delete(x.since, key)
	return ok
}
