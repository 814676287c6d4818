// Package apps holds the rules of the API group apps: the controllers of
// long-running pods. It does not control them.
package apps

import (
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/core"
	"github.com/proa-dev/proa/internal/api/rules"
)

// Resources returns the resources of the group.
func Resources() []*api.Resource {
	gv := appsv1.SchemeGroupVersion
	return []*api.Resource{
		controllerRevisions(gv), daemonSets(gv), deployments(gv), replicaSets(gv), statefulSets(gv),
	}
}

// workload marks a resource as one of "kubectl get all" that may be written without a resourceVersion.
func workload(r api.Resource) api.Resource {
	r.Categories = []string{"all"}
	r.UnconditionalUpdate = true
	return r
}

// validatePods checks what all controllers of the group demand of their pod
// template beyond a pod's own rules.
func validatePods(t *corev1.PodTemplateSpec, path *field.Path, kind string) field.ErrorList {
	errs := core.ValidatePodTemplateSpec(t, path)
	spec := path.Child("spec")
	if p := t.Spec.RestartPolicy; p != corev1.RestartPolicyAlways {
		errs = append(errs, field.NotSupported(spec.Child("restartPolicy"), p, []corev1.RestartPolicy{corev1.RestartPolicyAlways}))
	}
	if t.Spec.ActiveDeadlineSeconds != nil {
		errs = append(errs, field.Forbidden(spec.Child("activeDeadlineSeconds"), "activeDeadlineSeconds in "+kind+" is not Supported"))
	}
	return errs
}

// validateReplicaTemplate checks the selector and the template of deployments and replica sets.
func validateReplicaTemplate(s *metav1.LabelSelector, t *corev1.PodTemplateSpec, spec *field.Path) field.ErrorList {
	path := spec.Child("selector")
	if s == nil {
		errs := field.ErrorList{field.Required(path, "")}
		return append(errs, validatePods(t, spec.Child("template"), "ReplicaSet")...)
	}
	errs := rules.Selector(s, path)
	if rules.Empty(s) {
		errs = append(errs, field.Invalid(path, s, "empty selector is invalid for deployment"))
	}
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return append(errs, field.Invalid(path, s, "invalid label selector"))
	}
	if !selector.Empty() {
		errs = append(errs, rules.SelectsTemplate(selector, t.Labels, spec.Child("template"))...)
	}
	return append(errs, validatePods(t, spec.Child("template"), "ReplicaSet")...)
}
