// Package cache is the watch cache: the one copy of the cluster's state in this
// process. It follows the store and keeps, per resource, a copy-on-write B-tree
// of entries, so that reads take a snapshot without a lock and lists of the same
// revision page through the same tree. Watchers and in-process informers are fed
// from it. An entry carries its encodings, each made at most once.
package cache

import (
	"sync/atomic"

	"github.com/proa-dev/proa/internal/api"
)

// Entry is one object at one revision. It and all that it returns are shared and
// immutable.
type Entry struct {
	Key      string // store key
	Revision int64
	object   api.Object // with TypeMeta empty and metadata.resourceVersion set
	encoder  Encoder

	json  atomic.Pointer[[]byte]
	proto atomic.Pointer[[]byte]
}

// Encoder turns an object (TypeMeta empty) into bytes: JSON without kind and
// apiVersion, and the bare protobuf message without the Kubernetes envelope. So
// one encoding serves GET and WATCH (kind and apiVersion spliced in front) and
// LIST items (which carry none).
type Encoder interface {
	JSON(obj api.Object) ([]byte, error)
	Proto(obj api.Object) ([]byte, error)
}

// NewEntry returns an entry for obj, which must not be written to afterwards.
func NewEntry(key string, revision int64, obj api.Object, encoder Encoder) *Entry {
	return &Entry{Key: key, Revision: revision, object: obj, encoder: encoder}
}

// Object returns the object: read only.
func (e *Entry) Object() api.Object { return e.object }

// JSON returns `{"metadata":…}` without kind and apiVersion.
func (e *Entry) JSON() ([]byte, error) { return once(&e.json, e.object, e.encoder.JSON) }

// Proto returns the bare protobuf message.
func (e *Entry) Proto() ([]byte, error) { return once(&e.proto, e.object, e.encoder.Proto) }

func once(slot *atomic.Pointer[[]byte], obj api.Object, encode func(api.Object) ([]byte, error)) ([]byte, error) {
	if b := slot.Load(); b != nil {
		return *b, nil
	}
	b, err := encode(obj)
	if err != nil {
		return nil, err
	}
	slot.Store(&b) // two racing encoders make equal bytes: either may win
	return b, nil
}
