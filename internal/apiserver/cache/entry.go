// Package cache is the watch cache: the one copy of the cluster's state in this
// process. It follows the store and keeps, per resource, a copy-on-write B-tree
// of entries, so that reads take a snapshot without a lock and lists of the same
// revision page through the same tree. Watchers and in-process informers are fed
// from it. An entry carries its encodings, each made at most once.
//
// It writes nothing and knows no verbs: that is package rest. Set follows the
// store, Cache holds one resource, Entry one object at one revision.
package cache

import (
	"reflect"
	"strconv"
	"sync/atomic"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/proa-dev/proa/internal/api"
)

// Entry is one object at one revision. It and all that it returns are shared and
// immutable.
type Entry struct {
	Key      string // store key
	Revision int64
	object   api.Object // with TypeMeta empty and metadata.resourceVersion set
	encoder  Encoder
	stored   []byte // as the store holds it (resourceVersion empty); nil: unknown
	index    string // value of the cache's index

	json  atomic.Pointer[[]byte]
	proto atomic.Pointer[[]byte]
	views atomic.Pointer[viewNode]
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

// Stored returns the bytes that the store holds, nil when the entry was not read from it.
func (e *Entry) Stored() []byte { return e.stored }

// JSON returns `{"metadata":…}` without kind and apiVersion.
func (e *Entry) JSON() ([]byte, error) { return once(&e.json, e.object, e.encoder.JSON) }

// Proto returns the bare protobuf message.
func (e *Entry) Proto() ([]byte, error) {
	if b := e.proto.Load(); b != nil {
		return *b, nil
	}
	if b, ok := spliceRevision(e.stored, e.Revision); ok {
		e.proto.Store(&b)
		return b, nil
	}
	return once(&e.proto, e.object, e.encoder.Proto)
}

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

// At returns the same state at a later revision: what a watcher is told of an
// object that was deleted or left its selector.
func (e *Entry) At(revision int64) *Entry {
	return &Entry{Key: e.Key, Revision: revision, object: WithRevision(e.object, revision), encoder: e.encoder, stored: e.stored, index: e.index}
}

// WithRevision returns a shallow copy of obj with another resourceVersion.
func WithRevision(obj api.Object, revision int64) api.Object {
	rv := FormatRevision(revision)
	if u, ok := obj.(*unstructured.Unstructured); ok {
		top := make(map[string]any, len(u.Object))
		for k, v := range u.Object {
			top[k] = v
		}
		old, _ := top["metadata"].(map[string]any)
		meta := make(map[string]any, len(old)+1)
		for k, v := range old {
			meta[k] = v
		}
		meta["resourceVersion"] = rv
		top["metadata"] = meta
		return &unstructured.Unstructured{Object: top}
	}
	v := reflect.ValueOf(obj).Elem()
	n := reflect.New(v.Type())
	n.Elem().Set(v)
	o := n.Interface().(api.Object)
	o.SetResourceVersion(rv)
	return o
}

// FormatRevision writes a revision as a resourceVersion ("" for 0).
func FormatRevision(revision int64) string {
	if revision == 0 {
		return ""
	}
	return strconv.FormatInt(revision, 10)
}

// View is another version of the same objects (autoscaling/v1 of autoscaling/v2).
type View struct {
	// Convert returns the object in the view's version (TypeMeta empty).
	Convert func(stored api.Object) (api.Object, error)
	// ConvertAll, when set, converts many at once.
	ConvertAll func(stored []api.Object) ([]api.Object, error)
	Encoder    Encoder
}

type viewNode struct {
	view  *View
	entry *Entry
	next  *viewNode
}

// As returns the entry in a view, converted at most once.
func (e *Entry) As(v *View) (*Entry, error) {
	if known := e.known(v); known != nil {
		return known, nil
	}
	obj, err := v.Convert(e.object)
	if err != nil {
		return nil, err
	}
	return e.put(v, obj), nil
}

// All returns entries in the view. Those that were never seen in it are converted together.
func (v *View) All(entries []*Entry) ([]*Entry, error) {
	out := make([]*Entry, len(entries))
	var todo []api.Object
	var at []int
	for i, e := range entries {
		if out[i] = e.known(v); out[i] == nil {
			todo, at = append(todo, e.object), append(at, i)
		}
	}
	if len(todo) == 0 {
		return out, nil
	}
	converted, err := v.ConvertAll(todo)
	if err != nil {
		return nil, err
	}
	for j, i := range at {
		out[i] = entries[i].put(v, converted[j])
	}
	return out, nil
}

// known returns the entry in a view that it was seen in, else nil.
func (e *Entry) known(v *View) *Entry {
	for n := e.views.Load(); n != nil; n = n.next {
		if n.view == v {
			return n.entry
		}
	}
	return nil
}

// put notes what the entry is in a view. Two racing converters make equal
// objects: the first wins.
func (e *Entry) put(v *View, obj api.Object) *Entry {
	if obj == e.object {
		return e // stored in the view's version
	}
	obj.SetResourceVersion(FormatRevision(e.Revision))
	converted := NewEntry(e.Key, e.Revision, obj, v.Encoder)
	for {
		head := e.views.Load()
		if have := e.known(v); have != nil {
			return have
		}
		if e.views.CompareAndSwap(head, &viewNode{view: v, entry: converted, next: head}) {
			return converted
		}
	}
}
