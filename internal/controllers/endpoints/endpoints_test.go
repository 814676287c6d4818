package endpoints_test

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/controllers/endpoints"
	"github.com/proa-dev/proa/internal/controllers/endpointslice"
	"github.com/proa-dev/proa/internal/controllers/endpointslicemirroring"
	"github.com/proa-dev/proa/test/control"
)

func service(name string, selector map[string]string) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{"l": "v"}},
		Spec: corev1.ServiceSpec{Selector: selector, Ports: []corev1.ServicePort{{Name: "http", Port: 80}}}}
}

// text is Endpoints in a line: ready / not ready : ports.
func text(e *corev1.Endpoints) string { //nolint:staticcheck // the kind under test
	var out []string
	for _, s := range e.Subsets {
		line := ""
		for _, a := range s.Addresses {
			line += a.IP + " "
		}
		line += "/"
		for _, a := range s.NotReadyAddresses {
			line += " " + a.IP
		}
		for _, p := range s.Ports {
			line += fmt.Sprintf(" :%s %d", p.Name, p.Port)
		}
		out = append(out, line)
	}
	return strings.Join(out, "; ")
}

func TestEndpointsFollowPods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, quiet := control.New(t), slog.New(slog.DiscardHandler)
		control.Run(t, endpoints.New(c, quiet), endpointslice.New(c, quiet), endpointslicemirroring.New(c, quiet))
		if _, err := client.Services.Create(t.Context(), c, service("web", map[string]string{"app": "web"})); err != nil {
			t.Fatal(err)
		}
		want := func(want string) {
			t.Helper()
			synctest.Wait()
			e, err := client.Endpoints.Get(t.Context(), c, "default", "web")
			if err != nil {
				t.Fatal(err)
			}
			if got := text(e); got != want {
				t.Errorf("endpoints %q, want %q", got, want)
			}
			if e.Labels["l"] != "v" || e.Labels["endpoints.kubernetes.io/managed-by"] != "endpoint-controller" {
				t.Errorf("labels %v", e.Labels)
			}
		}
		want("")
		for i, ready := range []corev1.ConditionStatus{corev1.ConditionTrue, corev1.ConditionFalse} {
			p, err := client.Pods.Create(t.Context(), c, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprint("p", i), Labels: map[string]string{"app": "web"}},
				Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}})
			if err != nil {
				t.Fatal(err)
			}
			ip := fmt.Sprint("10.244.0.", i+2)
			p.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}}, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}}}
			if _, err := client.Pods.UpdateStatus(t.Context(), c, p); err != nil {
				t.Fatal(err)
			}
		}
		want("10.244.0.2 / 10.244.0.3 :http 80")
		if slices := client.EndpointSlices.Informer(c, client.Scope{}).List("default", nil); len(slices) != 1 {
			t.Errorf("%d slices: what is worked out from slices must not be mirrored to slices", len(slices))
		}
		if err := client.Services.Delete(t.Context(), c, "default", "web", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if _, err := client.Endpoints.Get(t.Context(), c, "default", "web"); !apierrors.IsNotFound(err) {
			t.Errorf("after the service is gone: %v", err)
		}
	})
}

func TestOwnEndpointsAreMirrored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, quiet := control.New(t), slog.New(slog.DiscardHandler)
		control.Run(t, endpoints.New(c, quiet), endpointslice.New(c, quiet), endpointslicemirroring.New(c, quiet))
		if _, err := client.Services.Create(t.Context(), c, service("ext", nil)); err != nil {
			t.Fatal(err)
		}
		e, err := client.Endpoints.Create(t.Context(), c, &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "ext"}, //nolint:staticcheck // as above
			Subsets: []corev1.EndpointSubset{{Addresses: []corev1.EndpointAddress{{IP: "192.0.2.1"}}, Ports: []corev1.EndpointPort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}}}}}) //nolint:staticcheck // as above
		if err != nil {
			t.Fatal(err)
		}
		addresses := func() (out []string) {
			synctest.Wait()
			for _, s := range client.EndpointSlices.Informer(c, client.Scope{}).List("default", nil) {
				if s.Labels[discoveryv1.LabelManagedBy] != "endpointslicemirroring-controller.k8s.io" || s.Labels[discoveryv1.LabelServiceName] != "ext" {
					t.Errorf("labels %v", s.Labels)
				}
				for _, p := range s.Endpoints {
					out = append(out, fmt.Sprint(p.Addresses[0], ptr.Deref(p.Conditions.Ready, false)))
				}
			}
			return out
		}
		if got := fmt.Sprint(addresses()); got != "[192.0.2.1true]" {
			t.Errorf("mirrored %s", got)
		}
		e.Subsets[0].NotReadyAddresses = []corev1.EndpointAddress{{IP: "192.0.2.2"}} //nolint:staticcheck // as above
		if _, err = client.Endpoints.Update(t.Context(), c, e); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(addresses()); got != "[192.0.2.1true 192.0.2.2false]" {
			t.Errorf("mirrored %s", got)
		}
		if err := client.Endpoints.Delete(t.Context(), c, "default", "ext", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		if got := addresses(); len(got) != 0 {
			t.Errorf("after the delete: %v", got)
		}
	})
}
