package dns

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// reread bounds how often the list of resolvers is looked at for changes.
	reread = 5 * time.Second
	// askFor is how long one resolver may take.
	askFor = 2 * time.Second
	// asking bounds the questions that are out at a time.
	asking = 512
	cached = 2048
	// longest bounds how long an answer is kept, failures shortest.
	longest  = time.Hour
	shortest = 5 * time.Second
	// ednsSize is the size that passes every network (DNS flag day 2020).
	ednsSize = 1232
)

// forwarder asks the host's resolvers, and keeps their answers for a while.
type forwarder struct {
	file string   // as resolv.conf
	own  []string // addresses of this server, never asked

	mu      sync.Mutex
	servers []string
	looked  time.Time
	changed time.Time
	size    int64

	cache memory
	slots chan struct{}
}

func newForwarder(file string, own []string) *forwarder {
	return &forwarder{file: file, own: own, slots: make(chan struct{}, asking), cache: memory{order: list.New(), items: map[cacheKey]*list.Element{}}}
}

// resolvers returns the host's, read anew when the file has changed.
func (f *forwarder) resolvers() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	if now.Sub(f.looked) < reread {
		return f.servers
	}
	f.looked = now
	info, err := os.Stat(f.file)
	if err != nil {
		f.servers = nil
		return nil
	}
	if info.ModTime().Equal(f.changed) && info.Size() == f.size {
		return f.servers
	}
	conf, err := dns.ClientConfigFromFile(f.file)
	if err != nil {
		return f.servers
	}
	f.changed, f.size = info.ModTime(), info.Size()
	f.servers = nil
	for _, s := range conf.Servers {
		addr := net.JoinHostPort(s, conf.Port)
		if !slices.Contains(f.own, addr) {
			f.servers = append(f.servers, addr)
		}
	}
	return f.servers
}

var errNoResolver = errors.New("no resolver answered")

// ask answers a question from the cache or the first resolver that does.
func (f *forwarder) ask(ctx context.Context, q dns.Question, dnssec, tcp bool) (*dns.Msg, error) {
	key := cacheKey{strings.ToLower(q.Name), q.Qtype, q.Qclass, dnssec}
	if m := f.cache.get(key, time.Now()); m != nil {
		return m, nil
	}
	select {
	case f.slots <- struct{}{}:
		defer func() { <-f.slots }()
	default:
		return nil, fmt.Errorf("%d questions are out already", asking)
	}
	m := new(dns.Msg)
	m.Question = []dns.Question{q}
	m.Id, m.RecursionDesired = dns.Id(), true
	m.SetEdns0(ednsSize, dnssec)
	err := errNoResolver
	for _, server := range f.resolvers() {
		var r *dns.Msg
		if r, err = exchange(ctx, m, server, tcp); err != nil {
			continue
		}
		// Refused and failed ones may be answered by the next.
		if r.Rcode != dns.RcodeSuccess && r.Rcode != dns.RcodeNameError {
			err = fmt.Errorf("%s answers %s", server, dns.RcodeToString[r.Rcode])
			continue
		}
		f.cache.put(key, r, time.Now())
		return r, nil
	}
	return nil, err
}

func exchange(ctx context.Context, m *dns.Msg, server string, tcp bool) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	client := dns.Client{Timeout: askFor, UDPSize: ednsSize}
	if tcp {
		client.Net = "tcp"
	}
	r, _, err := client.ExchangeContext(ctx, m, server)
	if err != nil {
		return nil, err
	}
	if r.Id != m.Id || len(r.Question) != 1 || !strings.EqualFold(r.Question[0].Name, m.Question[0].Name) {
		return nil, fmt.Errorf("%s answers another question", server)
	}
	if r.Truncated && !tcp {
		return exchange(ctx, m, server, true)
	}
	return r, nil
}

type cacheKey struct {
	name          string
	qtype, qclass uint16
	dnssec        bool
}

type cacheItem struct {
	key         cacheKey
	msg         *dns.Msg
	stored, end time.Time
}

// memory keeps the answers used last.
type memory struct {
	mu    sync.Mutex
	order *list.List
	items map[cacheKey]*list.Element
}

// get returns a copy of a kept answer, its times to live counted down.
func (c *memory) get(key cacheKey, now time.Time) *dns.Msg {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.items[key]
	if !ok {
		return nil
	}
	item := e.Value.(*cacheItem)
	if !now.Before(item.end) {
		c.order.Remove(e)
		delete(c.items, key)
		return nil
	}
	c.order.MoveToFront(e)
	m := item.msg.Copy()
	age := uint32(now.Sub(item.stored) / time.Second)
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			if h := rr.Header(); h.Rrtype != dns.TypeOPT {
				h.Ttl -= min(age, h.Ttl)
			}
		}
	}
	return m
}

func (c *memory) put(key cacheKey, m *dns.Msg, now time.Time) {
	keep := lifetime(m)
	if keep <= 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.items[key]; ok {
		c.order.Remove(e)
	}
	c.items[key] = c.order.PushFront(&cacheItem{key: key, msg: m.Copy(), stored: now, end: now.Add(keep)})
	for len(c.items) > cached {
		last := c.order.Back()
		c.order.Remove(last)
		delete(c.items, last.Value.(*cacheItem).key)
	}
}

// lifetime is the shortest time to live of an answer; of a denial, that of the SOA
// (RFC 2308), or a short one.
func lifetime(m *dns.Msg) time.Duration {
	least := uint32(longest / time.Second)
	found := false
	for _, rr := range m.Answer {
		least, found = min(least, rr.Header().Ttl), true
	}
	if !found {
		for _, rr := range m.Ns {
			if soa, ok := rr.(*dns.SOA); ok {
				return time.Duration(min(least, soa.Minttl, soa.Hdr.Ttl)) * time.Second
			}
		}
		return shortest
	}
	return time.Duration(least) * time.Second
}
