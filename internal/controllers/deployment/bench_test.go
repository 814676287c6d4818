package deployment_test

import (
	"fmt"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/controllers/deployment"
	"github.com/proa-dev/proa/internal/controllers/replicaset"
	"github.com/proa-dev/proa/test/control"
)

func BenchmarkSyncWithNothingToDo(b *testing.B) {
	c := control.New(b)
	x := deployment.New(c, quiet)
	control.Run(b, x, replicaset.New(c, quiet), control.Kubelet{Client: c})
	for i := range 50 { // other Deployments of the namespace must not cost anything
		own := map[string]string{"app": fmt.Sprintf("web-%d", i)}
		if _, err := client.Deployments.Create(b.Context(), c, &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: own["app"]},
			Spec: appsv1.DeploymentSpec{Replicas: ptr.To[int32](3), Selector: &metav1.LabelSelector{MatchLabels: own},
				Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: own}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "v1"}}}}}}); err != nil {
			b.Fatal(err)
		}
	}
	informer := client.Deployments.Informer(c, client.Scope{})
	for {
		done := 0
		for _, d := range informer.List("default", nil) {
			if d.Status.AvailableReplicas == 3 {
				done++
			}
		}
		if done == 50 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	time.Sleep(200 * time.Millisecond)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		if err := deployment.SyncForTest(x, "default", "web-7"); err != nil {
			b.Fatal(err)
		}
	}
}
