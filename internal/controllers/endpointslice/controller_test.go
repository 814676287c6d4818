package endpointslice_test

import (
	"log/slog"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/controllers/endpointslice"
	"github.com/proa-dev/proa/test/control"
)

// C15: a slice follows its pods, and goes with its Service.
func TestSlicesFollowPods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := control.New(t)
		control.Run(t, endpointslice.New(c, slog.New(slog.DiscardHandler)))
		svc, err := client.Services.Create(t.Context(), c, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
			Spec: corev1.ServiceSpec{Selector: map[string]string{"app": "web"}, Ports: []corev1.ServicePort{{Port: 80}}}})
		if err != nil {
			t.Fatal(err)
		}
		endpoints := func() (out []string) {
			synctest.Wait()
			for _, s := range client.EndpointSlices.Informer(c, client.Scope{}).List("default", nil) {
				for _, e := range s.Endpoints {
					out = append(out, e.Addresses[0])
				}
			}
			return out
		}
		if got := endpoints(); len(got) != 0 {
			t.Fatalf("no pods, endpoints %v", got)
		}
		pod, err := client.Pods.Create(t.Context(), c, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "a", Labels: map[string]string{"app": "web"}},
			Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}})
		if err != nil {
			t.Fatal(err)
		}
		pod.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.244.0.9", PodIPs: []corev1.PodIP{{IP: "10.244.0.9"}}, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}
		if _, err := client.Pods.UpdateStatus(t.Context(), c, pod); err != nil {
			t.Fatal(err)
		}
		if got := endpoints(); len(got) != 1 || got[0] != "10.244.0.9" {
			t.Errorf("endpoints %v", got)
		}
		if err := client.Services.Delete(t.Context(), c, "default", svc.Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if left := client.EndpointSlices.Informer(c, client.Scope{}).List("default", nil); len(left) > 0 {
			t.Errorf("%d slices are left", len(left))
		}
	})
}
