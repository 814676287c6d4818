package seccomp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Filter is a program as seccomp(2) takes it, with the flags to load it with.
type Filter struct {
	Code  []bpf.RawInstruction
	Flags uint32
}

// Bytes is the program as an array of struct sock_filter, in this machine's order.
func (f *Filter) Bytes() []byte {
	b := make([]byte, 0, 8*len(f.Code))
	for _, i := range f.Code {
		b = binary.NativeEndian.AppendUint16(b, i.Op)
		b = append(b, i.Jt, i.Jf)
		b = binary.NativeEndian.AppendUint32(b, i.K)
	}
	return b
}

// Bounds: the kernel's on a program, and ours on what a profile may say.
const (
	maxInstructions = 4096
	maxRules        = 4096
)

// What a filter answers (include/uapi/linux/seccomp.h).
const (
	retKillProcess = 0x80000000
	retKillThread  = 0x00000000
	retTrap        = 0x00030000
	retErrno       = 0x00050000
	retTrace       = 0x7ff00000
	retLog         = 0x7ffc0000
	retAllow       = 0x7fff0000
	retData        = 0x0000ffff
)

func action(a specs.LinuxSeccompAction, errno *uint) (uint32, error) {
	code := uint32(unix.EPERM)
	if errno != nil {
		if *errno > retData {
			return 0, fmt.Errorf("errnoRet %d is no error number", *errno)
		}
		if a != specs.ActErrno && a != specs.ActTrace {
			return 0, fmt.Errorf("errnoRet does not go with %s", a)
		}
		code = uint32(*errno)
	}
	switch a {
	case specs.ActKill, specs.ActKillThread:
		return retKillThread, nil
	case specs.ActKillProcess:
		return retKillProcess, nil
	case specs.ActTrap:
		return retTrap, nil
	case specs.ActErrno:
		return retErrno | code, nil
	case specs.ActTrace:
		return retTrace | code, nil
	case specs.ActAllow:
		return retAllow, nil
	case specs.ActLog:
		return retLog, nil
	case specs.ActNotify:
		return 0, errors.New("SCMP_ACT_NOTIFY is not supported: no agent listens")
	}
	return 0, fmt.Errorf("unknown action %q", a)
}

var flags = map[specs.LinuxSeccompFlag]uint32{
	specs.LinuxSeccompFlagLog:              unix.SECCOMP_FILTER_FLAG_LOG,
	specs.LinuxSeccompFlagSpecAllow:        unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW,
	specs.LinuxSeccompFlagWaitKillableRecv: 0, // only says how a listener waits, and there is none
	"SECCOMP_FILTER_FLAG_TSYNC":            0, // the filter is loaded by the only thread there is
	"SECCOMP_FILTER_FLAG_TSYNC_ESRCH":      0,
}

// rule is what one entry of a profile says of one call. All conditions must hold.
type rule struct {
	args []specs.LinuxSeccompArg
	ret  uint32
}

// span is a run of numbers, up to the next span's first, that share their rules.
type span struct {
	first uint32
	rules []rule // tried in order; the last has no conditions
}

func compile(p *specs.LinuxSeccomp, goarch string) (*Filter, error) {
	otherwise, err := action(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return nil, fmt.Errorf("defaultAction: %w", err)
	}
	if p.ListenerPath != "" {
		return nil, errors.New("a listener is not supported")
	}
	out := &Filter{}
	for _, name := range p.Flags {
		bit, ok := flags[name]
		if !ok {
			return nil, fmt.Errorf("unknown flag %q", name)
		}
		out.Flags |= bit
	}
	if len(p.Flags) == 0 { // as runc has it: the filter shall not cost speculation
		out.Flags = unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
	}
	archs, err := chosen(p, goarch)
	if err != nil {
		return nil, err
	}
	blocks := map[specs.Arch][]bpf.RawInstruction{}
	for _, a := range archs {
		spans, err := a.spans(p, otherwise)
		if err != nil {
			return nil, err
		}
		blocks[a.name] = tree(a, spans)
	}
	out.Code = dispatch(archs, blocks)
	if len(out.Code) > maxInstructions {
		return nil, fmt.Errorf("the profile makes a filter of %d instructions, the kernel takes %d", len(out.Code), maxInstructions)
	}
	return out, nil
}

// spans sorts what a profile says by number.
func (a arch) spans(p *specs.LinuxSeccomp, otherwise uint32) ([]span, error) {
	table := a.syscalls()
	byNumber := map[uint32][]rule{}
	last, count := uint32(0), 0
	for i := range p.Syscalls {
		call := &p.Syscalls[i]
		ret, err := action(call.Action, call.ErrnoRet)
		if err != nil {
			return nil, fmt.Errorf("syscalls[%d]: %w", i, err)
		}
		rules, err := alternatives(call.Args, ret)
		if err != nil {
			return nil, fmt.Errorf("syscalls[%d]: %w", i, err)
		}
		if len(call.Names) == 0 {
			return nil, fmt.Errorf("syscalls[%d]: no names", i)
		}
		for _, name := range call.Names {
			n, ok := table[name]
			if !ok {
				continue // of another architecture, or of a newer kernel
			}
			if n < armPrivate || a.x32 {
				last = max(last, n)
			}
			if count += len(rules); count > maxRules {
				return nil, fmt.Errorf("more than %d rules", maxRules)
			}
			byNumber[n] = append(byNumber[n], rules...)
		}
	}
	unknown := otherwise
	if otherwise != retAllow && otherwise != retLog && last > 0 {
		// Programs ask for calls that are newer than the profile and fall back when they
		// do not exist; a refusal they take for an error.
		unknown = retErrno | uint32(unix.ENOSYS)
	}
	base := uint32(0)
	if a.x32 {
		base = x32Bit
	}
	out := []span{{base, []rule{{ret: otherwise}}}}
	add := func(first uint32, rules []rule) {
		if prev := out[len(out)-1]; same(prev.rules, rules) {
			return
		} else if prev.first == first {
			out = out[:len(out)-1]
			if len(out) > 0 && same(out[len(out)-1].rules, rules) {
				return
			}
		}
		out = append(out, span{first, rules})
	}
	numbers := make([]uint32, 0, len(byNumber))
	for n := range byNumber {
		numbers = append(numbers, n)
	}
	slices.Sort(numbers)
	for i, n := range numbers {
		add(n, settle(byNumber[n], otherwise))
		if next := i + 1; next == len(numbers) || numbers[next] != n+1 {
			beyond := otherwise
			if n >= last {
				beyond = unknown
			}
			add(n+1, []rule{{ret: beyond}})
		}
	}
	return out, nil
}

// armPrivate is where arm's own calls begin, which are no numbers of the kernel's table.
const armPrivate = 0x0f0000

func same(a, b []rule) bool {
	return slices.EqualFunc(a, b, func(x, y rule) bool { return x.ret == y.ret && slices.Equal(x.args, y.args) })
}

// alternatives are the rules of an entry: one, or, where it names an argument more
// than once, one for each condition (so runc reads profiles).
func alternatives(args []specs.LinuxSeccompArg, ret uint32) ([]rule, error) {
	seen, twice := [6]bool{}, false
	for _, a := range args {
		if a.Index > 5 {
			return nil, fmt.Errorf("argument %d: a call has six", a.Index)
		}
		switch a.Op {
		case specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo, specs.OpGreaterEqual, specs.OpGreaterThan, specs.OpMaskedEqual:
		default:
			return nil, fmt.Errorf("unknown operator %q", a.Op)
		}
		twice = twice || seen[a.Index]
		seen[a.Index] = true
	}
	if !twice {
		return []rule{{args, ret}}, nil
	}
	var out []rule
	for _, a := range args {
		out = append(out, rule{[]specs.LinuxSeccompArg{a}, ret})
	}
	return out, nil
}

// settle ends a call's rules with one that has no conditions. A rule of the profile
// without conditions is the only one that counts.
func settle(rules []rule, otherwise uint32) []rule {
	for _, r := range rules {
		if len(r.args) == 0 {
			return []rule{r}
		}
	}
	return append(slices.Clone(rules), rule{ret: otherwise})
}
