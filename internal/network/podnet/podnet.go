// Package podnet gives each pod its network: a veth pair on a bridge, an address
// from the node's range, a default route, and the host ports it asks for. It
// works over netlink; the host settings it changes are written down and taken
// back by Remove.
//
// A pod has its address as a /32 with the bridge as gateway, so that traffic
// between pods of a node is routed by the host: the answers of a Service's
// endpoint pass the same address translation without br_netfilter.
package podnet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/proa-dev/proa/internal/network/nft"
)

// Bridge is the interface that pods hang on; TableName the nftables table.
const (
	Bridge    = "proa0"
	TableName = "proa-pods"
)

// PortMapping opens a port of the host to a pod.
type PortMapping struct {
	Protocol      uint8 // IPPROTO_TCP, …
	HostPort      uint16
	ContainerPort uint16
}

// Network is the pod network of one node.
type Network struct {
	state   string // folder: which address belongs to which sandbox
	cidr    netip.Prefix
	gateway netip.Addr

	mu    sync.Mutex
	used  map[netip.Addr]string // address -> sandbox
	ports map[string][]PortMapping
	last  netip.Addr
	conn  *nftables.Conn
	table *nftables.Table
	hosts *nftables.Set
}

// Open makes the bridge, the rules and the host settings for a range of pod
// addresses, and remembers what is in use from the state folder.
func Open(state string, cidr netip.Prefix) (*Network, error) {
	if !cidr.Addr().Is4() || cidr.Bits() > 30 {
		return nil, fmt.Errorf("pod range %s: an IPv4 range of at least four addresses is needed", cidr)
	}
	cidr = cidr.Masked()
	n := &Network{state: state, cidr: cidr, gateway: cidr.Addr().Next(), used: map[netip.Addr]string{}, ports: map[string][]PortMapping{}}
	if err := os.MkdirAll(filepath.Join(state, "addresses"), 0o700); err != nil {
		return nil, fmt.Errorf("make the network's folder: %w", err)
	}
	entries, err := os.ReadDir(filepath.Join(state, "addresses"))
	if err != nil {
		return nil, fmt.Errorf("read the addresses in use: %w", err)
	}
	for _, e := range entries {
		addr, err := netip.ParseAddr(e.Name())
		if err != nil {
			continue
		}
		id, err := os.ReadFile(n.file(addr))
		if err != nil {
			return nil, fmt.Errorf("read the addresses in use: %w", err)
		}
		n.used[addr] = string(id)
	}
	n.last = n.gateway
	if err := n.settings(); err != nil {
		return nil, err
	}
	if err := n.bridge(); err != nil {
		return nil, fmt.Errorf("make bridge %s: %w", Bridge, err)
	}
	if err := n.rules(); err != nil {
		return nil, fmt.Errorf("write the pod network's rules: %w", err)
	}
	return n, nil
}

func (n *Network) file(addr netip.Addr) string {
	return filepath.Join(n.state, "addresses", addr.String())
}

// forwarding is what routing between pods and the world needs.
const forwarding = "/proc/sys/net/ipv4/ip_forward"

// settings switches forwarding on and writes down what it was.
func (n *Network) settings() error {
	was, err := os.ReadFile(forwarding)
	if err != nil {
		return fmt.Errorf("read %s: %w", forwarding, err)
	}
	if strings.TrimSpace(string(was)) == "1" {
		return nil
	}
	saved := filepath.Join(n.state, "ip_forward")
	if err := os.WriteFile(saved, was, 0o600); err != nil {
		return fmt.Errorf("write down the host's forwarding: %w", err)
	}
	if err := os.WriteFile(forwarding, []byte("1"), 0o644); err != nil {
		return fmt.Errorf("switch on forwarding (%s): %w", forwarding, err)
	}
	return nil
}

func (n *Network) bridge() error {
	link, err := netlink.LinkByName(Bridge)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = Bridge
		// A fixed address: a bridge otherwise takes that of its first port, and
		// pods would lose their gateway when it goes.
		g := n.gateway.As4()
		attrs.HardwareAddr = net.HardwareAddr{0x0a, 0x58, g[0], g[1], g[2], g[3]}
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return err
		}
		link, err = netlink.LinkByName(Bridge)
	}
	if err != nil {
		return err
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: n.gateway.AsSlice(), Mask: net.CIDRMask(n.cidr.Bits(), 32)}}
	if err := netlink.AddrReplace(link, addr); err != nil {
		return err
	}
	// Pods reach each other through the gateway although they share the bridge: no redirects.
	if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+Bridge+"/send_redirects", []byte("0"), 0o644); err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

// RouteServices leads the addresses of Services to the bridge, so that the host
// reaches them without a default route, and those that nobody has stay here.
func (n *Network) RouteServices(services netip.Prefix) error {
	link, err := netlink.LinkByName(Bridge)
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", Bridge, err)
	}
	if err := netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_LINK, Src: n.gateway.AsSlice(),
		Dst: &net.IPNet{IP: services.Addr().AsSlice(), Mask: net.CIDRMask(services.Bits(), 32)}}); err != nil {
		return fmt.Errorf("set the route to Services: %w", err)
	}
	return nil
}

func (n *Network) rules() error {
	conn, err := nft.Open()
	if err != nil {
		return err
	}
	n.conn = conn
	n.table = &nftables.Table{Name: TableName, Family: nftables.TableFamilyIPv4}
	conn.AddTable(n.table)
	conn.DelTable(n.table)
	conn.AddTable(n.table)
	n.hosts = &nftables.Set{Table: n.table, Name: "host-ports", IsMap: true, Concatenation: true,
		KeyType:  nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService),
		DataType: nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)}
	if err := conn.AddSet(n.hosts, nil); err != nil {
		return err
	}
	for _, c := range []struct {
		name string
		hook *nftables.ChainHook
	}{{"prerouting", nftables.ChainHookPrerouting}, {"output", nftables.ChainHookOutput}} {
		chain := conn.AddChain(&nftables.Chain{Name: c.name, Table: n.table, Type: nftables.ChainTypeNAT, Hooknum: c.hook, Priority: nftables.ChainPriorityNATDest})
		exprs := append([]expr.Any{nft.Destination(nft.Reg0)}, nft.InPrefix(nft.Reg0, netip.MustParsePrefix("127.0.0.0/8"), expr.CmpOpNeq)...)
		exprs = append(exprs, nft.IsLocal()...)
		exprs = append(exprs, nft.Protocol(nft.Reg0), nft.Port(nft.Reg1), nft.FindInto(n.hosts), nft.DNAT())
		conn.AddRule(&nftables.Rule{Table: n.table, Chain: chain, Exprs: exprs})
	}
	post := conn.AddChain(&nftables.Chain{Name: "postrouting", Table: n.table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
	exprs := append([]expr.Any{nft.Source(nft.Reg0)}, nft.InPrefix(nft.Reg0, n.cidr, expr.CmpOpEq)...)
	exprs = append(exprs, nft.Destination(nft.Reg0))
	exprs = append(exprs, nft.InPrefix(nft.Reg0, n.cidr, expr.CmpOpNeq)...)
	exprs = append(exprs, &expr.Meta{Key: expr.MetaKeyOIFNAME, Register: nft.Reg0},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: nft.Reg0, Data: ifname(Bridge)}, &expr.Masq{})
	conn.AddRule(&nftables.Rule{Table: n.table, Chain: post, Exprs: exprs})
	return conn.Flush()
}

func ifname(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

// Attach gives the network namespace at path an interface eth0 with an address
// and opens the host ports. On an error nothing of it is left.
func (n *Network) Attach(_ context.Context, id, path string, ports []PortMapping) (netip.Addr, error) {
	addr, err := n.allocate(id)
	if err != nil {
		return netip.Addr{}, err
	}
	if err := n.plug(id, path, addr); err != nil {
		n.release(addr)
		return netip.Addr{}, fmt.Errorf("attach sandbox %s: %w", id, err)
	}
	if err := n.openPorts(id, addr, ports); err != nil {
		n.release(addr)
		return netip.Addr{}, fmt.Errorf("open the host ports of sandbox %s: %w", id, err)
	}
	return addr, nil
}

func (n *Network) allocate(id string) (netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for addr, owner := range n.used {
		if owner == id {
			return addr, nil
		}
	}
	// The next one after the last, so that an address rests before it is used again.
	next := n.last
	for range 1 << min(20, 32-n.cidr.Bits()) {
		if next = next.Next(); !n.cidr.Contains(next) || !n.cidr.Contains(next.Next()) {
			next = n.gateway.Next()
		}
		if _, taken := n.used[next]; taken {
			continue
		}
		f, err := os.OpenFile(n.file(next), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return netip.Addr{}, fmt.Errorf("take address %s: %w", next, err)
		}
		_, err = f.WriteString(id)
		if err := errors.Join(err, f.Close()); err != nil {
			os.Remove(n.file(next))
			return netip.Addr{}, fmt.Errorf("take address %s: %w", next, err)
		}
		n.used[next], n.last = id, next
		return next, nil
	}
	return netip.Addr{}, fmt.Errorf("no free pod address in %s", n.cidr)
}

func (n *Network) release(addr netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := os.Remove(n.file(addr)); err == nil || errors.Is(err, fs.ErrNotExist) {
		delete(n.used, addr)
	}
}

// plug makes the veth pair, its far end in the pod's namespace.
func (n *Network) plug(id, path string, addr netip.Addr) error {
	ns, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open the network namespace: %w", err)
	}
	defer ns.Close()
	handle, err := netlink.NewHandleAt(nsHandle(ns), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("enter the network namespace: %w", err)
	}
	defer handle.Close()
	bridge, err := netlink.LinkByName(Bridge)
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", Bridge, err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = vethName(id)
	attrs.MasterIndex = bridge.Attrs().Index
	attrs.MTU = bridge.Attrs().MTU
	attrs.Flags = net.FlagUp
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(ns.Fd())), PeerMTU: uint32(bridge.Attrs().MTU)}); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make the veth pair: %w", err)
	}
	host, err := netlink.LinkByName(attrs.Name)
	if err != nil {
		return fmt.Errorf("find %s: %w", attrs.Name, err)
	}
	// A pod that calls its own Service comes back by the port it left by.
	if err := netlink.LinkSetHairpin(host, true); err != nil {
		return fmt.Errorf("set hairpin mode: %w", err)
	}
	if err := netlink.LinkSetUp(host); err != nil {
		return fmt.Errorf("set %s up: %w", attrs.Name, err)
	}
	eth, err := handle.LinkByName("eth0")
	if err != nil {
		return fmt.Errorf("find eth0: %w", err)
	}
	if err := handle.AddrReplace(eth, &netlink.Addr{IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(32, 32)}}); err != nil {
		return fmt.Errorf("set address %s: %w", addr, err)
	}
	if err := handle.LinkSetUp(eth); err != nil {
		return fmt.Errorf("set eth0 up: %w", err)
	}
	if lo, err := handle.LinkByName("lo"); err == nil {
		if err := handle.LinkSetUp(lo); err != nil {
			return fmt.Errorf("set lo up: %w", err)
		}
	}
	route := &netlink.Route{LinkIndex: eth.Attrs().Index, Gw: n.gateway.AsSlice(), Flags: int(netlink.FLAG_ONLINK)}
	if err := handle.RouteReplace(route); err != nil {
		return fmt.Errorf("set the default route: %w", err)
	}
	return nil
}

// vethName is the host's end: at most 15 bytes.
func vethName(id string) string { return "proa" + id[:min(len(id), 11)] }

func (n *Network) openPorts(id string, addr netip.Addr, ports []PortMapping) error {
	if len(ports) == 0 {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.conn.SetAddElements(n.hosts, portElements(addr, ports)); err != nil {
		return err
	}
	if err := n.conn.Flush(); err != nil {
		return err
	}
	n.ports[id] = ports
	return nil
}

func portElements(addr netip.Addr, ports []PortMapping) (out []nftables.SetElement) {
	for _, p := range ports {
		out = append(out, nftables.SetElement{
			Key: append(nft.Word(p.Protocol), nft.PortWord(p.HostPort)...),
			Val: append(addr.AsSlice(), nft.PortWord(p.ContainerPort)...),
		})
	}
	return out
}

// Restore opens the host ports of a sandbox that runs since before a restart.
func (n *Network) Restore(id string, ports []PortMapping) error {
	n.mu.Lock()
	var addr netip.Addr
	for a, owner := range n.used {
		if owner == id {
			addr = a
		}
	}
	n.mu.Unlock()
	if !addr.IsValid() {
		return nil
	}
	return n.openPorts(id, addr, ports)
}

// Detach closes a sandbox's host ports and gives its address back. The veth pair goes with
// the network namespace, which the caller closes.
func (n *Network) Detach(_ context.Context, id string) error {
	n.mu.Lock()
	var addr netip.Addr
	for a, owner := range n.used {
		if owner == id {
			addr = a
		}
	}
	var err error
	if ports := n.ports[id]; len(ports) > 0 && addr.IsValid() {
		if err = n.conn.SetDeleteElements(n.hosts, portElements(addr, ports)); err == nil {
			err = n.conn.Flush()
		}
		delete(n.ports, id)
	}
	n.mu.Unlock()
	if addr.IsValid() {
		n.release(addr)
	}
	if err != nil {
		return fmt.Errorf("close the host ports of sandbox %s: %w", id, err)
	}
	return nil
}

// Prune gives back the addresses of sandboxes that live does not know: what a crash left.
func (n *Network) Prune(live func(id string) bool) {
	n.mu.Lock()
	var gone []netip.Addr
	for addr, id := range n.used {
		if !live(id) {
			gone = append(gone, addr)
		}
	}
	n.mu.Unlock()
	for _, addr := range gone {
		n.release(addr)
	}
}

// Remove takes the bridge, the rules and the host settings back.
func Remove(state string) error {
	var errs []error
	if link, err := netlink.LinkByName(Bridge); err == nil {
		errs = append(errs, netlink.LinkDel(link))
	}
	if conn, err := nft.Open(); err == nil {
		conn.DelTable(conn.AddTable(&nftables.Table{Name: TableName, Family: nftables.TableFamilyIPv4}))
		errs = append(errs, conn.Flush())
	}
	saved := filepath.Join(state, "ip_forward")
	if was, err := os.ReadFile(saved); err == nil {
		errs = append(errs, os.WriteFile(forwarding, was, 0o644), os.Remove(saved))
	}
	return errors.Join(errs...)
}
