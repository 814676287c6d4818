package ttlafterfinished_test

import (
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/controllers/garbagecollector"
	"github.com/proa-dev/proa/internal/controllers/job"
	"github.com/proa-dev/proa/internal/controllers/ttlafterfinished"
	"github.com/proa-dev/proa/test/control"
)

func TestAJobGoesAfterItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, quiet := control.New(t), slog.New(slog.DiscardHandler)
		control.Run(t, ttlafterfinished.New(c, quiet), garbagecollector.New(c, quiet), job.New(c, quiet), control.Kubelet{Client: c, Status: func(p *corev1.Pod) corev1.PodStatus {
			s := p.Status
			s.Phase = corev1.PodSucceeded
			return s
		}})
		if _, err := client.Jobs.Create(t.Context(), c, &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "j"},
			Spec: batchv1.JobSpec{TTLSecondsAfterFinished: ptr.To[int32](60), Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{{Name: "c", Image: "i"}}}}}}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(59 * time.Second)
		j, err := client.Jobs.Get(t.Context(), c, "default", "j")
		if err != nil || j.Status.Succeeded != 1 {
			t.Fatalf("after 59 s: %v, %+v", err, j)
		}
		time.Sleep(5 * time.Second)
		if _, err := client.Jobs.Get(t.Context(), c, "default", "j"); !apierrors.IsNotFound(err) {
			t.Errorf("after 64 s: %v", err)
		}
		if left := client.Pods.Informer(c, client.Scope{}).List("default", nil); len(left) > 0 {
			t.Errorf("%d pods are left", len(left))
		}
	})
}
