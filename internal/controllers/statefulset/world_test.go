package statefulset_test

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/controllers/statefulset"
	"github.com/proa-dev/proa/test/control"
)

var (
	quiet     = slog.New(slog.DiscardHandler)
	appLabels = map[string]string{"app": "db"}
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
	stop = control.Run(w, statefulset.New(w.c, quiet))
	control.Run(w, k)
	return stop
}

type change = func(*appsv1.StatefulSet)

func parallel(s *appsv1.StatefulSet) { s.Spec.PodManagementPolicy = appsv1.ParallelPodManagement }

func withClaim(s *appsv1.StatefulSet) {
	s.Spec.VolumeClaimTemplates = []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "data"}, Spec: corev1.PersistentVolumeClaimSpec{
		AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
		Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}}}}}
}

func (w world) create(n int32, changes ...change) *appsv1.StatefulSet {
	w.Helper()
	s := &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "db"}, Spec: appsv1.StatefulSetSpec{Replicas: &n, ServiceName: "db",
		Selector: &metav1.LabelSelector{MatchLabels: appLabels},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: appLabels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "v1"}}}}}}
	for _, f := range changes {
		f(s)
	}
	out, err := client.StatefulSets.Create(w.Context(), w.c, s)
	if err != nil {
		w.Fatal(err)
	}
	synctest.Wait()
	return out
}

func (w world) get() *appsv1.StatefulSet {
	w.Helper()
	synctest.Wait()
	s, err := client.StatefulSets.Get(w.Context(), w.c, "default", "db")
	if err != nil {
		w.Fatal(err)
	}
	return s
}

func (w world) change(f change) {
	w.Helper()
	s := w.get()
	f(s)
	if _, err := client.StatefulSets.Update(w.Context(), w.c, s); err != nil {
		w.Fatal(err)
	}
}

func (w world) scale(n int32) {
	w.Helper()
	w.change(func(s *appsv1.StatefulSet) { s.Spec.Replicas = &n })
}

func (w world) image(v string) {
	w.Helper()
	w.change(func(s *appsv1.StatefulSet) { s.Spec.Template.Spec.Containers[0].Image = v })
}

func (w world) pods() []*corev1.Pod {
	synctest.Wait()
	return client.Pods.Informer(w.c, client.Scope{}).List("default", nil)
}

func (w world) pod(name string) *corev1.Pod {
	w.Helper()
	p, err := client.Pods.Get(w.Context(), w.c, "default", name)
	if err != nil {
		w.Fatal(err)
	}
	return p
}

// state lists the pods with their images.
func (w world) state() string {
	var out []string
	for _, p := range w.pods() {
		out = append(out, strings.TrimPrefix(p.Name, "db-")+"="+p.Spec.Containers[0].Image)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func (w world) want(state string) {
	w.Helper()
	if got := w.state(); got != state {
		w.Errorf("pods %q, want %q", got, state)
	}
}

// claims lists the claims with the kinds of their owners.
func (w world) claims() string {
	synctest.Wait()
	var out []string
	for _, c := range client.PersistentVolumeClaims.Informer(w.c, client.Scope{}).List("default", nil) {
		text := c.Name
		for _, r := range c.OwnerReferences {
			text += "<" + r.Kind
		}
		out = append(out, text)
	}
	return strings.Join(out, " ")
}

func (w world) revisions() (out []*appsv1.ControllerRevision) {
	synctest.Wait()
	out = client.ControllerRevisions.Informer(w.c, client.Scope{}).List("default", nil)
	slices.SortFunc(out, func(a, b *appsv1.ControllerRevision) int { return int(a.Revision - b.Revision) })
	return out
}

func (w world) events() (out []string) {
	for _, e := range client.Events.Informer(w.c, client.Scope{}).List("default", nil) {
		if e.InvolvedObject.Kind == "StatefulSet" {
			out = append(out, fmt.Sprintf("%s %s %s", e.Type, e.Reason, e.Message))
		}
	}
	return out
}
