// Package podnet gives each pod its network: a veth pair on a bridge, an address
// from the node's range, a default route, and the host ports it asks for. It
// works over netlink; the host settings it changes are written down and taken
// back by Remove. A few namespaces are kept ready ahead, so that a pod need not
// wait for the kernel to make one.
//
// A pod has its address as a /32 with the bridge as gateway, so that traffic
// between pods of a node is routed by the host: the answers of a Service's
// endpoint pass the same address translation without br_netfilter.
//
// It serves IPv4 and limits no bandwidth.
package podnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/proa-dev/proa/internal/network/nft"
)

// Bridge is the interface that pods hang on; TableName the nftables table.
const (
	Bridge    = "proa0"
	TableName = "proa-pods"
)

// Network is the pod network of one node.
type Network struct {
	state   string // folder: which address belongs to which sandbox
	cidr    netip.Prefix
	cluster netip.Prefix
	gateway netip.Addr
	host    *netlink.Handle
	bridge  netlink.Link

	mu    sync.Mutex
	used  map[netip.Addr]string // address -> sandbox
	owner map[string]netip.Addr // and back
	last  netip.Addr
	ports map[string][]PortMapping
	ready []prepared
	conn  *nftables.Conn
	table *nftables.Table
	anyIP *nftables.Set // host ports on every address of the host
	oneIP *nftables.Set // and on one
	taken chan struct{} // a ready namespace was
}

// Open makes the bridge, the rules and the host settings for a node's range of pod
// addresses, and remembers what is in use from the state folder. cluster is the range
// of all nodes' pods, who see each other's own addresses.
func Open(state string, cidr, cluster netip.Prefix) (*Network, error) {
	if !cidr.Addr().Is4() || cidr.Bits() > 30 {
		return nil, fmt.Errorf("pod range %s: an IPv4 range of at least four addresses is needed", cidr)
	}
	cidr, cluster = cidr.Masked(), cluster.Masked()
	n := &Network{state: state, cidr: cidr, cluster: cluster, gateway: cidr.Addr().Next(), used: map[netip.Addr]string{}, owner: map[string]netip.Addr{},
		ports: map[string][]PortMapping{}, taken: make(chan struct{}, 1)}
	n.last = n.gateway
	if err := n.load(); err != nil {
		return nil, err
	}
	if err := n.settings(); err != nil {
		return nil, err
	}
	var err error
	if n.host, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	if err := n.makeBridge(); err != nil {
		return nil, fmt.Errorf("make bridge %s: %w", Bridge, err)
	}
	if err := n.rules(); err != nil {
		return nil, fmt.Errorf("write the pod network's rules: %w", err)
	}
	return n, nil
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

func (n *Network) makeBridge() error {
	link, err := n.host.LinkByName(Bridge)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = Bridge
		// A fixed address: a bridge otherwise takes that of its first port, and
		// pods would lose their gateway when it goes.
		g := n.gateway.As4()
		attrs.HardwareAddr = net.HardwareAddr{0x0a, 0x58, g[0], g[1], g[2], g[3]}
		if err := n.host.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return err
		}
		link, err = n.host.LinkByName(Bridge)
	}
	if err != nil {
		return err
	}
	n.bridge = link
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: n.gateway.AsSlice(), Mask: net.CIDRMask(n.cidr.Bits(), 32)}}
	if err := n.host.AddrReplace(link, addr); err != nil {
		return err
	}
	for name, value := range map[string]string{
		// Pods reach each other through the gateway although they share the bridge: no hints.
		"send_redirects": "0",
		// A host port answers on 127.0.0.1 too; a rule keeps pods from the host's loopback.
		"route_localnet": "1",
	} {
		if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+Bridge+"/"+name, []byte(value), 0o644); err != nil {
			return err
		}
	}
	return n.host.LinkSetUp(link)
}

// RouteServices leads the addresses of Services to the bridge, so that the host
// reaches them without a default route, and those that nobody has stay here.
func (n *Network) RouteServices(services netip.Prefix) error {
	if err := n.host.RouteReplace(&netlink.Route{LinkIndex: n.bridge.Attrs().Index, Scope: netlink.SCOPE_LINK, Src: n.gateway.AsSlice(),
		Dst: &net.IPNet{IP: services.Addr().AsSlice(), Mask: net.CIDRMask(services.Bits(), 32)}}); err != nil {
		return fmt.Errorf("set the route to Services: %w", err)
	}
	return nil
}

// Remove takes the bridge, the rules, what is ready and the host settings back.
func Remove(state string) error {
	errs := []error{dropReady(state)}
	if link, err := netlink.LinkByName(Bridge); err == nil {
		// The kernel takes its time with the interfaces of namespaces that end.
		links, err := netlink.LinkList()
		errs = append(errs, err)
		for _, l := range links {
			if l.Attrs().MasterIndex != link.Attrs().Index {
				continue
			}
			if err := netlink.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
				errs = append(errs, fmt.Errorf("remove %s: %w", l.Attrs().Name, err))
			}
		}
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
