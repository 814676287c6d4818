package seccomp

import (
	"encoding/binary"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// answer runs a filter on a call as the kernel does.
func answer(t testing.TB, f *Filter, audit, nr uint32, args ...uint64) uint32 {
	t.Helper()
	program, ok := bpf.Disassemble(f.Code)
	if !ok {
		t.Fatal("the program has unknown instructions")
	}
	vm, err := bpf.NewVM(program)
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 64) // the VM reads words in network order
	word := func(at int, v uint32) { binary.BigEndian.PutUint32(data[at:], v) }
	word(0, nr)
	word(4, audit)
	for i, a := range args {
		word(16+8*i, uint32(a))
		word(20+8*i, uint32(a>>32))
	}
	n, err := vm.Run(data)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(n)
}

func number(t testing.TB, a arch, name string) uint32 {
	t.Helper()
	n, ok := a.syscalls()[name]
	if !ok {
		t.Fatalf("%s has no call %s", a.name, name)
	}
	return n
}

const (
	eperm  = retErrno | uint32(unix.EPERM)
	enosys = retErrno | uint32(unix.ENOSYS)
)

func TestDefaultProfile(t *testing.T) {
	plain, err := Default("amd64", nil)
	if err != nil {
		t.Fatal(err)
	}
	admin, err := Default("amd64", []string{"CAP_SYS_ADMIN", "CAP_SYS_PTRACE"})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d instructions", len(plain.Code))
	for _, c := range []struct {
		name         string
		arch         arch
		call         string
		args         []uint64
		plain, admin uint32
	}{
		{"read is allowed", x86_64, "read", nil, retAllow, retAllow},
		{"openat2 is allowed", x86_64, "openat2", nil, retAllow, retAllow},
		{"mount needs CAP_SYS_ADMIN", x86_64, "mount", nil, eperm, retAllow},
		{"unshare needs CAP_SYS_ADMIN", x86_64, "unshare", []uint64{unix.CLONE_NEWUSER}, eperm, retAllow},
		{"setns needs CAP_SYS_ADMIN", x86_64, "setns", nil, eperm, retAllow},
		{"bpf needs CAP_SYS_ADMIN", x86_64, "bpf", nil, eperm, retAllow},
		{"keyctl is refused", x86_64, "keyctl", nil, eperm, eperm},
		{"io_uring is refused", x86_64, "io_uring_setup", nil, eperm, eperm},
		{"kexec is refused", x86_64, "kexec_load", nil, eperm, eperm},
		{"a module needs CAP_SYS_MODULE", x86_64, "init_module", nil, eperm, eperm},
		{"a thread may be made", x86_64, "clone", []uint64{unix.CLONE_VM | unix.CLONE_THREAD | unix.CLONE_SIGHAND}, retAllow, retAllow},
		{"a namespace may not be cloned", x86_64, "clone", []uint64{unix.CLONE_NEWUSER}, eperm, retAllow},
		{"bits above 32 do not hide a namespace", x86_64, "clone", []uint64{1<<32 | unix.CLONE_NEWNET}, eperm, retAllow},
		{"clone3 seems not to exist", x86_64, "clone3", nil, enosys, retAllow},
		{"a socket of the Internet", x86_64, "socket", []uint64{unix.AF_INET6}, retAllow, retAllow},
		{"no socket to the hypervisor", x86_64, "socket", []uint64{unix.AF_VSOCK}, eperm, eperm},
		{"no socket to the kernel's ciphers", x86_64, "socket", []uint64{unix.AF_ALG}, eperm, eperm},
		{"personality Linux", x86_64, "personality", []uint64{0}, retAllow, retAllow},
		{"personality query", x86_64, "personality", []uint64{0xffffffff}, retAllow, retAllow},
		{"personality without randomised addresses", x86_64, "personality", []uint64{0x0040000}, eperm, eperm},
		{"read of a 32-bit program", x86, "read", nil, retAllow, retAllow},
		{"socketcall of a 32-bit program", x86, "socketcall", nil, retAllow, retAllow},
		{"mount of a 32-bit program", x86, "mount", nil, eperm, retAllow},
		{"umount of a 32-bit program", x86, "umount", nil, eperm, retAllow},
		{"read of an x32 program", x32, "read", nil, retAllow, retAllow},
		{"ioctl of an x32 program has its own number", x32, "ioctl", nil, retAllow, retAllow},
		{"mount of an x32 program", x32, "mount", nil, eperm, retAllow},
	} {
		nr := number(t, c.arch, c.call)
		if got := answer(t, plain, c.arch.audit, nr, c.args...); got != c.plain {
			t.Errorf("%s: without capabilities %#x, want %#x", c.name, got, c.plain)
		}
		if got := answer(t, admin, c.arch.audit, nr, c.args...); got != c.admin {
			t.Errorf("%s: with CAP_SYS_ADMIN %#x, want %#x", c.name, got, c.admin)
		}
	}
	if got := answer(t, plain, x86_64.audit, 5000); got != enosys {
		t.Errorf("a call that no one knows: %#x, want ENOSYS", got)
	}
	if got := answer(t, plain, aarch64.audit, 63); got != retKillThread {
		t.Errorf("a call of another machine: %#x, want the thread's end", got)
	}
	// AF_VSOCK needs that no rule on sockets is laxer for 32-bit calls.
	if got := answer(t, plain, x86.audit, number(t, x86, "socket"), unix.AF_VSOCK); got != eperm {
		t.Errorf("socket(AF_VSOCK) of a 32-bit program: %#x", got)
	}
}

func TestDefaultProfileOfARM(t *testing.T) {
	// The rules that depend on the machine are decided for the one that compiles.
	f, err := Parse([]byte(`{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_AARCH64","SCMP_ARCH_ARM"],
		"syscalls":[{"names":["read","set_tls","renameat"],"action":"SCMP_ACT_ALLOW"}]}`), "arm64", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		a    arch
		nr   uint32
		want uint32
	}{{aarch64, 63, retAllow}, {aarch64, 38, retAllow}, {aarch64, 1, eperm}, {aarch64, 400, enosys}, {arm, 3, retAllow}, {arm, 0x0f0005, retAllow},
		{arm, 0x0f0004, enosys}, {arm, 1, eperm}} {
		if got := answer(t, f, c.a.audit, c.nr); got != c.want {
			t.Errorf("%s %d: %#x, want %#x", c.a.name, c.nr, got, c.want)
		}
	}
}

func TestConditions(t *testing.T) {
	const high = 1 << 40
	for _, c := range []struct {
		op             string
		value, two     uint64
		holds, differs []uint64
	}{
		{"SCMP_CMP_EQ", high + 5, 0, []uint64{high + 5}, []uint64{5, high, high + 6}},
		{"SCMP_CMP_NE", high + 5, 0, []uint64{5, high, high + 6}, []uint64{high + 5}},
		{"SCMP_CMP_GT", high + 5, 0, []uint64{high + 6, 2 * high}, []uint64{high + 5, high, 6, 1<<32 - 1}},
		{"SCMP_CMP_GE", high + 5, 0, []uint64{high + 5, high + 6, 2 * high}, []uint64{high + 4, 7}},
		{"SCMP_CMP_LT", high + 5, 0, []uint64{high + 4, 9, 0}, []uint64{high + 5, high + 6, 2 * high}},
		{"SCMP_CMP_LE", high + 5, 0, []uint64{high + 5, 9, 0}, []uint64{high + 6, 2 * high}},
		{"SCMP_CMP_MASKED_EQ", high + 6, 4, []uint64{4, 12}, []uint64{6, high + 4, 0}},
	} {
		profile := fmt.Sprintf(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ERRNO","errnoRet":7,
			"args":[{"index":5,"value":%d,"valueTwo":%d,"op":%q}]}]}`, c.value, c.two, c.op)
		f, err := Parse([]byte(profile), "amd64", nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range c.holds {
			if got := answer(t, f, x86_64.audit, 0, 0, 0, 0, 0, 0, v); got != retErrno|7 {
				t.Errorf("%s %#x does not hold for %#x", c.op, c.value, v)
			}
		}
		for _, v := range c.differs {
			if got := answer(t, f, x86_64.audit, 0, 0, 0, 0, 0, 0, v); got != retAllow {
				t.Errorf("%s %#x holds for %#x", c.op, c.value, v)
			}
		}
	}
}

func TestRulesOfOneCall(t *testing.T) {
	both := `{"index":0,"value":1,"op":"SCMP_CMP_EQ"},{"index":1,"value":2,"op":"SCMP_CMP_EQ"}`
	same := `{"index":0,"value":1,"op":"SCMP_CMP_EQ"},{"index":0,"value":2,"op":"SCMP_CMP_EQ"}`
	for _, c := range []struct {
		name, args string
		a, b       uint64
		want       uint32
	}{
		{"conditions on two arguments must both hold", both, 1, 2, retAllow},
		{"one of two is not enough", both, 1, 3, eperm},
		{"conditions on one argument are alternatives, first", same, 1, 0, retAllow},
		{"conditions on one argument are alternatives, second", same, 2, 0, retAllow},
		{"none of the alternatives", same, 3, 0, eperm},
	} {
		f, err := Parse([]byte(`{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW","args":[`+c.args+`]}]}`), "amd64", nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := answer(t, f, x86_64.audit, 0, c.a, c.b); got != c.want {
			t.Errorf("%s: %#x, want %#x", c.name, got, c.want)
		}
	}
}

func TestProfilesThatAreRefused(t *testing.T) {
	for name, c := range map[string]struct{ profile, says string }{
		"no JSON":            {`{`, "JSON"},
		"nothing":            {`{}`, "no defaultAction"},
		"no default":         {`{"syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"}]}`, "no defaultAction"},
		"unknown action":     {`{"defaultAction":"ALLOW"}`, `unknown action "ALLOW"`},
		"unknown operator":   {`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ERRNO","args":[{"op":"EQ"}]}]}`, "unknown operator"},
		"seventh argument":   {`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ERRNO","args":[{"index":6,"op":"SCMP_CMP_EQ"}]}]}`, "has six"},
		"a listener":         {`{"defaultAction":"SCMP_ACT_NOTIFY"}`, "no agent listens"},
		"errno of an allow":  {`{"defaultAction":"SCMP_ACT_ALLOW","defaultErrnoRet":1}`, "does not go with"},
		"unknown flag":       {`{"defaultAction":"SCMP_ACT_ALLOW","flags":["FAST"]}`, "unknown flag"},
		"unknown convention": {`{"defaultAction":"SCMP_ACT_ALLOW","architectures":["amd64"]}`, "unknown architecture"},
		"rule without calls": {`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"action":"SCMP_ACT_ERRNO"}]}`, "no names"},
	} {
		if _, err := Parse([]byte(c.profile), "amd64", nil); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want an error with %q", name, err, c.says)
		}
	}
	if _, err := Load(t.TempDir()+"/none.json", "amd64", nil); !os.IsNotExist(unwrapAll(err)) {
		t.Errorf("a profile that does not exist: %v", err)
	}
	if _, err := Default("s390x", nil); err == nil {
		t.Error("a machine that is not supported gets a filter")
	}
}

func unwrapAll(err error) error {
	for {
		u, ok := err.(interface{ Unwrap() error })
		if !ok {
			return err
		}
		if _, is := err.(*os.PathError); is {
			return err
		}
		err = u.Unwrap()
	}
}

// Whatever a profile says, the filter is one that the kernel takes, or there is an error.
func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86"],"syscalls":[{"names":["read","write"],"action":"SCMP_ACT_ALLOW"}]}`))
	f.Add([]byte(`{"defaultAction":"SCMP_ACT_ALLOW","archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X32"]}],"syscalls":[{"name":"clone","action":"SCMP_ACT_ERRNO","errnoRet":38,"args":[{"index":0,"value":2114060288,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"}],"excludes":{"caps":["CAP_SYS_ADMIN"]},"includes":{"minKernel":"4.8"}}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		filter, err := Parse(b, "amd64", []string{"CAP_CHOWN"})
		if err != nil {
			return
		}
		if len(filter.Code) == 0 || len(filter.Code) > maxInstructions {
			t.Fatalf("%d instructions", len(filter.Code))
		}
		for _, nr := range []uint32{0, 56, 400, 1 << 20, x32Bit, x32Bit + 514} {
			answer(t, filter, x86_64.audit, nr, 1, 2, 3, 4, 5, 6)
		}
		answer(t, filter, x86.audit, 120, 1)
	})
}

func BenchmarkDefault(b *testing.B) {
	for b.Loop() {
		if _, err := Default("amd64", []string{"CAP_CHOWN"}); err != nil {
			b.Fatal(err)
		}
	}
}
