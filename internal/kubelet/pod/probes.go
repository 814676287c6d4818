package pod

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/proa-dev/proa/internal/kubelet/probe"
)

// running begins the probes of a container that has just been started.
func (a *Actor) running(c *container, i *instance) {
	c.started = c.spec.StartupProbe == nil
	c.ready = c.started && c.spec.ReadinessProbe == nil
	a.startProbes(c, i)
}

// resumeProbes goes on with the probes of adopted containers.
func (a *Actor) resumeProbes() {
	if a.s.gone || a.s.finished {
		return
	}
	for c := range a.s.all {
		i := c.last()
		if i == nil || !i.running() || c.kind == kindEphemeral {
			continue
		}
		c.started = c.started || c.spec.StartupProbe == nil
		c.ready = c.ready || c.spec.ReadinessProbe == nil && c.started
		a.startProbes(c, i)
	}
}

func (a *Actor) startProbes(c *container, i *instance) {
	if c.probes != nil {
		c.probes()
		c.probes = nil
	}
	if c.kind == kindEphemeral || (c.kind == kindInit) {
		return
	}
	if c.spec.StartupProbe == nil && c.spec.LivenessProbe == nil && c.spec.ReadinessProbe == nil {
		return
	}
	ctx, cancel := context.WithCancel(a.ctx)
	c.probes = cancel
	if !c.started && c.spec.StartupProbe != nil {
		a.runProbe(ctx, c, i, probe.Startup, c.spec.StartupProbe)
		return
	}
	a.runSteadyProbes(ctx, c, i)
}

func (a *Actor) runSteadyProbes(ctx context.Context, c *container, i *instance) {
	if c.spec.LivenessProbe != nil {
		a.runProbe(ctx, c, i, probe.Liveness, c.spec.LivenessProbe)
	}
	if c.spec.ReadinessProbe != nil {
		a.runProbe(ctx, c, i, probe.Readiness, c.spec.ReadinessProbe)
	}
}

func (a *Actor) runProbe(ctx context.Context, c *container, i *instance, t probe.Type, p *corev1.Probe) {
	var ips []string
	if a.s.sandbox != nil {
		ips = a.s.sandbox.ips
	}
	pod, name := a.s.pod, c.name
	w := &probe.Worker{
		Type: t, Probe: p, Target: a.target(i.id, ips, c.spec), StartedAt: time.Unix(0, i.started),
		Initial: t == probe.Readiness && c.ready,
		Report:  func(ok bool) { a.post(func() { a.onProbe(ctx, c, i, t, p, ok) }) },
		Event: func(reason, message string) {
			a.d.Event(pod, name, corev1.EventTypeWarning, reason, "%s", message)
		},
	}
	a.ops.Go(func() { w.Run(ctx) })
}

func (a *Actor) onProbe(ctx context.Context, c *container, i *instance, t probe.Type, p *corev1.Probe, ok bool) {
	if ctx.Err() != nil || c.last() != i || !i.running() {
		return
	}
	switch {
	case t == probe.Readiness:
		c.ready = ok
	case t == probe.Startup && ok:
		c.started = true
		c.ready = c.spec.ReadinessProbe == nil
		a.runSteadyProbes(ctx, c, i)
	case !ok && c.restart == nil:
		what := "liveness"
		if t == probe.Startup {
			what = "startup"
		}
		grace := podGrace(a.s.pod)
		if g := p.TerminationGracePeriodSeconds; g != nil {
			grace = time.Duration(*g) * time.Second
		}
		msg := fmt.Sprintf("Container %s failed %s probe", c.name, what)
		if a.s.shouldRestart(c, &instance{exitCode: 137}) {
			msg += ", will be restarted"
		}
		c.restart = &restart{message: msg, grace: grace}
	}
}
