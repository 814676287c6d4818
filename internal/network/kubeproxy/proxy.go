// Package kubeproxy leads traffic for Services to their endpoints on this node:
// ClusterIPs, external addresses and node ports, by nftables maps written over
// netlink. One change of a Service is one transaction of its own elements; the
// cost does not grow with the number of Services.
//
// It serves IPv4; a Service's IPv6 addresses are left alone.
package kubeproxy

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/google/nftables"
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
	NodeIP   netip.Addr // lets the node itself in where its range is
	// Pods is the range of the cluster's pods: others reach ClusterIPs with their
	// source hidden. Services is the range of ClusterIPs: nothing goes to those that
	// nobody has. Either may be left out.
	Pods, Services netip.Prefix
	Logger         *slog.Logger
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

	installed map[types.NamespacedName][]*portal // only the loop touches these
	claims    *claims
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
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failed, seen := make(chan error, 2), make(chan struct{}, 2)
	for _, w := range []struct {
		informer client.Informer
		fn       func(client.Event)
	}{
		{client.Services.Informer(p.cfg.Client, client.Scope{}).Informer, p.serviceEvent},
		{client.EndpointSlices.Informer(p.cfg.Client, client.Scope{}).Informer, p.sliceEvent},
	} {
		wg.Go(func() {
			if err := w.informer.Watch(ctx, func(e client.Event) {
				if e.Type == client.Synced {
					seen <- struct{}{}
					return
				}
				w.fn(e)
			}); err != nil && ctx.Err() == nil {
				failed <- err
			}
		})
	}
	// The rules are written once both views are whole, so that a restart never
	// takes a Service away that still has endpoints (E1).
	for range 2 {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return fmt.Errorf("kube-proxy: watch: %w", err)
		case <-seen:
		}
	}
	var t *table
	for {
		var err error
		if t == nil {
			t, err = p.fresh()
		} else {
			err = p.sync(t)
		}
		var retry <-chan time.Time
		if err != nil {
			p.log.Error("kube-proxy: write rules", "err", err)
			t, retry = nil, time.After(retryAfter) // what the kernel has is uncertain: write all anew
		}
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return fmt.Errorf("kube-proxy: watch: %w", err)
		case <-p.wake:
		case <-retry:
		}
	}
}

// fresh writes everything over a connection without the remains of another one.
func (p *Proxy) fresh() (*table, error) {
	conn, err := nft.Open()
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	return p.install(conn)
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
	if _, headless := slice.Labels[corev1.IsHeadlessService]; headless {
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
	t, err := newTable(conn, p.cfg.Pods, p.cfg.Services)
	if err != nil {
		return nil, err
	}
	p.claims = newClaims()
	var udp []*portal
	for _, key := range sorted(want) {
		p.claims.claim(key, want[key], p.log)
		for _, portal := range want[key] {
			if err := t.change(nil, portal, p.cfg.Pods); err != nil {
				return nil, err
			}
			if portal.proto == unix.IPPROTO_UDP {
				udp = append(udp, portal)
			}
		}
	}
	if err := conn.Flush(); err != nil {
		return nil, err
	}
	p.installed = want
	p.forget(udp, nil)
	return t, nil
}

// plan is called with mu held.
func (p *Proxy) plan(key types.NamespacedName) []*portal {
	list := make([]*discoveryv1.EndpointSlice, 0, len(p.slices[key]))
	for _, s := range p.slices[key] {
		list = append(list, s)
	}
	return plan(p.services[key], list, p.cfg.NodeName, p.cfg.NodeIP)
}

// sync writes what changed since the last time in one transaction.
func (p *Proxy) sync(t *table) error {
	p.mu.Lock()
	want := map[types.NamespacedName][]*portal{}
	for key := range p.dirty {
		want[key] = p.plan(key)
	}
	clear(p.dirty)
	order := sorted(want) // who changed comes before who waits for what it had
	for _, key := range order[:len(order):len(order)] {
		for _, waiting := range p.claims.release(key) {
			if _, ok := want[waiting]; !ok {
				want[waiting] = p.plan(waiting)
				p.claims.release(waiting)
				order = append(order, waiting)
			}
		}
	}
	p.mu.Unlock()
	// First all that goes, then all that comes: a port may move between Services.
	type pair struct{ old, now *portal }
	var gone, later []pair
	var udp, lost []*portal
	for _, key := range order {
		now := want[key]
		p.claims.claim(key, now, p.log)
		old := map[string]*portal{}
		for _, q := range p.installed[key] {
			old[q.id] = q
		}
		for _, q := range now {
			was := old[q.id]
			delete(old, q.id)
			switch {
			case q.equal(was):
				if q.proto == unix.IPPROTO_UDP && !slices.Equal(q.serving, was.serving) {
					udp = append(udp, q)
				}
			case was == nil:
				later = append(later, pair{nil, q})
			case sameFrontends(was, q):
				later = append(later, pair{was, q})
			default:
				gone, later = append(gone, pair{was, nil}), append(later, pair{nil, q})
			}
		}
		for _, q := range old {
			gone = append(gone, pair{q, nil})
		}
	}
	for _, c := range append(gone, later...) {
		if err := t.change(c.old, c.now, p.cfg.Pods); err != nil {
			return err
		}
		switch {
		case c.now != nil && c.now.proto == unix.IPPROTO_UDP:
			udp = append(udp, c.now)
		case c.now == nil && c.old.proto == unix.IPPROTO_UDP:
			lost = append(lost, c.old)
		}
	}
	if len(gone)+len(later) > 0 {
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
	p.forget(udp, lost)
	return nil
}

func sorted(m map[types.NamespacedName][]*portal) []types.NamespacedName {
	return slices.SortedFunc(maps.Keys(m), func(a, b types.NamespacedName) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
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
