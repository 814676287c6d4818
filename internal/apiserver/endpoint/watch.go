package endpoint

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/gorilla/websocket"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/proa-dev/proa/internal/apiserver/cache"
	"github.com/proa-dev/proa/internal/apiserver/rest"
)

// longestWatch is more than any watch without timeoutSeconds lasts.
const longestWatch = time.Hour

func (q *request) watch() error {
	f, err := q.form(true)
	if err != nil {
		return err
	}
	f.pretty = false
	opts, err := q.listOptions()
	if err != nil {
		return err
	}
	opts.Watch = true
	fr := &framer{q: q, f: f, columns: true}
	if f.as == asTable {
		if fr.include, err = q.include(); err != nil {
			return err
		}
	}
	defer q.h.metrics.open(q)()
	w, err := q.storage.Watch(q.ctx, q.info.Namespace, opts)
	if err != nil {
		// Kubernetes tells of a resourceVersion that is too old in the watch.
		if !apierrors.IsResourceExpired(err) && !apierrors.IsGone(err) {
			return err
		}
		w = failedWatch{err}
	}
	defer w.Stop()
	if isWebSocket(q.r) {
		return q.watchSocket(fr, w)
	}
	last := longestWatch
	if s := opts.TimeoutSeconds; s != nil && *s > 0 {
		last = time.Duration(*s) * time.Second
	}
	control := http.NewResponseController(q.w.ResponseWriter)
	// A client that stops reading is let go of at the latest when its watch is over.
	_ = control.SetWriteDeadline(time.Now().Add(last + time.Minute))
	defer func() { _ = control.SetWriteDeadline(time.Time{}) }() // the connection serves other requests after this one
	h := q.w.Header()
	h["Content-Type"] = []string{f.contentType(true)}
	q.w.WriteHeader(http.StatusOK)
	if err := control.Flush(); err != nil {
		return nil // the client is gone
	}
	buf := getBuffer()
	defer putBuffer(buf)
	for {
		events, err := w.Next(q.ctx)
		b := (*buf)[:0]
		for i := range events {
			if b, err = fr.append(b, &events[i]); err != nil {
				break
			}
			if len(b) >= chunk {
				if _, werr := q.w.Write(b); werr != nil {
					return nil
				}
				b = b[:0]
			}
		}
		end := false
		if err != nil {
			b, end = q.appendEnd(fr, b, err), true
		}
		*buf = b
		if len(b) > 0 {
			if _, err := q.w.Write(b); err != nil {
				return nil
			}
		}
		if cap(*buf) > 4*chunk { // a large object came by: do not keep its room
			b := make([]byte, 0, chunk)
			*buf = b
		}
		if len(events) > 0 || end {
			if control.Flush() != nil {
				return nil
			}
		}
		if end {
			return nil
		}
	}
}

// appendEnd writes what a watch ends with: nothing when it ended in order.
func (q *request) appendEnd(fr *framer, b []byte, err error) []byte {
	if errors.Is(err, io.EOF) || q.ctx.Err() != nil {
		return b
	}
	status := StatusOf(err)
	if status.Code >= 500 {
		q.h.log.Error("watch failed", "path", q.r.URL.Path, "err", err)
	}
	out, err := fr.appendError(b, status)
	if err != nil {
		q.h.log.Error("encode the end of a watch", "path", q.r.URL.Path, "err", err)
		return b
	}
	return out
}

// failedWatch is a watch that begins with its end.
type failedWatch struct{ err error }

func (w failedWatch) Next(context.Context) ([]rest.Event, error) { return nil, w.err }
func (w failedWatch) Stop()                                      {}

// framer writes events as frames of a watch.
type framer struct {
	q       *request
	f       form
	include metav1.IncludeObjectPolicy
	columns bool // the next Table has the column definitions
	scratch []byte
}

// append writes one event: `{"type":…,"object":…}` and a line end, or a
// metav1.WatchEvent behind its length in four bytes.
func (fr *framer) append(b []byte, ev *rest.Event) ([]byte, error) {
	if fr.f.encoding == encodeProto {
		obj, err := fr.object(fr.scratch[:0], ev)
		if err != nil {
			return b, err
		}
		fr.scratch = obj
		if cap(fr.scratch) > 4*chunk {
			fr.scratch = nil
		}
		return appendProtoFrame(b, ev.Type, obj), nil
	}
	from := len(b)
	b = append(b, `{"type":"`...)
	b = append(b, ev.Type...)
	b = append(b, `","object":`...)
	out, err := fr.object(b, ev)
	if err != nil {
		return b[:from], err
	}
	return append(out, '}', '\n'), nil
}

// appendProtoFrame writes a WatchEvent {type 1, object 2 RawExtension{raw 1}}.
func appendProtoFrame(b []byte, typ string, obj []byte) []byte {
	ext := 1 + uvarintLen(len(obj)) + len(obj)
	size := 1 + uvarintLen(len(typ)) + len(typ) + 1 + uvarintLen(ext) + ext
	b = binary.BigEndian.AppendUint32(b, uint32(size))
	b = append(b, 1<<3|2)
	b = binary.AppendUvarint(b, uint64(len(typ)))
	b = append(b, typ...)
	b = append(b, 2<<3|2)
	b = binary.AppendUvarint(b, uint64(ext))
	b = append(b, 1<<3|2)
	b = binary.AppendUvarint(b, uint64(len(obj)))
	return append(b, obj...)
}

func (fr *framer) object(b []byte, ev *rest.Event) ([]byte, error) {
	if ev.Type == string(watch.Bookmark) {
		return fr.bookmark(b, ev)
	}
	if fr.f.as == asTable {
		columns := fr.columns
		fr.columns = false
		return fr.q.appendTable(b, fr.f, []*cache.Entry{ev.Entry}, tableMeta{revision: ev.Entry.Object().GetResourceVersion()}, fr.include, columns)
	}
	b, err := appendEntry(b, fr.f, fr.q.res.GVK, ev.Entry)
	if err != nil {
		return b, fmt.Errorf("encode %s %q: %w", fr.q.res.GVK.Kind, ev.Entry.Object().GetName(), err)
	}
	return b, nil
}

// bookmark is an object of which only the resourceVersion means something. It is
// the empty value of the type, so that whoever decodes it finds what it expects.
func (fr *framer) bookmark(b []byte, ev *rest.Event) ([]byte, error) {
	meta := metav1.ObjectMeta{ResourceVersion: cache.FormatRevision(ev.Revision)}
	if ev.InitialEventsEnd {
		meta.Annotations = map[string]string{metav1.InitialEventsAnnotationKey: "true"}
	}
	switch fr.f.as {
	case asTable:
		columns := fr.columns
		fr.columns = false
		if ev.InitialEventsEnd {
			// The annotation needs a place: Kubernetes puts it on a row's object.
			return fr.bookmarkTable(b, &meta, columns)
		}
		return fr.q.appendTable(b, fr.f, nil, tableMeta{revision: meta.ResourceVersion}, fr.include, columns)
	case asPartial, asPartialList:
		return appendObject(b, fr.f, &metav1.PartialObjectMetadata{ObjectMeta: meta},
			schema.GroupVersionKind{Group: "meta.k8s.io", Version: fr.f.version, Kind: asPartial})
	}
	obj := fr.q.res.New()
	m, ok := obj.(metav1.Object)
	if !ok {
		return b, fmt.Errorf("%T has no metadata", obj)
	}
	m.SetResourceVersion(meta.ResourceVersion)
	m.SetAnnotations(meta.Annotations)
	return appendObject(b, fr.f, obj, fr.q.res.GVK)
}

func (fr *framer) bookmarkTable(b []byte, meta *metav1.ObjectMeta, columns bool) ([]byte, error) {
	obj := fr.q.res.New()
	m, ok := obj.(metav1.Object)
	if !ok {
		return b, fmt.Errorf("%T has no metadata", obj)
	}
	m.SetResourceVersion(meta.ResourceVersion)
	m.SetAnnotations(meta.Annotations)
	object, err := appendObject(nil, form{}, &metav1.PartialObjectMetadata{ObjectMeta: *meta},
		schema.GroupVersionKind{Group: "meta.k8s.io", Version: fr.f.version, Kind: asPartial})
	if err != nil {
		return b, err
	}
	b, err = fr.q.appendTable(b, fr.f, nil, tableMeta{revision: meta.ResourceVersion}, fr.include, columns)
	if err != nil {
		return b, err
	}
	b = b[:len(b)-len("]}")]
	b = append(b, `{"cells":[],"object":`...)
	b = append(b, object...)
	return append(b, `}]}`...), nil
}

func (fr *framer) appendError(b []byte, status *metav1.Status) ([]byte, error) {
	obj, err := appendObject(nil, fr.f, status, statusKind)
	if err != nil {
		return b, err
	}
	if fr.f.encoding == encodeProto {
		return appendProtoFrame(b, string(watch.Error), obj), nil
	}
	b = append(b, `{"type":"ERROR","object":`...)
	b = append(b, obj...)
	return append(b, '}', '\n'), nil
}

// socketWrite bounds how long one message may take to leave.
const socketWrite = 30 * time.Second

// watchSocket sends each event as a message of a WebSocket.
func (q *request) watchSocket(fr *framer, w rest.Watch) error {
	up := websocket.Upgrader{CheckOrigin: func(*http.Request) bool { return true }} // as in Kubernetes: the token decides
	for _, p := range websocket.Subprotocols(q.r) {
		if !strings.HasPrefix(p, "base64url.bearer.authorization.k8s.io.") {
			up.Subprotocols = append(up.Subprotocols, p)
		}
	}
	q.writeWarnings()
	conn, err := up.Upgrade(&q.w, q.r, http.Header{"Audit-Id": q.w.Header()["Audit-Id"]})
	if err != nil {
		return nil // Upgrade has answered
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(q.ctx)
	defer cancel()
	done := make(chan struct{})
	go func() { // ends with the connection, which is closed before it is waited for
		defer close(done)
		defer cancel()
		conn.SetReadLimit(4 << 10)
		for {
			if _, _, err := conn.NextReader(); err != nil {
				return
			}
		}
	}()
	defer func() {
		_ = conn.Close()
		<-done
	}()
	kind := websocket.TextMessage
	if fr.f.encoding == encodeProto {
		kind = websocket.BinaryMessage
	}
	send := func(frame []byte) error {
		if kind == websocket.BinaryMessage {
			frame = frame[4:] // messages have their own length
		}
		_ = conn.SetWriteDeadline(time.Now().Add(socketWrite))
		return conn.WriteMessage(kind, frame)
	}
	var buf []byte
	for {
		events, err := w.Next(ctx)
		for i := range events {
			if buf, err = fr.append(buf[:0], &events[i]); err != nil {
				break
			}
			if send(buf) != nil {
				return nil
			}
		}
		if err != nil {
			if end := q.appendEnd(fr, buf[:0], err); ctx.Err() == nil && len(end) > 0 {
				_ = send(end)
			}
			_ = conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(time.Second))
			return nil
		}
	}
}
