package statefulset_test

import (
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/controllers/statefulset"
	"github.com/proa-dev/proa/test/control"
)

func BenchmarkSyncWithNothingToDo(b *testing.B) {
	c := control.New(b)
	x := statefulset.New(c, quiet)
	control.Run(b, x, control.Kubelet{Client: c})
	s := &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "db"}, Spec: appsv1.StatefulSetSpec{Replicas: ptr.To[int32](20), ServiceName: "db",
		Selector: &metav1.LabelSelector{MatchLabels: appLabels}, PodManagementPolicy: appsv1.ParallelPodManagement,
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: appLabels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "v1"}}}}}}
	withClaim(s)
	if _, err := client.StatefulSets.Create(b.Context(), c, s); err != nil {
		b.Fatal(err)
	}
	for {
		if s, ok := client.StatefulSets.Informer(c, client.Scope{}).Get("default", "db"); ok && s.Status.AvailableReplicas == 20 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	time.Sleep(200 * time.Millisecond)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		if err := statefulset.SyncForTest(x, "default", "db"); err != nil {
			b.Fatal(err)
		}
	}
}
