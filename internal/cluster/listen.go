package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"

	"github.com/proa-dev/proa/internal/network/podnet"
)

// listen opens the API server's port on the address that was asked for and, when
// that is one that pods cannot reach, on the gateway of the pods too. It returns
// the address that pods reach the API server at. With others, the nodes beside this one
// are let in too, at nodeIP.
func listen(address, nodeIP string, gateway netip.Addr, others bool) (net.Listener, string, error) {
	first, err := net.Listen("tcp", address)
	if err != nil {
		return nil, "", fmt.Errorf("open the API server's port: %w (another cluster, or another program, may use it: choose one with --listen)", err)
	}
	at := first.Addr().(*net.TCPAddr)
	if !at.IP.IsLoopback() {
		if at.IP.IsUnspecified() {
			return first, nodeIP, nil
		}
		return first, at.IP.String(), nil
	}
	early := podnet.Early()
	inside := netip.AddrPortFrom(gateway, uint16(at.Port))
	second, err := early.Listen(context.Background(), "tcp", inside.String())
	if err != nil {
		_ = first.Close()
		return nil, "", fmt.Errorf("open the API server's port for pods: %w (another cluster, or another program, may use it: choose one with --listen)", err)
	}
	if others {
		third, err := net.Listen("tcp", net.JoinHostPort(nodeIP, strconv.Itoa(at.Port)))
		if err != nil {
			_, _ = first.Close(), second.Close()
			return nil, "", fmt.Errorf("open the API server's port for the other nodes: %w", err)
		}
		return together(first, second, third), nodeIP, nil
	}
	return together(first, second), gateway.String(), nil
}

// joined is several listeners as one.
type joined struct {
	net.Listener
	all   []net.Listener
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func together(all ...net.Listener) net.Listener {
	j := &joined{Listener: all[0], all: all, conns: make(chan net.Conn), done: make(chan struct{})}
	for _, l := range all {
		go func() { // ends when l is closed
			for {
				c, err := l.Accept()
				if errors.Is(err, net.ErrClosed) {
					return
				}
				if err != nil {
					continue
				}
				select {
				case j.conns <- c:
				case <-j.done:
					_ = c.Close()
					return
				}
			}
		}()
	}
	return j
}

func (j *joined) Accept() (net.Conn, error) {
	select {
	case c := <-j.conns:
		return c, nil
	case <-j.done:
		return nil, net.ErrClosed
	}
}

func (j *joined) Close() error {
	var errs []error
	j.once.Do(func() {
		close(j.done)
		for _, l := range j.all {
			errs = append(errs, l.Close())
		}
	})
	return errors.Join(errs...)
}
