package core

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/proa-dev/proa/internal/api/rules"
)

// nodeLost is the reason that a pod has whose node is not heard of any more.
const nodeLost = "NodeLost"

func orNone(s string) string {
	if s == "" {
		return rules.None
	}
	return s
}

// restarts counts how often containers were started again, and when that was last so.
type restarts struct {
	count int
	last  metav1.Time
}

func (r *restarts) add(c *corev1.ContainerStatus) {
	r.count += int(c.RestartCount)
	if t := c.LastTerminationState.Terminated; t != nil && r.last.Before(&t.FinishedAt) {
		r.last = t.FinishedAt
	}
}

func (r *restarts) String() string {
	if r.count == 0 || r.last.IsZero() {
		return strconv.Itoa(r.count)
	}
	return fmt.Sprintf("%d (%s ago)", r.count, duration.HumanDuration(time.Since(r.last.Time)))
}

// podRow words a pod's state as users of kubectl know it.
func podRow(o *corev1.Pod) []any {
	st := &o.Status
	ready, total := 0, len(o.Spec.Containers)
	for i := range o.Spec.InitContainers {
		if isSidecar(&o.Spec.InitContainers[i]) {
			total++
		}
	}
	reason := string(st.Phase)
	if st.Reason != "" {
		reason = st.Reason
	}
	for i := range st.Conditions {
		if c := &st.Conditions[i]; c.Type == corev1.PodScheduled && c.Reason == corev1.PodReasonSchedulingGated {
			reason = corev1.PodReasonSchedulingGated
		}
	}
	var all, sidecars restarts
	initializing := false
	for i := range st.InitContainerStatuses {
		c := &st.InitContainerStatuses[i]
		sidecar := slices.ContainsFunc(o.Spec.InitContainers, func(s corev1.Container) bool { return s.Name == c.Name && isSidecar(&s) })
		all.add(c)
		if sidecar {
			sidecars.add(c)
		}
		t, w := c.State.Terminated, c.State.Waiting
		if t != nil && t.ExitCode == 0 {
			continue
		}
		if sidecar && c.Started != nil && *c.Started {
			if c.Ready {
				ready++
			}
			continue
		}
		switch {
		case t != nil:
			reason = "Init:" + terminatedReason(t)
		case w != nil && w.Reason != "" && w.Reason != "PodInitializing":
			reason = "Init:" + w.Reason
		default:
			reason = fmt.Sprintf("Init:%d/%d", i, len(o.Spec.InitContainers))
		}
		initializing = true
		break
	}
	if !initializing || hasCondition(st, corev1.PodInitialized) {
		all = sidecars
		running := false
		for i := len(st.ContainerStatuses) - 1; i >= 0; i-- {
			c := &st.ContainerStatuses[i]
			all.add(c)
			t, w := c.State.Terminated, c.State.Waiting
			switch {
			case w != nil && w.Reason != "":
				reason = w.Reason
			case t != nil:
				reason = terminatedReason(t)
			case c.Ready && c.State.Running != nil:
				running = true
				ready++
			}
		}
		if reason == "Completed" && running {
			reason = "NotReady"
			if hasCondition(st, corev1.PodReady) {
				reason = "Running"
			}
		}
	}
	switch {
	case o.DeletionTimestamp == nil:
	case st.Reason == nodeLost:
		reason = "Unknown"
	case !ended(st.Phase):
		reason = "Terminating"
	}
	ip := st.PodIP
	if len(st.PodIPs) > 0 {
		ip = st.PodIPs[0].IP
	}
	gates := rules.None
	if n := len(o.Spec.ReadinessGates); n > 0 {
		passed := 0
		for _, g := range o.Spec.ReadinessGates {
			if hasCondition(st, g.ConditionType) {
				passed++
			}
		}
		gates = fmt.Sprintf("%d/%d", passed, n)
	}
	return []any{o.Name, fmt.Sprintf("%d/%d", ready, total), reason, all.String(), rules.Created(o), orNone(ip), orNone(o.Spec.NodeName), orNone(st.NominatedNodeName), gates}
}

func terminatedReason(t *corev1.ContainerStateTerminated) string {
	switch {
	case t.Reason != "":
		return t.Reason
	case t.Signal != 0:
		return fmt.Sprintf("Signal:%d", t.Signal)
	}
	return fmt.Sprintf("ExitCode:%d", t.ExitCode)
}

func hasCondition(st *corev1.PodStatus, kind corev1.PodConditionType) bool {
	return slices.ContainsFunc(st.Conditions, func(c corev1.PodCondition) bool { return c.Type == kind && c.Status == corev1.ConditionTrue })
}
