package tainteviction_test

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/cluster/local"
	"github.com/proa-dev/proa/internal/controllers/nodelifecycle"
	"github.com/proa-dev/proa/internal/controllers/podgc"
	"github.com/proa-dev/proa/internal/controllers/tainteviction"
	"github.com/proa-dev/proa/test/control"
)

type world struct {
	*testing.T
	c *local.Client
}

func start(t *testing.T, nodes ...string) world {
	c, quiet := control.New(t), slog.New(slog.DiscardHandler)
	w := world{t, c}
	control.Namespace(t, c, corev1.NamespaceNodeLease)
	for _, name := range nodes {
		w.node(name)
	}
	control.Run(t, tainteviction.New(c, quiet), nodelifecycle.New(c, quiet), podgc.New(c, 3, quiet))
	return w
}

// node makes a node that is ready.
func (w world) node(name string) {
	w.Helper()
	ctx := w.Context()
	if _, err := client.Nodes.Create(ctx, w.c, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}); err != nil {
		w.Fatal(err)
	}
	n, err := client.Nodes.Get(ctx, w.c, "", name)
	if err != nil {
		w.Fatal(err)
	}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	if _, err := client.Nodes.UpdateStatus(ctx, w.c, n); err != nil {
		w.Fatal(err)
	}
	if _, err := client.Leases.Create(ctx, w.c, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: corev1.NamespaceNodeLease, Name: name}}); err != nil {
		w.Fatal(err)
	}
}

// beat keeps the leases of nodes alive for so long.
func (w world) beat(d time.Duration, nodes ...string) {
	w.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); {
		time.Sleep(10 * time.Second)
		for _, name := range nodes {
			l, err := client.Leases.Get(w.Context(), w.c, corev1.NamespaceNodeLease, name)
			if w.Context().Err() != nil {
				return
			}
			if err != nil {
				w.Error(err)
				return
			}
			l.Spec.RenewTime = ptr.To(metav1.NowMicro())
			if _, err := client.Leases.Update(w.Context(), w.c, l); err != nil {
				w.Error(err)
				return
			}
		}
	}
}

// pod makes a pod that runs on a node.
func (w world) pod(name, node string, tolerations ...corev1.Toleration) {
	w.Helper()
	p, err := client.Pods.Create(w.Context(), w.c, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: corev1.PodSpec{NodeName: node, Tolerations: tolerations, TerminationGracePeriodSeconds: new(int64), Containers: []corev1.Container{{Name: "c", Image: "i"}}}})
	if err != nil {
		w.Fatal(err)
	}
	p.Status.Phase = corev1.PodRunning
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	if _, err := client.Pods.UpdateStatus(w.Context(), w.c, p); err != nil {
		w.Fatal(err)
	}
}

func (w world) pods() string {
	var out []string
	for _, p := range client.Pods.Informer(w.c, client.Scope{}).List("default", nil) {
		if p.DeletionTimestamp == nil {
			out = append(out, p.Name)
		}
	}
	return strings.Join(out, " ")
}

func (w world) taint(node string, taints ...corev1.Taint) {
	w.Helper()
	n, err := client.Nodes.Get(w.Context(), w.c, "", node)
	if err != nil {
		w.Fatal(err)
	}
	n.Spec.Taints = taints
	if _, err := client.Nodes.Update(w.Context(), w.c, n); err != nil {
		w.Fatal(err)
	}
}

func (w world) says(name, want string) {
	w.Helper()
	for _, e := range client.Events.Informer(w.c, client.Scope{}).List("default", nil) {
		if e.InvolvedObject.Name == name && e.Message == want {
			return
		}
	}
	w.Errorf("no event %q about %s", want, name)
}

func TestTolerations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, "n", "other")
		seconds := func(s int64) corev1.Toleration {
			return corev1.Toleration{Key: "k", Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: &s}
		}
		w.pod("never", "n")
		w.pod("always", "n", corev1.Toleration{Operator: corev1.TolerationOpExists})
		w.pod("some", "n", seconds(20))
		w.pod("least", "n", seconds(30), seconds(10))
		w.pod("saved", "n", seconds(25))
		w.pod("elsewhere", "other")
		for _, p := range strings.Fields(w.pods()) { // shows a DisruptionTarget after it is gone
			pod, _ := client.Pods.Get(t.Context(), w.c, "default", p)
			pod.Finalizers = []string{"example.com/keep"}
			if _, err := client.Pods.Update(t.Context(), w.c, pod); err != nil {
				t.Fatal(err)
			}
		}
		go w.beat(50*time.Second, "n", "other")
		w.taint("n", corev1.Taint{Key: "k", Effect: corev1.TaintEffectNoExecute})
		at := time.Now()
		for _, step := range []struct {
			after time.Duration
			want  string
		}{{time.Second, "always elsewhere least saved some"}, {11 * time.Second, "always elsewhere saved some"}, {21 * time.Second, "always elsewhere saved"}} {
			time.Sleep(time.Until(at.Add(step.after)))
			if got := w.pods(); got != step.want {
				t.Errorf("after %s: %s, want %s", step.after, got, step.want)
			}
		}
		w.taint("n")
		time.Sleep(39 * time.Second)
		if got := w.pods(); got != "always elsewhere saved" {
			t.Errorf("after the taint: %s", got)
		}
		p, err := client.Pods.Get(t.Context(), w.c, "default", "never")
		if err != nil || !slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == corev1.DisruptionTarget && c.Status == corev1.ConditionTrue && c.Reason == "DeletionByTaintManager" && c.Message == "Taint manager: deleting due to NoExecute taint"
		}) {
			t.Errorf("%v %+v", err, p.Status.Conditions)
		}
		w.says("never", "Marking for deletion Pod default/never")
		w.says("saved", "Cancelling deletion of Pod default/saved")
	})
}

// A node that falls silent loses its pods after their toleration; its Services lose
// them at once.
func TestASilentNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, "n1", "n2", "n3")
		w.pod("a", "n1") // tolerates for 300 s, by default
		w.pod("b", "n2")
		w.beat(70*time.Second, "n2", "n3")
		p, err := client.Pods.Get(t.Context(), w.c, "default", "a")
		if err != nil || p.Status.Conditions[0].Status != corev1.ConditionFalse {
			t.Fatalf("the pod is still ready: %v %+v", err, p.Status.Conditions)
		}
		w.says("a", "Node is not ready")
		n, _ := client.Nodes.Get(t.Context(), w.c, "", "n1")
		if s := fmt.Sprint(n.Spec.Taints); strings.Count(s, "unreachable") != 2 {
			t.Errorf("taints %s", s)
		}
		w.beat(220*time.Second, "n2", "n3")
		if got := w.pods(); got != "a b" {
			t.Errorf("after 290 s: %s", got)
		}
		w.beat(80*time.Second, "n2", "n3")
		if got := w.pods(); got != "b" {
			t.Errorf("after 370 s: %s", got)
		}
	})
}

// When every node is silent it is the watcher that is cut off: nobody loses a pod.
func TestNobodyIsEvictedWhenAllAreSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, "n1", "n2")
		w.pod("a", "n1")
		w.pod("b", "n2")
		time.Sleep(time.Hour)
		if got := w.pods(); got != "a b" {
			t.Errorf("%s", got)
		}
		n, _ := client.Nodes.Get(t.Context(), w.c, "", "n1")
		if s := fmt.Sprint(n.Spec.Taints); !strings.Contains(s, "NoSchedule") || strings.Contains(s, "NoExecute") {
			t.Errorf("taints %s", s)
		}
	})
}

// Nodes lose their pods one by one.
func TestEvictionHasAPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		names := []string{"n0", "n1", "n2", "n3", "n4", "n5"}
		w := start(t, names...)
		go w.beat(3*time.Minute, names[2:]...)
		time.Sleep(59 * time.Second)
		tainted := func() (n int) {
			for _, name := range names {
				node, _ := client.Nodes.Get(t.Context(), w.c, "", name)
				if slices.ContainsFunc(node.Spec.Taints, func(t corev1.Taint) bool { return t.Effect == corev1.TaintEffectNoExecute }) {
					n++
				}
			}
			return n
		}
		if n := tainted(); n != 1 {
			t.Errorf("%d nodes lose their pods at first", n)
		}
		time.Sleep(12 * time.Second)
		if n := tainted(); n != 2 {
			t.Errorf("%d nodes lose their pods then", n)
		}
		time.Sleep(2 * time.Minute)
	})
}

func TestPodsThatNobodyElseDeletes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, "n", "other")
		go w.beat(5*time.Minute, "n", "other")
		w.pod("stays", "other")
		w.pod("orphan", "n")
		if err := client.Nodes.Delete(t.Context(), w.c, "", "n", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Second)
		if got := w.pods(); got != "orphan stays" {
			t.Errorf("within the quarantine: %s", got)
		}
		time.Sleep(15 * time.Second)
		if got := w.pods(); got != "stays" {
			t.Errorf("after the quarantine: %s", got)
		}
		if _, err := client.Pods.Get(t.Context(), w.c, "default", "orphan"); !apierrors.IsNotFound(err) {
			t.Errorf("the orphan is not gone: %v", err)
		}
		// The oldest of too many that have ended.
		for i := range 6 {
			name := fmt.Sprint("over-", i)
			w.pod(name, "other")
			p, _ := client.Pods.Get(t.Context(), w.c, "default", name)
			p.Status.Phase = corev1.PodSucceeded
			if _, err := client.Pods.UpdateStatus(t.Context(), w.c, p); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Second)
		}
		time.Sleep(30 * time.Second)
		if got := w.pods(); got != "over-3 over-4 over-5 stays" {
			t.Errorf("of six, three are to be kept: %s", got)
		}
		time.Sleep(5 * time.Minute)
	})
}
