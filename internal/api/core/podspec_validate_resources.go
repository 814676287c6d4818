package core

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation/field"
	resourcehelper "k8s.io/component-helpers/resource"
)

func isHugePages(name corev1.ResourceName) bool {
	return strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix)
}

// isHugePagesQuota: what a quota may say of huge pages.
func isHugePagesQuota(name corev1.ResourceName) bool {
	return strings.HasPrefix(string(name), "requests."+corev1.ResourceHugePagesPrefix) || strings.HasPrefix(string(name), "limits."+corev1.ResourceHugePagesPrefix)
}

// isNative: names without a domain, and those of kubernetes.io, are Kubernetes' own.
func isNative(name corev1.ResourceName) bool {
	return !strings.Contains(string(name), "/") || strings.Contains(string(name), corev1.ResourceDefaultNamespacePrefix)
}

// isExtended: a resource of someone else's domain, counted in whole units.
func isExtended(name corev1.ResourceName) bool {
	return !isNative(name) && !strings.HasPrefix(string(name), corev1.DefaultResourceRequestsPrefix) && len(qualified(nil, corev1.DefaultResourceRequestsPrefix+string(name))) == 0
}

// isOvercommittable: what may be promised to more than it suffices for.
func isOvercommittable(name corev1.ResourceName) bool { return isNative(name) && !isHugePages(name) }

var standardResources = map[corev1.ResourceName]bool{
	corev1.ResourceCPU: true, corev1.ResourceMemory: true, corev1.ResourceEphemeralStorage: true, corev1.ResourceStorage: true, corev1.ResourcePods: true,
	corev1.ResourceRequestsCPU: true, corev1.ResourceRequestsMemory: true, corev1.ResourceRequestsEphemeralStorage: true,
	corev1.ResourceLimitsCPU: true, corev1.ResourceLimitsMemory: true, corev1.ResourceLimitsEphemeralStorage: true,
	corev1.ResourceQuotas: true, corev1.ResourceServices: true, corev1.ResourceReplicationControllers: true, corev1.ResourceSecrets: true,
	corev1.ResourceConfigMaps: true, corev1.ResourcePersistentVolumeClaims: true, corev1.ResourceRequestsStorage: true,
	corev1.ResourceServicesNodePorts: true, corev1.ResourceServicesLoadBalancers: true,
}

// resourceName checks the name of any resource.
func resourceName(name corev1.ResourceName, p *field.Path) field.ErrorList {
	errs := qualified(p, string(name))
	if len(errs) == 0 && !strings.Contains(string(name), "/") && !standardResources[name] && !isHugePages(name) && !isHugePagesQuota(name) {
		errs = append(errs, field.Invalid(p, string(name), "must be a standard resource type or fully qualified"))
	}
	return errs
}

func containerResourceName(name corev1.ResourceName, p *field.Path) field.ErrorList {
	errs := resourceName(name, p)
	switch {
	case !strings.Contains(string(name), "/"):
		if name != corev1.ResourceCPU && name != corev1.ResourceMemory && name != corev1.ResourceEphemeralStorage && !isHugePages(name) {
			errs = append(errs, field.Invalid(p, string(name), "must be a standard resource for containers"))
		}
	case !isNative(name) && !isExtended(name):
		errs = append(errs, field.Invalid(p, string(name), "doesn't follow extended resource name standard"))
	}
	return errs
}

var wholeResources = map[corev1.ResourceName]bool{
	corev1.ResourcePods: true, corev1.ResourceQuotas: true, corev1.ResourceServices: true, corev1.ResourceReplicationControllers: true, corev1.ResourceSecrets: true,
	corev1.ResourceConfigMaps: true, corev1.ResourcePersistentVolumeClaims: true, corev1.ResourceServicesNodePorts: true, corev1.ResourceServicesLoadBalancers: true,
}

// quantity checks the amount of a resource.
func quantity(name corev1.ResourceName, q resource.Quantity, p *field.Path) (errs field.ErrorList) {
	if q.Sign() < 0 {
		errs = append(errs, field.Invalid(p, q.String(), notNegative))
	}
	if (wholeResources[name] || isExtended(name)) && q.MilliValue()%1000 != 0 {
		errs = append(errs, field.Invalid(p, q.String(), "must be an integer"))
	}
	return errs
}

// sorted returns the names of a list in a stable order, so that errors come in one too.
func sorted(list corev1.ResourceList) []corev1.ResourceName {
	return slices.Sorted(maps.Keys(list))
}

// validateResources checks the requirements of a container; claims are the names
// of the pod's resource claims.
func validateResources(r *corev1.ResourceRequirements, p *field.Path, claims map[string]bool) (errs field.ErrorList) {
	limits, requests := p.Child("limits"), p.Child("requests")
	huge, plain := false, false
	check := func(list corev1.ResourceList, lp *field.Path) {
		for _, name := range sorted(list) {
			q, kp := list[name], lp.Key(string(name))
			errs = append(errs, containerResourceName(name, kp)...)
			errs = append(errs, quantity(name, q, kp)...)
			switch {
			case isHugePages(name):
				huge = true
				if size, err := resource.ParseQuantity(strings.TrimPrefix(string(name), corev1.ResourceHugePagesPrefix)); err != nil || size.Sign() <= 0 || size.MilliValue()%1000 != 0 {
					errs = append(errs, field.Invalid(kp, string(name), "must name a page size that is a positive integer"))
				} else if q.Value()%size.Value() != 0 {
					errs = append(errs, field.Invalid(kp, q.String(), fmt.Sprintf("%s is not positive integer multiple of %s", q.String(), name)))
				}
			case name == corev1.ResourceCPU || name == corev1.ResourceMemory:
				plain = true
			}
		}
	}
	check(r.Limits, limits)
	check(r.Requests, requests)
	for _, name := range sorted(r.Requests) {
		request := r.Requests[name]
		limit, limited := r.Limits[name]
		switch {
		case limited && !isOvercommittable(name) && request.Cmp(limit) != 0:
			errs = append(errs, field.Invalid(requests, request.String(), fmt.Sprintf("must be equal to %s limit of %s", name, limit.String())))
		case limited && request.Cmp(limit) > 0:
			errs = append(errs, field.Invalid(requests, request.String(), fmt.Sprintf("must be less than or equal to %s limit of %s", name, limit.String())))
		case !limited && !isOvercommittable(name):
			errs = append(errs, field.Required(limits, "Limit must be set for non overcommitable resources"))
		}
	}
	if huge && !plain {
		errs = append(errs, field.Forbidden(p, "HugePages require cpu or memory"))
	}
	seen := map[string]bool{}
	for i, c := range r.Claims {
		cp, key := p.Child("claims").Index(i), c.Name
		if c.Request != "" {
			errs = append(errs, label(cp.Child("request"), c.Request)...)
			key += "/" + c.Request
		}
		switch {
		case c.Name == "":
			errs = append(errs, field.Required(cp, ""))
		case seen[key]:
			errs = append(errs, field.Duplicate(cp, key))
		case !claims[c.Name]:
			missing := field.NotFound(cp, c.Name)
			missing.Detail = "must be one of the names in pod.spec.resourceClaims which is empty"
			if len(claims) > 0 {
				missing.Detail = "must be one of the names in pod.spec.resourceClaims: " + strings.Join(slices.Sorted(maps.Keys(claims)), ", ")
			}
			errs = append(errs, missing)
		}
		seen[key] = true
	}
	return errs
}

func (v *specValidator) validateResizePolicy(list []corev1.ContainerResizePolicy, p *field.Path) (errs field.ErrorList) {
	for i, r := range list {
		errs = append(errs, oneOf(p, r.ResourceName, corev1.ResourceCPU, corev1.ResourceMemory)...)
		if slices.ContainsFunc(list[:i], func(o corev1.ContainerResizePolicy) bool { return o.ResourceName == r.ResourceName }) {
			errs = append(errs, field.Duplicate(p.Index(i), r.ResourceName))
		}
		errs = append(errs, oneOf(p, r.RestartPolicy, corev1.NotRequired, corev1.RestartContainer)...)
		if v.spec.RestartPolicy == corev1.RestartPolicyNever && r.RestartPolicy == corev1.RestartContainer {
			errs = append(errs, field.Invalid(p, r.RestartPolicy, "must be 'NotRequired' when `restartPolicy` is 'Never'"))
		}
	}
	return errs
}

// validatePodResources checks the requirements of the pod as a whole (KEP-2837).
func (v *specValidator) validatePodResources() (errs field.ErrorList) {
	r, p := v.spec.Resources, v.path.Child("resources")
	if r == nil {
		return nil
	}
	if len(r.Claims) > 0 {
		errs = append(errs, field.Forbidden(p.Child("claims"), "claims cannot be set for Resources at pod-level"))
	}
	for _, list := range []struct {
		path *field.Path
		list corev1.ResourceList
	}{{p.Child("limits"), r.Limits}, {p.Child("requests"), r.Requests}} {
		for _, name := range sorted(list.list) {
			if !isPodLevelResource(name) {
				errs = append(errs, field.NotSupported(list.path.Key(string(name)), string(name), []string{string(corev1.ResourceCPU), corev1.ResourceHugePagesPrefix, string(corev1.ResourceMemory)}))
			}
		}
	}
	errs = append(errs, validateResources(&corev1.ResourceRequirements{Limits: r.Limits, Requests: r.Requests}, p, nil)...)
	pod := &corev1.Pod{Spec: *v.spec}
	sum := resourcehelper.AggregateContainerRequests(pod, resourcehelper.PodResourcesOptions{})
	for _, name := range sorted(r.Requests) {
		request, containers := r.Requests[name], sum[name]
		if isPodLevelResource(name) && containers.Cmp(request) > 0 {
			errs = append(errs, field.Invalid(p.Child("requests").Key(string(name)), request.String(), fmt.Sprintf("must be greater than or equal to aggregate container requests of %s", containers.String())))
		}
	}
	for _, name := range sorted(r.Limits) {
		limit := r.Limits[name]
		v.eachContainer(func(c *corev1.Container, cp *field.Path) {
			if l, ok := c.Resources.Limits[name]; ok && l.Cmp(limit) > 0 {
				errs = append(errs, field.Invalid(cp.Child("resources", "limits").Key(string(name)), l.String(), fmt.Sprintf("must be less than or equal to pod limits of %s", limit.String())))
			}
		})
	}
	return errs
}
