// Package nodeipam gives each Node its range of pod addresses (spec.podCIDR and
// spec.podCIDRs), cut from the cluster's range. A range is free again once its Node
// is gone. It moves nothing: a range that a Node has, it keeps.
package nodeipam

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/controllers/loop"
)

// Config is what the controller needs.
type Config struct {
	Client  client.Interface
	Cluster netip.Prefix // the range of all pods; IPv4
	Bits    int          // of a Node's range, e.g. 24
	// First is the Node that has the first range: the one that serves the cluster
	// must know its range before there is a Node.
	First string
	// Event tells of a Node that gets no range; nil: nobody.
	Event  func(node *corev1.Node, eventType, reason, format string, args ...any)
	Logger *slog.Logger
}

// Controller gives out ranges.
type Controller struct {
	cfg   Config
	loop  *loop.Loop[string]
	nodes client.Typed[*corev1.Node]

	mu   sync.Mutex
	has  map[string]netip.Prefix // by Node
	used map[netip.Prefix]string // and back
	poor map[string]bool         // Nodes for which there was none
	next uint32                  // where the search begins
}

// New returns the controller.
func New(cfg Config) (*Controller, error) {
	if !cfg.Cluster.Addr().Is4() || cfg.Bits < cfg.Cluster.Bits() || cfg.Bits > 30 {
		return nil, fmt.Errorf("ranges of /%d for nodes in %s: an IPv4 range with room for them is needed", cfg.Bits, cfg.Cluster)
	}
	cfg.Cluster = cfg.Cluster.Masked()
	x := &Controller{cfg: cfg, nodes: client.Nodes.Informer(cfg.Client, client.Scope{}), has: map[string]netip.Prefix{}, used: map[netip.Prefix]string{}, poor: map[string]bool{}}
	x.loop = loop.New("node-ipam", cfg.Logger, x.sync)
	return x, nil
}

func (x *Controller) Name() string { return "node-ipam" }

// Run works until ctx ends.
func (x *Controller) Run(ctx context.Context) error {
	return x.loop.Run(ctx, 1, loop.Source{Informer: x.nodes.Informer, Handle: x.event})
}

func (x *Controller) event(e client.Event) {
	n, ok := e.Object.(*corev1.Node)
	if !ok {
		return
	}
	if e.Type != client.Deleted {
		x.note(n)
		if n.Spec.PodCIDR == "" && n.DeletionTimestamp == nil {
			x.loop.Add(n.Name)
		}
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if p, ok := x.has[n.Name]; ok {
		delete(x.has, n.Name)
		delete(x.used, p)
	}
	delete(x.poor, n.Name)
	for name := range x.poor { // there is room now
		x.loop.Add(name)
	}
}

// note keeps in mind what a Node has.
func (x *Controller) note(n *corev1.Node) {
	p, err := netip.ParsePrefix(n.Spec.PodCIDR)
	if err != nil {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.has[n.Name], x.used[p.Masked()] = p.Masked(), n.Name
	delete(x.poor, n.Name)
}

func (x *Controller) sync(ctx context.Context, name string) error {
	n, ok := x.nodes.Get("", name)
	if !ok || n.Spec.PodCIDR != "" || n.DeletionTimestamp != nil {
		return nil
	}
	p, ok := x.choose(name)
	if !ok {
		if x.cfg.Event != nil {
			x.cfg.Event(n, corev1.EventTypeNormal, "CIDRNotAvailable", "Node %s status is now: CIDRNotAvailable", name)
		}
		x.cfg.Logger.Warn("no range of pod addresses is left", "kind", "Node", "name", name, "cluster", x.cfg.Cluster)
		return nil
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": n.UID},
		"spec": map[string]any{"podCIDR": p.String(), "podCIDRs": []string{p.String()}}})
	if err == nil {
		_, err = client.Nodes.Patch(ctx, x.cfg.Client, "", name, "", types.StrategicMergePatchType, patch)
	}
	if err != nil {
		return fmt.Errorf("give node %s the range %s: %w", name, p, err)
	}
	return nil
}

// choose takes a free range for a Node; one that it was given before it gets again.
func (x *Controller) choose(name string) (netip.Prefix, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if p, ok := x.has[name]; ok {
		return p, true
	}
	count := uint32(1) << (x.cfg.Bits - x.cfg.Cluster.Bits())
	take := func(i uint32) (netip.Prefix, bool) {
		b := x.cfg.Cluster.Addr().As4()
		at := binary.BigEndian.Uint32(b[:]) + i<<(32-x.cfg.Bits)
		binary.BigEndian.PutUint32(b[:], at)
		p := netip.PrefixFrom(netip.AddrFrom4(b), x.cfg.Bits)
		if _, taken := x.used[p]; taken {
			return p, false
		}
		x.has[name], x.used[p] = p, name
		return p, true
	}
	if name == x.cfg.First {
		return take(0)
	}
	// A range rests before it is given again.
	for k := range count {
		i := (x.next + k) % count
		if i == 0 && x.cfg.First != "" {
			continue
		}
		if p, ok := take(i); ok {
			x.next = i + 1
			return p, true
		}
	}
	x.poor[name] = true
	return netip.Prefix{}, false
}
