package resourcequota_test

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/cluster/local"
)

func highClass() *schedulingv1.PriorityClass {
	return &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: "high"}, Value: 1000}
}

func TestClaimsAreChargedByStorageClass(t *testing.T) {
	with(t, func(t *testing.T, c *local.Client) {
		limit(t, c, corev1.ResourceQuotaSpec{Hard: list("requests.storage", "10Gi", "gold.storageclass.storage.k8s.io/requests.storage", "5Gi",
			"gold.storageclass.storage.k8s.io/persistentvolumeclaims", "3", "persistentvolumeclaims", "3")})
		claim := func(name, class, size string) error {
			_, err := client.PersistentVolumeClaims.Create(t.Context(), c, &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
				Spec: corev1.PersistentVolumeClaimSpec{StorageClassName: &class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
					Resources: corev1.VolumeResourceRequirements{Requests: list("storage", size)}}})
			return err
		}
		if err := claim("a", "gold", "4Gi"); err != nil {
			t.Fatal(err)
		}
		if err := claim("b", "silver", "4Gi"); err != nil {
			t.Fatal(err)
		}
		used(t, c, "requests.storage", "8Gi", "gold.storageclass.storage.k8s.io/requests.storage", "4Gi", "gold.storageclass.storage.k8s.io/persistentvolumeclaims", "1", "persistentvolumeclaims", "2")
		if err := claim("c", "gold", "2Gi"); !apierrors.IsForbidden(err) {
			t.Errorf("over the class's limit: %v", err)
		}
	})
}

func TestServicesAreChargedWhenTheirTypeChanges(t *testing.T) {
	with(t, func(t *testing.T, c *local.Client) {
		limit(t, c, corev1.ResourceQuotaSpec{Hard: list("services", "5", "services.nodeports", "1", "services.loadbalancers", "1")})
		svc, err := client.Services.Create(t.Context(), c, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "s"},
			Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Ports: []corev1.ServicePort{{Name: "a", Port: 80}}}})
		if err != nil {
			t.Fatal(err)
		}
		used(t, c, "services", "1", "services.nodeports", "1", "services.loadbalancers", "0")
		svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{Name: "b", Port: 81})
		if _, err := client.Services.Update(t.Context(), c, svc); !apierrors.IsForbidden(err) {
			t.Errorf("a second node port: %v", err)
		}
		svc.Spec.Ports = svc.Spec.Ports[:1]
		svc.Spec.Type = corev1.ServiceTypeLoadBalancer
		if svc, err = client.Services.Update(t.Context(), c, svc); err != nil {
			t.Fatal(err)
		}
		used(t, c, "services.nodeports", "1", "services.loadbalancers", "1")
		svc.Spec.Type = corev1.ServiceTypeClusterIP
		svc.Spec.Ports[0].NodePort = 0
		svc.Spec.AllocateLoadBalancerNodePorts = nil
		svc.Spec.ExternalTrafficPolicy = ""
		if _, err = client.Services.Update(t.Context(), c, svc); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		used(t, c, "services", "1", "services.nodeports", "0", "services.loadbalancers", "0")
	})
}

func TestAPodThatIsStuckIsNotChargedForEver(t *testing.T) {
	with(t, func(t *testing.T, c *local.Client) {
		limit(t, c, corev1.ResourceQuotaSpec{Hard: list("pods", "1")})
		if _, err := client.Pods.Create(t.Context(), c, pod("a", nil, func(p *corev1.Pod) { p.Spec.NodeName = "lost" })); err != nil {
			t.Fatal(err)
		}
		if err := client.Pods.Delete(t.Context(), c, "default", "a", metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](30)}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		used(t, c, "pods", "1")
		time.Sleep(2 * time.Minute)
		used(t, c, "pods", "0")
	})
}
