package kubeproxy

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/proa-dev/proa/internal/network/nft"
)

// TableName is the table that the proxy owns; no other table is touched.
const TableName = "proa-services"

// masqueradeMark is the mark of packets whose source is hidden (the bit that
// kube-proxy uses).
const masqueradeMark = 0x4000

// refuse is the chain that tells a client that nobody is there.
const refuse = "refuse"

// table is the rules in the kernel: one verdict map from (address, protocol,
// port) to a Service's chain, one from (protocol, port) for node ports, and for
// each portal a few chains of its own. A change touches only the elements and
// chains of its Service.
type table struct {
	conn       *nftables.Conn
	table      *nftables.Table
	services   *nftables.Set
	nodePorts  *nftables.Set
	empty      *nftables.Set // frontends without an endpoint to go to: refused or dropped
	emptyNode  *nftables.Set
	clusterIPs *nftables.Set
	hairpin    *nftables.Set // (address, address) of each backend: traffic of a pod to itself
	held       map[string]int
}

// newTable makes the table anew in one transaction, whatever was there.
func newTable(conn *nftables.Conn, pods, services netip.Prefix) (*table, error) {
	t := &table{conn: conn, table: &nftables.Table{Name: TableName, Family: nftables.TableFamilyIPv4}, held: map[string]int{}}
	// Add, delete, add: deleting what does not exist would fail the transaction.
	conn.AddTable(t.table)
	conn.DelTable(t.table)
	conn.AddTable(t.table)
	address := nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService)
	port := nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)
	t.services = &nftables.Set{Table: t.table, Name: "services", IsMap: true, Concatenation: true, KeyType: address, DataType: nftables.TypeVerdict}
	t.nodePorts = &nftables.Set{Table: t.table, Name: "node-ports", IsMap: true, Concatenation: true, KeyType: port, DataType: nftables.TypeVerdict}
	t.empty = &nftables.Set{Table: t.table, Name: "no-endpoints", IsMap: true, Concatenation: true, KeyType: address, DataType: nftables.TypeVerdict}
	t.emptyNode = &nftables.Set{Table: t.table, Name: "no-endpoints-node", IsMap: true, Concatenation: true, KeyType: port, DataType: nftables.TypeVerdict}
	t.clusterIPs = &nftables.Set{Table: t.table, Name: "cluster-ips", KeyType: nftables.TypeIPAddr}
	t.hairpin = &nftables.Set{Table: t.table, Name: "hairpin", Concatenation: true, KeyType: nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeIPAddr)}
	for _, s := range []*nftables.Set{t.services, t.nodePorts, t.empty, t.emptyNode, t.clusterIPs, t.hairpin} {
		if err := conn.AddSet(s, nil); err != nil {
			return nil, fmt.Errorf("make set %s: %w", s.Name, err)
		}
	}
	t.base(pods, services)
	return t, nil
}

// base writes the chains that packets enter by.
func (t *table) base(pods, services netip.Prefix) {
	chain := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority *nftables.ChainPriority) *nftables.Chain {
		return t.conn.AddChain(&nftables.Chain{Name: name, Table: t.table, Type: kind, Hooknum: hook, Priority: priority})
	}
	byAddress := []expr.Any{nft.Destination(nft.Reg0), nft.Protocol(nft.Reg1), nft.Port(nft.Reg2)}
	byPort := []expr.Any{nft.Protocol(nft.Reg0), nft.Port(nft.Reg1)}
	toClusterIP := []expr.Any{nft.Destination(nft.Reg0), nft.Find(t.clusterIPs)}
	// A node port is not opened on loopback: the answer could not find its way
	// without letting martians in (CVE-2020-8558).
	notLoopback := append([]expr.Any{nft.Destination(nft.Reg0)}, nft.InPrefix(nft.Reg0, netip.MustParsePrefix("127.0.0.0/8"), expr.CmpOpNeq)...)
	local, isNew := nft.IsLocal(), nft.IsNew()

	t.rule(t.conn.AddChain(&nftables.Chain{Name: refuse, Table: t.table}),
		[]expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: 3}}) // port unreachable
	for _, c := range []*nftables.Chain{
		chain("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest),
		chain("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest),
	} {
		if pods.IsValid() {
			// The endpoint may be elsewhere, and would answer past this node.
			notPod := append([]expr.Any{nft.Source(nft.Reg0)}, nft.InPrefix(nft.Reg0, pods, expr.CmpOpNeq)...)
			t.rule(c, toClusterIP, notPod, nft.SetMark(masqueradeMark))
		}
		t.rule(c, byAddress, []expr.Any{nft.FindVerdict(t.services)})
		t.rule(c, notLoopback, local, byPort, []expr.Any{nft.FindVerdict(t.nodePorts)})
	}
	post := chain("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	t.rule(post, nft.HasMark(masqueradeMark), nft.ClearMark(masqueradeMark), []expr.Any{nft.Masquerade()})
	t.rule(post, []expr.Any{nft.Source(nft.Reg0), nft.Destination(nft.Reg1), nft.Find(t.hairpin), nft.Masquerade()})

	before := nftables.ChainPriorityRef(*nftables.ChainPriorityFilter - 10)
	input := chain("input", nftables.ChainTypeFilter, nftables.ChainHookInput, before)
	t.rule(input, isNew, byAddress, []expr.Any{nft.FindVerdict(t.empty)})
	t.rule(input, isNew, notLoopback, local, byPort, []expr.Any{nft.FindVerdict(t.emptyNode)})
	for _, c := range []*nftables.Chain{
		chain("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, before),
		chain("output-filter", nftables.ChainTypeFilter, nftables.ChainHookOutput, before),
	} {
		t.rule(c, isNew, byAddress, []expr.Any{nft.FindVerdict(t.empty)})
		// What still has a ClusterIP as destination is for a port that nobody has.
		t.rule(c, isNew, toClusterIP, []expr.Any{nft.Goto(refuse)})
		if services.IsValid() {
			free := append([]expr.Any{nft.Destination(nft.Reg0)}, nft.InPrefix(nft.Reg0, services, expr.CmpOpEq)...)
			t.rule(c, isNew, free, []expr.Any{nft.Drop()})
		}
	}
}

func (t *table) rule(c *nftables.Chain, parts ...[]expr.Any) {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	t.conn.AddRule(&nftables.Rule{Table: t.table, Chain: c, Exprs: all})
}

// element is what a frontend has in one of the maps.
type element struct {
	set *nftables.Set
	nftables.SetElement
}

// elements lists what a portal has in the maps; the same portal gives the same.
func (t *table) elements(p *portal) (out []element) {
	add := func(f frontend, empty bool, verdict *expr.Verdict) {
		set := t.services
		key := append(nft.Word(f.proto), nft.PortWord(f.port)...)
		switch {
		case !f.addr.IsValid() && empty:
			set = t.emptyNode
		case !f.addr.IsValid():
			set = t.nodePorts
		case empty:
			set = t.empty
		}
		if f.addr.IsValid() {
			key = append(f.addr.AsSlice(), key...)
		}
		out = append(out, element{set, nftables.SetElement{Key: key, VerdictData: verdict}})
	}
	way := func(list []frontend, local bool, taker string, passes bool) {
		for _, f := range list {
			r := p.refusal(local)
			if r == taken || r == dropped && passes {
				add(f, false, &expr.Verdict{Kind: expr.VerdictGoto, Chain: taker})
			}
			switch r {
			case rejected:
				add(f, true, &expr.Verdict{Kind: expr.VerdictGoto, Chain: refuse})
			case dropped:
				add(f, true, &expr.Verdict{Kind: expr.VerdictDrop})
			}
		}
	}
	way(p.inside, p.insideLocal, p.pool(p.insideLocal), false)
	// Pods and the node itself reach every endpoint whatever the policy says of others.
	way(p.outside, p.outsideLocal, "ext-"+p.id, true)
	way(p.guarded, p.outsideLocal, "guard-"+p.id, true)
	return out
}

func (p *portal) pool(local bool) string {
	if local {
		return "own-" + p.id
	}
	return "all-" + p.id
}

// chains lists the chains that a portal (nil: none) has.
func (p *portal) chains() (out []string) {
	if p == nil || len(p.all) == 0 {
		return nil
	}
	out = append(out, "all-"+p.id)
	if len(p.own) > 0 {
		out = append(out, "own-"+p.id)
	}
	if len(p.outside)+len(p.guarded) > 0 {
		out = append(out, "ext-"+p.id)
	}
	if len(p.guarded) > 0 {
		out = append(out, "guard-"+p.id)
	}
	return out
}

// change replaces one portal by another (either may be nil) in the transaction
// that the next Flush ends.
func (t *table) change(old, now *portal, pods netip.Prefix) error {
	if old != nil {
		for _, e := range t.elements(old) {
			if err := t.conn.SetDeleteElements(e.set, []nftables.SetElement{e.SetElement}); err != nil {
				return err
			}
		}
		if err := t.hold(old, -1); err != nil {
			return err
		}
	}
	was, is := old.chains(), now.chains()
	have := map[string]bool{}
	for _, name := range was {
		have[name] = true
		t.conn.FlushChain(&nftables.Chain{Name: name, Table: t.table})
	}
	wanted := map[string]bool{}
	for _, name := range is {
		wanted[name] = true
	}
	for _, name := range was {
		if !wanted[name] {
			t.conn.DelChain(&nftables.Chain{Name: name, Table: t.table})
		}
	}
	if err := t.remember(old, now); err != nil {
		return err
	}
	if now == nil {
		return nil
	}
	for _, name := range is {
		if !have[name] {
			t.conn.AddChain(&nftables.Chain{Name: name, Table: t.table})
		}
	}
	if err := t.fill(now, wanted, pods); err != nil {
		return err
	}
	for _, e := range t.elements(now) {
		if err := t.conn.SetAddElements(e.set, []nftables.SetElement{e.SetElement}); err != nil {
			return err
		}
	}
	return t.hold(now, 1)
}

// hold keeps the sets of addresses that several portals share: an address stays
// while one has it.
func (t *table) hold(p *portal, by int) error {
	count := func(set *nftables.Set, key []byte) error {
		name := set.Name + string(key)
		was := t.held[name]
		t.held[name] = was + by
		one := []nftables.SetElement{{Key: key}}
		switch {
		case was == 0 && by > 0:
			return t.conn.SetAddElements(set, one)
		case was+by == 0:
			delete(t.held, name)
			return t.conn.SetDeleteElements(set, one)
		}
		return nil
	}
	for _, f := range p.inside {
		if err := count(t.clusterIPs, f.addr.AsSlice()); err != nil {
			return err
		}
	}
	for _, b := range p.all {
		a := b.Addr().AsSlice()
		if err := count(t.hairpin, append(a, a...)); err != nil {
			return err
		}
	}
	return nil
}
