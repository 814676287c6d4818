package h2

import (
	"encoding/binary"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2/hpack"
)

// smallBody is what is kept back, so that a short answer is one write with a length.
const smallBody = 4096

// writer is the http.ResponseWriter of a stream.
type writer struct {
	st       *stream
	header   http.Header
	fields   []hpack.HeaderField // the header as it was when it was written
	status   int
	sent     bool // the headers have left
	head     bool
	declared int64 // length of the body, -1: not said
	written  int64
	buf      []byte
}

// Header implements http.ResponseWriter.
func (w *writer) Header() http.Header { return w.header }

// WriteHeader implements http.ResponseWriter.
func (w *writer) WriteHeader(status int) {
	if w.status != 0 {
		return
	}
	if status < 100 || status > 999 {
		panic("h2: invalid status " + strconv.Itoa(status))
	}
	if status < 200 {
		c := w.st.c
		c.mu.Lock()
		defer c.mu.Unlock()
		if w.st.err == nil {
			c.writeHeaders(w.st.id, false, status, fieldsOf(nil, w.header))
			c.flush()
		}
		return
	}
	w.status = status
	w.fields = fieldsOf(make([]hpack.HeaderField, 0, len(w.header)+2), w.header)
	if v := w.header["Content-Length"]; len(v) > 0 {
		if n, err := strconv.ParseInt(v[0], 10, 64); err == nil && n >= 0 {
			w.declared = n
		}
	}
	if _, ok := w.header["Date"]; !ok {
		w.fields = append(w.fields, hpack.HeaderField{Name: "date", Value: date()})
	}
}

// fieldsOf lists a header, without what HTTP/2 has other means for.
func fieldsOf(to []hpack.HeaderField, h http.Header) []hpack.HeaderField {
	for k, values := range h {
		if strings.HasPrefix(k, http.TrailerPrefix) {
			continue
		}
		name, ok := lowerNames[k]
		if !ok {
			name = strings.ToLower(k)
		}
		switch name {
		case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
			continue
		}
		if !validName(name) {
			continue
		}
		for _, v := range values {
			if strings.ContainsAny(v, "\r\n\x00") {
				v = strings.NewReplacer("\r", " ", "\n", " ", "\x00", " ").Replace(v)
			}
			// What is a secret is not compressed with what others say.
			to = append(to, hpack.HeaderField{Name: name, Value: v, Sensitive: name == "set-cookie"})
		}
	}
	return to
}

func validName(name string) bool {
	for i := range len(name) {
		if c := name[i]; c <= ' ' || c >= 0x7f || c == ':' || 'A' <= c && c <= 'Z' {
			return false
		}
	}
	return name != ""
}

// date is the time to the second, formatted once in it.
func date() string {
	now := time.Now()
	if d := lastDate.Load(); d != nil && d.unix == now.Unix() {
		return d.text
	}
	d := &dated{now.Unix(), now.UTC().Format(http.TimeFormat)}
	lastDate.Store(d)
	return d.text
}

type dated struct {
	unix int64
	text string
}

var lastDate atomic.Pointer[dated]

// Write implements http.ResponseWriter.
func (w *writer) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if w.status == http.StatusNoContent || w.status == http.StatusNotModified {
		return 0, http.ErrBodyNotAllowed
	}
	if w.declared >= 0 && w.written+int64(len(p)) > w.declared {
		return 0, http.ErrContentLength
	}
	w.written += int64(len(p))
	if w.head {
		return len(p), nil
	}
	if len(w.buf)+len(p) <= smallBody {
		if w.buf == nil {
			w.buf = make([]byte, 0, min(max(len(p), 512), smallBody))
		}
		w.buf = append(w.buf, p...)
		return len(p), nil
	}
	if err := w.send(p, false, false); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Flush implements http.Flusher.
func (w *writer) Flush() { _ = w.FlushError() }

// FlushError is for http.ResponseController.
func (w *writer) FlushError() error {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	return w.send(nil, false, true)
}

// finish sends the rest, at the handler's end.
func (w *writer) finish() {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if !w.sent && w.declared < 0 && !w.head && w.status != http.StatusNoContent && w.status != http.StatusNotModified {
		w.fields = append(w.fields, hpack.HeaderField{Name: "content-length", Value: strconv.Itoa(len(w.buf))})
	}
	_ = w.send(nil, true, false) // leave flushes
}

// send puts into the connection's buffer what is kept back, and p.
func (w *writer) send(p []byte, end, flush bool) error {
	st, c := w.st, w.st.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if st.err != nil {
		return st.err
	}
	var trailer []hpack.HeaderField
	if end {
		trailer = w.trailer()
	}
	if !w.sent {
		w.sent = true
		last := end && len(w.buf) == 0 && len(p) == 0 && len(trailer) == 0
		c.writeHeaders(st.id, last, w.status, w.fields)
		w.fields = nil
		if last {
			st.local = true
			st.finish()
			return nil
		}
	}
	closing := end && len(trailer) == 0
	if len(p) == 0 || len(w.buf) > 0 {
		if err := st.data(w.buf, closing && len(p) == 0); err != nil {
			return err
		}
		w.buf = w.buf[:0]
	}
	if len(p) > 0 {
		if err := st.data(p, closing); err != nil {
			return err
		}
	}
	if len(trailer) > 0 {
		c.writeHeaders(st.id, true, 0, trailer)
		st.local = true
		st.finish()
	}
	if flush || len(c.out) >= flushAt {
		c.flush()
	}
	return nil
}

// trailer is what the handler announced, or named with http.TrailerPrefix.
func (w *writer) trailer() []hpack.HeaderField {
	var after http.Header
	add := func(k string, v []string) {
		if after == nil {
			after = http.Header{}
		}
		after[k] = v
	}
	for k, v := range w.header {
		if name, ok := strings.CutPrefix(k, http.TrailerPrefix); ok {
			add(name, v)
		}
	}
	for _, list := range w.header["Trailer"] {
		for k := range strings.SplitSeq(list, ",") {
			if k = http.CanonicalHeaderKey(strings.TrimSpace(k)); w.header[k] != nil {
				add(k, w.header[k])
			}
		}
	}
	if after == nil {
		return nil
	}
	return fieldsOf(nil, after)
}

// data sends a part of the body, as the windows and the buffer let it.
func (st *stream) data(p []byte, end bool) error {
	c := st.c
	if len(p) == 0 && !end {
		return nil
	}
	for {
		if st.err != nil {
			return st.err
		}
		n := min(int64(len(p)), st.window, c.window, int64(c.frame))
		if len(c.out) >= maxPending || len(p) > 0 && n <= 0 {
			// What is there must leave, or the windows grow, first.
			if !c.flushing && len(c.out) > 0 {
				c.flush()
			} else {
				c.blocked = append(c.blocked, st)
				st.cond.Wait()
			}
			continue
		}
		last := end && int(n) == len(p)
		if size := len(c.out) + frameHeader + int(n); size > smallBuffer && size <= largeBuffer && cap(c.out) < largeBuffer {
			c.out = append((*largeBuffers.Get().(*[]byte))[:0], c.out...)
		} else {
			c.out = slices.Grow(c.out, frameHeader+int(n))
		}
		c.out = append(c.out, byte(n>>16), byte(n>>8), byte(n), 0 /* DATA */, 0)
		if last {
			c.out[len(c.out)-1] = 1 // END_STREAM
		}
		c.out = binary.BigEndian.AppendUint32(c.out, st.id)
		c.out = append(c.out, p[:n]...)
		st.window -= n
		c.window -= n
		if p = p[n:]; len(p) == 0 {
			if end {
				st.local = true
				st.finish()
			}
			return nil
		}
	}
}

// writeHeaders puts a frame of headers into the buffer, in pieces if it is large;
// status 0 is for trailers. The order of encoding is that of sending: mu is held.
func (c *conn) writeHeaders(id uint32, end bool, status int, fields []hpack.HeaderField) {
	c.block.Reset()
	if status != 0 {
		_ = c.headers.WriteField(hpack.HeaderField{Name: ":status", Value: statusText(status)})
	}
	for _, f := range fields {
		_ = c.headers.WriteField(f)
	}
	block, kind := c.block.Bytes(), byte(1) // HEADERS
	for first := true; first || len(block) > 0; first = false {
		n := min(len(block), c.frame)
		flags := byte(0)
		if first && end {
			flags |= 1 // END_STREAM
		}
		if n == len(block) {
			flags |= 4 // END_HEADERS
		}
		c.out = append(c.out, byte(n>>16), byte(n>>8), byte(n), kind, flags)
		c.out = binary.BigEndian.AppendUint32(c.out, id)
		c.out = append(c.out, block[:n]...)
		block, kind = block[n:], 9 // CONTINUATION
	}
}

func statusText(status int) string {
	switch status {
	case http.StatusOK:
		return "200"
	case http.StatusCreated:
		return "201"
	case http.StatusNotFound:
		return "404"
	case http.StatusConflict:
		return "409"
	}
	return strconv.Itoa(status)
}
