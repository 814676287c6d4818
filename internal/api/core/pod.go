package core

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

func pod() *api.Resource {
	k := api.Kind[*corev1.Pod]{Resource: rules.Namespaced[corev1.Pod, corev1.PodList](gv, "pods", "po")}
	k.Resource.Categories = []string{"all"}
	k.Resource.UnconditionalUpdate = true
	k.Resource.Subresources = []string{"attach", "binding", "ephemeralcontainers", "eviction", "exec", "log", "portforward", "proxy", "resize"}
	k.Default = func(o *corev1.Pod) { DefaultPodSpec(&o.Spec) }
	k.PrepareForCreate = func(o *corev1.Pod) {
		o.Status = corev1.PodStatus{Phase: corev1.PodPending, QOSClass: QOSClass(o)}
		if len(o.Spec.SchedulingGates) > 0 {
			o.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonSchedulingGated,
				Message: "Scheduling is blocked due to non-empty scheduling gates"}}
		}
	}
	k.Validate = func(o *corev1.Pod) field.ErrorList {
		errs := ValidatePodSpec(&o.Spec, field.NewPath("spec"))
		if len(o.Spec.EphemeralContainers) > 0 {
			errs = append(errs, field.Forbidden(field.NewPath("spec", "ephemeralContainers"), "cannot be set on create"))
		}
		if o.Spec.NodeName != "" && len(o.Spec.SchedulingGates) > 0 {
			errs = append(errs, field.Forbidden(field.NewPath("spec", "nodeName"), "cannot be set until all schedulingGates have been cleared"))
		}
		return errs
	}
	k.ValidateUpdate = validatePodUpdate
	k.CopyStatus = func(dst, src *corev1.Pod) { src.Status.DeepCopyInto(&dst.Status) }
	k.ValidateStatusUpdate = func(o, old *corev1.Pod) (errs field.ErrorList) {
		if old.Status.Phase == corev1.PodSucceeded || old.Status.Phase == corev1.PodFailed {
			if o.Status.Phase != old.Status.Phase && o.Status.Phase != corev1.PodSucceeded && o.Status.Phase != corev1.PodFailed {
				errs = append(errs, field.Forbidden(field.NewPath("status", "phase"), "a terminated pod cannot run again"))
			}
		}
		return errs
	}
	k.SpecChanged = func(o, old *corev1.Pod) bool { return !apiequality.Semantic.DeepEqual(o.Spec, old.Spec) }
	k.GracePeriod = func(o *corev1.Pod, opts *metav1.DeleteOptions) int64 {
		period := int64(corev1.DefaultTerminationGracePeriodSeconds)
		switch {
		case opts != nil && opts.GracePeriodSeconds != nil:
			period = *opts.GracePeriodSeconds
		case o.Spec.TerminationGracePeriodSeconds != nil:
			period = *o.Spec.TerminationGracePeriodSeconds
		}
		// What never ran on a node, or has ended, has nothing to wait for.
		if o.Spec.NodeName == "" || o.Status.Phase == corev1.PodFailed || o.Status.Phase == corev1.PodSucceeded {
			return 0
		}
		return max(1, period) * boolInt(period != 0)
	}
	k.Fields = func(o *corev1.Pod) fields.Set {
		ip := o.Status.PodIP
		if ip == "" && len(o.Status.PodIPs) > 0 {
			ip = o.Status.PodIPs[0].IP
		}
		return fields.Set{"spec.nodeName": o.Spec.NodeName, "spec.restartPolicy": string(o.Spec.RestartPolicy), "spec.schedulerName": o.Spec.SchedulerName,
			"spec.serviceAccountName": o.Spec.ServiceAccountName, "spec.hostNetwork": fmt.Sprint(o.Spec.HostNetwork), "status.phase": string(o.Status.Phase),
			"status.podIP": ip, "status.nominatedNodeName": o.Status.NominatedNodeName}
	}
	k.Resource.FieldLabels = []string{"spec.nodeName", "spec.restartPolicy", "spec.schedulerName", "spec.serviceAccountName", "spec.hostNetwork", "status.phase", "status.podIP", "status.nominatedNodeName"}
	k.Resource.Columns = []metav1.TableColumnDefinition{nameColumn,
		column("Ready", "string", "The aggregate readiness state of this pod for accepting traffic."), column("Status", "string", "The aggregate status of the containers in this pod."),
		column("Restarts", "string", "The number of times the containers in this pod have been restarted and when the last container in this pod has restarted."), ageColumn,
		column("IP", "string", "podIP address allocated to the pod.", true), column("Node", "string", "NodeName indicates in which node this pod is scheduled.", true),
		column("Nominated Node", "string", "nominatedNodeName is set only when this pod preempts other pods on the node.", true),
		column("Readiness Gates", "string", "If specified, all readiness gates will be evaluated for pod readiness.", true)}
	k.Row = podRow
	return k.Erase()
}

func boolInt(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// validatePodUpdate allows the few changes of a pod's spec that Kubernetes does.
func validatePodUpdate(o, old *corev1.Pod) field.ErrorList {
	spec := field.NewPath("spec")
	var errs field.ErrorList
	for i := range o.Spec.Containers {
		if o.Spec.Containers[i].Image == "" {
			errs = append(errs, field.Required(spec.Child("containers").Index(i).Child("image"), ""))
		}
	}
	if len(o.Spec.Containers) != len(old.Spec.Containers) {
		return append(errs, field.Forbidden(spec.Child("containers"), "pod updates may not add or remove containers"))
	}
	if len(o.Spec.InitContainers) != len(old.Spec.InitContainers) {
		return append(errs, field.Forbidden(spec.Child("initContainers"), "pod updates may not add or remove containers"))
	}
	if d := o.Spec.ActiveDeadlineSeconds; d != nil {
		if was := old.Spec.ActiveDeadlineSeconds; was != nil && *d > *was {
			errs = append(errs, field.Invalid(spec.Child("activeDeadlineSeconds"), *d, "must be less than or equal to previous value"))
		}
	} else if old.Spec.ActiveDeadlineSeconds != nil {
		errs = append(errs, field.Invalid(spec.Child("activeDeadlineSeconds"), nil, "must not update from a positive integer to nil value"))
	}
	for i, t := range old.Spec.Tolerations {
		if !slices.ContainsFunc(o.Spec.Tolerations, func(n corev1.Toleration) bool { t.TolerationSeconds, n.TolerationSeconds = nil, nil; return t == n }) {
			errs = append(errs, field.Forbidden(spec.Child("tolerations").Index(i), "existing toleration can not be modified except its tolerationSeconds"))
		}
	}
	for i, g := range o.Spec.SchedulingGates {
		if !slices.Contains(old.Spec.SchedulingGates, g) {
			errs = append(errs, field.Forbidden(spec.Child("schedulingGates").Index(i), fmt.Sprintf("only deletion is allowed, but found new scheduling gate '%s'", g.Name)))
		}
	}
	// What is left after the allowed changes are undone must be as it was.
	rest := o.Spec.DeepCopy()
	for i := range rest.Containers {
		rest.Containers[i].Image = old.Spec.Containers[i].Image
	}
	for i := range rest.InitContainers {
		rest.InitContainers[i].Image = old.Spec.InitContainers[i].Image
	}
	rest.ActiveDeadlineSeconds = old.Spec.ActiveDeadlineSeconds
	rest.Tolerations, rest.SchedulingGates = old.Spec.Tolerations, old.Spec.SchedulingGates
	if g := rest.TerminationGracePeriodSeconds; g != nil && *g == 1 && old.Spec.TerminationGracePeriodSeconds != nil && *old.Spec.TerminationGracePeriodSeconds < 0 {
		rest.TerminationGracePeriodSeconds = old.Spec.TerminationGracePeriodSeconds
	}
	if len(old.Spec.SchedulingGates) > 0 {
		rest.NodeSelector, rest.Affinity = old.Spec.NodeSelector, old.Spec.Affinity
	}
	if !apiequality.Semantic.DeepEqual(*rest, old.Spec) {
		errs = append(errs, field.Forbidden(spec, "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"))
	}
	return errs
}

// podRow words a pod's state as kubectl users know it.
func podRow(o *corev1.Pod) []any {
	restarts, ready, total := 0, 0, len(o.Spec.Containers)
	var lastRestart metav1.Time
	sidecars := map[string]bool{}
	for i := range o.Spec.InitContainers {
		if c := &o.Spec.InitContainers[i]; c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			sidecars[c.Name] = true
			total++
		}
	}
	reason := string(o.Status.Phase)
	if o.Status.Reason != "" {
		reason = o.Status.Reason
	}
	for _, c := range o.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Reason == corev1.PodReasonSchedulingGated {
			reason = corev1.PodReasonSchedulingGated
		}
	}
	note := func(c *corev1.ContainerStatus) {
		restarts += int(c.RestartCount)
		if t := c.LastTerminationState.Terminated; t != nil && lastRestart.Before(&t.FinishedAt) {
			lastRestart = t.FinishedAt
		}
	}
	initializing := false
	for i := range o.Status.InitContainerStatuses {
		c := &o.Status.InitContainerStatuses[i]
		note(c)
		if sidecars[c.Name] && c.Ready {
			ready++
		}
		t, w := c.State.Terminated, c.State.Waiting
		if t != nil && t.ExitCode == 0 || sidecars[c.Name] && c.Started != nil && *c.Started || initializing {
			continue
		}
		switch {
		case t != nil && t.Reason != "":
			reason = "Init:" + t.Reason
		case t != nil && t.Signal != 0:
			reason = fmt.Sprintf("Init:Signal:%d", t.Signal)
		case t != nil:
			reason = fmt.Sprintf("Init:ExitCode:%d", t.ExitCode)
		case w != nil && w.Reason != "" && w.Reason != "PodInitializing":
			reason = "Init:" + w.Reason
		default:
			reason = fmt.Sprintf("Init:%d/%d", i, len(o.Spec.InitContainers))
		}
		initializing = true
	}
	if !initializing {
		running := false
		for i := len(o.Status.ContainerStatuses) - 1; i >= 0; i-- {
			c := &o.Status.ContainerStatuses[i]
			note(c)
			t, w := c.State.Terminated, c.State.Waiting
			switch {
			case w != nil && w.Reason != "":
				reason = w.Reason
			case t != nil && t.Reason != "":
				reason = t.Reason
			case t != nil && t.Signal != 0:
				reason = fmt.Sprintf("Signal:%d", t.Signal)
			case t != nil:
				reason = fmt.Sprintf("ExitCode:%d", t.ExitCode)
			case c.Ready && c.State.Running != nil:
				running = true
				ready++
			}
		}
		if reason == "Completed" && running {
			reason = "NotReady"
			if slices.ContainsFunc(o.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue }) {
				reason = "Running"
			}
		}
	}
	switch {
	case o.DeletionTimestamp != nil && o.Status.Reason == "NodeLost":
		reason = "Unknown"
	case o.DeletionTimestamp != nil && o.Status.Phase != corev1.PodSucceeded && o.Status.Phase != corev1.PodFailed:
		reason = "Terminating"
	}
	restartText := fmt.Sprint(restarts)
	if restarts != 0 && !lastRestart.IsZero() {
		restartText = fmt.Sprintf("%d (%s ago)", restarts, duration.HumanDuration(time.Since(lastRestart.Time)))
	}
	ip := "<none>"
	if len(o.Status.PodIPs) > 0 {
		ip = o.Status.PodIPs[0].IP
	} else if o.Status.PodIP != "" {
		ip = o.Status.PodIP
	}
	gates := "<none>"
	if n := len(o.Spec.ReadinessGates); n > 0 {
		pass := 0
		for _, g := range o.Spec.ReadinessGates {
			if slices.ContainsFunc(o.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == g.ConditionType && c.Status == corev1.ConditionTrue }) {
				pass++
			}
		}
		gates = fmt.Sprintf("%d/%d", pass, n)
	}
	return []any{o.Name, fmt.Sprintf("%d/%d", ready, total), reason, restartText, age(o.CreationTimestamp), ip, orNone(o.Spec.NodeName), orNone(o.Status.NominatedNodeName), gates}
}

func orNone(s string) string {
	if s == "" {
		return "<none>"
	}
	return s
}

func node() *api.Resource {
	k := api.Kind[*corev1.Node]{Resource: rules.Cluster[corev1.Node, corev1.NodeList](gv, "nodes", "no")}
	k.Resource.UnconditionalUpdate = true
	k.Resource.Subresources = []string{"proxy"}
	k.Default = func(o *corev1.Node) {
		// Allocatable is what is left of capacity for pods; whoever reserves nothing leaves it out.
		for name, q := range o.Status.Capacity {
			if _, ok := o.Status.Allocatable[name]; !ok {
				if o.Status.Allocatable == nil {
					o.Status.Allocatable = corev1.ResourceList{}
				}
				o.Status.Allocatable[name] = q.DeepCopy()
			}
		}
	}
	validate := func(o *corev1.Node) (errs field.ErrorList) {
		seen := map[string]bool{}
		for i, t := range o.Spec.Taints {
			p := field.NewPath("spec", "taints").Index(i)
			errs = append(errs, oneOf(p.Child("effect"), t.Effect, corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute)...)
			if key := t.Key + ":" + string(t.Effect); seen[key] {
				errs = append(errs, field.Duplicate(p, t))
			} else {
				seen[key] = true
			}
		}
		return errs
	}
	k.Validate = validate
	k.ValidateUpdate = func(o, old *corev1.Node) field.ErrorList {
		errs := validate(o)
		if old.Spec.ProviderID != "" && o.Spec.ProviderID != old.Spec.ProviderID {
			errs = append(errs, field.Forbidden(field.NewPath("spec", "providerID"), "node updates may not change providerID except from \"\" to valid"))
		}
		if len(old.Spec.PodCIDRs) > 0 && !slices.Equal(o.Spec.PodCIDRs, old.Spec.PodCIDRs) {
			errs = append(errs, field.Forbidden(field.NewPath("spec", "podCIDRs"), "node updates may not change podCIDR except from \"\" to valid"))
		}
		return errs
	}
	k.CopyStatus = func(dst, src *corev1.Node) { src.Status.DeepCopyInto(&dst.Status) }
	k.Fields = func(o *corev1.Node) fields.Set {
		return fields.Set{"spec.unschedulable": fmt.Sprint(o.Spec.Unschedulable)}
	}
	k.Resource.FieldLabels = []string{"spec.unschedulable"}
	k.Resource.Columns = []metav1.TableColumnDefinition{nameColumn, column("Status", "string", "The status of the node"), column("Roles", "string", "The roles of the node"), ageColumn,
		column("Version", "string", "Kubelet Version reported by the node."), column("Internal-IP", "string", "List of addresses reachable to the node.", true),
		column("External-IP", "string", "List of addresses reachable to the node.", true), column("OS-Image", "string", "OS Image reported by the node.", true),
		column("Kernel-Version", "string", "Kernel Version reported by the node.", true), column("Container-Runtime", "string", "ContainerRuntime Version reported by the node.", true)}
	k.Row = func(o *corev1.Node) []any {
		status := "Unknown"
		for _, c := range o.Status.Conditions {
			if c.Type == corev1.NodeReady {
				status = "NotReady"
				if c.Status == corev1.ConditionTrue {
					status = "Ready"
				}
			}
		}
		if o.Spec.Unschedulable {
			status += ",SchedulingDisabled"
		}
		var roles []string
		for label, v := range o.Labels {
			if role, ok := strings.CutPrefix(label, "node-role.kubernetes.io/"); ok && role != "" {
				roles = append(roles, role)
			} else if label == "kubernetes.io/role" && v != "" {
				roles = append(roles, v)
			}
		}
		slices.Sort(roles)
		address := func(kind corev1.NodeAddressType) string {
			for _, a := range o.Status.Addresses {
				if a.Type == kind {
					return a.Address
				}
			}
			return "<none>"
		}
		i := &o.Status.NodeInfo
		unknown := func(s string) string {
			if s == "" {
				return "<unknown>"
			}
			return s
		}
		return []any{o.Name, status, orNone(strings.Join(roles, ",")), age(o.CreationTimestamp), i.KubeletVersion, address(corev1.NodeInternalIP), address(corev1.NodeExternalIP),
			unknown(i.OSImage), unknown(i.KernelVersion), unknown(i.ContainerRuntimeVersion)}
	}
	return k.Erase()
}
