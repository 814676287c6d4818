package runtime

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/proa-dev/proa/internal/runtime/shim"
)

// sharedPids reports whether the sandbox has a process namespace for its containers.
func (sb *sandbox) sharedPids() bool { return sb.namespaces().GetPid() == runtimeapi.NamespaceMode_POD }

// parent is the cgroup that the sandbox's containers are in.
func (s *Server) parent(sb *sandbox) string {
	if p := sb.Config.GetLinux().GetCgroupParent(); p != "" {
		return p
	}
	return s.cfg.CgroupParent
}

// sharePids makes the process namespace that the sandbox's containers share. It
// needs a process that is there before them and after them.
func (s *Server) sharePids(ctx context.Context, sb *sandbox) error {
	group := path.Join(s.parent(sb), sb.ID)
	if err := s.cgroups.create(group); err != nil {
		return err
	}
	files := s.cgroups.joins(group)
	if s.cgroups.v2 {
		files = []string{filepath.Join(s.cgroups.root, group, "cgroup.procs")}
	}
	cmd := exec.CommandContext(ctx, s.helper, append([]string{"first", sb.dir}, files...)...)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("make the shared process namespace: %s: %w", bytes.TrimSpace(said.Bytes()), err)
	}
	if sb.First, err = strconv.Atoi(string(out)); err != nil {
		return fmt.Errorf("make the shared process namespace: %w", err)
	}
	return nil
}

// first is a descriptor of the shared namespace's first process; nil when it is gone.
func (sb *sandbox) first() (*os.File, error) {
	if sb.First <= 0 {
		return nil, nil
	}
	fd, err := unix.PidfdOpen(sb.First, 0)
	if err != nil {
		return nil, nil // it is gone
	}
	process := os.NewFile(uintptr(fd), "pidfd")
	// The number may have become another's: that one is in another namespace.
	var own, pinned unix.Stat_t
	if unix.Stat(fmt.Sprintf("/proc/%d/ns/pid", sb.First), &own) != nil || unix.Stat(filepath.Join(sb.dir, "pid"), &pinned) != nil || own.Ino != pinned.Ino {
		return nil, process.Close()
	}
	return process, nil
}

// endPids ends the shared process namespace and all that runs in it.
func (s *Server) endPids(sb *sandbox) error {
	if !sb.sharedPids() {
		return nil
	}
	process, err := sb.first()
	if err != nil {
		return err
	}
	if process != nil {
		defer process.Close()
		if err := unix.PidfdSendSignal(int(process.Fd()), unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("end the shared process namespace: %w", err)
		}
	}
	return s.cgroups.remove(path.Join(s.parent(sb), sb.ID))
}

// processes says which process namespace a container is put into.
func (s *Server) processes(spec *shim.Spec, sb *sandbox, ns *runtimeapi.NamespaceOption) error {
	switch ns.GetPid() {
	case runtimeapi.NamespaceMode_CONTAINER:
		spec.Put("new-pidns")
	case runtimeapi.NamespaceMode_POD:
		if !sb.sharedPids() {
			return errors.New("the sandbox has no process namespace to share")
		}
		spec.Put("pidns", filepath.Join(sb.dir, "pid"))
	case runtimeapi.NamespaceMode_TARGET:
		target, err := s.target(sb, ns.TargetId)
		if err != nil {
			return err
		}
		target.mu.Lock()
		defer target.mu.Unlock()
		spec.Put("pidns", fmt.Sprintf("/proc/%d/ns/pid", target.Pid))
	case runtimeapi.NamespaceMode_NODE:
	default:
		return fmt.Errorf("unknown process namespace mode %d", ns.GetPid())
	}
	return nil
}

// target is the running container of the sandbox whose processes another one shall see.
func (s *Server) target(sb *sandbox, id string) (*container, error) {
	c, err := s.running(id)
	if err != nil {
		return nil, fmt.Errorf("target container: %w", err)
	}
	if c.Sandbox != sb.ID {
		return nil, status.Errorf(codes.InvalidArgument, "target container %s is not in sandbox %s", c.ID, sb.ID)
	}
	return c, nil
}
