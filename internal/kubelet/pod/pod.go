// Package pod runs one pod: an Actor is a goroutine with a mailbox that owns all
// that is known of the pod. Whatever happens (a change of the object, an event of
// the runtime, the result of a call, a probe) is a message; after the messages
// decide says what to do, without I/O, and every I/O runs beside the actor and
// answers with a message. Status is written to the API once for each transition.
//
// It does not know other pods: admission, the list of pods and the watch are
// package kubelet's.
package pod

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/kubelet/cri"
	"github.com/proa-dev/proa/internal/kubelet/image"
	"github.com/proa-dev/proa/internal/kubelet/source"
	"github.com/proa-dev/proa/internal/kubelet/volume"
)

// Deps is what all actors of a node share.
type Deps struct {
	HostIPs         []string
	Client          client.Interface
	Runtime         cri.Runtime
	Images          *image.Puller
	Volumes         *volume.Volumes
	Sources         *source.Sources
	Users           *Users
	ClusterDNS      []string
	ClusterDomain   string
	ResolvConf      string
	RootDir, LogDir string
	UserAgent       string
	CgroupRoot      string // "" or /name: what is above kubepods
	CgroupV2        bool
	MemoryCapacity  int64

	Allocatable func() corev1.ResourceList
	// RecursiveReadOnly says whether the runtime can do such mounts.
	RecursiveReadOnly func() bool
	// Services returns those of a namespace, and those that every pod sees.
	Services func(namespace string) (own, all []*corev1.Service)
	// Event records an event about a pod or (name not empty) one of its containers.
	Event image.EventFunc
	// TailLog returns the end of a container's log.
	TailLog func(path string, lines, bytes int) string
	// RuntimeHandler resolves a RuntimeClass.
	RuntimeHandler func(ctx context.Context, class string) (string, error)
	// Settled is told when a pod uses no resources of the node any more.
	Settled func(uid types.UID)
	// Ended is called when the actor ends because its pod is gone for good.
	Ended func(uid types.UID)

	Logger *slog.Logger
}

// Rejection is why the node does not run a pod.
type Rejection struct{ Reason, Message string }

// Found is what the runtime already has of a pod (after a restart of the kubelet).
type Found struct {
	Sandboxes  []*runtimeapi.PodSandboxStatus
	Containers []FoundContainer
}

// FoundContainer is a container with the sandbox it is in.
type FoundContainer struct {
	Sandbox string
	Status  *runtimeapi.ContainerStatus
}

// statusDelay is how long a status that says only that the pod is being started
// may wait: a pod that runs by then saves a write.
const statusDelay = 100 * time.Millisecond

// Actor runs one pod.
type Actor struct {
	d   *Deps
	s   state
	log *slog.Logger

	mu    sync.Mutex
	inbox []func()
	wake  chan struct{}

	// Set for the actor's goroutine only.
	ctx     context.Context
	ops     sync.WaitGroup
	base    *corev1.Pod // the newest version of the object, to write the status on
	written *corev1.PodStatus
	writing bool
	retryAt time.Time
	ended   bool
	settled bool
	vols    map[string]volume.Mounted

	snapshot atomic.Pointer[Snapshot]
}

// Snapshot is what other goroutines may know of an actor.
type Snapshot struct {
	Pod        *corev1.Pod // with the status as the kubelet sees it
	SandboxID  string
	Settled    bool
	Running    bool
	Containers map[string][]ContainerInfo // by name, the newest first
}

// ContainerInfo is an instance of a container.
type ContainerInfo struct {
	ID      string
	Attempt uint32
	State   runtimeapi.ContainerState
	LogPath string
}

// New returns the actor of a pod that was admitted or (rejected not nil) was not.
// pod is nil for a pod that the API does not know: all of it is removed.
func New(d *Deps, pod *corev1.Pod, found *Found, rejected *Rejection) *Actor {
	a := &Actor{d: d, wake: make(chan struct{}, 1)}
	a.log = d.Logger.With("kind", "Pod", "namespace", pod.Namespace, "name", pod.Name, "uid", string(pod.UID))
	now := time.Now()
	a.s = state{uid: pod.UID, seen: now, startTime: now, rejected: rejected}
	a.s.setPod(pod)
	a.base = pod
	if found != nil {
		a.adopt(found)
	}
	a.s.restore()
	a.publishSnapshot(&pod.Status)
	return a
}

// Orphan returns the actor of a pod that only the runtime knows.
func Orphan(d *Deps, namespace, name string, uid types.UID, found *Found) *Actor {
	pod := &corev1.Pod{}
	pod.Namespace, pod.Name, pod.UID = namespace, name, uid
	if found != nil {
		for _, c := range found.Containers {
			pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: c.Status.Labels[cri.LabelContainerName]})
		}
	}
	a := New(d, pod, found, nil)
	a.s.gone = true
	return a
}

func (a *Actor) adopt(f *Found) {
	s := &a.s
	for _, sb := range f.Sandboxes {
		n := toSandbox(sb)
		if s.sandbox == nil || n.created > s.sandbox.created {
			if s.sandbox != nil {
				s.old = append(s.old, s.sandbox)
			}
			s.sandbox = n
		} else {
			s.old = append(s.old, n)
		}
	}
	for _, fc := range f.Containers {
		s.observe(fc.Status, fc.Sandbox)
	}
	for c := range s.all {
		for _, i := range c.instances {
			if i.exited() {
				a.readMessage(c, i)
			}
		}
		if i := c.last(); i != nil && i.running() {
			c.applied = c.spec.Resources.DeepCopy()
			c.backoff = 0
		}
	}
}

func toSandbox(sb *runtimeapi.PodSandboxStatus) *sandbox {
	n := &sandbox{id: sb.Id, attempt: sb.GetMetadata().GetAttempt(), ready: sb.State == runtimeapi.PodSandboxState_SANDBOX_READY, created: sb.CreatedAt}
	n.ips = sandboxIPs(sb)
	return n
}

func sandboxIPs(sb *runtimeapi.PodSandboxStatus) []string {
	var out []string
	if ip := sb.GetNetwork().GetIp(); ip != "" {
		out = append(out, ip)
	}
	for _, ip := range sb.GetNetwork().GetAdditionalIps() {
		out = append(out, ip.Ip)
	}
	return out
}

// post puts a message into the mailbox. It never blocks.
func (a *Actor) post(f func()) {
	a.mu.Lock()
	a.inbox = append(a.inbox, f)
	a.mu.Unlock()
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// Update hands in a newer version of the object.
func (a *Actor) Update(p *corev1.Pod) { a.post(func() { a.update(p) }) }

// Gone says that the object has been deleted from the API.
func (a *Actor) Gone(last *corev1.Pod) {
	a.post(func() {
		if last != nil {
			a.update(last)
		}
		a.s.gone = true
	})
}

// Evict ends the pod with phase Failed.
func (a *Actor) Evict(reason, message string, grace time.Duration) {
	a.post(func() {
		if a.s.kill == nil && !a.s.finished {
			a.s.kill = &kill{since: time.Now(), grace: grace, failed: true, reason: reason, message: message}
		}
	})
}

// Event hands in an event of the runtime.
func (a *Actor) Event(e *runtimeapi.ContainerEventResponse) { a.post(func() { a.event(e) }) }

// Snapshot returns what is known now.
func (a *Actor) Snapshot() *Snapshot { return a.snapshot.Load() }

// Run drives the pod until it is gone or ctx ends. Containers keep running when
// ctx ends.
func (a *Actor) Run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	a.ctx = ctx
	defer func() {
		cancel()
		a.ops.Wait()
		a.d.Sources.Release(a.s.uid)
		if a.ended {
			a.d.Images.Forget(string(a.s.uid))
			a.d.Users.Release(a.s.uid)
			a.d.Ended(a.s.uid)
		}
	}()
	if !a.s.gone {
		a.hold()
	}
	a.resumeProbes()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var messages []func()
	for {
		a.mu.Lock()
		messages, a.inbox = a.inbox, messages[:0]
		a.mu.Unlock()
		for i, f := range messages {
			f()
			messages[i] = nil
		}
		now := time.Now()
		p := a.s.decide(now)
		for i := range p.actions {
			a.do(&p.actions[i], now)
		}
		if a.ended {
			return
		}
		p.at(a.publish(now))
		a.settle()
		if p.wake.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(max(time.Until(p.wake), 0))
		}
		select {
		case <-ctx.Done():
			return
		case <-a.wake:
		case <-timer.C:
		}
	}
}

// hold watches the objects that the pod uses.
func (a *Actor) hold() {
	refs := source.Of(a.s.pod)
	if len(refs) == 0 || a.s.finished || a.s.rejected != nil {
		return
	}
	a.d.Sources.Hold(a.ctx, a.s.uid, refs, func() {
		a.post(func() {
			a.s.stale = true
			a.s.volumesAt = time.Time{}
			for c := range a.s.all {
				if c.waiting != nil && c.waiting.Reason == reasonConfig {
					c.retryAt = time.Time{}
				}
			}
		})
	})
}

func (a *Actor) update(p *corev1.Pod) {
	old := a.s.pod
	if older(p, a.base) {
		return
	}
	if p.ResourceVersion != a.base.ResourceVersion {
		a.written = nil
	}
	a.base = p
	a.s.setPod(p)
	if old.Generation != p.Generation || len(old.Spec.EphemeralContainers) != len(p.Spec.EphemeralContainers) {
		a.hold()
	}
	if !apiequality.Semantic.DeepEqual(old.Labels, p.Labels) || !apiequality.Semantic.DeepEqual(old.Annotations, p.Annotations) {
		a.s.stale = true // for downward API volumes
	}
}

// older compares resource versions; versions that are no numbers count as new.
func older(a, b *corev1.Pod) bool {
	x, y := a.ResourceVersion, b.ResourceVersion
	if len(x) != len(y) {
		return len(x) < len(y) && x != ""
	}
	return x < y
}

func (a *Actor) event(e *runtimeapi.ContainerEventResponse) {
	s := &a.s
	sb := e.PodSandboxStatus
	if sb != nil && s.sandbox != nil && sb.Id == s.sandbox.id && !s.sandboxOp {
		if s.sandbox.ready && sb.State == runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
			s.sandbox.ready = false
		}
		if ips := sandboxIPs(sb); len(ips) > 0 {
			s.sandbox.ips = ips
		}
	}
	sandboxID := sb.GetId()
	if sandboxID == "" && s.sandbox != nil {
		sandboxID = s.sandbox.id
	}
	if s.sandbox != nil && e.ContainerId == s.sandbox.id && e.ContainerEventType == runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT && !s.sandbox.stopOp {
		s.sandbox.ready = false
	}
	complete := false
	for _, cs := range e.ContainersStatuses {
		complete = complete || cs.Id == e.ContainerId
		a.observe(cs, sandboxID)
	}
	switch e.ContainerEventType {
	case runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT:
		s.forget(e.ContainerId)
	case runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT:
		if !complete {
			a.inspect(e.ContainerId, sandboxID)
		}
	}
}

// inspect asks the runtime for a container of which an event told too little.
func (a *Actor) inspect(id, sandboxID string) {
	known := false
	for c := range a.s.all {
		for _, i := range c.instances {
			known = known || i.id == id
		}
	}
	if !known {
		return
	}
	a.async(func(ctx context.Context) func() {
		r, err := a.d.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
		return func() {
			switch {
			case err == nil:
				a.observe(r.Status, sandboxID)
			case cri.IsNotFound(err):
				a.s.forget(id)
			}
		}
	})
}

// observe merges a container's status and does what follows from its end.
func (a *Actor) observe(cs *runtimeapi.ContainerStatus, sandboxID string) {
	c, i, changed := a.s.observe(cs, sandboxID)
	if !changed || !i.exited() {
		return
	}
	a.readMessage(c, i)
	if c.last() != i {
		return
	}
	if c.probes != nil {
		c.probes()
		c.probes = nil
	}
	c.started, c.ready = false, false
	c.image = nil
	if c.restart != nil && !c.restart.force {
		c.restart = nil
	}
}

func (a *Actor) readMessage(c *container, i *instance) {
	if i.read {
		return
	}
	i.read = true
	text := a.d.terminationMessage(a.s.pod, c.spec, i, len(a.s.containers))
	if i.message != "" && text != "" {
		i.message += ": " + text
	} else if text != "" {
		i.message = text
	}
}

// async runs f beside the actor; what f returns is run by the actor.
func (a *Actor) async(f func(ctx context.Context) func()) {
	a.asyncIn(a.ctx, f)
}

func (a *Actor) asyncIn(ctx context.Context, f func(ctx context.Context) func()) {
	a.ops.Go(func() {
		if g := f(ctx); g != nil {
			a.post(g)
		}
	})
}

func (a *Actor) tell(c *container, eventType, reason, format string, args ...any) {
	name := ""
	if c != nil {
		name = c.name
	}
	a.d.Event(a.s.pod, name, eventType, reason, format, args...)
}

// settle tells once that the pod needs nothing of the node any more.
func (a *Actor) settle() {
	if a.settled || !(a.s.rejected != nil || a.s.released == done) {
		return
	}
	a.settled = true
	a.d.Settled(a.s.uid)
}
