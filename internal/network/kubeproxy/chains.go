package kubeproxy

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/proa-dev/proa/internal/network/nft"
)

// opDelete is NFT_DYNSET_OP_DELETE, which package unix lacks.
const opDelete = 2

// clients bounds how many clients a Service's port remembers; those beyond it are
// served without affinity.
const clients = 65536

// memory is the map of a portal from a client's address to its endpoint.
func (t *table) memory(p *portal) *nftables.Set {
	return &nftables.Set{Table: t.table, Name: "clients-" + p.id, IsMap: true, Dynamic: true, HasTimeout: true, Size: clients,
		KeyType: nftables.TypeIPAddr, DataType: nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)}
}

// remember makes or removes the map; it stays while only endpoints change, and
// with it the clients' choices.
func (t *table) remember(old, now *portal) error {
	had := old != nil && old.affinity > 0 && len(old.all) > 0
	has := now != nil && now.affinity > 0 && len(now.all) > 0
	switch {
	case had && !has:
		t.conn.DelSet(t.memory(old))
	case has && !had:
		return t.conn.AddSet(t.memory(now), nil)
	}
	return nil
}

// fill writes the rules of a portal's chains.
func (t *table) fill(p *portal, chains map[string]bool, pods netip.Prefix) error {
	chain := func(name string) *nftables.Chain { return &nftables.Chain{Name: name, Table: t.table} }
	if name := p.pool(false); chains[name] {
		if err := t.choose(chain(name), p, p.all); err != nil {
			return err
		}
	}
	if name := p.pool(true); chains[name] {
		if err := t.choose(chain(name), p, p.own); err != nil {
			return err
		}
	}
	if name := "ext-" + p.id; chains[name] {
		c, all := chain(name), []expr.Any{nft.Goto(p.pool(false))}
		if !p.outsideLocal {
			t.rule(c, nft.SetMark(masqueradeMark), all)
		} else {
			if pods.IsValid() {
				t.rule(c, append([]expr.Any{nft.Source(nft.Reg0)}, nft.InPrefix(nft.Reg0, pods, expr.CmpOpEq)...), all)
			}
			// The node's own traffic has the address it goes to as its source.
			t.rule(c, nft.FromLocal(), nft.SetMark(masqueradeMark), all)
			if len(p.own) > 0 {
				t.rule(c, []expr.Any{nft.Goto(p.pool(true))})
			}
		}
	}
	if name := "guard-" + p.id; chains[name] {
		c := chain(name)
		for _, r := range p.ranges {
			t.rule(c, append([]expr.Any{nft.Source(nft.Reg0)}, nft.InPrefix(nft.Reg0, r, expr.CmpOpEq)...), []expr.Any{nft.Goto("ext-" + p.id)})
		}
		t.rule(c, []expr.Any{nft.Drop()})
	}
	return nil
}

// choose writes the rules that pick a backend: the one that the client had, while
// it is one of the list, or any.
func (t *table) choose(c *nftables.Chain, p *portal, list []backend) error {
	target := nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)
	elements := make([]nftables.SetElement, len(list))
	value := func(b backend) []byte { return append(b.Addr().AsSlice(), nft.PortWord(b.Port())...) }
	dnat := nft.DNATTo(nft.Reg1, nft.Reg2)
	// Each rule has a set of its own: an anonymous one belongs to one rule.
	numbered := func() (*nftables.Set, error) {
		s := &nftables.Set{Table: t.table, Anonymous: true, Constant: true, IsMap: true, KeyType: nftables.TypeInteger, DataType: target}
		for i, b := range list {
			elements[i] = nftables.SetElement{Key: binaryutil.NativeEndian.PutUint32(uint32(i)), Val: value(b)}
		}
		return s, t.add(s, elements)
	}
	random := func(s *nftables.Set) []expr.Any {
		return []expr.Any{
			&expr.Numgen{Register: nft.Reg3, Modulus: uint32(len(list)), Type: unix.NFT_NG_RANDOM},
			&expr.Lookup{SourceRegister: nft.Reg3, DestRegister: nft.Reg1, SetName: s.Name, SetID: s.ID, IsDestRegSet: true},
		}
	}
	if p.affinity > 0 {
		m := t.memory(p)
		known := &nftables.Set{Table: t.table, Anonymous: true, Constant: true, Concatenation: true, KeyType: target}
		for i, b := range list {
			elements[i] = nftables.SetElement{Key: value(b)}
		}
		if err := t.add(known, elements); err != nil {
			return err
		}
		source := []expr.Any{nft.Source(nft.Reg0)}
		keep := &expr.Dynset{SrcRegKey: nft.Reg0, SrcRegData: nft.Reg1, SetName: m.Name, Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: p.affinity}
		t.rule(c, source, []expr.Any{
			&expr.Lookup{SourceRegister: nft.Reg0, DestRegister: nft.Reg1, SetName: m.Name, IsDestRegSet: true},
			&expr.Lookup{SourceRegister: nft.Reg1, SetName: known.Name, SetID: known.ID},
			keep, dnat})
		s, err := numbered()
		if err != nil {
			return err
		}
		// An update leaves the value of what is there, so an old choice is forgotten first.
		forget := &expr.Dynset{SrcRegKey: nft.Reg0, SrcRegData: nft.Reg1, SetName: m.Name, Operation: opDelete}
		t.rule(c, source, random(s), []expr.Any{forget, keep, dnat})
		// The map is full.
	}
	s, err := numbered()
	if err != nil {
		return err
	}
	t.rule(c, random(s), []expr.Any{dnat})
	return nil
}

// add makes a set with its elements, in messages of bounded size.
func (t *table) add(s *nftables.Set, elements []nftables.SetElement) error {
	first := elements[:min(len(elements), nft.Chunk)]
	if err := t.conn.AddSet(s, first); err != nil {
		return err
	}
	return nft.Add(t.conn, s, elements[len(first):])
}
