package nodeipam_test

import (
	"fmt"
	"log/slog"
	"net/netip"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/controllers/nodeipam"
	"github.com/proa-dev/proa/test/control"
)

func ipam(t *testing.T, c client.Interface, told *int) *nodeipam.Controller {
	t.Helper()
	x, err := nodeipam.New(nodeipam.Config{Client: c, Cluster: netip.MustParsePrefix("10.244.0.0/22"), Bits: 24, First: "server", Logger: slog.New(slog.DiscardHandler),
		Event: func(*corev1.Node, string, string, string, ...any) { *told++ }})
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func node(t *testing.T, c client.Interface, name, cidr string) {
	t.Helper()
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if cidr != "" {
		n.Spec.PodCIDR, n.Spec.PodCIDRs = cidr, []string{cidr}
	}
	if _, err := client.Nodes.Create(t.Context(), c, n); err != nil {
		t.Fatal(err)
	}
}

func wants(t *testing.T, c client.Interface, name, cidr string) {
	t.Helper()
	synctest.Wait()
	n, err := client.Nodes.Get(t.Context(), c, "", name)
	if err != nil {
		t.Fatal(err)
	}
	if n.Spec.PodCIDR != cidr || fmt.Sprint(n.Spec.PodCIDRs) != "["+cidr+"]" {
		t.Errorf("%s has %q %v, want %q", name, n.Spec.PodCIDR, n.Spec.PodCIDRs, cidr)
	}
}

func TestEachNodeHasARange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := control.New(t)
		told := 0
		node(t, c, "old", "10.244.1.0/24") // from before the controller started
		stop := control.Run(t, ipam(t, c, &told))
		node(t, c, "a", "")
		wants(t, c, "a", "10.244.2.0/24")
		wants(t, c, "old", "10.244.1.0/24")
		node(t, c, "server", "")
		wants(t, c, "server", "10.244.0.0/24")
		node(t, c, "b", "")
		wants(t, c, "b", "10.244.3.0/24")
		node(t, c, "late", "")
		wants(t, c, "late", "")
		if told != 1 {
			t.Errorf("told %d times that there is no range", told)
		}
		if err := client.Nodes.Delete(t.Context(), c, "", "old", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		wants(t, c, "late", "10.244.1.0/24")
		stop()
		synctest.Wait()
		told = 0
		control.Run(t, ipam(t, c, &told))
		node(t, c, "more", "")
		wants(t, c, "more", "")
		wants(t, c, "late", "10.244.1.0/24")
	})
}
