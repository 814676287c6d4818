package routes_test

import (
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/network/routes"
	"github.com/proa-dev/proa/test/control"
	"github.com/proa-dev/proa/test/netns"
)

func TestMain(m *testing.M) { netns.Main(m) }

func node(t *testing.T, c client.Interface, name, ip, pods string) {
	t.Helper()
	n, err := client.Nodes.Create(t.Context(), c, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{PodCIDR: pods, PodCIDRs: []string{pods}}})
	if err != nil {
		t.Fatal(err)
	}
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: ip}}
	if _, err := client.Nodes.UpdateStatus(t.Context(), c, n); err != nil {
		t.Fatal(err)
	}
}

// until asks again until the answer is as wanted.
func until(t *testing.T, what, want string, ask func() string) {
	t.Helper()
	got := ""
	for range 200 {
		if got = ask(); got == want {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("%s: %q, want %q", what, got, want)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func cidr(s string) *net.IPNet {
	_, n, err := net.ParseCIDR(s)
	if err != nil {
		panic(err)
	}
	return n
}

func address(t *testing.T, link, addr string) {
	t.Helper()
	l, err := netlink.LinkByName(link)
	must(t, err)
	a, err := netlink.ParseAddr(addr)
	must(t, err)
	must(t, netlink.AddrReplace(l, a))
}

// The host is a node; near is one on its segment; far is behind near.
func TestPodsOfOtherNodesAreReached(t *testing.T) {
	netns.Need(t)
	t.Cleanup(func() {
		if err := routes.Remove(); err != nil {
			t.Error(err)
		}
	})
	near, far := netns.New(t), netns.New(t)
	netns.Join(t, near, "near", netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("192.0.2.2/24"))
	must(t, netlink.RouteAdd(&netlink.Route{Dst: cidr("198.51.100.0/24"), Gw: net.IPv4(192, 0, 2, 2)}))
	must(t, near.Do(func() error {
		netns.Join(t, far, "far", netip.MustParsePrefix("198.51.100.1/24"), netip.MustParsePrefix("198.51.100.2/24"))
		address(t, "lo", "10.244.1.5/32")
		return switchOn("/proc/sys/net/ipv4/ip_forward")
	}))
	// What proa does on far, written by hand: this is the form on the wire.
	must(t, far.Do(func() error {
		address(t, "lo", "10.244.2.5/32")
		eth, err := netlink.LinkByName("eth0")
		must(t, err)
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.HardwareAddr, attrs.MTU = "vx", net.HardwareAddr{0x0a, 0x59, 10, 244, 2, 0}, 1450
		v := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: 7276, Port: 4789, VtepDevIndex: eth.Attrs().Index, SrcAddr: net.IPv4(198, 51, 100, 2)}
		must(t, netlink.LinkAdd(v))
		must(t, netlink.LinkSetUp(v))
		address(t, "vx", "10.244.2.0/32")
		mac := net.HardwareAddr{0x0a, 0x59, 10, 244, 0, 0}
		must(t, netlink.NeighSet(&netlink.Neigh{LinkIndex: v.Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, State: netlink.NUD_PERMANENT, IP: net.IPv4(192, 0, 2, 1), HardwareAddr: mac}))
		must(t, netlink.NeighSet(&netlink.Neigh{LinkIndex: v.Index, State: netlink.NUD_PERMANENT, IP: net.IPv4(10, 244, 0, 0), HardwareAddr: mac}))
		return netlink.RouteAdd(&netlink.Route{Dst: cidr("10.244.0.0/24"), Gw: net.IPv4(10, 244, 0, 0), LinkIndex: v.Index, Flags: int(netlink.FLAG_ONLINK)})
	}))
	near.Serve(t, "tcp", "10.244.1.5:80", "near")
	far.Serve(t, "tcp", "10.244.2.5:80", "far")

	c := control.New(t)
	self := routes.New(routes.Config{Client: c, NodeName: "host", NodeIP: netip.MustParseAddr("192.0.2.1"), Pods: netip.MustParsePrefix("10.244.0.0/24"), Logger: slog.New(slog.DiscardHandler)})
	stop := control.Run(t, self)
	node(t, c, "host", "192.0.2.1", "10.244.0.0/24")
	node(t, c, "near", "192.0.2.2", "10.244.1.0/24")
	node(t, c, "far", "198.51.100.2", "10.244.2.0/24")
	toNear := func() string { return netns.Host.Ask("tcp", "10.244.1.5:80") }
	toFar := func() string { return netns.Host.Ask("tcp", "10.244.2.5:80") }
	until(t, "near", "near 192.0.2.1", toNear)
	until(t, "far", "far 10.244.0.0", toFar)
	if l, err := netlink.LinkByName(routes.Tunnel); err != nil || l.Attrs().MTU != 1450 {
		t.Errorf("the tunnel: %v %v", l, err)
	}

	// Somebody, or the kernel, takes a route away.
	must(t, netlink.RouteDel(&netlink.Route{Dst: cidr("10.244.1.0/24"), Protocol: routes.Protocol}))
	until(t, "near again", "near 192.0.2.1", toNear)

	// What is gone while nobody looks is gone after a start.
	stop()
	must(t, client.Nodes.Delete(t.Context(), c, "", "near", metav1.DeleteOptions{}))
	control.Run(t, routes.New(routes.Config{Client: c, NodeName: "host", NodeIP: netip.MustParseAddr("192.0.2.1"), Pods: netip.MustParsePrefix("10.244.0.0/24"), Logger: slog.New(slog.DiscardHandler)}))
	until(t, "near that is gone", "unreachable", toNear)
	until(t, "far", "far 10.244.0.0", toFar)
	must(t, client.Nodes.Delete(t.Context(), c, "", "far", metav1.DeleteOptions{}))
	until(t, "far that is gone", "unreachable", toFar)
	until(t, "the tunnel", "Link not found", func() string {
		if _, err := netlink.LinkByName(routes.Tunnel); err != nil {
			return err.Error()
		}
		return ""
	})
}

func switchOn(path string) error {
	f, err := unix.Open(path, unix.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(f)
	_, err = unix.Write(f, []byte("1"))
	return err
}
