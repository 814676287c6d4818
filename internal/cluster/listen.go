package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// gatewayIP is the address that the node has towards its pods.
func gatewayIP() netip.Addr { return podRange.Masked().Addr().Next() }

// listen opens the API server's port, and returns the address at which pods reach
// it. A server that only this machine shall reach listens for its pods too, at the
// bridge, which no other machine can speak to.
func (c *cluster) listen(ctx context.Context) (l net.Listener, inside string, err error) {
	l, err = net.Listen("tcp", c.Listen)
	if err != nil {
		return nil, "", fmt.Errorf("open the API server's port: %w", err)
	}
	ip := l.Addr().(*net.TCPAddr).IP
	switch node := net.ParseIP(c.NodeIP); {
	case ip.IsUnspecified() && node != nil && !node.IsLoopback():
		return l, c.NodeIP, nil
	case ip.IsUnspecified():
		return l, gatewayIP().String(), nil
	case !ip.IsLoopback():
		return l, ip.String(), nil
	}
	// The bridge is made later, with the node.
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		if e := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_FREEBIND, 1) }); e != nil {
			return e
		}
		return err
	}}
	pods, err := config.Listen(ctx, "tcp4", net.JoinHostPort(gatewayIP().String(), port(c.Listen)))
	if err != nil {
		_ = l.Close()
		return nil, "", fmt.Errorf("open the API server's port for pods: %w", err)
	}
	return join(l, pods), gatewayIP().String(), nil
}

// joined accepts from several listeners.
type joined struct {
	listeners []net.Listener
	accepted  chan net.Conn
	failed    chan error
	closed    chan struct{}
	once      sync.Once
	wg        sync.WaitGroup
}

func join(listeners ...net.Listener) *joined {
	j := &joined{listeners: listeners, accepted: make(chan net.Conn), failed: make(chan error), closed: make(chan struct{})}
	for _, l := range listeners {
		j.wg.Go(func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					select {
					case j.failed <- err:
					case <-j.closed:
						return
					}
					// Out of files, for one, passes: the server waits and goes on.
					var temporary interface{ Temporary() bool }
					if errors.As(err, &temporary) && temporary.Temporary() {
						continue
					}
					return
				}
				select {
				case j.accepted <- conn:
				case <-j.closed:
					_ = conn.Close()
					return
				}
			}
		})
	}
	return j
}

func (j *joined) Accept() (net.Conn, error) {
	select {
	case conn := <-j.accepted:
		return conn, nil
	case err := <-j.failed:
		return nil, err
	case <-j.closed:
		return nil, net.ErrClosed
	}
}

// Close closes them all, and waits until nothing accepts any more.
func (j *joined) Close() error {
	var errs []error
	j.once.Do(func() {
		close(j.closed)
		for _, l := range j.listeners {
			errs = append(errs, l.Close())
		}
		j.wg.Wait()
	})
	return errors.Join(errs...)
}

func (j *joined) Addr() net.Addr { return j.listeners[0].Addr() }
