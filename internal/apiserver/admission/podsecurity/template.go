package podsecurity

import (
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	security "k8s.io/pod-security-admission/api"
)

type errorList = field.ErrorList

// read returns what labels ask for; a namespace without any asks for nothing.
func read(labels map[string]string) (security.Policy, errorList) {
	for key := range labels {
		if strings.HasPrefix(key, security.AuditAnnotationPrefix) {
			return security.PolicyToEvaluate(labels, defaults)
		}
	}
	return defaults, nil
}

func makesPods(gvr schema.GroupVersionResource) bool {
	switch gvr.Group {
	case "":
		return gvr.Resource == "replicationcontrollers" || gvr.Resource == "podtemplates"
	case "apps":
		return gvr.Resource == "replicasets" || gvr.Resource == "deployments" || gvr.Resource == "statefulsets" || gvr.Resource == "daemonsets"
	case "batch":
		return gvr.Resource == "jobs" || gvr.Resource == "cronjobs"
	}
	return false
}

// template returns the pods that an object makes; nil: none.
func template(obj runtime.Object) (*metav1.ObjectMeta, *corev1.PodSpec) {
	var t *corev1.PodTemplateSpec
	switch o := obj.(type) {
	case *corev1.PodTemplate:
		t = &o.Template
	case *corev1.ReplicationController:
		t = o.Spec.Template
	case *appsv1.ReplicaSet:
		t = &o.Spec.Template
	case *appsv1.Deployment:
		t = &o.Spec.Template
	case *appsv1.DaemonSet:
		t = &o.Spec.Template
	case *appsv1.StatefulSet:
		t = &o.Spec.Template
	case *batchv1.Job:
		t = &o.Spec.Template
	case *batchv1.CronJob:
		t = &o.Spec.JobTemplate.Spec.Template
	}
	if t == nil {
		return nil, nil
	}
	return &t.ObjectMeta, &t.Spec
}

// significant reports whether an update of a pod changes what the standards look
// at: of what can be changed these are images, and added ephemeral containers.
func significant(now, was *corev1.Pod) bool {
	differ := func(a, b []corev1.Container) bool {
		if len(a) != len(b) {
			return true
		}
		for i := range a {
			if a[i].Image != b[i].Image {
				return true
			}
		}
		return false
	}
	if differ(now.Spec.Containers, was.Spec.Containers) || differ(now.Spec.InitContainers, was.Spec.InitContainers) {
		return true
	}
	images := map[string]string{}
	for _, c := range was.Spec.EphemeralContainers {
		images[c.Name] = c.Image
	}
	for _, c := range now.Spec.EphemeralContainers {
		if image, ok := images[c.Name]; !ok || image != c.Image {
			return true
		}
	}
	return false
}
