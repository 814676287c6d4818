package core

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/validation"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// keepPodStatus keeps what a writer of a pod's status leaves out because it does not know it.
func keepPodStatus(o, old *corev1.Pod) {
	now, was := &o.Status, &old.Status
	zero(&now.QOSClass, was.QOSClass)
	zero(&now.ObservedGeneration, was.ObservedGeneration)
	if now.ResourceClaimStatuses == nil {
		now.ResourceClaimStatuses = slices.Clone(was.ResourceClaimStatuses)
	}
	if now.ExtendedResourceClaimStatus == nil {
		now.ExtendedResourceClaimStatus = was.ExtendedResourceClaimStatus.DeepCopy()
	}
	for i := range now.Conditions {
		c := &now.Conditions[i]
		if at := slices.IndexFunc(was.Conditions, func(b corev1.PodCondition) bool { return b.Type == c.Type }); at >= 0 {
			zero(&c.ObservedGeneration, was.Conditions[at].ObservedGeneration)
		}
	}
}

// validatePodStatus checks a write of /status.
func validatePodStatus(o, old *corev1.Pod) (errs field.ErrorList) {
	p := field.NewPath("status")
	now, was := &o.Status, &old.Status
	for i, c := range now.Conditions {
		cp := p.Child("conditions").Index(i)
		if c.ObservedGeneration < 0 {
			errs = append(errs, field.Invalid(cp.Child("observedGeneration"), c.ObservedGeneration, "must be a non-negative integer"))
		}
		if c.Type != corev1.PodScheduled && c.Type != corev1.PodReady && c.Type != corev1.PodInitialized {
			errs = append(errs, qualified(cp.Child("Type"), string(c.Type))...)
		}
	}
	if name := now.NominatedNodeName; name != "" && name != was.NominatedNodeName {
		np := p.Child("nominatedNodeName")
		errs = append(errs, invalid(np, name, validation.NameIsDNSSubdomain(name, false))...)
		if old.Spec.NodeName != "" {
			errs = append(errs, field.Forbidden(np, "may not be set on pods that are already bound to a node"))
		}
	}
	if now.ObservedGeneration < 0 {
		errs = append(errs, field.Invalid(p.Child("observedGeneration"), now.ObservedGeneration, "must be a non-negative integer"))
	}
	errs = append(errs, validation.ValidateImmutableField(now.QOSClass, was.QOSClass, p.Child("qosClass"))...)
	errs = append(errs, validateTransitions(now.ContainerStatuses, was.ContainerStatuses, old.Spec.Containers, &old.Spec, p.Child("containerStatuses"))...)
	errs = append(errs, validateTransitions(now.InitContainerStatuses, was.InitContainerStatuses, old.Spec.InitContainers, &old.Spec, p.Child("initContainerStatuses"))...)
	errs = append(errs, validateStatusIPs(podIPs(now.PodIPs), podIPs(was.PodIPs), p.Child("podIPs"), now.PodIPs)...)
	if len(now.HostIPs) > 0 && now.HostIP != now.HostIPs[0].IP {
		errs = append(errs, field.Invalid(p.Child("hostIPs").Index(0).Child("ip"), now.HostIPs[0].IP, "must be equal to `hostIP`"))
	}
	return append(errs, validateStatusIPs(hostIPs(now.HostIPs), hostIPs(was.HostIPs), p.Child("hostIPs"), now.HostIPs)...)
}

func podIPs(list []corev1.PodIP) (ips []string) {
	for _, ip := range list {
		ips = append(ips, ip.IP)
	}
	return ips
}

func hostIPs(list []corev1.HostIP) (ips []string) {
	for _, ip := range list {
		ips = append(ips, ip.IP)
	}
	return ips
}

// validateStatusIPs accepts one address of each family; those that are there already may have any form.
func validateStatusIPs(now, was []string, p *field.Path, shown any) (errs field.ErrorList) {
	six := 0
	for i, ip := range now {
		errs = append(errs, utilvalidation.IsValidIPForLegacyField(p.Index(i), ip, true, was)...)
		if strings.Contains(ip, ":") {
			six++
		}
	}
	if n := len(now); n > 2 || n == 2 && six != 1 {
		errs = append(errs, field.Invalid(p, shown, "may specify no more than one IP for each IP family"))
	}
	return errs
}

func ended(phase corev1.PodPhase) bool {
	return phase == corev1.PodSucceeded || phase == corev1.PodFailed
}

// validateTransitions refuses that a container which ended for good is reported as anything else.
func validateTransitions(now, was []corev1.ContainerStatus, containers []corev1.Container, spec *corev1.PodSpec, p *field.Path) (errs field.ErrorList) {
	all := func(c corev1.Container) bool {
		return slices.ContainsFunc(c.RestartPolicyRules, func(r corev1.ContainerRestartRule) bool {
			return r.Action == corev1.ContainerRestartRuleActionRestartAllContainers
		})
	}
	if slices.ContainsFunc(spec.Containers, all) || slices.ContainsFunc(spec.InitContainers, all) {
		return nil
	}
	for i := range was {
		t := was[i].State.Terminated
		if t == nil {
			continue
		}
		named := func(c corev1.Container) bool { return c.Name == was[i].Name }
		if at := slices.IndexFunc(containers, named); at >= 0 && mayRestart(&containers[at], spec.RestartPolicy, t.ExitCode) {
			continue
		}
		if slices.ContainsFunc(now, func(s corev1.ContainerStatus) bool { return s.Name == was[i].Name && s.State.Terminated == nil }) {
			errs = append(errs, field.Forbidden(p.Index(i).Child("state"), "may not be transitioned to non-terminated state"))
		}
	}
	return errs
}

// mayRestart: a container's rules decide first, then its own policy, then the pod's (KEP-5307).
func mayRestart(c *corev1.Container, policy corev1.RestartPolicy, code int32) bool {
	for _, r := range c.RestartPolicyRules {
		if r.ExitCodes == nil {
			continue
		}
		in := slices.Contains(r.ExitCodes.Values, code)
		if in == (r.ExitCodes.Operator == corev1.ContainerRestartRuleOnExitCodesOpIn) {
			return r.Action == corev1.ContainerRestartRuleActionRestart
		}
	}
	if c.RestartPolicy != nil {
		policy = corev1.RestartPolicy(*c.RestartPolicy)
	}
	return policy == corev1.RestartPolicyAlways || policy == corev1.RestartPolicyOnFailure && code != 0
}
