//go:build linux

package netns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long a packet may take before it counts as lost.
const patience = 400 * time.Millisecond

// Serve answers everything that comes to a port, over "tcp" or "udp", with the
// server's name and the address it sees the client at: "web 10.0.0.1". It returns
// how to stop it.
func (n *Namespace) Serve(t testing.TB, network, address, name string) (stop func()) {
	t.Helper()
	var wg sync.WaitGroup
	var closer io.Closer
	if err := n.Do(func() error {
		lc := net.ListenConfig{}
		if network == "udp" {
			conn, err := lc.ListenPacket(context.Background(), "udp4", address)
			if err != nil {
				return err
			}
			closer = conn
			wg.Go(func() { echoPackets(conn, name) })
			return nil
		}
		l, err := lc.Listen(context.Background(), "tcp4", address)
		if err != nil {
			return err
		}
		closer = l
		wg.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprintf(c, "%s %s", name, c.RemoteAddr().(*net.TCPAddr).IP)
				_ = c.Close()
			}
		})
		return nil
	}); err != nil {
		t.Fatalf("listen on %s %s: %v", network, address, err)
	}
	var once sync.Once
	stop = func() { once.Do(func() { _ = closer.Close(); wg.Wait() }) }
	t.Cleanup(stop)
	return stop
}

func echoPackets(conn net.PacketConn, name string) {
	b := make([]byte, 64)
	for {
		_, from, err := conn.ReadFrom(b)
		if err != nil {
			return
		}
		_, _ = conn.WriteTo([]byte(fmt.Sprintf("%s %s", name, from.(*net.UDPAddr).IP)), from)
	}
}

// Ask connects from the namespace and returns the answer, or what went wrong in a
// word: "refused", "lost", "unreachable".
func (n *Namespace) Ask(network, address string) string { return n.AskFrom(network, address, 0) }

// AskFrom asks from a port of the client's.
func (n *Namespace) AskFrom(network, address string, port uint16) string {
	var out string
	err := n.Do(func() error {
		d := net.Dialer{Timeout: patience}
		if port != 0 {
			local := netip.AddrPortFrom(netip.IPv4Unspecified(), port)
			d.LocalAddr = net.TCPAddrFromAddrPort(local)
			if network == "udp" {
				d.LocalAddr = net.UDPAddrFromAddrPort(local)
			}
			d.Control = func(_, _ string, c syscall.RawConn) error {
				return c.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
			}
		}
		c, err := d.Dial(network+"4", address)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		if network == "udp" {
			if _, err := c.Write([]byte("?")); err != nil {
				return err
			}
			b := make([]byte, 64)
			k, err := c.Read(b)
			out = string(b[:k])
			return err
		}
		b, err := io.ReadAll(c)
		out = string(b)
		return err
	})
	var timeout net.Error
	switch {
	case err == nil:
		return out
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.EPERM): // the latter where the sender's own rules refuse it
		return "refused"
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		return "unreachable"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "lost"
	}
	return err.Error()
}

// Name is the server's name in an answer, Client the address it saw.
func Name(answer string) string { name, _, _ := strings.Cut(answer, " "); return name }

func Client(answer string) string { _, client, _ := strings.Cut(answer, " "); return client }
