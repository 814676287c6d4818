package runtime

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/proa-dev/proa/internal/runtime/shim"
)

// mounts lists a container's mounts in order: the kernel's own, then the pod's.
func (s *Server) mounts(c *container, sb *sandbox, sc *runtimeapi.LinuxContainerSecurityContext) ([]shim.Mount, error) {
	const common = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	sys := uintptr(common | unix.MS_RDONLY)
	if sc.Privileged {
		sys = common
	}
	out := []shim.Mount{
		{Source: "proc", Target: "/proc", Type: "proc", Flags: common},
		{Source: "tmpfs", Target: "/dev", Type: "tmpfs", Flags: unix.MS_NOSUID | unix.MS_STRICTATIME, Data: "mode=755,size=65536k"},
		{Source: "devpts", Target: "/dev/pts", Type: "devpts", Flags: unix.MS_NOSUID | unix.MS_NOEXEC, Data: "newinstance,ptmxmode=0666,mode=0620,gid=5"},
		{Source: "mqueue", Target: "/dev/mqueue", Type: "mqueue", Flags: common},
	}
	if sb.hostNetwork() {
		// sysfs shows the network of whoever mounts it: the host's is bound.
		out = append(out, shim.Mount{Source: "/sys", Target: "/sys", Flags: unix.MS_BIND | unix.MS_REC | sys})
	} else {
		out = append(out, shim.Mount{Source: "sysfs", Target: "/sys", Type: "sysfs", Flags: sys})
		out = append(out, s.cgroups.mounts(c.Cgroup, sys)...)
	}
	shm := "/dev/shm"
	if sb.namespaces().GetIpc() != runtimeapi.NamespaceMode_NODE {
		shm = filepath.Join(sb.dir, "shm")
	}
	out = append(out, shim.Mount{Source: shm, Target: "/dev/shm", Flags: unix.MS_BIND})
	given := map[string]bool{}
	for _, m := range c.Config.Mounts {
		given[filepath.Clean(m.ContainerPath)] = true
	}
	for name, target := range map[string]string{"resolv.conf": "/etc/resolv.conf", "hostname": "/etc/hostname"} {
		path := filepath.Join(sb.dir, name)
		if _, err := os.Stat(path); err != nil || given[target] {
			continue
		}
		m := shim.Mount{Source: path, Target: target, Flags: unix.MS_BIND, File: true, Propagation: unix.MS_PRIVATE}
		if sc.ReadonlyRootfs {
			m.Flags |= unix.MS_RDONLY
		}
		out = append(out, m)
	}
	volume := 0
	for _, m := range c.Config.Mounts {
		mount, err := bind(m)
		if m.GetImage().GetImage() != "" {
			mount, err = s.imageMount(c, m, volume)
			volume++
		}
		if err != nil {
			return nil, fmt.Errorf("mount at %s: %w", m.ContainerPath, err)
		}
		out = append(out, mount)
	}
	return out, nil
}

// mounts show a container its own group.
func (c *cgroups) mounts(group string, flags uintptr) (out []shim.Mount) {
	if c.v2 {
		return []shim.Mount{{Source: "cgroup", Target: "/sys/fs/cgroup", Type: "cgroup2", Flags: flags}}
	}
	out = append(out, shim.Mount{Source: "tmpfs", Target: "/sys/fs/cgroup", Type: "tmpfs", Flags: flags &^ unix.MS_RDONLY, Data: "mode=755,size=64k"})
	for _, name := range c.v1 {
		out = append(out, shim.Mount{Source: filepath.Join(c.root, name, group), Target: "/sys/fs/cgroup/" + name, Flags: unix.MS_BIND | flags})
	}
	if flags&unix.MS_RDONLY != 0 {
		out = append(out, shim.Mount{Target: "/sys/fs/cgroup", Flags: unix.MS_REMOUNT | unix.MS_BIND | flags})
	}
	return out
}

// bind is the mount of a folder or file of the host.
func bind(m *runtimeapi.Mount) (shim.Mount, error) {
	if len(m.UidMappings)+len(m.GidMappings) > 0 {
		return shim.Mount{}, errors.New("mapped user IDs are not supported")
	}
	if m.RecursiveReadOnly && (!m.Readonly || m.Propagation != runtimeapi.MountPropagation_PROPAGATION_PRIVATE) {
		return shim.Mount{}, errors.New("recursive read-only needs a read-only mount with private propagation")
	}
	info, err := os.Stat(m.HostPath)
	if errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(m.HostPath, 0o755); err != nil {
			return shim.Mount{}, fmt.Errorf("make %s: %w", m.HostPath, err)
		}
		info, err = os.Stat(m.HostPath)
	}
	if err != nil {
		return shim.Mount{}, err
	}
	out := shim.Mount{Source: m.HostPath, Target: m.ContainerPath, Flags: unix.MS_BIND | unix.MS_REC, File: !info.IsDir(), AllReadonly: m.RecursiveReadOnly}
	if m.Readonly {
		out.Flags |= unix.MS_RDONLY
	}
	switch m.Propagation {
	case runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		out.Propagation = unix.MS_SLAVE | unix.MS_REC
		return out, propagates(m.HostPath, "shared:", "master:")
	case runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		// A bind of a shared mount is shared with it: it is left as it is.
		return out, propagates(m.HostPath, "shared:")
	}
	out.Propagation = unix.MS_PRIVATE | unix.MS_REC
	return out, nil
}

// propagates checks that the mount which a path is on passes mounts on: it is a peer
// or a slave of others.
func propagates(path string, wants ...string) error {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, real, 0, unix.STATX_MNT_ID, &st); err != nil {
		return fmt.Errorf("find the mount of %s: %w", path, err)
	}
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	id := strconv.FormatUint(st.Mnt_id, 10)
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 7 || f[0] != id {
			continue
		}
		for _, option := range f[6:] {
			if option == "-" {
				break
			}
			for _, w := range wants {
				if strings.HasPrefix(option, w) {
					return nil
				}
			}
		}
		kinds := strings.ReplaceAll(strings.Join(wants, " or "), ":", "")
		return fmt.Errorf("path %q is mounted on %q but it is not a %s mount", path, f[4], strings.ReplaceAll(kinds, "master", "slave"))
	}
	return fmt.Errorf("find the mount of %s: not in mountinfo", path)
}

// hold keeps an image's layers until the container is removed.
func (c *container) hold(release func()) {
	before := c.release
	c.release = func() {
		release()
		if before != nil {
			before()
		}
	}
}

// imageVolumes mounts the images that a container has as volumes.
func (s *Server) imageVolumes(c *container) error {
	for _, m := range c.Config.Mounts {
		ref := m.GetImage().GetImage()
		if ref == "" {
			continue
		}
		img, err := s.cfg.Images.Resolve(ref)
		if err != nil {
			return fmt.Errorf("mount image %s at %s: %w", ref, m.ContainerPath, err)
		}
		layers, release, err := s.cfg.Images.Hold(img)
		if err != nil {
			return fmt.Errorf("mount image %s at %s: %w", ref, m.ContainerPath, err)
		}
		c.hold(release)
		data := filepath.Join(s.cfg.Root, c.ID)
		at := filepath.Join(data, "volumes", strconv.Itoa(len(c.Volumes)))
		if err := os.MkdirAll(at, 0o755); err != nil {
			return err
		}
		if err := mountOverlay(data, at, layers, true); err != nil {
			return fmt.Errorf("mount image %s at %s: %w", ref, m.ContainerPath, err)
		}
		c.Volumes = append(c.Volumes, img)
	}
	return nil
}

// imageMount shows a mounted image, or a path in it (KEP-4639: read-only, nothing
// can be executed).
func (s *Server) imageMount(c *container, m *runtimeapi.Mount, volume int) (shim.Mount, error) {
	at := filepath.Join(s.cfg.Root, c.ID, "volumes", strconv.Itoa(volume))
	out := shim.Mount{Source: at, Target: m.ContainerPath, Propagation: unix.MS_PRIVATE | unix.MS_REC,
		Flags: unix.MS_BIND | unix.MS_REC | unix.MS_RDONLY | unix.MS_NOEXEC | unix.MS_NOSUID | unix.MS_NODEV}
	if !m.Readonly || m.Propagation != runtimeapi.MountPropagation_PROPAGATION_PRIVATE {
		return out, errors.New("an image volume must be read-only and private")
	}
	if m.ImageSubPath == "" {
		return out, nil
	}
	root, err := unix.Open(at, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return out, fmt.Errorf("open the image volume: %w", err)
	}
	defer unix.Close(root)
	fd, err := unix.Openat2(root, m.ImageSubPath, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return out, fmt.Errorf("sub path %q of image %s: %w", m.ImageSubPath, m.Image.Image, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return out, err
	}
	out.File = st.Mode&unix.S_IFMT != unix.S_IFDIR
	// Nothing in a read-only file system changes: the name stays what was found.
	out.Source, err = os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	return out, err
}
