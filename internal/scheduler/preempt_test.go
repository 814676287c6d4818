package scheduler

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/client/events"
	"github.com/proa-dev/proa/internal/cluster/local"
	"github.com/proa-dev/proa/test/control"
)

// ground is a cluster with nodes of 2 CPUs each, and a kubelet that ends pods at once.
type ground struct {
	*testing.T
	c *local.Client
}

func newGround(t *testing.T, nodes int) ground {
	c := control.New(t)
	g := ground{t, c}
	for i := range nodes {
		n, err := client.Nodes.Create(t.Context(), c, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("n", i), Labels: map[string]string{"kubernetes.io/hostname": fmt.Sprint("n", i)}}})
		if err != nil {
			t.Fatal(err)
		}
		n.Spec.Taints = nil // it is ready
		if n, err = client.Nodes.Update(t.Context(), c, n); err != nil {
			t.Fatal(err)
		}
		n = n.DeepCopy()
		n.Status.Allocatable = corev1.ResourceList{"cpu": resource.MustParse("2"), "memory": resource.MustParse("4Gi"), "pods": resource.MustParse("110")}
		if _, err := client.Nodes.UpdateStatus(t.Context(), c, n); err != nil {
			t.Fatal(err)
		}
	}
	recorder := events.New(c, "default-scheduler", "", slog.New(slog.DiscardHandler))
	control.Run(t, part{"events", recorder.Run}, part{"scheduler", New(Config{Client: c, Recorder: recorder, Logger: slog.New(slog.DiscardHandler), Seed: 1}).Run})
	return g
}

func (g ground) pod(name, cpu string, priority int32, change ...func(*corev1.Pod)) *corev1.Pod {
	g.Helper()
	p := testPod(name, cpu, change...)
	p.Namespace, p.UID = "default", ""
	p.Spec.Priority = &priority
	p.Spec.Containers[0].Name, p.Spec.Containers[0].Image = "c", "i"
	p.Spec.TerminationGracePeriodSeconds = new(int64)
	*p.Spec.TerminationGracePeriodSeconds = 5
	class := fmt.Sprint("p", priority)
	p.Spec.PriorityClassName, p.Spec.Priority = class, nil
	if _, err := g.c.Get(g.Context(), client.PriorityClasses.GVR, "", class); err != nil {
		g.class(class, priority)
	}
	out, err := client.Pods.Create(g.Context(), g.c, p)
	if err != nil {
		g.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	return out
}

func (g ground) get(name string) *corev1.Pod {
	g.Helper()
	p, err := client.Pods.Get(g.Context(), g.c, "default", name)
	if err != nil {
		g.Fatal(err)
	}
	return p
}

// running names the pods that have a node and are not ending.
func (g ground) running() string {
	var out []string
	for _, p := range client.Pods.Informer(g.c, client.Scope{}).List("default", nil) {
		if p.Spec.NodeName != "" && p.DeletionTimestamp == nil {
			out = append(out, p.Name)
		}
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// end plays the kubelet of the pods that are ending.
func (g ground) end() {
	g.Helper()
	for _, p := range client.Pods.Informer(g.c, client.Scope{}).List("default", nil) {
		if p.DeletionTimestamp != nil {
			if err := client.Pods.Delete(g.Context(), g.c, "default", p.Name, metav1.DeleteOptions{GracePeriodSeconds: new(int64)}); err != nil {
				g.Fatal(err)
			}
		}
	}
	time.Sleep(15 * time.Second) // the back-off of those that wait
}

func (g ground) message(name string) string {
	for _, c := range g.get(name).Status.Conditions {
		if c.Type == corev1.PodScheduled {
			return c.Message
		}
	}
	return ""
}

func TestTheImportantTakeThePlaceOfOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGround(t, 2)
		g.pod("old-low", "1", 1)
		time.Sleep(time.Second)
		g.pod("mid", "1", 5)
		g.pod("low", "1", 1)
		g.pod("small", "500m", 1)
		g.pod("tiny", "500m", 1)
		if got := g.running(); got != "low mid old-low small tiny" {
			t.Fatalf("at first: %s", got)
		}
		g.pod("high", "1", 10)
		high := g.get("high")
		if high.Status.NominatedNodeName == "" || high.Spec.NodeName != "" {
			t.Fatalf("nominated %q, on %q: %s", high.Status.NominatedNodeName, high.Spec.NodeName, g.message("high"))
		}
		if m := g.message("high"); m != "0/2 nodes are available: 2 Insufficient cpu." {
			t.Errorf("its condition says %q", m)
		}
		// One that is no more important does not take the room that is made.
		g.pod("late", "500m", 1)
		g.end()
		if got := g.get("high").Spec.NodeName; got != high.Status.NominatedNodeName {
			t.Errorf("it went to %q", got)
		}
		if got := g.running(); !strings.Contains(got, "high mid") || strings.Contains(got, "late") && len(strings.Fields(got)) > 5 {
			t.Errorf("now run %s", got)
		}
		found := false
		for _, e := range client.Events.Informer(g.c, client.Scope{}).List("default", nil) {
			found = found || e.Reason == "Preempted" && e.Message == fmt.Sprintf("Preempted by pod %v on node %v", high.UID, high.Status.NominatedNodeName)
		}
		if !found {
			t.Error("no event about a preempted pod")
		}
	})
}

func TestVictimsAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGround(t, 1)
		g.pod("low", "2", 1)
		g.pod("high", "2", 10)
		p := g.get("low")
		if p.DeletionTimestamp == nil || !slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == corev1.DisruptionTarget && c.Reason == "PreemptionByScheduler" && c.Message == "default-scheduler: preempting to accommodate a higher priority pod"
		}) {
			t.Errorf("%v %+v", p.DeletionTimestamp, p.Status.Conditions)
		}
		time.Sleep(20 * time.Second)
		if m := g.message("high"); strings.Contains(m, "preemption:") && !strings.Contains(m, "not eligible due to a terminating pod on the nominated node") {
			t.Errorf("while its place is being made: %s", m)
		}
		g.end()
		if got := g.running(); got != "high" {
			t.Errorf("now run %s", got)
		}
	})
}

func TestWhoMayNotPreempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGround(t, 1)
		g.pod("low", "2", 1)
		g.pod("equal", "1", 1)
		if m := g.message("equal"); m != "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod." {
			t.Errorf("of the same priority: %q", m)
		}
		never := corev1.PreemptNever
		g.class("never", 10, func(c *schedulingClass) { c.PreemptionPolicy = &never })
		p := testPod("polite", "1")
		p.Namespace, p.UID, p.Spec.PriorityClassName = "default", "", "never"
		p.Spec.Containers[0].Name, p.Spec.Containers[0].Image = "c", "i"
		if _, err := client.Pods.Create(t.Context(), g.c, p); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if m := g.message("polite"); m != "0/1 nodes are available: 1 Insufficient cpu. preemption: not eligible due to preemptionPolicy=Never." {
			t.Errorf("polite: %q", m)
		}
		g.pod("large", "3", 10)
		if m := g.message("large"); m != "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 Insufficient cpu." {
			t.Errorf("larger than the node: %q", m)
		}
		if got := g.running(); got != "low" {
			t.Errorf("now run %s", got)
		}
	})
}

// B6: budgets are kept where another node will do.
func TestBudgetsAreKeptIfPossible(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGround(t, 2)
		if _, err := client.PodDisruptionBudgets.Create(t.Context(), g.c, &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "b"},
			Spec: policyv1.PodDisruptionBudgetSpec{MaxUnavailable: new(intstr.IntOrString), Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"guarded": "yes"}}}}); err != nil {
			t.Fatal(err)
		}
		guarded := func(p *corev1.Pod) { p.Labels = map[string]string{"guarded": "yes"} }
		g.pod("guarded", "2", 1, guarded)
		g.pod("free", "2", 3) // more important, but nobody guards it
		g.pod("high", "1", 10)
		g.end()
		if got := g.running(); got != "guarded high" {
			t.Errorf("now run %s", got)
		}
	})
}

// The room that is kept goes with who it is kept for.
func TestKeptRoomIsGivenBack(t *testing.T) {
	s := newState()
	s.setNode(testNode("a", "2"))
	p := testPod("p", "1", func(p *corev1.Pod) { p.UID = types.UID("p") })
	s.nominate(p, "a")
	s.nominate(p, "a")
	if got := s.nodes[0].used.cpu; got != 1000 {
		t.Errorf("%d is kept", got)
	}
	restore := s.lift(p)
	if got := s.nodes[0].used.cpu; got != 0 {
		t.Errorf("%d is kept from itself", got)
	}
	restore()
	s.nominate(p, "")
	if got := s.nodes[0].used; got.cpu != 0 || got.pods != 0 || len(s.nominated) != 0 {
		t.Errorf("%+v is left", got)
	}
	s.nominate(p, "a")
	s.removeNode("a")
	if len(s.nominated) != 0 {
		t.Error("room is kept on a node that is gone")
	}
}
