package statefulset_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/controllers/owned"
	"github.com/proa-dev/proa/internal/controllers/statefulset"
	"github.com/proa-dev/proa/test/control"
)

// C5: in order, a pod is there only when those before it are available, and at most
// one is unavailable at any revision.
func TestScalesInOrder(t *testing.T) {
	in(t, func(w world) {
		w.run(control.Kubelet{Ready: time.Second, Stop: 2 * time.Second})
		goingUp := true
		control.AtEveryRevision(w, w.c, func(pods map[string]*corev1.Pod) error {
			unready := 0
			for _, p := range pods {
				if !owned.Ready(p) || p.DeletionTimestamp != nil {
					unready++
				}
			}
			if unready > 1 {
				return fmt.Errorf("%d pods are not ready", unready)
			}
			for i := range len(pods) {
				if pods[fmt.Sprintf("default/db-%d", i)] == nil && goingUp {
					return fmt.Errorf("%d pods, but db-%d is missing", len(pods), i)
				}
			}
			return nil
		})
		w.create(3)
		w.want("0=v1")
		time.Sleep(1500 * time.Millisecond)
		w.want("0=v1 1=v1")
		time.Sleep(5 * time.Second)
		w.want("0=v1 1=v1 2=v1")
		p := w.pod("db-1")
		if p.Labels[appsv1.StatefulSetPodNameLabel] != "db-1" || p.Labels[appsv1.PodIndexLabel] != "1" || p.Labels[appsv1.ControllerRevisionHashLabelKey] != w.get().Status.UpdateRevision ||
			p.Spec.Hostname != "db-1" || p.Spec.Subdomain != "db" {
			w.Errorf("identity: %v %s.%s", p.Labels, p.Spec.Hostname, p.Spec.Subdomain)
		}
		s := w.get().Status
		if s.Replicas != 3 || s.ReadyReplicas != 3 || s.AvailableReplicas != 3 || s.CurrentReplicas != 3 || s.UpdatedReplicas != 3 || s.CurrentRevision != s.UpdateRevision || s.ObservedGeneration != 1 {
			w.Errorf("status %+v", s)
		}
		w.scale(1)
		time.Sleep(time.Second)
		w.want("0=v1 1=v1 2=v1") // the second has not been asked yet
		if w.pod("db-1").DeletionTimestamp != nil || w.pod("db-2").DeletionTimestamp == nil {
			w.Error("the highest does not go first")
		}
		time.Sleep(10 * time.Second)
		w.want("0=v1")
		for _, want := range []string{"Normal SuccessfulCreate Create Pod db-0 in StatefulSet db successful", "Normal SuccessfulDelete Delete Pod db-2 in StatefulSet db successful"} {
			if !slices.Contains(w.events(), want) {
				w.Errorf("no event %q in %q", want, w.events())
			}
		}
	})
}

func TestParallelGoesAtOnce(t *testing.T) {
	in(t, func(w world) {
		w.run(control.Kubelet{Ready: time.Hour, Stop: time.Second})
		w.create(4, parallel)
		w.want("0=v1 1=v1 2=v1 3=v1")
		w.scale(1)
		time.Sleep(2 * time.Second)
		w.want("0=v1")
	})
}

func TestRollingUpdateFromTheTop(t *testing.T) {
	in(t, func(w world) {
		stop := w.run(control.Kubelet{Ready: time.Second, Stop: time.Second})
		w.create(3)
		time.Sleep(10 * time.Second)
		old := w.get().Status.CurrentRevision
		w.image("v2")
		time.Sleep(1500 * time.Millisecond)
		w.want("0=v1 1=v1 2=v2")
		s := w.get().Status
		if s.CurrentRevision != old || s.UpdateRevision == old || s.CurrentReplicas != 2 || s.UpdatedReplicas != 1 {
			w.Errorf("in the middle: %+v", s)
		}
		stop()
		control.Run(w, statefulset.New(w.c, quiet))
		time.Sleep(20 * time.Second)
		w.want("0=v2 1=v2 2=v2")
		s = w.get().Status
		if s.CurrentRevision != s.UpdateRevision || s.CurrentReplicas != 3 || s.UpdatedReplicas != 3 || s.ReadyReplicas != 3 {
			w.Errorf("in the end: %+v", s)
		}
	})
}

func TestPartition(t *testing.T) {
	in(t, func(w world) {
		w.run(control.Kubelet{})
		w.create(4)
		time.Sleep(time.Second)
		w.change(func(s *appsv1.StatefulSet) {
			s.Spec.UpdateStrategy.RollingUpdate.Partition = ptr.To[int32](2)
			s.Spec.Template.Spec.Containers[0].Image = "v2"
		})
		time.Sleep(time.Minute)
		w.want("0=v1 1=v1 2=v2 3=v2")
		// One below the partition comes back as it was.
		for _, name := range []string{"db-0", "db-3"} {
			if err := client.Pods.Delete(w.Context(), w.c, "default", name, metav1.DeleteOptions{}); err != nil {
				w.Fatal(err)
			}
		}
		time.Sleep(time.Minute)
		w.want("0=v1 1=v1 2=v2 3=v2")
		if s := w.get().Status; s.CurrentReplicas != 2 || s.UpdatedReplicas != 2 {
			w.Errorf("status %+v", s)
		}
		w.change(func(s *appsv1.StatefulSet) { s.Spec.UpdateStrategy.RollingUpdate.Partition = ptr.To[int32](0) })
		time.Sleep(time.Minute)
		w.want("0=v2 1=v2 2=v2 3=v2")
	})
}

func TestMaxUnavailable(t *testing.T) {
	for name, changes := range map[string][]change{"in order": nil, "parallel": {parallel}} {
		t.Run(name, func(t *testing.T) {
			in(t, func(w world) {
				w.run(control.Kubelet{Ready: time.Second, Stop: time.Second})
				w.create(6, append(changes, func(s *appsv1.StatefulSet) {
					s.Spec.UpdateStrategy = appsv1.StatefulSetUpdateStrategy{Type: appsv1.RollingUpdateStatefulSetStrategyType,
						RollingUpdate: &appsv1.RollingUpdateStatefulSetStrategy{MaxUnavailable: ptr.To(intstr.FromInt32(2))}}
				})...)
				time.Sleep(time.Minute)
				worst := 6
				control.AtEveryRevision(w, w.c, func(pods map[string]*corev1.Pod) error {
					available := 0
					for _, p := range pods {
						if owned.Ready(p) && p.DeletionTimestamp == nil {
							available++
						}
					}
					if len(pods) >= 4 && available < 4 && worst < 6 {
						return fmt.Errorf("%d are available, want 4", available)
					}
					if len(pods) == 6 {
						worst = min(worst, available)
					}
					return nil
				})
				w.image("v2")
				time.Sleep(time.Minute)
				w.want("0=v2 1=v2 2=v2 3=v2 4=v2 5=v2")
				if worst != 4 {
					w.Errorf("never fewer than %d available: maxUnavailable is not used", worst)
				}
			})
		})
	}
}

func TestOnDelete(t *testing.T) {
	in(t, func(w world) {
		w.run(control.Kubelet{})
		w.create(2, func(s *appsv1.StatefulSet) { s.Spec.UpdateStrategy.Type = appsv1.OnDeleteStatefulSetStrategyType })
		w.image("v2")
		time.Sleep(time.Minute)
		w.want("0=v1 1=v1")
		if err := client.Pods.Delete(w.Context(), w.c, "default", "db-0", metav1.DeleteOptions{}); err != nil {
			w.Fatal(err)
		}
		time.Sleep(time.Minute)
		w.want("0=v2 1=v1")
	})
}

func TestUndoAndHistory(t *testing.T) {
	in(t, func(w world) {
		w.run(control.Kubelet{})
		w.create(1, func(s *appsv1.StatefulSet) { s.Spec.RevisionHistoryLimit = ptr.To[int32](2) })
		first := w.revisions()[0]
		w.image("v2")
		time.Sleep(time.Minute)
		if _, err := client.StatefulSets.Patch(w.Context(), w.c, "default", "db", "", types.StrategicMergePatchType, first.Data.Raw); err != nil {
			w.Fatal(err)
		}
		time.Sleep(time.Minute)
		w.want("0=v1")
		if list := w.revisions(); len(list) != 2 || list[1].UID != first.UID || list[1].Revision != 3 || w.get().Status.CurrentRevision != first.Name {
			w.Errorf("%d revisions, the newest %+v", len(list), list[len(list)-1].Revision)
		}
		for i := range 5 {
			w.image(fmt.Sprintf("w%d", i))
			time.Sleep(time.Minute)
		}
		if list := w.revisions(); len(list) != 3 {
			w.Errorf("%d revisions are kept, want the present one and two old ones", len(list))
		}
	})
}

func TestStartOrdinalAndMinReadySeconds(t *testing.T) {
	in(t, func(w world) {
		w.run(control.Kubelet{})
		w.create(2, func(s *appsv1.StatefulSet) {
			s.Spec.Ordinals = &appsv1.StatefulSetOrdinals{Start: 5}
			s.Spec.MinReadySeconds = 30
		})
		time.Sleep(20 * time.Second)
		w.want("5=v1")
		if s := w.get().Status; s.ReadyReplicas != 1 || s.AvailableReplicas != 0 {
			w.Errorf("status %+v", s)
		}
		time.Sleep(time.Minute)
		w.want("5=v1 6=v1")
		if s := w.get().Status; s.AvailableReplicas != 2 {
			w.Errorf("status %+v", s)
		}
		w.change(func(s *appsv1.StatefulSet) { s.Spec.Ordinals.Start = 6 })
		time.Sleep(2 * time.Minute)
		w.want("6=v1 7=v1")
	})
}

func TestAPodThatEndedIsMadeAgain(t *testing.T) {
	in(t, func(w world) {
		w.run(control.Kubelet{Stop: time.Second})
		w.create(2)
		time.Sleep(time.Second)
		for _, phase := range []corev1.PodPhase{corev1.PodFailed, corev1.PodSucceeded} {
			p := w.pod("db-0")
			p.Status.Phase = phase
			if _, err := client.Pods.UpdateStatus(w.Context(), w.c, p); err != nil {
				w.Fatal(err)
			}
			time.Sleep(5 * time.Second)
			if again := w.pod("db-0"); again.UID == p.UID || again.Status.Phase != corev1.PodRunning {
				w.Errorf("after %s: the same pod, %s", phase, again.Status.Phase)
			}
		}
	})
}

func TestARefusedPodIsNotMadeAgainAtOnce(t *testing.T) {
	in(t, func(w world) {
		made := map[types.UID]bool{}
		control.AtEveryRevision(w, w.c, func(pods map[string]*corev1.Pod) error {
			for _, p := range pods {
				made[p.UID] = true
			}
			return nil
		})
		w.run(control.Kubelet{Status: func(*corev1.Pod) corev1.PodStatus {
			return corev1.PodStatus{Phase: corev1.PodFailed, Reason: "NodePorts"}
		}})
		w.create(1)
		time.Sleep(time.Minute)
		w.get()
		if len(made) < 10 || len(made) > 31 {
			w.Errorf("%d pods in a minute, want one in two seconds", len(made))
		}
	})
}

func TestAdoptsItsOwnNamesOnly(t *testing.T) {
	in(t, func(w world) {
		for _, name := range []string{"db-0", "db-x", "other-1"} {
			if _, err := client.Pods.Create(w.Context(), w.c, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: appLabels},
				Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "v0"}}}}); err != nil {
				w.Fatal(err)
			}
		}
		w.run(control.Kubelet{})
		set := w.create(1, func(s *appsv1.StatefulSet) { s.Spec.UpdateStrategy.Type = appsv1.OnDeleteStatefulSetStrategyType })
		time.Sleep(time.Second)
		for name, want := range map[string]bool{"db-0": true, "db-x": false, "other-1": false} {
			if got := metav1.IsControlledBy(w.pod(name), set); got != want {
				w.Errorf("%s adopted: %v, want %v", name, got, want)
			}
		}
		if got := w.pod("db-0").Labels[appsv1.StatefulSetPodNameLabel]; got != "db-0" {
			w.Errorf("the adopted pod has no identity: %q", got)
		}
	})
}

// C5 and F18: while the watch lags no pod is deleted too many.
func TestWhenTheWatchLags(t *testing.T) {
	in(t, func(w world) {
		control.Run(w, statefulset.New(control.Lagging{Interface: w.c, Delay: 400 * time.Millisecond}, quiet), control.Kubelet{Client: w.c, Ready: 50 * time.Millisecond})
		full := false
		control.AtEveryRevision(w, w.c, func(pods map[string]*corev1.Pod) error {
			available := 0
			for _, p := range pods {
				if owned.Ready(p) && p.DeletionTimestamp == nil {
					available++
				}
			}
			full = full || available == 3
			if full && available < 2 {
				return fmt.Errorf("%d of 3 are available", available)
			}
			return nil
		})
		w.create(3)
		time.Sleep(time.Minute)
		for i := range 4 {
			w.image(fmt.Sprintf("v%d", i+2))
			time.Sleep(1100 * time.Millisecond)
		}
		time.Sleep(2 * time.Minute)
		w.want("0=v5 1=v5 2=v5")
	})
}

func TestIdleAndRestartWriteNothing(t *testing.T) {
	in(t, func(w world) {
		stop := w.run(control.Kubelet{})
		w.create(3, withClaim)
		time.Sleep(time.Minute)
		w.get()
		stop()
		before := client.Pods.Informer(w.c, client.Scope{}).Revision()
		control.Run(w, statefulset.New(w.c, quiet))
		time.Sleep(30 * time.Minute) // before the events expire
		if after := client.Pods.Informer(w.c, client.Scope{}).Revision(); after != before {
			w.Errorf("%d writes", after-before)
		}
	})
}
