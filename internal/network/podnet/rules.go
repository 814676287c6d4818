package podnet

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/proa-dev/proa/internal/network/nft"
)

// fromPod is the mark of a pod's packets to a host port: their source is hidden, so
// that the answer of a pod on this node, even the same one, comes back this way.
const fromPod = 0x2000

var loopback = netip.MustParsePrefix("127.0.0.0/8")

// rules writes the table anew in one transaction.
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
	target := nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)
	n.anyIP = &nftables.Set{Table: n.table, Name: "host-ports", IsMap: true, Concatenation: true,
		KeyType: nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService), DataType: target}
	n.oneIP = &nftables.Set{Table: n.table, Name: "host-ports-at", IsMap: true, Concatenation: true,
		KeyType: nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService), DataType: target}
	for _, s := range []*nftables.Set{n.anyIP, n.oneIP} {
		if err := conn.AddSet(s, nil); err != nil {
			return err
		}
	}
	in := n.chain("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)
	out := n.chain("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest)
	ours := n.within(nft.Source, n.cidr, expr.CmpOpEq)
	n.toHostPorts(in, ours, nft.SetMark(fromPod))
	n.toHostPorts(in, nil, nil)
	n.toHostPorts(out, nil, nil)

	post := n.chain("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	n.rule(post, nft.HasMark(fromPod), nft.ClearMark(fromPod), []expr.Any{nft.Masquerade()})
	// The host's own traffic to a host port on 127.0.0.1: a pod could not answer that.
	n.rule(post, n.within(nft.Source, loopback, expr.CmpOpEq), interfaceIs(expr.MetaKeyOIFNAME, expr.CmpOpEq), []expr.Any{nft.Masquerade()})
	// Pods leave the node with its address; who gets multicast may know the sender.
	n.rule(post, ours, n.within(nft.Destination, n.cluster, expr.CmpOpNeq), n.within(nft.Destination, netip.MustParsePrefix("224.0.0.0/4"), expr.CmpOpNeq),
		interfaceIs(expr.MetaKeyOIFNAME, expr.CmpOpNeq), []expr.Any{nft.Masquerade()})

	// route_localnet lets answers from pods reach 127.0.0.1, where the host's own
	// services listen: what pods themselves send there ends here, before any
	// translation (CVE-2020-8558).
	raw := n.chain("raw", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw)
	n.rule(raw, interfaceIs(expr.MetaKeyIIFNAME, expr.CmpOpEq), n.within(nft.Destination, loopback, expr.CmpOpEq), []expr.Any{nft.Drop()})
	return conn.Flush()
}

func (n *Network) chain(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority *nftables.ChainPriority) *nftables.Chain {
	return n.conn.AddChain(&nftables.Chain{Name: name, Table: n.table, Type: kind, Hooknum: hook, Priority: priority})
}

func (n *Network) rule(c *nftables.Chain, parts ...[]expr.Any) {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	n.conn.AddRule(&nftables.Rule{Table: n.table, Chain: c, Exprs: all})
}

// toHostPorts leads host ports to their pods: first those of one address.
func (n *Network) toHostPorts(c *nftables.Chain, match, then []expr.Any) {
	// The target goes beside Reg0, which the mark needs.
	find := func(s *nftables.Set) expr.Any {
		return &expr.Lookup{SourceRegister: nft.Reg0, DestRegister: nft.Reg1, SetName: s.Name, SetID: s.ID, IsDestRegSet: true}
	}
	dnat := []expr.Any{nft.DNATTo(nft.Reg1, nft.Reg2)}
	n.rule(c, match, []expr.Any{nft.Destination(nft.Reg0), nft.Protocol(nft.Reg1), nft.Port(nft.Reg2), find(n.oneIP)}, then, dnat)
	n.rule(c, match, nft.IsLocal(), []expr.Any{nft.Protocol(nft.Reg0), nft.Port(nft.Reg1), find(n.anyIP)}, then, dnat)
}

func (n *Network) within(address func(uint32) expr.Any, p netip.Prefix, op expr.CmpOp) []expr.Any {
	return append([]expr.Any{address(nft.Reg0)}, nft.InPrefix(nft.Reg0, p, op)...)
}

// interfaceIs compares the interface that a packet came by, or leaves by, with the bridge.
func interfaceIs(key expr.MetaKey, op expr.CmpOp) []expr.Any {
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, Bridge)
	return []expr.Any{&expr.Meta{Key: key, Register: nft.Reg0}, &expr.Cmp{Op: op, Register: nft.Reg0, Data: name}}
}
