package core

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// DefaultPodTemplate fills in what the pod template of a workload leaves out.
func DefaultPodTemplate(t *corev1.PodTemplateSpec) { DefaultPodSpec(&t.Spec) }

// DefaultPodSpec fills in what a pod spec leaves out, as far as templates get it
// too: requests that follow from limits, the host ports of host network pods and
// enableServiceLinks are given to pods alone (defaultPod), so that a stored
// template stays what its author wrote.
func DefaultPodSpec(s *corev1.PodSpec) { defaultPodSpec(s) }

// ValidatePodTemplateSpec checks the defaulted pod template of a workload.
func ValidatePodTemplateSpec(t *corev1.PodTemplateSpec, p *field.Path) field.ErrorList {
	errs := metav1validation.ValidateLabels(t.Labels, p.Child("labels"))
	errs = append(errs, validation.ValidateAnnotations(t.Annotations, p.Child("annotations"))...)
	errs = append(errs, validatePodAnnotations(t.Annotations, &t.Spec, p.Child("annotations"))...)
	errs = append(errs, ValidatePodSpec(&t.Spec, p.Child("spec"))...)
	if len(t.Spec.EphemeralContainers) > 0 {
		errs = append(errs, field.Forbidden(p.Child("spec", "ephemeralContainers"), "ephemeral containers not allowed in pod template"))
	}
	return errs
}

// validatePodAnnotations checks the annotations that mean something to Kubernetes.
func validatePodAnnotations(annotations map[string]string, s *corev1.PodSpec, p *field.Path) (errs field.ErrorList) {
	if value, ok := annotations[corev1.MirrorPodAnnotationKey]; ok && s.NodeName == "" {
		errs = append(errs, field.Invalid(p.Key(corev1.MirrorPodAnnotationKey), value, "must set spec.nodeName if mirror pod annotation is set"))
	}
	if value, ok := annotations[corev1.PodDeletionCost]; ok {
		// Zeros in front and a plus sign would make one cost look like two.
		if cost, err := strconv.ParseInt(value, 10, 32); err != nil || strconv.FormatInt(cost, 10) != value {
			errs = append(errs, field.Invalid(p.Key(corev1.PodDeletionCost), value, "must be a 32bit integer"))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(annotations)) {
		if key != seccompPodAnnotation && !strings.HasPrefix(key, seccompContainerAnnotation) {
			continue
		}
		switch profile := annotations[key]; {
		case profile == corev1.SeccompProfileRuntimeDefault, profile == corev1.DeprecatedSeccompProfileDockerDefault, profile == corev1.SeccompProfileNameUnconfined:
		case strings.HasPrefix(profile, corev1.SeccompLocalhostProfileNamePrefix):
			errs = append(errs, descending(p.Child(key), strings.TrimPrefix(profile, corev1.SeccompLocalhostProfileNamePrefix))...)
		default:
			errs = append(errs, field.Invalid(p.Child(key), profile, "must be a valid seccomp profile"))
		}
	}
	return errs
}

// ValidatePodSpec checks a defaulted pod spec.
func ValidatePodSpec(s *corev1.PodSpec, p *field.Path) field.ErrorList {
	v := specValidator{spec: s, path: p}
	return v.validate()
}

// PodSpecEqual reports whether two specs mean the same.
func PodSpecEqual(a, b *corev1.PodSpec) bool { return apiequality.Semantic.DeepEqual(a, b) }

// ContainerNames returns the names and images of a pod's containers, joined by commas.
func ContainerNames(spec *corev1.PodSpec) (names, images string) {
	n, i := make([]string, len(spec.Containers)), make([]string, len(spec.Containers))
	for at := range spec.Containers {
		n[at], i[at] = spec.Containers[at].Name, spec.Containers[at].Image
	}
	return strings.Join(n, ","), strings.Join(i, ",")
}

// QOSClass is the quality of service class that follows from a pod's requests and limits.
func QOSClass(pod *corev1.Pod) corev1.PodQOSClass {
	some, guaranteed := false, true
	check := func(r *corev1.ResourceRequirements) {
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			request, limit := r.Requests[name], r.Limits[name]
			some = some || !request.IsZero() || !limit.IsZero()
			if limit.IsZero() || request.Cmp(limit) != 0 {
				guaranteed = false
			}
		}
	}
	if podLevelResources(&pod.Spec) {
		check(pod.Spec.Resources)
	} else {
		for i := range pod.Spec.Containers {
			check(&pod.Spec.Containers[i].Resources)
		}
		for i := range pod.Spec.InitContainers {
			check(&pod.Spec.InitContainers[i].Resources)
		}
	}
	switch {
	case !some:
		return corev1.PodQOSBestEffort
	case guaranteed:
		return corev1.PodQOSGuaranteed
	}
	return corev1.PodQOSBurstable
}

// podLevelResources reports whether requests or limits are set for the pod as a whole.
func podLevelResources(s *corev1.PodSpec) bool {
	if s.Resources == nil {
		return false
	}
	for _, list := range []corev1.ResourceList{s.Resources.Requests, s.Resources.Limits} {
		for name := range list {
			if isPodLevelResource(name) {
				return true
			}
		}
	}
	return false
}

func isPodLevelResource(name corev1.ResourceName) bool {
	return name == corev1.ResourceCPU || name == corev1.ResourceMemory || isHugePages(name)
}

// isSidecar reports whether an init container runs beside the containers (KEP-753).
func isSidecar(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}
