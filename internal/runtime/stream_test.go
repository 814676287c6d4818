package runtime_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/vishvananda/netns"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	utilexec "k8s.io/client-go/util/exec"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// executors speak the protocols of kubectl: v5 over WebSocket, v4 over SPDY.
func executors(t *testing.T, target string) map[string]remotecommand.Executor {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	cfg := &rest.Config{Host: u.Host}
	ws, err := remotecommand.NewWebSocketExecutor(cfg, http.MethodGet, target)
	if err != nil {
		t.Fatal(err)
	}
	s, err := remotecommand.NewSPDYExecutor(cfg, http.MethodPost, u)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]remotecommand.Executor{"WebSocket v5": ws, "SPDY": s}
}

func TestExecStreams(t *testing.T) {
	n := newNode(t)
	pod, pc := n.pod()
	id := n.begin(pod, pc, config("sleep 1000"))
	for _, protocol := range []string{"WebSocket v5", "SPDY"} {
		run := func(ctx context.Context, in io.Reader, tty bool, sizes remotecommand.TerminalSizeQueue, command ...string) (string, string, error) {
			t.Helper()
			resp, err := n.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: id, Cmd: command, Tty: tty, Stdin: in != nil, Stdout: true, Stderr: !tty})
			if err != nil {
				t.Fatal(err)
			}
			var out, errOut lockedBuffer
			opts := remotecommand.StreamOptions{Stdin: in, Stdout: &out, Tty: tty, TerminalSizeQueue: sizes}
			if !tty {
				opts.Stderr = &errOut
			}
			err = executors(t, resp.Url)[protocol].StreamWithContext(ctx, opts)
			return out.String(), errOut.String(), err
		}
		t.Run(protocol, func(t *testing.T) {
			out, errOut, err := run(t.Context(), nil, false, nil, "sh", "-c", "echo out; echo err >&2; exit 3")
			var exit utilexec.CodeExitError
			if out != "out\n" || errOut != "err\n" || !errors.As(err, &exit) || exit.Code != 3 {
				t.Errorf("%q %q %v", out, errOut, err)
			}
			if _, _, err := run(t.Context(), nil, false, nil, "true"); err != nil {
				t.Error(err)
			}
			if _, _, err := run(t.Context(), nil, false, nil, "none"); err == nil || !strings.Contains(err.Error(), "executable file not found in $PATH") {
				t.Errorf("a program that is not there: %v", err)
			}
			// The end of the input ends cat: the close signal of v5.
			big := strings.Repeat("0123456789abcdef", 1<<16)
			if out, _, err := run(t.Context(), strings.NewReader(big), false, nil, "cat"); out != big || err != nil {
				t.Errorf("%d bytes of %d, %v", len(out), len(big), err)
			}
			if out, _, err := run(t.Context(), nil, false, nil, "dd", "if=/dev/zero", "bs=1M", "count=9"); len(out) != 9<<20 || err != nil {
				t.Errorf("%d bytes, %v", len(out), err)
			}
			sizes := make(chan remotecommand.TerminalSize, 1)
			sizes <- remotecommand.TerminalSize{Width: 123, Height: 45}
			out, _, err = run(t.Context(), strings.NewReader("echo typed\nexit\n"), true, queue(sizes), "sh", "-c", "while [ \"$(stty size)\" != '45 123' ]; do sleep 0.01; done; stty size; sh")
			if err != nil || !strings.Contains(out, "45 123\r\n") || !strings.Contains(out, "typed\r\n") {
				t.Errorf("terminal: %q %v", out, err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			in, w := io.Pipe()
			defer w.Close()
			_, _, err = run(ctx, in, true, nil, "sleep", "777")
			if err == nil {
				t.Error("a client that left saw an end")
			}
		})
	}
	until(t, "a terminal whose client has left hangs up", func() bool {
		out, _ := n.exec(id, "ps", "-o", "args")
		return strings.Count(out, "sleep 777") < 2 // SPDY does not tell
	})
	resp, err := n.Exec(t.Context(), &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"true"}, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // a URL is good once
		err = executors(t, resp.Url)["WebSocket v5"].StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: io.Discard})
	}
	if err == nil {
		t.Error("a URL is served twice")
	}
}

type queue chan remotecommand.TerminalSize

func (q queue) Next() *remotecommand.TerminalSize {
	size, ok := <-q
	if !ok {
		return nil
	}
	return &size
}

func TestAttach(t *testing.T) {
	n := newNode(t)
	pod, pc := n.pod()
	for _, protocol := range []string{"WebSocket v5", "SPDY"} {
		id := n.begin(pod, pc, config("while read line; do echo got $line; echo err $line >&2; [ $line = end ] && exit 4; done", func(c *conConfig) { c.Stdin, c.StdinOnce = true, true }))
		resp, err := n.Attach(t.Context(), &runtimeapi.AttachRequest{ContainerId: id, Stdin: true, Stdout: true, Stderr: true})
		if err != nil {
			t.Fatal(err)
		}
		var out, errOut bytes.Buffer
		err = executors(t, resp.Url)[protocol].StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: strings.NewReader("one\nend\n"), Stdout: &out, Stderr: &errOut})
		if err != nil || out.String() != "got one\ngot end\n" || errOut.String() != "err one\nerr end\n" {
			t.Errorf("%s: %q %q %v", protocol, out.String(), errOut.String(), err)
		}
		if st := n.end(id); st.ExitCode != 4 {
			t.Errorf("%s: exit code %d", protocol, st.ExitCode)
		}
	}
}

// `kubectl run -i --rm … < file`: the end of the file is the end of the input.
func TestAttachEndsTheInput(t *testing.T) {
	n := newNode(t)
	pod, pc := n.pod()
	big := strings.Repeat("0123456789abcdef", 1<<14)
	for _, protocol := range []string{"WebSocket v5", "SPDY"} {
		for _, once := range []bool{true, false} {
			id := n.begin(pod, pc, config("cat; echo ended", func(c *conConfig) { c.Stdin, c.StdinOnce = true, once }))
			resp, err := n.Attach(t.Context(), &runtimeapi.AttachRequest{ContainerId: id, Stdin: true, Stdout: true})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			var out lockedBuffer
			done := make(chan error, 1)
			go func() {
				done <- executors(t, resp.Url)[protocol].StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: strings.NewReader(big), Stdout: &out})
			}()
			if !once { // others may come and go on
				until(t, "all is there", func() bool { return len(out.String()) == len(big) })
				cancel()
				<-done
				if n.status(id).State != running {
					t.Errorf("%s: the input has ended with its first client", protocol)
				}
				continue
			}
			if err := <-done; err != nil || out.String() != big+"ended\n" {
				t.Errorf("%s: %d bytes, %v", protocol, len(out.String()), err)
			}
			cancel()
			if st := n.end(id); st.ExitCode != 0 {
				t.Errorf("%s: exit code %d", protocol, st.ExitCode)
			}
		}
	}
}

// serveIn greets whoever connects in a network namespace.
func serveIn(t *testing.T, path, address string) {
	t.Helper()
	out := make(chan error, 1)
	go func() {
		goruntime.LockOSThread() // and never unlocked: the thread ends in the namespace
		ns, err := netns.GetFromPath(path)
		if err == nil {
			defer ns.Close()
			err = netns.Set(ns)
		}
		if err != nil {
			out <- err
			return
		}
		l, err := net.Listen("tcp", address)
		out <- err
		if err != nil {
			return
		}
		t.Cleanup(func() { l.Close() })
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, "hello from the pod\n")
			conn.Close()
		}
	}()
	if err := <-out; err != nil {
		t.Fatal(err)
	}
}

func TestPortForward(t *testing.T) {
	n := newNode(t)
	pod, _ := n.pod()
	serveIn(t, filepath.Join(n.dir, "state/sandboxes", pod, "net"), "127.0.0.1:8080")
	for _, protocol := range []string{"WebSocket", "SPDY"} {
		t.Run(protocol, func(t *testing.T) {
			resp, err := n.PortForward(t.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: pod, Port: []int32{8080}})
			if err != nil {
				t.Fatal(err)
			}
			u, err := url.Parse(resp.Url)
			if err != nil {
				t.Fatal(err)
			}
			cfg := &rest.Config{Host: u.Host}
			dialer, err := portforward.NewSPDYOverWebsocketDialer(u, cfg)
			if protocol == "SPDY" {
				rt, up, err2 := spdy.RoundTripperFor(cfg)
				dialer, err = spdy.NewDialer(up, &http.Client{Transport: rt}, http.MethodPost, u), err2
			}
			if err != nil {
				t.Fatal(err)
			}
			stop, ready := make(chan struct{}), make(chan struct{})
			var said bytes.Buffer
			f, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, []string{"0:8080"}, stop, ready, io.Discard, &said)
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() { done <- f.ForwardPorts() }()
			select {
			case <-ready:
			case err := <-done:
				t.Fatal(err)
			}
			ports, err := f.GetPorts()
			if err != nil {
				t.Fatal(err)
			}
			for range 3 {
				conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports[0].Local))
				if err != nil {
					t.Fatal(err)
				}
				b, _ := io.ReadAll(conn)
				conn.Close()
				if string(b) != "hello from the pod\n" {
					t.Errorf("%q", b)
				}
			}
			close(stop)
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

// The protocol as it is on the wire, without a client's help.
func TestProtocolV5(t *testing.T) {
	n := newNode(t)
	pod, pc := n.pod()
	id := n.begin(pod, pc, config("sleep 1000"))
	resp, err := n.Exec(t.Context(), &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"sh", "-c", "cat; exit 6"}, Stdin: true, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	d := websocket.Dialer{Subprotocols: []string{"v5.channel.k8s.io", "v4.channel.k8s.io"}}
	conn, _, err := d.Dial(strings.Replace(resp.Url, "http:", "ws:", 1), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if conn.Subprotocol() != "v5.channel.k8s.io" {
		t.Fatalf("protocol %q", conn.Subprotocol())
	}
	for _, m := range []string{"\x00hello", "\x09unknown channel", "\x04{\"Width\":1}", "\xff\x00"} {
		if err := conn.WriteMessage(websocket.BinaryMessage, []byte(m)); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for {
		_, b, err := conn.ReadMessage()
		if err != nil {
			if !websocket.IsCloseError(err, websocket.CloseNormalClosure) {
				t.Error(err)
			}
			break
		}
		got = append(got, string(b))
	}
	want := []string{"\x01", "\x01hello", "\x03" + `{"metadata":{},"status":"Failure","message":"command terminated with non-zero exit code: command terminated with exit code 6","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"6"}]}}`}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got %q\nwant %q", got, want)
	}
}

// The terminal is one of the container's own: programs find its name.
func TestTerminals(t *testing.T) {
	n := newNode(t)
	pod, pc := n.pod()
	user := secure(func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsUser = number(1000) })
	id := n.begin(pod, pc, config("tty; stat -c %u $(tty); test -c /dev/console && echo console; while read l; do echo got $l; stty size; done", user, func(c *conConfig) { c.Tty, c.Stdin = true, true }))
	until(t, "it has begun", func() bool { return strings.Contains(n.output(id), "console") })
	if out := n.output(id); out != "/dev/pts/0\r\n1000\r\nconsole\r\n" {
		t.Errorf("a container's terminal: %q", out)
	}
	resp, err := n.Attach(t.Context(), &runtimeapi.AttachRequest{ContainerId: id, Stdin: true, Stdout: true, Tty: true})
	if err != nil {
		t.Fatal(err)
	}
	sizes := make(chan remotecommand.TerminalSize, 1)
	sizes <- remotecommand.TerminalSize{Width: 77, Height: 33}
	in, w := io.Pipe()
	var out lockedBuffer
	done := make(chan error, 1)
	go func() {
		done <- executors(t, resp.Url)["WebSocket v5"].StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: in, Stdout: &out, Tty: true, TerminalSizeQueue: queue(sizes)})
	}()
	until(t, "the size has arrived", func() bool {
		_, _ = io.WriteString(w, "line\n")
		time.Sleep(10 * time.Millisecond)
		return strings.Contains(out.String(), "got line\r\n33 77\r\n")
	})
	for _, protocol := range []string{"WebSocket v5", "SPDY"} {
		r, err := n.Exec(t.Context(), &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"sh", "-c", "tty; stat -c %u $(tty)"}, Tty: true, Stdin: true, Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		var said bytes.Buffer
		if err := executors(t, r.Url)[protocol].StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: strings.NewReader(""), Stdout: &said, Tty: true}); err != nil || said.String() != "/dev/pts/1\r\n1000\r\n" {
			t.Errorf("%s: a command's terminal: %q, %v", protocol, said.String(), err)
		}
		r, err = n.Exec(t.Context(), &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"none"}, Tty: true, Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := executors(t, r.Url)[protocol].StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: &said, Tty: true}); err == nil || !strings.Contains(err.Error(), "executable file not found") {
			t.Errorf("%s: %v", protocol, err)
		}
	}
	if _, err := n.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	w.Close()
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
