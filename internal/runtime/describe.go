package runtime

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/proa-dev/proa/internal/runtime/shim"
)

// The Linux capabilities by number (include/uapi/linux/capability.h).
var capNames = []string{"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "LINUX_IMMUTABLE",
	"NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE",
	"SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL",
	"SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE"}

// defaultCaps are what a container has that asks for nothing.
var defaultCaps = []string{"CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP", "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE"}

func capBit(name string) (uint64, error) {
	i := slices.Index(capNames, strings.TrimPrefix(strings.ToUpper(name), "CAP_"))
	if i < 0 {
		return 0, fmt.Errorf("unknown capability %q", name)
	}
	return 1 << i, nil
}

// capabilities works out a container's set, as far as this process has it itself.
func capabilities(sc *runtimeapi.LinuxContainerSecurityContext) (uint64, error) {
	own, err := ownCaps()
	if err != nil {
		return 0, err
	}
	if sc.GetPrivileged() {
		return own, nil
	}
	var set uint64
	for _, name := range defaultCaps {
		bit, err := capBit(name)
		if err != nil {
			return 0, err
		}
		set |= bit
	}
	change := sc.GetCapabilities()
	// ALL comes first, so that adding to nothing and dropping from all both work.
	for _, name := range change.GetAddCapabilities() {
		if strings.EqualFold(name, "ALL") {
			set = own
		}
	}
	for _, name := range change.GetDropCapabilities() {
		if strings.EqualFold(name, "ALL") {
			set = 0
		}
	}
	for _, name := range change.GetAddCapabilities() {
		if strings.EqualFold(name, "ALL") {
			continue
		}
		bit, err := capBit(name)
		if err != nil {
			return 0, err
		}
		set |= bit
	}
	for _, name := range change.GetDropCapabilities() {
		if strings.EqualFold(name, "ALL") {
			continue
		}
		bit, err := capBit(name)
		if err != nil {
			return 0, err
		}
		set &^= bit
	}
	return set & own, nil
}

func ownCaps() (uint64, error) {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return 0, fmt.Errorf("read own capabilities: %w", err)
	}
	return uint64(data[0].Permitted) | uint64(data[1].Permitted)<<32, nil
}

// describe writes what the helper is to do.
func (s *Server) describe(c *container, sb *sandbox, rootfs string, image *v1.ConfigFile) ([]byte, error) {
	sc := c.Config.GetLinux().GetSecurityContext()
	if sc == nil {
		sc = &runtimeapi.LinuxContainerSecurityContext{}
	}
	ns := sc.GetNamespaceOptions()
	if ns == nil {
		ns = sb.namespaces()
	}
	root, err := unix.Open(rootfs, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the container's root: %w", err)
	}
	defer unix.Close(root)

	var args []string
	switch {
	case len(c.Config.Command) > 0:
		args = append(slices.Clone(c.Config.Command), c.Config.Args...)
	case len(c.Config.Args) > 0:
		args = append(slices.Clone(image.Config.Entrypoint), c.Config.Args...)
	default:
		args = append(slices.Clone(image.Config.Entrypoint), image.Config.Cmd...)
	}
	if len(args) == 0 {
		return nil, errors.New("no command specified: neither the container nor its image has one")
	}
	c.StopSignal = image.Config.StopSignal
	who, err := user(root, sc, image.Config.User)
	if err != nil {
		return nil, err
	}
	caps, err := capabilities(sc)
	if err != nil {
		return nil, err
	}
	c.Spec = execSpec{Env: environment(image, c.Config, sb, who.home), Cwd: c.Config.WorkingDir, UID: who.uid, GID: who.gid, Groups: who.groups,
		Caps: caps, NoNewPrivs: sc.NoNewPrivs}
	if err := s.confine(&c.Spec, sc); err != nil {
		return nil, err
	}
	if err := c.Spec.label(sc); err != nil {
		return nil, err
	}
	if c.Spec.Cwd == "" {
		c.Spec.Cwd = image.Config.WorkingDir
	}
	if c.Spec.Cwd == "" {
		c.Spec.Cwd = "/"
	}
	groups := make([]int64, len(who.groups))
	for i, g := range who.groups {
		groups[i] = int64(g)
	}
	c.User = &runtimeapi.ContainerUser{Linux: &runtimeapi.LinuxContainerUser{Uid: int64(who.uid), Gid: int64(who.gid), SupplementalGroups: groups}}

	spec := &shim.Spec{}
	for _, a := range args {
		spec.Put("arg", a)
	}
	c.Spec.put(spec)
	spec.Put("rootfs", rootfs)
	spec.Put("bundle", c.dir)
	spec.Put("log", c.LogPath)
	s.cgroups.put(spec, c.Cgroup)
	if !sb.hostNetwork() {
		spec.Put("netns", filepath.Join(sb.dir, "net"))
		spec.Put("utsns", filepath.Join(sb.dir, "uts"))
	}
	if sb.namespaces().GetIpc() != runtimeapi.NamespaceMode_NODE {
		spec.Put("ipcns", filepath.Join(sb.dir, "ipc"))
	}
	if err := s.processes(spec, sb, ns); err != nil {
		return nil, err
	}
	spec.Flag("new-cgroupns", s.cgroups.v2)
	spec.Flag("readonly-root", sc.ReadonlyRootfs)
	spec.Flag("tty", c.Config.Tty)
	spec.Flag("stdin", c.Config.Stdin)
	spec.Flag("stdin-once", c.Config.StdinOnce)
	if r := c.Config.GetLinux().GetResources(); r != nil {
		spec.Number("oom-score-adj", r.OomScoreAdj)
	}
	mounts, err := s.mounts(c, sb, sc)
	if err != nil {
		return nil, err
	}
	spec.Put("own-dev")
	for _, m := range mounts {
		spec.Mount(m)
	}
	for _, d := range c.devices {
		spec.Device(d)
	}
	if !sc.Privileged {
		for _, p := range sc.ReadonlyPaths {
			spec.Put("readonly", p)
		}
		for _, p := range sc.MaskedPaths {
			spec.Put("masked", p)
		}
	}
	return spec.Bytes()
}

func (e *execSpec) put(spec *shim.Spec) {
	for _, v := range e.Env {
		spec.Put("env", v)
	}
	spec.Put("cwd", e.Cwd)
	spec.Number("uid", int64(e.UID))
	spec.Number("gid", int64(e.GID))
	for _, g := range e.Groups {
		spec.Number("group", int64(g))
	}
	spec.Put("caps", strconv.FormatUint(e.Caps, 10))
	spec.Flag("no-new-privs", e.NoNewPrivs)
	if e.AppArmor != "" {
		spec.Put("apparmor", e.AppArmor)
	}
	if e.Seccomp != "" {
		spec.Put("seccomp", e.Seccomp)
		spec.Number("seccomp-flags", int64(e.SeccompFlags))
	}
}

func environment(image *v1.ConfigFile, cfg *runtimeapi.ContainerConfig, sb *sandbox, home string) []string {
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME=" + hostname(sb)}
	set := func(kv string) {
		name, _, _ := strings.Cut(kv, "=")
		for i := range env {
			if strings.HasPrefix(env[i], name+"=") {
				env[i] = kv
				return
			}
		}
		env = append(env, kv)
	}
	if cfg.Tty {
		set("TERM=xterm")
	}
	set("HOME=" + home)
	for _, kv := range image.Config.Env {
		set(kv)
	}
	for _, kv := range cfg.Envs {
		set(kv.Key + "=" + string(kv.Value))
	}
	return env
}

func hostname(sb *sandbox) string {
	if sb.hostNetwork() {
		name, _ := os.Hostname()
		return name
	}
	return sb.Config.Hostname
}

// identity is who a container's program runs as.
type identity struct {
	uid, gid uint32
	groups   []uint32
	home     string
}

// openIn opens a file of the container's own file system, links resolved inside it.
func openIn(root int, path string) (*os.File, error) {
	fd, err := unix.Openat2(root, path, &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// user resolves the names of the security context, or else of the image, by the
// container's own /etc/passwd and /etc/group.
func user(root int, sc *runtimeapi.LinuxContainerSecurityContext, imageUser string) (identity, error) {
	id := identity{home: "/"}
	name, group, _ := strings.Cut(imageUser, ":")
	switch {
	case sc.RunAsUser != nil:
		name, group = strconv.FormatInt(sc.RunAsUser.Value, 10), ""
	case sc.RunAsUsername != "":
		name, group = sc.RunAsUsername, ""
	}
	if sc.RunAsGroup != nil {
		if sc.RunAsUser == nil && sc.RunAsUsername == "" {
			return id, status.Error(codes.InvalidArgument, "run_as_group is set without run_as_user or run_as_username")
		}
		group = strconv.FormatInt(sc.RunAsGroup.Value, 10)
	}
	if name == "" {
		name = "0"
	}
	uid, err := strconv.ParseUint(name, 10, 32)
	numeric := err == nil
	id.uid = uint32(uid)
	found := false
	login := ""
	if err := lines(root, "/etc/passwd", func(f []string) bool {
		if len(f) < 7 || (numeric && f[2] != name) || (!numeric && f[0] != name) {
			return true
		}
		u, err1 := strconv.ParseUint(f[2], 10, 32)
		g, err2 := strconv.ParseUint(f[3], 10, 32)
		if err1 != nil || err2 != nil {
			return true
		}
		id.uid, id.gid, id.home, login, found = uint32(u), uint32(g), f[5], f[0], true
		return false
	}); err != nil {
		return id, err
	}
	if !found && !numeric {
		return id, fmt.Errorf("unable to find user %s: no matching entries in passwd file", name)
	}
	groupNumber, err := strconv.ParseUint(group, 10, 32)
	if group != "" && err == nil {
		id.gid = uint32(groupNumber)
	}
	groupFound := group == "" || err == nil
	merge := sc.GetSupplementalGroupsPolicy() == runtimeapi.SupplementalGroupsPolicy_Merge
	if err := lines(root, "/etc/group", func(f []string) bool {
		if len(f) < 4 {
			return true
		}
		g, err := strconv.ParseUint(f[2], 10, 32)
		if err != nil {
			return true
		}
		if !groupFound && f[0] == group {
			id.gid, groupFound = uint32(g), true
		}
		if merge && login != "" && slices.Contains(strings.Split(f[3], ","), login) {
			id.groups = append(id.groups, uint32(g))
		}
		return true
	}); err != nil {
		return id, err
	}
	if !groupFound {
		return id, fmt.Errorf("unable to find group %s: no matching entries in group file", group)
	}
	for _, g := range sc.SupplementalGroups {
		id.groups = append(id.groups, uint32(g))
	}
	if !slices.Contains(id.groups, id.gid) {
		id.groups = append([]uint32{id.gid}, id.groups...)
	}
	return id, nil
}

// lines calls fn with the fields of each line of a colon-separated file until it
// returns false; a file that does not exist has none.
func lines(root int, path string, fn func([]string) bool) error {
	f, err := openIn(root, path)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read %s of the image: %w", path, err)
	}
	defer f.Close()
	scan := bufio.NewScanner(io.LimitReader(f, 4<<20))
	for scan.Scan() {
		if !fn(strings.Split(scan.Text(), ":")) {
			break
		}
	}
	return scan.Err()
}
