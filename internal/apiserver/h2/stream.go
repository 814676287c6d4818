package h2

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/textproto"
	"net/url"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2"
)

// stream is one request and its answer. All of it is guarded by the connection's mu.
type stream struct {
	c        *conn
	cond     sync.Cond // something changed that a reader or writer waits for
	id       uint32
	cancel   context.CancelCauseFunc
	window   int64 // what may be sent
	receive  int64 // what the client may send
	unacked  int64 // what has been read and not given back
	declared int64 // length of the body, -1: not said
	got      int64
	body     []byte // what the handler has not read
	asked    bool   // the client waits for 100 Continue
	remote   bool   // the client has sent all
	local    bool   // all is sent
	err      error  // why it ended before its time
	readErr  error  // why no more is read
	reads    *time.Timer
	writes   *time.Timer
}

// end takes the stream out of the connection: nothing is sent or read any more.
func (st *stream) end(err error) {
	if st.err == nil {
		st.err = err
	}
	st.remove()
	st.cancel(err)
}

// finish takes out a stream that both sides have said all on.
func (st *stream) finish() {
	if st.remote && st.local {
		st.remove()
	}
}

func (st *stream) remove() {
	c := st.c
	if c.streams[st.id] != st {
		return
	}
	delete(c.streams, st.id)
	c.used = c.heard
	st.cond.Broadcast()
}

// begin starts the request of a frame of headers.
func (c *conn) begin(f *http2.MetaHeadersFrame) error {
	c.mu.Lock()
	c.heard, c.pinged = time.Now(), false
	c.used = c.heard
	id := f.StreamID
	if id%2 == 0 {
		c.mu.Unlock()
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	if id <= c.last { // trailers, or of a stream that has ended
		defer c.mu.Unlock()
		st := c.streams[id]
		if st == nil || st.remote {
			return http2.ConnectionError(http2.ErrCodeStreamClosed)
		}
		if !f.StreamEnded() || st.declared >= 0 && st.got < st.declared {
			return http2.StreamError{StreamID: id, Code: http2.ErrCodeProtocol}
		}
		st.remote = true
		st.finish()
		st.cond.Broadcast()
		return nil
	}
	c.last = id
	if c.leaving || c.running >= c.s.MaxStreams {
		c.mu.Unlock()
		return http2.StreamError{StreamID: id, Code: http2.ErrCodeRefusedStream}
	}
	c.mu.Unlock()
	st := &stream{c: c, id: id, receive: streamWindow, declared: -1, remote: f.StreamEnded()}
	st.cond.L = &c.mu
	r, err := st.request(f)
	if err != nil {
		if st.cancel != nil {
			st.cancel(err)
		}
		return err
	}
	c.mu.Lock()
	st.window = c.initial
	c.streams[id] = st
	c.running++
	c.mu.Unlock()
	c.s.run(job{st, r})
	return nil
}

// request makes the request of its headers (RFC 9113, section 8.3).
func (st *stream) request(f *http2.MetaHeadersFrame) (*http.Request, error) {
	bad := http2.StreamError{StreamID: st.id, Code: http2.ErrCodeProtocol}
	if f.HasPriority() && f.Priority.StreamDep == st.id {
		return nil, bad
	}
	if f.Truncated {
		return nil, http2.StreamError{StreamID: st.id, Code: http2.ErrCodeEnhanceYourCalm}
	}
	method, path, scheme, authority := f.PseudoValue("method"), f.PseudoValue("path"), f.PseudoValue("scheme"), f.PseudoValue("authority")
	connect := method == http.MethodConnect
	if method == "" || f.PseudoValue("protocol") != "" || connect && (path != "" || scheme != "" || authority == "") ||
		!connect && (path == "" || scheme != "https" && scheme != "http") {
		return nil, bad
	}
	fields := f.RegularFields()
	header := make(http.Header, len(fields))
	values := make([]string, len(fields)) // one allocation for all
	for _, h := range fields {
		switch h.Name {
		case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
			return nil, bad
		case "te":
			if h.Value != "trailers" {
				return nil, bad
			}
		}
		key := canonical(h.Name)
		if have := header[key]; have != nil {
			if key == "Cookie" { // RFC 9113, section 8.2.3
				have[0] += "; " + h.Value
			} else {
				header[key] = append(have, h.Value)
			}
			continue
		}
		values[0] = h.Value
		header[key], values = values[:1:1], values[1:]
	}
	if host := header["Host"]; authority == "" && len(host) > 0 {
		authority = host[0]
	}
	delete(header, "Host")
	ctx, cancel := context.WithCancelCause(st.c.base)
	st.cancel = cancel
	r := new(http.Request).WithContext(ctx)
	r.Method, r.Proto, r.ProtoMajor, r.Header, r.Host = method, "HTTP/2.0", 2, header, authority
	r.RemoteAddr, r.TLS, r.RequestURI, r.Body = st.c.remote, &st.c.state, path, http.NoBody
	if connect {
		r.URL, r.RequestURI = &url.URL{Host: authority}, authority
	} else {
		u, err := url.ParseRequestURI(path)
		if err != nil {
			return nil, bad
		}
		r.URL = u
	}
	if !st.remote {
		r.ContentLength = -1
		r.Body = body{st}
	}
	if v := header["Content-Length"]; len(v) > 0 {
		n, err := strconv.ParseUint(v[0], 10, 63)
		if err != nil || len(v) > 1 || st.remote && n > 0 {
			return nil, bad
		}
		r.ContentLength, st.declared = int64(n), int64(n)
	}
	if strings.EqualFold(header.Get("Expect"), "100-continue") {
		st.asked = true
	}
	return r, nil
}

// canonical is net/http's form of a name in lower case.
func canonical(name string) string {
	if c, ok := canonicalNames[name]; ok {
		return c
	}
	return textproto.CanonicalMIMEHeaderKey(name)
}

var canonicalNames, lowerNames = func() (up, low map[string]string) {
	up, low = map[string]string{}, map[string]string{}
	for _, n := range []string{"Accept", "Accept-Encoding", "Audit-Id", "Authorization", "Cache-Control", "Content-Encoding", "Content-Length", "Content-Type", "Cookie",
		"Date", "Etag", "Expect", "Host", "If-None-Match", "Last-Modified", "Location", "Retry-After", "Te", "User-Agent", "Vary", "Warning", "X-Content-Type-Options",
		"X-Kubernetes-Pf-Flowschema-Uid", "X-Kubernetes-Pf-Prioritylevel-Uid", "X-Remote-Group", "X-Remote-User", "Kubectl-Command", "Kubectl-Session"} {
		l := strings.ToLower(n)
		up[l], low[n] = n, l
	}
	return up, low
}()

// handle runs the handler.
func (st *stream) handle(r *http.Request) {
	w := &writer{st: st, header: make(http.Header, 8), declared: -1, head: r.Method == http.MethodHead}
	defer func() {
		if p := recover(); p != nil {
			if p != http.ErrAbortHandler {
				st.c.s.Logger.Error("the handler of a request panicked", "method", r.Method, "path", r.URL.Path, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			}
			st.abort(http2.ErrCodeInternal, errors.New("h2: the handler panicked"))
		}
		st.leave()
	}()
	st.c.handler.ServeHTTP(w, r)
	w.finish()
}

// abort ends the stream on the client's side too.
func (st *stream) abort(code http2.ErrCode, err error) {
	st.c.mu.Lock()
	defer st.c.mu.Unlock()
	if st.err == nil && !st.local {
		_ = st.c.control.WriteRSTStream(st.id, code)
	}
	st.end(err)
	st.c.flush()
}

var errDone = errors.New("h2: the handler has returned")

// leave is the end of the handler.
func (st *stream) leave() {
	c := st.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range []*time.Timer{st.reads, st.writes} {
		if t != nil {
			t.Stop()
		}
	}
	c.running--
	if !st.remote && st.err == nil { // RFC 9113, section 8.1: the rest of the body is of no interest
		_ = c.control.WriteRSTStream(st.id, http2.ErrCodeNo)
	}
	_ = c.giveBack(int64(len(st.body)))
	st.body = nil
	st.readErr = errDone
	st.end(errDone)
	if c.leaving && len(c.streams) == 0 && len(c.out) == 0 && !c.flushing {
		c.fail(errShutdown)
		return
	}
	c.flush()
}

// body is what the client sends.
type body struct{ st *stream }

func (b body) Read(p []byte) (int, error) {
	st, c := b.st, b.st.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if st.asked && !st.remote && st.got == 0 {
		st.asked = false
		c.writeHeaders(st.id, false, 100, nil)
		c.flush()
	}
	for len(st.body) == 0 {
		switch {
		case st.readErr != nil:
			return 0, st.readErr
		case st.remote:
			return 0, io.EOF
		case st.err != nil:
			return 0, st.err
		case len(p) == 0:
			return 0, nil
		}
		st.cond.Wait()
	}
	n := copy(p, st.body)
	if st.body = st.body[n:]; len(st.body) == 0 {
		st.body = nil
	}
	_ = c.giveBack(int64(n))
	if st.unacked += int64(n); st.unacked >= streamWindow/4 && !st.remote && st.err == nil {
		_ = c.control.WriteWindowUpdate(st.id, uint32(st.unacked))
		st.receive += st.unacked
		st.unacked = 0
		c.flush()
	}
	return n, nil
}

// Close lets go of what is not read.
func (b body) Close() error {
	c := b.st.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if b.st.readErr == nil {
		b.st.readErr = http.ErrBodyReadAfterClose
	}
	_ = c.giveBack(int64(len(b.st.body)))
	b.st.body = nil
	return nil
}

// deadline lets do happen at t; the zero time: never.
func (st *stream) deadline(timer **time.Timer, t time.Time, do func()) {
	c := st.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if *timer != nil {
		(*timer).Stop()
		*timer = nil
	}
	if t.IsZero() || st.err != nil {
		return
	}
	var own *time.Timer
	own = time.AfterFunc(time.Until(t), func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if *timer == own { // not stopped in between
			do()
			st.cond.Broadcast()
		}
	})
	*timer = own
}

// SetReadDeadline is for http.ResponseController.
func (w *writer) SetReadDeadline(t time.Time) error {
	st := w.st
	st.deadline(&st.reads, t, func() { st.readErr = os.ErrDeadlineExceeded })
	return nil
}

// SetWriteDeadline is for http.ResponseController: the stream ends then.
func (w *writer) SetWriteDeadline(t time.Time) error {
	st := w.st
	st.deadline(&st.writes, t, func() {
		if st.err == nil {
			_ = st.c.control.WriteRSTStream(st.id, http2.ErrCodeInternal)
			st.end(os.ErrDeadlineExceeded)
			_ = st.c.kick()
		}
	})
	return nil
}

// EnableFullDuplex is for http.ResponseController: it always is.
func (w *writer) EnableFullDuplex() error { return nil }
