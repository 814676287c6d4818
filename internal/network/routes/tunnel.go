package routes

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// tunnel is the VXLAN interface during one sync. Its neighbours are written down, not
// asked for: a node's end has the first address of its pods' range, and a hardware
// address made of it.
type tunnel struct {
	cfg  Config
	link netlink.Link
	ends map[netip.Addr]netip.Addr // of the peers' ends that are in use: address -> node
}

func network(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)}
}

func hardware(end netip.Addr) net.HardwareAddr {
	b := end.As4()
	return net.HardwareAddr{0x0a, 0x59, b[0], b[1], b[2], b[3]}
}

// open makes the interface at first need, above the one that leads to the peers.
func (t *tunnel) open(underlay int) error {
	if t.link != nil {
		return nil
	}
	under, err := netlink.LinkByIndex(underlay)
	if err != nil {
		return fmt.Errorf("find the interface below the tunnel: %w", err)
	}
	end := t.cfg.Pods.Masked().Addr()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr, attrs.MTU = Tunnel, hardware(end), under.Attrs().MTU-tunnelBytes
	want := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: vni, Port: tunnelPort, VtepDevIndex: underlay, SrcAddr: t.cfg.NodeIP.AsSlice(), Learning: false}
	have, err := netlink.LinkByName(Tunnel)
	if err == nil {
		v, ok := have.(*netlink.Vxlan)
		if ok && v.VtepDevIndex == underlay && v.SrcAddr.Equal(want.SrcAddr) && v.Attrs().MTU == attrs.MTU && v.Attrs().HardwareAddr.String() == attrs.HardwareAddr.String() {
			t.link = have
		} else if err := netlink.LinkDel(have); err != nil {
			return fmt.Errorf("replace the tunnel: %w", err)
		}
	} else if !errors.As(err, new(netlink.LinkNotFoundError)) {
		return fmt.Errorf("find the tunnel: %w", err)
	}
	if t.link == nil {
		if err := netlink.LinkAdd(want); err != nil {
			return fmt.Errorf("make the tunnel: %w", err)
		}
		t.link = want
	}
	if err := netlink.AddrReplace(t.link, &netlink.Addr{IPNet: network(netip.PrefixFrom(end, 32))}); err != nil {
		return fmt.Errorf("give the tunnel its address: %w", err)
	}
	if err := netlink.LinkSetUp(t.link); err != nil {
		return fmt.Errorf("set the tunnel up: %w", err)
	}
	return nil
}

// route leads to a peer's pods through the tunnel.
func (t *tunnel) route(p peer, underlay int) error {
	if err := t.open(underlay); err != nil {
		return err
	}
	end := p.pods.Addr()
	if t.ends == nil {
		t.ends = map[netip.Addr]netip.Addr{}
	}
	t.ends[end] = p.ip
	index := t.link.Attrs().Index
	if err := netlink.NeighSet(&netlink.Neigh{LinkIndex: index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, State: netlink.NUD_PERMANENT,
		IP: p.ip.AsSlice(), HardwareAddr: hardware(end)}); err != nil {
		return fmt.Errorf("tell the tunnel where the node is: %w", err)
	}
	if err := netlink.NeighSet(&netlink.Neigh{LinkIndex: index, Family: unix.AF_INET, State: netlink.NUD_PERMANENT,
		IP: end.AsSlice(), HardwareAddr: hardware(end)}); err != nil {
		return fmt.Errorf("tell the tunnel's end: %w", err)
	}
	return netlink.RouteReplace(&netlink.Route{Dst: network(p.pods), Gw: end.AsSlice(), LinkIndex: index, Flags: int(netlink.FLAG_ONLINK), Protocol: Protocol})
}

// prune removes the neighbours that are gone, and the tunnel when nobody is far.
func (t *tunnel) prune() error {
	if t.link == nil {
		link, err := netlink.LinkByName(Tunnel)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			return nil
		}
		if err == nil {
			err = netlink.LinkDel(link)
		}
		if err != nil {
			return fmt.Errorf("remove the tunnel: %w", err)
		}
		return nil
	}
	wanted := map[string]netip.Addr{}
	for end, node := range t.ends {
		wanted[hardware(end).String()] = node
	}
	var errs []error
	for _, family := range []int{unix.AF_BRIDGE, unix.AF_INET} {
		list, err := netlink.NeighList(t.link.Attrs().Index, family)
		if err != nil {
			errs = append(errs, fmt.Errorf("list the tunnel's neighbours: %w", err))
			continue
		}
		for i := range list {
			n := &list[i]
			node, keep := wanted[n.HardwareAddr.String()]
			if keep && (family == unix.AF_INET || n.IP.Equal(node.AsSlice())) || n.State&netlink.NUD_PERMANENT == 0 || n.IP == nil {
				continue
			}
			if err := netlink.NeighDel(n); err != nil && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, fmt.Errorf("remove neighbour %s of the tunnel: %w", n.IP, err))
			}
		}
	}
	return errors.Join(errs...)
}
