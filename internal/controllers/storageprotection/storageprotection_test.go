package storageprotection_test

import (
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/controllers/storageprotection"
	"github.com/proa-dev/proa/test/control"
)

func TestClaimsAndVolumesInUseStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, quiet, ctx := control.New(t), slog.New(slog.DiscardHandler), t.Context()
		control.Run(t, storageprotection.NewClaims(c, quiet), storageprotection.NewVolumes(c, quiet))
		size := corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}
		if _, err := client.PersistentVolumeClaims.Create(ctx, c, &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "claim"},
			Spec: corev1.PersistentVolumeClaimSpec{AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, Resources: corev1.VolumeResourceRequirements{Requests: size}}}); err != nil {
			t.Fatal(err)
		}
		v, err := client.PersistentVolumes.Create(ctx, c, &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "volume"}, Spec: corev1.PersistentVolumeSpec{Capacity: size,
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, PersistentVolumeSource: corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/x"}}}})
		if err != nil {
			t.Fatal(err)
		}
		v.Status.Phase = corev1.VolumeBound
		if _, err := client.PersistentVolumes.UpdateStatus(ctx, c, v); err != nil {
			t.Fatal(err)
		}
		pod, err := client.Pods.Create(ctx, c, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "user"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}},
			Volumes: []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "claim"}}}}}})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		claim, err := client.PersistentVolumeClaims.Get(ctx, c, "default", "claim")
		if err != nil || !slices.Contains(claim.Finalizers, "kubernetes.io/pvc-protection") {
			t.Fatalf("%v %v", err, claim.Finalizers)
		}
		if err := client.PersistentVolumeClaims.Delete(ctx, c, "default", "claim", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := client.PersistentVolumes.Delete(ctx, c, "", "volume", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if _, err := client.PersistentVolumeClaims.Get(ctx, c, "default", "claim"); err != nil {
			t.Fatalf("a claim in use: %v", err)
		}
		v, err = client.PersistentVolumes.Get(ctx, c, "", "volume")
		if err != nil || !slices.Contains(v.Finalizers, "kubernetes.io/pv-protection") {
			t.Fatalf("a bound volume: %v", err)
		}
		pod.Status.Phase = corev1.PodSucceeded
		if _, err := client.Pods.UpdateStatus(ctx, c, pod); err != nil {
			t.Fatal(err)
		}
		v.Status.Phase = corev1.VolumeReleased
		if _, err := client.PersistentVolumes.UpdateStatus(ctx, c, v); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if _, err := client.PersistentVolumeClaims.Get(ctx, c, "default", "claim"); !apierrors.IsNotFound(err) {
			t.Errorf("the claim that nobody uses: %v", err)
		}
		if _, err := client.PersistentVolumes.Get(ctx, c, "", "volume"); !apierrors.IsNotFound(err) {
			t.Errorf("the volume that is free: %v", err)
		}
	})
}
