package podnet

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/proa-dev/proa/internal/network/nft"
)

// PortMapping opens a port of the host to a pod.
type PortMapping struct {
	Protocol      uint8      // IPPROTO_TCP, …
	HostIP        netip.Addr // one of the host's addresses; zero or 0.0.0.0: all
	HostPort      uint16
	ContainerPort uint16
}

func (p *PortMapping) everywhere() bool { return !p.HostIP.IsValid() || p.HostIP.IsUnspecified() }

func (n *Network) openPorts(id string, addr netip.Addr, ports []PortMapping) error {
	if len(ports) == 0 {
		return nil
	}
	for i := range ports {
		if !ports[i].everywhere() && !ports[i].HostIP.Unmap().Is4() {
			return fmt.Errorf("host port %d on %s: the pod network serves IPv4", ports[i].HostPort, ports[i].HostIP)
		}
	}
	n.mu.Lock()
	err := n.setPorts(addr, ports, n.conn.SetAddElements)
	if err == nil {
		n.ports[id] = ports
	}
	n.mu.Unlock()
	if err != nil {
		return fmt.Errorf("%w (another pod may have one of the ports)", err)
	}
	return forget(ports)
}

func (n *Network) closePorts(id string) error {
	n.mu.Lock()
	ports, addr := n.ports[id], n.owner[id]
	if len(ports) == 0 || !addr.IsValid() {
		n.mu.Unlock()
		return nil
	}
	err := n.setPorts(addr, ports, n.conn.SetDeleteElements)
	delete(n.ports, id)
	n.mu.Unlock()
	return errors.Join(err, forget(ports))
}

// setPorts adds or deletes the elements of ports in one transaction.
func (n *Network) setPorts(addr netip.Addr, ports []PortMapping, change func(*nftables.Set, []nftables.SetElement) error) error {
	for i := range ports {
		p := &ports[i]
		set, key := n.anyIP, append(nft.Word(p.Protocol), nft.PortWord(p.HostPort)...)
		if !p.everywhere() {
			set, key = n.oneIP, append(p.HostIP.Unmap().AsSlice(), key...)
		}
		element := nftables.SetElement{Key: key, Val: append(addr.AsSlice(), nft.PortWord(p.ContainerPort)...)}
		if err := change(set, []nftables.SetElement{element}); err != nil {
			return err
		}
	}
	return n.conn.Flush()
}

// Restore opens the host ports of a sandbox that runs since before a restart.
func (n *Network) Restore(id string, ports []PortMapping) error {
	n.mu.Lock()
	addr, ok := n.owner[id]
	n.mu.Unlock()
	if !ok {
		return nil
	}
	return n.openPorts(id, addr, ports)
}

// flowsTo are the UDP flows to some host ports.
type flowsTo map[uint16]bool

// MatchConntrackFlow is netlink.CustomConntrackFilter.
func (f flowsTo) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	return flow.Forward.Protocol == unix.IPPROTO_UDP && f[flow.Forward.DstPort]
}

// forget removes the UDP flows to host ports that open or close: without a
// handshake they would stay where they went before.
func forget(ports []PortMapping) error {
	udp := flowsTo{}
	for _, p := range ports {
		if p.Protocol == unix.IPPROTO_UDP {
			udp[p.HostPort] = true
		}
	}
	if len(udp) == 0 {
		return nil
	}
	var err error
	for range 3 { // a table that changes while it is read is read again
		if _, err = netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, udp); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("forget the UDP flows of host ports: %w", err)
	}
	return nil
}
