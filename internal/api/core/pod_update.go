package core

import (
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

const podUpdates = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`," +
	"`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"

// validatePodUpdate allows the few changes of a pod's spec that Kubernetes does.
func validatePodUpdate(o, old *corev1.Pod) field.ErrorList {
	spec := field.NewPath("spec")
	errs := validatePod(o)
	now, was := &o.Spec, &old.Spec
	if len(now.Containers) != len(was.Containers) {
		return append(errs, field.Forbidden(spec.Child("containers"), "pod updates may not add or remove containers"))
	}
	if len(now.InitContainers) != len(was.InitContainers) {
		return append(errs, field.Forbidden(spec.Child("initContainers"), "pod updates may not add or remove containers"))
	}
	if n := now.ActiveDeadlineSeconds; n != nil && (*n < 0 || *n > math.MaxInt32) {
		return append(errs, field.Invalid(spec.Child("activeDeadlineSeconds"), *n, utilvalidation.InclusiveRangeError(0, math.MaxInt32)))
	}
	if d := was.ActiveDeadlineSeconds; d != nil {
		switch n := now.ActiveDeadlineSeconds; {
		case n == nil:
			return append(errs, field.Invalid(spec.Child("activeDeadlineSeconds"), nil, "must not update from a positive integer to nil value"))
		case *n > *d:
			return append(errs, field.Invalid(spec.Child("activeDeadlineSeconds"), *n, "must be less than or equal to previous value"))
		}
	}
	errs = append(errs, onlyAddedTolerations(now.Tolerations, was.Tolerations, spec.Child("tolerations"))...)
	for i, g := range now.SchedulingGates {
		if !slices.Contains(was.SchedulingGates, g) {
			errs = append(errs, field.Forbidden(spec.Child("schedulingGates").Index(i).Child("name"), fmt.Sprintf("only deletion is allowed, but found new scheduling gate '%s'", g.Name)))
		}
	}
	// With the allowed changes undone the rest must be as it was.
	rest := now.DeepCopy()
	for i := range rest.Containers {
		rest.Containers[i].Image = was.Containers[i].Image
	}
	for i := range rest.InitContainers {
		rest.InitContainers[i].Image = was.InitContainers[i].Image
	}
	rest.ActiveDeadlineSeconds = was.ActiveDeadlineSeconds
	rest.Tolerations, rest.SchedulingGates = was.Tolerations, was.SchedulingGates
	if g := was.TerminationGracePeriodSeconds; g != nil && *g < 0 && rest.TerminationGracePeriodSeconds != nil && *rest.TerminationGracePeriodSeconds == 1 {
		rest.TerminationGracePeriodSeconds = g
	}
	if len(was.SchedulingGates) > 0 { // a gated pod may still be told where to go, within what it allowed (KEP-3838)
		errs = append(errs, onlyNarrowed(now, was, spec)...)
		rest.NodeSelector, rest.Affinity = was.NodeSelector, mergeNodeAffinity(rest.Affinity, was.Affinity)
	}
	if !apiequality.Semantic.DeepEqual(rest, was) {
		errs = append(errs, field.Forbidden(spec, podUpdates+changedFields("spec", *rest, *was)))
	}
	return errs
}

// mergeNodeAffinity returns now with the node affinity of was.
func mergeNodeAffinity(now, was *corev1.Affinity) *corev1.Affinity {
	out := &corev1.Affinity{}
	if now != nil {
		*out = *now
	}
	out.NodeAffinity = nil
	if was != nil {
		out.NodeAffinity = was.NodeAffinity
	}
	if was == nil && *out == (corev1.Affinity{}) {
		return nil
	}
	return out
}

func onlyAddedTolerations(now, was []corev1.Toleration, p *field.Path) field.ErrorList {
	for _, t := range was {
		t.TolerationSeconds = nil
		if !slices.ContainsFunc(now, func(n corev1.Toleration) bool { n.TolerationSeconds = nil; return n == t }) {
			return field.ErrorList{field.Forbidden(p, "existing toleration can not be modified except its tolerationSeconds")}
		}
	}
	return nil
}

// onlyNarrowed: the nodes that a gated pod may go to can become fewer, not others.
func onlyNarrowed(now, was *corev1.PodSpec, spec *field.Path) (errs field.ErrorList) {
	for k, v := range was.NodeSelector {
		if n, ok := now.NodeSelector[k]; !ok || n != v {
			errs = append(errs, field.Invalid(spec.Child("nodeSelector"), now.NodeSelector, "only additions to spec.nodeSelector are allowed (no mutations or deletions)"))
			break
		}
	}
	required := func(s *corev1.PodSpec) []corev1.NodeSelectorTerm {
		if s.Affinity == nil || s.Affinity.NodeAffinity == nil || s.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
			return nil
		}
		return s.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms
	}
	before, after := required(was), required(now)
	if len(before) == 0 {
		return errs
	}
	p := spec.Child("affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms")
	if len(after) != len(before) {
		return append(errs, field.Invalid(p, after, "no additions/deletions to non-empty NodeSelectorTerms list are allowed"))
	}
	for i := range before {
		b, a := &before[i], &after[i]
		// Terms are alternatives: an empty one matched nothing, so it cannot be narrowed.
		if len(b.MatchExpressions)+len(b.MatchFields) == 0 && len(a.MatchExpressions)+len(a.MatchFields) > 0 ||
			!prefixEqual(a.MatchExpressions, b.MatchExpressions) || !prefixEqual(a.MatchFields, b.MatchFields) {
			errs = append(errs, field.Invalid(p.Index(i), *a, "only additions are allowed (no mutations or deletions)"))
		}
	}
	return errs
}

func prefixEqual(now, was []corev1.NodeSelectorRequirement) bool {
	return len(now) >= len(was) && apiequality.Semantic.DeepEqual(now[:len(was)], was)
}

// ValidatePodEphemeralContainers checks a write of /ephemeralcontainers: they can only be added.
func ValidatePodEphemeralContainers(o, old *corev1.Pod) field.ErrorList {
	p := field.NewPath("spec", "ephemeralContainers")
	errs := validatePod(o)
	for i := range old.Spec.EphemeralContainers {
		was := &old.Spec.EphemeralContainers[i]
		at := slices.IndexFunc(o.Spec.EphemeralContainers, func(c corev1.EphemeralContainer) bool { return c.Name == was.Name })
		switch {
		case at < 0:
			errs = append(errs, field.Forbidden(p, fmt.Sprintf("existing ephemeral containers %q may not be removed\n", was.Name)))
		case !apiequality.Semantic.DeepEqual(&o.Spec.EphemeralContainers[at], was):
			errs = append(errs, field.Forbidden(p, fmt.Sprintf("existing ephemeral containers %q may not be changed\n", was.Name)))
		}
	}
	return errs
}

// ValidatePodResize checks a write of /resize (KEP-1287): cpu and memory of
// containers may change, as long as the pod's quality of service class does not.
func ValidatePodResize(o, old *corev1.Pod) field.ErrorList {
	spec := field.NewPath("spec")
	errs := validatePod(o)
	if o.Spec.OS != nil && o.Spec.OS.Name == corev1.Windows {
		errs = append(errs, field.Forbidden(field.NewPath(""), "windows pods cannot be resized"))
	}
	if len(o.Spec.Containers) != len(old.Spec.Containers) || len(o.Spec.InitContainers) != len(old.Spec.InitContainers) {
		return append(errs, field.Forbidden(spec, "pod resize may not add or remove containers"))
	}
	if QOSClass(o) != QOSClass(old) {
		errs = append(errs, field.Invalid(field.NewPath("status", "qosClass"), QOSClass(o), "Pod QOS Class may not change as a result of resizing"))
	}
	rest := o.Spec.DeepCopy()
	resize := func(now, was []corev1.Container, name string, allowed func(*corev1.Container) bool) {
		for i := range now {
			p := spec.Child(name).Index(i).Child("resources")
			if now[i].Name != was[i].Name {
				continue
			}
			r, w := &now[i].Resources, &was[i].Resources
			if !allowed(&was[i]) {
				continue
			}
			for _, list := range []struct {
				name     string
				now, was corev1.ResourceList
			}{{"limits", r.Limits, w.Limits}, {"requests", r.Requests, w.Requests}} {
				for _, resource := range sorted(list.was) {
					if _, ok := list.now[resource]; !ok && (resource == corev1.ResourceCPU || resource == corev1.ResourceMemory) {
						errs = append(errs, field.Forbidden(p.Child(list.name), fmt.Sprintf("resource %s cannot be removed", list.name)))
						break
					}
				}
			}
			undoResize(&r.Limits, w.Limits)
			undoResize(&r.Requests, w.Requests)
		}
	}
	resize(rest.Containers, old.Spec.Containers, "containers", func(*corev1.Container) bool { return true })
	resize(rest.InitContainers, old.Spec.InitContainers, "initContainers", isSidecar)
	if !apiequality.Semantic.DeepEqual(*rest, old.Spec) {
		errs = append(errs, field.Forbidden(spec, "only cpu and memory resources are mutable"+changedFields("spec", *rest, old.Spec)))
	}
	return errs
}

// undoResize gives cpu and memory of a list the values they had.
func undoResize(now *corev1.ResourceList, was corev1.ResourceList) {
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		q, had := was[name]
		switch {
		case had && *now == nil:
			*now = corev1.ResourceList{name: q}
		case had:
			(*now)[name] = q
		default:
			delete(*now, name)
		}
	}
}

// changedFields says which fields of two structs differ, for the message of a
// refused update: "\nchanged: spec.hostname, spec.volumes".
func changedFields(path string, now, was any) string {
	a, b := reflect.ValueOf(now), reflect.ValueOf(was)
	var names []string
	for i := range a.NumField() {
		if apiequality.Semantic.DeepEqual(a.Field(i).Interface(), b.Field(i).Interface()) {
			continue
		}
		f := a.Type().Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" && f.Anonymous {
			if rest, ok := strings.CutPrefix(changedFields(path, a.Field(i).Interface(), b.Field(i).Interface()), "\nchanged: "); ok {
				names = append(names, rest)
			}
			continue
		}
		names = append(names, path+"."+name)
	}
	if len(names) == 0 {
		return ""
	}
	return "\nchanged: " + strings.Join(names, ", ")
}
