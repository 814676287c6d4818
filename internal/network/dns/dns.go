// Package dns is the cluster's name server: it answers for Services and pods as
// the DNS specification of Kubernetes says (version 1.1), straight from the shared
// informers, and asks the host's resolvers for everything else.
//
// It serves no zone transfers and signs nothing.
package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/proa-dev/proa/internal/client"
)

// Config is what the server needs.
type Config struct {
	Client client.Interface
	// Domain of the cluster, such as cluster.local.
	Domain string
	// Listen is the address and port, UDP and TCP; Sockets how they are opened.
	Listen  netip.AddrPort
	Sockets net.ListenConfig
	// Ranges are those of pods and Services: an address in them that nobody has does
	// not exist, and no other resolver is asked.
	Ranges []netip.Prefix
	// Resolvers is the file that lists the host's resolvers ("": /etc/resolv.conf).
	Resolvers string
	Logger    *slog.Logger
}

// Server is the name server.
type Server struct {
	cfg     Config
	log     *slog.Logger
	domain  string // with a final dot
	labels  int    // of the domain
	zone    *zone
	forward *forwarder
	packets net.PacketConn
	streams net.Listener
}

// New opens the ports; Run answers on them.
func New(cfg Config) (*Server, error) {
	if cfg.Resolvers == "" {
		cfg.Resolvers = "/etc/resolv.conf"
	}
	s := &Server{cfg: cfg, log: cfg.Logger, domain: strings.ToLower(dns.Fqdn(cfg.Domain)), zone: newZone()}
	s.labels = dns.CountLabel(s.domain)
	lc := cfg.Sockets
	var err error
	if s.packets, err = lc.ListenPacket(context.Background(), "udp", cfg.Listen.String()); err != nil {
		return nil, fmt.Errorf("open the port of the cluster's name server: %w (another name server may use it)", err)
	}
	// Port 0 asks for any: TCP takes that of UDP.
	if s.streams, err = lc.Listen(context.Background(), "tcp", s.packets.LocalAddr().String()); err != nil {
		_ = s.packets.Close()
		return nil, fmt.Errorf("open the port of the cluster's name server: %w (another name server may use it)", err)
	}
	s.forward = newForwarder(cfg.Resolvers, []string{s.Addr().String()})
	return s, nil
}

// Addr is where the server listens.
func (s *Server) Addr() netip.AddrPort { return s.packets.LocalAddr().(*net.UDPAddr).AddrPort() }

// stopFor bounds how long the answers under way may take when the server stops.
const stopFor = time.Second

// Run answers until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	failed := make(chan error, 8)
	views := []struct {
		informer client.Informer
		fn       func(client.Event)
	}{
		{client.Namespaces.Informer(s.cfg.Client, client.Scope{}).Informer, s.zone.namespaceEvent},
		{client.Services.Informer(s.cfg.Client, client.Scope{}).Informer, s.zone.serviceEvent},
		{client.EndpointSlices.Informer(s.cfg.Client, client.Scope{}).Informer, s.zone.sliceEvent},
	}
	// A name that is not known yet must not be denied: answers begin when all is seen.
	var seen sync.WaitGroup
	for _, v := range views {
		seen.Add(1)
		wg.Go(func() {
			if err := v.informer.Watch(ctx, func(e client.Event) {
				if e.Type == client.Synced {
					seen.Done()
				}
				v.fn(e)
			}); err != nil && ctx.Err() == nil {
				failed <- fmt.Errorf("dns: watch: %w", err)
			}
		})
	}
	synced := make(chan struct{})
	go func() { seen.Wait(); close(synced) }()
	select {
	case <-ctx.Done():
		return s.close()
	case err := <-failed:
		_ = s.close()
		return err
	case <-synced:
	}
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) { s.serve(ctx, w, r) })
	servers := []*dns.Server{{PacketConn: s.packets, Handler: handler, UDPSize: ednsSize}, {Listener: s.streams, Handler: handler, IdleTimeout: func() time.Duration { return 10 * time.Second }, MaxTCPQueries: 128}}
	for _, server := range servers {
		started := make(chan struct{})
		server.NotifyStartedFunc = func() { close(started) }
		wg.Go(func() {
			if err := server.ActivateAndServe(); err != nil && ctx.Err() == nil {
				failed <- fmt.Errorf("dns: serve: %w", err)
			}
		})
		select {
		case <-started:
		case err := <-failed:
			cancel()
			return errors.Join(err, s.close())
		}
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
		cancel()
	}
	for _, server := range servers {
		stop, done := context.WithTimeout(context.WithoutCancel(ctx), stopFor)
		_ = server.ShutdownContext(stop)
		done()
	}
	return err
}

func (s *Server) close() error { return errors.Join(s.packets.Close(), s.streams.Close()) }

// serve answers one message.
func (s *Server) serve(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) {
	_, tcp := w.RemoteAddr().(*net.TCPAddr)
	m := s.Answer(ctx, r, tcp)
	if err := w.WriteMsg(m); err != nil && ctx.Err() == nil {
		s.log.Debug("answer a name question", "client", w.RemoteAddr(), "err", err)
	}
}

// Answer answers a message that came over TCP or UDP.
func (s *Server) Answer(ctx context.Context, r *dns.Msg, tcp bool) *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(r)
	m.RecursionAvailable, m.Compress = true, true
	size := dns.MinMsgSize
	opt := r.IsEdns0()
	if opt != nil {
		size = max(size, int(opt.UDPSize()))
		if opt.Version() != 0 {
			m.SetEdns0(ednsSize, false)
			m.Rcode = dns.RcodeBadVers
			return m
		}
	}
	switch {
	case r.Opcode != dns.OpcodeQuery:
		m.Rcode = dns.RcodeNotImplemented
	case len(r.Question) != 1:
		m.Rcode = dns.RcodeFormatError
	default:
		s.question(ctx, m, r.Question[0], opt != nil && opt.Do(), tcp)
	}
	if opt != nil {
		m.Extra = append(m.Extra, edns(opt.Do()))
	}
	if tcp {
		size = dns.MaxMsgSize
	}
	m.Truncate(min(size, dns.MaxMsgSize))
	return m
}

func edns(do bool) *dns.OPT {
	o := &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}}
	o.SetUDPSize(ednsSize)
	if do {
		o.SetDo()
	}
	return o
}

func (s *Server) question(ctx context.Context, m *dns.Msg, q dns.Question, dnssec, tcp bool) {
	if q.Qclass != dns.ClassINET && q.Qclass != dns.ClassANY || q.Qtype == dns.TypeAXFR || q.Qtype == dns.TypeIXFR {
		m.Rcode = dns.RcodeRefused
		return
	}
	name := strings.ToLower(q.Name)
	if name == s.domain || strings.HasSuffix(name, "."+s.domain) {
		labels := dns.SplitDomainName(name)
		s.own(ctx, m, s.lookup(q, labels[:len(labels)-s.labels]), tcp)
		return
	}
	if addr, ok := arpa(name); ok {
		a := s.reverse(q, addr)
		ours := a.exists
		for _, r := range s.cfg.Ranges {
			ours = ours || r.Contains(addr)
		}
		if ours {
			s.own(ctx, m, a, tcp)
			return
		}
	}
	r, err := s.forward.ask(ctx, q, dnssec, tcp)
	if err != nil {
		s.log.Debug("ask for a name", "name", q.Name, "type", dns.TypeToString[q.Qtype], "err", err)
		m.Rcode = dns.RcodeServerFailure
		return
	}
	m.Rcode, m.AuthenticatedData = r.Rcode, r.AuthenticatedData
	m.Answer, m.Ns = r.Answer, r.Ns
	for _, rr := range r.Extra {
		if rr.Header().Rrtype != dns.TypeOPT {
			m.Extra = append(m.Extra, rr)
		}
	}
}

// own fills in an answer of the cluster's own.
func (s *Server) own(ctx context.Context, m *dns.Msg, a answer, tcp bool) {
	m.Authoritative = true
	m.Answer, m.Extra = a.records, a.extra
	if a.follow != "" {
		s.followName(ctx, m, a.follow, m.Question[0].Qtype, tcp)
	}
	if len(m.Answer) == 0 {
		m.Ns = []dns.RR{s.soa()}
		if !a.exists {
			m.Rcode = dns.RcodeNameError
		}
	}
}

// followName adds the addresses of an external name, which may be in the cluster. A
// name that cannot be found leaves the CNAME alone.
func (s *Server) followName(ctx context.Context, m *dns.Msg, name string, qtype uint16, tcp bool) {
	q := dns.Question{Name: name, Qtype: qtype, Qclass: dns.ClassINET}
	if lower := strings.ToLower(name); strings.HasSuffix(lower, "."+s.domain) {
		labels := dns.SplitDomainName(lower)
		// One step: an ExternalName that points to another is not followed further.
		m.Answer = append(m.Answer, s.lookup(q, labels[:len(labels)-s.labels]).records...)
		return
	}
	if r, err := s.forward.ask(ctx, q, false, tcp); err == nil {
		m.Answer = append(m.Answer, r.Answer...)
	}
}
