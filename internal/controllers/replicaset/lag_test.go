package replicaset_test

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/controllers/owned"
	"github.com/proa-dev/proa/internal/controllers/replicaset"
	"github.com/proa-dev/proa/test/control"
)

// C3: the number of pods never passes the wanted one, also when the watch lags, the
// set is scaled meanwhile and the controller starts anew.
func TestNeverTooManyPodsWhenTheWatchLags(t *testing.T) {
	in(t, func(w world) {
		control.AtEveryRevision(w, w.c, func(state map[string]*corev1.Pod) error {
			n := 0
			for _, p := range state {
				if owned.Active(p) {
					n++
				}
			}
			if n > 5 {
				return fmt.Errorf("%d active pods of 5", n)
			}
			return nil
		})
		lagging := control.Lagging{Interface: w.c, Delay: 700 * time.Millisecond}
		stop := control.Run(w, replicaset.New(lagging, quiet))
		control.Run(w, control.Kubelet{Client: w.c, Ready: 100 * time.Millisecond})
		w.create(set(3))
		for i := range 6 {
			time.Sleep(900 * time.Millisecond)
			w.scale(int32(3 + 2*(i%2)))
			if i == 3 {
				stop()
				control.Run(w, replicaset.New(lagging, quiet))
			}
		}
		time.Sleep(time.Minute)
		if s := w.status(); s.ReadyReplicas != 5 || len(w.pods()) != 5 {
			w.Errorf("in the end: %+v, %d pods, want 5", s, len(w.pods()))
		}
	})
}

// C3: a controller that starts on a satisfied set writes nothing.
func TestRestartWithASatisfiedSetWritesNothing(t *testing.T) {
	in(t, func(w world) {
		stop := control.Run(w, replicaset.New(w.c, quiet))
		control.Run(w, control.Kubelet{Client: w.c})
		w.create(set(4))
		w.status()
		stop()
		before := client.Pods.Informer(w.c, client.Scope{}).Revision()
		control.Run(w, replicaset.New(w.c, quiet))
		if s := w.status(); s.Replicas != 4 {
			w.Errorf("%+v", s)
		}
		if after := client.Pods.Informer(w.c, client.Scope{}).Revision(); after != before {
			w.Errorf("%d writes", after-before)
		}
	})
}

func BenchmarkSyncWithNothingToDo(b *testing.B) {
	c := control.New(b)
	x := replicaset.New(c, quiet)
	control.Run(b, x)
	for i := range 50 { // other sets of the namespace must not cost anything
		s := set(20)
		s.Name = fmt.Sprintf("web-%d", i)
		one := map[string]string{"app": s.Name}
		s.Spec.Selector.MatchLabels, s.Spec.Template.Labels = one, one
		if _, err := client.ReplicaSets.Create(b.Context(), c, s); err != nil {
			b.Fatal(err)
		}
	}
	informer := client.ReplicaSets.Informer(c, client.Scope{})
	ready := func(s *appsv1.ReplicaSet) bool { return s.Status.Replicas == 20 && len(s.Status.Conditions) == 0 }
	for !ready(informer.List("default", nil)[49]) {
		time.Sleep(10 * time.Millisecond)
	}
	time.Sleep(200 * time.Millisecond)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		if err := replicaset.SyncForTest(x, "default", "web-7"); err != nil {
			b.Fatal(err)
		}
	}
}

// A node that refuses every pod must not make the controller fill the store.
func TestRefusedPodsAreReplacedEverMoreSlowly(t *testing.T) {
	in(t, func(w world) {
		var refuse atomic.Bool
		refuse.Store(true)
		control.Run(w, replicaset.New(w.c, quiet), control.Kubelet{Client: w.c, Status: func(p *corev1.Pod) corev1.PodStatus {
			if refuse.Load() {
				return corev1.PodStatus{Phase: corev1.PodFailed, Reason: "OutOfcpu"}
			}
			return p.Status
		}})
		w.create(set(1))
		time.Sleep(time.Minute)
		if n := len(w.pods()); n < 5 || n > 15 {
			w.Errorf("%d pods in a minute, want a back-off from 0.1 s to 30 s", n)
		}
		refuse.Store(false)
		time.Sleep(time.Minute)
		if s := w.status(); s.ReadyReplicas != 1 {
			w.Errorf("afterwards: %+v", s)
		}
		// One that ran and then failed is replaced at once.
		for _, p := range w.pods() {
			if p.Status.Phase == corev1.PodRunning {
				p = p.DeepCopy()
				p.Status.Phase = corev1.PodFailed
				p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{StartedAt: metav1.Now(), ExitCode: 1}}}}
				if _, err := client.Pods.UpdateStatus(w.Context(), w.c, p); err != nil {
					w.Fatal(err)
				}
			}
		}
		if s := w.status(); s.ReadyReplicas != 1 {
			w.Errorf("after a failure: %+v", s)
		}
	})
}
