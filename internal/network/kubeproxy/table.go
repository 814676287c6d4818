package kubeproxy

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/proa-dev/proa/internal/network/nft"
)

// TableName is the table that the proxy owns; no other table is touched.
const TableName = "proa-services"

// masqueradeMark is the mark of packets whose source is hidden (the bit that
// kube-proxy uses).
const masqueradeMark = 0x4000

// table is the rules in the kernel: one verdict map from (address, protocol,
// port) to a Service's chain, one from (protocol, port) for node ports, and for
// each portal a chain with one rule that picks a backend. A change touches only
// the elements and chains of its Service.
type table struct {
	conn      *nftables.Conn
	table     *nftables.Table
	services  *nftables.Set
	nodePorts *nftables.Set
	empty     *nftables.Set // frontends without a backend: refused
	emptyNode *nftables.Set
	hairpin   *nftables.Set // (address, address) of each backend: traffic of a pod to itself
	loops     map[netip.Addr]int
}

// newTable makes the table anew in one transaction, whatever was there.
func newTable(conn *nftables.Conn) (*table, error) {
	t := &table{conn: conn, table: &nftables.Table{Name: TableName, Family: nftables.TableFamilyIPv4}, loops: map[netip.Addr]int{}}
	// Add, delete, add: deleting what does not exist would fail the transaction.
	conn.AddTable(t.table)
	conn.DelTable(t.table)
	conn.AddTable(t.table)
	address := nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService)
	port := nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)
	t.services = &nftables.Set{Table: t.table, Name: "services", IsMap: true, Concatenation: true, KeyType: address, DataType: nftables.TypeVerdict}
	t.nodePorts = &nftables.Set{Table: t.table, Name: "node-ports", IsMap: true, Concatenation: true, KeyType: port, DataType: nftables.TypeVerdict}
	t.empty = &nftables.Set{Table: t.table, Name: "no-endpoints", Concatenation: true, KeyType: address}
	t.emptyNode = &nftables.Set{Table: t.table, Name: "no-endpoints-node", Concatenation: true, KeyType: port}
	t.hairpin = &nftables.Set{Table: t.table, Name: "hairpin", Concatenation: true, KeyType: nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeIPAddr)}
	for _, s := range []*nftables.Set{t.services, t.nodePorts, t.empty, t.emptyNode, t.hairpin} {
		if err := conn.AddSet(s, nil); err != nil {
			return nil, fmt.Errorf("make set %s: %w", s.Name, err)
		}
	}
	chain := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority *nftables.ChainPriority) *nftables.Chain {
		return conn.AddChain(&nftables.Chain{Name: name, Table: t.table, Type: kind, Hooknum: hook, Priority: priority})
	}
	rule := func(c *nftables.Chain, parts ...[]expr.Any) {
		var all []expr.Any
		for _, p := range parts {
			all = append(all, p...)
		}
		conn.AddRule(&nftables.Rule{Table: t.table, Chain: c, Exprs: all})
	}
	byAddress := []expr.Any{nft.Destination(nft.Reg0), nft.Protocol(nft.Reg1), nft.Port(nft.Reg2)}
	byPort := []expr.Any{nft.Protocol(nft.Reg0), nft.Port(nft.Reg1)}
	// A node port is not opened on loopback: the answer could not find its way
	// without letting martians in (CVE-2020-8558).
	notLoopback := append([]expr.Any{nft.Destination(nft.Reg0)}, nft.InPrefix(nft.Reg0, netip.MustParsePrefix("127.0.0.0/8"), expr.CmpOpNeq)...)
	local := nft.IsLocal()

	for _, c := range []*nftables.Chain{
		chain("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest),
		chain("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest),
	} {
		rule(c, byAddress, []expr.Any{nft.FindVerdict(t.services)})
		rule(c, notLoopback, local, byPort, []expr.Any{nft.FindVerdict(t.nodePorts)})
	}
	post := chain("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	rule(post, nft.HasMark(masqueradeMark), []expr.Any{&expr.Masq{}})
	rule(post, []expr.Any{nft.Source(nft.Reg0), nft.Destination(nft.Reg1), nft.Find(t.hairpin), &expr.Masq{}})
	refuse := []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: 3}} // port unreachable
	before := nftables.ChainPriorityRef(*nftables.ChainPriorityFilter - 10)
	for _, c := range []*nftables.Chain{
		chain("forward-empty", nftables.ChainTypeFilter, nftables.ChainHookForward, before),
		chain("output-empty", nftables.ChainTypeFilter, nftables.ChainHookOutput, before),
		chain("input-empty", nftables.ChainTypeFilter, nftables.ChainHookInput, before),
	} {
		rule(c, byAddress, []expr.Any{nft.Find(t.empty)}, refuse)
		if c.Name != "forward-empty" {
			rule(c, notLoopback, local, byPort, []expr.Any{nft.Find(t.emptyNode)}, refuse)
		}
	}
	return t, nil
}

func (t *table) key(f frontend) []byte {
	k := append(nft.Word(f.proto), nft.PortWord(f.port)...)
	if f.addr.IsValid() {
		k = append(f.addr.AsSlice(), k...)
	}
	return k
}

// sets returns the map of a frontend and the set of those without a backend.
func (t *table) sets(f frontend) (byVerdict, empty *nftables.Set) {
	if f.addr.IsValid() {
		return t.services, t.empty
	}
	return t.nodePorts, t.emptyNode
}

// change replaces one portal by another (either may be nil) in the transaction
// that the next Flush ends.
func (t *table) change(old, now *portal) error {
	had := old != nil && len(old.backends) > 0
	has := now != nil && len(now.backends) > 0
	if old != nil {
		for _, f := range old.frontends {
			verdict, empty := t.sets(f)
			element := nftables.SetElement{Key: t.key(f)}
			set := empty
			if had {
				set = verdict
				element.VerdictData = &expr.Verdict{Kind: expr.VerdictGoto, Chain: old.chain}
			}
			if err := t.conn.SetDeleteElements(set, []nftables.SetElement{element}); err != nil {
				return err
			}
		}
		t.count(old.backends, -1)
	}
	name := ""
	if now != nil {
		name = now.chain
	} else {
		name = old.chain
	}
	chain := &nftables.Chain{Name: name, Table: t.table}
	if had {
		t.conn.FlushChain(chain)
		if !has {
			t.conn.DelChain(chain)
		}
	}
	if now == nil {
		return nil
	}
	t.count(now.backends, 1)
	if has {
		if !had {
			t.conn.AddChain(chain)
		}
		if err := t.fill(chain, now); err != nil {
			return err
		}
	}
	for _, f := range now.frontends {
		verdict, empty := t.sets(f)
		element := nftables.SetElement{Key: t.key(f)}
		set := empty
		if has {
			set = verdict
			element.VerdictData = &expr.Verdict{Kind: expr.VerdictGoto, Chain: now.chain}
		}
		if err := t.conn.SetAddElements(set, []nftables.SetElement{element}); err != nil {
			return err
		}
	}
	return nil
}

// count keeps the hairpin set: an address stays while a backend has it.
func (t *table) count(list []backend, by int) {
	for _, b := range list {
		addr := b.Addr()
		was := t.loops[addr]
		t.loops[addr] = was + by
		pair := []nftables.SetElement{{Key: append(addr.AsSlice(), addr.AsSlice()...)}}
		switch {
		case was == 0 && by > 0:
			// Errors of building a message show at the Flush.
			_ = t.conn.SetAddElements(t.hairpin, pair)
		case was+by == 0:
			_ = t.conn.SetDeleteElements(t.hairpin, pair)
			delete(t.loops, addr)
		}
	}
}

// fill writes a portal's rules: pick a number, look the backend up, rewrite.
func (t *table) fill(chain *nftables.Chain, p *portal) error {
	if p.masquerade {
		t.conn.AddRule(&nftables.Rule{Table: t.table, Chain: chain, Exprs: nft.SetMark(masqueradeMark)})
	}
	n := uint32(len(p.backends))
	targets := &nftables.Set{Table: t.table, Anonymous: true, Constant: true, IsMap: true,
		KeyType: nftables.TypeInteger, DataType: nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)}
	elements := make([]nftables.SetElement, n)
	for i, b := range p.backends {
		elements[i] = nftables.SetElement{Key: binaryutil.NativeEndian.PutUint32(uint32(i)),
			Val: append(b.Addr().AsSlice(), nft.PortWord(b.Port())...)}
	}
	first := elements[:min(len(elements), nft.Chunk)]
	if err := t.conn.AddSet(targets, first); err != nil {
		return err
	}
	if err := nft.Add(t.conn, targets, elements[len(first):]); err != nil {
		return err
	}
	var exprs []expr.Any
	if p.affinity {
		exprs = append(exprs, nft.Source(nft.Reg0),
			&expr.Hash{SourceRegister: nft.Reg0, DestRegister: nft.Reg0, Length: 4, Modulus: n, Seed: 0x70726f61, Type: expr.HashTypeJenkins})
	} else {
		exprs = append(exprs, &expr.Numgen{Register: nft.Reg0, Modulus: n, Type: unix.NFT_NG_RANDOM})
	}
	exprs = append(exprs, nft.FindInto(targets), nft.DNAT())
	t.conn.AddRule(&nftables.Rule{Table: t.table, Chain: chain, Exprs: exprs})
	return nil
}
