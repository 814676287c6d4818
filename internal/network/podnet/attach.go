package podnet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Attach gives the network namespace at path an interface eth0 with an address
// and opens the host ports. On an error nothing of it is left.
func (n *Network) Attach(_ context.Context, id, path string, ports []PortMapping) (netip.Addr, error) {
	addr, err := n.allocate(id)
	if err != nil {
		return netip.Addr{}, err
	}
	if err := n.plugAt(path, addr); err != nil {
		n.release(addr)
		return netip.Addr{}, fmt.Errorf("attach sandbox %s: %w", id, err)
	}
	if err := n.openPorts(id, addr, ports); err != nil {
		n.release(addr)
		return netip.Addr{}, fmt.Errorf("open the host ports of sandbox %s: %w", id, err)
	}
	return addr, nil
}

// Detach closes a sandbox's host ports and gives its address back. The veth pair goes with
// the network namespace, which the caller closes.
func (n *Network) Detach(_ context.Context, id string) error {
	err := n.closePorts(id)
	n.mu.Lock()
	addr, ok := n.owner[id]
	n.mu.Unlock()
	if ok {
		n.release(addr)
	}
	if err != nil {
		return fmt.Errorf("close the host ports of sandbox %s: %w", id, err)
	}
	return nil
}

func (n *Network) plugAt(path string, addr netip.Addr) error {
	ns, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open the network namespace: %w", err)
	}
	defer ns.Close()
	inside, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("enter the network namespace: %w", err)
	}
	defer inside.Close()
	return n.plug(ns, inside, addr)
}

// plug makes the veth pair of an address, its far end in a namespace.
func (n *Network) plug(ns *os.File, inside *netlink.Handle, addr netip.Addr) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = vethName(addr)
	attrs.MasterIndex = n.bridge.Attrs().Index
	attrs.MTU = n.bridge.Attrs().MTU
	attrs.Flags = net.FlagUp
	pair := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(ns.Fd())), PeerMTU: uint32(attrs.MTU)}
	err := n.host.LinkAdd(pair)
	if errors.Is(err, fs.ErrExist) {
		// What had the address before goes with its namespace, which takes the kernel a while.
		if old, err := n.host.LinkByName(attrs.Name); err == nil {
			if err := n.host.LinkDel(old); err != nil && !errors.Is(err, unix.ENODEV) {
				return fmt.Errorf("remove the %s of before: %w", attrs.Name, err)
			}
		}
		err = n.host.LinkAdd(pair)
	}
	if err != nil {
		return fmt.Errorf("make the veth pair: %w", err)
	}
	if err := n.host.LinkSetHairpin(pair, true); err != nil {
		return fmt.Errorf("set hairpin mode: %w", err)
	}
	eth, err := inside.LinkByName("eth0")
	if err != nil {
		return fmt.Errorf("find eth0: %w", err)
	}
	if err := inside.AddrAdd(eth, &netlink.Addr{IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(32, 32)}}); err != nil {
		return fmt.Errorf("set address %s: %w", addr, err)
	}
	if err := inside.LinkSetUp(eth); err != nil {
		return fmt.Errorf("set eth0 up: %w", err)
	}
	lo, err := inside.LinkByName("lo")
	if err == nil && lo.Attrs().Flags&net.FlagUp == 0 {
		err = inside.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	route := &netlink.Route{LinkIndex: eth.Attrs().Index, Gw: n.gateway.AsSlice(), Flags: int(netlink.FLAG_ONLINK)}
	if err := inside.RouteAdd(route); err != nil {
		return fmt.Errorf("set the default route: %w", err)
	}
	for _, index := range []int{pair.Attrs().Index, n.bridge.Attrs().Index} {
		if err := n.settle(index); err != nil {
			return fmt.Errorf("wait for %s: %w", attrs.Name, err)
		}
	}
	return nil
}

// settle waits until an interface sends: the kernel sees to a carrier that came in
// its own time (asking for the link hurries it), and until then drops what is sent.
// A lost first packet would cost a pod a second.
func (n *Network) settle(index int) error {
	for range 1000 {
		link, err := n.host.LinkByIndex(index)
		if err != nil {
			return err
		}
		if link.Attrs().OperState == netlink.OperUp {
			return nil
		}
		time.Sleep(time.Millisecond)
	}
	return errors.New("it has no carrier")
}

// vethName is the host's end, at most 15 bytes: who looks for a pod's interface
// finds it by the pod's address.
func vethName(addr netip.Addr) string {
	b := addr.As4()
	return fmt.Sprintf("proa%d.%d.%d", b[1], b[2], b[3])
}
