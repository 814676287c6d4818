package dns

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	// ttl of the cluster's records, in seconds.
	ttl = 5
	// specification is the version of the DNS specification that is followed
	// (github.com/kubernetes/dns, docs/specification.md).
	specification = "1.1.0"
)

// answer is what the zone says of a question.
type answer struct {
	records, extra []dns.RR
	exists         bool   // the name exists, perhaps without records of the type
	follow         string // an external name, whose addresses belong to the answer
}

// lookup answers a question for a name in the cluster's domain; rest is the name
// without the domain and in lower case, as the labels from left to right.
func (s *Server) lookup(q dns.Question, rest []string) answer {
	z := s.zone
	z.mu.RLock()
	defer z.mu.RUnlock()
	n := len(rest)
	if n == 0 {
		return s.apex(q)
	}
	switch rest[n-1] {
	case "dns-version":
		if n == 1 {
			a := answer{exists: true}
			if q.Qtype == dns.TypeTXT {
				a.records = []dns.RR{&dns.TXT{Hdr: header(q.Name, dns.TypeTXT), Txt: []string{specification}}}
			}
			return a
		}
	case "svc":
		if n == 1 {
			return answer{exists: true}
		}
		if n == 2 {
			return answer{exists: z.namespaces[rest[0]]}
		}
		svc := z.services[types.NamespacedName{Namespace: rest[n-2], Name: rest[n-3]}]
		if svc == nil {
			return answer{}
		}
		return s.service(q, svc, rest[:n-3], strings.Join(rest[n-3:], ".")+"."+s.domain)
	case "pod":
		if n == 1 {
			return answer{exists: true}
		}
		if n == 2 {
			return answer{exists: z.namespaces[rest[0]]}
		}
		addr, ok := undash(rest[0])
		if n != 3 || !z.namespaces[rest[1]] || !ok {
			return answer{}
		}
		return answer{exists: true, records: addresses(q, q.Name, []netip.Addr{addr})}
	}
	return answer{}
}

func (s *Server) apex(q dns.Question) answer {
	a := answer{exists: true}
	switch q.Qtype {
	case dns.TypeSOA:
		a.records = []dns.RR{s.soa()}
	case dns.TypeNS:
		a.records = []dns.RR{&dns.NS{Hdr: header(q.Name, dns.TypeNS), Ns: "ns.dns." + s.domain}}
	}
	return a
}

// service answers for a Service, or what left names of it: a port, or a host.
func (s *Server) service(q dns.Question, svc *service, left []string, name string) answer {
	switch {
	case svc.external != "":
		if len(left) > 0 {
			return answer{}
		}
		a := answer{exists: true, records: []dns.RR{&dns.CNAME{Hdr: header(q.Name, dns.TypeCNAME), Target: svc.external}}}
		if q.Qtype == dns.TypeA || q.Qtype == dns.TypeAAAA {
			a.follow = svc.external
		}
		return a
	case len(left) == 0:
		a := answer{exists: len(svc.addresses) > 0 || len(svc.hosts) > 0}
		if q.Qtype == dns.TypeSRV {
			a.records, a.extra = srv(q, svc, name, "", "")
			return a
		}
		a.records = addresses(q, q.Name, svc.targets())
		return a
	case len(left) == 2 && strings.HasPrefix(left[0], "_") && strings.HasPrefix(left[1], "_"):
		portName, protocol := left[0][1:], left[1][1:]
		records, extra := srv(q, svc, name, portName, protocol)
		if len(records) == 0 {
			return answer{}
		}
		if q.Qtype != dns.TypeSRV {
			return answer{exists: true}
		}
		return answer{exists: true, records: records, extra: extra}
	case len(left) == 1:
		var found []netip.Addr
		for _, h := range svc.hosts {
			if h.name == left[0] {
				found = append(found, h.addr)
			}
		}
		return answer{exists: len(found) > 0, records: addresses(q, q.Name, found)}
	}
	return answer{}
}

// targets are the addresses that the name of a Service stands for.
func (svc *service) targets() []netip.Addr {
	if len(svc.addresses) > 0 {
		return svc.addresses
	}
	out := make([]netip.Addr, len(svc.hosts))
	for i, h := range svc.hosts {
		out[i] = h.addr
	}
	// Clients take the first: each gets another one.
	if len(out) > 1 {
		k := rand.IntN(len(out))
		out = append(out[k:len(out):len(out)], out[:k]...)
	}
	return out
}

// srv makes the SRV records of a port (name "": of all ports), and the addresses of
// their targets.
func srv(q dns.Question, svc *service, name, portName, protocol string) (records, extra []dns.RR) {
	record := func(target string, number uint16, weight int) {
		records = append(records, &dns.SRV{Hdr: header(q.Name, dns.TypeSRV), Weight: uint16(weight), Port: number, Target: target})
	}
	if len(svc.addresses) > 0 {
		for _, p := range svc.spec.Spec.Ports {
			if p.Name == "" && portName != "" || protocol != "" && (p.Name != portName || strings.ToLower(string(orTCP(p.Protocol))) != protocol) {
				continue
			}
			record(name, uint16(p.Port), 100)
		}
		if len(records) > 0 {
			extra = targets(name, svc.addresses)
		}
		return records, extra
	}
	for _, h := range svc.hosts {
		target := h.name + "." + name
		found := false
		for _, p := range h.ports {
			if protocol != "" && (p.name != portName || p.protocol != protocol) {
				continue
			}
			record(target, p.number, max(1, 100/len(svc.hosts)))
			found = true
		}
		if found {
			extra = append(extra, targets(target, []netip.Addr{h.addr})...)
		}
	}
	return records, extra
}

func orTCP(p corev1.Protocol) corev1.Protocol {
	if p == "" {
		return corev1.ProtocolTCP
	}
	return p
}

func header(name string, t uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: t, Class: dns.ClassINET, Ttl: ttl}
}

// addresses makes the records of the family that is asked for.
func addresses(q dns.Question, name string, list []netip.Addr) (out []dns.RR) {
	for _, a := range list {
		switch {
		case a.Is4() && q.Qtype == dns.TypeA:
			out = append(out, &dns.A{Hdr: header(name, dns.TypeA), A: a.AsSlice()})
		case a.Is6() && q.Qtype == dns.TypeAAAA:
			out = append(out, &dns.AAAA{Hdr: header(name, dns.TypeAAAA), AAAA: a.AsSlice()})
		}
	}
	return out
}

func targets(name string, list []netip.Addr) []dns.RR {
	return append(addresses(dns.Question{Qtype: dns.TypeA}, name, list), addresses(dns.Question{Qtype: dns.TypeAAAA}, name, list)...)
}

func undash(label string) (netip.Addr, bool) {
	if a, err := netip.ParseAddr(strings.ReplaceAll(label, "-", ".")); err == nil {
		return a, true
	}
	a, err := netip.ParseAddr(strings.ReplaceAll(label, "-", ":"))
	return a, err == nil
}

// reverse answers whose address it is: that of a Service, or of hosts behind some.
func (s *Server) reverse(q dns.Question, addr netip.Addr) answer {
	z := s.zone
	z.mu.RLock()
	defer z.mu.RUnlock()
	var names []string
	if key, ok := z.clusterIPs[addr]; ok {
		names = append(names, key.Name+"."+key.Namespace+".svc."+s.domain)
	} else {
		for key := range z.endpoints[addr] {
			for _, h := range z.services[key].all {
				if h.addr == addr {
					names = append(names, h.name+"."+key.Name+"."+key.Namespace+".svc."+s.domain)
				}
			}
		}
		slices.Sort(names)
	}
	a := answer{exists: len(names) > 0}
	if q.Qtype == dns.TypePTR {
		for _, name := range names {
			a.records = append(a.records, &dns.PTR{Hdr: header(q.Name, dns.TypePTR), Ptr: name})
		}
	}
	return a
}

// arpa reads the address of a reverse name in lower case.
func arpa(name string) (netip.Addr, bool) {
	if text, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		parts := strings.Split(text, ".")
		slices.Reverse(parts)
		a, err := netip.ParseAddr(strings.Join(parts, "."))
		return a, err == nil && a.Is4()
	}
	if text, ok := strings.CutSuffix(name, ".ip6.arpa."); ok {
		parts := strings.Split(text, ".")
		if len(parts) != 32 {
			return netip.Addr{}, false
		}
		var b [16]byte
		for i, p := range parts {
			n, err := strconv.ParseUint(p, 16, 4)
			if err != nil || len(p) != 1 {
				return netip.Addr{}, false
			}
			at := 31 - i
			b[at/2] |= byte(n) << (4 * (1 - at%2))
		}
		return netip.AddrFrom16(b), true
	}
	return netip.Addr{}, false
}

func (s *Server) soa() dns.RR {
	return &dns.SOA{Hdr: header(s.domain, dns.TypeSOA), Ns: "ns.dns." + s.domain, Mbox: "hostmaster." + s.domain, Serial: 1, Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: ttl}
}
