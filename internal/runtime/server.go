// Package runtime is the container runtime: a CRI v1 server. Pods have no pause
// process; their namespaces are held by bind mounts. Each container has a small C
// helper (package shim) that starts it, keeps its log and its exit status, and
// outlives this process, so that containers run on when proa stops and are taken
// up again when it starts.
//
// It imports no other folder of the project: crictl or another kubelet can use it
// alone. The network is handed in.
package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/proa-dev/proa/internal/runtime/images"
	"github.com/proa-dev/proa/internal/runtime/shim"
	"github.com/proa-dev/proa/internal/runtime/stream"
)

// PortMapping opens a port of the host to a sandbox.
type PortMapping struct {
	Protocol                uint8
	HostIP                  string // one of the host's addresses; "" or unspecified: all
	HostPort, ContainerPort uint16
}

// Network gives sandboxes their network.
type Network interface {
	// Attach gives the network namespace at path an address and returns it.
	Attach(ctx context.Context, id, path string, ports []PortMapping) (addresses []string, err error)
	// Take gives a sandbox a network namespace that is ready, and holds it at path;
	// false when none is.
	Take(ctx context.Context, id, path string, ports []PortMapping) (addresses []string, ok bool, err error)
	// Restore is called at start for each sandbox that runs since before.
	Restore(ctx context.Context, id string, ports []PortMapping) error
	// Detach gives the address back; the namespace is closed by the caller.
	Detach(ctx context.Context, id string) error
}

// Config is what the runtime needs.
type Config struct {
	// State holds what describes sandboxes and containers; Root their writable layers.
	State, Root string
	Images      *images.Store
	Network     Network // nil: loopback only
	CgroupRoot  string  // "": /sys/fs/cgroup
	// CgroupParent is the cgroup of sandboxes that name none ("": /proa).
	CgroupParent string
	Version      string
	Logger       *slog.Logger
}

// Server is the runtime. Its methods are those of the CRI's services.
type Server struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer

	cfg     Config
	log     *slog.Logger
	helper  string
	cgroups *cgroups
	filters filters
	events  *events
	stream  *stream.Server

	mu         sync.Mutex
	sandboxes  map[string]*sandbox
	containers map[string]*container
	wg         sync.WaitGroup
	ctx        context.Context
	cancel     context.CancelFunc
}

// New opens the state folder, takes up what runs since before, and starts the
// streaming server on a loopback port.
func New(cfg Config) (*Server, error) {
	if cfg.CgroupRoot == "" {
		cfg.CgroupRoot = "/sys/fs/cgroup"
	}
	if cfg.CgroupParent == "" {
		cfg.CgroupParent = "/proa"
	}
	for _, dir := range []string{filepath.Join(cfg.State, "sandboxes"), filepath.Join(cfg.State, "containers"), filepath.Join(cfg.State, "seccomp"), cfg.Root} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, fmt.Errorf("make the runtime's folder: %w", err)
		}
	}
	helper, err := shim.Unpack(filepath.Join(cfg.State, "bin"))
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, log: cfg.Logger, helper: helper, cgroups: newCgroups(cfg.CgroupRoot), events: newEvents(),
		sandboxes: map[string]*sandbox{}, containers: map[string]*container{}}
	s.filters.dir = filepath.Join(cfg.State, "seccomp")
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if err := s.load(); err != nil {
		return nil, fmt.Errorf("take up the containers in %s: %w", cfg.State, err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for exec, attach and port-forward: %w", err)
	}
	s.stream = stream.Start(s.ctx, listener, streamRuntime{s})
	return s, nil
}

// Close stops serving. Containers run on.
func (s *Server) Close() {
	s.cancel()
	s.stream.Close()
	s.mu.Lock()
	for _, c := range s.containers {
		c.disconnect()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// Serve answers the CRI on a unix socket until ctx ends. ready (nil: nobody) is called
// when the socket is there.
func (s *Server) Serve(ctx context.Context, socket string, ready func()) error {
	if err := os.MkdirAll(filepath.Dir(socket), 0o700); err != nil {
		return fmt.Errorf("make the CRI socket's folder: %w", err)
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the old CRI socket: %w", err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return fmt.Errorf("listen on the CRI socket: %w", err)
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		l.Close()
		return err
	}
	server := grpc.NewServer()
	runtimeapi.RegisterRuntimeServiceServer(server, s)
	runtimeapi.RegisterImageServiceServer(server, s)
	stop := context.AfterFunc(ctx, server.Stop)
	defer stop()
	if ready != nil {
		ready()
	}
	if err := server.Serve(l); err != nil && ctx.Err() == nil {
		return fmt.Errorf("serve the CRI: %w", err)
	}
	return nil
}

// load reads what earlier runs left.
func (s *Server) load() error {
	sandboxes, err := os.ReadDir(filepath.Join(s.cfg.State, "sandboxes"))
	if err != nil {
		return err
	}
	for _, e := range sandboxes {
		sb := &sandbox{dir: filepath.Join(s.cfg.State, "sandboxes", e.Name())}
		if err := readJSON(filepath.Join(sb.dir, "sandbox.json"), &sb.record); err != nil {
			// Its making was interrupted before it was written down: undo it.
			s.log.Warn("undo a half-made sandbox", "sandbox", e.Name(), "err", err)
			sb.ID = e.Name()
			if err := s.discard(sb); err != nil {
				s.log.Warn("undo a half-made sandbox", "sandbox", e.Name(), "err", err)
			}
			continue
		}
		// After a reboot the namespaces are gone with their mounts.
		if !sb.Stopped && !sb.hostNetwork() && !isNamespace(filepath.Join(sb.dir, "net")) {
			sb.Stopped = true
		}
		if !sb.Stopped && sb.sharedPids() {
			if process, err := sb.first(); err != nil || process == nil {
				sb.Stopped = true
			} else {
				process.Close()
			}
		}
		s.sandboxes[sb.ID] = sb
		if !sb.Stopped && s.cfg.Network != nil && !sb.hostNetwork() {
			if err := s.cfg.Network.Restore(s.ctx, sb.ID, sb.ports()); err != nil {
				return fmt.Errorf("restore the network of sandbox %s: %w", sb.ID, err)
			}
		}
	}
	containers, err := os.ReadDir(filepath.Join(s.cfg.State, "containers"))
	if err != nil {
		return err
	}
	for _, e := range containers {
		c := &container{dir: filepath.Join(s.cfg.State, "containers", e.Name()), done: make(chan struct{})}
		if err := readJSON(filepath.Join(c.dir, "container.json"), &c.containerRecord); err != nil || s.sandboxes[c.Sandbox] == nil {
			s.log.Warn("undo a half-made container", "container", e.Name(), "err", err)
			s.cleanup(c, e.Name())
			continue
		}
		s.containers[c.ID] = c
		s.takeUp(c)
	}
	used := map[string]bool{}
	for _, c := range s.containers {
		used[c.Spec.Seccomp] = true
	}
	return s.filters.sweep(used)
}

func isNamespace(path string) bool {
	var st unix.Statfs_t
	const nsfs = 0x6e736673
	return unix.Statfs(path, &st) == nil && st.Type == nsfs
}

func readJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

// writeJSON replaces a file whole.
func writeJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".tmp", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}

func notFound(kind, id string) error {
	return status.Errorf(codes.NotFound, "%s %q not found", kind, id)
}

func (s *Server) sandbox(id string) (*sandbox, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sb, ok := s.sandboxes[id]; ok {
		return sb, nil
	}
	var found *sandbox
	for full, sb := range s.sandboxes {
		if len(id) >= 4 && len(full) > len(id) && full[:len(id)] == id {
			if found != nil {
				return nil, status.Errorf(codes.InvalidArgument, "sandbox ID %q is ambiguous", id)
			}
			found = sb
		}
	}
	if found == nil {
		return nil, notFound("sandbox", id)
	}
	return found, nil
}

func (s *Server) container(id string) (*container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c, ok := s.containers[id]; ok {
		return c, nil
	}
	var found *container
	for full, c := range s.containers {
		if len(id) >= 4 && len(full) > len(id) && full[:len(id)] == id {
			if found != nil {
				return nil, status.Errorf(codes.InvalidArgument, "container ID %q is ambiguous", id)
			}
			found = c
		}
	}
	if found == nil {
		return nil, notFound("container", id)
	}
	return found, nil
}

// Version answers the CRI's version call.
func (s *Server) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{Version: "0.1.0", RuntimeName: "proa", RuntimeVersion: s.cfg.Version, RuntimeApiVersion: "v1"}, nil
}

// Status says whether the runtime and the network are ready.
func (s *Server) Status(context.Context, *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	net := &runtimeapi.RuntimeCondition{Type: runtimeapi.NetworkReady, Status: s.cfg.Network != nil}
	if !net.Status {
		net.Reason, net.Message = "NetworkPluginNotReady", "no pod network is configured"
	}
	return &runtimeapi.StatusResponse{
		Features:        &runtimeapi.RuntimeFeatures{SupplementalGroupsPolicy: true},
		Status:          &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{{Type: runtimeapi.RuntimeReady, Status: true}, net}},
		RuntimeHandlers: []*runtimeapi.RuntimeHandler{{Name: "", Features: &runtimeapi.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: true}}},
	}, nil
}

func (s *Server) UpdateRuntimeConfig(context.Context, *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
}

func (s *Server) RuntimeConfig(context.Context, *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	return &runtimeapi.RuntimeConfigResponse{Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: runtimeapi.CgroupDriver_CGROUPFS}}, nil
}
