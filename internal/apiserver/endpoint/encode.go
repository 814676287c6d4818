package endpoint

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/klauspost/compress/gzip"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"github.com/proa-dev/proa/internal/apiserver/cache"
)

// protoMessage is what generated protobuf types implement.
type protoMessage interface {
	Size() int
	MarshalToSizedBuffer([]byte) (int, error)
}

// protoMagic begins an object in protobuf: what follows is a runtime.Unknown.
const protoMagic = "k8s\x00"

// Fields of runtime.Unknown; the empty contentEncoding and contentType follow raw.
const (
	unknownTypeMeta = 1<<3 | 2
	unknownRaw      = 2<<3 | 2
	unknownTail     = "\x1a\x00\x22\x00"
)

// appendEnvelope writes everything of the protobuf envelope that stands before
// size bytes of raw. unknownTail comes behind them.
func appendEnvelope(b []byte, gvk schema.GroupVersionKind, size int) []byte {
	version, kind := gvk.GroupVersion().String(), gvk.Kind
	b = append(b, protoMagic...)
	b = append(b, unknownTypeMeta)
	b = binary.AppendUvarint(b, uint64(2+uvarintLen(len(version))+len(version)+uvarintLen(len(kind))+len(kind)))
	b = append(b, 1<<3|2)
	b = binary.AppendUvarint(b, uint64(len(version)))
	b = append(b, version...)
	b = append(b, 2<<3|2)
	b = binary.AppendUvarint(b, uint64(len(kind)))
	b = append(b, kind...)
	b = append(b, unknownRaw)
	return binary.AppendUvarint(b, uint64(size))
}

func envelopeLen(gvk schema.GroupVersionKind, size int) int {
	version, kind := len(gvk.Version), len(gvk.Kind)
	if gvk.Group != "" {
		version += len(gvk.Group) + 1
	}
	meta := 2 + uvarintLen(version) + version + uvarintLen(kind) + kind
	return len(protoMagic) + 1 + uvarintLen(meta) + meta + 1 + uvarintLen(size) + size + len(unknownTail)
}

func uvarintLen(n int) int {
	l := 1
	for n >= 0x80 {
		n >>= 7
		l++
	}
	return l
}

// appendKind writes the beginning of an object in JSON; its other fields, or } follow.
func appendKind(b []byte, gvk schema.GroupVersionKind) []byte {
	b = append(b, `{"kind":"`...)
	b = append(b, gvk.Kind...)
	b = append(b, `","apiVersion":"`...)
	if gvk.Group != "" {
		b = append(b, gvk.Group...)
		b = append(b, '/')
	}
	b = append(b, gvk.Version...)
	return append(b, '"')
}

// appendJSON splices kind and apiVersion into fields, a JSON object without them.
func appendJSON(b []byte, gvk schema.GroupVersionKind, fields []byte) []byte {
	b = appendKind(b, gvk)
	if len(fields) > 2 {
		b = append(b, ',')
	}
	return append(b, fields[1:]...)
}

func appendProto(b []byte, gvk schema.GroupVersionKind, message []byte) []byte {
	b = appendEnvelope(b, gvk, len(message))
	b = append(b, message...)
	return append(b, unknownTail...)
}

// appendEntry writes an object as f wants it (JSON or protobuf).
func appendEntry(b []byte, f form, gvk schema.GroupVersionKind, e *cache.Entry) ([]byte, error) {
	switch {
	case f.as == asPartial || f.as == asPartialList:
		return appendPartial(b, f, e)
	case f.encoding == encodeProto:
		p, err := e.Proto()
		if err != nil {
			return b, err
		}
		return appendProto(b, gvk, p), nil
	}
	j, err := e.JSON()
	if err != nil {
		return b, err
	}
	return appendJSON(b, gvk, j), nil
}

// buffers are for answers and watch frames. Large ones are not kept.
var buffers = sync.Pool{New: func() any { b := make([]byte, 0, chunk); return &b }}

// chunk is how much of a body is written at once: large enough to cost few
// system calls, small enough to be kept.
const chunk = 64 << 10

func getBuffer() *[]byte { return buffers.Get().(*[]byte) }

func putBuffer(b *[]byte) {
	if cap(*b) <= 4*chunk {
		*b = (*b)[:0]
		buffers.Put(b)
	}
}

// writeEntry answers with one object.
func (q *request) writeEntry(f form, code int, e *cache.Entry) error {
	if f.as == asTable {
		return q.writeTable(f, code, []*cache.Entry{e}, tableMeta{revision: e.Object().GetResourceVersion()})
	}
	buf := getBuffer()
	defer putBuffer(buf)
	b, err := appendEntry((*buf)[:0], f, q.res.GVK, e)
	*buf = b
	if err != nil {
		return fmt.Errorf("encode %s %q: %w", q.res.GVK.Kind, e.Object().GetName(), err)
	}
	q.writeEncoded(f, code, buf)
	return nil
}

// writeObject answers with an object that is in no cache.
func (q *request) writeObject(f form, code int, obj runtime.Object, gvk schema.GroupVersionKind) {
	buf := getBuffer()
	defer putBuffer(buf)
	b, err := appendObject((*buf)[:0], f, obj, gvk)
	if err != nil {
		q.h.log.Error("encode an answer", "kind", gvk.Kind, "err", err)
		http.Error(q.writer(), "cannot encode the answer", http.StatusInternalServerError)
		return
	}
	*buf = b
	q.writeEncoded(f, code, buf)
}

func appendObject(b []byte, f form, obj runtime.Object, gvk schema.GroupVersionKind) ([]byte, error) {
	if f.encoding == encodeProto {
		m, ok := obj.(protoMessage)
		if !ok {
			return b, fmt.Errorf("%s has no protobuf form", gvk)
		}
		raw := make([]byte, m.Size())
		if _, err := m.MarshalToSizedBuffer(raw); err != nil {
			return b, err
		}
		return appendProto(b, gvk, raw), nil
	}
	kind := obj.GetObjectKind()
	if have := kind.GroupVersionKind(); !have.Empty() {
		obj = obj.DeepCopyObject()
		obj.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{})
	}
	j, err := json.Marshal(obj)
	if err != nil {
		return b, err
	}
	return appendJSON(b, gvk, j), nil
}

// writeEncoded sends a whole body (JSON or protobuf, made YAML or pretty here).
func (q *request) writeEncoded(f form, code int, buf *[]byte) {
	body := *buf
	switch {
	case f.encoding == encodeYAML:
		y, err := yaml.JSONToYAML(body)
		if err != nil {
			q.h.log.Error("encode an answer as YAML", "err", err)
			http.Error(q.writer(), "cannot encode the answer", http.StatusInternalServerError)
			return
		}
		body = y
	case f.encoding == encodeJSON && f.pretty:
		var out bytes.Buffer
		if json.Indent(&out, body, "", "  ") == nil {
			body = out.Bytes()
		}
		body = append(body, '\n')
	case f.encoding == encodeJSON:
		body = append(body, '\n')
		*buf = body
	}
	out := q.begin(f.contentType(false), code, len(body))
	_, _ = out.Write(body)
	q.finish(out)
}

func (q *request) writer() http.ResponseWriter { return &q.w }

// begin sends the header of an answer with a body of size bytes. finish ends it.
func (q *request) begin(contentType string, code, size int) io.Writer {
	h := q.w.Header()
	h["Content-Type"] = []string{contentType}
	if q.compress(size) {
		h["Content-Encoding"] = []string{"gzip"}
		h.Add("Vary", "Accept-Encoding")
		q.w.WriteHeader(code)
		z := gzips.Get().(*gzip.Writer)
		z.Reset(&q.w)
		return z
	}
	h["Content-Length"] = []string{strconv.Itoa(size)}
	q.w.WriteHeader(code)
	return &q.w
}

var gzips = sync.Pool{New: func() any {
	z, err := gzip.NewWriterLevel(io.Discard, gzip.BestSpeed)
	if err != nil {
		panic(err) // the level is a constant
	}
	return z
}}

func (q *request) finish(out io.Writer) {
	if z, ok := out.(*gzip.Writer); ok {
		_ = z.Close()
		z.Reset(io.Discard)
		gzips.Put(z)
	}
}

// compress says whether a body is worth it. On the machine itself it never is:
// copying the bytes costs less than compressing them.
func (q *request) compress(size int) bool {
	if size <= q.h.cfg.CompressAbove || q.r.Header.Get("Range") != "" {
		return false
	}
	if !acceptsGzip(q.r.Header) {
		return false
	}
	host, _, err := net.SplitHostPort(q.r.RemoteAddr)
	if err != nil {
		return true
	}
	ip := net.ParseIP(host)
	return ip == nil || !ip.IsLoopback()
}

func acceptsGzip(h http.Header) bool {
	for _, line := range h["Accept-Encoding"] {
		for part := range strings.SplitSeq(line, ",") {
			name, params, _ := strings.Cut(strings.TrimSpace(part), ";")
			if strings.EqualFold(strings.TrimSpace(name), "gzip") && strings.ReplaceAll(params, " ", "") != "q=0" {
				return true
			}
		}
	}
	return false
}

// chunked gathers small pieces into large writes.
type chunked struct {
	to  io.Writer
	buf *[]byte
	err error
}

func newChunked(to io.Writer) *chunked { return &chunked{to: to, buf: getBuffer()} }

func (c *chunked) add(p []byte) {
	if len(*c.buf)+len(p) > chunk {
		c.flush()
		if len(p) >= chunk {
			c.write(p)
			return
		}
	}
	*c.buf = append(*c.buf, p...)
}

func (c *chunked) flush() {
	if len(*c.buf) > 0 {
		c.write(*c.buf)
		*c.buf = (*c.buf)[:0]
	}
}

func (c *chunked) write(p []byte) {
	if c.err == nil {
		_, c.err = c.to.Write(p)
	}
}

func (c *chunked) close() error {
	c.flush()
	putBuffer(c.buf)
	c.buf = nil
	return c.err
}
