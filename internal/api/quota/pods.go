package quota

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	helper "k8s.io/component-helpers/resource"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/core"
)

const (
	requestsPrefix  = corev1.DefaultResourceRequestsPrefix
	deviceClassName = "deviceclass.resource.kubernetes.io/" // of an implicit extended resource (KEP-5004)
)

var podNames = []corev1.ResourceName{"count/pods", corev1.ResourcePods,
	corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage,
	corev1.ResourceRequestsCPU, corev1.ResourceRequestsMemory, corev1.ResourceRequestsEphemeralStorage,
	corev1.ResourceLimitsCPU, corev1.ResourceLimitsMemory, corev1.ResourceLimitsEphemeralStorage}

// required are the names that each container has to state when a quota limits them.
var required = []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceRequestsCPU, corev1.ResourceRequestsMemory,
	corev1.ResourceLimitsCPU, corev1.ResourceLimitsMemory}

type pods struct{ now func() time.Time }

func (pods) Charges(w Write) bool {
	switch w.Subresource {
	case "":
		if !w.Update {
			return true
		}
		now, ok1 := w.Object.(*corev1.Pod)
		was, ok2 := w.Old.(*corev1.Pod)
		return ok1 && ok2 && bounded(now) != bounded(was)
	case "resize":
		return w.Update
	}
	return false
}

func (pods) Counts(names []corev1.ResourceName) (out []corev1.ResourceName) {
	for _, name := range names {
		if slices.Contains(podNames, name) || strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix) ||
			strings.HasPrefix(string(name), corev1.ResourceRequestsHugePagesPrefix) || extendedRequest(name) {
			out = append(out, name)
		}
	}
	return out
}

// native names belong to Kubernetes: without a domain, or one of kubernetes.io.
func native(name corev1.ResourceName) bool {
	return !strings.Contains(string(name), "/") || strings.Contains(string(name), corev1.ResourceDefaultNamespacePrefix)
}

// extendedRequest: extended resources cannot be overcommitted, so only their requests are limited.
func extendedRequest(name corev1.ResourceName) bool {
	rest, ok := strings.CutPrefix(string(name), requestsPrefix)
	return ok && (!native(name) || strings.HasPrefix(rest, deviceClassName))
}

func (pods) InScope(s corev1.ScopedResourceSelectorRequirement, obj api.Object) (bool, error) {
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return false, fmt.Errorf("expect *v1.Pod, got %T", obj)
	}
	switch s.ScopeName {
	case corev1.ResourceQuotaScopeTerminating:
		return bounded(pod), nil
	case corev1.ResourceQuotaScopeNotTerminating:
		return !bounded(pod), nil
	case corev1.ResourceQuotaScopeBestEffort:
		return bestEffort(pod), nil
	case corev1.ResourceQuotaScopeNotBestEffort:
		return !bestEffort(pod), nil
	case corev1.ResourceQuotaScopePriorityClass:
		if pod.Spec.PriorityClassName == "" {
			return hasValue(s)
		}
		return hasValue(s, pod.Spec.PriorityClassName)
	case corev1.ResourceQuotaScopeCrossNamespacePodAffinity:
		return crossesNamespaces(pod.Spec.Affinity), nil
	}
	return false, nil
}

// bounded: the pod ends by itself, after a time.
func bounded(pod *corev1.Pod) bool {
	return pod.Spec.ActiveDeadlineSeconds != nil && *pod.Spec.ActiveDeadlineSeconds >= 0
}

func bestEffort(pod *corev1.Pod) bool {
	if c := pod.Status.QOSClass; c != "" {
		return c == corev1.PodQOSBestEffort
	}
	return core.QOSClass(pod) == corev1.PodQOSBestEffort
}

func crossesNamespaces(a *corev1.Affinity) bool {
	if a == nil {
		return false
	}
	crosses := func(t corev1.PodAffinityTerm) bool { return len(t.Namespaces) > 0 || t.NamespaceSelector != nil }
	weighted := func(t corev1.WeightedPodAffinityTerm) bool { return crosses(t.PodAffinityTerm) }
	if p := a.PodAffinity; p != nil && (slices.ContainsFunc(p.RequiredDuringSchedulingIgnoredDuringExecution, crosses) ||
		slices.ContainsFunc(p.PreferredDuringSchedulingIgnoredDuringExecution, weighted)) {
		return true
	}
	p := a.PodAntiAffinity
	return p != nil && (slices.ContainsFunc(p.RequiredDuringSchedulingIgnoredDuringExecution, crosses) ||
		slices.ContainsFunc(p.PreferredDuringSchedulingIgnoredDuringExecution, weighted))
}

func (pods) Require(names []corev1.ResourceName, obj api.Object) error {
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return fmt.Errorf("expect *v1.Pod, got %T", obj)
	}
	if helper.IsPodLevelResourcesSet(pod) {
		return nil
	}
	missing := map[corev1.ResourceName][]string{}
	for _, list := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range list {
			has := compute(list[i].Resources.Requests, list[i].Resources.Limits)
			for _, name := range names {
				if _, ok := has[name]; !ok && slices.Contains(required, name) && !slices.Contains(missing[name], list[i].Name) {
					missing[name] = append(missing[name], list[i].Name)
				}
			}
		}
	}
	if len(missing) == 0 {
		return nil
	}
	var parts []string
	for name, containers := range missing {
		slices.Sort(containers)
		parts = append(parts, fmt.Sprintf("%s for: %s", name, strings.Join(containers, ",")))
	}
	slices.Sort(parts)
	return fmt.Errorf("must specify %s", strings.Join(parts, "; "))
}

// compute is what requests and limits take under the names of a quota.
func compute(requests, limits corev1.ResourceList) corev1.ResourceList {
	out := corev1.ResourceList{corev1.ResourcePods: one()}
	for name, q := range requests {
		switch {
		case name == corev1.ResourceCPU || name == corev1.ResourceMemory || name == corev1.ResourceEphemeralStorage ||
			strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix):
			out[name] = q
			out[requestsPrefix+name] = q
		case strings.HasPrefix(string(name), deviceClassName) || !native(name) && !strings.HasPrefix(string(name), requestsPrefix):
			out[requestsPrefix+name] = q
		}
	}
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage} {
		if q, ok := limits[name]; ok {
			out["limits."+name] = q
		}
	}
	return out
}

func (p pods) Usage(obj api.Object) corev1.ResourceList {
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return nil
	}
	out := corev1.ResourceList{"count/pods": one()}
	if p.ended(pod) {
		return out
	}
	opts := helper.PodResourcesOptions{UseStatusResources: true}
	addTo(out, compute(helper.PodRequests(pod, opts), helper.PodLimits(pod, opts)))
	return out
}

// ended: a pod that is over, or whose node does not say that it is, holds nothing any more.
func (p pods) ended(pod *corev1.Pod) bool {
	if pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded {
		return true
	}
	at, over := Expiry(pod)
	return over && p.now().After(at)
}

// Expiry is when a pod that is being deleted stops to be charged even if its
// node does not confirm its end; false: it is not being deleted.
func Expiry(pod *corev1.Pod) (time.Time, bool) {
	if pod.DeletionTimestamp == nil || pod.DeletionGracePeriodSeconds == nil {
		return time.Time{}, false
	}
	return pod.DeletionTimestamp.Add(time.Duration(*pod.DeletionGracePeriodSeconds) * time.Second), true
}
