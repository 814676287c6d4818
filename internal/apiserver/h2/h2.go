// Package h2 serves HTTP/2 (RFC 9113) to net/http handlers. It takes the place of
// net/http's own server for it, which hands every frame from goroutine to goroutine
// and to the kernel by itself: here a handler writes its frames into the
// connection's buffer, and whoever comes first takes all that is there to the
// kernel in one call.
//
// It does not push, does not upgrade connections and does not prioritize.
package h2

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// Server serves the connections that a net/http server gives it. Its settings are
// not to be changed once it serves.
type Server struct {
	MaxStreams     uint32        // requests at a time of one connection (0: 1000)
	MaxHeaderBytes uint32        // of a request (0: 1 MiB)
	IdleTimeout    time.Duration // without a request (0: 90 s)
	PingAfter      time.Duration // without a frame of the client (0: 45 s)
	PingTimeout    time.Duration // for the answer (0: 15 s)
	WriteTimeout   time.Duration // for what is in the buffer of a connection (0: 60 s)
	Logger         *slog.Logger

	mu       sync.Mutex
	conns    map[*conn]struct{}
	stopping bool
	idle     chan job // to goroutines that have served before, and have the stack for it
}

// idleWorkers bounds how many goroutines wait for a next request.
const idleWorkers = 32

// Attach makes srv serve HTTP/2 by s over TLS: its listener must be wrapped by
// Listener. Connections are closed gracefully by srv.Shutdown.
func (s *Server) Attach(srv *http.Server) {
	if s.MaxStreams == 0 {
		s.MaxStreams = 1000
	}
	if s.MaxHeaderBytes == 0 {
		s.MaxHeaderBytes = 1 << 20
	}
	for d, value := range map[*time.Duration]time.Duration{&s.IdleTimeout: 90 * time.Second, &s.PingAfter: 45 * time.Second,
		&s.PingTimeout: 15 * time.Second, &s.WriteTimeout: time.Minute} {
		if *d == 0 {
			*d = value
		}
	}
	if s.Logger == nil {
		s.Logger = slog.New(slog.DiscardHandler)
	}
	s.conns, s.idle = map[*conn]struct{}{}, make(chan job)
	srv.TLSConfig.NextProtos = []string{"h2", "http/1.1"}
	srv.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){"h2": s.serve}
	srv.RegisterOnShutdown(s.shutdown)
}

// errShutdown ends what still runs when the server's connections are closed.
var errShutdown = errors.New("h2: the server is shutting down")

// serve serves one connection until it ends.
func (s *Server) serve(srv *http.Server, tc *tls.Conn, h http.Handler) {
	base := context.Background()
	if b, ok := h.(interface{ BaseContext() context.Context }); ok {
		base = b.BaseContext()
	}
	base = context.WithValue(context.WithValue(base, http.ServerContextKey, srv), http.LocalAddrContextKey, tc.LocalAddr())
	c := newConn(s, tc, base, h)
	s.mu.Lock()
	stopping := s.stopping
	s.conns[c] = struct{}{}
	s.mu.Unlock()
	if stopping {
		c.leave()
	}
	c.serve()
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
}

// shutdown tells all clients to send no more requests here.
func (s *Server) shutdown() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopping = true
	for c := range s.conns {
		c.leave()
	}
}

type job struct {
	st *stream
	r  *http.Request
}

// run serves a request on a goroutine of its own.
func (s *Server) run(j job) {
	select {
	case s.idle <- j:
	default:
		go s.worker(j)
	}
}

func (s *Server) worker(j job) {
	wait := time.NewTimer(time.Hour)
	defer wait.Stop()
	for {
		j.st.handle(j.r)
		j = job{}
		wait.Reset(10 * time.Second)
		select {
		case j = <-s.idle:
		case <-wait.C:
			return
		}
	}
}

// Listener lets the records of one write go to the kernel together.
func Listener(l net.Listener) net.Listener { return listener{l} }

type listener struct{ net.Listener }

func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &batch{Conn: c}, nil
}

// batch is a connection below TLS.
type batch struct {
	net.Conn
	mu   sync.Mutex
	held bool
	buf  []byte
}

func (b *batch) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.held {
		return b.Conn.Write(p)
	}
	b.buf = append(b.buf, p...)
	return len(p), nil
}

// together does write and sends what it wrote in one call.
func (b *batch) together(write func() error) error {
	large := largeBuffers.Get().(*[]byte)
	b.mu.Lock()
	b.held, b.buf = true, (*large)[:0]
	b.mu.Unlock()
	err := write()
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.buf) > 0 {
		_, failed := b.Conn.Write(b.buf)
		err = errors.Join(err, failed)
	}
	b.held, b.buf = false, nil
	largeBuffers.Put(large)
	return err
}

// largeBuffers are for answers of many frames, as long as these are written.
var largeBuffers = sync.Pool{New: func() any { b := make([]byte, 0, largeBuffer); return &b }}

// largeBuffer has room for what is pending, a frame more, and the records of TLS around it.
const largeBuffer = maxPending + 64<<10
