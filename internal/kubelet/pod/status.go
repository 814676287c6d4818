package pod

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// idPrefix is the scheme of container ids in the API.
const idPrefix = "proa://"

func trimID(id string) string {
	_, after, ok := strings.Cut(id, "://")
	if !ok {
		return id
	}
	return after
}

// status computes the pod's status from what is known.
func (s *state) status(hostIPs []string, now time.Time) corev1.PodStatus {
	old := &s.pod.Status
	st := corev1.PodStatus{
		ObservedGeneration: s.pod.Generation,
		NominatedNodeName:  old.NominatedNodeName,
		Resize:             old.Resize, ResourceClaimStatuses: old.ResourceClaimStatuses,
		ExtendedResourceClaimStatus:          old.ExtendedResourceClaimStatus,
		NodeAllocatableResourceClaimStatuses: old.NodeAllocatableResourceClaimStatuses,
		VolumeHealth:                         old.VolumeHealth,
		Reason:                               old.Reason, Message: old.Message,
		QOSClass:  cmp.Or(old.QOSClass, QOS(s.pod)),
		StartTime: &metav1.Time{Time: s.startTime.Truncate(time.Second)},
	}
	if old.StartTime != nil {
		st.StartTime = old.StartTime
	}
	if s.rejected != nil {
		st.Phase, st.Reason, st.Message = corev1.PodFailed, s.rejected.Reason, "Pod was rejected: "+s.rejected.Message
		st.Conditions = slices.Clone(old.Conditions)
		return st
	}
	s.addresses(&st, hostIPs)
	st.InitContainerStatuses = s.containerStatuses(s.inits, old.InitContainerStatuses)
	st.ContainerStatuses = s.containerStatuses(s.apps, old.ContainerStatuses)
	st.EphemeralContainerStatuses = s.containerStatuses(s.ephemeral, old.EphemeralContainerStatuses)
	st.Phase = s.phase(&st)
	if s.kill != nil && s.kill.failed {
		st.Reason, st.Message = s.kill.reason, s.kill.message
	}
	if old.Phase == corev1.PodSucceeded || old.Phase == corev1.PodFailed {
		st.Phase = old.Phase
	}
	if st.Phase == corev1.PodSucceeded || st.Phase == corev1.PodFailed {
		// Nothing runs: what never came to run cannot be ready.
		for _, l := range [][]corev1.ContainerStatus{st.InitContainerStatuses, st.ContainerStatuses} {
			for i := range l {
				l[i].Ready = l[i].Ready && l[i].State.Terminated != nil && l[i].State.Terminated.ExitCode == 0
			}
		}
	}
	s.conditions(&st, now)
	return st
}

func (s *state) addresses(st *corev1.PodStatus, hostIPs []string) {
	for _, ip := range hostIPs {
		st.HostIPs = append(st.HostIPs, corev1.HostIP{IP: ip})
	}
	if len(hostIPs) > 0 {
		st.HostIP = hostIPs[0]
	}
	var ips []string
	if s.sandbox != nil {
		ips = s.sandbox.ips
	}
	if s.pod.Spec.HostNetwork && s.sandbox != nil {
		ips = hostIPs
	}
	if len(ips) == 0 && (s.finished || s.kill != nil || s.sandbox != nil) {
		st.PodIP, st.PodIPs = s.pod.Status.PodIP, s.pod.Status.PodIPs
		return
	}
	for _, ip := range ips {
		st.PodIPs = append(st.PodIPs, corev1.PodIP{IP: ip})
	}
	if len(ips) > 0 {
		st.PodIP = ips[0]
	}
}

func (s *state) containerStatuses(list []*container, old []corev1.ContainerStatus) []corev1.ContainerStatus {
	if len(list) == 0 {
		return nil
	}
	out := make([]corev1.ContainerStatus, 0, len(list))
	for _, c := range list {
		var prev *corev1.ContainerStatus
		for i := range old {
			if old[i].Name == c.name {
				prev = &old[i]
			}
		}
		out = append(out, s.containerStatus(c, prev))
	}
	return out
}

func (s *state) containerStatus(c *container, old *corev1.ContainerStatus) corev1.ContainerStatus {
	cs := corev1.ContainerStatus{Name: c.name, Image: c.spec.Image}
	no := false
	cs.Started = &no
	if c.kind == kindEphemeral {
		cs.Started = nil
	}
	i := c.last()
	if i != nil && i.state == runtimeapi.ContainerState_CONTAINER_CREATED {
		i = nil
		if len(c.instances) > 1 {
			i = c.instances[1]
		}
	}
	waiting := c.waiting
	if waiting == nil {
		waiting = s.defaultWaiting(c)
	}
	if i == nil {
		cs.State.Waiting = waiting
		return cs
	}
	cs.RestartCount = int32(i.attempt)
	cs.Image, cs.ImageID = cmp.Or(i.image, c.spec.Image), cmp.Or(i.imageRef, i.imageID)
	if i.id != "" {
		cs.ContainerID = idPrefix + i.id
	}
	running := i.running() && !c.hooking
	switch {
	case running:
		started, ready := c.started, c.ready
		cs.State.Running = &corev1.ContainerStateRunning{StartedAt: unixTime(i.started)}
		cs.Started = &started
		cs.Ready = ready && started && (c.kind == kindApp || c.kind == kindSidecar)
		cs.Resources, cs.AllocatedResources = resourcesOf(c), requestsOf(c)
		if u := i.user.GetLinux(); u != nil {
			cs.User = &corev1.ContainerUser{Linux: &corev1.LinuxContainerUser{UID: u.Uid, GID: u.Gid, SupplementalGroups: u.SupplementalGroups}}
		}
	case i.exited() && (c.waiting != nil || s.redo(c, i)):
		cs.State.Waiting = waiting
		cs.LastTerminationState.Terminated = terminated(i)
	case i.exited():
		cs.State.Terminated = terminated(i)
		if c.kind == kindInit {
			cs.Ready = i.exitCode == 0
		}
		if c.kind == kindEphemeral {
			cs.Ready = false
		}
	default:
		cs.State.Waiting = waiting
	}
	if cs.LastTerminationState.Terminated == nil {
		for _, prev := range c.instances {
			if prev != i && prev.exited() && prev.attempt < i.attempt {
				cs.LastTerminationState.Terminated = terminated(prev)
				break
			}
		}
	}
	if cs.LastTerminationState.Terminated == nil && old != nil && old.ContainerID == cs.ContainerID {
		cs.LastTerminationState = old.LastTerminationState
	}
	cs.VolumeMounts = mountStatuses(c)
	return cs
}

// redo reports that an exited instance of an earlier sandbox is being replaced.
func (s *state) redo(c *container, i *instance) bool {
	return s.kill == nil && !s.finished && s.sandbox != nil && i.sandbox != s.sandbox.id && c.kind != kindEphemeral && s.shouldRestart(c, i)
}

func (s *state) defaultWaiting(c *container) *corev1.ContainerStateWaiting {
	reason := "ContainerCreating"
	if len(s.inits) > 0 && c.kind != kindEphemeral {
		reason = "PodInitializing"
	}
	return &corev1.ContainerStateWaiting{Reason: reason}
}

func unixTime(ns int64) metav1.Time {
	if ns == 0 {
		return metav1.Time{}
	}
	return metav1.Time{Time: time.Unix(0, ns).Truncate(time.Second)}
}

func terminated(i *instance) *corev1.ContainerStateTerminated {
	t := &corev1.ContainerStateTerminated{
		ExitCode: i.exitCode, Reason: i.reason, Message: i.message,
		StartedAt: unixTime(i.started), FinishedAt: unixTime(i.finished),
	}
	if t.Reason == "" {
		t.Reason = "Completed"
		if i.exitCode != 0 {
			t.Reason = "Error"
		}
	}
	if i.id != "" {
		t.ContainerID = idPrefix + i.id
	}
	return t
}

func resourcesOf(c *container) *corev1.ResourceRequirements {
	r := &c.spec.Resources
	if c.applied != nil {
		r = c.applied
	}
	if len(r.Requests) == 0 && len(r.Limits) == 0 {
		return &corev1.ResourceRequirements{}
	}
	return &corev1.ResourceRequirements{Limits: r.Limits, Requests: r.Requests}
}

func requestsOf(c *container) corev1.ResourceList { return c.spec.Resources.Requests }

func mountStatuses(c *container) []corev1.VolumeMountStatus {
	var out []corev1.VolumeMountStatus
	for i := range c.spec.VolumeMounts {
		m := &c.spec.VolumeMounts[i]
		v := corev1.VolumeMountStatus{Name: m.Name, MountPath: m.MountPath, ReadOnly: m.ReadOnly}
		if m.ReadOnly {
			mode := corev1.RecursiveReadOnlyDisabled
			if m.RecursiveReadOnly != nil && *m.RecursiveReadOnly == corev1.RecursiveReadOnlyEnabled {
				mode = corev1.RecursiveReadOnlyEnabled
			}
			v.RecursiveReadOnly = &mode
		}
		out = append(out, v)
	}
	return out
}

// phase follows the documented rules of the pod lifecycle.
func (s *state) phase(st *corev1.PodStatus) corev1.PodPhase {
	ended := true
	for c := range s.all {
		for _, i := range c.instances {
			ended = ended && !i.running()
		}
		ended = ended && c.op == idle
	}
	var running, never, stopped, failed int
	for k := range st.ContainerStatuses {
		switch cs := &st.ContainerStatuses[k]; {
		case cs.State.Running != nil:
			running++
		case cs.State.Terminated != nil:
			stopped++
			if cs.State.Terminated.ExitCode != 0 {
				failed++
			}
		case cs.LastTerminationState.Terminated != nil:
			stopped++
			failed++
		default:
			never++
		}
	}
	initFailed := false
	for k, c := range s.inits {
		if t := st.InitContainerStatuses[k].State.Terminated; c.kind == kindInit && t != nil && t.ExitCode != 0 {
			initFailed = true
		}
	}
	if ended && s.kill != nil && s.kill.failed {
		return corev1.PodFailed
	}
	if ended && (s.finished || s.kill != nil) {
		if failed > 0 || (initFailed && never > 0) {
			return corev1.PodFailed
		}
		if never > 0 {
			if s.kill != nil && !s.finished {
				// Deleted before its containers ran.
				return corev1.PodFailed
			}
			return corev1.PodPending
		}
		return corev1.PodSucceeded
	}
	if never > 0 || !s.initialized && running+stopped == 0 {
		return corev1.PodPending
	}
	return corev1.PodRunning
}

func (s *state) conditions(st *corev1.PodStatus, now time.Time) {
	old := s.pod.Status.Conditions
	gen := s.pod.Generation
	set := func(t corev1.PodConditionType, ok bool, reason, message string) {
		c := corev1.PodCondition{Type: t, Status: corev1.ConditionFalse, Reason: reason, Message: message, ObservedGeneration: gen}
		if ok {
			c.Status = corev1.ConditionTrue
		}
		c.LastTransitionTime = metav1.Time{Time: now.Truncate(time.Second)}
		for i := range old {
			if old[i].Type == t && old[i].Status == c.Status {
				c.LastTransitionTime = old[i].LastTransitionTime
			}
		}
		st.Conditions = append(st.Conditions, c)
	}
	set(corev1.PodReadyToStartContainers, s.sandbox != nil && s.sandbox.ready && (s.pod.Spec.HostNetwork || len(s.sandbox.ips) > 0), "", "")

	succeeded, failed := st.Phase == corev1.PodSucceeded, st.Phase == corev1.PodFailed
	var incomplete []string
	for i, c := range s.inits {
		cs := &st.InitContainerStatuses[i]
		if c.kind == kindSidecar {
			if !s.initialized && (cs.Started == nil || !*cs.Started) {
				incomplete = append(incomplete, c.name)
			}
		} else if !cs.Ready && !s.initialized {
			incomplete = append(incomplete, c.name)
		}
	}
	switch {
	case succeeded:
		set(corev1.PodInitialized, true, "PodCompleted", "")
	case len(incomplete) > 0:
		set(corev1.PodInitialized, false, "ContainersNotInitialized", fmt.Sprintf("containers with incomplete status: %s", incomplete))
	default:
		set(corev1.PodInitialized, true, "", "")
	}

	var unready []string
	for i, c := range s.inits {
		if c.kind == kindSidecar && !st.InitContainerStatuses[i].Ready {
			unready = append(unready, c.name)
		}
	}
	for i := range st.ContainerStatuses {
		if !st.ContainerStatuses[i].Ready {
			unready = append(unready, st.ContainerStatuses[i].Name)
		}
	}
	reason, message, ready := "", "", true
	switch {
	case succeeded:
		ready, reason = false, "PodCompleted"
	case failed:
		ready, reason = false, "PodFailed"
	case len(unready) > 0:
		ready, reason, message = false, "ContainersNotReady", fmt.Sprintf("containers with unready status: %s", unready)
	}
	gateReady, gateReason, gateMessage := ready, reason, message
	if ready {
		var texts []string
		for _, g := range s.pod.Spec.ReadinessGates {
			c := findCondition(old, g.ConditionType)
			if c == nil {
				texts = append(texts, fmt.Sprintf("corresponding condition of pod readiness gate %q does not exist.", g.ConditionType))
			} else if c.Status != corev1.ConditionTrue {
				texts = append(texts, fmt.Sprintf("the status of pod readiness gate %q is not \"True\", but %v", g.ConditionType, c.Status))
			}
		}
		if len(texts) > 0 {
			gateReady, gateReason, gateMessage = false, "ReadinessGatesNotReady", strings.Join(texts, ", ")
		}
	}
	set(corev1.PodReady, gateReady, gateReason, gateMessage)
	set(corev1.ContainersReady, ready, reason, message)
	for i := range old {
		if !ownCondition(old[i].Type) {
			c := old[i]
			if c.Type == corev1.PodScheduled {
				c.ObservedGeneration = gen
			}
			st.Conditions = append(st.Conditions, c)
		}
	}
	if message, waits := s.resizing(); waits {
		reason := ""
		if message != "" {
			reason = corev1.PodReasonError
		}
		set(corev1.PodResizeInProgress, true, reason, message)
	}
	if s.kill != nil && s.kill.failed && s.kill.reason == "Evicted" && findCondition(old, corev1.DisruptionTarget) == nil {
		set(corev1.DisruptionTarget, true, corev1.PodReasonTerminationByKubelet, s.kill.message)
	}
}

// resizing reports whether a running container does not have the resources yet
// that its pod gives it, and what the last attempt to give them ended with.
func (s *state) resizing() (message string, waits bool) {
	for c := range s.all {
		if c.applied == nil || !resourcesChanged(c.applied, &c.spec.Resources) {
			continue
		}
		if i := c.last(); i != nil && i.running() {
			waits = true
			if c.resizeErr != "" {
				message = c.resizeErr
			}
		}
	}
	return message, waits
}

func findCondition(list []corev1.PodCondition, t corev1.PodConditionType) *corev1.PodCondition {
	for i := range list {
		if list[i].Type == t {
			return &list[i]
		}
	}
	return nil
}

// ownCondition reports whether the kubelet writes a condition; all others belong
// to somebody else and are kept.
func ownCondition(t corev1.PodConditionType) bool {
	switch t {
	case corev1.PodReadyToStartContainers, corev1.PodInitialized, corev1.PodReady, corev1.ContainersReady, corev1.PodResizeInProgress:
		return true
	}
	return false
}

// QOS is the class of a pod.
func QOS(pod *corev1.Pod) corev1.PodQOSClass {
	requests, limits := false, false
	guaranteed := true
	look := func(r *corev1.ResourceRequirements) {
		for _, n := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			q, l := positive(r.Requests, n), positive(r.Limits, n)
			requests, limits = requests || q != nil, limits || l != nil
			if l == nil || (q != nil && q.Cmp(*l) != 0) {
				guaranteed = false
			}
		}
	}
	if pod.Spec.Resources != nil && (len(pod.Spec.Resources.Requests) > 0 || len(pod.Spec.Resources.Limits) > 0) {
		look(pod.Spec.Resources)
	} else {
		for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
			for i := range list {
				look(&list[i].Resources)
			}
		}
	}
	switch {
	case !requests && !limits:
		return corev1.PodQOSBestEffort
	case guaranteed:
		return corev1.PodQOSGuaranteed
	}
	return corev1.PodQOSBurstable
}

func positive(l corev1.ResourceList, n corev1.ResourceName) *resource.Quantity {
	if q, ok := l[n]; ok && q.Sign() > 0 {
		return &q
	}
	return nil
}
