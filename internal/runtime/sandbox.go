package runtime

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// sandbox is a pod's surroundings: namespaces, address, cgroup.
type sandbox struct {
	mu  sync.Mutex
	dir string
	record
	rate rate
}

// record is what is kept of a sandbox on disk.
type record struct {
	ID        string
	Config    *runtimeapi.PodSandboxConfig
	Created   int64 // ns
	Addresses []string
	Stopped   bool
	First     int // process that holds the shared process namespace
}

func newID() string {
	b := make([]byte, 32)
	rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

func (sb *sandbox) namespaces() *runtimeapi.NamespaceOption {
	if o := sb.Config.GetLinux().GetSecurityContext().GetNamespaceOptions(); o != nil {
		return o
	}
	return &runtimeapi.NamespaceOption{}
}

func (sb *sandbox) hostNetwork() bool {
	return sb.namespaces().GetNetwork() == runtimeapi.NamespaceMode_NODE
}

func (sb *sandbox) ports() (out []PortMapping) {
	for _, p := range sb.Config.GetPortMappings() {
		if p.HostPort <= 0 {
			continue
		}
		proto := uint8(unix.IPPROTO_TCP)
		switch p.Protocol {
		case runtimeapi.Protocol_UDP:
			proto = unix.IPPROTO_UDP
		case runtimeapi.Protocol_SCTP:
			proto = unix.IPPROTO_SCTP
		}
		out = append(out, PortMapping{proto, p.HostIp, uint16(p.HostPort), uint16(p.ContainerPort)})
	}
	return out
}

// RunPodSandbox makes a sandbox. On an error nothing of it is left.
func (s *Server) RunPodSandbox(ctx context.Context, req *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	cfg := req.GetConfig()
	if cfg.GetMetadata() == nil {
		return nil, status.Error(codes.InvalidArgument, "config.metadata is missing")
	}
	if req.RuntimeHandler != "" {
		return nil, status.Errorf(codes.InvalidArgument, "no runtime handler %q is configured", req.RuntimeHandler)
	}
	id := newID()
	sb := &sandbox{dir: filepath.Join(s.cfg.State, "sandboxes", id), record: record{ID: id, Config: cfg, Created: time.Now().UnixNano()}}
	if u := sb.namespaces().UsernsOptions; u != nil && u.Mode == runtimeapi.NamespaceMode_POD {
		return nil, status.Error(codes.InvalidArgument, "user namespaces are not supported: set hostUsers to true")
	}
	if err := s.make(ctx, sb); err != nil {
		if undo := s.discard(sb); undo != nil {
			s.log.Warn("undo a failed sandbox", "sandbox", id, "err", undo)
		}
		return nil, fmt.Errorf("make sandbox for pod %s/%s: %w", cfg.Metadata.Namespace, cfg.Metadata.Name, err)
	}
	s.mu.Lock()
	s.sandboxes[id] = sb
	s.mu.Unlock()
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: id}, nil
}

func (s *Server) make(ctx context.Context, sb *sandbox) error {
	if err := os.Mkdir(sb.dir, 0o700); err != nil {
		return err
	}
	args := []string{"sandbox", sb.dir, sb.Config.Hostname}
	if sb.namespaces().GetIpc() != runtimeapi.NamespaceMode_NODE {
		args = append(args, "ipc")
	}
	var sysctls strings.Builder
	for name, value := range sb.Config.GetLinux().GetSysctls() {
		line, err := sb.sysctl(name, value)
		if err != nil {
			return err
		}
		sysctls.WriteString(line)
	}
	taken := false
	if !sb.hostNetwork() {
		// What a sysctl sets for new interfaces would come too late to one that is ready.
		if s.cfg.Network != nil && len(sb.Config.GetLinux().GetSysctls()) == 0 {
			var err error
			if sb.Addresses, taken, err = s.cfg.Network.Take(ctx, sb.ID, filepath.Join(sb.dir, "net"), sb.ports()); err != nil {
				return err
			}
		}
		if taken {
			args = append(args, "held-net", "uts")
		} else {
			args = append(args, "net", "uts")
		}
		// A process without privileges may open ports below 1024 and ping: its network is its own.
		for name, value := range map[string]string{"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"} {
			if _, given := sb.Config.GetLinux().GetSysctls()[name]; given {
				continue
			}
			line, err := sb.sysctl(name, value)
			if err != nil {
				return err
			}
			sysctls.WriteString(line)
		}
	}
	if len(args) > 3 {
		cmd := exec.CommandContext(ctx, s.helper, args...)
		cmd.Stdin = strings.NewReader(sysctls.String())
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w", strings.TrimSpace(string(out)), err)
		}
	}
	if sb.namespaces().GetIpc() != runtimeapi.NamespaceMode_NODE {
		shm := filepath.Join(sb.dir, "shm")
		if err := os.Mkdir(shm, 0o1777); err != nil {
			return err
		}
		if err := unix.Mount("shm", shm, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=1777,size=65536k"); err != nil {
			return fmt.Errorf("mount /dev/shm: %w", err)
		}
	}
	if parent := sb.Config.GetLinux().GetCgroupParent(); parent != "" {
		if err := s.cgroups.create(parent); err != nil {
			return err
		}
		if err := s.cgroups.limit(parent, sb.Config.GetLinux().GetResources()); err != nil {
			return err
		}
	}
	if sb.sharedPids() {
		if err := s.sharePids(ctx, sb); err != nil {
			return err
		}
	}
	if !sb.hostNetwork() && s.cfg.Network != nil && !taken {
		addresses, err := s.cfg.Network.Attach(ctx, sb.ID, filepath.Join(sb.dir, "net"), sb.ports())
		if err != nil {
			return err
		}
		sb.Addresses = addresses
	}
	if dir := sb.Config.GetLogDirectory(); dir != "" {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make the log folder: %w", err)
		}
	}
	if !sb.hostNetwork() {
		if err := os.WriteFile(filepath.Join(sb.dir, "hostname"), []byte(sb.Config.Hostname+"\n"), 0o644); err != nil {
			return err
		}
	}
	if d := sb.Config.GetDnsConfig(); d != nil {
		if err := os.WriteFile(filepath.Join(sb.dir, "resolv.conf"), resolvConf(d), 0o644); err != nil {
			return err
		}
	}
	return writeJSON(filepath.Join(sb.dir, "sandbox.json"), &sb.record)
}

// sysctl is a line for the helper. Only what belongs to a namespace of the sandbox's
// own may be set: anything else is the node's.
func (sb *sandbox) sysctl(name, value string) (string, error) {
	path := strings.ReplaceAll(name, ".", "/")
	if strings.ContainsRune(name, '/') { // the other form, in which a dot is part of a name
		path = name
	}
	ownIPC := sb.namespaces().GetIpc() != runtimeapi.NamespaceMode_NODE
	switch {
	case strings.ContainsAny(value, "\n\x00") || strings.ContainsAny(name, "=\n\x00") || strings.Contains("/"+path+"/", "/../"):
		return "", fmt.Errorf("sysctl %q: not a valid name or value", name)
	case strings.HasPrefix(path, "net/"):
		if sb.hostNetwork() {
			return "", fmt.Errorf("sysctl %q is not allowed with the host's network", name)
		}
	case strings.HasPrefix(path, "kernel/shm"), strings.HasPrefix(path, "kernel/msg"), path == "kernel/sem", strings.HasPrefix(path, "fs/mqueue/"):
		if !ownIPC {
			return "", fmt.Errorf("sysctl %q is not allowed with the host's IPC", name)
		}
	default:
		return "", fmt.Errorf("sysctl %q is not of a namespace", name)
	}
	return path + "=" + value + "\n", nil
}

func resolvConf(d *runtimeapi.DNSConfig) []byte {
	var b strings.Builder
	if len(d.Searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(d.Searches, " "))
	}
	for _, n := range d.Servers {
		fmt.Fprintf(&b, "nameserver %s\n", n)
	}
	if len(d.Options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(d.Options, " "))
	}
	return []byte(b.String())
}

// release gives the network and namespaces of a sandbox back.
func (s *Server) release(sb *sandbox) error {
	var errs []error
	errs = append(errs, s.endPids(sb))
	if s.cfg.Network != nil {
		errs = append(errs, s.cfg.Network.Detach(context.Background(), sb.ID))
	}
	for _, name := range []string{"net", "ipc", "uts", "pid", "shm"} {
		path := filepath.Join(sb.dir, name)
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", path, err))
		}
	}
	return errors.Join(errs...)
}

// discard removes all of a sandbox that has no containers.
func (s *Server) discard(sb *sandbox) error {
	err := s.release(sb)
	if parent := sb.Config.GetLinux().GetCgroupParent(); parent != "" && parent != "/" {
		// The parent is the pod's own group, made here or by the kubelet; it goes once it is empty.
		err = errors.Join(err, s.cgroups.remove(parent))
	}
	if err != nil {
		return err
	}
	return removeTree(sb.dir)
}

// removeTree deletes a folder but never crosses into a mount (D10).
func removeTree(dir string) error {
	var own unix.Stat_t
	if err := unix.Lstat(dir, &own); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		if st.Dev != own.Dev {
			return fmt.Errorf("remove %s: %s is a mount", dir, path)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// StopPodSandbox stops its containers and gives the network back.
func (s *Server) StopPodSandbox(ctx context.Context, req *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	sb, err := s.sandbox(req.PodSandboxId)
	if status.Code(err) == codes.NotFound {
		return &runtimeapi.StopPodSandboxResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	for _, c := range s.of(sb.ID) {
		if err := s.kill(ctx, c, 0); err != nil {
			return nil, err
		}
	}
	sb.mu.Lock()
	defer sb.mu.Unlock()
	if err := s.release(sb); err != nil {
		return nil, fmt.Errorf("stop sandbox %s: %w", sb.ID, err)
	}
	if !sb.Stopped {
		sb.Stopped = true
		if err := writeJSON(filepath.Join(sb.dir, "sandbox.json"), &sb.record); err != nil {
			return nil, err
		}
	}
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

// RemovePodSandbox removes it with its containers.
func (s *Server) RemovePodSandbox(ctx context.Context, req *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	sb, err := s.sandbox(req.PodSandboxId)
	if status.Code(err) == codes.NotFound {
		return &runtimeapi.RemovePodSandboxResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	if _, err := s.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: sb.ID}); err != nil {
		return nil, err
	}
	for _, c := range s.of(sb.ID) {
		if _, err := s.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: c.ID}); err != nil {
			return nil, err
		}
	}
	sb.mu.Lock()
	defer sb.mu.Unlock()
	if err := s.discard(sb); err != nil {
		return nil, fmt.Errorf("remove sandbox %s: %w", sb.ID, err)
	}
	s.mu.Lock()
	delete(s.sandboxes, sb.ID)
	s.mu.Unlock()
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}

// UpdatePodSandboxResources sets a pod's new limits on its group.
func (s *Server) UpdatePodSandboxResources(_ context.Context, req *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	sb, err := s.sandbox(req.PodSandboxId)
	if err != nil {
		return nil, err
	}
	if parent := sb.Config.GetLinux().GetCgroupParent(); parent != "" {
		if err := s.cgroups.limit(parent, req.Resources); err != nil {
			return nil, fmt.Errorf("update the resources of sandbox %s: %w", sb.ID, err)
		}
	}
	return &runtimeapi.UpdatePodSandboxResourcesResponse{}, nil
}

func (s *Server) of(sandbox string) (out []*container) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.containers {
		if c.Sandbox == sandbox {
			out = append(out, c)
		}
	}
	return out
}

func (sb *sandbox) state() runtimeapi.PodSandboxState {
	if sb.Stopped {
		return runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	}
	return runtimeapi.PodSandboxState_SANDBOX_READY
}

func (sb *sandbox) status() *runtimeapi.PodSandboxStatus {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	out := &runtimeapi.PodSandboxStatus{Id: sb.ID, Metadata: sb.Config.Metadata, State: sb.state(), CreatedAt: sb.Created,
		Labels: sb.Config.Labels, Annotations: sb.Config.Annotations, Network: &runtimeapi.PodSandboxNetworkStatus{},
		Linux: &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{Options: sb.namespaces()}}}
	if len(sb.Addresses) > 0 {
		out.Network.Ip = sb.Addresses[0]
		for _, a := range sb.Addresses[1:] {
			out.Network.AdditionalIps = append(out.Network.AdditionalIps, &runtimeapi.PodIP{Ip: a})
		}
	}
	return out
}

// PodSandboxStatus describes a sandbox and its containers.
func (s *Server) PodSandboxStatus(_ context.Context, req *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	sb, err := s.sandbox(req.PodSandboxId)
	if err != nil {
		return nil, err
	}
	out := &runtimeapi.PodSandboxStatusResponse{Status: sb.status(), Timestamp: time.Now().UnixNano()}
	for _, c := range s.of(sb.ID) {
		out.ContainersStatuses = append(out.ContainersStatuses, s.statusOf(c))
	}
	return out, nil
}

// ListPodSandbox lists the sandboxes that match a filter.
func (s *Server) ListPodSandbox(_ context.Context, req *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	f := req.GetFilter()
	s.mu.Lock()
	list := make([]*sandbox, 0, len(s.sandboxes))
	for _, sb := range s.sandboxes {
		list = append(list, sb)
	}
	s.mu.Unlock()
	out := &runtimeapi.ListPodSandboxResponse{}
	for _, sb := range list {
		sb.mu.Lock()
		state := sb.state()
		sb.mu.Unlock()
		if !strings.HasPrefix(sb.ID, f.GetId()) || f.GetState() != nil && f.State.State != state || !matches(f.GetLabelSelector(), sb.Config.Labels) {
			continue
		}
		out.Items = append(out.Items, &runtimeapi.PodSandbox{Id: sb.ID, Metadata: sb.Config.Metadata, State: state, CreatedAt: sb.Created,
			Labels: sb.Config.Labels, Annotations: sb.Config.Annotations})
	}
	return out, nil
}

func matches(selector, labels map[string]string) bool {
	for k, v := range selector {
		if labels[k] != v {
			return false
		}
	}
	return true
}
