package podnet

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// Early opens sockets on addresses that this machine gets later, such as the
// bridge's: a port is known to be free before anything is changed.
func Early() net.ListenConfig {
	return net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		if err := c.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_FREEBIND, 1) }); err != nil {
			return err
		}
		return failed
	}}
}
