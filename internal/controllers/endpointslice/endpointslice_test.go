package endpointslice

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func pod(name, ip string, ready corev1.ConditionStatus, port int32) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
		Spec:   corev1.PodSpec{NodeName: "n", Containers: []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: port, Protocol: corev1.ProtocolTCP}}}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}}}}
}

// C15: slices hold the truth of the pods, each once.
func TestPlan(t *testing.T) {
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}, Spec: corev1.ServiceSpec{
		Ports: []corev1.ServicePort{{Name: "web", Port: 80, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromString("http")}}}}
	if got := Plan(svc, nil); len(got) != 1 || len(got[0].Endpoints) != 0 {
		t.Errorf("no pods: %d slices", len(got))
	}
	leaving := pod("leaving", "10.0.0.3", corev1.ConditionTrue, 8080)
	leaving.DeletionTimestamp = &metav1.Time{}
	done := pod("done", "10.0.0.4", corev1.ConditionFalse, 8080)
	done.Status.Phase = corev1.PodSucceeded
	got := Plan(svc, []*corev1.Pod{pod("b", "10.0.0.2", corev1.ConditionFalse, 8080), pod("a", "10.0.0.1", corev1.ConditionTrue, 8080), leaving, done,
		pod("c", "10.0.0.5", corev1.ConditionTrue, 9090), pod("starting", "", corev1.ConditionFalse, 8080)})
	if len(got) != 2 {
		t.Fatalf("%d slices, want one for each number of the named port", len(got))
	}
	want := []struct {
		ip                          string
		ready, serving, terminating bool
	}{{"10.0.0.1", true, true, false}, {"10.0.0.2", false, false, false}, {"10.0.0.3", false, true, true}}
	if *got[0].Ports[0].Port != 8080 || len(got[0].Endpoints) != len(want) {
		t.Fatalf("first slice: %+v", got[0])
	}
	for i, w := range want {
		e := got[0].Endpoints[i]
		if e.Addresses[0] != w.ip || *e.Conditions.Ready != w.ready || *e.Conditions.Serving != w.serving || *e.Conditions.Terminating != w.terminating {
			t.Errorf("endpoint %d: %v %+v, want %+v", i, e.Addresses, e.Conditions, w)
		}
	}
	svc.Spec.PublishNotReadyAddresses = true
	if e := Plan(svc, []*corev1.Pod{pod("b", "10.0.0.2", corev1.ConditionFalse, 8080)})[0].Endpoints[0]; !*e.Conditions.Ready {
		t.Error("publishNotReadyAddresses is ignored")
	}
	var many []*corev1.Pod
	for i := range 250 {
		many = append(many, pod(fmt.Sprint(i), fmt.Sprintf("10.0.1.%d", i), corev1.ConditionTrue, 8080))
	}
	if got := Plan(svc, many); len(got) != 3 || len(got[2].Endpoints) != 50 {
		t.Errorf("250 pods make %d slices", len(got))
	}
}
