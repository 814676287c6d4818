// Package kubeproxy leads traffic for Services to their endpoints on this node:
// ClusterIPs, external addresses and node ports, by nftables maps written over
// netlink. One change of a Service is one transaction of its own elements; the
// cost does not grow with the number of Services.
//
// It serves IPv4; a Service's IPv6 addresses are left alone.
package kubeproxy

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/network/nft"
)

// Config is what the proxy needs.
type Config struct {
	Client   client.Interface
	NodeName string
	Logger   *slog.Logger
}

// Proxy is the Service proxy of one node.
type Proxy struct {
	cfg Config
	log *slog.Logger

	mu       sync.Mutex
	services map[types.NamespacedName]*corev1.Service
	slices   map[types.NamespacedName]map[string]*discoveryv1.EndpointSlice // by Service, then slice name
	dirty    map[types.NamespacedName]bool
	wake     chan struct{}

	installed map[types.NamespacedName][]*portal // only the loop touches it
}

// New returns a proxy that has not started.
func New(cfg Config) *Proxy {
	return &Proxy{cfg: cfg, log: cfg.Logger, wake: make(chan struct{}, 1),
		services: map[types.NamespacedName]*corev1.Service{}, dirty: map[types.NamespacedName]bool{},
		slices: map[types.NamespacedName]map[string]*discoveryv1.EndpointSlice{}}
}

// retryAfter is the pause after a transaction that the kernel refused.
const retryAfter = time.Second

// Run keeps the rules until ctx ends. They stay in place then, so that
// connections survive a restart; Remove takes them away.
func (p *Proxy) Run(ctx context.Context) error {
	services := client.Services.Informer(p.cfg.Client, client.Scope{})
	slices := client.EndpointSlices.Informer(p.cfg.Client, client.Scope{})
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := make(chan error, 2)
	for _, w := range []struct {
		informer client.Informer
		fn       func(client.Event)
	}{{services.Informer, p.serviceEvent}, {slices.Informer, p.sliceEvent}} {
		wg.Go(func() {
			if err := w.informer.Watch(ctx, w.fn); err != nil && ctx.Err() == nil {
				failed <- err
			}
		})
	}
	// The rules are written once both views are whole, so that a restart never
	// takes a Service away that still has endpoints (E1).
	if err := services.WaitSynced(ctx); err != nil {
		return nil
	}
	if err := slices.WaitSynced(ctx); err != nil {
		return nil
	}
	conn, err := nft.Open()
	if err != nil {
		return fmt.Errorf("kube-proxy: open nftables: %w", err)
	}
	var t *table
	for {
		wait := time.Duration(-1)
		if t == nil {
			t, err = p.install(conn)
		} else {
			err = p.sync(t)
		}
		if err != nil {
			p.log.Error("kube-proxy: write rules", "err", err)
			t, wait = nil, retryAfter // what the kernel has is uncertain: write all anew
		}
		var timer <-chan time.Time
		if wait > 0 {
			timer = time.After(wait)
		}
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return fmt.Errorf("kube-proxy: watch: %w", err)
		case <-p.wake:
		case <-timer:
		}
	}
}

func (p *Proxy) serviceEvent(e client.Event) {
	svc, ok := e.Object.(*corev1.Service)
	if !ok {
		return
	}
	key := types.NamespacedName{Namespace: svc.Namespace, Name: svc.Name}
	p.mu.Lock()
	defer p.mu.Unlock()
	if e.Type == client.Deleted {
		delete(p.services, key)
	} else {
		p.services[key] = svc
	}
	p.mark(key)
}

func (p *Proxy) sliceEvent(e client.Event) {
	slice, ok := e.Object.(*discoveryv1.EndpointSlice)
	if !ok || slice.Labels[discoveryv1.LabelServiceName] == "" {
		return
	}
	key := types.NamespacedName{Namespace: slice.Namespace, Name: slice.Labels[discoveryv1.LabelServiceName]}
	p.mu.Lock()
	defer p.mu.Unlock()
	if e.Type == client.Deleted {
		delete(p.slices[key], slice.Name)
		if len(p.slices[key]) == 0 {
			delete(p.slices, key)
		}
	} else {
		if p.slices[key] == nil {
			p.slices[key] = map[string]*discoveryv1.EndpointSlice{}
		}
		p.slices[key][slice.Name] = slice
	}
	p.mark(key)
}

func (p *Proxy) mark(key types.NamespacedName) {
	p.dirty[key] = true
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// install writes all rules in one transaction.
func (p *Proxy) install(conn *nftables.Conn) (*table, error) {
	p.mu.Lock()
	clear(p.dirty)
	want := map[types.NamespacedName][]*portal{}
	for key := range p.services {
		want[key] = p.plan(key)
	}
	p.mu.Unlock()
	t, err := newTable(conn)
	if err != nil {
		return nil, err
	}
	for _, portals := range want {
		for _, portal := range portals {
			if err := t.change(nil, portal); err != nil {
				return nil, err
			}
		}
	}
	if err := conn.Flush(); err != nil {
		return nil, err
	}
	p.installed = want
	return t, nil
}

// plan is called with mu held.
func (p *Proxy) plan(key types.NamespacedName) []*portal {
	list := make([]*discoveryv1.EndpointSlice, 0, len(p.slices[key]))
	for _, s := range p.slices[key] {
		list = append(list, s)
	}
	return plan(p.services[key], list, p.cfg.NodeName)
}

// sync writes what changed since the last time in one transaction.
func (p *Proxy) sync(t *table) error {
	p.mu.Lock()
	want := map[types.NamespacedName][]*portal{}
	for key := range p.dirty {
		want[key] = p.plan(key)
	}
	clear(p.dirty)
	p.mu.Unlock()
	changed := false
	var stale []backend
	// First all that goes, then all that comes: a port may move between Services.
	type pair struct{ old, now *portal }
	var later []pair
	for key, now := range want {
		old := map[string]*portal{}
		for _, q := range p.installed[key] {
			old[q.chain] = q
		}
		for _, q := range now {
			was := old[q.chain]
			delete(old, q.chain)
			if !q.equal(was) {
				later = append(later, pair{was, q})
				stale = append(stale, goneUDP(was, q)...)
			}
		}
		for _, q := range old {
			changed = true
			if err := t.change(q, nil); err != nil {
				return err
			}
			stale = append(stale, goneUDP(q, nil)...)
		}
	}
	for _, c := range later {
		changed = true
		if err := t.change(c.old, c.now); err != nil {
			return err
		}
	}
	if changed {
		if err := t.conn.Flush(); err != nil {
			return err
		}
	}
	for key, now := range want {
		if len(now) == 0 {
			delete(p.installed, key)
		} else {
			p.installed[key] = now
		}
	}
	p.forget(stale)
	return nil
}

// goneUDP lists the UDP backends that a portal lost.
func goneUDP(old, now *portal) (out []backend) {
	if old == nil || !old.udp {
		return nil
	}
	keep := map[backend]bool{}
	if now != nil {
		for _, b := range now.backends {
			keep[b] = true
		}
	}
	for _, b := range old.backends {
		if !keep[b] {
			out = append(out, b)
		}
	}
	return out
}

// forget removes the UDP connections to backends that are gone: without a
// handshake they would go there for as long as the client sends (E2).
func (p *Proxy) forget(stale []backend) {
	for _, b := range stale {
		filter := &netlink.ConntrackFilter{}
		if filter.AddProtocol(unix.IPPROTO_UDP) != nil ||
			filter.AddIP(netlink.ConntrackReplySrcIP, net.IP(b.Addr().AsSlice())) != nil {
			continue
		}
		if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, filter); err != nil {
			p.log.Warn("kube-proxy: forget UDP connections", "endpoint", b, "err", err)
		}
	}
}

// Remove takes the proxy's rules out of the kernel.
func Remove() error {
	conn, err := nft.Open()
	if err != nil {
		return err
	}
	t := conn.AddTable(&nftables.Table{Name: TableName, Family: nftables.TableFamilyIPv4})
	conn.DelTable(t)
	return conn.Flush()
}
