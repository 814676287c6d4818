package replicaset_test

import (
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/controllers/replicaset"
	"github.com/proa-dev/proa/test/control"
)

var (
	quiet     = slog.New(slog.DiscardHandler)
	appLabels = map[string]string{"app": "web"}
)

func set(replicas int32) *appsv1.ReplicaSet {
	return &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}, Spec: appsv1.ReplicaSetSpec{Replicas: &replicas,
		Selector: &metav1.LabelSelector{MatchLabels: appLabels}, Template: template()}}
}

func template() corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: appLabels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
}

type world struct {
	*testing.T
	c client.Interface
}

func (w world) create(s *appsv1.ReplicaSet) *appsv1.ReplicaSet {
	w.Helper()
	out, err := client.ReplicaSets.Create(w.Context(), w.c, s)
	if err != nil {
		w.Fatal(err)
	}
	return out
}

func (w world) status() appsv1.ReplicaSetStatus {
	w.Helper()
	synctest.Wait()
	s, err := client.ReplicaSets.Get(w.Context(), w.c, "default", "web")
	if err != nil {
		w.Fatal(err)
	}
	return s.Status
}

func (w world) pods() []*corev1.Pod {
	return client.Pods.Informer(w.c, client.Scope{}).List("default", nil)
}

func (w world) scale(n int32) {
	w.Helper()
	synctest.Wait()
	s, err := client.ReplicaSets.Get(w.Context(), w.c, "default", "web")
	if err != nil {
		w.Fatal(err)
	}
	s.Spec.Replicas = &n
	if _, err := client.ReplicaSets.Update(w.Context(), w.c, s); err != nil {
		w.Fatal(err)
	}
}

func in(t *testing.T, test func(w world)) {
	synctest.Test(t, func(t *testing.T) {
		c := control.New(t)
		test(world{t, c})
	})
}

func TestScaling(t *testing.T) {
	in(t, func(w world) {
		control.Run(w, replicaset.New(w.c, quiet), control.Kubelet{Client: w.c, Ready: time.Second, Stop: time.Second})
		w.create(set(7))
		if s := w.status(); s.Replicas != 7 || s.ReadyReplicas != 0 || s.FullyLabeledReplicas != 7 || s.ObservedGeneration != 1 {
			w.Errorf("at once: %+v", s)
		}
		time.Sleep(2 * time.Second)
		if s := w.status(); s.ReadyReplicas != 7 || s.AvailableReplicas != 7 {
			w.Errorf("after a while: %+v", s)
		}
		w.scale(2)
		if s := w.status(); s.Replicas != 2 || *s.TerminatingReplicas != 5 || s.ObservedGeneration != 2 {
			w.Errorf("scaled down: %+v", s)
		}
		time.Sleep(2 * time.Second)
		if s := w.status(); *s.TerminatingReplicas != 0 || len(w.pods()) != 2 {
			w.Errorf("scaled down: %+v, %d pods", s, len(w.pods()))
		}
		victim := w.pods()[0]
		if err := client.Pods.Delete(w.Context(), w.c, "default", victim.Name, metav1.DeleteOptions{}); err != nil {
			w.Fatal(err)
		}
		time.Sleep(3 * time.Second)
		if s := w.status(); s.ReadyReplicas != 2 || len(w.pods()) != 2 {
			w.Errorf("after a delete: %+v", s)
		}
	})
}

func TestMinReadySeconds(t *testing.T) {
	in(t, func(w world) {
		control.Run(w, replicaset.New(w.c, quiet), control.Kubelet{Client: w.c})
		s := set(1)
		s.Spec.MinReadySeconds = 30
		w.create(s)
		time.Sleep(29 * time.Second)
		if s := w.status(); s.ReadyReplicas != 1 || s.AvailableReplicas != 0 {
			w.Errorf("after 29 s: %+v", s)
		}
		time.Sleep(3 * time.Second)
		if s := w.status(); s.AvailableReplicas != 1 {
			w.Errorf("after 32 s: %+v", s)
		}
	})
}

func TestAdoptionAndRelease(t *testing.T) {
	in(t, func(w world) {
		orphan, err := client.Pods.Create(w.Context(), w.c, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "orphan", Labels: appLabels}, Spec: template().Spec})
		if err != nil {
			w.Fatal(err)
		}
		control.Run(w, replicaset.New(w.c, quiet), control.Kubelet{Client: w.c})
		owner := w.create(set(2))
		synctest.Wait()
		pods := w.pods()
		if len(pods) != 2 || !slices.ContainsFunc(pods, func(p *corev1.Pod) bool { return p.UID == orphan.UID && metav1.IsControlledBy(p, owner) }) {
			w.Fatalf("the orphan is not adopted: %d pods", len(pods))
		}
		p, err := client.Pods.Get(w.Context(), w.c, "default", "orphan")
		if err != nil {
			w.Fatal(err)
		}
		p.Labels = map[string]string{"app": "other"}
		if _, err := client.Pods.Update(w.Context(), w.c, p); err != nil {
			w.Fatal(err)
		}
		synctest.Wait()
		p, _ = client.Pods.Get(w.Context(), w.c, "default", "orphan")
		if len(p.OwnerReferences) != 0 || len(w.pods()) != 3 {
			w.Errorf("the pod is not let go: %v, %d pods", p.OwnerReferences, len(w.pods()))
		}
	})
}

func TestARefusedTemplateIsSaidOnce(t *testing.T) {
	in(t, func(w world) {
		control.Run(w, replicaset.New(w.c, quiet))
		s := set(50)
		s.Spec.Template.Spec.ServiceAccountName = "missing"
		w.create(s)
		time.Sleep(time.Second)
		got := w.status()
		if len(got.Conditions) != 1 || got.Conditions[0].Reason != "FailedCreate" || got.Replicas != 0 {
			w.Fatalf("%+v", got)
		}
		tries := int32(0)
		for _, e := range client.Events.Informer(w.c, client.Scope{}).List("default", nil) {
			if e.Reason == "FailedCreate" {
				tries += e.Count
			}
		}
		if tries == 0 || tries > 10 {
			w.Errorf("%d tries in a second: the first batch is one pod, and tries back off", tries)
		}
		if _, err := client.ServiceAccounts.Create(w.Context(), w.c, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "missing"}}); err != nil {
			w.Fatal(err)
		}
		time.Sleep(time.Minute)
		if got := w.status(); got.Replicas != 50 || len(got.Conditions) != 0 {
			w.Errorf("after the account is there: %+v", got)
		}
	})
}

func TestWhichPodsGo(t *testing.T) {
	in(t, func(w world) {
		stop := control.Run(w, replicaset.New(w.c, quiet), control.Kubelet{Client: w.c})
		w.create(set(3))
		synctest.Wait()
		pods := w.pods()
		cheap := pods[1].DeepCopy()
		cheap.Annotations = map[string]string{corev1.PodDeletionCost: "-5"}
		if _, err := client.Pods.Update(w.Context(), w.c, cheap); err != nil {
			w.Fatal(err)
		}
		unready, err := client.Pods.Get(w.Context(), w.c, "default", pods[2].Name)
		if err != nil {
			w.Fatal(err)
		}
		unready.Status.Conditions[len(unready.Status.Conditions)-1].Status = corev1.ConditionFalse
		if _, err := client.Pods.UpdateStatus(w.Context(), w.c, unready); err != nil {
			w.Fatal(err)
		}
		w.scale(2)
		synctest.Wait()
		if left := w.pods(); len(left) != 2 || left[0].UID != pods[0].UID || left[1].UID != pods[1].UID {
			w.Error("the pod that is not ready did not go first")
		}
		w.scale(1)
		synctest.Wait()
		if left := w.pods(); len(left) != 1 || left[0].UID != pods[0].UID {
			w.Error("the cheap pod did not go second")
		}
		stop()
	})
}

// C1: a controller that starts anew in the middle makes no pod twice.
func TestRestartInTheMiddle(t *testing.T) {
	in(t, func(w world) {
		for range 5 {
			stop := control.Run(w, replicaset.New(w.c, quiet))
			if _, err := client.ReplicaSets.Get(w.Context(), w.c, "default", "web"); err != nil {
				w.create(set(20))
			}
			stop()
		}
		control.Run(w, replicaset.New(w.c, quiet))
		if s := w.status(); s.Replicas != 20 || len(w.pods()) != 20 {
			w.Errorf("%+v, %d pods", s, len(w.pods()))
		}
	})
}

func TestReplicationController(t *testing.T) {
	in(t, func(w world) {
		control.Run(w, replicaset.NewReplicationController(w.c, quiet), control.Kubelet{Client: w.c})
		tmpl := template()
		if _, err := client.ReplicationControllers.Create(w.Context(), w.c, &corev1.ReplicationController{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
			Spec: corev1.ReplicationControllerSpec{Replicas: ptr.To[int32](2), Selector: appLabels, Template: &tmpl}}); err != nil {
			w.Fatal(err)
		}
		synctest.Wait()
		rc, err := client.ReplicationControllers.Get(w.Context(), w.c, "default", "web")
		if err != nil {
			w.Fatal(err)
		}
		if rc.Status.ReadyReplicas != 2 || rc.Status.Replicas != 2 || rc.Spec.Template.Spec.Containers[0].Image != "i" {
			w.Errorf("%+v", rc)
		}
		if p := w.pods(); len(p) != 2 || p[0].OwnerReferences[0].Kind != "ReplicationController" {
			w.Errorf("pods %v", p)
		}
	})
}
