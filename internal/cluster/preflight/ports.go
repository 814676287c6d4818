package preflight

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Port is an address that a part will listen on.
type Port struct {
	Part    string // what it is for
	Address string // host:port
	Remedy  string // what to do when it is in use; may be empty
}

// Ports returns an error that names each port that is in use, and by whom.
func (m Machine) Ports(ports ...Port) error {
	var errs []error
	for _, p := range ports {
		l, err := net.Listen("tcp", p.Address)
		if err == nil {
			_ = l.Close()
			continue
		}
		errs = append(errs, m.Taken(p, err))
	}
	return errors.Join(errs...)
}

// Taken explains an error of listening on p.
func (m Machine) Taken(p Port, err error) error {
	if !errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("listen on %s for the %s: %w", p.Address, p.Part, err)
	}
	by := "another program"
	if _, port, err := net.SplitHostPort(p.Address); err == nil {
		if n, err := strconv.Atoi(port); err == nil {
			if owner := m.listener(n); owner != "" {
				by = owner
			}
		}
	}
	remedy := p.Remedy
	if remedy == "" {
		remedy = "stop it"
	}
	return fmt.Errorf("port %s of the %s is in use by %s: %s", p.Address, p.Part, by, remedy)
}

// listener names the process that listens on a TCP port, "" when it cannot be seen.
func (m Machine) listener(port int) string {
	inodes := map[string]bool{}
	for _, table := range []string{"proc/net/tcp", "proc/net/tcp6"} {
		f, err := m.Root.Open(table)
		if err != nil {
			continue
		}
		for s := bufio.NewScanner(f); s.Scan(); {
			// sl local_address rem_address st ... inode
			c := strings.Fields(s.Text())
			if len(c) < 10 || c[3] != "0A" {
				continue
			}
			_, hexPort, _ := strings.Cut(c[1], ":")
			if b, err := hex.DecodeString(hexPort); err == nil && len(b) == 2 && int(b[0])<<8|int(b[1]) == port {
				inodes["socket:["+c[9]+"]"] = true
			}
		}
		_ = f.Close()
	}
	if len(inodes) == 0 {
		return ""
	}
	processes, err := fs.ReadDir(m.Root, "proc")
	if err != nil {
		return ""
	}
	for _, p := range processes {
		if _, err := strconv.Atoi(p.Name()); err != nil {
			continue
		}
		dir := "proc/" + p.Name()
		fds, err := fs.ReadDir(m.Root, dir+"/fd")
		if err != nil {
			continue
		}
		for _, fd := range fds {
			if link, err := fs.ReadLink(m.Root, dir+"/fd/"+fd.Name()); err == nil && inodes[link] {
				name, _ := fs.ReadFile(m.Root, dir+"/comm")
				return fmt.Sprintf("%s (process %s)", strings.TrimSpace(string(name)), p.Name())
			}
		}
	}
	return ""
}
