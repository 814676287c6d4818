package statefulset

import (
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/controllers/owned"
	"github.com/proa-dev/proa/internal/controllers/revision"
)

// split tells the set's name and the ordinal of a pod's name; -1: it has none.
func split(name string) (parent string, ordinal int) {
	i := strings.LastIndexByte(name, '-')
	if i < 0 || i == len(name)-1 || strings.TrimLeft(name[i+1:], "0123456789") != "" {
		return "", -1
	}
	n, err := strconv.ParseInt(name[i+1:], 10, 32)
	if err != nil {
		return name[:i], -1
	}
	return name[:i], int(n)
}

func member(set *appsv1.StatefulSet, pod *corev1.Pod) bool {
	parent, ordinal := split(pod.Name)
	return parent == set.Name && ordinal >= 0
}

func ordinalOf(pod *corev1.Pod) int {
	_, n := split(pod.Name)
	return n
}

// first is the lowest ordinal.
func first(set *appsv1.StatefulSet) int {
	if set.Spec.Ordinals != nil {
		return int(set.Spec.Ordinals.Start)
	}
	return 0
}

func replicas(set *appsv1.StatefulSet) int {
	if set.Spec.Replicas == nil {
		return 1
	}
	return int(*set.Spec.Replicas)
}

func inRange(set *appsv1.StatefulSet, ordinal int) bool {
	return ordinal >= first(set) && ordinal < first(set)+replicas(set)
}

func podName(set *appsv1.StatefulSet, ordinal int) string {
	return set.Name + "-" + strconv.Itoa(ordinal)
}

func claimName(set *appsv1.StatefulSet, template *corev1.PersistentVolumeClaim, ordinal int) string {
	return template.Name + "-" + set.Name + "-" + strconv.Itoa(ordinal)
}

// newPod is the pod of an ordinal, of a version of the template.
func newPod(set *appsv1.StatefulSet, template *corev1.PodTemplateSpec, version string, ordinal int) *corev1.Pod {
	pod := owned.Pod(template, set, client.StatefulSets.GVK, "")
	pod.Name = podName(set, ordinal)
	pod.Spec.Hostname, pod.Spec.Subdomain = pod.Name, set.Spec.ServiceName
	identify(pod)
	pod.Labels[revision.PodLabel] = version
	store(set, pod)
	return pod
}

// identify puts the labels of its identity on a pod.
func identify(pod *corev1.Pod) {
	if pod.Labels == nil {
		pod.Labels = map[string]string{}
	}
	pod.Labels[appsv1.StatefulSetPodNameLabel] = pod.Name
	pod.Labels[appsv1.PodIndexLabel] = strconv.Itoa(ordinalOf(pod))
}

func identified(pod *corev1.Pod) bool { return pod.Labels[appsv1.StatefulSetPodNameLabel] == pod.Name }

// store gives a pod its claims as volumes. A template's volume of the same name
// gives way.
func store(set *appsv1.StatefulSet, pod *corev1.Pod) {
	own := map[string]bool{}
	var volumes []corev1.Volume
	for i := range set.Spec.VolumeClaimTemplates {
		t := &set.Spec.VolumeClaimTemplates[i]
		own[t.Name] = true
		volumes = append(volumes, corev1.Volume{Name: t.Name, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claimName(set, t, ordinalOf(pod))}}})
	}
	for _, v := range pod.Spec.Volumes {
		if !own[v.Name] {
			volumes = append(volumes, v)
		}
	}
	pod.Spec.Volumes = volumes
}

// stored says that a pod has its claims as volumes.
func stored(set *appsv1.StatefulSet, pod *corev1.Pod) bool {
	for i := range set.Spec.VolumeClaimTemplates {
		t := &set.Spec.VolumeClaimTemplates[i]
		found := false
		for j := range pod.Spec.Volumes {
			v := &pod.Spec.Volumes[j]
			found = found || v.Name == t.Name && v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ClaimName == claimName(set, t, ordinalOf(pod))
		}
		if !found {
			return false
		}
	}
	return true
}

func versionOf(pod *corev1.Pod) string { return pod.Labels[revision.PodLabel] }

func ended(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded
}

func runs(pod *corev1.Pod) bool {
	return pod != nil && pod.Status.Phase == corev1.PodRunning && owned.Ready(pod)
}
