package podnet

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// aheadOf begins the owner of an address whose namespace waits for a pod.
const aheadOf = "ready-"

// load reads the addresses in use. Those of namespaces that an earlier process
// had ready are free.
func (n *Network) load() error {
	dir := filepath.Join(n.state, "addresses")
	for _, d := range []string{dir, readyDir(n.state)} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fmt.Errorf("make the network's folder: %w", err)
		}
	}
	if err := dropReady(n.state); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("read the addresses in use: %w", err)
	}
	for _, e := range entries {
		addr, err := netip.ParseAddr(e.Name())
		if err != nil {
			continue
		}
		id, err := os.ReadFile(n.file(addr))
		if err != nil {
			return fmt.Errorf("read the addresses in use: %w", err)
		}
		if len(id) == 0 || strings.HasPrefix(string(id), aheadOf) { // nobody's: it was being written, or ready
			if err := os.Remove(n.file(addr)); err != nil {
				return fmt.Errorf("give back address %s: %w", addr, err)
			}
			continue
		}
		n.used[addr], n.owner[string(id)] = string(id), addr
	}
	return nil
}

func (n *Network) file(addr netip.Addr) string {
	return filepath.Join(n.state, "addresses", addr.String())
}

// allocate gives a sandbox an address: the one it has, or the next free one.
func (n *Network) allocate(id string) (netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if addr, ok := n.owner[id]; ok {
		return addr, nil
	}
	// The next one after the last, so that an address rests before it is used again.
	next := n.last
	for range 1 << min(20, 32-n.cidr.Bits()) {
		if next = next.Next(); !n.cidr.Contains(next) || !n.cidr.Contains(next.Next()) {
			next = n.gateway.Next()
		}
		if _, taken := n.used[next]; taken {
			continue
		}
		if err := os.WriteFile(n.file(next), []byte(id), 0o600); err != nil {
			return netip.Addr{}, errors.Join(fmt.Errorf("take address %s: %w", next, err), os.Remove(n.file(next)))
		}
		n.used[next], n.owner[id], n.last = id, next, next
		return next, nil
	}
	return netip.Addr{}, fmt.Errorf("no free pod address in %s", n.cidr)
}

func (n *Network) release(addr netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := os.Remove(n.file(addr)); err == nil || errors.Is(err, fs.ErrNotExist) {
		delete(n.owner, n.used[addr])
		delete(n.used, addr)
	}
}

// Prune gives back the addresses of sandboxes that live does not know: what a crash left.
func (n *Network) Prune(live func(id string) bool) {
	n.mu.Lock()
	var gone []netip.Addr
	for addr, id := range n.used {
		if !strings.HasPrefix(id, aheadOf) && !live(id) {
			gone = append(gone, addr)
		}
	}
	n.mu.Unlock()
	for _, addr := range gone {
		n.release(addr)
	}
}
