package runtime

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/proa-dev/proa/internal/runtime/images"
	"github.com/proa-dev/proa/internal/runtime/shim"
)

// container is one container. Its helper process keeps the truth in dir.
type container struct {
	mu  sync.Mutex
	dir string
	containerRecord
	starting bool
	process  *os.File      // pidfd of the first process, while it runs
	conn     net.Conn      // to the helper; its end is the container's end
	done     chan struct{} // closed when the container has ended
	release  func()        // the images' layers
	devices  []shim.Device // until it is described
	disk     disk
	rate     rate
}

// containerRecord is what is kept of a container on disk.
type containerRecord struct {
	ID, Sandbox string
	Config      *runtimeapi.ContainerConfig
	Image       images.Image
	Cgroup      string
	// Volumes are the images that are mounted in it.
	Volumes    []images.Image
	LogPath    string
	StopSignal string
	User       *runtimeapi.ContainerUser
	Spec       execSpec
	Created    int64
	Started    int64
	Finished   int64
	Pid        int
	Exited     bool
	ExitCode   int32
	Reason     string
	Message    string
}

// execSpec is what a command in the container shares with its main process.
type execSpec struct {
	Env        []string
	Cwd        string
	UID, GID   uint32
	Groups     []uint32
	Caps       uint64
	NoNewPrivs bool
	// Seccomp is the filter's file; "": unconfined.
	Seccomp      string
	SeccompFlags uint32
	AppArmor     string
}

// CreateContainer prepares all that StartContainer needs.
func (s *Server) CreateContainer(ctx context.Context, req *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	sb, err := s.sandbox(req.PodSandboxId)
	if err != nil {
		return nil, err
	}
	sb.mu.Lock()
	stopped := sb.Stopped
	sb.mu.Unlock()
	if stopped {
		return nil, status.Errorf(codes.FailedPrecondition, "sandbox %s is not ready", sb.ID)
	}
	cfg := req.GetConfig()
	if cfg.GetMetadata() == nil || cfg.GetImage() == nil {
		return nil, status.Error(codes.InvalidArgument, "config.metadata and config.image are needed")
	}
	img, err := s.cfg.Images.Resolve(cfg.Image.Image)
	if err != nil {
		return nil, status.Errorf(codes.NotFound, "image %q: %v", cfg.Image.Image, err)
	}
	id := newID()
	c := &container{dir: filepath.Join(s.cfg.State, "containers", id), done: make(chan struct{}),
		containerRecord: containerRecord{ID: id, Sandbox: sb.ID, Config: cfg, Image: img, Created: time.Now().UnixNano()}}
	if err := s.prepare(c, sb); err != nil {
		s.cleanup(c, id)
		return nil, fmt.Errorf("create container %s: %w", cfg.Metadata.Name, err)
	}
	s.mu.Lock()
	s.containers[id] = c
	s.mu.Unlock()
	s.events.publish(s, c, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT)
	return &runtimeapi.CreateContainerResponse{ContainerId: id}, nil
}

func (s *Server) prepare(c *container, sb *sandbox) error {
	if err := os.Mkdir(c.dir, 0o711); err != nil {
		return err
	}
	layers, release, err := s.cfg.Images.Hold(c.Image)
	if err != nil {
		return err
	}
	c.hold(release)
	config, err := s.cfg.Images.Config(c.Image.ID)
	if err != nil {
		return err
	}
	data := filepath.Join(s.cfg.Root, c.ID)
	for _, dir := range []string{"upper", "work", "rootfs"} {
		if err := os.MkdirAll(filepath.Join(data, dir), 0o755); err != nil {
			return err
		}
	}
	if err := mountOverlay(data, filepath.Join(data, "rootfs"), layers, false); err != nil {
		return fmt.Errorf("stack the image's layers: %w", err)
	}
	c.Cgroup = path.Join(s.parent(sb), c.ID)
	if err := s.cgroups.create(c.Cgroup); err != nil {
		return err
	}
	if err := s.cgroups.limit(c.Cgroup, c.Config.GetLinux().GetResources()); err != nil {
		return err
	}
	if c.Config.LogPath != "" && sb.Config.LogDirectory != "" {
		c.LogPath = filepath.Join(sb.Config.LogDirectory, c.Config.LogPath)
		if err := os.MkdirAll(filepath.Dir(c.LogPath), 0o755); err != nil {
			return err
		}
	}
	if err := s.imageVolumes(c); err != nil {
		return err
	}
	nodes, rules, err := devices(c.Config)
	if err != nil {
		return err
	}
	if err := s.cgroups.allow(c.Cgroup, rules); err != nil {
		return err
	}
	c.devices = nodes
	spec, err := s.describe(c, sb, filepath.Join(data, "rootfs"), config)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(c.dir, "spec"), spec, 0o600); err != nil {
		return err
	}
	return writeJSON(filepath.Join(c.dir, "container.json"), &c.containerRecord)
}

// mountOverlay stacks layers, below a writable one unless readonly. The layers are named by
// descriptor, so that many do not overflow the option page.
func mountOverlay(data, at string, layers []string, readonly bool) error {
	var fds []int
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	lower := make([]string, 0, len(layers)+1)
	for _, l := range layers {
		fd, err := unix.Open(l, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open layer %s: %w", l, err)
		}
		fds = append(fds, fd)
		lower = append(lower, fmt.Sprintf("/proc/self/fd/%d", fd))
	}
	if len(lower) == 0 || readonly { // without a writable layer two are wanted
		empty := filepath.Join(data, "empty")
		if err := os.MkdirAll(empty, 0o755); err != nil {
			return err
		}
		lower = append(lower, empty)
	}
	opts := "lowerdir=" + strings.Join(lower, ":")
	if readonly {
		return unix.Mount("overlay", at, "overlay", unix.MS_RDONLY, opts)
	}
	opts += fmt.Sprintf(",upperdir=%s,workdir=%s", filepath.Join(data, "upper"), filepath.Join(data, "work"))
	// What a container writes does not outlive the machine's run: nothing of it must be
	// synced, above all not the whole disk when it is unmounted. Linux before 5.10
	// does not know the word.
	err := unix.Mount("overlay", at, "overlay", 0, opts+",volatile")
	if errors.Is(err, unix.EINVAL) {
		err = unix.Mount("overlay", at, "overlay", 0, opts)
	}
	return err
}

// cleanup removes all of a container that does not run.
func (s *Server) cleanup(c *container, id string) {
	data := filepath.Join(s.cfg.Root, id)
	mounts, _ := filepath.Glob(filepath.Join(data, "volumes", "*"))
	for _, path := range append(mounts, filepath.Join(data, "rootfs")) {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			s.log.Warn("unmount a container's file system", "container", id, "path", path, "err", err)
			return
		}
	}
	errs := []error{removeTree(data)}
	if c.Cgroup != "" {
		errs = append(errs, s.cgroups.remove(c.Cgroup))
	}
	errs = append(errs, removeTree(c.dir))
	if c.release != nil {
		c.release()
	}
	if err := errors.Join(errs...); err != nil {
		s.log.Warn("remove a container", "container", id, "err", err)
	}
}

// StartContainer runs a created container's program.
func (s *Server) StartContainer(ctx context.Context, req *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	c, err := s.container(req.ContainerId)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	if c.Started != 0 || c.Exited || c.starting {
		c.mu.Unlock()
		return nil, status.Errorf(codes.FailedPrecondition, "container %s was started before", c.ID)
	}
	c.starting = true
	c.mu.Unlock()
	// Unlocked: a mount may hang, and the container is still looked at.
	pid, at, process, err := s.launch(ctx, c)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.starting = false
	if err != nil {
		c.Exited, c.ExitCode, c.Reason, c.Message = true, startFailed, "StartError", err.Error()
		c.Finished = time.Now().UnixNano()
		close(c.done)
		_ = writeJSON(filepath.Join(c.dir, "container.json"), &c.containerRecord)
		s.events.publish(s, c, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
		return nil, fmt.Errorf("start container %s: %w", c.Config.Metadata.Name, err)
	}
	c.Pid, c.Started, c.process = pid, at, process
	s.follow(c)
	s.events.publish(s, c, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
	return &runtimeapi.StartContainerResponse{}, nil
}

// dial connects to a container's helper. The socket's path may be too long for
// its address: it is reached through a descriptor of its folder.
func (c *container) dial() (net.Conn, error) {
	dir, err := os.Open(c.dir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return net.Dial("unix", fmt.Sprintf("/proc/self/fd/%d/ctl.sock", dir.Fd()))
}

// StopContainer ends a container: its stop signal, then, after timeout seconds, SIGKILL.
func (s *Server) StopContainer(ctx context.Context, req *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	c, err := s.container(req.ContainerId)
	if status.Code(err) == codes.NotFound {
		return &runtimeapi.StopContainerResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	return &runtimeapi.StopContainerResponse{}, s.kill(ctx, c, time.Duration(req.Timeout)*time.Second)
}

// killWait bounds the wait for a process that was sent SIGKILL.
const killWait = 30 * time.Second

func (s *Server) kill(ctx context.Context, c *container, grace time.Duration) error {
	c.mu.Lock()
	running, starting, stop := c.Started != 0 && !c.Exited, c.starting, c.StopSignal
	c.mu.Unlock()
	if starting {
		return status.Errorf(codes.Unavailable, "container %s is being started", c.ID)
	}
	if !running {
		return nil
	}
	if grace > 0 {
		if err := c.signal(signalNumber(stop)); err != nil {
			return err
		}
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case <-c.done:
			return nil
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := c.signal(unix.SIGKILL); err != nil {
		return err
	}
	if !c.held() {
		s.cgroups.kill(c.Cgroup) // its helper could not say which process it is
	}
	timer := time.NewTimer(killWait)
	defer timer.Stop()
	select {
	case <-c.done:
		return nil
	case <-timer.C:
		return status.Errorf(codes.DeadlineExceeded, "container %s does not end", c.ID)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// held reports whether the first process is at hand.
func (c *container) held() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.process != nil
}

// signal sends a signal to the container's first process.
func (c *container) signal(sig unix.Signal) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.process == nil {
		return nil // it ends already, or is not known
	}
	if err := unix.PidfdSendSignal(int(c.process.Fd()), sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("send %s to container %s: %w", unix.SignalName(sig), c.ID, err)
	}
	return nil
}

func signalNumber(name string) unix.Signal {
	if name == "" {
		return unix.SIGTERM
	}
	upper := strings.ToUpper(name)
	if !strings.HasPrefix(upper, "SIG") {
		var n int
		if _, err := fmt.Sscan(upper, &n); err == nil && n > 0 && n < 65 {
			return unix.Signal(n)
		}
		upper = "SIG" + upper
	}
	if sig := unix.SignalNum(upper); sig != 0 {
		return sig
	}
	return unix.SIGTERM
}

// RemoveContainer removes a container; a running one is killed first.
func (s *Server) RemoveContainer(ctx context.Context, req *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	c, err := s.container(req.ContainerId)
	if status.Code(err) == codes.NotFound {
		return &runtimeapi.RemoveContainerResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	if err := s.kill(ctx, c, 0); err != nil {
		return nil, err
	}
	s.mu.Lock()
	delete(s.containers, c.ID)
	s.mu.Unlock()
	s.cleanup(c, c.ID)
	s.events.publish(s, c, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT)
	return &runtimeapi.RemoveContainerResponse{}, nil
}

func (c *container) state() runtimeapi.ContainerState {
	switch {
	case c.Exited:
		return runtimeapi.ContainerState_CONTAINER_EXITED
	case c.Started != 0:
		return runtimeapi.ContainerState_CONTAINER_RUNNING
	}
	return runtimeapi.ContainerState_CONTAINER_CREATED
}

func (s *Server) statusOf(c *container) *runtimeapi.ContainerStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	ref := c.Image.ID
	if len(c.Image.RepoDigests) > 0 {
		ref = c.Image.RepoDigests[0]
	}
	return &runtimeapi.ContainerStatus{
		Id: c.ID, Metadata: c.Config.Metadata, State: c.state(), CreatedAt: c.Created, StartedAt: c.Started, FinishedAt: c.Finished,
		ExitCode: c.ExitCode, Image: c.Config.Image, ImageRef: ref, ImageId: c.Image.ID, Reason: c.Reason, Message: c.Message,
		Labels: c.Config.Labels, Annotations: c.Config.Annotations, Mounts: c.Config.Mounts, LogPath: c.LogPath, User: c.User,
		Resources: &runtimeapi.ContainerResources{Linux: c.Config.GetLinux().GetResources()},
	}
}

// ContainerStatus describes a container.
func (s *Server) ContainerStatus(_ context.Context, req *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	c, err := s.container(req.ContainerId)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ContainerStatusResponse{Status: s.statusOf(c)}, nil
}

// ListContainers lists the containers that match a filter.
func (s *Server) ListContainers(_ context.Context, req *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	f := req.GetFilter()
	s.mu.Lock()
	list := make([]*container, 0, len(s.containers))
	for _, c := range s.containers {
		list = append(list, c)
	}
	s.mu.Unlock()
	out := &runtimeapi.ListContainersResponse{}
	for _, c := range list {
		st := s.statusOf(c)
		if !strings.HasPrefix(c.ID, f.GetId()) || !strings.HasPrefix(c.Sandbox, f.GetPodSandboxId()) ||
			f.GetState() != nil && f.State.State != st.State || !matches(f.GetLabelSelector(), st.Labels) {
			continue
		}
		out.Containers = append(out.Containers, &runtimeapi.Container{Id: c.ID, PodSandboxId: c.Sandbox, Metadata: st.Metadata, Image: st.Image,
			ImageRef: st.ImageRef, ImageId: st.ImageId, State: st.State, CreatedAt: st.CreatedAt, Labels: st.Labels, Annotations: st.Annotations})
	}
	return out, nil
}

// UpdateContainerResources changes the limits of a container.
func (s *Server) UpdateContainerResources(_ context.Context, req *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	c, err := s.container(req.ContainerId)
	if err != nil {
		return nil, err
	}
	if err := s.cgroups.limit(c.Cgroup, req.Linux); err != nil {
		return nil, fmt.Errorf("update the resources of container %s: %w", c.ID, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	linux := &runtimeapi.LinuxContainerConfig{}
	if c.Config.Linux != nil {
		linux = proto.CloneOf(c.Config.Linux)
	}
	linux.Resources = merge(linux.Resources, req.Linux)
	changed := proto.CloneOf(c.Config) // the old one may be on its way to a client
	changed.Linux = linux
	c.Config = changed
	return &runtimeapi.UpdateContainerResourcesResponse{}, writeJSON(filepath.Join(c.dir, "container.json"), &c.containerRecord)
}

// merge is a container's resources after an update, in which zero means unchanged.
func merge(old, update *runtimeapi.LinuxContainerResources) *runtimeapi.LinuxContainerResources {
	out := proto.CloneOf(update)
	if out == nil {
		return old
	}
	keep := func(to *int64, from int64) {
		if *to == 0 {
			*to = from
		}
	}
	keep(&out.CpuPeriod, old.GetCpuPeriod())
	keep(&out.CpuQuota, old.GetCpuQuota())
	keep(&out.CpuShares, old.GetCpuShares())
	keep(&out.MemoryLimitInBytes, old.GetMemoryLimitInBytes())
	keep(&out.MemorySwapLimitInBytes, old.GetMemorySwapLimitInBytes())
	keep(&out.OomScoreAdj, old.GetOomScoreAdj())
	if out.CpusetCpus == "" {
		out.CpusetCpus = old.GetCpusetCpus()
	}
	if out.CpusetMems == "" {
		out.CpusetMems = old.GetCpusetMems()
	}
	if len(out.HugepageLimits) == 0 {
		out.HugepageLimits = old.GetHugepageLimits()
	}
	return out
}

// ReopenContainerLog makes the helper open the log's path anew, after a rotation.
func (s *Server) ReopenContainerLog(_ context.Context, req *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	c, err := s.container(req.ContainerId)
	if err != nil {
		return nil, err
	}
	if _, err := c.tell("reopen"); err != nil {
		return nil, fmt.Errorf("reopen the log of container %s: %w", c.ID, err)
	}
	return &runtimeapi.ReopenContainerLogResponse{}, nil
}

// tell sends the helper a command and returns its answer.
func (c *container) tell(command string) (string, error) {
	conn, err := c.dial()
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
			return "", status.Errorf(codes.FailedPrecondition, "container %s is not running", c.ID)
		}
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := fmt.Fprintf(conn, "%s\n", command); err != nil {
		return "", err
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimSuffix(answer, "\n"), err
}
