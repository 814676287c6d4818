package deployment_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/controllers/deployment"
	"github.com/proa-dev/proa/internal/controllers/owned"
	"github.com/proa-dev/proa/internal/controllers/replicaset"
	"github.com/proa-dev/proa/test/control"
)

var (
	quiet     = slog.New(slog.DiscardHandler)
	appLabels = map[string]string{"app": "web"}
)

type world struct {
	*testing.T
	c client.Interface
}

func in(t *testing.T, test func(w world)) {
	synctest.Test(t, func(t *testing.T) { test(world{t, control.New(t)}) })
}

func (w world) run(k control.Kubelet) (stop func()) {
	k.Client = w.c
	return control.Run(w, deployment.New(w.c, quiet), replicaset.New(w.c, quiet), k)
}

func (w world) create(replicas int32, change func(*appsv1.Deployment)) {
	w.Helper()
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}, Spec: appsv1.DeploymentSpec{Replicas: &replicas,
		Selector: &metav1.LabelSelector{MatchLabels: appLabels},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: appLabels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "v1"}}}}}}
	if change != nil {
		change(d)
	}
	if _, err := client.Deployments.Create(w.Context(), w.c, d); err != nil {
		w.Fatal(err)
	}
}

func (w world) get() *appsv1.Deployment {
	w.Helper()
	synctest.Wait()
	d, err := client.Deployments.Get(w.Context(), w.c, "default", "web")
	if err != nil {
		w.Fatal(err)
	}
	return d
}

func (w world) update(change func(*appsv1.Deployment)) {
	w.Helper()
	d := w.get()
	change(d)
	if _, err := client.Deployments.Update(w.Context(), w.c, d); err != nil {
		w.Fatal(err)
	}
}

func image(v string) func(*appsv1.Deployment) {
	return func(d *appsv1.Deployment) { d.Spec.Template.Spec.Containers[0].Image = v }
}

// sets lists image=replicas of each set that there is.
func (w world) sets() string {
	synctest.Wait()
	var out []string
	for _, s := range client.ReplicaSets.Informer(w.c, client.Scope{}).List("default", nil) {
		out = append(out, fmt.Sprintf("%s=%d", s.Spec.Template.Spec.Containers[0].Image, *s.Spec.Replicas))
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func (w world) progressing() string {
	for _, c := range w.get().Status.Conditions {
		if c.Type == appsv1.DeploymentProgressing {
			return string(c.Status) + " " + c.Reason
		}
	}
	return ""
}

func strategy(surge, unavailable intstr.IntOrString) func(*appsv1.Deployment) {
	return func(d *appsv1.Deployment) {
		d.Spec.Strategy = appsv1.DeploymentStrategy{Type: appsv1.RollingUpdateDeploymentStrategyType, RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: &surge, MaxUnavailable: &unavailable}}
	}
}

// watch notes the least number of ready pods and the most of active pods from now on.
func (w world) watch() (bounds func() (least, most int)) {
	var mu sync.Mutex
	pods := map[string]*corev1.Pod{}
	least, most, synced := 1<<30, 0, false
	control.Run(w, part{w.c, func(e client.Event) {
		mu.Lock()
		defer mu.Unlock()
		switch e.Type {
		case client.Synced:
			synced = true
		case client.Deleted:
			delete(pods, e.Object.GetName())
		default:
			pods[e.Object.GetName()] = e.Object.(*corev1.Pod)
		}
		ready, active := 0, 0
		for _, p := range pods {
			if owned.Active(p) {
				active++
				if _, ok := owned.ReadySince(p); ok {
					ready++
				}
			}
		}
		if synced {
			least, most = min(least, ready), max(most, active)
		}
	}})
	synctest.Wait()
	return func() (int, int) {
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		return least, most
	}
}

// C3: a rolling update keeps to its bounds at every moment, however long pods take.
func TestRollingUpdateKeepsItsBounds(t *testing.T) {
	for _, c := range []struct {
		replicas           int32
		surge, unavailable intstr.IntOrString
		least, most        int
	}{
		{3, intstr.FromString("25%"), intstr.FromString("25%"), 3, 4},
		{10, intstr.FromString("25%"), intstr.FromString("25%"), 8, 13},
		{10, intstr.FromInt32(0), intstr.FromInt32(3), 7, 10},
		{5, intstr.FromInt32(5), intstr.FromInt32(0), 5, 10},
		{1, intstr.FromInt32(1), intstr.FromInt32(0), 1, 2},
		{4, intstr.FromString("0%"), intstr.FromString("1%"), 3, 4}, // both round to nothing: one may be unavailable
	} {
		t.Run(fmt.Sprintf("%d pods, surge %s, unavailable %s", c.replicas, c.surge.String(), c.unavailable.String()), func(t *testing.T) {
			in(t, func(w world) {
				w.run(control.Kubelet{Ready: 3 * time.Second, Stop: 2 * time.Second})
				w.create(c.replicas, strategy(c.surge, c.unavailable))
				time.Sleep(time.Minute)
				if got := w.progressing(); got != "True NewReplicaSetAvailable" {
					w.Fatalf("progressing %s", got)
				}
				bounds := w.watch()
				w.update(image("v2"))
				time.Sleep(5 * time.Minute)
				if got, want := w.sets(), fmt.Sprintf("v1=0 v2=%d", c.replicas); got != want {
					w.Errorf("sets %s, want %s", got, want)
				}
				if least, most := bounds(); least != c.least || most != c.most {
					w.Errorf("between %d ready and %d active pods, want %d and %d", least, most, c.least, c.most)
				}
				d := w.get()
				if s := d.Status; s.UpdatedReplicas != c.replicas || s.AvailableReplicas != c.replicas || s.Replicas != c.replicas || s.ObservedGeneration != d.Generation {
					w.Errorf("status %+v", s)
				}
				if got := d.Annotations["deployment.kubernetes.io/revision"]; got != "2" {
					w.Errorf("revision %s", got)
				}
			})
		})
	}
}

func TestUndoTakesUpTheOldSet(t *testing.T) {
	in(t, func(w world) {
		w.run(control.Kubelet{})
		w.create(2, nil)
		time.Sleep(time.Minute)
		w.update(image("v2"))
		time.Sleep(time.Minute)
		w.update(image("v1"))
		time.Sleep(time.Minute)
		if got := w.sets(); got != "v1=2 v2=0" {
			w.Errorf("sets %s", got)
		}
		for _, s := range client.ReplicaSets.Informer(w.c, client.Scope{}).List("default", nil) {
			want, history := "2", ""
			if s.Spec.Template.Spec.Containers[0].Image == "v1" {
				want, history = "3", "1"
			}
			if s.Annotations["deployment.kubernetes.io/revision"] != want || s.Annotations["deployment.kubernetes.io/revision-history"] != history {
				w.Errorf("set %s: %v", s.Name, s.Annotations)
			}
		}
		if got := w.get().Annotations["deployment.kubernetes.io/revision"]; got != "3" {
			w.Errorf("revision %s", got)
		}
	})
}

func TestHistoryIsBounded(t *testing.T) {
	in(t, func(w world) {
		w.run(control.Kubelet{})
		w.create(1, func(d *appsv1.Deployment) { d.Spec.RevisionHistoryLimit = ptr.To[int32](2) })
		for i := 2; i <= 6; i++ {
			time.Sleep(time.Minute)
			w.update(image(fmt.Sprintf("v%d", i)))
		}
		time.Sleep(time.Minute)
		if got := w.sets(); got != "v4=0 v5=0 v6=1" {
			w.Errorf("sets %s", got)
		}
	})
}

func TestRecreateHasNoTwoVersions(t *testing.T) {
	in(t, func(w world) {
		w.run(control.Kubelet{Ready: time.Second, Stop: 10 * time.Second})
		w.create(3, func(d *appsv1.Deployment) { d.Spec.Strategy.Type = appsv1.RecreateDeploymentStrategyType })
		time.Sleep(time.Minute)
		w.update(image("v2"))
		time.Sleep(9 * time.Second)
		for _, p := range client.Pods.Informer(w.c, client.Scope{}).List("default", nil) {
			if p.Spec.Containers[0].Image == "v2" {
				w.Error("the new version began while the old one was ending")
			}
		}
		time.Sleep(time.Minute)
		if got := w.sets(); got != "v1=0 v2=3" || w.progressing() != "True NewReplicaSetAvailable" {
			w.Errorf("sets %s, progressing %s", got, w.progressing())
		}
	})
}

func TestPauseAndResume(t *testing.T) {
	in(t, func(w world) {
		w.run(control.Kubelet{})
		w.create(2, nil)
		time.Sleep(time.Minute)
		w.update(func(d *appsv1.Deployment) { d.Spec.Paused = true; image("v2")(d) })
		time.Sleep(time.Minute)
		if got := w.sets(); got != "v1=2" {
			w.Errorf("paused: sets %s", got)
		}
		w.update(func(d *appsv1.Deployment) { d.Spec.Replicas = ptr.To[int32](4) })
		time.Sleep(time.Minute)
		if got := w.sets(); got != "v1=4" || w.progressing() != "Unknown DeploymentPaused" {
			w.Errorf("paused and scaled: sets %s, %s", got, w.progressing())
		}
		w.update(func(d *appsv1.Deployment) { d.Spec.Paused = false })
		time.Sleep(time.Minute)
		if got := w.sets(); got != "v1=0 v2=4" || w.progressing() != "True NewReplicaSetAvailable" {
			w.Errorf("resumed: sets %s, %s", got, w.progressing())
		}
	})
}

func TestARolloutThatStandsStill(t *testing.T) {
	in(t, func(w world) {
		w.run(control.Kubelet{Status: func(p *corev1.Pod) corev1.PodStatus {
			s := p.Status
			if p.Spec.Containers[0].Image == "broken" {
				s.Conditions[len(s.Conditions)-1].Status = corev1.ConditionFalse
			}
			return s
		}})
		w.create(4, func(d *appsv1.Deployment) { d.Spec.ProgressDeadlineSeconds = ptr.To[int32](60) })
		time.Sleep(time.Minute)
		w.update(image("broken"))
		time.Sleep(50 * time.Second)
		if got := w.progressing(); got != "True ReplicaSetUpdated" {
			w.Errorf("after 50 s: %s", got)
		}
		time.Sleep(20 * time.Second)
		if got := w.progressing(); got != "False ProgressDeadlineExceeded" {
			w.Errorf("after 70 s: %s", got)
		}
		if s := w.get().Status; s.AvailableReplicas < 3 {
			w.Errorf("%d pods are available: a broken version must not take the others", s.AvailableReplicas)
		}
		w.update(image("v3"))
		time.Sleep(time.Minute)
		if got := w.progressing(); got != "True NewReplicaSetAvailable" {
			w.Errorf("after the repair: %s", got)
		}
	})
}

func TestScalingInTheMiddleIsProportional(t *testing.T) {
	in(t, func(w world) {
		w.run(control.Kubelet{Status: func(p *corev1.Pod) corev1.PodStatus {
			s := p.Status
			if p.Spec.Containers[0].Image == "broken" {
				s.Conditions[len(s.Conditions)-1].Status = corev1.ConditionFalse
			}
			return s
		}})
		w.create(10, strategy(intstr.FromInt32(3), intstr.FromInt32(2)))
		time.Sleep(time.Minute)
		w.update(image("broken"))
		time.Sleep(time.Minute)
		if got := w.sets(); got != "broken=5 v1=8" {
			w.Fatalf("sets %s", got)
		}
		w.update(func(d *appsv1.Deployment) { d.Spec.Replicas = ptr.To[int32](15) })
		time.Sleep(time.Minute)
		if got := w.sets(); got != "broken=7 v1=11" { // the example of the API's documentation
			w.Errorf("sets %s", got)
		}
	})
}

func TestARestartInTheMiddle(t *testing.T) {
	in(t, func(w world) {
		stop := w.run(control.Kubelet{Ready: time.Second, Stop: time.Second})
		w.create(6, nil)
		time.Sleep(time.Minute)
		bounds := w.watch()
		w.update(image("v2"))
		for range 10 {
			time.Sleep(700 * time.Millisecond)
			stop()
			stop = w.run(control.Kubelet{Ready: time.Second, Stop: time.Second})
		}
		time.Sleep(time.Minute)
		if got := w.sets(); got != "v1=0 v2=6" {
			w.Errorf("sets %s", got)
		}
		if least, most := bounds(); least < 5 || most > 8 {
			w.Errorf("between %d ready and %d active pods", least, most)
		}
	})
}

func TestEventsSayWhatIsScaled(t *testing.T) {
	in(t, func(w world) {
		w.run(control.Kubelet{})
		w.create(1, nil)
		time.Sleep(time.Minute)
		w.update(image("v2"))
		time.Sleep(time.Minute)
		var got []string
		for _, e := range client.Events.Informer(w.c, client.Scope{}).List("default", nil) {
			if e.Reason == "ScalingReplicaSet" {
				words := strings.Fields(e.Message)
				got = append(got, words[1]+" "+strings.Join(words[5:], " "))
			}
		}
		slices.Sort(got)
		if want := []string{"down from 1 to 0", "up from 0 to 1", "up from 0 to 1"}; !slices.Equal(got, want) {
			w.Errorf("events %q", got)
		}
	})
}

// part is a watch that runs as a controller does.
type part struct {
	c  client.Interface
	fn func(client.Event)
}

func (p part) Run(ctx context.Context) error {
	return client.Pods.Informer(p.c, client.Scope{}).Watch(ctx, p.fn)
}
