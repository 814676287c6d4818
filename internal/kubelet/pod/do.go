package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/proa-dev/proa/internal/kubelet/cri"
	"github.com/proa-dev/proa/internal/kubelet/hook"
	"github.com/proa-dev/proa/internal/kubelet/image"
	"github.com/proa-dev/proa/internal/kubelet/volume"
)

// Waiting reasons of containers that could not be made or started.
const (
	reasonConfig    = "CreateContainerConfigError"
	reasonCreate    = "CreateContainerError"
	reasonRun       = "RunContainerError"
	reasonPostStart = "PostStartHookError"
)

// configRetry is when a container whose configuration was wrong is tried again; a
// change of its ConfigMaps and Secrets is seen at once.
const configRetry = 10 * time.Second

func isNotFound(err error) bool {
	return apierrors.IsNotFound(err) || errors.Is(err, os.ErrNotExist)
}

// retryDelay grows from half a second to two minutes.
func retryDelay(try int) time.Duration {
	return min(500*time.Millisecond<<min(try, 10), 2*time.Minute)
}

func (a *Actor) do(act *action, now time.Time) {
	c := act.container
	switch act.kind {
	case actVolumes:
		a.setupVolumes()
	case actRefresh:
		a.refreshVolumes()
	case actSandbox:
		a.runSandbox()
	case actStopSandbox:
		a.stopSandbox(act.message)
	case actPull:
		a.pull(c, now)
	case actStart:
		a.start(c)
	case actStop:
		a.stop(c, act.instance, act.grace, act.message, now)
	case actRemoveInstance:
		a.removeInstance(c, act.instance)
	case actResize:
		a.resize(c, act.instance)
	case actCancel:
		if c.cancel != nil {
			c.cancel()
		}
	case actBackoff:
		a.tell(c, corev1.EventTypeWarning, "BackOff", "Back-off restarting failed container %s in pod %s_%s(%s)", c.name, a.s.pod.Name, a.s.pod.Namespace, a.s.pod.UID)
	case actRelease:
		a.release()
	case actDeleteAPI:
		a.deleteAPI()
	case actRemove:
		a.remove()
	case actEnd:
		a.ended = true
	}
}

func (a *Actor) setupVolumes() {
	a.s.volumes, a.s.stale = busy, false
	pod := a.s.pod
	a.async(func(ctx context.Context) func() {
		vols, err := a.d.Volumes.Setup(ctx, pod)
		next := a.d.Volumes.NextRotation(pod)
		return func() {
			if err != nil {
				a.volumeErrors(err)
				a.s.volumes = todo
				if !a.s.stale { // no source changed meanwhile
					a.s.volumesAt = time.Now().Add(retryDelay(a.s.volumesTry))
				}
				a.s.volumesTry++
				return
			}
			a.vols, a.s.volumes, a.s.rotateAt, a.s.volumesTry = vols, done, next, 0
		}
	})
}

func (a *Actor) volumeErrors(err error) {
	for _, e := range volume.ErrorsOf(err) {
		if a.ctx.Err() == nil {
			a.tell(nil, corev1.EventTypeWarning, "FailedMount", "%s", e.Error())
		}
	}
}

// refreshVolumes writes changed ConfigMaps, Secrets, labels and due tokens.
func (a *Actor) refreshVolumes() {
	a.s.refreshing, a.s.stale = true, false
	pod := a.s.pod
	a.async(func(ctx context.Context) func() {
		next, err := a.d.Volumes.Refresh(ctx, pod)
		return func() {
			a.s.refreshing = false
			a.s.rotateAt = next
			if err != nil {
				a.volumeErrors(err)
				retry := time.Now().Add(retryDelay(min(a.s.volumesTry, 7)))
				a.s.volumesTry++
				if !allAbsent(err) || (!next.IsZero() && next.Before(retry)) {
					a.s.rotateAt = retry
				}
				return
			}
			a.s.volumesTry = 0
		}
	})
}

// allAbsent: only the sources are missing; their creation is an event.
func allAbsent(err error) bool {
	for _, e := range volume.ErrorsOf(err) {
		if !volume.AbsentSource(e) {
			return false
		}
	}
	return true
}

func (a *Actor) runSandbox() {
	s := &a.s
	s.sandboxOp = true
	pod := s.pod
	var attempt uint32
	for _, o := range s.old {
		attempt = max(attempt, o.attempt+1)
	}
	a.async(func(ctx context.Context) func() {
		sb, err := a.makeSandbox(ctx, pod, attempt)
		return func() {
			s.sandboxOp = false
			if err != nil {
				if a.ctx.Err() == nil {
					a.log.Warn("creating the sandbox", "err", err)
					a.tell(nil, corev1.EventTypeWarning, "FailedCreatePodSandBox", "Failed to create pod sandbox: %s", cri.ErrorText(err))
				}
				s.sandboxAt = time.Now().Add(retryDelay(s.sandboxTry + 1))
				s.sandboxTry++
				if sb != nil {
					s.old = append(s.old, sb)
				}
				return
			}
			s.sandbox, s.sandboxTry = sb, 0
		}
	})
}

func (a *Actor) makeSandbox(ctx context.Context, pod *corev1.Pod, attempt uint32) (*sandbox, error) {
	handler := ""
	if n := pod.Spec.RuntimeClassName; n != nil && *n != "" {
		var err error
		if handler, err = a.d.RuntimeHandler(ctx, *n); err != nil {
			return nil, err
		}
	}
	if err := a.d.Users.Assign(pod); err != nil {
		return nil, err
	}
	cfg, err := a.d.sandboxConfig(pod, attempt)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.LogDirectory, 0o755); err != nil {
		return nil, fmt.Errorf("making the log directory: %w", err)
	}
	r, err := a.d.Runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: cfg, RuntimeHandler: handler})
	if err != nil {
		return nil, err
	}
	st, err := a.d.Runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: r.PodSandboxId})
	if err != nil {
		a.abandon(r.PodSandboxId)
		return &sandbox{id: r.PodSandboxId, attempt: attempt}, err
	}
	sb := toSandbox(st.Status)
	ips := sb.ips
	if pod.Spec.HostNetwork {
		ips = a.d.HostIPs
	}
	if err := a.d.writeHosts(pod, ips); err != nil {
		sb.ready = false
		a.abandon(sb.id)
		return sb, fmt.Errorf("writing the hosts file: %w", err)
	}
	return sb, nil
}

// pull makes sure of the container's image.
func (a *Actor) pull(c *container, now time.Time) {
	c.passBackoff(now)
	if c.waiting != nil && c.waiting.Reason == "CrashLoopBackOff" {
		c.waiting = nil
	}
	c.op = pulling
	ctx, cancel := context.WithCancel(a.ctx)
	c.cancel = cancel
	pod, spec := a.s.pod, c.spec
	a.asyncIn(ctx, func(ctx context.Context) func() {
		img, ierr := a.ensureImage(ctx, pod, spec.Name, spec.Image, spec.ImagePullPolicy)
		cancel()
		return func() {
			c.op, c.cancel = idle, nil
			if ierr != nil {
				c.waiting = &corev1.ContainerStateWaiting{Reason: ierr.Reason, Message: ierr.Message}
				c.retryAt = ierr.Retry
				if ierr.Retry.IsZero() {
					c.retryAt = time.Now().Add(configRetry)
				}
				return
			}
			c.image, c.waiting, c.retryAt = &img, nil, time.Time{}
		}
	})
}

func (a *Actor) ensureImage(ctx context.Context, pod *corev1.Pod, container, name string, policy corev1.PullPolicy) (image.Image, *image.Error) {
	var secrets []*corev1.Secret
	for _, ref := range pod.Spec.ImagePullSecrets {
		s, err := a.d.Sources.Secret(ctx, pod.Namespace, ref.Name)
		if err != nil {
			a.d.Event(pod, "", corev1.EventTypeWarning, "FailedToRetrieveImagePullSecret", "Unable to retrieve some image pull secrets (%s); attempting to pull the image may not succeed.", ref.Name)
			continue
		}
		secrets = append(secrets, s)
	}
	return a.d.Images.Ensure(ctx, pod, container, name, policy, "", secrets, nil)
}

// started is the result of a start.
type startResult struct {
	id      string
	status  *runtimeapi.ContainerStatus
	reason  string // of a failure
	message string
}

// start creates and starts the container and runs its postStart hook.
func (a *Actor) start(c *container) {
	s := &a.s
	c.op = starting
	c.restart = nil
	ctx, cancel := context.WithCancel(a.ctx)
	c.cancel = cancel
	attempt := c.nextAttempt()
	stale := ""
	if i := c.last(); i != nil && i.state == runtimeapi.ContainerState_CONTAINER_CREATED {
		stale = i.id
		c.instances = c.instances[1:]
	}
	pod, spec, img, sb, vols, target := s.pod, c.spec, c.image, s.sandbox, a.vols, ""
	if c.target != "" {
		if t := s.containers[c.target]; t != nil && t.last() != nil {
			target = t.last().id
		}
	}
	post := spec.Lifecycle != nil && spec.Lifecycle.PostStart != nil
	c.hooking = post
	t := a.target("", sb.ips, spec)
	in := *sb // the actor may write to its own meanwhile
	a.asyncIn(ctx, func(ctx context.Context) func() {
		r := a.startContainer(ctx, pod, spec, img, &in, attempt, vols, target, stale)
		if r.reason == "" && post {
			t.ContainerID = r.id
			if err := hook.Lifecycle(ctx, t, spec.Lifecycle.PostStart); err != nil {
				r.reason, r.message = reasonPostStart, err.Error()
			}
		}
		cancel()
		return func() { a.startDone(c, r, in.id, spec) }
	})
}

func (a *Actor) target(id string, ips []string, spec *corev1.Container) hook.Target {
	ip := ""
	if a.s.pod.Spec.HostNetwork {
		ips = a.d.HostIPs
	}
	if len(ips) > 0 {
		ip = ips[0]
	}
	return hook.Target{Runtime: a.d.Runtime, ContainerID: id, PodIP: ip, Container: spec, UserAgent: a.d.UserAgent}
}

func (a *Actor) startDone(c *container, r startResult, sandboxID string, spec *corev1.Container) {
	c.op, c.cancel, c.hooking, c.image = idle, nil, false, nil
	if r.status != nil {
		a.observe(r.status, sandboxID)
	}
	if r.reason == "" {
		c.waiting, c.retries, c.retryAt = nil, 0, time.Time{}
		c.applied = spec.Resources.DeepCopy()
		if i := c.last(); i != nil && i.id == r.id && i.running() {
			a.running(c, i)
		}
		return
	}
	if a.ctx.Err() != nil || a.s.kill != nil {
		return
	}
	switch r.reason {
	case reasonPostStart:
		a.tell(c, corev1.EventTypeWarning, "FailedPostStartHook", "PostStartHook failed")
		if i := c.last(); i != nil && i.id == r.id && i.running() {
			c.restart = &restart{message: "FailedPostStartHook", grace: podGrace(a.s.pod)}
		}
		return
	case reasonRun:
		a.tell(c, corev1.EventTypeWarning, "Failed", "Error: %s", r.message)
		if i := c.last(); i != nil && i.id == r.id && i.exited() {
			return // it counts as an instance that ended
		}
	default:
		a.tell(c, corev1.EventTypeWarning, "Failed", "Error: %s", r.message)
	}
	c.waiting = &corev1.ContainerStateWaiting{Reason: r.reason, Message: r.message}
	c.retryAt = time.Now().Add(configRetry)
	if r.reason != reasonConfig {
		c.retryAt = time.Now().Add(retryDelay(c.retries + 1))
	}
	c.retries++
}

func (a *Actor) startContainer(ctx context.Context, pod *corev1.Pod, spec *corev1.Container, img *image.Image, sb *sandbox, attempt uint32, vols map[string]volume.Mounted, target, stale string) startResult {
	fail := func(reason string, err error) startResult {
		return startResult{reason: reason, message: cri.ErrorText(err)}
	}
	if stale != "" {
		if _, err := a.d.Runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: stale}); err != nil && !cri.IsNotFound(err) {
			return fail(reasonCreate, err)
		}
	}
	ips := sb.ips
	if pod.Spec.HostNetwork {
		ips = a.d.HostIPs
	}
	vars, err := a.d.environment(ctx, pod, spec, ips, vols)
	if err != nil {
		return fail(reasonConfig, err)
	}
	images := map[string]string{}
	for i := range spec.VolumeMounts {
		name := spec.VolumeMounts[i].Name
		v := vols[name]
		if v.Image == "" || images[name] != "" {
			continue
		}
		im, ierr := a.ensureImage(ctx, pod, spec.Name, v.Image, v.PullPolicy)
		if ierr != nil {
			return startResult{reason: ierr.Reason, message: ierr.Message}
		}
		images[name] = im.Ref
	}
	mounts, err := a.d.mounts(pod, spec, attempt, vars, vols, images)
	if err != nil {
		return fail(reasonConfig, err)
	}
	cfg, err := a.d.containerConfig(pod, spec, attempt, img, vars, mounts, target)
	if err != nil {
		return fail(reasonConfig, err)
	}
	sbCfg, err := a.d.sandboxConfig(pod, sb.attempt)
	if err != nil {
		return fail(reasonConfig, err)
	}
	if err := os.MkdirAll(filepath.Join(sbCfg.LogDirectory, spec.Name), 0o755); err != nil {
		return fail(reasonCreate, fmt.Errorf("making the log directory: %w", err))
	}
	created, err := a.d.Runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: sb.id, Config: cfg, SandboxConfig: sbCfg})
	if err != nil {
		return fail(reasonCreate, err)
	}
	a.d.Event(pod, spec.Name, corev1.EventTypeNormal, "Created", "Container created")
	r := startResult{id: created.ContainerId}
	if _, err := a.d.Runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: r.id}); err != nil {
		r.reason, r.message = reasonRun, cri.ErrorText(err)
	} else {
		a.d.Event(pod, spec.Name, corev1.EventTypeNormal, "Started", "Container started")
	}
	// The start may have been cancelled; what came of it still has to be known.
	st, err := a.d.Runtime.ContainerStatus(context.WithoutCancel(ctx), &runtimeapi.ContainerStatusRequest{ContainerId: r.id})
	if err == nil {
		r.status = st.Status
	} else if r.reason == "" {
		r.reason, r.message = reasonRun, cri.ErrorText(err)
	}
	return r
}

// resize applies changed requests and limits to the running container, or
// restarts it where its resize policy asks for that.
func (a *Actor) resize(c *container, i *instance) {
	want := c.spec.Resources.DeepCopy()
	for _, p := range c.spec.ResizePolicy {
		if p.RestartPolicy != corev1.RestartContainer {
			continue
		}
		only := func(r *corev1.ResourceRequirements) *corev1.ResourceRequirements {
			out := &corev1.ResourceRequirements{Requests: corev1.ResourceList{}, Limits: corev1.ResourceList{}}
			if q, ok := r.Requests[p.ResourceName]; ok {
				out.Requests[p.ResourceName] = q
			}
			if q, ok := r.Limits[p.ResourceName]; ok {
				out.Limits[p.ResourceName] = q
			}
			return out
		}
		if resourcesChanged(only(c.applied), only(want)) {
			c.restart = &restart{message: fmt.Sprintf("Container %s resize requires restart", c.name), grace: podGrace(a.s.pod), force: true}
			c.applied = want
			a.post(func() {})
			return
		}
	}
	c.resizing = true
	res := a.d.containerResources(a.s.pod, c.spec)
	a.async(func(ctx context.Context) func() {
		_, err := a.d.Runtime.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: i.id, Linux: res})
		return func() {
			c.resizing = false
			if err != nil {
				a.tell(c, corev1.EventTypeWarning, "ResizeError", "Error resizing container %s: %s", c.name, cri.ErrorText(err))
				c.resizeErr, c.retryAt = cri.ErrorText(err), time.Now().Add(configRetry)
				return
			}
			c.applied, c.resizeErr = want, ""
		}
	})
}
