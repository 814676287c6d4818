// Package podgc deletes pods that nobody else will: of nodes that are gone or taken
// out of service, those that end without ever having had a node, and the oldest of
// too many that have ended.
package podgc

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/controllers/loop"
	"github.com/proa-dev/proa/internal/controllers/owned"
)

const (
	// quarantine is how long a node must be gone before its pods are.
	quarantine = 40 * time.Second
	// Terminated is how many pods that have ended are kept (--terminated-pod-gc-threshold).
	Terminated = 12500
	// gather is how long ends of pods are gathered before they are counted.
	gather = 20 * time.Second
)

// key is a pod or, without a name, all that have ended.
type key = types.NamespacedName

// Controller deletes pods.
type Controller struct {
	client client.Interface
	loop   *loop.Loop[key]
	pods   client.Typed[*corev1.Pod]
	nodes  client.Typed[*corev1.Node]
	keep   int

	mu    sync.Mutex
	gone  map[string]time.Time // nodes, and since when they are not there
	ended map[key]bool
}

// New returns the controller; keep is Terminated but for tests.
func New(c client.Interface, keep int, log *slog.Logger) *Controller {
	x := &Controller{client: c, pods: client.Pods.Informer(c, client.Scope{}), nodes: client.Nodes.Informer(c, client.Scope{}), keep: keep,
		gone: map[string]time.Time{}, ended: map[key]bool{}}
	x.loop = loop.New("podgc", log, x.sync)
	return x
}

func (x *Controller) Name() string { return "podgc" }

// Run works until ctx ends.
func (x *Controller) Run(ctx context.Context) error {
	return x.loop.Run(ctx, 2,
		loop.Source{Informer: x.nodes.Informer, Handle: func(e client.Event) {
			node, ok := e.Object.(*corev1.Node)
			if !ok {
				return
			}
			if e.Type != client.Deleted {
				x.mu.Lock()
				delete(x.gone, node.Name)
				x.mu.Unlock()
			}
			if e.Type == client.Deleted || outOfService(node) {
				for _, p := range x.pods.List("", nil) {
					if p.Spec.NodeName == node.Name {
						x.loop.Add(keyOf(p))
					}
				}
			}
		}},
		loop.Source{Informer: x.pods.Informer, Handle: func(e client.Event) {
			pod, ok := e.Object.(*corev1.Pod)
			if !ok {
				return
			}
			x.count(pod, e.Type)
			if e.Type == client.Deleted {
				return
			}
			if pod.Spec.NodeName == "" {
				if pod.DeletionTimestamp != nil {
					x.loop.Add(keyOf(pod))
				}
			} else if n, ok := x.nodes.Get("", pod.Spec.NodeName); !ok || outOfService(n) {
				x.loop.Add(keyOf(pod))
			}
		}})
}

func keyOf(p *corev1.Pod) key { return key{Namespace: p.Namespace, Name: p.Name} }

func over(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

func (x *Controller) count(p *corev1.Pod, t client.EventType) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if t == client.Deleted || !over(p) {
		delete(x.ended, keyOf(p))
		return
	}
	x.ended[keyOf(p)] = true
	if x.keep > 0 && len(x.ended) > x.keep {
		x.loop.After(key{}, gather)
	}
}

func outOfService(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == corev1.TaintNodeOutOfService }) &&
		!slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
			return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
		})
}

func (x *Controller) sync(ctx context.Context, k key) error {
	if k == (key{}) {
		return x.trim(ctx)
	}
	pod, ok := x.pods.Get(k.Namespace, k.Name)
	if !ok {
		return nil
	}
	if pod.Spec.NodeName == "" {
		if pod.DeletionTimestamp == nil {
			return nil
		}
		return x.force(ctx, pod)
	}
	node, ok := x.nodes.Get("", pod.Spec.NodeName)
	if ok {
		if pod.DeletionTimestamp != nil && outOfService(node) {
			return owned.Disrupt(ctx, x.client, pod, "DeletionByPodGC", "PodGC: node no longer exists", true, true)
		}
		return nil
	}
	x.mu.Lock()
	since, seen := x.gone[pod.Spec.NodeName]
	if !seen {
		since = time.Now()
		x.gone[pod.Spec.NodeName] = since
	}
	x.mu.Unlock()
	if left := time.Until(since.Add(quarantine)); left > 0 {
		x.loop.After(k, left)
		return nil
	}
	// The view may be behind: the node itself is asked for.
	if _, err := client.Nodes.Get(ctx, x.client, "", pod.Spec.NodeName); err == nil {
		return nil
	} else if !apierrors.IsNotFound(err) {
		return fmt.Errorf("read node %s: %w", pod.Spec.NodeName, err)
	}
	return owned.Disrupt(ctx, x.client, pod, "DeletionByPodGC", "PodGC: node no longer exists", true, true)
}

func (x *Controller) force(ctx context.Context, pod *corev1.Pod) error {
	err := client.Pods.Delete(ctx, x.client, pod.Namespace, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: new(int64), Preconditions: &metav1.Preconditions{UID: &pod.UID}})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return nil
}

// trim deletes the oldest pods that have ended, down to what is kept.
func (x *Controller) trim(ctx context.Context) error {
	x.mu.Lock()
	keys := make([]key, 0, len(x.ended))
	for k := range x.ended {
		keys = append(keys, k)
	}
	x.mu.Unlock()
	if len(keys) <= x.keep {
		return nil
	}
	var pods []*corev1.Pod
	for _, k := range keys {
		if p, ok := x.pods.Get(k.Namespace, k.Name); ok && p.DeletionTimestamp == nil && over(p) {
			pods = append(pods, p)
		}
	}
	// Evicted pods are of the least use.
	evicted := func(p *corev1.Pod) bool { return p.Status.Reason == "Evicted" }
	slices.SortFunc(pods, func(a, b *corev1.Pod) int {
		if evicted(a) != evicted(b) {
			if evicted(a) {
				return -1
			}
			return 1
		}
		return a.CreationTimestamp.Compare(b.CreationTimestamp.Time)
	})
	for _, p := range pods[:max(0, len(pods)-x.keep)] {
		if err := x.force(ctx, p); err != nil {
			return err
		}
	}
	return nil
}
