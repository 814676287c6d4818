// Command hostsdns answers A queries out of the hosts block of a Corefile. It
// stands in for CoreDNS, which the suite starts as /coredns of its image: all
// that is asked of it there is a name server that knows some names.
package main

import (
	"flag"
	"log"
	"net"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

func main() {
	conf := flag.String("conf", "Corefile", "configuration file")
	flag.Parse()
	text, err := os.ReadFile(*conf)
	if err != nil {
		log.Fatal(err)
	}
	hosts := parse(string(text))
	c, err := net.ListenPacket("udp", ":53")
	if err != nil {
		log.Fatal(err)
	}
	buf := make([]byte, 4096)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			log.Fatal(err)
		}
		answer, err := reply(hosts, buf[:n])
		if err != nil {
			log.Printf("query from %s: %v", from, err)
			continue
		}
		if _, err := c.WriteTo(answer, from); err != nil {
			log.Print(err)
		}
	}
}

// parse reads the lines "ADDRESS NAME..." of the hosts block.
func parse(text string) map[string]netip.Addr {
	hosts := map[string]netip.Addr{}
	_, block, _ := strings.Cut(text, "hosts {")
	block, _, _ = strings.Cut(block, "}")
	for line := range strings.Lines(block) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		ip, err := netip.ParseAddr(f[0])
		if err != nil {
			continue
		}
		for _, name := range f[1:] {
			hosts[strings.ToLower(strings.TrimSuffix(name, "."))+"."] = ip
		}
	}
	return hosts
}

func reply(hosts map[string]netip.Addr, query []byte) ([]byte, error) {
	var q dnsmessage.Message
	if err := q.Unpack(query); err != nil {
		return nil, err
	}
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: q.ID, Response: true, Authoritative: true, RecursionDesired: q.RecursionDesired}, Questions: q.Questions}
	for _, x := range q.Questions {
		ip, known := hosts[strings.ToLower(x.Name.String())]
		switch {
		case !known:
			m.RCode = dnsmessage.RCodeNameError
		case x.Type == dnsmessage.TypeA && ip.Is4():
			m.Answers = append(m.Answers, dnsmessage.Resource{
				Header: dnsmessage.ResourceHeader{Name: x.Name, Type: x.Type, Class: x.Class, TTL: 5},
				Body:   &dnsmessage.AResource{A: ip.As4()}})
		}
	}
	return m.Pack()
}
