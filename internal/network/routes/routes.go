// Package routes leads traffic for the pods of other nodes to those nodes: by a
// route through the node where it is on the same network segment, and otherwise in
// VXLAN (RFC 7348) over UDP port 4789. What a node needs to know of another is in its
// Node object: the address and the range of its pods.
//
// It serves IPv4, and encrypts nothing.
package routes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/proa-dev/proa/internal/client"
)

const (
	// Protocol marks the routes that are ours (rt_protocol).
	Protocol = 112
	// Tunnel is the VXLAN interface, which is there when a node is far.
	Tunnel = "proa-vxlan"

	vni         = 7276
	tunnelPort  = 4789
	tunnelBytes = 50 // what VXLAN adds to a packet
	retryAfter  = 2 * time.Second
)

// Config is what the routes need.
type Config struct {
	Client   client.Interface
	NodeName string
	NodeIP   netip.Addr
	Pods     netip.Prefix // of this node
	Logger   *slog.Logger
}

// peer is another node.
type peer struct {
	pods netip.Prefix
	ip   netip.Addr
}

// Routes are those of one node.
type Routes struct {
	cfg Config

	mu    sync.Mutex
	peers map[string]peer
	wake  chan struct{}
}

// New returns routes that are not kept yet.
func New(cfg Config) *Routes {
	return &Routes{cfg: cfg, peers: map[string]peer{}, wake: make(chan struct{}, 1)}
}

// Run keeps the routes until ctx ends. They stay in place then.
func (r *Routes) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// The kernel takes routes away with an interface or an address.
	gone := make(chan netlink.RouteUpdate, 64)
	if err := netlink.RouteSubscribeWithOptions(gone, ctx.Done(), netlink.RouteSubscribeOptions{
		ErrorCallback: func(err error) {
			if ctx.Err() == nil {
				r.cfg.Logger.Warn("follow the kernel's routes", "err", err)
			}
		}}); err != nil {
		return fmt.Errorf("follow the kernel's routes: %w", err)
	}
	wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case u, ok := <-gone:
				if !ok {
					return
				}
				if u.Type == unix.RTM_DELROUTE && u.Route.Protocol == Protocol || u.Type == unix.RTM_NEWROUTE && u.Route.Scope == netlink.SCOPE_LINK {
					r.awake()
				}
			}
		}
	})
	failed, seen := make(chan error, 1), make(chan struct{})
	wg.Go(func() {
		synced := false
		err := client.Nodes.Informer(r.cfg.Client, client.Scope{}).Watch(ctx, func(e client.Event) {
			if e.Type == client.Synced {
				if !synced {
					synced = true
					close(seen)
				}
				return
			}
			r.event(e)
		})
		if err != nil && ctx.Err() == nil {
			failed <- err
		}
	})
	// Routes of nodes that are not seen yet are not taken away.
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return fmt.Errorf("routes: watch nodes: %w", err)
	case <-seen:
	}
	for {
		var retry <-chan time.Time
		if err := r.sync(); err != nil {
			r.cfg.Logger.Warn("set the routes to other nodes' pods", "err", err)
			retry = time.After(retryAfter)
		}
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return fmt.Errorf("routes: watch nodes: %w", err)
		case <-r.wake:
		case <-retry:
		}
	}
}

func (r *Routes) awake() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *Routes) event(e client.Event) {
	n, ok := e.Object.(*corev1.Node)
	if !ok || n.Name == r.cfg.NodeName {
		return
	}
	p, known := of(n)
	r.mu.Lock()
	before, had := r.peers[n.Name]
	switch {
	case e.Type == client.Deleted || !known:
		delete(r.peers, n.Name)
		known = false
	default:
		r.peers[n.Name] = p
	}
	r.mu.Unlock()
	if had != known || before != p && known { // a heartbeat is no news
		r.awake()
	}
}

// of reads where a node and its pods are.
func of(n *corev1.Node) (p peer, ok bool) {
	var err error
	if p.pods, err = netip.ParsePrefix(n.Spec.PodCIDR); err != nil || !p.pods.Addr().Is4() {
		return peer{}, false
	}
	p.pods = p.pods.Masked()
	for _, a := range n.Status.Addresses {
		if a.Type != corev1.NodeInternalIP {
			continue
		}
		if p.ip, err = netip.ParseAddr(a.Address); err == nil && p.ip.Is4() {
			return p, true
		}
	}
	return peer{}, false
}

// sync makes the kernel's routes those to the peers. One that cannot be set leaves
// the others as they should be.
func (r *Routes) sync() error {
	r.mu.Lock()
	wanted := map[netip.Prefix]peer{}
	for _, p := range r.peers {
		wanted[p.pods] = p
	}
	r.mu.Unlock()
	var errs []error
	t := &tunnel{cfg: r.cfg}
	for _, p := range wanted {
		if err := r.route(t, p); err != nil {
			errs = append(errs, fmt.Errorf("route %s by %s: %w", p.pods, p.ip, err))
		}
	}
	errs = append(errs, t.prune())
	have, err := netlink.RouteListFiltered(unix.AF_INET, &netlink.Route{Protocol: Protocol}, netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return errors.Join(append(errs, fmt.Errorf("list the routes: %w", err))...)
	}
	for i := range have {
		if have[i].Dst == nil {
			continue
		}
		dst, ok := netip.AddrFromSlice(have[i].Dst.IP.To4())
		ones, _ := have[i].Dst.Mask.Size()
		if _, keep := wanted[netip.PrefixFrom(dst, ones)]; ok && keep {
			continue
		}
		if err := netlink.RouteDel(&have[i]); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("remove the route to %s: %w", have[i].Dst, err))
		}
	}
	return errors.Join(errs...)
}

// route leads to a peer's pods.
func (r *Routes) route(t *tunnel, p peer) error {
	way, err := netlink.RouteGet(p.ip.AsSlice())
	if err != nil {
		return fmt.Errorf("find the way to the node: %w", err)
	}
	if len(way) == 0 {
		return errors.New("no way to the node")
	}
	if way[0].Gw == nil { // on the same segment
		return netlink.RouteReplace(&netlink.Route{Dst: network(p.pods), Gw: p.ip.AsSlice(), LinkIndex: way[0].LinkIndex, Protocol: Protocol})
	}
	return t.route(p, way[0].LinkIndex)
}

// Remove takes the routes and the tunnel away.
func Remove() error {
	var errs []error
	have, err := netlink.RouteListFiltered(unix.AF_INET, &netlink.Route{Protocol: Protocol}, netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return fmt.Errorf("list the routes to other nodes' pods: %w", err)
	}
	for i := range have {
		if err := netlink.RouteDel(&have[i]); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("remove the route to %s: %w", have[i].Dst, err))
		}
	}
	if link, err := netlink.LinkByName(Tunnel); err == nil {
		errs = append(errs, netlink.LinkDel(link))
	}
	return errors.Join(errs...)
}
