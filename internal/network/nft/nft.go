// Package nft holds the nftables expressions that the network parts build their
// rules from, and a connection whose buffers take large transactions. Rules go to
// the kernel over netlink; no program is run.
package nft

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Registers of 4 bytes that follow each other, for concatenated keys. Register 1
// is the first 4 bytes of the 16-byte register of that number.
const (
	Reg0 = 1
	Reg1 = unix.NFT_REG32_01
	Reg2 = unix.NFT_REG32_02
	Reg3 = unix.NFT_REG32_03
)

// socketBuffer takes a transaction of tens of thousands of elements; the kernel
// answers each message, so the receive side must be as large.
const socketBuffer = 256 << 20

// Chunk is how many elements go into one message: a netlink attribute holds 64 KiB.
const Chunk = 400

// Open returns a connection. Every Flush is one transaction: all or nothing.
func Open() (*nftables.Conn, error) {
	return nftables.New(nftables.WithSockOptions(func(c *netlink.Conn) error {
		// Without the privilege the default size stays, which small clusters fit in.
		_ = forceBuffer(c)
		return nil
	}))
}

func forceBuffer(c *netlink.Conn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) {
		inner = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, socketBuffer)
		if err := unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, socketBuffer); err != nil {
			inner = err
		}
	}); err != nil {
		return err
	}
	return inner
}

// Add puts elements into a set in messages of bounded size.
func Add(c *nftables.Conn, set *nftables.Set, elements []nftables.SetElement) error {
	for len(elements) > 0 {
		n := min(len(elements), Chunk)
		if err := c.SetAddElements(set, elements[:n]); err != nil {
			return err
		}
		elements = elements[n:]
	}
	return nil
}

// Destination loads the destination address into a register; Source the source.
func Destination(reg uint32) expr.Any {
	return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4}
}

func Source(reg uint32) expr.Any {
	return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4}
}

// Protocol loads the transport protocol's number, Port the destination port.
func Protocol(reg uint32) expr.Any {
	return &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg}
}

func Port(reg uint32) expr.Any {
	return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}
}

// IsLocal matches packets to an address of this host, FromLocal those from one.
func IsLocal() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: Reg0, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: Reg0, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
}

func FromLocal() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: Reg0, FlagSADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: Reg0, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
}

// connectionIsNew is the bit of a connection's first packet (NF_CT_STATE_BIT).
const connectionIsNew = 1 << 3

// IsNew matches the first packet of a connection.
func IsNew() []expr.Any {
	return []expr.Any{
		&expr.Ct{Register: Reg0, Key: expr.CtKeySTATE},
		&expr.Bitwise{SourceRegister: Reg0, DestRegister: Reg0, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(connectionIsNew), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: Reg0, Data: make([]byte, 4)},
	}
}

// Goto continues in another chain, and does not come back.
func Goto(chain string) expr.Any { return &expr.Verdict{Kind: expr.VerdictGoto, Chain: chain} }

// Drop ends a packet.
func Drop() expr.Any { return &expr.Verdict{Kind: expr.VerdictDrop} }

// Masquerade hides the source. The port is chosen at random: choosing the next free
// one lets two processors choose the same, and one of the packets is lost.
func Masquerade() expr.Any { return &expr.Masq{FullyRandom: true} }

// InPrefix compares the address in a register with an IPv4 prefix.
func InPrefix(reg uint32, p netip.Prefix, op expr.CmpOp) []expr.Any {
	mask := make([]byte, 4)
	binary.BigEndian.PutUint32(mask, ^uint32(0)<<(32-p.Bits()))
	if p.Bits() == 0 {
		mask = make([]byte, 4)
	}
	return []expr.Any{
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: op, Register: reg, Data: p.Masked().Addr().AsSlice()},
	}
}

// SetMark sets a bit of the packet's mark; HasMark matches it.
func SetMark(bit uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: Reg0},
		&expr.Bitwise{SourceRegister: Reg0, DestRegister: Reg0, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(^bit), Xor: binaryutil.NativeEndian.PutUint32(bit)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: Reg0},
	}
}

// ClearMark takes a bit back, so that it means nothing to those who come later.
func ClearMark(bit uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: Reg0},
		&expr.Bitwise{SourceRegister: Reg0, DestRegister: Reg0, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(^bit), Xor: make([]byte, 4)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: Reg0},
	}
}

func HasMark(bit uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: Reg0},
		&expr.Bitwise{SourceRegister: Reg0, DestRegister: Reg0, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(bit), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: Reg0, Data: make([]byte, 4)},
	}
}

// Find looks the key at Reg0 up in a set (a match), FindVerdict in a verdict map,
// FindInto in a map whose value goes to Reg0.
func Find(set *nftables.Set) expr.Any {
	return &expr.Lookup{SourceRegister: Reg0, SetName: set.Name, SetID: set.ID}
}

func FindVerdict(set *nftables.Set) expr.Any {
	return &expr.Lookup{SourceRegister: Reg0, SetName: set.Name, SetID: set.ID, IsDestRegSet: true}
}

func FindInto(set *nftables.Set) expr.Any {
	return &expr.Lookup{SourceRegister: Reg0, DestRegister: Reg0, SetName: set.Name, SetID: set.ID, IsDestRegSet: true}
}

// DNAT rewrites the destination to the address at Reg0 and the port at Reg1.
func DNAT() expr.Any { return DNATTo(Reg0, Reg1) }

// DNATTo rewrites the destination to an address and a port in two registers.
func DNATTo(addr, port uint32) expr.Any {
	return &expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: addr, RegProtoMin: port, Specified: true}
}

// Word pads a value to the 4 bytes that each part of a concatenation takes.
func Word(b ...byte) []byte { return append(b, make([]byte, (4-len(b)%4)%4)...) }

// PortWord is a port as a part of a concatenation.
func PortWord(port uint16) []byte { return Word(binaryutil.BigEndian.PutUint16(port)...) }
