package h2

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

const (
	streamWindow = 1 << 20  // what a client may send of a body before it is read
	connWindow   = 16 << 20 // of all bodies of a connection
	flushAt      = 64 << 10 // bytes in the buffer that are worth a call of the kernel
	maxPending   = 256 << 10
	maxControl   = 1 << 20  // beyond it the client does not read what it asks for
	smallBuffer  = 16 << 10 // kept by a connection that is in use
	frameHeader  = 9
)

// conn is one connection. Its reading is done by one goroutine, its writing by
// whoever has something to say.
type conn struct {
	s       *Server
	tc      *tls.Conn
	below   *batch
	state   tls.ConnectionState
	remote  string
	base    context.Context
	cancel  context.CancelCauseFunc
	handler http.Handler
	reader  *bufio.Reader
	in      *http2.Framer

	mu       sync.Mutex
	blocked  []*stream // wait for the buffer to be written, or for a window
	control  *http2.Framer
	out      []byte
	spare    []byte
	flushing bool
	until    time.Time // deadline of writes
	headers  *hpack.Encoder
	block    bytes.Buffer
	streams  map[uint32]*stream
	running  uint32
	last     uint32 // newest stream of the client
	window   int64  // what may be sent
	initial  int64  // window of a new stream
	frame    int    // largest frame that the client takes
	receive  int64  // what the client may send
	unacked  int64  // what has been read and not given back
	leaving  bool
	err      error // why the connection ended

	heard  time.Time // newest frame
	used   time.Time // newest request
	pinged bool
	health *time.Timer
}

func newConn(s *Server, tc *tls.Conn, base context.Context, h http.Handler) *conn {
	c := &conn{s: s, tc: tc, state: tc.ConnectionState(), remote: tc.RemoteAddr().String(), handler: h,
		streams: map[uint32]*stream{}, window: 65535, initial: 65535, frame: 16384, receive: connWindow, heard: time.Now(), used: time.Now()}
	c.below, _ = tc.NetConn().(*batch)
	c.base, c.cancel = context.WithCancelCause(base)
	c.control = http2.NewFramer(appender{c}, nil)
	c.headers = hpack.NewEncoder(&c.block)
	c.reader = bufio.NewReaderSize(tc, 4096)
	c.in = http2.NewFramer(nil, c.reader)
	c.in.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	c.in.MaxHeaderListSize = s.MaxHeaderBytes
	c.in.SetMaxReadFrameSize(1 << 14)
	c.in.SetReuseFrames()
	return c
}

// appender is the buffer as a writer; mu is held.
type appender struct{ c *conn }

func (a appender) Write(p []byte) (int, error) {
	a.c.out = append(a.c.out, p...)
	return len(p), nil
}

// serve reads until the connection ends.
func (c *conn) serve() {
	c.mu.Lock()
	_ = c.control.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: c.s.MaxStreams},
		http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: c.s.MaxHeaderBytes},
		http2.Setting{ID: http2.SettingInitialWindowSize, Val: streamWindow})
	_ = c.control.WriteWindowUpdate(0, connWindow-65535)
	c.health = time.AfterFunc(c.s.PingAfter, c.check)
	c.flush()
	c.mu.Unlock()
	err := c.read()
	var code http2.ConnectionError
	if errors.As(err, &code) {
		c.explain(err, http2.ErrCode(code))
	}
	c.mu.Lock()
	c.fail(err)
	c.mu.Unlock()
	_ = c.tc.Close()
}

// explain ends everything and tells the client why. What it still sends is read for
// a moment: to close with bytes unread would take the words away from it.
func (c *conn) explain(err error, code http2.ErrCode) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.out = c.out[:0]
	_ = c.control.WriteGoAway(c.last, code, nil)
	words := slices.Clone(c.out)
	c.end(err)
	c.mu.Unlock()
	_ = c.tc.SetDeadline(time.Now().Add(time.Second))
	if _, err := c.tc.Write(words); err == nil && c.tc.CloseWrite() == nil {
		_, _ = io.CopyN(io.Discard, c.tc, maxControl)
	}
}

func (c *conn) read() error {
	preface := make([]byte, len(http2.ClientPreface))
	_ = c.tc.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.ReadFull(c.reader, preface); err != nil {
		return err
	}
	_ = c.tc.SetReadDeadline(time.Time{})
	if string(preface) != http2.ClientPreface {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	settled := false
	for {
		f, err := c.in.ReadFrame()
		var broken http2.StreamError
		if errors.As(err, &broken) {
			if err := c.refuse(broken); err != nil {
				return err
			}
			continue
		}
		if errors.Is(err, http2.ErrFrameTooLarge) {
			return http2.ConnectionError(http2.ErrCodeFrameSize)
		}
		if err != nil {
			return err
		}
		if _, ok := f.(*http2.SettingsFrame); !settled && !ok {
			return http2.ConnectionError(http2.ErrCodeProtocol)
		}
		settled = true
		if err := c.take(f); errors.As(err, &broken) {
			if err := c.refuse(broken); err != nil {
				return err
			}
		} else if err != nil {
			return err
		}
	}
}

// refuse ends a stream that broke the rules.
func (c *conn) refuse(e http2.StreamError) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.heard = time.Now()
	if e.StreamID > c.last && e.StreamID%2 == 1 { // its headers were at fault
		c.last = e.StreamID
	}
	if st := c.streams[e.StreamID]; st != nil {
		st.end(fmt.Errorf("h2: stream error: %v", e.Code))
	}
	_ = c.control.WriteRSTStream(e.StreamID, e.Code)
	return c.kick()
}

// take does what a frame says.
func (c *conn) take(f http2.Frame) error {
	if f, ok := f.(*http2.MetaHeadersFrame); ok {
		return c.begin(f)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.heard, c.pinged = time.Now(), false
	switch f := f.(type) {
	case *http2.DataFrame:
		return c.data(f)
	case *http2.SettingsFrame:
		return c.settings(f)
	case *http2.WindowUpdateFrame:
		return c.grow(f)
	case *http2.RSTStreamFrame:
		if f.StreamID > c.last {
			return http2.ConnectionError(http2.ErrCodeProtocol)
		}
		if st := c.streams[f.StreamID]; st != nil {
			st.end(fmt.Errorf("h2: the client ended the stream: %v", f.ErrCode))
		}
	case *http2.PingFrame:
		if !f.IsAck() {
			_ = c.control.WritePing(true, f.Data)
			return c.kick()
		}
	case *http2.PriorityFrame:
		if f.StreamDep == f.StreamID {
			return http2.StreamError{StreamID: f.StreamID, Code: http2.ErrCodeProtocol}
		}
	case *http2.PushPromiseFrame:
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	return nil // GOAWAY of a client and what is unknown ask for nothing
}

func (c *conn) settings(f *http2.SettingsFrame) error {
	if f.IsAck() {
		return nil
	}
	if f.NumSettings() > 100 {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	err := f.ForeachSetting(func(s http2.Setting) error {
		if err := s.Valid(); err != nil {
			return err
		}
		switch s.ID {
		case http2.SettingHeaderTableSize:
			c.headers.SetMaxDynamicTableSizeLimit(min(s.Val, 4096))
		case http2.SettingInitialWindowSize:
			grown := int64(s.Val) - c.initial
			c.initial = int64(s.Val)
			for _, st := range c.streams {
				if st.window += grown; st.window > math.MaxInt32 {
					return http2.ConnectionError(http2.ErrCodeFlowControl)
				}
			}
			c.wake()
		case http2.SettingMaxFrameSize:
			c.frame = int(s.Val)
		}
		return nil
	})
	if err != nil {
		return err
	}
	_ = c.control.WriteSettingsAck()
	return c.kick()
}

func (c *conn) grow(f *http2.WindowUpdateFrame) error {
	if f.StreamID == 0 {
		if c.window += int64(f.Increment); c.window > math.MaxInt32 {
			return http2.ConnectionError(http2.ErrCodeFlowControl)
		}
		c.wake()
		return nil
	}
	if f.StreamID > c.last {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	st := c.streams[f.StreamID]
	if st == nil {
		return nil
	}
	if st.window += int64(f.Increment); st.window > math.MaxInt32 {
		return http2.StreamError{StreamID: f.StreamID, Code: http2.ErrCodeFlowControl}
	}
	st.cond.Broadcast()
	return nil
}

func (c *conn) data(f *http2.DataFrame) error {
	size := int64(f.Length)
	if f.StreamID > c.last {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	if c.receive -= size; c.receive < 0 {
		return http2.ConnectionError(http2.ErrCodeFlowControl)
	}
	st := c.streams[f.StreamID]
	if st == nil || st.remote { // of a stream that has ended: only the window is of interest
		if err := c.giveBack(size); err != nil {
			return err
		}
		return http2.StreamError{StreamID: f.StreamID, Code: http2.ErrCodeStreamClosed}
	}
	if st.receive -= size; st.receive < 0 {
		return http2.StreamError{StreamID: f.StreamID, Code: http2.ErrCodeFlowControl}
	}
	content := f.Data()
	st.got += int64(len(content))
	if st.declared >= 0 && (st.got > st.declared || f.StreamEnded() && st.got < st.declared) {
		if err := c.giveBack(size); err != nil {
			return err
		}
		return http2.StreamError{StreamID: f.StreamID, Code: http2.ErrCodeProtocol}
	}
	st.body = append(st.body, content...)
	if padding := size - int64(len(content)); padding > 0 {
		st.receive += padding
		_ = c.control.WriteWindowUpdate(f.StreamID, uint32(padding))
		if err := c.giveBack(padding); err != nil {
			return err
		}
	}
	if f.StreamEnded() {
		st.remote = true
		st.finish()
	}
	st.cond.Broadcast()
	return nil
}

// giveBack lets the client send so many bytes more on the connection.
func (c *conn) giveBack(n int64) error {
	if c.unacked += n; c.unacked < connWindow/4 {
		return nil
	}
	_ = c.control.WriteWindowUpdate(0, uint32(c.unacked))
	c.receive += c.unacked
	c.unacked = 0
	return c.kick()
}

// kick has the buffer written without waiting for it: the reader must go on
// reading. A client that does not read what it asks for is left.
func (c *conn) kick() error {
	if len(c.out) > maxControl {
		return http2.ConnectionError(http2.ErrCodeEnhanceYourCalm)
	}
	if len(c.out) > 0 && !c.flushing && c.err == nil {
		c.flushing = true
		go func() {
			c.mu.Lock()
			c.drain()
			c.mu.Unlock()
		}()
	}
	return nil
}

// flush has the buffer written, by this goroutine unless another does so already.
func (c *conn) flush() {
	if !c.flushing && len(c.out) > 0 {
		c.flushing = true
		c.drain()
	}
}

// drain writes until nothing is left. What others add meanwhile goes along, but
// not for ever.
func (c *conn) drain() {
	for turn := 0; len(c.out) > 0 && c.err == nil; turn++ {
		if turn == 16 {
			go func() {
				c.mu.Lock()
				c.drain()
				c.mu.Unlock()
			}()
			return
		}
		b := c.out
		c.out, c.spare = c.spare[:0], nil
		now := time.Now()
		if c.until.Sub(now) < c.s.WriteTimeout/2 {
			c.until = now.Add(c.s.WriteTimeout)
			_ = c.tc.SetWriteDeadline(c.until)
		}
		c.mu.Unlock()
		err := c.write(b)
		c.mu.Lock()
		switch {
		case cap(b) == largeBuffer:
			b = b[:0]
			largeBuffers.Put(&b)
		case cap(b) <= smallBuffer:
			c.spare = b[:0]
		}
		if err != nil {
			c.fail(err)
		}
		c.wake()
	}
	c.flushing = false
	if len(c.out) == 0 && len(c.streams) == 0 { // an idle connection needs no buffers
		c.out, c.spare = nil, nil
		if c.leaving {
			c.fail(errShutdown)
		}
	}
}

func (c *conn) write(b []byte) error {
	if c.below == nil || len(b) <= 16384 {
		_, err := c.tc.Write(b)
		return err
	}
	return c.below.together(func() error {
		_, err := c.tc.Write(b)
		return err
	})
}

// wake lets those go on that wait for the connection.
func (c *conn) wake() {
	for i, st := range c.blocked {
		st.cond.Broadcast()
		c.blocked[i] = nil
	}
	c.blocked = c.blocked[:0]
}

// fail ends the connection and all that it serves.
func (c *conn) fail(err error) {
	c.end(err)
	_ = c.tc.NetConn().Close() // the reader ends
}

// end ends all that the connection serves.
func (c *conn) end(err error) {
	if c.err != nil {
		return
	}
	c.err = err
	c.health.Stop()
	c.cancel(err)
	for _, st := range c.streams {
		st.end(err)
	}
	c.wake()
}

// leave lets the requests under way end, and no more begin.
func (c *conn) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.leaving || c.err != nil {
		return
	}
	c.leaving = true
	_ = c.control.WriteGoAway(c.last, http2.ErrCodeNo, nil)
	_ = c.kick()
}

// check looks after a client that says nothing.
func (c *conn) check() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	now := time.Now()
	silent, unused := now.Sub(c.heard), now.Sub(c.used)
	next := c.s.PingAfter - silent
	switch {
	case len(c.streams) == 0 && unused >= c.s.IdleTimeout:
		c.leaving = true // ends when this is written
		_ = c.control.WriteGoAway(c.last, http2.ErrCodeNo, nil)
		_ = c.kick()
		return
	case c.pinged && silent >= c.s.PingAfter+c.s.PingTimeout:
		c.fail(errors.New("h2: the client does not answer"))
		return
	case c.pinged:
		next = c.s.PingAfter + c.s.PingTimeout - silent
	case next <= 0:
		c.pinged = true
		_ = c.control.WritePing(false, [8]byte{'p', 'r', 'o', 'a'})
		_ = c.kick()
		next = c.s.PingTimeout
	}
	if len(c.streams) == 0 {
		next = min(next, c.s.IdleTimeout-unused)
	}
	c.health.Reset(max(next, time.Millisecond))
}
