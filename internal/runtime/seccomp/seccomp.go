// Package seccomp turns seccomp profiles into the filters that the kernel loads:
// programs of classic BPF. It knows the default profile of container runtimes and
// profiles in JSON (of the OCI runtime specification, or with the conditions that
// Docker's format adds), on amd64 with its 32-bit and x32 sisters, and on arm64
// with arm.
//
// It loads nothing into the kernel.
package seccomp

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	moby "github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

//go:generate go run ./gen

// maxProfile bounds a profile's JSON.
const maxProfile = 4 << 20

// conditions is what the conditional rules of a profile are decided by.
func conditions(caps []string) *specs.Spec {
	return &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps}}}
}

// Default is the filter of a container that asks for RuntimeDefault: an allow list
// with what its capabilities (CAP_…) add. goarch is this machine's architecture.
func Default(goarch string, caps []string) (*Filter, error) {
	p, err := moby.GetDefaultProfile(conditions(caps))
	if err != nil {
		return nil, fmt.Errorf("make the default seccomp profile: %w", err)
	}
	if p != nil && len(p.Architectures) == 0 {
		return nil, fmt.Errorf("no default seccomp profile for %s", goarch)
	}
	return compile(p, goarch)
}

// Load is the filter of a profile's file.
func Load(path, goarch string, caps []string) (*Filter, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read seccomp profile: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxProfile+1))
	if err != nil {
		return nil, fmt.Errorf("read seccomp profile %s: %w", path, err)
	}
	filter, err := Parse(b, goarch, caps)
	if err != nil {
		return nil, fmt.Errorf("seccomp profile %s: %w", path, err)
	}
	return filter, nil
}

// Parse is the filter of a profile in JSON. A profile that decides nothing is an
// error: it would leave the container unconfined without a word.
func Parse(b []byte, goarch string, caps []string) (*Filter, error) {
	if len(b) > maxProfile {
		return nil, fmt.Errorf("larger than %d bytes", maxProfile)
	}
	p, err := moby.LoadProfile(string(b), conditions(caps))
	if err != nil {
		return nil, err
	}
	if p == nil || p.DefaultAction == "" {
		return nil, errors.New("no defaultAction")
	}
	return compile(p, goarch)
}

// arch is a calling convention: how its calls are recognised and numbered.
type arch struct {
	name   specs.Arch
	audit  uint32 // AUDIT_ARCH_… (include/uapi/linux/audit.h)
	column int    // in the table of numbers
	x32    bool
	narrow bool // arguments of 32 bits
}

const x32Bit = 0x40000000

var (
	x86_64  = arch{name: specs.ArchX86_64, audit: 0xc000003e, column: 0}
	x32     = arch{name: specs.ArchX32, audit: 0xc000003e, column: 0, x32: true}
	x86     = arch{name: specs.ArchX86, audit: 0x40000003, column: 1, narrow: true}
	aarch64 = arch{name: specs.ArchAARCH64, audit: 0xc00000b7, column: 2}
	arm     = arch{name: specs.ArchARM, audit: 0x40000028, column: 3, narrow: true}
)

// families are the conventions of a machine, its own first.
var families = map[string][]arch{"amd64": {x86_64, x86, x32}, "arm64": {aarch64, arm}}

// x32Own are the calls that x32 numbers on its own (arch/x86/entry/syscalls/syscall_64.tbl, from 512).
var x32Own = strings.Fields(`rt_sigaction rt_sigreturn ioctl readv writev recvfrom sendmsg recvmsg execve ptrace rt_sigpending
	rt_sigtimedwait rt_sigqueueinfo sigaltstack timer_create mq_notify kexec_load waitid set_robust_list get_robust_list
	vmsplice move_pages preadv pwritev rt_tgsigqueueinfo recvmmsg sendmmsg process_vm_readv process_vm_writev setsockopt
	getsockopt io_setup io_submit execveat preadv2 pwritev2`)

// syscalls returns the numbers of a convention's calls by name.
func (a arch) syscalls() map[string]uint32 {
	out := make(map[string]uint32, 512)
	for line := range strings.Lines(numbers) {
		f := strings.Fields(line)
		if len(f) != 5 {
			continue
		}
		if n, err := strconv.ParseUint(f[1+a.column], 10, 31); err == nil {
			out[f[0]] = uint32(n)
		}
	}
	if a.name == arm.name {
		for name, n := range map[string]uint32{"breakpoint": 1, "cacheflush": 2, "set_tls": 5} { // arch/arm/include/uapi/asm/unistd.h
			out[name] = armPrivate + n
		}
	}
	if a.x32 {
		for name, n := range out {
			out[name] = n | x32Bit
		}
		for i, name := range x32Own {
			out[name] = uint32(512+i) | x32Bit
		}
	}
	return out
}

// chosen are the conventions that a profile covers: the machine's own always.
func chosen(p *specs.LinuxSeccomp, goarch string) ([]arch, error) {
	family, ok := families[goarch]
	if !ok {
		return nil, fmt.Errorf("seccomp is not supported on %s", goarch)
	}
	for _, name := range p.Architectures {
		if !strings.HasPrefix(string(name), "SCMP_ARCH_") {
			return nil, fmt.Errorf("unknown architecture %q", name)
		}
	}
	var out []arch
	for i, a := range family {
		if i == 0 || slices.Contains(p.Architectures, a.name) {
			out = append(out, a)
		}
	}
	return out, nil
}
