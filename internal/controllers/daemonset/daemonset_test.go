package daemonset_test

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/controllers/daemonset"
	"github.com/proa-dev/proa/internal/controllers/owned"
	"github.com/proa-dev/proa/test/control"
)

var (
	quiet     = slog.New(slog.DiscardHandler)
	appLabels = map[string]string{"app": "agent"}
)

type world struct {
	*testing.T
	c client.Interface
}

// in runs a test with nodes n0, n1, ….
func in(t *testing.T, nodes int, test func(w world)) {
	synctest.Test(t, func(t *testing.T) {
		w := world{t, control.New(t)}
		for i := range nodes {
			w.node(fmt.Sprintf("n%d", i))
		}
		test(w)
	})
}

func (w world) node(name string, taints ...corev1.Taint) {
	w.Helper()
	n, err := client.Nodes.Create(w.Context(), w.c, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"name": name}}})
	if err != nil {
		w.Fatal(err)
	}
	n.Spec.Taints = taints
	if _, err := client.Nodes.Update(w.Context(), w.c, n); err != nil {
		w.Fatal(err)
	}
}

func (w world) changeNode(name string, f func(*corev1.Node)) {
	w.Helper()
	n, err := client.Nodes.Get(w.Context(), w.c, "", name)
	if err != nil {
		w.Fatal(err)
	}
	f(n)
	if _, err := client.Nodes.Update(w.Context(), w.c, n); err != nil {
		w.Fatal(err)
	}
	synctest.Wait()
}

func (w world) create(change ...func(*appsv1.DaemonSet)) {
	w.Helper()
	d := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "agent"}, Spec: appsv1.DaemonSetSpec{
		Selector: &metav1.LabelSelector{MatchLabels: appLabels},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: appLabels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "v1"}}}}}}
	for _, f := range change {
		f(d)
	}
	if _, err := client.DaemonSets.Create(w.Context(), w.c, d); err != nil {
		w.Fatal(err)
	}
	synctest.Wait()
}

func (w world) get() *appsv1.DaemonSet {
	w.Helper()
	synctest.Wait()
	d, err := client.DaemonSets.Get(w.Context(), w.c, "default", "agent")
	if err != nil {
		w.Fatal(err)
	}
	return d
}

func (w world) change(f func(*appsv1.DaemonSet)) {
	w.Helper()
	d := w.get()
	f(d)
	if _, err := client.DaemonSets.Update(w.Context(), w.c, d); err != nil {
		w.Fatal(err)
	}
}

func (w world) image(v string) {
	w.Helper()
	w.change(func(d *appsv1.DaemonSet) { d.Spec.Template.Spec.Containers[0].Image = v })
}

func (w world) pods() []*corev1.Pod {
	synctest.Wait()
	return client.Pods.Informer(w.c, client.Scope{}).List("default", nil)
}

// on returns the images on each node.
func (w world) on() string {
	var out []string
	for _, p := range w.pods() {
		out = append(out, p.Spec.NodeName+"="+p.Spec.Containers[0].Image)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func (w world) revisions() (out []*appsv1.ControllerRevision) {
	synctest.Wait()
	out = client.ControllerRevisions.Informer(w.c, client.Scope{}).List("default", nil)
	slices.SortFunc(out, func(a, b *appsv1.ControllerRevision) int { return int(a.Revision - b.Revision) })
	return out
}

func rolling(unavailable, surge string) func(*appsv1.DaemonSet) {
	return func(d *appsv1.DaemonSet) {
		d.Spec.UpdateStrategy = appsv1.DaemonSetUpdateStrategy{Type: appsv1.RollingUpdateDaemonSetStrategyType,
			RollingUpdate: &appsv1.RollingUpdateDaemonSet{MaxUnavailable: ptr.To(intstr.Parse(unavailable)), MaxSurge: ptr.To(intstr.Parse(surge))}}
	}
}

func TestAPodOnEachNode(t *testing.T) {
	in(t, 2, func(w world) {
		w.node("tainted", corev1.Taint{Key: "dedicated", Value: "db", Effect: corev1.TaintEffectNoSchedule})
		w.node("cordoned", corev1.Taint{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule})
		control.Run(w, daemonset.New(w.c, quiet), control.Kubelet{Client: w.c, Ready: time.Second})
		w.create()
		time.Sleep(2 * time.Second)
		if got, want := w.on(), "cordoned=v1 n0=v1 n1=v1"; got != want {
			w.Fatalf("on %s, want %s", got, want)
		}
		p := w.pods()[0]
		if p.Labels["pod-template-generation"] != "1" || p.Labels[appsv1.ControllerRevisionHashLabelKey] == "" || !strings.HasPrefix(p.Name, "agent-") {
			t.Errorf("labels %v", p.Labels)
		}
		for _, key := range []string{corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable, corev1.TaintNodeDiskPressure, corev1.TaintNodeMemoryPressure, corev1.TaintNodePIDPressure, corev1.TaintNodeUnschedulable} {
			if !slices.ContainsFunc(p.Spec.Tolerations, func(t corev1.Toleration) bool { return t.Key == key && t.TolerationSeconds == nil }) {
				t.Errorf("no toleration of %s: %v", key, p.Spec.Tolerations)
			}
		}
		want := appsv1.DaemonSetStatus{CurrentNumberScheduled: 3, DesiredNumberScheduled: 3, NumberReady: 3, NumberAvailable: 3, UpdatedNumberScheduled: 3, ObservedGeneration: 1}
		if s := w.get().Status; fmt.Sprint(s) != fmt.Sprint(want) {
			t.Errorf("status %+v", s)
		}
		// A node that comes gets one; one that is tainted keeps it, unless NoExecute.
		w.node("late")
		w.changeNode("n0", func(n *corev1.Node) {
			n.Spec.Taints = []corev1.Taint{{Key: "x", Effect: corev1.TaintEffectNoSchedule}}
		})
		w.changeNode("n1", func(n *corev1.Node) {
			n.Spec.Taints = []corev1.Taint{{Key: "x", Effect: corev1.TaintEffectNoExecute}}
		})
		time.Sleep(2 * time.Second)
		if got, want := w.on(), "cordoned=v1 late=v1 n0=v1"; got != want {
			w.Errorf("on %s, want %s", got, want)
		}
		if s := w.get().Status; s.DesiredNumberScheduled != 2 || s.NumberMisscheduled != 1 {
			w.Errorf("status %+v", s)
		}
		// A selector that no longer matches takes it away.
		w.change(func(d *appsv1.DaemonSet) { d.Spec.Template.Spec.NodeSelector = map[string]string{"name": "late"} })
		time.Sleep(time.Minute)
		if got, want := w.on(), "late=v1"; got != want {
			w.Errorf("on %s, want %s", got, want)
		}
	})
}

func TestANodeThatGoesTakesItsUnboundPod(t *testing.T) {
	in(t, 1, func(w world) {
		control.Run(w, daemonset.New(w.c, quiet)) // nobody binds
		w.create()
		if n := len(w.pods()); n != 1 {
			w.Fatalf("%d pods", n)
		}
		if err := client.Nodes.Delete(w.Context(), w.c, "", "n0", metav1.DeleteOptions{}); err != nil {
			w.Fatal(err)
		}
		if n := len(w.pods()); n != 0 {
			w.Errorf("%d pods are left for a node that is gone", n)
		}
		if s := w.get().Status; s.DesiredNumberScheduled != 0 {
			w.Errorf("status %+v", s)
		}
	})
}

// C6, and the bounds of an update at every revision of the pods.
func TestRollingUpdateKeepsItsBounds(t *testing.T) {
	for name, test := range map[string]struct {
		unavailable, surge string
		least, double      int // nodes with an available pod; nodes with two pods
	}{
		"one at a time":          {"1", "0", 4, 0},
		"40%, rounded up":        {"40%", "0", 3, 0},
		"surging two":            {"0", "2", 5, 2},
		"surging more than half": {"0", "60%", 5, 3},
	} {
		t.Run(name, func(t *testing.T) {
			in(t, 5, func(w world) {
				stop := control.Run(w, daemonset.New(w.c, quiet))
				control.Run(w, control.Kubelet{Client: w.c, Ready: time.Second, Stop: 2 * time.Second})
				w.create(rolling(test.unavailable, test.surge))
				time.Sleep(5 * time.Second)
				control.AtEveryRevision(w, w.c, func(pods map[string]*corev1.Pod) error {
					available, active := map[string]bool{}, map[string]int{}
					for _, p := range pods {
						if p.DeletionTimestamp == nil && p.Spec.NodeName != "" {
							active[p.Spec.NodeName]++
							if owned.Ready(p) {
								available[p.Spec.NodeName] = true
							}
						}
					}
					if len(pods) >= 5 && len(available) < test.least {
						return fmt.Errorf("%d nodes are served, want at least %d", len(available), test.least)
					}
					double := 0
					for n, count := range active {
						if count > 2 {
							return fmt.Errorf("%d pods on node %s", count, n)
						}
						double += count - 1
					}
					if double > test.double {
						return fmt.Errorf("%d nodes have two pods, want at most %d", double, test.double)
					}
					return nil
				})
				w.image("v2")
				time.Sleep(3 * time.Second)
				stop() // a controller that starts anew in the middle goes on
				control.Run(w, daemonset.New(w.c, quiet))
				time.Sleep(time.Minute)
				if got, want := w.on(), "n0=v2 n1=v2 n2=v2 n3=v2 n4=v2"; got != want {
					w.Errorf("on %s", got)
				}
				if s := w.get().Status; s.UpdatedNumberScheduled != 5 || s.NumberAvailable != 5 || s.NumberUnavailable != 0 {
					w.Errorf("status %+v", s)
				}
			})
		})
	}
}

func TestABrokenUpdateStopsAtItsBound(t *testing.T) {
	in(t, 4, func(w world) {
		control.Run(w, daemonset.New(w.c, quiet), control.Kubelet{Client: w.c, Status: func(p *corev1.Pod) corev1.PodStatus {
			if p.Spec.Containers[0].Image == "bad" {
				return corev1.PodStatus{Phase: corev1.PodRunning}
			}
			return p.Status
		}})
		w.create(rolling("1", "0"))
		w.image("bad")
		time.Sleep(time.Minute)
		if got := w.on(); strings.Count(got, "bad") != 1 {
			w.Errorf("on %s, want one bad one", got)
		}
		w.image("v3")
		time.Sleep(time.Minute)
		if got := w.on(); strings.Count(got, "v3") != 4 {
			w.Errorf("on %s", got)
		}
	})
}

func TestOnDelete(t *testing.T) {
	in(t, 2, func(w world) {
		control.Run(w, daemonset.New(w.c, quiet), control.Kubelet{Client: w.c})
		w.create(func(d *appsv1.DaemonSet) { d.Spec.UpdateStrategy.Type = appsv1.OnDeleteDaemonSetStrategyType })
		w.image("v2")
		time.Sleep(time.Minute)
		if got := w.on(); got != "n0=v1 n1=v1" {
			w.Fatalf("on %s", got)
		}
		p := w.pods()[0]
		if err := client.Pods.Delete(w.Context(), w.c, "default", p.Name, metav1.DeleteOptions{}); err != nil {
			w.Fatal(err)
		}
		time.Sleep(time.Second)
		if got, s := w.on(), w.get().Status; strings.Count(got, "v2") != 1 || s.UpdatedNumberScheduled != 1 {
			w.Errorf("on %s, status %+v", got, s)
		}
	})
}

// kubectl rollout undo writes a revision's patch: the old revision becomes the newest.
func TestHistoryAndUndo(t *testing.T) {
	in(t, 1, func(w world) {
		control.Run(w, daemonset.New(w.c, quiet), control.Kubelet{Client: w.c})
		w.create(func(d *appsv1.DaemonSet) { d.Spec.RevisionHistoryLimit = ptr.To[int32](2) })
		time.Sleep(time.Second)
		first := w.revisions()[0]
		if first.Revision != 1 || first.Labels[appsv1.ControllerRevisionHashLabelKey] != w.pods()[0].Labels[appsv1.ControllerRevisionHashLabelKey] {
			w.Errorf("first revision %+v", first)
		}
		w.image("v2")
		time.Sleep(time.Minute)
		if _, err := client.DaemonSets.Patch(w.Context(), w.c, "default", "agent", "", types.StrategicMergePatchType, first.Data.Raw); err != nil {
			w.Fatal(err)
		}
		time.Sleep(time.Minute)
		if got := w.on(); got != "n0=v1" {
			w.Errorf("after undo: %s", got)
		}
		list := w.revisions()
		if len(list) != 2 || list[1].UID != first.UID || list[1].Revision != 3 {
			w.Errorf("%d revisions, newest %d", len(list), list[len(list)-1].Revision)
		}
		for i := range 5 {
			w.image(fmt.Sprintf("w%d", i))
			time.Sleep(time.Minute)
		}
		if list := w.revisions(); len(list) != 3 || list[2].Revision != 8 {
			w.Errorf("%d revisions are kept, want the present one and two old ones", len(list))
		}
	})
}

func TestFailedPodsAreReplacedEverMoreSlowly(t *testing.T) {
	in(t, 1, func(w world) {
		control.Run(w, daemonset.New(w.c, quiet), control.Kubelet{Client: w.c, Status: func(*corev1.Pod) corev1.PodStatus { return corev1.PodStatus{Phase: corev1.PodFailed} }})
		made := map[types.UID]bool{}
		control.AtEveryRevision(w, w.c, func(pods map[string]*corev1.Pod) error {
			for _, p := range pods {
				made[p.UID] = true
			}
			return nil
		})
		w.create()
		time.Sleep(60 * time.Second)
		synctest.Wait()
		if len(made) < 5 || len(made) > 8 {
			w.Errorf("%d pods in a minute, want a back-off of 1, 2, 4, … seconds", len(made))
		}
		found := false
		for _, e := range client.Events.Informer(w.c, client.Scope{}).List("default", nil) {
			found = found || e.Reason == "FailedDaemonPod" && strings.HasPrefix(e.Message, "Found failed daemon pod default/agent-") && strings.HasSuffix(e.Message, " on node n0, will try to kill it")
		}
		if !found {
			w.Error("no event FailedDaemonPod")
		}
	})
}

func TestNoPodTwiceWhenTheWatchLags(t *testing.T) {
	in(t, 3, func(w world) {
		control.AtEveryRevision(w, w.c, func(pods map[string]*corev1.Pod) error {
			if len(pods) > 3 {
				return fmt.Errorf("%d pods for 3 nodes", len(pods))
			}
			return nil
		})
		control.Run(w, daemonset.New(control.Lagging{Interface: w.c, Delay: 500 * time.Millisecond}, quiet), control.Kubelet{Client: w.c, Ready: 50 * time.Millisecond})
		w.create(rolling("1", "0"))
		for i := range 5 {
			time.Sleep(400 * time.Millisecond)
			w.change(func(d *appsv1.DaemonSet) { d.Labels = map[string]string{"touched": fmt.Sprint(i)} })
		}
		w.image("v2")
		time.Sleep(2 * time.Minute)
		if got := w.on(); got != "n0=v2 n1=v2 n2=v2" {
			w.Errorf("on %s", got)
		}
	})
}

func TestIdleAndRestartWriteNothing(t *testing.T) {
	in(t, 3, func(w world) {
		stop := control.Run(w, daemonset.New(w.c, quiet))
		control.Run(w, control.Kubelet{Client: w.c})
		w.create()
		time.Sleep(time.Minute)
		w.get()
		stop()
		before := client.Pods.Informer(w.c, client.Scope{}).Revision()
		control.Run(w, daemonset.New(w.c, quiet))
		time.Sleep(30 * time.Minute) // before the events expire
		if after := client.Pods.Informer(w.c, client.Scope{}).Revision(); after != before {
			w.Errorf("%d writes", after-before)
		}
	})
}
