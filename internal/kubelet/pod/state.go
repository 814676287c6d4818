package pod

import (
	"cmp"
	"context"
	"hash/fnv"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/proa-dev/proa/internal/kubelet/cri"
	"github.com/proa-dev/proa/internal/kubelet/image"
)

// state is all that is known of a pod. Only the actor's goroutine touches it;
// decide reads it and says what to do.
type state struct {
	pod  *corev1.Pod
	uid  types.UID
	seen time.Time
	// startTime is when the kubelet took the pod.
	startTime time.Time

	rejected *Rejection

	sandbox    *sandbox
	old        []*sandbox // stopped ones, to be removed with the pod
	sandboxOp  bool
	sandboxAt  time.Time // when the next attempt may be made
	sandboxTry int

	containers map[string]*container
	inits      []*container
	apps       []*container
	ephemeral  []*container

	volumes     progress
	volumesAt   time.Time
	volumesTry  int
	stale       bool // a source of a volume has changed
	rotateAt    time.Time
	refreshing  bool
	initialized bool

	// kill is why the pod has to stop; nil while it runs.
	kill *kill
	// gone: the object has been deleted from the API.
	gone bool
	// finished: all containers are done; the phase is final.
	finished bool

	released   progress // volumes taken away
	deletedAPI progress
	removed    progress // sandboxes, logs and directories
	removeAt   time.Time
	removeTry  int
}

type progress int

const (
	todo progress = iota
	busy
	done
)

type kill struct {
	since time.Time
	grace time.Duration
	// phase, reason and message of the status, if the kubelet ends the pod itself.
	failed          bool
	reason, message string
}

type sandbox struct {
	id      string
	attempt uint32
	ready   bool
	ips     []string
	created int64
	stopOp  bool
}

type containerKind int

const (
	kindApp containerKind = iota
	kindInit
	kindSidecar
	kindEphemeral
)

type operation int

const (
	idle operation = iota
	pulling
	starting
)

type container struct {
	name string
	spec *corev1.Container
	kind containerKind
	// target is the container whose processes an ephemeral one shares.
	target string

	// instances, the newest first.
	instances []*instance
	// base is the restart count of the next instance if there are none.
	base uint32

	op     operation
	cancel context.CancelFunc
	image  *image.Image

	waiting *corev1.ContainerStateWaiting
	retryAt time.Time
	retries int

	backoff     time.Duration
	backoffAt   time.Time
	passedFor   string // instance whose back-off is over
	backoffTold string // instance for which the BackOff event was sent

	// hooking: the postStart hook runs; the container does not count as running.
	hooking bool

	started, ready bool
	probes         context.CancelFunc

	// restart is set when a running container has to be replaced.
	restart *restart

	removing map[string]bool
	resizing bool
	applied  *corev1.ResourceRequirements
	// resizeErr is what the last attempt to apply the resources ended with.
	resizeErr string
}

type restart struct {
	message string
	grace   time.Duration
	force   bool // whatever the restart policy says
}

type instance struct {
	id        string
	sandbox   string
	attempt   uint32
	state     runtimeapi.ContainerState
	created   int64
	started   int64
	finished  int64
	exitCode  int32
	reason    string
	message   string
	image     string
	imageRef  string
	imageID   string
	logPath   string
	hash      string
	user      *runtimeapi.ContainerUser
	resources *runtimeapi.ContainerResources
	read      bool // the termination message has been read

	stops     int // StopContainer calls in flight
	stopGrace time.Duration
	stopAt    time.Time
	hooked    bool // preStop has been run
	stopErrAt time.Time
	lost      bool // known from the API's status only
}

func (i *instance) running() bool { return i.state == runtimeapi.ContainerState_CONTAINER_RUNNING }
func (i *instance) exited() bool {
	return i.state == runtimeapi.ContainerState_CONTAINER_EXITED || i.state == runtimeapi.ContainerState_CONTAINER_UNKNOWN
}

func (c *container) last() *instance {
	if len(c.instances) == 0 {
		return nil
	}
	return c.instances[0]
}

// here is the newest instance if it is in the current sandbox.
func (s *state) here(c *container) *instance {
	i := c.last()
	if i == nil || s.sandbox == nil || i.sandbox != s.sandbox.id {
		return nil
	}
	return i
}

func (c *container) nextAttempt() uint32 {
	i := c.last()
	if i == nil {
		return c.base
	}
	if i.state == runtimeapi.ContainerState_CONTAINER_CREATED {
		return i.attempt
	}
	return i.attempt + 1
}

// specHash changes when a container has to be replaced after a change of the pod.
func specHash(c *corev1.Container) string {
	h := fnv.New32a()
	h.Write([]byte(c.Name))
	h.Write([]byte{0})
	h.Write([]byte(c.Image))
	return strconv.FormatUint(uint64(h.Sum32()), 16)
}

// setPod takes a newer version of the object.
func (s *state) setPod(p *corev1.Pod) {
	s.pod = p
	if s.containers == nil {
		s.containers = map[string]*container{}
	}
	s.inits, s.apps, s.ephemeral = s.inits[:0], s.apps[:0], s.ephemeral[:0]
	for i := range p.Spec.InitContainers {
		c := &p.Spec.InitContainers[i]
		k := kindInit
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			k = kindSidecar
		}
		s.inits = append(s.inits, s.container(c, k))
	}
	for i := range p.Spec.Containers {
		s.apps = append(s.apps, s.container(&p.Spec.Containers[i], kindApp))
	}
	for i := range p.Spec.EphemeralContainers {
		e := &p.Spec.EphemeralContainers[i]
		spec := corev1.Container(e.EphemeralContainerCommon)
		c := s.container(&spec, kindEphemeral)
		c.target = e.TargetContainerName
		s.ephemeral = append(s.ephemeral, c)
	}
}

func (s *state) container(spec *corev1.Container, k containerKind) *container {
	c := s.containers[spec.Name]
	if c == nil {
		c = &container{name: spec.Name, removing: map[string]bool{}}
		s.containers[spec.Name] = c
	}
	c.spec, c.kind = spec, k
	return c
}

// all yields every container: init, app, ephemeral.
func (s *state) all(yield func(*container) bool) {
	for _, list := range [][]*container{s.inits, s.apps, s.ephemeral} {
		for _, c := range list {
			if !yield(c) {
				return
			}
		}
	}
}

// observe merges what the runtime says of a container. A state never goes back:
// an event may arrive after the answer of a later call. It reports whether
// something changed.
func (s *state) observe(cs *runtimeapi.ContainerStatus, sandboxID string) (*container, *instance, bool) {
	name := cs.Labels[cri.LabelContainerName]
	if name == "" {
		name = cs.GetMetadata().GetName()
	}
	c := s.containers[name]
	if c == nil {
		return nil, nil, false
	}
	var in *instance
	for _, i := range c.instances {
		if i.id == cs.Id {
			in = i
		}
	}
	if in == nil {
		in = &instance{id: cs.Id, sandbox: sandboxID, attempt: cs.GetMetadata().GetAttempt(), created: cs.CreatedAt, state: -1}
		if n, err := strconv.ParseUint(cs.Annotations[cri.AnnotationRestartCount], 10, 32); err == nil {
			in.attempt = uint32(n)
		}
		in.hash = cs.Annotations[cri.AnnotationHash]
		c.instances = append(c.instances, in)
		slices.SortStableFunc(c.instances, func(a, b *instance) int {
			return cmp.Or(cmp.Compare(b.attempt, a.attempt), cmp.Compare(b.created, a.created))
		})
	}
	if cs.State < in.state && in.state != runtimeapi.ContainerState_CONTAINER_UNKNOWN {
		return c, in, false
	}
	changed := cs.State != in.state
	in.state = cs.State
	if cs.StartedAt > 0 {
		in.started = cs.StartedAt
	}
	if in.exited() && changed {
		in.finished, in.exitCode, in.reason, in.message = cs.FinishedAt, cs.ExitCode, cs.Reason, cs.Message
		if in.finished == 0 {
			in.finished = time.Now().UnixNano()
		}
	}
	if cs.Image != nil {
		in.image = cmp.Or(cs.Image.UserSpecifiedImage, cs.Image.Image)
	}
	in.imageRef, in.imageID, in.logPath = cmp.Or(cs.ImageRef, in.imageRef), cmp.Or(cs.ImageId, in.imageID), cmp.Or(cs.LogPath, in.logPath)
	if cs.User != nil {
		in.user = cs.User
	}
	if cs.Resources != nil {
		in.resources = cs.Resources
	}
	return c, in, changed
}

// forget drops an instance that the runtime no longer has.
func (s *state) forget(id string) {
	for c := range s.all {
		for k, i := range c.instances {
			if i.id != id {
				continue
			}
			if k == 0 && !i.exited() {
				// Somebody removed it under our feet: it has ended, unseen.
				i.state, i.exitCode, i.reason, i.finished = runtimeapi.ContainerState_CONTAINER_EXITED, 137, reasonLost, time.Now().UnixNano()
				i.message, i.lost, i.read = lostMessage, true, true
				return
			}
			if k == 0 {
				i.lost = true
				return
			}
			c.instances = slices.Delete(c.instances, k, k+1)
			return
		}
	}
}

const (
	reasonLost  = "ContainerStatusUnknown"
	lostMessage = "The container could not be located when the pod was terminated"
)

// restore fills in, after a restart of the kubelet, what only the API's status
// still knows: restart counts of removed containers, probe results, the phase.
func (s *state) restore() {
	st := &s.pod.Status
	if st.StartTime != nil {
		s.startTime = st.StartTime.Time
	}
	for _, list := range [][]corev1.ContainerStatus{st.InitContainerStatuses, st.ContainerStatuses, st.EphemeralContainerStatuses} {
		for i := range list {
			cs := &list[i]
			c := s.containers[cs.Name]
			if c == nil {
				continue
			}
			in := c.last()
			if in == nil {
				s.restoreLost(c, cs)
				continue
			}
			if in.running() && trimID(cs.ContainerID) == in.id {
				c.started = cs.Started != nil && *cs.Started
				c.ready = cs.Ready
			}
		}
	}
	if st.Phase == corev1.PodSucceeded || st.Phase == corev1.PodFailed {
		s.finished = true
	}
}

func (s *state) restoreLost(c *container, cs *corev1.ContainerStatus) {
	var in *instance
	switch {
	case cs.State.Running != nil:
		in = &instance{exitCode: 137, reason: reasonLost, message: lostMessage, started: cs.State.Running.StartedAt.UnixNano(), finished: time.Now().UnixNano()}
	case cs.State.Terminated != nil:
		in = fromTerminated(cs.State.Terminated)
	case cs.LastTerminationState.Terminated != nil:
		in = fromTerminated(cs.LastTerminationState.Terminated)
	default:
		return
	}
	in.id, in.attempt, in.image, in.imageRef = trimID(cs.ContainerID), uint32(cs.RestartCount), cs.Image, cs.ImageID
	in.state, in.lost, in.read = runtimeapi.ContainerState_CONTAINER_EXITED, true, true
	c.instances = []*instance{in}
}

func fromTerminated(t *corev1.ContainerStateTerminated) *instance {
	return &instance{exitCode: t.ExitCode, reason: t.Reason, message: t.Message, started: t.StartedAt.UnixNano(), finished: t.FinishedAt.UnixNano()}
}
