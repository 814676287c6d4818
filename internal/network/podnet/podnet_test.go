package podnet_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/proa-dev/proa/internal/network/podnet"
	"github.com/proa-dev/proa/test/netns"
)

func TestMain(m *testing.M) { netns.Main(m) }

var (
	pods    = netip.MustParsePrefix("10.244.0.0/24")
	gateway = "10.244.0.1"
)

const nodeIP, farIP = "192.0.2.1", "192.0.2.9"

func open(t testing.TB, state string, cidr netip.Prefix) *podnet.Network {
	t.Helper()
	netns.Need(t)
	n, err := podnet.Open(state, cidr, netip.MustParsePrefix("10.244.0.0/16"))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// network opens a pod network that is removed with the test.
func network(t testing.TB, cidr netip.Prefix) (*podnet.Network, string) {
	t.Helper()
	netns.Need(t)
	state := filepath.Join(t.TempDir(), "network")
	t.Cleanup(func() {
		if err := podnet.Remove(state); err != nil {
			t.Error(err)
		}
	})
	return open(t, state, cidr), state
}

func name(i int) string { return fmt.Sprintf("%064x", i+1) }

// pod is a sandbox with its network.
type pod struct {
	*netns.Namespace
	id   string
	addr netip.Addr
}

func attach(t testing.TB, n *podnet.Network, i int, ports ...podnet.PortMapping) pod {
	t.Helper()
	p := pod{Namespace: netns.New(t), id: name(i)}
	var err error
	if p.addr, err = n.Attach(context.Background(), p.id, p.Path, ports); err != nil {
		t.Fatal(err)
	}
	return p
}

// far is another machine on the node's network.
func far(t testing.TB) *netns.Namespace {
	t.Helper()
	f := netns.New(t)
	netns.Join(t, f, "far", netip.MustParsePrefix(nodeIP+"/24"), netip.MustParsePrefix(farIP+"/24"))
	return f
}

func wants(t *testing.T, from *netns.Namespace, network, address, want string) {
	t.Helper()
	if got := from.Ask(network, address); got != want {
		t.Errorf("%s %s: %q, want %q", network, address, got, want)
	}
}

func TestPodsReachEachOtherAndTheWorld(t *testing.T) {
	n, _ := network(t, pods)
	a, b, f := attach(t, n, 0), attach(t, n, 1), far(t)
	if a.addr == b.addr || !pods.Contains(a.addr) || a.addr.String() == gateway {
		t.Fatalf("addresses %s and %s", a.addr, b.addr)
	}
	b.Serve(t, "tcp", "0.0.0.0:80", "b")
	b.Serve(t, "udp", "0.0.0.0:80", "b")
	f.Serve(t, "tcp", "0.0.0.0:80", "far")
	netns.Host.Serve(t, "tcp", "0.0.0.0:81", "host")
	netns.Host.Serve(t, "tcp", "127.0.0.1:82", "secret")
	to := b.addr.String() + ":80"
	wants(t, a.Namespace, "tcp", to, "b "+a.addr.String())
	wants(t, a.Namespace, "udp", to, "b "+a.addr.String())
	wants(t, b.Namespace, "tcp", to, "b "+b.addr.String())
	wants(t, netns.Host, "tcp", to, "b "+gateway)
	wants(t, a.Namespace, "tcp", farIP+":80", "far "+nodeIP)
	wants(t, a.Namespace, "tcp", gateway+":81", "host "+a.addr.String())
	wants(t, a.Namespace, "tcp", nodeIP+":81", "host "+a.addr.String())
	// The host's loopback is nobody's but its own, although route_localnet is on.
	if err := a.Do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := os.WriteFile("/proc/thread-self/root/proc/sys/net/ipv4/conf/eth0/route_localnet", []byte("1"), 0o644); err != nil {
			return err
		}
		if err := netlink.AddrDel(lo, &netlink.Addr{IPNet: netlink.NewIPNet([]byte{127, 0, 0, 1})}); err != nil {
			addrs, _ := netlink.AddrList(lo, unix.AF_INET)
			for _, x := range addrs {
				if err := netlink.AddrDel(lo, &x); err != nil {
					return err
				}
			}
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: netip.MustParseAddr(gateway).AsSlice(), Flags: int(netlink.FLAG_ONLINK),
			Dst: netlink.NewIPNet([]byte{127, 0, 0, 1})})
	}); err != nil {
		t.Fatal(err)
	}
	wants(t, a.Namespace, "tcp", "127.0.0.1:82", "lost")
}

func TestHostPorts(t *testing.T) {
	n, _ := network(t, pods)
	f := far(t)
	port := func(protocol uint8, ip string, from, to uint16) podnet.PortMapping {
		p := podnet.PortMapping{Protocol: protocol, HostPort: from, ContainerPort: to}
		if ip != "" {
			p.HostIP = netip.MustParseAddr(ip)
		}
		return p
	}
	everywhere := attach(t, n, 0, port(unix.IPPROTO_TCP, "", 8000, 80), port(unix.IPPROTO_UDP, "0.0.0.0", 8000, 80))
	// One port on several addresses and protocols does not clash (as conformance has it).
	local := attach(t, n, 1, port(unix.IPPROTO_TCP, "127.0.0.1", 9000, 80))
	node := attach(t, n, 2, port(unix.IPPROTO_TCP, nodeIP, 9000, 80))
	udp := attach(t, n, 3, port(unix.IPPROTO_UDP, nodeIP, 9000, 80))
	for name, p := range map[string]pod{"everywhere": everywhere, "local": local, "node": node, "udp": udp} {
		p.Serve(t, "tcp", "0.0.0.0:80", name)
		p.Serve(t, "udp", "0.0.0.0:80", name)
	}
	for _, network := range []string{"tcp", "udp"} {
		wants(t, f, network, nodeIP+":8000", "everywhere "+farIP)
		wants(t, netns.Host, network, nodeIP+":8000", "everywhere "+nodeIP)
		wants(t, netns.Host, network, gateway+":8000", "everywhere "+gateway)
		wants(t, netns.Host, network, "127.0.0.1:8000", "everywhere "+gateway)
		wants(t, node.Namespace, network, nodeIP+":8000", "everywhere "+gateway)
		wants(t, everywhere.Namespace, network, nodeIP+":8000", "everywhere "+gateway) // its own
	}
	wants(t, netns.Host, "tcp", "127.0.0.1:9000", "local "+gateway)
	wants(t, netns.Host, "tcp", nodeIP+":9000", "node "+nodeIP)
	wants(t, f, "tcp", nodeIP+":9000", "node "+farIP)
	wants(t, f, "udp", nodeIP+":9000", "udp "+farIP)
	wants(t, f, "tcp", "192.0.2.1:9001", "refused")

	taken := netns.New(t)
	if _, err := n.Attach(t.Context(), name(9), taken.Path, []podnet.PortMapping{port(unix.IPPROTO_TCP, nodeIP, 9000, 80)}); err == nil || !strings.Contains(err.Error(), "another pod may have") {
		t.Errorf("a port that another pod has: %v", err)
	}
	if _, err := n.Attach(t.Context(), name(10), netns.New(t).Path, []podnet.PortMapping{port(unix.IPPROTO_TCP, "2001:db8::1", 9100, 80)}); err == nil || !strings.Contains(err.Error(), "IPv4") {
		t.Errorf("a port on an IPv6 address: %v", err)
	}
	if err := n.Detach(t.Context(), node.id); err != nil {
		t.Fatal(err)
	}
	wants(t, f, "tcp", nodeIP+":9000", "refused")
	wants(t, netns.Host, "tcp", "127.0.0.1:9000", "local "+gateway)
}

func TestAUDPFlowFollowsItsHostPort(t *testing.T) {
	n, _ := network(t, pods)
	f := far(t)
	port := podnet.PortMapping{Protocol: unix.IPPROTO_UDP, HostPort: 8000, ContainerPort: 80}
	a := attach(t, n, 0, port)
	a.Serve(t, "udp", "0.0.0.0:80", "a")
	if got := netns.Name(f.AskFrom("udp", nodeIP+":8000", 5555)); got != "a" {
		t.Fatal(got)
	}
	if err := n.Detach(t.Context(), a.id); err != nil {
		t.Fatal(err)
	}
	b := attach(t, n, 1, port)
	b.Serve(t, "udp", "0.0.0.0:80", "b")
	if got := netns.Name(f.AskFrom("udp", nodeIP+":8000", 5555)); got != "b" {
		t.Errorf("the flow goes to %q", got)
	}
}

func TestAddressesAreUniqueAndFreed(t *testing.T) {
	n, state := network(t, netip.MustParsePrefix("10.244.9.0/28"))
	const room = 13 // 16 less the network, the gateway and the broadcast address
	var wg sync.WaitGroup
	var mu sync.Mutex
	got := map[netip.Addr]string{}
	for i := range room {
		ns := netns.New(t)
		wg.Go(func() {
			addr, err := n.Attach(context.Background(), name(i), ns.Path, nil)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
			} else if had, ok := got[addr]; ok {
				t.Errorf("%s is given to %s and %s", addr, had, name(i))
			}
			got[addr] = name(i)
		})
	}
	wg.Wait()
	spare := netns.New(t)
	if _, err := n.Attach(t.Context(), name(99), spare.Path, nil); err == nil || !strings.Contains(err.Error(), "no free pod address in 10.244.9.0/28") {
		t.Errorf("one more: %v", err)
	}
	// A failed attempt gives its address back.
	for addr, id := range got {
		if err := n.Detach(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if _, err := n.Attach(t.Context(), name(99), "/nowhere", nil); err == nil {
				t.Fatal("a namespace that is not there")
			}
		}
		if again, err := n.Attach(t.Context(), name(99), spare.Path, nil); err != nil || again != addr {
			t.Errorf("after one is free: %s %v, want %s", again, err, addr)
		}
		break
	}
	left, err := os.ReadDir(filepath.Join(state, "addresses"))
	if err != nil || len(left) != room {
		t.Errorf("%d addresses are written down, want %d (%v)", len(left), room, err)
	}
	// Sandboxes that nobody knows any more.
	n.Prune(func(id string) bool { return id == name(99) })
	if left, _ := os.ReadDir(filepath.Join(state, "addresses")); len(left) != 1 {
		t.Errorf("%d addresses after pruning", len(left))
	}
}

func TestARestartTakesUpThePods(t *testing.T) {
	n, state := network(t, pods)
	f := far(t)
	port := []podnet.PortMapping{{Protocol: unix.IPPROTO_TCP, HostPort: 8000, ContainerPort: 80}}
	a := attach(t, n, 0, port...)
	a.Serve(t, "tcp", "0.0.0.0:80", "a")
	if err := os.WriteFile(filepath.Join(state, "addresses", "10.244.0.77"), nil, 0o600); err != nil { // a crash while it was taken
		t.Fatal(err)
	}
	again := open(t, state, pods)
	if err := again.Restore(a.id, port); err != nil {
		t.Fatal(err)
	}
	b := attach(t, again, 1)
	if a.addr == b.addr {
		t.Errorf("both have %s", a.addr)
	}
	wants(t, b.Namespace, "tcp", a.addr.String()+":80", "a "+b.addr.String())
	wants(t, f, "tcp", nodeIP+":8000", "a "+farIP)
	if err := again.Detach(t.Context(), a.id); err != nil {
		t.Fatal(err)
	}
	wants(t, f, "tcp", nodeIP+":8000", "refused")
	if _, err := os.Stat(filepath.Join(state, "addresses", "10.244.0.77")); err == nil {
		t.Error("an address of nobody stays taken")
	}
}

func TestNothingIsLeft(t *testing.T) {
	netns.Need(t)
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0o644); err != nil {
		t.Fatal(err)
	}
	before := ""
	for range 200 { // the tests before this one, too, are taken apart by the kernel in its own time
		if before = picture(t); !strings.Contains(before, "proa") {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	state := filepath.Join(t.TempDir(), "network")
	n := open(t, state, pods)
	stop := run(t, n)
	filled(t, state, 4)
	p := attach(t, n, 0, podnet.PortMapping{Protocol: unix.IPPROTO_TCP, HostPort: 8000, ContainerPort: 80})
	if err := n.Detach(t.Context(), p.id); err != nil {
		t.Fatal(err)
	}
	p.Close()
	stop()
	if err := podnet.Remove(state); err != nil {
		t.Fatal(err)
	}
	after := ""
	for range 200 { // the kernel takes namespaces apart in its own time
		if after = picture(t); after == before {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("before:\n%s\nafter:\n%s", before, after)
}

// picture is what the host's network is.
func picture(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		fmt.Fprintln(&b, l.Attrs().Name)
	}
	routes, err := netlink.RouteList(nil, unix.AF_INET)
	if err != nil {
		t.Fatal(err)
	}
	forward, _ := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
	fmt.Fprintln(&b, routes, string(forward))
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	fmt.Fprintln(&b, strings.Count(string(mounts), "/ready/"))
	return b.String()
}

func run(t testing.TB, n *podnet.Network) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = n.Run(ctx, slog.New(slog.NewTextHandler(t.Output(), nil))) }()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return stop
}

// filled waits until so many namespaces are ready.
func filled(t testing.TB, state string, want int) {
	t.Helper()
	for range 1000 {
		if list, _ := os.ReadDir(filepath.Join(state, "ready")); len(list) == want {
			time.Sleep(5 * time.Millisecond)
			return
		}
		time.Sleep(2 * time.Millisecond)
	}
	t.Fatalf("there are never %d namespaces ready", want)
}

func TestPodsTakeWhatIsReady(t *testing.T) {
	n, state := network(t, pods)
	f := far(t)
	if _, ok, err := n.Take(t.Context(), name(0), filepath.Join(t.TempDir(), "net"), nil); ok || err != nil {
		t.Fatalf("nothing is ready: %v %v", ok, err)
	}
	stop := run(t, n)
	seen := map[netip.Addr]bool{}
	for round := range 2 {
		filled(t, state, 4)
		for i := range 4 {
			id := name(round*4 + i)
			path := filepath.Join(t.TempDir(), "net")
			addr, ok, err := n.Take(t.Context(), id, path, []podnet.PortMapping{{Protocol: unix.IPPROTO_TCP, HostPort: uint16(8000 + round*4 + i), ContainerPort: 80}})
			if err != nil || !ok {
				t.Fatalf("take: %v %v", ok, err)
			}
			if seen[addr] {
				t.Errorf("%s twice", addr)
			}
			seen[addr] = true
			p := netns.At(t, path)
			p.Serve(t, "tcp", "0.0.0.0:80", id[60:])
			wants(t, f, "tcp", fmt.Sprintf("%s:%d", nodeIP, 8000+round*4+i), id[60:]+" "+farIP)
			wants(t, p, "tcp", "127.0.0.1:80", id[60:]+" 127.0.0.1")
		}
	}
	stop()
	// What was ready is given back; what was taken stays, over a restart too.
	if left, _ := os.ReadDir(filepath.Join(state, "addresses")); len(left) != 8 {
		t.Errorf("%d addresses are taken", len(left))
	}
	again := open(t, state, pods)
	if b := attach(t, again, 100); seen[b.addr] {
		t.Errorf("%s twice", b.addr)
	}
	for i := range 8 {
		if err := again.Detach(t.Context(), name(i)); err != nil {
			t.Error(err)
		}
	}
	if left, _ := os.ReadDir(filepath.Join(state, "addresses")); len(left) != 1 {
		t.Errorf("%d addresses are taken at the end", len(left))
	}
}

// BenchmarkAttach is a pod's wait for its network when none is ready, without the
// making of the namespace; BenchmarkTake when one is.
func BenchmarkAttach(b *testing.B) {
	n, _ := network(b, pods)
	i := 0
	for b.Loop() {
		b.StopTimer()
		ns := netns.New(b)
		i++
		b.StartTimer()
		if _, err := n.Attach(context.Background(), name(i), ns.Path, nil); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		_ = n.Detach(context.Background(), name(i))
		ns.Close()
		b.StartTimer()
	}
}

func BenchmarkTake(b *testing.B) {
	n, state := network(b, pods)
	run(b, n)
	i := 0
	for b.Loop() {
		b.StopTimer()
		filled(b, state, 4)
		path := filepath.Join(b.TempDir(), "net")
		i++
		b.StartTimer()
		if _, ok, err := n.Take(context.Background(), name(i), path, nil); err != nil || !ok {
			b.Fatal(ok, err)
		}
		b.StopTimer()
		_ = n.Detach(context.Background(), name(i))
		netns.At(b, path).Close()
		b.StartTimer()
	}
}
