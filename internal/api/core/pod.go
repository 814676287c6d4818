package core

import (
	"fmt"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

func pod() *api.Resource {
	k := api.Kind[*corev1.Pod]{Resource: rules.Namespaced[corev1.Pod, corev1.PodList](gv, "pods", "po")}
	k.Resource.Categories = []string{"all"}
	k.Resource.UnconditionalUpdate = true
	k.Resource.Subresources = []string{"attach", "binding", "ephemeralcontainers", "eviction", "exec", "log", "portforward", "proxy", "resize"}
	k.Default = defaultPod
	k.PrepareForCreate = func(o *corev1.Pod) {
		o.Status = corev1.PodStatus{Phase: corev1.PodPending, QOSClass: QOSClass(o)}
		if len(o.Spec.SchedulingGates) > 0 {
			o.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonSchedulingGated,
				Message: "Scheduling is blocked due to non-empty scheduling gates", LastTransitionTime: metav1.Now()}}
		}
		mergeLabelKeys(o)
	}
	k.Validate = func(o *corev1.Pod) field.ErrorList {
		spec := field.NewPath("spec")
		errs := validatePod(o)
		if len(o.Spec.EphemeralContainers) > 0 {
			errs = append(errs, field.Forbidden(spec.Child("ephemeralContainers"), "cannot be set on create"))
		}
		if o.Spec.NodeName != "" && len(o.Spec.SchedulingGates) > 0 {
			errs = append(errs, field.Forbidden(spec.Child("nodeName"), "cannot be set until all schedulingGates have been cleared"))
		}
		return errs
	}
	k.ValidateUpdate = validatePodUpdate
	k.CopyStatus = func(dst, src *corev1.Pod) { src.Status.DeepCopyInto(&dst.Status) }
	k.PrepareForStatusUpdate = keepPodStatus
	k.ValidateStatusUpdate = validatePodStatus
	k.SpecChanged = func(o, old *corev1.Pod) bool { return !apiequality.Semantic.DeepEqual(o.Spec, old.Spec) }
	k.Warnings = podWarnings
	k.GracePeriod = func(o *corev1.Pod, opts *metav1.DeleteOptions) int64 {
		var period int64
		switch {
		// What never ran on a node, or has ended, has nothing to wait for.
		case o.Spec.NodeName == "", o.Status.Phase == corev1.PodFailed, o.Status.Phase == corev1.PodSucceeded:
		case opts != nil && opts.GracePeriodSeconds != nil:
			period = *opts.GracePeriodSeconds
		case o.Spec.TerminationGracePeriodSeconds != nil:
			period = *o.Spec.TerminationGracePeriodSeconds
		}
		if period < 0 {
			period = 1
		}
		return period
	}
	k.Fields = func(o *corev1.Pod) fields.Set {
		ip := o.Status.PodIP
		if len(o.Status.PodIPs) > 0 {
			ip = o.Status.PodIPs[0].IP
		}
		return fields.Set{"spec.nodeName": o.Spec.NodeName, "spec.restartPolicy": string(o.Spec.RestartPolicy), "spec.schedulerName": o.Spec.SchedulerName,
			"spec.serviceAccountName": o.Spec.ServiceAccountName, "spec.hostNetwork": strconv.FormatBool(o.Spec.HostNetwork), "status.phase": string(o.Status.Phase),
			"status.podIP": ip, "status.nominatedNodeName": o.Status.NominatedNodeName}
	}
	k.Resource.FieldLabels = []string{"spec.nodeName", "spec.restartPolicy", "spec.schedulerName", "spec.serviceAccountName", "spec.hostNetwork", "status.phase", "status.podIP", "status.nominatedNodeName"}
	spec, status := corev1.PodSpec{}.SwaggerDoc(), corev1.PodStatus{}.SwaggerDoc()
	k.Resource.Columns = []metav1.TableColumnDefinition{
		rules.Name(),
		rules.Text("Ready", "The aggregate readiness state of this pod for accepting traffic."),
		rules.Text("Status", "The aggregate status of the containers in this pod."),
		rules.Text("Restarts", "The number of times the containers in this pod have been restarted and when the last container in this pod has restarted."),
		rules.Age(),
		rules.Wide("IP", status["podIP"]),
		rules.Wide("Node", spec["nodeName"]),
		rules.Wide("Nominated Node", status["nominatedNodeName"]),
		rules.Wide("Readiness Gates", spec["readinessGates"]),
	}
	k.Row = podRow
	return k.Erase()
}

// validatePod checks a pod, and what holds for pods but not for templates.
func validatePod(o *corev1.Pod) field.ErrorList {
	spec := field.NewPath("spec")
	errs := ValidatePodSpec(&o.Spec, spec)
	errs = append(errs, validatePodAnnotations(o.Annotations, &o.Spec, field.NewPath("metadata", "annotations"))...)
	for i := range o.Spec.Volumes {
		// The claim of an ephemeral volume is named after its pod.
		if v := &o.Spec.Volumes[i]; v.Ephemeral != nil && v.Name != "" && o.Name != "" {
			name := o.Name + "-" + v.Name
			for _, msg := range validation.NameIsDNSSubdomain(name, false) {
				errs = append(errs, field.Invalid(spec.Child("volumes").Index(i).Child("name"), v.Name, fmt.Sprintf("PVC name %q: %v", name, msg)))
			}
		}
	}
	v := specValidator{spec: &o.Spec, path: spec}
	v.eachContainer(func(c *corev1.Container, p *field.Path) {
		if strings.TrimSpace(c.Image) != c.Image {
			errs = append(errs, field.Invalid(p.Child("image"), c.Image, "must not have leading or trailing whitespace"))
		}
	})
	if o.Spec.ServiceAccountName == "" {
		for i, volume := range o.Spec.Volumes {
			if volume.Projected == nil {
				continue
			}
			for j, source := range volume.Projected.Sources {
				if source.ServiceAccountToken != nil {
					errs = append(errs, field.Forbidden(spec.Child("volumes").Index(i).Child("projected", "sources").Index(j).Child("serviceAccountToken"), "must not be specified when serviceAccountName is not set"))
				}
			}
		}
	}
	return errs
}

// podWarnings tells of what is valid and yet most likely not meant.
func podWarnings(o *corev1.Pod) []string {
	var w warnings
	if msgs := utilvalidation.IsDNS1123Label(o.Name); len(msgs) > 0 {
		w.add(field.NewPath("metadata", "name"), "this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: %v", msgs)
	}
	return append(w, podSpecWarnings(&o.Spec, o.Annotations, nil)...)
}
