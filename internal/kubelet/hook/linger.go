package hook

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// lingerZero lets the closed connection of a probe leave no TIME_WAIT socket: a
// node with many probes would otherwise run out of ports.
func lingerZero(_, _ string, c syscall.RawConn) error {
	var serr error
	err := c.Control(func(fd uintptr) {
		serr = unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: 1})
	})
	if err != nil {
		return err
	}
	return serr
}
