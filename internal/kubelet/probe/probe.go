// Package probe runs the startup, liveness and readiness probes of containers:
// when to probe and what a row of outcomes means. A Worker is one probe of one
// container instance; it reports only changes. What follows from a result (a
// restart, a status) is package pod's business.
package probe

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/proa-dev/proa/internal/kubelet/hook"
)

// Type of a probe.
type Type int

const (
	Startup Type = iota
	Liveness
	Readiness
)

func (t Type) String() string { return [...]string{"Startup", "Liveness", "Readiness"}[t] }

// Worker is one probe of one instance of a container.
type Worker struct {
	Type      Type
	Probe     *corev1.Probe
	Target    hook.Target
	StartedAt time.Time
	// Initial is the result that is already known (after an adoption).
	Initial bool
	// Report is called when the result changes, the first one included.
	Report func(ok bool)
	// Event records an outcome that was not a success.
	Event func(reason, message string)
}

// early is how long after the start of a container a network probe
// that fails is repeated soon and not counted: servers need some milliseconds to
// listen, and a whole period would pass until the next try.
const early = time.Second

// Run probes until ctx ends or, for startup and liveness, a result is final: the
// container will be restarted.
func (w *Worker) Run(ctx context.Context) {
	p := w.Probe
	period := seconds(p.PeriodSeconds, 10)
	timer := time.NewTimer(time.Until(w.StartedAt.Add(time.Duration(p.InitialDelaySeconds) * time.Second)))
	defer timer.Stop()
	known, last := w.Initial || w.Type == Liveness, w.Initial || w.Type == Liveness
	var run int32
	var runOK bool
	quick := 50 * time.Millisecond
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		begin := time.Now()
		outcome, output, err := w.once(ctx)
		if ctx.Err() != nil {
			return
		}
		ok := err == nil && outcome != hook.Failure
		if !ok && p.InitialDelaySeconds == 0 && p.Exec == nil && time.Since(w.StartedAt) < early {
			timer.Reset(quick)
			quick *= 2
			continue
		}
		switch {
		case err != nil:
			w.Event("Unhealthy", w.Type.String()+" probe errored and resulted in failure: "+err.Error())
		case outcome == hook.Warning:
			w.Event("ProbeWarning", w.Type.String()+" probe warning: "+output)
		case !ok:
			w.Event("Unhealthy", w.Type.String()+" probe failed: "+output)
		}
		if run > 0 && runOK == ok {
			run++
		} else {
			run, runOK = 1, ok
		}
		need := max(p.FailureThreshold, 1)
		if p.FailureThreshold == 0 {
			need = 3
		}
		if ok {
			need = max(p.SuccessThreshold, 1)
		}
		if run >= need {
			if !known || last != ok {
				known, last = true, ok
				w.Report(ok)
			}
			if w.Type == Startup || (w.Type == Liveness && !ok) {
				return
			}
		}
		timer.Reset(max(period-time.Since(begin), 0))
	}
}

func seconds(n int32, otherwise int32) time.Duration {
	if n <= 0 {
		n = otherwise
	}
	return time.Duration(n) * time.Second
}

func (w *Worker) once(ctx context.Context) (hook.Outcome, string, error) {
	timeout := seconds(w.Probe.TimeoutSeconds, 1)
	switch h := w.Probe.ProbeHandler; {
	case h.Exec != nil:
		return hook.Exec(ctx, w.Target, h.Exec.Command, timeout)
	case h.HTTPGet != nil:
		return hook.HTTP(ctx, w.Target, h.HTTPGet, timeout)
	case h.TCPSocket != nil:
		return hook.TCP(ctx, w.Target, h.TCPSocket, timeout)
	case h.GRPC != nil:
		return hook.GRPC(ctx, w.Target, h.GRPC, timeout)
	}
	return hook.Success, "", nil
}
