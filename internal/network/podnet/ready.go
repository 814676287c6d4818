package podnet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	// ahead is how many namespaces wait for pods. Each costs the kernel some 100 KiB.
	ahead = 4
	// refillAfter is the pause after the last pod took one: making the next must not
	// hold up the pod that is starting.
	refillAfter = 50 * time.Millisecond
	// refillRetry is the pause after a failure.
	refillRetry = 10 * time.Second
)

// prepared is a namespace with everything that a pod needs, held by a mount.
type prepared struct {
	path string
	addr netip.Addr
}

func readyDir(state string) string { return filepath.Join(state, "ready") }

// Run keeps namespaces ready until ctx ends, and then removes them. Without it
// every pod waits for its own.
func (n *Network) Run(ctx context.Context, log *slog.Logger) error {
	defer n.drop(log)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for number := 0; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-n.taken:
			timer.Reset(refillAfter)
			continue
		case <-timer.C:
		}
		for ctx.Err() == nil && n.waiting() < ahead {
			number++
			r, err := n.prepare(aheadOf + strconv.Itoa(number))
			if err != nil {
				log.Warn("make a pod's network ahead", "err", err)
				timer.Reset(refillRetry)
				break
			}
			n.mu.Lock()
			n.ready = append(n.ready, r)
			n.mu.Unlock()
		}
	}
}

func (n *Network) waiting() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.ready)
}

// prepare makes a namespace with its interface, address and route.
func (n *Network) prepare(owner string) (r prepared, err error) {
	if r.addr, err = n.allocate(owner); err != nil {
		return r, err
	}
	r.path = filepath.Join(readyDir(n.state), r.addr.String())
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("prepare address %s: %w", r.addr, err), unpin(r.path))
			n.release(r.addr)
		}
	}()
	if err := os.WriteFile(r.path, nil, 0o600); err != nil {
		return r, err
	}
	inside, err := newNamespace(r.path)
	if err != nil {
		return r, err
	}
	defer inside.Close()
	ns, err := os.Open(r.path)
	if err != nil {
		return r, err
	}
	defer ns.Close()
	return r, n.plug(ns, inside, r.addr)
}

// newNamespace makes a network namespace, holds it at path and returns a socket in it.
func newNamespace(path string) (inside *netlink.Handle, err error) {
	runtime.LockOSThread()
	host, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("look at the host's network namespace: %w", err)
	}
	defer host.Close()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("make a network namespace: %w", err)
	}
	defer func() {
		if back := netns.Set(host); back != nil {
			// The thread stays locked, so that nothing else runs on it.
			err = errors.Join(err, fmt.Errorf("return to the host's network namespace: %w", back))
			return
		}
		runtime.UnlockOSThread()
	}()
	if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
		return nil, fmt.Errorf("hold the network namespace: %w", err)
	}
	if inside, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("enter the network namespace: %w", err)
	}
	return inside, nil
}

// Take gives a sandbox a namespace that is ready, holds it at path, and opens the
// host ports. It returns false when none is: Attach does it then.
func (n *Network) Take(_ context.Context, id, path string, ports []PortMapping) (addr netip.Addr, ok bool, err error) {
	n.mu.Lock()
	if len(n.ready) == 0 {
		n.mu.Unlock()
		return netip.Addr{}, false, nil
	}
	r := n.ready[0]
	n.ready = n.ready[1:]
	delete(n.owner, n.used[r.addr])
	n.used[r.addr], n.owner[id] = id, r.addr
	n.mu.Unlock()
	select {
	case n.taken <- struct{}{}:
	default:
	}
	err = os.WriteFile(n.file(r.addr), []byte(id), 0o600)
	if err == nil {
		err = move(r.path, path)
	}
	if err == nil {
		err = n.openPorts(id, r.addr, ports)
	}
	if err != nil {
		err = errors.Join(fmt.Errorf("give sandbox %s its network: %w", id, err), unpin(r.path), unpin(path))
		n.release(r.addr)
		return netip.Addr{}, false, err
	}
	return r.addr, true, nil
}

// move holds a namespace at another path.
func move(from, to string) error {
	f, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("hold the network namespace at %s: %w", to, err)
	}
	return unpin(from)
}

// unpin lets go of a namespace, which ends with its last process.
func unpin(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("let go of the network namespace at %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// drop removes what is ready.
func (n *Network) drop(log *slog.Logger) {
	n.mu.Lock()
	list := n.ready
	n.ready = nil
	n.mu.Unlock()
	for _, r := range list {
		if err := unpin(r.path); err != nil {
			log.Warn("remove a pod's network made ahead", "err", err)
			continue
		}
		n.release(r.addr)
	}
}

// dropReady removes what an earlier process had ready.
func dropReady(state string) error {
	entries, err := os.ReadDir(readyDir(state))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read what was ready: %w", err)
	}
	var errs []error
	for _, e := range entries {
		errs = append(errs, unpin(filepath.Join(readyDir(state), e.Name())))
	}
	return errors.Join(errs...)
}
