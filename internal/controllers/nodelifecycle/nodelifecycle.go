// Package nodelifecycle turns what a node says of itself into taints that keep
// pods away: not ready, unreachable, under pressure, cordoned.
//
// It marks a node whose lease has not been renewed for 50 s as unknown, and the
// pods of a node that is not ready as not ready. It does not evict pods (package
// tainteviction does), but says how fast nodes lose theirs: the taints that evict
// are set node by node, and not at all where most of a zone is down, for then the
// network is likelier to be at fault than the nodes.
package nodelifecycle

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/client/events"
	"github.com/proa-dev/proa/internal/controllers/loop"
)

// grace is how long a node may be silent (node-monitor-grace-period).
const grace = 50 * time.Second

const (
	// A node of a zone loses its pods each 10 s (node-eviction-rate); of a large zone
	// that is mostly down each 100 s, of a small one none.
	pace          = 10 * time.Second
	slowPace      = 100 * time.Second
	largeZone     = 50
	mostlyDown    = 0.55
	pauseOfPolicy = 5 * time.Second // until a node that may not be tainted yet is looked at again
)

// Controller writes the condition taints of Nodes, and their Ready condition when
// they are silent; it reads Leases.
type Controller struct {
	client client.Interface
	loop   *loop.Loop[string]
	nodes  client.Typed[*corev1.Node]
	leases client.Typed[*coordinationv1.Lease]
	pods   client.Typed[*corev1.Pod]
	events *events.Recorder

	mu    sync.Mutex
	zones map[string]time.Time // when the next node may be tainted
	// seen is when this process last saw a sign of life, by its own clock: a jump
	// of the node's clock, or a pause of this process, makes nobody unreachable.
	seen map[string]time.Time
}

// New returns the controller.
func New(c client.Interface, log *slog.Logger) *Controller {
	x := &Controller{client: c, nodes: client.Nodes.Informer(c, client.Scope{}), seen: map[string]time.Time{}, zones: map[string]time.Time{},
		pods: client.Pods.Informer(c, client.Scope{}), events: events.New(c, "node-controller", "", log),
		leases: client.Leases.Informer(c, client.Scope{Namespace: corev1.NamespaceNodeLease})}
	x.loop = loop.New("nodelifecycle", log, x.sync)
	return x
}

func (x *Controller) Name() string { return "nodelifecycle" }

// Run works until ctx ends.
func (x *Controller) Run(ctx context.Context) error {
	alive := func(name string) {
		x.mu.Lock()
		x.seen[name] = time.Now()
		x.mu.Unlock()
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { _ = x.events.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	return x.loop.Run(ctx, 1,
		loop.Source{Informer: x.nodes.Informer, Handle: func(e client.Event) {
			if e.Object == nil {
				return
			}
			name := e.Object.GetName()
			if old, ok := e.Old.(*corev1.Node); e.Type != client.Modified || ok && ready(old) != ready(e.Object.(*corev1.Node)) {
				// How many are down decides about the others.
				for _, n := range x.nodes.List("", nil) {
					if ready(n) != corev1.ConditionTrue {
						x.loop.Add(n.Name)
					}
				}
			}
			if e.Type == client.Deleted {
				x.mu.Lock()
				delete(x.seen, name)
				x.mu.Unlock()
				return
			}
			if e.Type == client.Added {
				alive(name)
			}
			x.loop.Add(name)
		}},
		loop.Source{Informer: x.leases.Informer, Handle: func(e client.Event) {
			if e.Object != nil && e.Type != client.Deleted {
				alive(e.Object.GetName())
				if n, ok := x.nodes.Get("", e.Object.GetName()); ok && ready(n) == corev1.ConditionUnknown {
					x.loop.Add(n.Name)
				}
			}
		}})
}

func ready(n *corev1.Node) corev1.ConditionStatus {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status
		}
	}
	return corev1.ConditionFalse
}

func (x *Controller) sync(ctx context.Context, name string) error {
	node, ok := x.nodes.Get("", name)
	if !ok {
		return nil
	}
	x.mu.Lock()
	silent := time.Since(x.seen[name])
	x.mu.Unlock()
	if silent >= grace && ready(node) == corev1.ConditionTrue {
		out := node.DeepCopy()
		for i := range out.Status.Conditions {
			c := &out.Status.Conditions[i]
			c.Status, c.Reason, c.Message, c.LastTransitionTime = corev1.ConditionUnknown, "NodeStatusUnknown", "Kubelet stopped posting node status.", metav1.Now()
		}
		if _, err := client.Nodes.UpdateStatus(ctx, x.client, out); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("mark node %s unknown: %w", name, err)
		}
		return nil // the change brings it back here
	}
	if ready(node) == corev1.ConditionTrue {
		x.loop.After(name, max(time.Second, grace-silent))
	} else if err := x.markPods(ctx, node); err != nil {
		return err
	}
	want, wait := x.evict(node, Taints(node))
	if wait > 0 {
		x.loop.After(name, wait)
	}
	if slices.EqualFunc(want, node.Spec.Taints, func(a, b corev1.Taint) bool { return a.Key == b.Key && a.Effect == b.Effect && a.Value == b.Value }) {
		return nil
	}
	out := node.DeepCopy()
	out.Spec.Taints = want
	if _, err := client.Nodes.Update(ctx, x.client, out); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("set the taints of node %s: %w", name, err)
	}
	return nil
}

// zone is where a node is; what happens in one says nothing of the others.
func zone(n *corev1.Node) string {
	return n.Labels[corev1.LabelTopologyRegion] + "/" + n.Labels[corev1.LabelTopologyZone]
}

// evict leaves out the taints that evict as long as the node may not lose its pods,
// and says when to ask again.
func (x *Controller) evict(node *corev1.Node, taints []corev1.Taint) ([]corev1.Taint, time.Duration) {
	evicts := func(t corev1.Taint) bool {
		return t.Effect == corev1.TaintEffectNoExecute && (t.Key == corev1.TaintNodeNotReady || t.Key == corev1.TaintNodeUnreachable)
	}
	if !slices.ContainsFunc(taints, evicts) {
		return taints, 0
	}
	up, down, anyUp := 0, 0, false
	for _, n := range x.nodes.List("", nil) {
		isUp := ready(n) == corev1.ConditionTrue
		anyUp = anyUp || isUp
		switch {
		case zone(n) != zone(node):
		case isUp:
			up++
		default:
			down++
		}
	}
	if !anyUp { // nobody is there to take the pods, and this may be the one who is cut off
		return slices.DeleteFunc(taints, evicts), 0
	}
	if slices.ContainsFunc(node.Spec.Taints, evicts) {
		return taints, 0
	}
	between := pace
	if down > 2 && float64(down)/float64(up+down) >= mostlyDown {
		if between = slowPace; up+down <= largeZone {
			return slices.DeleteFunc(taints, evicts), pauseOfPolicy
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	now, next := time.Now(), x.zones[zone(node)]
	if wait := next.Sub(now); wait > 0 {
		return slices.DeleteFunc(taints, evicts), wait
	}
	x.zones[zone(node)] = now.Add(between)
	return taints, 0
}

// markPods says of the pods of a node that is not ready that they are not either,
// so that Services leave them out.
func (x *Controller) markPods(ctx context.Context, node *corev1.Node) error {
	for _, p := range x.pods.List("", nil) {
		if p.Spec.NodeName != node.Name {
			continue
		}
		out := p.DeepCopy()
		for i := range out.Status.Conditions {
			c := &out.Status.Conditions[i]
			if c.Type != corev1.PodReady || c.Status != corev1.ConditionTrue {
				continue
			}
			c.Status, c.LastTransitionTime = corev1.ConditionFalse, metav1.Now()
			if _, err := client.Pods.UpdateStatus(ctx, x.client, out); err != nil && !apierrors.IsNotFound(err) {
				return fmt.Errorf("mark pod %s/%s not ready: %w", p.Namespace, p.Name, err)
			}
			x.events.Eventf(p, corev1.EventTypeWarning, "NodeNotReady", "Node is not ready")
		}
	}
	return nil
}

// owned are the taints that follow from a node's state.
var owned = []string{corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable, corev1.TaintNodeMemoryPressure, corev1.TaintNodeDiskPressure,
	corev1.TaintNodePIDPressure, corev1.TaintNodeNetworkUnavailable, corev1.TaintNodeUnschedulable}

// Taints returns the taints that a node should have: those of others as they
// are, and those that follow from its conditions.
func Taints(node *corev1.Node) (out []corev1.Taint) {
	have := map[string]corev1.Taint{}
	for _, t := range node.Spec.Taints {
		if slices.Contains(owned, t.Key) {
			have[t.Key+string(t.Effect)] = t
		} else {
			out = append(out, t)
		}
	}
	add := func(key string, effect corev1.TaintEffect) {
		t, ok := have[key+string(effect)]
		if !ok {
			now := metav1.Now()
			t = corev1.Taint{Key: key, Effect: effect, TimeAdded: &now}
		}
		out = append(out, t)
	}
	switch ready(node) {
	case corev1.ConditionFalse:
		add(corev1.TaintNodeNotReady, corev1.TaintEffectNoSchedule)
		add(corev1.TaintNodeNotReady, corev1.TaintEffectNoExecute)
	case corev1.ConditionUnknown:
		add(corev1.TaintNodeUnreachable, corev1.TaintEffectNoSchedule)
		add(corev1.TaintNodeUnreachable, corev1.TaintEffectNoExecute)
	}
	for _, p := range []struct {
		condition corev1.NodeConditionType
		key       string
	}{{corev1.NodeMemoryPressure, corev1.TaintNodeMemoryPressure}, {corev1.NodeDiskPressure, corev1.TaintNodeDiskPressure},
		{corev1.NodePIDPressure, corev1.TaintNodePIDPressure}, {corev1.NodeNetworkUnavailable, corev1.TaintNodeNetworkUnavailable}} {
		if slices.ContainsFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool { return c.Type == p.condition && c.Status == corev1.ConditionTrue }) {
			add(p.key, corev1.TaintEffectNoSchedule)
		}
	}
	if node.Spec.Unschedulable {
		add(corev1.TaintNodeUnschedulable, corev1.TaintEffectNoSchedule)
	}
	return out
}
