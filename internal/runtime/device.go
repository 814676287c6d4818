package runtime

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/proa-dev/proa/internal/runtime/shim"
)

// deviceRule lets a group use a device; -1 is any number.
type deviceRule struct {
	kind         byte // c, b, or a for all there is
	major, minor int64
	access       string // of r, w and m
}

func (r deviceRule) String() string {
	n := func(v int64) string {
		if v < 0 {
			return "*"
		}
		return strconv.FormatInt(v, 10)
	}
	return fmt.Sprintf("%c %s:%s %s", r.kind, n(r.major), n(r.minor), r.access)
}

// standardDevices are what every container may use: nodes of any kind may be made,
// but only the harmless ones and terminals opened.
var standardDevices = []deviceRule{{'c', -1, -1, "m"}, {'b', -1, -1, "m"}, {'c', 1, 3, "rwm"}, {'c', 1, 5, "rwm"}, {'c', 1, 7, "rwm"},
	{'c', 1, 8, "rwm"}, {'c', 1, 9, "rwm"}, {'c', 5, 0, "rwm"}, {'c', 5, 2, "rwm"}, {'c', 136, -1, "rwm"}}

// devices finds the nodes that a container gets, and what its group may use.
func devices(cfg *runtimeapi.ContainerConfig) (nodes []shim.Device, rules []deviceRule, err error) {
	if cfg.GetLinux().GetSecurityContext().GetPrivileged() {
		nodes, err = hostDevices("/dev", "/dev")
		return nodes, []deviceRule{{'a', -1, -1, "rwm"}}, err
	}
	rules = standardDevices
	for _, d := range cfg.Devices {
		for _, r := range d.Permissions {
			if !strings.ContainsRune("rwm", r) {
				return nil, nil, fmt.Errorf("device %s: unknown permission %q", d.HostPath, r)
			}
		}
		if d.Permissions == "" {
			return nil, nil, fmt.Errorf("device %s: no permissions", d.HostPath)
		}
		host, err := filepath.EvalSymlinks(d.HostPath)
		if err != nil {
			return nil, nil, fmt.Errorf("device %s: %w", d.HostPath, err)
		}
		list, err := hostDevices(host, d.ContainerPath)
		if err != nil {
			return nil, nil, fmt.Errorf("device %s: %w", d.HostPath, err)
		}
		if len(list) == 0 {
			return nil, nil, fmt.Errorf("device %s: not a device, and no folder of devices", d.HostPath)
		}
		for _, n := range list {
			kind := byte('c')
			if n.Mode&unix.S_IFMT == unix.S_IFBLK {
				kind = 'b'
			}
			rules = append(rules[:len(rules):len(rules)], deviceRule{kind, int64(n.Major), int64(n.Minor), d.Permissions})
		}
		nodes = append(nodes, list...)
	}
	return nodes, rules, nil
}

// ownDev are the folders of /dev that a container has its own of.
var ownDev = map[string]bool{"pts": true, "shm": true, "mqueue": true, "fd": true}

// hostDevices lists the device nodes at a path of the host, as a container sees them at another.
func hostDevices(host, inside string) (out []shim.Device, err error) {
	err = filepath.WalkDir(host, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) && path != host {
				return nil // it was unplugged
			}
			return err
		}
		if e.IsDir() && host == "/dev" && filepath.Dir(path) == host && ownDev[e.Name()] {
			return fs.SkipDir
		}
		if e.Type()&fs.ModeDevice == 0 || path == "/dev/console" {
			return nil
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return nil // it was unplugged
		}
		rel, err := filepath.Rel(host, path)
		if err != nil {
			return err
		}
		out = append(out, shim.Device{Path: filepath.Join("/", inside, rel), Mode: st.Mode, Major: unix.Major(st.Rdev), Minor: unix.Minor(st.Rdev), UID: st.Uid, GID: st.Gid})
		return nil
	})
	return out, err
}

// allow restricts the devices that a new group may use to those of the rules.
func (c *cgroups) allow(path string, rules []deviceRule) error {
	if c.v2 {
		return attachDevices(filepath.Join(c.root, path), rules)
	}
	dir, ok := c.dirs(path)["devices"]
	if !ok {
		return nil
	}
	if rules[0].kind != 'a' {
		if err := os.WriteFile(filepath.Join(dir, "devices.deny"), []byte("a"), 0); err != nil {
			return fmt.Errorf("forbid devices to cgroup %s: %w", path, err)
		}
	}
	for _, r := range rules {
		line := r.String()
		if r.kind == 'a' {
			line = "a"
		}
		if err := os.WriteFile(filepath.Join(dir, "devices.allow"), []byte(line), 0); err != nil {
			return fmt.Errorf("allow device %s to cgroup %s: %w", line, path, err)
		}
	}
	return nil
}

// An instruction of eBPF (include/uapi/linux/bpf.h).
type ebpf struct {
	op       uint8
	dst, src uint8
	off      int16
	imm      int32
}

// What a program of type BPF_PROG_TYPE_CGROUP_DEVICE is made of.
const (
	ebpfLoadWord = 0x61 // dst = *(u32 *)(src + off)
	ebpfMove     = 0xbf // dst = src
	ebpfMoveImm  = 0xb7
	ebpfAndImm   = 0x57
	ebpfShift    = 0x77 // dst >>= imm
	ebpfNotEqual = 0x55 // if dst != imm skip off
	ebpfExit     = 0x95
)

// program is what the kernel asks, in version 2, whether a device may be used:
// r2 kind, r3 access, r4 major, r5 minor.
func program(rules []deviceRule) []ebpf {
	out := []ebpf{
		{op: ebpfLoadWord, dst: 2, src: 1, off: 0}, {op: ebpfMove, dst: 3, src: 2}, {op: ebpfAndImm, dst: 2, imm: 0xffff}, {op: ebpfShift, dst: 3, imm: 16},
		{op: ebpfLoadWord, dst: 4, src: 1, off: 4}, {op: ebpfLoadWord, dst: 5, src: 1, off: 8},
	}
	for _, r := range rules {
		var tests []ebpf
		switch r.kind {
		case 'b':
			tests = append(tests, ebpf{op: ebpfNotEqual, dst: 2, imm: unix.BPF_DEVCG_DEV_BLOCK})
		case 'c':
			tests = append(tests, ebpf{op: ebpfNotEqual, dst: 2, imm: unix.BPF_DEVCG_DEV_CHAR})
		}
		var refused int32 = unix.BPF_DEVCG_ACC_MKNOD | unix.BPF_DEVCG_ACC_READ | unix.BPF_DEVCG_ACC_WRITE
		for _, a := range r.access {
			refused &^= map[rune]int32{'m': unix.BPF_DEVCG_ACC_MKNOD, 'r': unix.BPF_DEVCG_ACC_READ, 'w': unix.BPF_DEVCG_ACC_WRITE}[a]
		}
		if refused != 0 {
			tests = append(tests, ebpf{op: ebpfMove, dst: 0, src: 3}, ebpf{op: ebpfAndImm, dst: 0, imm: refused}, ebpf{op: ebpfNotEqual, dst: 0})
		}
		if r.major >= 0 {
			tests = append(tests, ebpf{op: ebpfNotEqual, dst: 4, imm: int32(r.major)})
		}
		if r.minor >= 0 {
			tests = append(tests, ebpf{op: ebpfNotEqual, dst: 5, imm: int32(r.minor)})
		}
		for i := range tests {
			if tests[i].op == ebpfNotEqual {
				tests[i].off = int16(len(tests) - i + 1) // to the next rule
			}
		}
		out = append(append(out, tests...), ebpf{op: ebpfMoveImm, dst: 0, imm: 1}, ebpf{op: ebpfExit})
	}
	return append(out, ebpf{op: ebpfMoveImm, dst: 0, imm: 0}, ebpf{op: ebpfExit})
}

// attachDevices loads the program and ties it to a group, with which it goes.
func attachDevices(dir string, rules []deviceRule) error {
	if rules[0].kind == 'a' {
		return nil // without a program everything is allowed
	}
	var code []byte
	for _, i := range program(rules) {
		code = append(code, i.op, i.src<<4|i.dst)
		code = binary.NativeEndian.AppendUint16(code, uint16(i.off))
		code = binary.NativeEndian.AppendUint32(code, uint32(i.imm))
	}
	license := []byte("Apache-2.0\x00")
	var pin runtime.Pinner // the kernel gets addresses, which the collector does not see
	defer pin.Unpin()
	pin.Pin(&code[0])
	pin.Pin(&license[0])
	// The first fields of union bpf_attr for BPF_PROG_LOAD.
	load := struct {
		kind, count    uint32
		code, license  uint64
		level, logSize uint32
		log            uint64
		version, flags uint32
	}{kind: unix.BPF_PROG_TYPE_CGROUP_DEVICE, count: uint32(len(code) / 8), code: uint64(uintptr(unsafe.Pointer(&code[0]))), license: uint64(uintptr(unsafe.Pointer(&license[0])))}
	fd, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_LOAD, uintptr(unsafe.Pointer(&load)), unsafe.Sizeof(load))
	if errno != 0 {
		return fmt.Errorf("load the device program of cgroup %s: %w", dir, errno)
	}
	defer unix.Close(int(fd))
	group, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open cgroup %s: %w", dir, err)
	}
	defer unix.Close(group)
	attach := struct{ target, program, kind, flags uint32 }{uint32(group), uint32(fd), unix.BPF_CGROUP_DEVICE, unix.BPF_F_ALLOW_MULTI}
	if _, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_ATTACH, uintptr(unsafe.Pointer(&attach)), unsafe.Sizeof(attach)); errno != 0 {
		return fmt.Errorf("attach the device program to cgroup %s: %w", dir, errno)
	}
	return nil
}
