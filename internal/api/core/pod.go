package core

import (
	"fmt"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
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
				Message: "Scheduling is blocked due to non-empty scheduling gates"}}
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
	for _, list := range []struct {
		name       string
		containers []corev1.Container
	}{{"containers", o.Spec.Containers}, {"initContainers", o.Spec.InitContainers}} {
		for i := range list.containers {
			if image := list.containers[i].Image; strings.TrimSpace(image) != image {
				errs = append(errs, field.Invalid(spec.Child(list.name).Index(i).Child("image"), image, "must not have leading or trailing whitespace"))
			}
		}
	}
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

// validatePodStatus checks a write of /status.
func validatePodStatus(o, old *corev1.Pod) (errs field.ErrorList) {
	p := field.NewPath("status")
	now, was := &o.Status, &old.Status
	if now.NominatedNodeName != "" {
		errs = append(errs, subdomain(p.Child("nominatedNodeName"), now.NominatedNodeName)...)
	}
	if was.QOSClass != "" && now.QOSClass != "" && now.QOSClass != was.QOSClass {
		errs = append(errs, field.Invalid(p.Child("qosClass"), now.QOSClass, "field is immutable"))
	}
	// A pod that has ended has given its place away: it cannot run again.
	if ended(was.Phase) && !ended(now.Phase) {
		errs = append(errs, field.Forbidden(p.Child("phase"), "a terminated pod cannot run again"))
	}
	for i, c := range now.Conditions {
		errs = append(errs, qualified(p.Child("conditions").Index(i).Child("type"), string(c.Type))...)
	}
	errs = append(errs, validateTransitions(now.ContainerStatuses, was.ContainerStatuses, o.Spec.Containers, &o.Spec, p.Child("containerStatuses"))...)
	errs = append(errs, validateTransitions(now.InitContainerStatuses, was.InitContainerStatuses, o.Spec.InitContainers, &o.Spec, p.Child("initContainerStatuses"))...)
	families := map[bool]bool{}
	for i, ip := range now.PodIPs {
		ipp := p.Child("podIPs").Index(i).Child("ip")
		if bad := utilvalidation.IsValidIPForLegacyField(ipp, ip.IP, false, nil); len(bad) > 0 {
			errs = append(errs, bad...)
			continue
		}
		six := strings.Contains(ip.IP, ":")
		if families[six] {
			errs = append(errs, field.Invalid(p.Child("podIPs"), now.PodIPs, "may specify no more than one IP for each IP family"))
		}
		families[six] = true
	}
	return errs
}

func ended(phase corev1.PodPhase) bool {
	return phase == corev1.PodSucceeded || phase == corev1.PodFailed
}

// validateTransitions refuses that a container which ended for good is reported as anything else.
func validateTransitions(now, was []corev1.ContainerStatus, containers []corev1.Container, spec *corev1.PodSpec, p *field.Path) (errs field.ErrorList) {
	if spec.RestartPolicy == corev1.RestartPolicyAlways {
		return nil
	}
	restarts := map[string]bool{} // containers that have a say of their own
	for i := range containers {
		restarts[containers[i].Name] = containers[i].RestartPolicy != nil
	}
	for i := range was {
		t := was[i].State.Terminated
		if t == nil || restarts[was[i].Name] || t.ExitCode != 0 && spec.RestartPolicy == corev1.RestartPolicyOnFailure {
			continue
		}
		for j := range now {
			if now[j].Name == was[i].Name && now[j].State.Terminated == nil {
				errs = append(errs, field.Forbidden(p.Index(j).Child("state"), "may not be transitioned to non-terminated state"))
			}
		}
	}
	return errs
}

// podWarnings tells of what is valid and yet most likely not meant.
func podWarnings(o *corev1.Pod) (warnings []string) {
	warn := func(p *field.Path, format string, args ...any) {
		warnings = append(warnings, p.String()+": "+fmt.Sprintf(format, args...))
	}
	if msgs := utilvalidation.IsDNS1123Label(o.Name); len(msgs) > 0 {
		warn(field.NewPath("metadata", "name"), "this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: %v", msgs)
	}
	spec := field.NewPath("spec")
	if g := o.Spec.TerminationGracePeriodSeconds; g != nil && *g < 0 {
		warn(spec.Child("terminationGracePeriodSeconds"), "must be >= 0; negative values are invalid and will be treated as 1")
	}
	v := specValidator{spec: &o.Spec, path: spec}
	v.eachContainer(func(c *corev1.Container, p *field.Path) {
		seen := make(map[string]bool, len(c.Env))
		for i, e := range c.Env {
			if seen[e.Name] && !strings.Contains(e.Value, "$("+e.Name+")") {
				warn(p.Child("env").Index(i), "hides previous definition of %q, which may be dropped when using apply", e.Name)
			}
			seen[e.Name] = true
		}
		type key struct {
			protocol corev1.Protocol
			port     int32
			host     int32
			ip       string
		}
		ports := make(map[key]int, len(c.Ports))
		for i, cp := range c.Ports {
			k := key{cp.Protocol, cp.ContainerPort, cp.HostPort, cp.HostIP}
			if first, ok := ports[k]; ok {
				warn(p.Child("ports").Index(i), "duplicate port definition with %s", p.Child("ports").Index(first))
			} else {
				ports[k] = i
			}
		}
		for _, list := range []struct {
			name string
			list corev1.ResourceList
		}{{"limits", c.Resources.Limits}, {"requests", c.Resources.Requests}} {
			for _, name := range sorted(list.list) {
				q := list.list[name]
				if (name == corev1.ResourceMemory || name == corev1.ResourceEphemeralStorage) && q.MilliValue()%1000 != 0 {
					warn(p.Child("resources", list.name).Key(string(name)), "fractional byte value %q is invalid, must be an integer", q.String())
				}
			}
		}
	})
	return warnings
}
