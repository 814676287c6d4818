// Package crifake is a container runtime in memory, for tests: the foreign contract
// of the CRI without processes. What a container does is a Script.
package crifake

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Script says what a container does.
type Script struct {
	// Exit after this time (zero: runs until it is stopped) with Code.
	Exit time.Duration
	Code int32
	// StopTakes is how long it needs after SIGTERM; it is killed at the timeout.
	StopTakes time.Duration
	// FailCreate and FailStart are errors of the calls.
	FailCreate, FailStart error
	// Exec answers commands.
	Exec func(cmd []string) (code int32, out string, err error)
}

// Runtime is both services of the CRI.
type Runtime struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer

	// Script is asked for each container that is created.
	Script func(name string, attempt uint32) Script
	// Pull answers PullImage (nil: succeeds).
	Pull func(image string, auth *runtimeapi.AuthConfig) error
	// NoEvents makes GetContainerEvents unimplemented.
	NoEvents bool

	mu         sync.Mutex
	seq        int
	sandboxes  map[string]*sandbox
	containers map[string]*container
	images     map[string]*runtimeapi.Image
	subs       map[chan *runtimeapi.ContainerEventResponse]bool
	Calls      []string
}

type sandbox struct {
	status *runtimeapi.PodSandboxStatus
	Config *runtimeapi.PodSandboxConfig
}

type container struct {
	status  *runtimeapi.ContainerStatus
	config  *runtimeapi.ContainerConfig
	sandbox string
	script  Script
	stopped chan struct{}
	exited  chan struct{}
}

func New() *Runtime {
	return &Runtime{
		sandboxes: map[string]*sandbox{}, containers: map[string]*container{}, images: map[string]*runtimeapi.Image{},
		subs: map[chan *runtimeapi.ContainerEventResponse]bool{},
	}
}

func notFound(id string) error { return status.Errorf(codes.NotFound, "%s not found", id) }

func (r *Runtime) call(format string, args ...any) {
	r.Calls = append(r.Calls, fmt.Sprintf(format, args...))
}

func (r *Runtime) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{RuntimeName: "fake", RuntimeVersion: "1", RuntimeApiVersion: "v1"}, nil
}

func (r *Runtime) Status(context.Context, *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	return &runtimeapi.StatusResponse{Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
		{Type: runtimeapi.RuntimeReady, Status: true}, {Type: runtimeapi.NetworkReady, Status: true},
	}}}, nil
}

func (r *Runtime) RunPodSandbox(_ context.Context, q *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seq++
	id := fmt.Sprintf("sandbox%d", r.seq)
	r.call("RunPodSandbox %s", q.Config.Metadata.Name)
	r.sandboxes[id] = &sandbox{Config: q.Config, status: &runtimeapi.PodSandboxStatus{
		Id: id, Metadata: q.Config.Metadata, CreatedAt: time.Now().UnixNano(), Labels: q.Config.Labels, Annotations: q.Config.Annotations,
		Network: &runtimeapi.PodSandboxNetworkStatus{Ip: fmt.Sprintf("10.0.0.%d", r.seq)},
	}}
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: id}, nil
}

func (r *Runtime) StopPodSandbox(_ context.Context, q *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	r.mu.Lock()
	s := r.sandboxes[q.PodSandboxId]
	if s == nil {
		r.mu.Unlock()
		return nil, notFound(q.PodSandboxId)
	}
	r.call("StopPodSandbox %s", s.Config.Metadata.Name)
	s.status.State = runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	var running []string
	for id, c := range r.containers {
		if c.sandbox == q.PodSandboxId && c.status.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			running = append(running, id)
		}
	}
	r.mu.Unlock()
	for _, id := range running {
		r.Kill(id, 137)
	}
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

func (r *Runtime) RemovePodSandbox(_ context.Context, q *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.sandboxes[q.PodSandboxId]; s != nil {
		r.call("RemovePodSandbox %s", s.Config.Metadata.Name)
	}
	delete(r.sandboxes, q.PodSandboxId)
	for id, c := range r.containers {
		if c.sandbox == q.PodSandboxId {
			delete(r.containers, id)
		}
	}
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}

func (r *Runtime) PodSandboxStatus(_ context.Context, q *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.sandboxes[q.PodSandboxId]
	if s == nil {
		return nil, notFound(q.PodSandboxId)
	}
	return &runtimeapi.PodSandboxStatusResponse{Status: copySandbox(s.status)}, nil
}

func copySandbox(s *runtimeapi.PodSandboxStatus) *runtimeapi.PodSandboxStatus {
	return &runtimeapi.PodSandboxStatus{Id: s.Id, Metadata: s.Metadata, State: s.State, CreatedAt: s.CreatedAt, Network: s.Network, Labels: s.Labels, Annotations: s.Annotations}
}

func (r *Runtime) ListPodSandbox(context.Context, *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := &runtimeapi.ListPodSandboxResponse{}
	for _, s := range r.sandboxes {
		out.Items = append(out.Items, &runtimeapi.PodSandbox{Id: s.status.Id, Metadata: s.status.Metadata, State: s.status.State, CreatedAt: s.status.CreatedAt, Labels: s.status.Labels, Annotations: s.status.Annotations})
	}
	return out, nil
}

func (r *Runtime) CreateContainer(_ context.Context, q *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sandboxes[q.PodSandboxId] == nil {
		return nil, notFound(q.PodSandboxId)
	}
	var sc Script
	if r.Script != nil {
		sc = r.Script(q.Config.Metadata.Name, q.Config.Metadata.Attempt)
	}
	r.call("CreateContainer %s/%d", q.Config.Metadata.Name, q.Config.Metadata.Attempt)
	if sc.FailCreate != nil {
		return nil, sc.FailCreate
	}
	r.seq++
	id := fmt.Sprintf("container%d", r.seq)
	r.containers[id] = &container{
		config: q.Config, sandbox: q.PodSandboxId, script: sc, stopped: make(chan struct{}), exited: make(chan struct{}),
		status: &runtimeapi.ContainerStatus{
			Id: id, Metadata: q.Config.Metadata, CreatedAt: time.Now().UnixNano(), Image: q.Config.Image, ImageRef: q.Config.Image.Image,
			Labels: q.Config.Labels, Annotations: q.Config.Annotations, Mounts: q.Config.Mounts,
		},
	}
	return &runtimeapi.CreateContainerResponse{ContainerId: id}, nil
}

func (r *Runtime) StartContainer(_ context.Context, q *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	r.mu.Lock()
	c := r.containers[q.ContainerId]
	if c == nil {
		r.mu.Unlock()
		return nil, notFound(q.ContainerId)
	}
	r.call("StartContainer %s/%d", c.config.Metadata.Name, c.config.Metadata.Attempt)
	if c.script.FailStart != nil {
		c.status.State, c.status.ExitCode, c.status.Reason = runtimeapi.ContainerState_CONTAINER_EXITED, 128, "StartError"
		c.status.FinishedAt = time.Now().UnixNano()
		close(c.exited)
		r.mu.Unlock()
		return nil, c.script.FailStart
	}
	c.status.State, c.status.StartedAt = runtimeapi.ContainerState_CONTAINER_RUNNING, time.Now().UnixNano()
	r.emit(c, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
	r.mu.Unlock()
	if c.script.Exit > 0 {
		go func() {
			t := time.NewTimer(c.script.Exit)
			defer t.Stop()
			select {
			case <-t.C:
				r.Kill(q.ContainerId, c.script.Code)
			case <-c.exited:
			}
		}()
	}
	return &runtimeapi.StartContainerResponse{}, nil
}

// Kill ends a running container with an exit code.
func (r *Runtime) Kill(id string, code int32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.containers[id]
	if c == nil || c.status.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return
	}
	c.status.State, c.status.ExitCode, c.status.FinishedAt = runtimeapi.ContainerState_CONTAINER_EXITED, code, time.Now().UnixNano()
	c.status.Reason = "Completed"
	if code != 0 {
		c.status.Reason = "Error"
	}
	close(c.exited)
	r.emit(c, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
}

func (r *Runtime) StopContainer(ctx context.Context, q *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	r.mu.Lock()
	c := r.containers[q.ContainerId]
	if c == nil {
		r.mu.Unlock()
		return nil, notFound(q.ContainerId)
	}
	r.call("StopContainer %s/%d %ds", c.config.Metadata.Name, c.config.Metadata.Attempt, q.Timeout)
	r.mu.Unlock()
	takes, code := c.script.StopTakes, int32(143)
	if limit := time.Duration(q.Timeout) * time.Second; takes > limit {
		takes, code = limit, 137
	}
	t := time.NewTimer(takes)
	defer t.Stop()
	select {
	case <-t.C:
		r.Kill(q.ContainerId, code)
	case <-c.exited:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return &runtimeapi.StopContainerResponse{}, nil
}

func (r *Runtime) RemoveContainer(_ context.Context, q *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.containers[q.ContainerId]; c != nil {
		r.call("RemoveContainer %s/%d", c.config.Metadata.Name, c.config.Metadata.Attempt)
		delete(r.containers, q.ContainerId)
	}
	return &runtimeapi.RemoveContainerResponse{}, nil
}

func (r *Runtime) ListContainers(context.Context, *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := &runtimeapi.ListContainersResponse{}
	for _, c := range r.containers {
		out.Containers = append(out.Containers, &runtimeapi.Container{Id: c.status.Id, PodSandboxId: c.sandbox, Metadata: c.status.Metadata, State: c.status.State, CreatedAt: c.status.CreatedAt, Labels: c.status.Labels, Annotations: c.status.Annotations, Image: c.status.Image, ImageRef: c.status.ImageRef})
	}
	return out, nil
}

func copyStatus(s *runtimeapi.ContainerStatus) *runtimeapi.ContainerStatus {
	return &runtimeapi.ContainerStatus{
		Id: s.Id, Metadata: s.Metadata, State: s.State, CreatedAt: s.CreatedAt, StartedAt: s.StartedAt, FinishedAt: s.FinishedAt, ExitCode: s.ExitCode,
		Image: s.Image, ImageRef: s.ImageRef, Reason: s.Reason, Message: s.Message, Labels: s.Labels, Annotations: s.Annotations, Mounts: s.Mounts, LogPath: s.LogPath,
	}
}

func (r *Runtime) ContainerStatus(_ context.Context, q *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.containers[q.ContainerId]
	if c == nil {
		return nil, notFound(q.ContainerId)
	}
	return &runtimeapi.ContainerStatusResponse{Status: copyStatus(c.status)}, nil
}

func (r *Runtime) UpdateContainerResources(_ context.Context, q *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.call("UpdateContainerResources %d", q.Linux.CpuShares)
	return &runtimeapi.UpdateContainerResourcesResponse{}, nil
}

func (r *Runtime) ExecSync(_ context.Context, q *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	r.mu.Lock()
	c := r.containers[q.ContainerId]
	r.mu.Unlock()
	if c == nil {
		return nil, notFound(q.ContainerId)
	}
	if c.script.Exec == nil {
		return &runtimeapi.ExecSyncResponse{}, nil
	}
	code, out, err := c.script.Exec(q.Cmd)
	return &runtimeapi.ExecSyncResponse{ExitCode: code, Stdout: []byte(out)}, err
}

// emit is called with mu held.
func (r *Runtime) emit(c *container, t runtimeapi.ContainerEventType) {
	e := &runtimeapi.ContainerEventResponse{ContainerId: c.status.Id, ContainerEventType: t, CreatedAt: time.Now().UnixNano(), PodSandboxStatus: copySandbox(r.sandboxes[c.sandbox].status)}
	for _, o := range r.containers {
		if o.sandbox == c.sandbox {
			e.ContainersStatuses = append(e.ContainersStatuses, copyStatus(o.status))
		}
	}
	for ch := range r.subs {
		ch <- e
	}
}

func (r *Runtime) GetContainerEvents(_ *runtimeapi.GetEventsRequest, s grpc.ServerStreamingServer[runtimeapi.ContainerEventResponse]) error {
	if r.NoEvents {
		return status.Error(codes.Unimplemented, "no events")
	}
	ch := make(chan *runtimeapi.ContainerEventResponse, 1000)
	r.mu.Lock()
	r.subs[ch] = true
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		delete(r.subs, ch)
		r.mu.Unlock()
	}()
	if err := s.SendHeader(nil); err != nil {
		return err
	}
	for {
		select {
		case <-s.Context().Done():
			return s.Context().Err()
		case e := <-ch:
			if err := s.Send(e); err != nil {
				return err
			}
		}
	}
}

// FailSandbox makes a pod's sandbox die.
func (r *Runtime) FailSandbox(podName string) {
	r.mu.Lock()
	var ids []string
	for id, s := range r.sandboxes {
		if s.Config.Metadata.Name == podName {
			s.status.State = runtimeapi.PodSandboxState_SANDBOX_NOTREADY
			for cid, c := range r.containers {
				if c.sandbox == id {
					ids = append(ids, cid)
				}
			}
		}
	}
	r.mu.Unlock()
	for _, id := range ids {
		r.Kill(id, 137)
	}
}

// Running returns "name/attempt" of the running containers, sorted.
func (r *Runtime) Running() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for _, c := range r.containers {
		if c.status.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			out = append(out, fmt.Sprintf("%s/%d", c.config.Metadata.Name, c.config.Metadata.Attempt))
		}
	}
	slices.Sort(out)
	return out
}

// Sandboxes returns how many there are.
func (r *Runtime) Sandboxes() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.sandboxes)
}

// Config returns the configuration of the newest container of a name.
func (r *Runtime) Config(name string) (*runtimeapi.ContainerConfig, string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var best *container
	for _, c := range r.containers {
		if c.config.Metadata.Name == name && (best == nil || c.status.CreatedAt > best.status.CreatedAt) {
			best = c
		}
	}
	if best == nil {
		return nil, ""
	}
	return best.config, best.status.Id
}

// Log returns the calls so far.
func (r *Runtime) Log() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.Calls)
}

// AddImage makes an image present.
func (r *Runtime) AddImage(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.images[name] = &runtimeapi.Image{Id: "sha256:" + name, RepoTags: []string{name}, Size: 1000}
}

func (r *Runtime) ListImages(context.Context, *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := &runtimeapi.ListImagesResponse{}
	for _, i := range r.images {
		out.Images = append(out.Images, i)
	}
	return out, nil
}

func (r *Runtime) ImageStatus(_ context.Context, q *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, i := range r.images {
		if name == q.Image.Image || i.Id == q.Image.Image {
			return &runtimeapi.ImageStatusResponse{Image: i}, nil
		}
	}
	return &runtimeapi.ImageStatusResponse{}, nil
}

func (r *Runtime) PullImage(_ context.Context, q *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	r.mu.Lock()
	pull := r.Pull
	r.call("PullImage %s", q.Image.Image)
	r.mu.Unlock()
	if pull != nil {
		if err := pull(q.Image.Image, q.Auth); err != nil {
			return nil, err
		}
	}
	r.AddImage(q.Image.Image)
	return &runtimeapi.PullImageResponse{ImageRef: "sha256:" + q.Image.Image}, nil
}
