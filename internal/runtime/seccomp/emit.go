package seccomp

import (
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
)

// Where struct seccomp_data has what (include/uapi/linux/seccomp.h).
const (
	offsetNumber = 0
	offsetArch   = 4
	offsetArgs   = 16
)

// Instructions of classic BPF that seccomp takes (include/uapi/linux/filter.h).
const (
	opLoad = 0x20 // A = word at K
	opAnd  = 0x54 // A &= K
	opJump = 0x05 // forward by K
	opEq   = 0x15
	opGt   = 0x25
	opGe   = 0x35
	opRet  = 0x06
)

func load(offset uint32) bpf.RawInstruction { return bpf.RawInstruction{Op: opLoad, K: offset} }
func ret(k uint32) bpf.RawInstruction       { return bpf.RawInstruction{Op: opRet, K: k} }
func jump(n int) bpf.RawInstruction         { return bpf.RawInstruction{Op: opJump, K: uint32(n)} }

// branch is: if A op k then yes, else no. Both blocks end with a return.
func branch(op uint16, k uint32, yes, no []bpf.RawInstruction) []bpf.RawInstruction {
	out := make([]bpf.RawInstruction, 0, 2+len(yes)+len(no))
	if len(no) <= 255 {
		out = append(out, bpf.RawInstruction{Op: op, Jt: uint8(len(no)), K: k})
	} else { // a conditional jump does not reach that far
		out = append(out, bpf.RawInstruction{Op: op, Jf: 1, K: k}, jump(len(no)))
	}
	out = append(out, no...)
	return append(out, yes...)
}

// tree finds a number's span by halving, with the number in A. Spans of one answer
// look at the number alone, so that the kernel can remember them as allowed.
func tree(a arch, spans []span) []bpf.RawInstruction {
	if len(spans) == 1 {
		return leaf(a, spans[0].rules)
	}
	half := len(spans) / 2
	return branch(opGe, spans[half].first, tree(a, spans[half:]), tree(a, spans[:half]))
}

// leaf tries rules in order.
func leaf(a arch, rules []rule) []bpf.RawInstruction {
	last := rules[len(rules)-1]
	out := []bpf.RawInstruction{ret(last.ret)}
	for i := len(rules) - 2; i >= 0; i-- {
		out = all(a, rules[i].args, rules[i].ret, out)
	}
	return out
}

// all returns answer when every condition holds, and goes on with otherwise when not.
// Every failed condition jumps to the one copy of otherwise, at the end.
func all(a arch, args []specs.LinuxSeccompArg, answer uint32, otherwise []bpf.RawInstruction) []bpf.RawInstruction {
	var tests []test
	for _, arg := range args {
		for _, t := range condition(a, arg) {
			if t.mask != 0 || t.k != 0 { // nothing masked is always nothing
				tests = append(tests, t)
			}
		}
	}
	// Built from the end: pass is the return, fail lies behind it.
	var code []bpf.RawInstruction
	code = append(code, ret(answer))
	for i := len(tests) - 1; i >= 0; i-- {
		t := tests[i]
		fail := uint8(len(code)) // conditions are few: far below 255
		pass := uint8(0)
		if t.pass > 0 {
			pass = uint8(width(tests[i+1 : i+1+t.pass]))
		}
		step := []bpf.RawInstruction{load(t.offset)}
		if t.mask != ^uint32(0) {
			step = append(step, bpf.RawInstruction{Op: opAnd, K: t.mask})
		}
		if t.either { // failing decides nothing yet: the next test does
			fail = 0
		}
		in := bpf.RawInstruction{Op: t.op, Jt: pass, Jf: fail, K: t.k}
		if t.negate {
			in.Jt, in.Jf = fail, pass
		}
		code = append(append(step, in), code...)
	}
	return append(code, otherwise...)
}

// width is how many instructions tests have.
func width(tests []test) (sum int) {
	for _, t := range tests {
		sum += t.size()
	}
	return sum
}

// test compares one word. When it passes, pass further tests are left out; either
// means that failing is not yet a failure of the whole.
type test struct {
	offset, mask uint32
	op           uint16
	k            uint32
	negate       bool
	either       bool
	pass         int
}

func (t test) size() int {
	if t.mask != ^uint32(0) {
		return 3
	}
	return 2
}

// condition turns a comparison of 64 bits into tests of words, the high one first.
func condition(a arch, c specs.LinuxSeccompArg) []test {
	const whole = ^uint32(0)
	lo, hi := uint32(offsetArgs+8*c.Index), uint32(offsetArgs+8*c.Index+4)
	value, mask := c.Value, ^uint64(0)
	if c.Op == specs.OpMaskedEqual {
		mask, value = c.Value, c.ValueTwo
	}
	vlo, vhi := uint32(value), uint32(value>>32)
	mlo, mhi := uint32(mask), uint32(mask>>32)
	if a.narrow { // the kernel widens the arguments with zeros
		switch c.Op {
		case specs.OpEqualTo, specs.OpMaskedEqual:
			return []test{{offset: lo, mask: mlo, op: opEq, k: vlo}}
		case specs.OpNotEqual:
			return []test{{offset: lo, mask: whole, op: opEq, k: vlo, negate: true}}
		case specs.OpGreaterThan:
			return []test{{offset: lo, mask: whole, op: opGt, k: vlo}}
		case specs.OpGreaterEqual:
			return []test{{offset: lo, mask: whole, op: opGe, k: vlo}}
		case specs.OpLessThan:
			return []test{{offset: lo, mask: whole, op: opGe, k: vlo, negate: true}}
		default: // less or equal
			return []test{{offset: lo, mask: whole, op: opGt, k: vlo, negate: true}}
		}
	}
	switch c.Op {
	case specs.OpEqualTo, specs.OpMaskedEqual:
		return []test{{offset: hi, mask: mhi, op: opEq, k: vhi}, {offset: lo, mask: mlo, op: opEq, k: vlo}}
	case specs.OpNotEqual:
		// Another high word is enough.
		return []test{{offset: hi, mask: whole, op: opEq, k: vhi, negate: true, either: true, pass: 1}, {offset: lo, mask: whole, op: opEq, k: vlo, negate: true}}
	case specs.OpGreaterThan, specs.OpGreaterEqual:
		op := uint16(opGt)
		if c.Op == specs.OpGreaterEqual {
			op = opGe
		}
		return []test{{offset: hi, mask: whole, op: opGt, k: vhi, either: true, pass: 2}, {offset: hi, mask: whole, op: opEq, k: vhi},
			{offset: lo, mask: whole, op: op, k: vlo}}
	default: // less, or less or equal
		op := uint16(opGe)
		if c.Op == specs.OpLessEqual {
			op = opGt
		}
		return []test{{offset: hi, mask: whole, op: opGe, k: vhi, negate: true, either: true, pass: 2}, {offset: hi, mask: whole, op: opEq, k: vhi},
			{offset: lo, mask: whole, op: op, k: vlo, negate: true}}
	}
}

// dispatch finds the calling convention; a call of one that the profile does not
// cover ends its thread.
func dispatch(archs []arch, blocks map[specs.Arch][]bpf.RawInstruction) []bpf.RawInstruction {
	out := []bpf.RawInstruction{ret(retKillThread)}
	for i := len(archs) - 1; i >= 0; i-- {
		a := archs[i]
		if a.x32 {
			continue // tested with the convention that it shares its mark with
		}
		body := blocks[a.name]
		if a.audit == x86_64.audit {
			sister := []bpf.RawInstruction{ret(retKillThread)}
			if b, ok := blocks[x32.name]; ok {
				sister = b
			}
			body = branch(opGe, x32Bit, sister, body)
		}
		body = append([]bpf.RawInstruction{load(offsetNumber)}, body...)
		out = branch(opEq, a.audit, body, out)
	}
	return append([]bpf.RawInstruction{load(offsetArch)}, out...)
}
