package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/kubelet/cri"
	"github.com/proa-dev/proa/internal/kubelet/hook"
	"github.com/proa-dev/proa/internal/kubelet/volume"
)

// abandon stops a sandbox that cannot be used; it is removed with the pod.
func (a *Actor) abandon(id string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(a.ctx), 10*time.Second)
	defer cancel()
	if _, err := a.d.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		a.log.Warn("stopping an unusable sandbox", "sandbox", id, "err", err)
	}
}

// stopSandbox stops the sandbox and all in it. A message says that the sandbox is
// to be replaced.
func (a *Actor) stopSandbox(message string) {
	s := &a.s
	sb := s.sandbox
	sb.stopOp = true
	if message != "" {
		a.tell(nil, corev1.EventTypeNormal, "SandboxChanged", "%s", message)
	}
	var running []*instance
	for c := range s.all {
		for _, i := range c.instances {
			if i.running() {
				running = append(running, i)
			}
		}
	}
	a.async(func(ctx context.Context) func() {
		_, err := a.d.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: sb.id})
		if cri.IsNotFound(err) {
			err = nil
		}
		statuses := map[string]*runtimeapi.ContainerStatus{}
		for _, i := range running {
			r, serr := a.d.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: i.id})
			if serr == nil {
				statuses[i.id] = r.Status
			} else if cri.IsNotFound(serr) {
				statuses[i.id] = nil
			}
		}
		return func() {
			sb.stopOp = false
			for id, st := range statuses {
				if st == nil {
					s.forget(id)
				} else {
					a.observe(st, sb.id)
				}
			}
			if err != nil {
				if a.ctx.Err() == nil {
					a.tell(nil, corev1.EventTypeWarning, "FailedKillPod", "error killing pod: %s", cri.ErrorText(err))
				}
				s.sandboxAt = time.Now().Add(retryDelay(s.sandboxTry + 1))
				s.sandboxTry++
				return
			}
			sb.ready = false
			s.sandboxTry = 0
			if message != "" {
				s.old = append(s.old, sb)
				s.sandbox, s.initialized = nil, false
			}
		}
	})
}

// stop runs the preStop hook and stops the container within grace.
func (a *Actor) stop(c *container, i *instance, grace time.Duration, message string, now time.Time) {
	first := i.stops == 0
	i.stops++
	i.stopAt, i.stopGrace = now, grace
	if first {
		a.tell(c, corev1.EventTypeNormal, "Killing", "%s", message)
	}
	if a.s.kill != nil && c.probes != nil {
		// Readiness goes on until the end: endpoints follow it. Liveness must not.
		c.restart = nil
	}
	var pre *corev1.LifecycleHandler
	if l := c.spec.Lifecycle; l != nil && l.PreStop != nil && !i.hooked {
		pre = l.PreStop
		i.hooked = true
	}
	var ips []string
	if a.s.sandbox != nil {
		ips = a.s.sandbox.ips
	}
	target, pod, name := a.target(i.id, ips, c.spec), a.s.pod, c.name
	a.async(func(ctx context.Context) func() {
		left := grace
		if pre != nil && grace > 0 {
			begin := time.Now()
			hctx, cancel := context.WithTimeout(ctx, grace)
			if err := runHook(hctx, target, pre); err != nil && ctx.Err() == nil {
				a.d.Event(pod, name, corev1.EventTypeWarning, "FailedPreStopHook", "PreStopHook failed")
			}
			cancel()
			left = max(grace-time.Since(begin), minimumGrace)
		}
		_, err := a.d.Runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: i.id, Timeout: int64((left + time.Second - 1) / time.Second)})
		gone := cri.IsNotFound(err)
		var st *runtimeapi.ContainerStatus
		if err == nil {
			r, serr := a.d.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: i.id})
			if serr == nil {
				st = r.Status
			}
			gone = cri.IsNotFound(serr)
		}
		return func() {
			i.stops--
			switch {
			case gone:
				a.s.forget(i.id)
			case st != nil:
				a.observe(st, i.sandbox)
				if !i.exited() {
					i.stopErrAt = time.Now().Add(time.Second)
				}
			case err != nil && a.ctx.Err() == nil:
				i.stopErrAt = time.Now().Add(time.Second)
				a.log.Warn("stopping a container", "container", name, "err", err)
			}
		}
	})
}

// runHook runs a hook that does not end with its context (a command in the
// container) for as long as the context lasts.
func runHook(ctx context.Context, t hook.Target, h *corev1.LifecycleHandler) error {
	result := make(chan error, 1)
	go func() { result <- hook.Lifecycle(ctx, t, h) }()
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (a *Actor) removeInstance(c *container, i *instance) {
	c.removing[i.id] = true
	path := ""
	if i.logPath != "" && filepath.Dir(filepath.Dir(i.logPath)) == a.d.PodLogDir(a.s.pod.Namespace, a.s.pod.Name, string(a.s.uid)) {
		path = i.logPath
	}
	lost := i.lost
	a.async(func(ctx context.Context) func() {
		var err error
		if !lost {
			_, err = a.d.Runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: i.id})
		}
		if err == nil && path != "" {
			removeLogs(path)
		}
		return func() {
			if err != nil && !cri.IsNotFound(err) {
				a.log.Warn("removing a dead container", "container", c.name, "err", err)
				return // the pod's end removes it
			}
			delete(c.removing, i.id)
			c.instances = slices.DeleteFunc(c.instances, func(x *instance) bool { return x == i })
		}
	})
}

// removeLogs deletes a log and its rotated parts ("0.log.20260102-150405[.gz]").
func removeLogs(path string) {
	matches, _ := filepath.Glob(path + ".*")
	for _, m := range append(matches, path) {
		_ = os.Remove(m)
	}
}

// release takes the pod's volumes away.
func (a *Actor) release() {
	a.s.released = busy
	a.d.Sources.Release(a.s.uid)
	a.async(func(context.Context) func() {
		err := a.d.Volumes.ReleaseVolumes(a.s.uid)
		return func() {
			if err != nil {
				a.log.Warn("releasing volumes", "err", err)
				a.tell(nil, corev1.EventTypeWarning, "FailedUnMount", "%s", err.Error())
				a.s.released = todo
				a.again()
				return
			}
			a.s.released, a.s.removeTry = done, 0
		}
	})
}

func (a *Actor) again() {
	a.s.removeAt = time.Now().Add(retryDelay(a.s.removeTry))
	a.s.removeTry++
}

// deleteAPI deletes the object for good, after its last status is written.
func (a *Actor) deleteAPI() {
	if a.writing || a.unwritten() {
		return // publish comes first; its end wakes the actor
	}
	a.s.deletedAPI = busy
	pod := a.s.pod
	a.async(func(ctx context.Context) func() {
		zero := int64(0)
		err := client.Pods.Delete(ctx, a.d.Client, pod.Namespace, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: &zero, Preconditions: &metav1.Preconditions{UID: &pod.UID}})
		return func() {
			if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
				if a.ctx.Err() == nil {
					a.log.Warn("deleting the pod", "err", err)
				}
				a.s.deletedAPI = todo
				a.again()
				return
			}
			a.s.deletedAPI = done
		}
	})
}

// remove takes away what is left of a pod that the API no longer has.
func (a *Actor) remove() {
	s := &a.s
	s.removed = busy
	ids := make([]string, 0, 1+len(s.old))
	if s.sandbox != nil {
		ids = append(ids, s.sandbox.id)
	}
	for _, o := range s.old {
		ids = append(ids, o.id)
	}
	dir := a.d.PodLogDir(s.pod.Namespace, s.pod.Name, string(s.uid))
	a.async(func(ctx context.Context) func() {
		var errs []error
		for _, id := range ids {
			if _, err := a.d.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id}); err != nil && !cri.IsNotFound(err) {
				errs = append(errs, fmt.Errorf("removing sandbox %s: %w", id, err))
			}
		}
		errs = append(errs, volume.RemoveTree(dir), a.d.Volumes.Remove(s.uid))
		err := errors.Join(errs...)
		return func() {
			if err != nil {
				if a.ctx.Err() == nil {
					a.log.Warn("removing the pod", "err", err)
				}
				s.removed = todo
				a.again()
				return
			}
			s.removed = done
		}
	})
}
