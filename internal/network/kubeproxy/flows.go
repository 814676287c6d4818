package kubeproxy

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// stale picks the UDP flows that go past what a Service is now: without a
// handshake they would stay where they are for as long as the client sends (E2).
type stale struct {
	to    map[frontend][]backend // by where the client sends
	local map[netip.Addr]bool    // the node's own addresses
}

// MatchConntrackFlow is netlink.CustomConntrackFilter.
func (s *stale) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	if flow.Forward.Protocol != unix.IPPROTO_UDP {
		return false
	}
	to, ok := netip.AddrFromSlice(flow.Forward.DstIP)
	if !ok {
		return false
	}
	to = to.Unmap()
	serving, ok := s.to[frontend{to, unix.IPPROTO_UDP, flow.Forward.DstPort}]
	if !ok && s.local[to] {
		serving, ok = s.to[frontend{proto: unix.IPPROTO_UDP, port: flow.Forward.DstPort}]
	}
	if !ok {
		return false
	}
	by, ok := netip.AddrFromSlice(flow.Reverse.SrcIP)
	return !ok || !slices.Contains(serving, netip.AddrPortFrom(by.Unmap(), flow.Reverse.SrcPort))
}

// forget removes the flows to UDP portals that no longer lead to an endpoint that
// serves, and all of those to portals that are lost.
func (p *Proxy) forget(udp, lost []*portal) {
	if len(udp)+len(lost) == 0 {
		return
	}
	s := &stale{to: map[frontend][]backend{}, local: map[netip.Addr]bool{}}
	for i, list := range [][]*portal{lost, udp} { // what is there now is the last word
		for _, q := range list {
			for _, fronts := range [][]frontend{q.inside, q.outside, q.guarded} {
				for _, f := range fronts {
					if s.to[f] = nil; i == 1 {
						s.to[f] = q.serving
					}
				}
			}
		}
	}
	addrs, err := netlink.AddrList(nil, unix.AF_INET)
	if err != nil {
		p.log.Warn("kube-proxy: list the node's addresses", "err", err)
	}
	for _, a := range addrs {
		if addr, ok := netip.AddrFromSlice(a.IP.To4()); ok {
			s.local[addr] = true
		}
	}
	// A table that changes while it is read is read again, a few times.
	for range 3 {
		if _, err = netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, s); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		p.log.Warn("kube-proxy: forget UDP flows", "err", err)
	}
}
