package server

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/proa-dev/proa/internal/kubelet/cri"
)

// runningID returns the id of the running instance of the requested container.
func (s *Server) runningID(w http.ResponseWriter, r *http.Request) (string, bool) {
	p := s.find(r)
	if p == nil {
		http.Error(w, fmt.Sprintf("pod does not exist: %s/%s", r.PathValue("namespace"), r.PathValue("pod")), http.StatusNotFound)
		return "", false
	}
	for _, c := range p.Containers[r.PathValue("container")] {
		if c.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			return c.ID, true
		}
	}
	http.Error(w, fmt.Sprintf("container not found (%q)", r.PathValue("container")), http.StatusInternalServerError)
	return "", false
}

// streams reads which streams are wanted: "stdin" or, as the API server says to
// nodes, "input".
func streams(q url.Values) (stdin, stdout, stderr, tty bool) {
	on := func(names ...string) bool {
		for _, n := range names {
			if isTrue(q.Get(n)) {
				return true
			}
		}
		return false
	}
	stdin, stdout, stderr, tty = on("input", "stdin"), on("output", "stdout"), on("error", "stderr"), on("tty")
	if tty {
		stderr = false
	}
	return stdin, stdout, stderr, tty
}

const noStreams = "you must specify at least 1 of stdin, stdout, stderr"

func (s *Server) exec(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	stdin, stdout, stderr, tty := streams(q)
	if !stdin && !stdout && !stderr {
		http.Error(w, noStreams, http.StatusBadRequest)
		return
	}
	id, ok := s.runningID(w, r)
	if !ok {
		return
	}
	resp, err := s.cfg.Runtime.Exec(r.Context(), &runtimeapi.ExecRequest{ContainerId: id, Cmd: q["command"], Tty: tty, Stdin: stdin, Stdout: stdout, Stderr: stderr})
	if err != nil {
		http.Error(w, cri.ErrorText(err), http.StatusInternalServerError)
		return
	}
	s.proxy(w, r, resp.Url)
}

func (s *Server) attach(w http.ResponseWriter, r *http.Request) {
	stdin, stdout, stderr, tty := streams(r.URL.Query())
	if !stdin && !stdout && !stderr {
		http.Error(w, noStreams, http.StatusBadRequest)
		return
	}
	id, ok := s.runningID(w, r)
	if !ok {
		return
	}
	resp, err := s.cfg.Runtime.Attach(r.Context(), &runtimeapi.AttachRequest{ContainerId: id, Tty: tty, Stdin: stdin, Stdout: stdout, Stderr: stderr})
	if err != nil {
		http.Error(w, cri.ErrorText(err), http.StatusInternalServerError)
		return
	}
	s.proxy(w, r, resp.Url)
}

func (s *Server) portForward(w http.ResponseWriter, r *http.Request) {
	p := s.find(r)
	if p == nil || p.SandboxID == "" {
		http.Error(w, fmt.Sprintf("pod does not exist: %s/%s", r.PathValue("namespace"), r.PathValue("pod")), http.StatusNotFound)
		return
	}
	var ports []int32
	for _, v := range append(r.URL.Query()["port"], r.URL.Query()["ports"]...) {
		for part := range strings.SplitSeq(v, ",") {
			n, err := strconv.ParseInt(part, 10, 32)
			if err != nil || n < 1 || n > 65535 {
				http.Error(w, fmt.Sprintf("invalid port %q", part), http.StatusBadRequest)
				return
			}
			ports = append(ports, int32(n))
		}
	}
	resp, err := s.cfg.Runtime.PortForward(r.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: p.SandboxID, Port: ports})
	if err != nil {
		http.Error(w, cri.ErrorText(err), http.StatusInternalServerError)
		return
	}
	s.proxy(w, r, resp.Url)
}

// run executes a command and answers with its output.
func (s *Server) run(w http.ResponseWriter, r *http.Request) {
	id, ok := s.runningID(w, r)
	if !ok {
		return
	}
	cmd := strings.Fields(r.URL.Query().Get("cmd"))
	if len(cmd) == 0 {
		http.Error(w, "no command given", http.StatusBadRequest)
		return
	}
	resp, err := s.cfg.Runtime.ExecSync(r.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: cmd})
	if err != nil {
		http.Error(w, cri.ErrorText(err), http.StatusInternalServerError)
		return
	}
	if resp.ExitCode != 0 {
		http.Error(w, fmt.Sprintf("command terminated with exit code %d\n%s%s", resp.ExitCode, resp.Stdout, resp.Stderr), http.StatusInternalServerError)
		return
	}
	_, _ = w.Write(append(resp.Stdout, resp.Stderr...))
}

const dialTimeout = 10 * time.Second

// proxy hands an upgrade request to the runtime's streaming server. Only after it
// has answered 101 do the client's further bytes reach it; any other answer is
// passed on as it is and the connection to the runtime closed. Redirects are the
// client's to see, not ours to follow.
func (s *Server) proxy(w http.ResponseWriter, r *http.Request, target string) {
	u, err := url.Parse(target)
	if err != nil || u.Scheme != "http" || u.Host == "" {
		http.Error(w, "the runtime answered with an invalid streaming address", http.StatusInternalServerError)
		return
	}
	if r.Header.Get("Upgrade") == "" {
		http.Error(w, "unable to upgrade: missing upgrade headers in request", http.StatusBadRequest)
		return
	}
	d := net.Dialer{Timeout: dialTimeout}
	backend, err := d.DialContext(r.Context(), "tcp", u.Host)
	if err != nil {
		http.Error(w, fmt.Sprintf("error dialing backend: %v", err), http.StatusBadGateway)
		return
	}
	defer backend.Close()
	out := &http.Request{Method: r.Method, URL: u, Host: u.Host, Header: r.Header.Clone(), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}
	for _, h := range []string{"Authorization", "Cookie", "X-Forwarded-For", "Content-Length", "Transfer-Encoding"} {
		out.Header.Del(h)
	}
	_ = backend.SetDeadline(time.Now().Add(30 * time.Second))
	if err := out.Write(backend); err != nil {
		http.Error(w, fmt.Sprintf("error talking to backend: %v", err), http.StatusBadGateway)
		return
	}
	br := bufio.NewReader(backend)
	resp, err := http.ReadResponse(br, out)
	if err != nil {
		http.Error(w, fmt.Sprintf("error talking to backend: %v", err), http.StatusBadGateway)
		return
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusSwitchingProtocols {
		for k, v := range resp.Header {
			w.Header()[k] = v
		}
		w.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(w, io.LimitReader(resp.Body, 1<<20))
		return
	}
	_ = backend.SetDeadline(time.Time{})
	client, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, "the connection cannot be upgraded", http.StatusInternalServerError)
		return
	}
	defer client.Close()
	_ = client.SetDeadline(time.Time{})
	var head strings.Builder
	fmt.Fprintf(&head, "HTTP/1.1 %s\r\n", resp.Status)
	_ = resp.Header.Write(&head)
	head.WriteString("\r\n")
	if _, err := io.WriteString(client, head.String()); err != nil {
		return
	}
	splice(r, client, rw.Reader, backend, br)
}

// splice copies both ways until both have ended or one has failed.
func splice(r *http.Request, client net.Conn, fromClient io.Reader, backend net.Conn, fromBackend io.Reader) {
	done := make(chan struct{}, 2)
	closeBoth := func() { client.Close(); backend.Close() }
	oneWay := func(dst net.Conn, src io.Reader) {
		_, err := io.Copy(dst, src)
		if err == nil || errors.Is(err, io.EOF) {
			if h, ok := dst.(interface{ CloseWrite() error }); ok {
				err = h.CloseWrite()
			}
		}
		if err != nil {
			closeBoth()
		}
		done <- struct{}{}
	}
	go oneWay(backend, fromClient)
	go oneWay(client, fromBackend)
	ended := 0
	for ended < 2 {
		select {
		case <-r.Context().Done():
			closeBoth()
			for ; ended < 2; ended++ {
				<-done
			}
		case <-done:
			if ended++; ended == 1 {
				// The other side gets a moment to end by itself.
				deadline := time.Now().Add(30 * time.Second)
				_ = client.SetReadDeadline(deadline)
				_ = backend.SetReadDeadline(deadline)
			}
		}
	}
}
