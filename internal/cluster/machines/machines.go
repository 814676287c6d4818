// Package machines makes the networks of several nodes on one machine: a network
// namespace for each node but the first, which is the machine itself, all on one
// bridge. The nodes reach the world by the machine's own address. It runs nothing.
package machines

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/proa-dev/proa/internal/network/nft"
)

const (
	bridge = "proa-nodes"
	// Most is how many nodes one machine may have.
	Most = 200
)

// segment is the network of the nodes; the machine has its first address.
var segment = netip.MustParsePrefix("10.245.0.0/24")

// Address is that of the n-th node, from 1.
func Address(n int) netip.Addr {
	b := segment.Addr().As4()
	b[3] = byte(n)
	return netip.AddrFrom4(b)
}

// Folder is the data folder of the n-th node, from 2.
func Folder(data string, n int) string { return filepath.Join(data, "nodes", strconv.Itoa(n)) }

// Folders lists the data folders of all nodes but the first.
func Folders(data string) (out []string) {
	for n := 2; n <= Most; n++ {
		if _, err := os.Stat(Folder(data, n)); err == nil {
			out = append(out, Folder(data, n))
		}
	}
	return out
}

func ipNet(a netip.Addr, bits int) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, 32)}
}

// Segment makes the bridge that the nodes hang on, and leads them to the world.
func Segment() error {
	link, err := netlink.LinkByName(bridge)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.HardwareAddr = bridge, net.HardwareAddr{0x0a, 0x5a, 0, 0, 0, 1}
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return fmt.Errorf("make the bridge of the nodes: %w", err)
		}
		link, err = netlink.LinkByName(bridge)
	}
	if err != nil {
		return fmt.Errorf("find the bridge of the nodes: %w", err)
	}
	if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: ipNet(Address(1), segment.Bits())}); err != nil {
		return fmt.Errorf("give the machine its address among the nodes: %w", err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set the bridge of the nodes up: %w", err)
	}
	return masquerade()
}

func masquerade() error {
	conn, err := nft.Open()
	if err != nil {
		return err
	}
	t := &nftables.Table{Name: bridge, Family: nftables.TableFamilyIPv4}
	conn.AddTable(t)
	conn.DelTable(t)
	conn.AddTable(t)
	chain := conn.AddChain(&nftables.Chain{Name: "postrouting", Table: t, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
	exprs := append([]expr.Any{nft.Source(nft.Reg0)}, nft.InPrefix(nft.Reg0, segment, expr.CmpOpEq)...)
	exprs = append(exprs, nft.Destination(nft.Reg0))
	exprs = append(exprs, nft.InPrefix(nft.Reg0, segment, expr.CmpOpNeq)...)
	// What goes to the pods of the first node is no way out.
	exprs = append(exprs, nft.Destination(nft.Reg0))
	exprs = append(exprs, nft.InPrefix(nft.Reg0, netip.MustParsePrefix("10.244.0.0/16"), expr.CmpOpNeq)...)
	conn.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: append(exprs, nft.Masquerade())})
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("let the nodes reach the world: %w", err)
	}
	return nil
}

func held(folder string) string { return filepath.Join(folder, "netns") }

// Make makes the network of the n-th node, unless it is there.
func Make(data string, n int) error {
	folder := Folder(data, n)
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return fmt.Errorf("make the folder of node %d: %w", n, err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(held(folder), &st); err == nil && st.Type == unix.NSFS_MAGIC {
		return nil
	}
	if err := os.WriteFile(held(folder), nil, 0o600); err != nil {
		return fmt.Errorf("hold the network of node %d: %w", n, err)
	}
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = unix.Mount("/proc/thread-self/ns/net", held(folder), "", unix.MS_BIND, "")
		}
		failed <- err
	}()
	if err := <-failed; err != nil {
		return fmt.Errorf("make the network of node %d: %w", n, err)
	}
	if err := connect(folder, n); err != nil {
		return errors.Join(fmt.Errorf("connect node %d: %w", n, err), unix.Unmount(held(folder), unix.MNT_DETACH))
	}
	return nil
}

// connect lays the cable from the bridge to a node.
func connect(folder string, n int) error {
	on, err := netlink.LinkByName(bridge)
	if err != nil {
		return err
	}
	ns, err := os.Open(held(folder))
	if err != nil {
		return err
	}
	defer ns.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MasterIndex, attrs.Flags = fmt.Sprintf("proa-node%d", n), on.Attrs().Index, net.FlagUp
	if old, err := netlink.LinkByName(attrs.Name); err == nil { // of a namespace that is going
		_ = netlink.LinkDel(old)
	}
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(ns.Fd()))}); err != nil {
		return err
	}
	inside, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer inside.Close()
	eth, err := inside.LinkByName("eth0")
	if err != nil {
		return err
	}
	lo, err := inside.LinkByName("lo")
	if err != nil {
		return err
	}
	return errors.Join(inside.AddrAdd(eth, &netlink.Addr{IPNet: ipNet(Address(n), segment.Bits())}), inside.LinkSetUp(lo), inside.LinkSetUp(eth),
		inside.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Gw: Address(1).AsSlice()}))
}

// In runs fn on a thread in the network of the n-th node: programs that fn starts
// have that network.
func In(data string, n int, fn func() error) error {
	ns, err := os.Open(held(Folder(data, n)))
	if err != nil {
		return fmt.Errorf("open the network of node %d: %w", n, err)
	}
	defer ns.Close()
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			failed <- fmt.Errorf("enter the network of node %d: %w", n, err)
			return
		}
		failed <- fn()
	}()
	return <-failed
}

// Remove takes the bridge and its rules away; the namespaces go with the mounts in
// their folders.
func Remove() error {
	var errs []error
	if link, err := netlink.LinkByName(bridge); err == nil {
		errs = append(errs, unplug(link), netlink.LinkDel(link))
	}
	conn, err := nft.Open()
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	conn.DelTable(conn.AddTable(&nftables.Table{Name: bridge, Family: nftables.TableFamilyIPv4}))
	return errors.Join(append(errs, conn.Flush())...)
}

// unplug removes the cables now: the kernel takes its time with those of a namespace
// that ends.
func unplug(bridge netlink.Link) error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list the interfaces: %w", err)
	}
	var errs []error
	for _, l := range links {
		if l.Attrs().MasterIndex != bridge.Attrs().Index {
			continue
		}
		if err := netlink.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("remove %s: %w", l.Attrs().Name, err))
		}
	}
	return errors.Join(errs...)
}
