// Package stream serves exec, attach and port-forward of the CRI: each is asked for
// over gRPC, answered with a URL that is good for one request, and then streamed.
//
// Clients speak the WebSocket protocol v5.channel.k8s.io (KEP-4006), which is
// handled here, or the older ones over SPDY and WebSocket, which cri-streaming
// handles. Ports are forwarded over SPDY, directly or through a WebSocket.
package stream

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// Runtime does what is streamed. Closing of in is the client's, that of out and
// errOut the callee's choice; they may be nil.
type Runtime interface {
	Exec(ctx context.Context, container string, command []string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error
	Attach(ctx context.Context, container string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error
	PortForward(ctx context.Context, sandbox string, port int32, stream io.ReadWriteCloser) error
}

// Bounds on what is asked for and not fetched, and on silence.
const (
	maxPending  = 1000
	pendingTime = time.Minute
	idleTimeout = 4 * time.Hour
)

// Server hands out URLs and serves them.
type Server struct {
	base    url.URL
	runtime Runtime
	http    *http.Server
	wg      sync.WaitGroup

	mu      sync.Mutex
	pending map[string]pending
	conns   map[net.Conn]struct{}
}

type pending struct {
	request any
	until   time.Time
}

// Start serves runtime on a listener. Its streams end with ctx.
func Start(ctx context.Context, l net.Listener, runtime Runtime) *Server {
	s := &Server{base: url.URL{Scheme: "http", Host: l.Addr().String()}, runtime: runtime, pending: map[string]pending{}, conns: map[net.Conn]struct{}{}}
	s.http = &http.Server{Handler: s, ReadHeaderTimeout: 30 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
	s.wg.Go(func() { _ = s.http.Serve(tracked{l, s}) }) // ends with Close
	return s
}

// Close ends all streams, of hijacked connections too, and waits for them.
func (s *Server) Close() {
	s.http.Close()
	s.mu.Lock()
	for c := range s.conns {
		c.(*trackedConn).Conn.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// tracked knows the connections that are open: http.Server forgets hijacked ones.
type tracked struct {
	net.Listener
	s *Server
}

type trackedConn struct {
	net.Conn
	s *Server
}

func (l tracked) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &trackedConn{conn, l.s}
	l.s.mu.Lock()
	l.s.conns[c] = struct{}{}
	l.s.mu.Unlock()
	return c, nil
}

func (c *trackedConn) Close() error {
	c.s.mu.Lock()
	delete(c.s.conns, c)
	c.s.mu.Unlock()
	return c.Conn.Close()
}

// offer keeps a request and returns its URL.
func (s *Server) offer(kind string, request any) (string, error) {
	b := make([]byte, 16)
	rand.Read(b) // never fails
	token := base64.RawURLEncoding.EncodeToString(b)
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for t, p := range s.pending {
		if now.After(p.until) {
			delete(s.pending, t)
		}
	}
	if len(s.pending) >= maxPending {
		return "", status.Error(codes.ResourceExhausted, "too many streams were asked for and not fetched")
	}
	s.pending[token] = pending{request, now.Add(pendingTime)}
	u := s.base
	u.Path = "/" + kind + "/" + token
	return u.String(), nil
}

// take returns what a URL was given for, once.
func (s *Server) take(token string) any {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok := s.pending[token]
	delete(s.pending, token)
	if !ok || time.Now().After(p.until) {
		return nil
	}
	return p.request
}

func check(container string, tty, in, out, errOut bool) error {
	switch {
	case container == "":
		return status.Error(codes.InvalidArgument, "missing required container_id")
	case tty && errOut:
		return status.Error(codes.InvalidArgument, "tty and stderr cannot both be true")
	case !in && !out && !errOut:
		return status.Error(codes.InvalidArgument, "one of stdin, stdout, or stderr must be set")
	}
	return nil
}

// GetExec returns the URL of an exec.
func (s *Server) GetExec(req *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	if err := check(req.ContainerId, req.Tty, req.Stdin, req.Stdout, req.Stderr); err != nil {
		return nil, err
	}
	u, err := s.offer("exec", req)
	return &runtimeapi.ExecResponse{Url: u}, err
}

// GetAttach returns the URL of an attach.
func (s *Server) GetAttach(req *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	if err := check(req.ContainerId, req.Tty, req.Stdin, req.Stdout, req.Stderr); err != nil {
		return nil, err
	}
	u, err := s.offer("attach", req)
	return &runtimeapi.AttachResponse{Url: u}, err
}

// GetPortForward returns the URL of a port-forward.
func (s *Server) GetPortForward(req *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	if req.PodSandboxId == "" {
		return nil, status.Error(codes.InvalidArgument, "missing required pod_sandbox_id")
	}
	u, err := s.offer("portforward", req)
	return &runtimeapi.PortForwardResponse{Url: u}, err
}

// ServeHTTP serves the URLs that were given out.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.wg.Add(1)
	defer s.wg.Done()
	kind, token, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	if r.Method != http.MethodGet && r.Method != http.MethodPost {
		http.Error(w, "GET or POST is wanted", http.StatusMethodNotAllowed)
		return
	}
	switch req := s.take(token).(type) {
	case *runtimeapi.ExecRequest:
		if kind == "exec" {
			s.exec(w, r, req)
			return
		}
	case *runtimeapi.AttachRequest:
		if kind == "attach" {
			s.attach(w, r, req)
			return
		}
	case *runtimeapi.PortForwardRequest:
		if kind == "portforward" {
			s.portForward(w, r, req)
			return
		}
	}
	http.NotFound(w, r)
}

// asks reports whether a request wants a WebSocket with a protocol.
func asks(r *http.Request, protocol string) bool {
	if !websocket.IsWebSocketUpgrade(r) {
		return false
	}
	for _, p := range websocket.Subprotocols(r) {
		if p == protocol {
			return true
		}
	}
	return false
}

func (s *Server) exec(w http.ResponseWriter, r *http.Request, req *runtimeapi.ExecRequest) {
	opts := &remotecommand.Options{Stdin: req.Stdin, Stdout: req.Stdout, Stderr: req.Stderr, TTY: req.Tty}
	if asks(r, remotecommand.StreamProtocolV5Name) {
		serve(w, r, opts, func(ctx context.Context, c *channels) error {
			return s.runtime.Exec(ctx, req.ContainerId, req.Cmd, c.in(), c.out(), c.errOut(), req.Tty, c.sizes)
		})
		return
	}
	remotecommand.ServeExec(w, r, adapter{s.runtime}, "", "", req.ContainerId, req.Cmd, opts, idleTimeout,
		remotecommand.DefaultStreamCreationTimeout, remotecommand.SupportedStreamingProtocols)
}

func (s *Server) attach(w http.ResponseWriter, r *http.Request, req *runtimeapi.AttachRequest) {
	opts := &remotecommand.Options{Stdin: req.Stdin, Stdout: req.Stdout, Stderr: req.Stderr, TTY: req.Tty}
	if asks(r, remotecommand.StreamProtocolV5Name) {
		serve(w, r, opts, func(ctx context.Context, c *channels) error {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			stop := context.AfterFunc(c.gone, cancel) // the container goes on, looking at it ends
			defer stop()
			return s.runtime.Attach(ctx, req.ContainerId, c.in(), c.out(), c.errOut(), req.Tty, c.sizes)
		})
		return
	}
	remotecommand.ServeAttach(w, r, adapter{s.runtime}, "", "", req.ContainerId, opts, idleTimeout,
		remotecommand.DefaultStreamCreationTimeout, remotecommand.SupportedStreamingProtocols)
}

func (s *Server) portForward(w http.ResponseWriter, r *http.Request, req *runtimeapi.PortForwardRequest) {
	opts, err := portforward.BuildV4Options(req.Port)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if asks(r, tunnelProtocol) {
		var done func()
		if w, r, done, err = tunnel(w, r); err != nil {
			return // the client was told
		}
		defer done()
	}
	portforward.ServePortForward(w, r, adapter{s.runtime}, req.PodSandboxId, "", opts, idleTimeout,
		remotecommand.DefaultStreamCreationTimeout, portforward.SupportedProtocols)
}

// adapter gives cri-streaming the runtime in its own form.
type adapter struct{ Runtime }

func (a adapter) ExecInContainer(ctx context.Context, _, _, container string, command []string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	return a.Exec(ctx, container, command, in, out, errOut, tty, resize)
}

func (a adapter) AttachContainer(ctx context.Context, _, _, container string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	return a.Attach(ctx, container, in, out, errOut, tty, resize)
}

func (a adapter) PortForward(ctx context.Context, sandbox, _ string, port int32, stream io.ReadWriteCloser) error {
	return a.Runtime.PortForward(ctx, sandbox, port, stream)
}
