//go:build linux

// Package netns gives tests a network of their own. Main starts the test process
// again in a fresh network namespace, which stands for the host; New adds further
// ones, for pods and other machines. All of it goes with the process.
package netns

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// inside is set in a process that has a network of its own.
const inside = "TEST_HAS_OWN_NETWORK"

// Main runs a package's tests in a fresh network and mount namespace. Without root
// they run where they are, and those that need it are skipped.
func Main(m *testing.M) {
	if os.Geteuid() != 0 || os.Getenv(inside) != "" {
		if os.Getenv(inside) != "" {
			if err := up("lo"); err != nil {
				fmt.Fprintln(os.Stderr, "set loopback up:", err)
				os.Exit(1)
			}
		}
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		os.Exit(max(1, exit.ExitCode()))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "start the tests in a network of their own:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Need skips a test that has no network of its own.
func Need(t testing.TB) {
	t.Helper()
	if os.Getenv(inside) == "" {
		t.Skip("makes network namespaces and rules: needs root")
	}
}

func up(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

// Namespace is a network. The zero value is the test's own, the "host".
type Namespace struct {
	Path string // a file that holds it
	fd   *os.File
}

// Host is the network that the test runs in.
var Host = &Namespace{}

// New makes an empty network with loopback up.
func New(t testing.TB) *Namespace {
	t.Helper()
	n := &Namespace{Path: filepath.Join(t.TempDir(), "net")}
	if err := os.WriteFile(n.Path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), n.Path, "", unix.MS_BIND, "")
		}
		failed <- err
	}()
	if err := <-failed; err != nil {
		t.Fatalf("make a network namespace: %v", err)
	}
	n = At(t, n.Path)
	if err := n.Do(func() error { return up("lo") }); err != nil {
		t.Fatal(err)
	}
	return n
}

// At is the network that a file holds. It is let go of with the test.
func At(t testing.TB, path string) *Namespace {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	n := &Namespace{Path: path, fd: f}
	t.Cleanup(n.Close)
	return n
}

// Close lets go of the network.
func (n *Namespace) Close() {
	_ = n.fd.Close()
	_ = unix.Unmount(n.Path, unix.MNT_DETACH)
}

// Do runs fn on a thread in the namespace. Sockets that fn makes stay in it;
// goroutines that it starts do not.
func (n *Namespace) Do(fn func() error) error {
	if n.fd == nil {
		return fn()
	}
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		if err := unix.Setns(int(n.fd.Fd()), unix.CLONE_NEWNET); err != nil {
			failed <- err
			return
		}
		failed <- fn()
	}()
	return <-failed
}

// Join connects another network to the host by a cable: host and far are the
// addresses of its ends. The far network sends everything to the host.
func Join(t testing.TB, n *Namespace, name string, host, far netip.Prefix) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(n.fd.Fd()))}); err != nil {
		t.Fatalf("make a veth pair: %v", err)
	}
	t.Cleanup(func() {
		if link, err := netlink.LinkByName(name); err == nil {
			_ = netlink.LinkDel(link)
		}
	})
	if err := configure(name, host, netip.Addr{}); err != nil {
		t.Fatalf("configure %s: %v", name, err)
	}
	if err := n.Do(func() error { return configure("eth0", far, host.Addr()) }); err != nil {
		t.Fatalf("configure the far end of %s: %v", name, err)
	}
	for range 1000 { // until the kernel has seen the carrier it drops what is sent
		if link, err := netlink.LinkByName(name); err != nil || link.Attrs().OperState == netlink.OperUp {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

func configure(name string, addr netip.Prefix, gateway netip.Addr) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr(addr.String())
	if err != nil {
		return err
	}
	if err := netlink.AddrReplace(link, a); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	if !gateway.IsValid() {
		return nil
	}
	return netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: gateway.AsSlice(), Flags: int(netlink.FLAG_ONLINK)})
}
