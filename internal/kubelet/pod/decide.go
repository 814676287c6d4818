package pod

import (
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Back-off of restarts: the first restart is immediate, then 10 s doubled up to
// 5 min, forgotten after 10 min without a restart.
const (
	backoffFirst = 10 * time.Second
	backoffMax   = 5 * time.Minute
	backoffReset = 10 * time.Minute
)

// minimumGrace is what a container gets when its preStop hook used up all.
const minimumGrace = 2 * time.Second

type actionKind int

const (
	actVolumes actionKind = iota
	actRefresh
	actSandbox
	actStopSandbox
	actPull
	actStart
	actStop
	actRemoveInstance
	actResize
	actCancel
	actBackoff
	actRelease
	actDeleteAPI
	actRemove
	actEnd
)

// action is what the actor has to do next.
type action struct {
	kind      actionKind
	container *container
	instance  *instance
	grace     time.Duration
	message   string
}

// plan collects actions and the time of the next look.
type plan struct {
	actions []action
	wake    time.Time
}

func (p *plan) add(a action) { p.actions = append(p.actions, a) }

func (p *plan) at(t time.Time) {
	if !t.IsZero() && (p.wake.IsZero() || t.Before(p.wake)) {
		p.wake = t
	}
}

// decide says what has to be done now. It does no I/O; besides the actions it
// only settles facts in the state that follow from the others (kill, finished).
func (s *state) decide(now time.Time) plan {
	var p plan
	s.settle(now, &p)
	if s.kill != nil || s.finished || s.rejected != nil || s.gone {
		s.decideStop(now, &p)
		return p
	}
	if s.volumes == todo {
		if now.Before(s.volumesAt) {
			p.at(s.volumesAt)
		} else {
			p.add(action{kind: actVolumes})
		}
	}
	if s.volumes == done && !s.refreshing {
		if s.stale || (!s.rotateAt.IsZero() && !now.Before(s.rotateAt)) {
			p.add(action{kind: actRefresh})
		} else {
			p.at(s.rotateAt)
		}
	}
	s.decideSandbox(now, &p)
	s.decideContainers(now, &p)
	s.collect(&p)
	return p
}

// settle derives kill and finished.
func (s *state) settle(now time.Time, p *plan) {
	pod := s.pod
	if pod.DeletionTimestamp != nil || s.gone {
		grace := podGrace(pod)
		if pod.DeletionGracePeriodSeconds != nil {
			grace = time.Duration(*pod.DeletionGracePeriodSeconds) * time.Second
		}
		// Even a forced deletion lets SIGTERM be seen.
		grace = max(grace, time.Second)
		if s.kill == nil {
			s.kill = &kill{since: now, grace: grace}
		} else if grace < s.kill.grace {
			s.kill.grace = grace
		}
	}
	if s.rejected != nil || s.finished || s.kill != nil {
		return
	}
	if d := pod.Spec.ActiveDeadlineSeconds; d != nil {
		at := s.startTime.Add(time.Duration(*d) * time.Second)
		if !now.Before(at) {
			s.kill = &kill{since: now, grace: podGrace(pod), failed: true, reason: "DeadlineExceeded", message: "Pod was active on the node longer than the specified deadline"}
			return
		}
		p.at(at)
	}
	if s.complete() {
		s.finished = true
	}
}

func podGrace(pod *corev1.Pod) time.Duration {
	if g := pod.Spec.TerminationGracePeriodSeconds; g != nil {
		return time.Duration(*g) * time.Second
	}
	return corev1.DefaultTerminationGracePeriodSeconds * time.Second
}

// complete reports whether no container will run any more.
func (s *state) complete() bool {
	for _, c := range s.inits {
		if i := c.last(); c.kind == kindInit && i != nil && i.exited() && c.op == idle && i.exitCode != 0 && !s.shouldRestart(c, i) && !s.appsBegan() {
			return true
		}
	}
	for _, c := range s.apps {
		i := c.last()
		if i == nil || !i.exited() || c.op != idle || s.shouldRestart(c, i) {
			return false
		}
	}
	return true
}

func (s *state) appsBegan() bool {
	for _, c := range s.apps {
		if c.last() != nil {
			return true
		}
	}
	return false
}

// shouldRestart applies the restart policies to an exited instance.
func (s *state) shouldRestart(c *container, i *instance) bool {
	if c.kind == kindSidecar {
		return true
	}
	if c.kind == kindEphemeral {
		return false
	}
	if c.restart != nil && c.restart.force {
		return true
	}
	for _, r := range c.spec.RestartPolicyRules {
		if r.ExitCodes == nil {
			continue
		}
		in := slices.Contains(r.ExitCodes.Values, i.exitCode)
		if in == (r.ExitCodes.Operator == corev1.ContainerRestartRuleOnExitCodesOpIn) {
			return true
		}
	}
	policy := corev1.ContainerRestartPolicy(s.pod.Spec.RestartPolicy)
	if c.spec.RestartPolicy != nil {
		policy = *c.spec.RestartPolicy
	}
	switch policy {
	case corev1.ContainerRestartPolicyNever:
		return false
	case corev1.ContainerRestartPolicyOnFailure:
		return i.exitCode != 0
	}
	return c.kind == kindApp || i.exitCode != 0
}

func (s *state) decideSandbox(now time.Time, p *plan) {
	if s.sandboxOp {
		return
	}
	if s.sandbox != nil && s.sandbox.ready {
		return
	}
	if s.sandbox != nil {
		// The sandbox died. What still runs in it has lost its network: stop it, then
		// begin again in a new one.
		if s.sandbox.stopOp {
			return
		}
		p.add(action{kind: actStopSandbox, message: "Pod sandbox changed, it will be killed and re-created."})
		return
	}
	if now.Before(s.sandboxAt) {
		p.at(s.sandboxAt)
		return
	}
	p.add(action{kind: actSandbox})
}

func (s *state) decideContainers(now time.Time, p *plan) {
	usable := s.sandbox == nil || s.sandbox.ready
	if !usable {
		return
	}
	if s.sandbox != nil && s.sandbox.ready {
		for _, c := range s.ephemeral {
			if c.last() == nil {
				s.begin(now, p, c)
			}
		}
	}
	if !s.decideInits(now, p) {
		return
	}
	for _, c := range s.apps {
		s.decideOne(now, p, c)
	}
}

// decideInits drives the init containers in their order and reports whether the
// app containers may run.
func (s *state) decideInits(now time.Time, p *plan) bool {
	if !s.initialized {
		for _, c := range s.apps {
			if s.here(c) != nil {
				s.initialized = true
			}
		}
	}
	for _, c := range s.inits {
		i := s.here(c)
		if c.kind == kindSidecar {
			s.decideOne(now, p, c)
			if !s.initialized && (i == nil || !i.running() || !c.started || c.op != idle) {
				return false
			}
			continue
		}
		if s.initialized {
			continue
		}
		if i != nil && i.exited() && i.exitCode == 0 && c.op == idle {
			continue
		}
		s.decideOne(now, p, c)
		return false
	}
	s.initialized = s.sandbox != nil
	return true
}

// decideOne keeps one container as it should be.
func (s *state) decideOne(now time.Time, p *plan, c *container) {
	if c.op == starting {
		return
	}
	i := s.here(c)
	switch {
	case i == nil:
		if last := c.last(); last != nil && last.exited() {
			// It ended in an earlier sandbox, or is known from the API only.
			if !s.shouldRestart(c, last) && c.kind == kindApp {
				return
			}
			if last.lost && s.inBackoff(now, p, c, last) {
				return
			}
		}
		s.begin(now, p, c)
	case i.running():
		switch {
		case c.restart != nil:
			s.stop(now, p, c, i, c.restart.grace, c.restart.message)
		case i.hash != "" && i.hash != specHash(c.spec):
			c.restart = &restart{message: fmt.Sprintf("Container %s definition changed, will be restarted", c.name), grace: podGrace(s.pod), force: true}
			s.stop(now, p, c, i, c.restart.grace, c.restart.message)
		case c.applied != nil && !c.resizing && resourcesChanged(c.applied, &c.spec.Resources):
			if now.Before(c.retryAt) {
				p.at(c.retryAt)
				return
			}
			p.add(action{kind: actResize, container: c, instance: i})
		}
	case i.exited():
		if !s.shouldRestart(c, i) {
			return
		}
		if s.inBackoff(now, p, c, i) {
			return
		}
		s.begin(now, p, c)
	default: // created, never started: the kubelet or the runtime died between
		s.begin(now, p, c)
	}
}

// inBackoff applies the restart back-off to an exited instance. Passing it is
// recorded, once for each instance, when the start begins (see begin).
func (s *state) inBackoff(now time.Time, p *plan, c *container, i *instance) bool {
	if c.op != idle || c.passedFor == i.id {
		return false
	}
	if c.backoff == 0 || now.Sub(c.backoffAt) > backoffReset {
		c.backoff = 0
		return false
	}
	until := time.Unix(0, i.finished).Add(c.backoff)
	if !now.Before(until) {
		return false
	}
	c.waiting = &corev1.ContainerStateWaiting{
		Reason:  "CrashLoopBackOff",
		Message: fmt.Sprintf("back-off %s restarting failed container=%s pod=%s_%s(%s)", c.backoff, c.name, s.pod.Name, s.pod.Namespace, s.pod.UID),
	}
	if c.backoffTold != i.id {
		c.backoffTold = i.id
		p.add(action{kind: actBackoff, container: c})
	}
	p.at(until)
	return true
}

// begin takes the next step towards a running container: image, then start.
func (s *state) begin(now time.Time, p *plan, c *container) {
	if c.op != idle {
		return
	}
	if now.Before(c.retryAt) {
		p.at(c.retryAt)
		return
	}
	if c.image == nil {
		p.add(action{kind: actPull, container: c})
		return
	}
	if s.sandbox == nil || !s.sandbox.ready || s.volumes != done {
		return
	}
	p.add(action{kind: actStart, container: c})
}

// passBackoff counts a restart.
func (c *container) passBackoff(now time.Time) {
	last := c.last()
	if last == nil || !last.exited() || c.passedFor == last.id {
		return
	}
	c.passedFor = last.id
	switch {
	case c.backoff == 0:
		c.backoff = backoffFirst
	default:
		c.backoff = min(2*c.backoff, backoffMax)
	}
	c.backoffAt = now
}

// stop asks for a container's end, again if the grace has become shorter.
func (s *state) stop(now time.Time, p *plan, c *container, i *instance, grace time.Duration, message string) {
	if now.Before(i.stopErrAt) {
		p.at(i.stopErrAt)
		return
	}
	if i.stops > 0 && !now.Add(grace).Before(i.stopAt.Add(i.stopGrace)) {
		return
	}
	p.add(action{kind: actStop, container: c, instance: i, grace: grace, message: message})
}

// decideStop brings a pod to its end: containers, sandbox, volumes, the object.
func (s *state) decideStop(now time.Time, p *plan) {
	grace := podGrace(s.pod)
	since := now
	if s.kill != nil {
		grace, since = s.kill.grace, s.kill.since
	}
	left := max(since.Add(grace).Sub(now), 0)
	quiet := true
	mainRuns := false
	for c := range s.all {
		if c.op != idle {
			p.add(action{kind: actCancel, container: c})
			quiet = false
			mainRuns = mainRuns || c.kind != kindSidecar
		}
		for _, i := range c.instances {
			if !i.running() {
				continue
			}
			quiet = false
			if c.kind != kindSidecar {
				mainRuns = true
				s.stop(now, p, c, i, max(left, boolTo(grace > time.Second, minimumGrace, time.Second)), "Stopping container "+c.name)
			}
		}
	}
	// Sidecars go after the others, in reverse order; all of them when time is up.
	if !mainRuns || left == 0 {
		for k := len(s.inits) - 1; k >= 0; k-- {
			c := s.inits[k]
			if c.kind != kindSidecar {
				continue
			}
			runs := false
			for _, i := range c.instances {
				if i.running() {
					runs = true
					s.stop(now, p, c, i, max(left, minimumGrace), "Stopping container "+c.name)
				}
			}
			if runs && left > 0 {
				break
			}
		}
	} else {
		p.at(since.Add(grace))
	}
	if !quiet || s.sandboxOp {
		return
	}
	s.decideTeardown(now, p)
}

func boolTo(b bool, yes, no time.Duration) time.Duration {
	if b {
		return yes
	}
	return no
}

func (s *state) decideTeardown(now time.Time, p *plan) {
	if s.volumes == busy || s.refreshing || (s.sandbox != nil && s.sandbox.stopOp) {
		return
	}
	if s.sandbox != nil && s.sandbox.ready {
		if !s.sandbox.stopOp {
			if now.Before(s.sandboxAt) {
				p.at(s.sandboxAt)
				return
			}
			p.add(action{kind: actStopSandbox})
		}
		return
	}
	if now.Before(s.removeAt) {
		p.at(s.removeAt)
		return
	}
	switch {
	case s.released == todo:
		p.add(action{kind: actRelease})
	case s.released == busy:
	case s.gone:
		switch s.removed {
		case todo:
			p.add(action{kind: actRemove})
		case done:
			p.add(action{kind: actEnd})
		}
	case s.pod.DeletionTimestamp != nil && s.deletedAPI == todo:
		p.add(action{kind: actDeleteAPI})
	}
}

// collect removes all but the newest two instances: the current one and the one
// that `kubectl logs --previous` shows.
func (s *state) collect(p *plan) {
	for c := range s.all {
		for k := 2; k < len(c.instances); k++ {
			i := c.instances[k]
			if i.exited() && !c.removing[i.id] {
				p.add(action{kind: actRemoveInstance, container: c, instance: i})
			}
		}
	}
}

func resourcesChanged(a, b *corev1.ResourceRequirements) bool {
	same := func(x, y corev1.ResourceList) bool {
		for _, r := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			xq, yq := x[r], y[r]
			if xq.Cmp(yq) != 0 {
				return false
			}
		}
		return true
	}
	return !same(a.Requests, b.Requests) || !same(a.Limits, b.Limits)
}
