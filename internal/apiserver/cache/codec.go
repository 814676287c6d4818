package cache

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strconv"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/proa-dev/proa/internal/api"
)

// Codec is an Encoder that also knows the stored form.
type Codec interface {
	Encoder
	// Encode returns the stored form of obj, whose TypeMeta and resourceVersion are empty.
	Encode(obj api.Object) ([]byte, error)
	// Decode returns the object (TypeMeta and resourceVersion empty). It may keep no part of value.
	Decode(value []byte) (api.Object, error)
}

// protoMessage is what the generated types of k8s.io/api implement.
type protoMessage interface {
	Marshal() ([]byte, error)
	MarshalToSizedBuffer([]byte) (int, error)
	Unmarshal([]byte) error
	Size() int
}

// NewCodec returns the codec of a kind: protobuf in Kubernetes' envelope where
// the Go type has it, else JSON. newObject returns an empty value.
func NewCodec(gvk schema.GroupVersionKind, newObject func() runtime.Object) Codec {
	j := jsonCodec{apiVersion: gvk.GroupVersion().String(), kind: gvk.Kind, newObject: newObject}
	switch newObject().(type) {
	case *unstructured.Unstructured:
		return unstructuredCodec{j}
	case protoMessage:
		return newProtoCodec(j)
	}
	return j
}

// magic starts a value that is a runtime.Unknown in protobuf.
var magic = []byte("k8s\x00")

// Tags of runtime.Unknown (k8s.io/apimachinery/pkg/runtime/generated.proto).
const (
	tagTypeMeta        = 1<<3 | 2
	tagRaw             = 2<<3 | 2
	tagContentEncoding = 3<<3 | 2
	tagContentType     = 4<<3 | 2
)

type protoCodec struct {
	jsonCodec
	head []byte // magic and the TypeMeta, up to the length of raw
}

func newProtoCodec(j jsonCodec) protoCodec {
	meta := appendString(nil, 1<<3|2, j.apiVersion)
	meta = appendString(meta, 2<<3|2, j.kind)
	head := append([]byte(nil), magic...)
	head = append(head, tagTypeMeta)
	head = binary.AppendUvarint(head, uint64(len(meta)))
	head = append(head, meta...)
	head = append(head, tagRaw)
	return protoCodec{jsonCodec: j, head: head}
}

func appendString(b []byte, tag byte, s string) []byte {
	b = append(b, tag)
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

func (c protoCodec) Encode(obj api.Object) ([]byte, error) {
	m, ok := obj.(protoMessage)
	if !ok {
		return nil, fmt.Errorf("encode %s: %T is not protobuf", c.kind, obj)
	}
	size := m.Size()
	var length [binary.MaxVarintLen64]byte
	n := binary.PutUvarint(length[:], uint64(size))
	out := make([]byte, len(c.head)+n+size+4)
	at := copy(out, c.head)
	at += copy(out[at:], length[:n])
	if _, err := m.MarshalToSizedBuffer(out[at : at+size]); err != nil {
		return nil, fmt.Errorf("encode %s: %w", c.kind, err)
	}
	copy(out[at+size:], []byte{tagContentEncoding, 0, tagContentType, 0})
	return out, nil
}

func (c protoCodec) Decode(value []byte) (api.Object, error) {
	if !bytes.HasPrefix(value, magic) {
		return c.jsonCodec.Decode(value) // written when the type had no protobuf
	}
	raw, err := rawOf(value)
	if err != nil {
		return nil, fmt.Errorf("decode %s: %w", c.kind, err)
	}
	obj := c.newObject()
	if err := obj.(protoMessage).Unmarshal(raw); err != nil {
		return nil, fmt.Errorf("decode %s: %w", c.kind, err)
	}
	return obj.(api.Object), nil
}

func (c protoCodec) Proto(obj api.Object) ([]byte, error) {
	m, ok := obj.(protoMessage)
	if !ok {
		return nil, fmt.Errorf("encode %s: %T is not protobuf", c.kind, obj)
	}
	return m.Marshal()
}

// rawOf returns the message inside a stored envelope.
func rawOf(value []byte) ([]byte, error) {
	var u runtime.Unknown
	b := value[len(magic):]
	for len(b) > 0 {
		tag, body, rest, ok := nextField(b)
		if !ok {
			// A form that nextField does not read: let the generated code decide.
			if err := u.Unmarshal(value[len(magic):]); err != nil {
				return nil, err
			}
			return u.Raw, nil
		}
		if tag == tagRaw {
			return body, nil
		}
		b = rest
	}
	return nil, nil // an empty message
}

// nextField reads one length-delimited field with a one-byte tag.
func nextField(b []byte) (tag byte, body, rest []byte, ok bool) {
	if len(b) < 2 || b[0]&7 != 2 || b[0]&0x80 != 0 {
		return 0, nil, nil, false
	}
	n, w := binary.Uvarint(b[1:])
	if w <= 0 || n > uint64(len(b)-1-w) {
		return 0, nil, nil, false
	}
	from := 1 + w
	to := from + int(n)
	return b[0], b[from:to], b[to:], true
}

// spliceRevision returns the bare message inside stored with its
// metadata.resourceVersion (ObjectMeta's field 6; metadata is field 1 of every
// kind) set, so that what the store holds is not encoded again for clients.
func spliceRevision(stored []byte, revision int64) ([]byte, bool) {
	if !bytes.HasPrefix(stored, magic) {
		return nil, false
	}
	raw, err := rawOf(stored)
	if err != nil {
		return nil, false
	}
	tag, meta, rest, ok := nextField(raw)
	if !ok || tag != 1<<3|2 {
		return nil, false
	}
	const tagRevision = 6<<3 | 2
	before := 0
	for b := meta; ; {
		tag, body, after, ok := nextField(b)
		if !ok || tag > tagRevision {
			return nil, false
		}
		if tag == tagRevision {
			if len(body) != 0 {
				return nil, false
			}
			meta, rest = meta[:before], concat(after, rest)
			return assemble(meta, len(after), rest, revision), true
		}
		before = len(meta) - len(after)
		b = after
	}
}

// concat returns a followed by b, which are adjacent parts of one slice.
func concat(a, b []byte) []byte { return a[:len(a)+len(b)] }

// assemble writes metadata (its fields before resourceVersion, the revision, and
// the first metaTail bytes of tail) and the rest of tail.
func assemble(before []byte, metaTail int, tail []byte, revision int64) []byte {
	var digits [20]byte
	rv := strconv.AppendInt(digits[:0], revision, 10)
	size := len(before) + 2 + len(rv) + metaTail
	out := make([]byte, 0, 1+binary.MaxVarintLen64+size+len(tail)-metaTail)
	out = append(out, 1<<3|2)
	out = binary.AppendUvarint(out, uint64(size))
	out = append(out, before...)
	out = append(out, 6<<3|2, byte(len(rv)))
	out = append(out, rv...)
	return append(out, tail...)
}

type jsonCodec struct {
	apiVersion, kind string
	newObject        func() runtime.Object
}

func (c jsonCodec) JSON(obj api.Object) ([]byte, error) { return json.Marshal(obj) }

func (c jsonCodec) Proto(obj api.Object) ([]byte, error) {
	return nil, fmt.Errorf("%s %s has no protobuf encoding", c.apiVersion, c.kind)
}

func (c jsonCodec) Encode(obj api.Object) ([]byte, error) {
	b, err := c.JSON(obj)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", c.kind, err)
	}
	return spliceKind(b, c.apiVersion, c.kind), nil
}

// spliceKind puts kind and apiVersion in front of an object's other fields.
func spliceKind(b []byte, apiVersion, kind string) []byte {
	out := make([]byte, 0, len(b)+len(apiVersion)+len(kind)+27)
	out = append(out, `{"kind":"`...)
	out = append(out, kind...)
	out = append(out, `","apiVersion":"`...)
	out = append(out, apiVersion...)
	out = append(out, '"')
	if len(b) > 2 {
		out = append(out, ',')
	}
	return append(out, b[1:]...)
}

func (c jsonCodec) Decode(value []byte) (api.Object, error) {
	obj := c.newObject()
	if err := json.Unmarshal(value, obj); err != nil {
		return nil, fmt.Errorf("decode %s: %w", c.kind, err)
	}
	obj.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{})
	return obj.(api.Object), nil
}

// unstructuredCodec is for custom resources.
type unstructuredCodec struct{ jsonCodec }

func (c unstructuredCodec) JSON(obj api.Object) ([]byte, error) {
	u, ok := obj.(*unstructured.Unstructured)
	if !ok {
		return nil, fmt.Errorf("encode %s: unexpected %T", c.kind, obj)
	}
	return json.Marshal(u.Object)
}

func (c unstructuredCodec) Encode(obj api.Object) ([]byte, error) {
	b, err := c.JSON(obj)
	if err != nil {
		return nil, err
	}
	return spliceKind(b, c.apiVersion, c.kind), nil
}

func (c unstructuredCodec) Decode(value []byte) (api.Object, error) {
	u := &unstructured.Unstructured{}
	if err := u.UnmarshalJSON(value); err != nil { // whole numbers become int64
		return nil, fmt.Errorf("decode %s: %w", c.kind, err)
	}
	ClearKind(u)
	return u, nil
}

// customCodec is for custom resources, whose objects keep their apiVersion: they
// are not all stored in the same version.
type customCodec struct {
	unstructuredCodec
	prepare func(*unstructured.Unstructured) error
}

// NewCustomCodec returns the codec of a custom resource that is stored as gvk.
// prepare (nil: nothing) completes what was read in that version.
func NewCustomCodec(gvk schema.GroupVersionKind, prepare func(*unstructured.Unstructured) error) Codec {
	return customCodec{unstructuredCodec{jsonCodec{apiVersion: gvk.GroupVersion().String(), kind: gvk.Kind}}, prepare}
}

func (c customCodec) JSON(obj api.Object) ([]byte, error) {
	u, ok := obj.(*unstructured.Unstructured)
	if !ok {
		return nil, fmt.Errorf("encode %s: unexpected %T", c.kind, obj)
	}
	fields := make(map[string]any, len(u.Object))
	for k, v := range u.Object {
		if k != "apiVersion" && k != "kind" {
			fields[k] = v
		}
	}
	return json.Marshal(fields)
}

func (c customCodec) Encode(obj api.Object) ([]byte, error) {
	b, err := c.JSON(obj)
	if err != nil {
		return nil, err
	}
	return spliceKind(b, c.apiVersion, c.kind), nil
}

func (c customCodec) Decode(value []byte) (api.Object, error) {
	u := &unstructured.Unstructured{}
	if err := u.UnmarshalJSON(value); err != nil {
		return nil, fmt.Errorf("decode %s: %w", c.kind, err)
	}
	if u.GetAPIVersion() == c.apiVersion {
		if c.prepare != nil {
			if err := c.prepare(u); err != nil {
				return nil, fmt.Errorf("decode %s: %w", c.kind, err)
			}
		}
		u.SetAPIVersion(c.apiVersion) // one string for all
	}
	delete(u.Object, "kind")
	return u, nil
}

// ClearKind empties an object's TypeMeta.
func ClearKind(obj runtime.Object) {
	if u, ok := obj.(*unstructured.Unstructured); ok {
		delete(u.Object, "kind")
		delete(u.Object, "apiVersion")
		return
	}
	obj.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{})
}
