package namespace

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// content is what emptying a namespace has left and what went wrong.
type content struct {
	remaining  map[schema.GroupVersionResource]int
	finalizers map[string]int // how many objects wait for each
	discovery  error
	failed     []string
}

func (c *content) left() int {
	n := 0
	for _, k := range c.remaining {
		n += k
	}
	return n
}

// conditions says in kube-controller-manager's words why a namespace is not gone yet.
func (c *content) conditions() []corev1.NamespaceCondition {
	condition := func(t corev1.NamespaceConditionType, failed bool, reason, message, okReason, okMessage string) corev1.NamespaceCondition {
		if failed {
			return corev1.NamespaceCondition{Type: t, Status: corev1.ConditionTrue, Reason: reason, Message: message}
		}
		return corev1.NamespaceCondition{Type: t, Status: corev1.ConditionFalse, Reason: okReason, Message: okMessage}
	}
	var resources, finalizers []string
	for gvr, n := range c.remaining {
		if n > 0 {
			resources = append(resources, fmt.Sprintf("%s.%s has %d resource instances", gvr.Resource, gvr.Group, n))
		}
	}
	slices.Sort(resources)
	for _, f := range slices.Sorted(maps.Keys(c.finalizers)) {
		finalizers = append(finalizers, fmt.Sprintf("%s in %d resource instances", f, c.finalizers[f]))
	}
	discovery := ""
	if c.discovery != nil {
		discovery = c.discovery.Error()
	}
	return []corev1.NamespaceCondition{
		condition(corev1.NamespaceDeletionDiscoveryFailure, c.discovery != nil, "DiscoveryFailed", discovery, "ResourcesDiscovered", "All resources successfully discovered"),
		condition(corev1.NamespaceDeletionGVParsingFailure, false, "", "", "ParsedGroupVersions", "All legacy kube types successfully parsed"),
		condition(corev1.NamespaceDeletionContentFailure, len(c.failed) > 0, "ContentDeletionFailed",
			fmt.Sprintf("Failed to delete all resource types, %d remaining: %s", len(c.failed), strings.Join(c.failed, ", ")),
			"ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
		condition(corev1.NamespaceContentRemaining, len(resources) > 0, "SomeResourcesRemain", "Some resources are remaining: "+strings.Join(resources, ", "), "ContentRemoved", "All content successfully removed"),
		condition(corev1.NamespaceFinalizersRemaining, len(finalizers) > 0, "SomeFinalizersRemain",
			"Some content in the namespace has finalizers remaining: "+strings.Join(finalizers, ", "), "ContentHasNoFinalizers", "All content-preserving finalizers finished"),
	}
}

// setConditions reports whether it changed the conditions of a namespace.
func setConditions(ns *corev1.Namespace, want []corev1.NamespaceCondition, now time.Time) bool {
	changed := false
	for _, w := range want {
		w.LastTransitionTime = metav1.NewTime(now.Truncate(time.Second))
		i := slices.IndexFunc(ns.Status.Conditions, func(c corev1.NamespaceCondition) bool { return c.Type == w.Type })
		switch {
		case i < 0:
			ns.Status.Conditions = append(ns.Status.Conditions, w)
			changed = true
		case ns.Status.Conditions[i].Status != w.Status || ns.Status.Conditions[i].Reason != w.Reason || ns.Status.Conditions[i].Message != w.Message:
			if ns.Status.Conditions[i].Status == w.Status {
				w.LastTransitionTime = ns.Status.Conditions[i].LastTransitionTime
			}
			ns.Status.Conditions[i] = w
			changed = true
		}
	}
	return changed
}
