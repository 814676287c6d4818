package managed

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/proa-dev/proa/internal/api"
)

// A budget of 10 us for a pod that is created and 10 us for a status that changes,
// on one core; the field manager of apimachinery takes some 200 us for each.

func webPod() *corev1.Pod {
	yes, grace := true, int64(30)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "web-5d9c7b9f8-abcde", Namespace: "default", GenerateName: "web-5d9c7b9f8-", Labels: map[string]string{"app": "web", "pod-template-hash": "5d9c7b9f8"},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "web-5d9c7b9f8", UID: "4e0a8b5f-8b1b-4b0a-8b5f-4e0a8b5f8b1b", Controller: &yes, BlockOwnerDeletion: &yes}}},
		Spec: corev1.PodSpec{
			Containers: []corev1.Container{{Name: "c", Image: "nginx:1.29", ImagePullPolicy: "Always", TerminationMessagePath: "/dev/termination-log", TerminationMessagePolicy: "File",
				Ports: []corev1.ContainerPort{{ContainerPort: 80, Protocol: "TCP"}}, Env: []corev1.EnvVar{{Name: "A", Value: "B"}, {Name: "C", Value: "D"}},
				VolumeMounts: []corev1.VolumeMount{{Name: "kube-api-access-x", MountPath: "/var/run/secrets/kubernetes.io/serviceaccount", ReadOnly: true}}}},
			Volumes:       []corev1.Volume{{Name: "kube-api-access-x", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "kube-root-ca.crt"}, Items: []corev1.KeyToPath{{Key: "ca.crt", Path: "ca.crt"}}}}}}}}},
			RestartPolicy: "Always", DNSPolicy: "ClusterFirst", ServiceAccountName: "default", DeprecatedServiceAccount: "default", SecurityContext: &corev1.PodSecurityContext{}, SchedulerName: "default-scheduler",
			EnableServiceLinks: &yes, TerminationGracePeriodSeconds: &grace,
			Tolerations: []corev1.Toleration{{Key: "node.kubernetes.io/not-ready", Operator: "Exists", Effect: "NoExecute"}, {Key: "node.kubernetes.io/unreachable", Operator: "Exists", Effect: "NoExecute"}},
		},
		Status: corev1.PodStatus{Phase: "Pending", QOSClass: "BestEffort"},
	}
}

// running returns a pod with the status that a kubelet writes.
func running(p *corev1.Pod) *corev1.Pod {
	p = p.DeepCopy()
	now := metav1.NewTime(time.Unix(1700000000, 0))
	p.Status = corev1.PodStatus{Phase: "Running", QOSClass: "BestEffort", HostIP: "10.0.0.1", HostIPs: []corev1.HostIP{{IP: "10.0.0.1"}}, PodIP: "10.244.0.7", PodIPs: []corev1.PodIP{{IP: "10.244.0.7"}}, StartTime: &now,
		ContainerStatuses: []corev1.ContainerStatus{{Name: "c", Ready: true, Image: "nginx:1.29", ImageID: "sha256:1", ContainerID: "proa://1", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}}}}}
	for _, c := range []corev1.PodConditionType{corev1.PodReadyToStartContainers, corev1.PodInitialized, corev1.PodReady, corev1.ContainersReady, corev1.PodScheduled} {
		p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: c, Status: corev1.ConditionTrue, LastTransitionTime: now})
	}
	return p
}

func benchmarkTracking(b *testing.B, old, obj api.Object, sub string, reset Reset) {
	kinds := NewKinds()
	k, err := kinds.Of(obj)
	if err != nil {
		b.Fatal(err)
	}
	now := metav1.NewTime(time.Unix(1700000001, 0))
	b.Run("compare", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			track(b, k, old, obj, "v1", "kubelet", sub, reset, now)
		}
	})
	fields := applier(b, kinds, podKind, func() api.Object { return &corev1.Pod{} }, sub, reset)
	old.GetObjectKind().SetGroupVersionKind(podKind)
	obj.GetObjectKind().SetGroupVersionKind(podKind)
	entries := obj.GetManagedFields()
	b.Run("fieldmanager", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			obj.SetManagedFields(entries)
			if _, err := fields.Update(old, obj, "kubelet"); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkCreatePod(b *testing.B) {
	benchmarkTracking(b, &corev1.Pod{}, webPod(), "", Reset{{"status"}})
}

// created is webPod as it is stored, with its managers.
func created(b *testing.B) *corev1.Pod {
	k, err := NewKinds().Of(&corev1.Pod{})
	if err != nil {
		b.Fatal(err)
	}
	p := webPod()
	p.ManagedFields = track(b, k, &corev1.Pod{}, p, "v1", "kube-controller-manager", "", Reset{{"status"}}, metav1.Unix(1700000000, 0))
	p.UID = "u"
	return p
}

func BenchmarkPodStatus(b *testing.B) {
	p := created(b)
	reset := Reset{{"spec"}, {"metadata", "ownerReferences"}}
	b.Run("first", func(b *testing.B) { benchmarkTracking(b, p, running(p), "status", reset) })
	k, err := NewKinds().Of(p)
	if err != nil {
		b.Fatal(err)
	}
	first := running(p)
	first.ManagedFields = track(b, k, p, first, "v1", "kubelet", "status", reset, metav1.Unix(1700000000, 0))
	next := first.DeepCopy()
	next.Status.ContainerStatuses[0].RestartCount++
	next.Status.Conditions[2].Status = corev1.ConditionFalse
	b.Run("next", func(b *testing.B) { benchmarkTracking(b, first, next, "status", reset) })
	b.Run("same", func(b *testing.B) { benchmarkTracking(b, first, first.DeepCopy(), "status", reset) })
}

func BenchmarkUpdatePod(b *testing.B) {
	p := running(created(b))
	next := p.DeepCopy()
	next.Spec.Containers[0].Image = "nginx:1.30"
	next.Labels["version"] = "2"
	benchmarkTracking(b, p, next, "", Reset{{"status"}})
}

func BenchmarkOpenKind(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := NewKinds().Of(&corev1.Pod{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOpenAllKinds(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		kinds := NewKinds()
		for _, res := range storedKinds() {
			if _, err := kinds.Of(res.New()); err != nil {
				b.Fatal(fmt.Errorf("%s: %w", res.GVK, err))
			}
		}
	}
}
