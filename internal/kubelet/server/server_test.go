package server

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/proa-dev/proa/internal/kubelet/internal/crifake"
	"github.com/proa-dev/proa/internal/kubelet/pod"
)

// streaming adds a streaming address to the runtime.
type streaming struct {
	*crifake.Runtime
	url  string
	exec *runtimeapi.ExecRequest
}

func (s *streaming) Exec(_ context.Context, q *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	s.exec = q
	return &runtimeapi.ExecResponse{Url: s.url}, nil
}

func newServer(t *testing.T) (*httptest.Server, *streaming, string, *error) {
	t.Helper()
	dir := t.TempDir()
	running, exited := runtimeapi.ContainerState_CONTAINER_RUNNING, runtimeapi.ContainerState_CONTAINER_EXITED
	log := func(c string, n int, text string) string {
		p := filepath.Join(dir, "default_web_u1", c, fmt.Sprintf("%d.log", n))
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte("2026-01-01T00:00:00Z stdout F "+text+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		return p
	}
	p := &corev1.Pod{}
	p.Namespace, p.Name, p.UID = "default", "web", "u1"
	for _, n := range []string{"app", "fresh", "nopull"} {
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: n})
	}
	p.Status.ContainerStatuses = []corev1.ContainerStatus{
		{Name: "app", ContainerID: "proa://c1", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}, LastTerminationState: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ContainerID: "proa://c0"}}},
		{Name: "fresh", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ContainerCreating"}}},
		{Name: "nopull", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff"}}},
	}
	snap := &pod.Snapshot{Pod: p, Running: true, SandboxID: "s1", Containers: map[string][]pod.ContainerInfo{
		"app": {{ID: "c1", Attempt: 1, State: running, LogPath: log("app", 1, "now")}, {ID: "c0", State: exited, LogPath: log("app", 0, "before")}},
	}}
	rt := &streaming{Runtime: crifake.New()}
	allow := new(error)
	s := New(Config{
		Runtime: rt, Images: rt.Runtime, NodeName: "n1", RootDir: dir, LogDir: dir, Logger: slog.New(slog.DiscardHandler), Version: "v1.37.2",
		Pods: func() []*pod.Snapshot { return []*pod.Snapshot{snap} }, Authorize: func(*http.Request) error { return *allow },
	})
	srv := httptest.NewServer(s)
	t.Cleanup(srv.Close)
	return srv, rt, dir, allow
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	r, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, strings.TrimSpace(string(b))
}

func TestContainerLogs(t *testing.T) {
	srv, _, _, _ := newServer(t)
	for _, tc := range []struct {
		path string
		code int
		want string
	}{
		{"/containerLogs/default/web/app", 200, "now"},
		{"/containerLogs/default/web/app?previous=true", 200, "before"},
		{"/containerLogs/default/web/app?timestamps=true", 200, "2026-01-01T00:00:00.000000000Z now"},
		{"/containerLogs/default/web/app?tailLines=0", 200, ""},
		{"/containerLogs/default/web/app?tailLines=-1", 422, `tailLines: Invalid value: "-1": must be greater than or equal to 0`},
		{"/containerLogs/default/web/fresh", 400, `container "fresh" in pod "web" is waiting to start: ContainerCreating`},
		{"/containerLogs/default/web/nopull", 400, `container "nopull" in pod "web" is waiting to start: trying and failing to pull image`},
		{"/containerLogs/default/web/fresh?previous=true", 400, `previous terminated container "fresh" in pod "web" not found`},
		{"/containerLogs/default/web/other", 404, `container "other" not found in pod "web"`},
		{"/containerLogs/default/none/app", 404, `pod "none" does not exist`},
	} {
		code, body := get(t, srv.URL+tc.path)
		if code != tc.code || body != tc.want {
			t.Errorf("%s: %d %q, want %d %q", tc.path, code, body, tc.code, tc.want)
		}
	}
}

func TestOnlyHealthzIsForEveryone(t *testing.T) {
	srv, _, _, allow := newServer(t)
	*allow = errors.New("no")
	for _, p := range []string{"/pods", "/containerLogs/default/web/app", "/stats/summary", "/metrics", "/configz", "/run/default/web/app", "/nothing", "/healthz/log"} {
		if code, _ := get(t, srv.URL+p); code != http.StatusForbidden {
			t.Errorf("%s: %d", p, code)
		}
	}
	if code, body := get(t, srv.URL+"/healthz"); code != 200 || body != "ok" {
		t.Errorf("healthz: %d %s", code, body)
	}
}

func TestPodsAndStatistics(t *testing.T) {
	srv, _, _, _ := newServer(t)
	for path, want := range map[string]string{
		"/pods": `"name":"web"`, "/runningpods/": `"name":"app"`, "/metrics": "kubelet_running_pods 1",
	} {
		if code, body := get(t, srv.URL+path); code != 200 || !strings.Contains(body, want) {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
}

// backend is a streaming server that answers with one fixed head, then echoes.
func backend(t *testing.T, head string) (url string, got chan string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	got = make(chan string, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		br := bufio.NewReader(c)
		r, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		_, _ = io.WriteString(c, head)
		_ = c.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
		buf := make([]byte, 5)
		n, _ := io.ReadFull(br, buf)
		got <- r.URL.Path + " " + r.Header.Get("Authorization") + string(buf[:n])
		_, _ = c.Write(buf[:n])
	}()
	return "http://" + l.Addr().String() + "/exec/token", got
}

func upgrade(t *testing.T, srv *httptest.Server, path string) (net.Conn, *bufio.Reader, *http.Response) {
	t.Helper()
	c, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nAuthorization: secret\r\n\r\nhello", path)
	br := bufio.NewReader(c)
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		t.Fatal(err)
	}
	return c, br, resp
}

func TestExecIsProxiedByteForByte(t *testing.T) {
	srv, rt, _, _ := newServer(t)
	url, got := backend(t, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n")
	rt.url = url
	_, br, resp := upgrade(t, srv, "/exec/default/web/app?command=ls&command=-l&output=1&error=1&tty=0")
	if resp.StatusCode != 101 || resp.Header.Get("Upgrade") != "SPDY/3.1" {
		t.Fatalf("%v", resp)
	}
	if g := <-got; g != "/exec/token hello" {
		t.Errorf("the backend got %q", g)
	}
	back := make([]byte, 5)
	if _, err := io.ReadFull(br, back); err != nil || string(back) != "hello" {
		t.Errorf("got %q %v", back, err)
	}
	if q := rt.exec; q.ContainerId != "c1" || strings.Join(q.Cmd, " ") != "ls -l" || !q.Stdout || !q.Stderr || q.Stdin || q.Tty {
		t.Errorf("exec %v", q)
	}
}

func TestRefusedUpgradeForwardsNothing(t *testing.T) {
	for _, head := range []string{
		"HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\nno",
		"HTTP/1.1 302 Found\r\nLocation: http://elsewhere/\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
	} {
		srv, rt, _, _ := newServer(t)
		url, got := backend(t, head)
		rt.url = url
		_, _, resp := upgrade(t, srv, "/exec/default/web/app?command=ls&output=1")
		if resp.StatusCode == 101 {
			t.Error("upgraded")
		}
		if g := <-got; g != "/exec/token " {
			t.Errorf("after %q the backend got %q", head[:12], g)
		}
	}
}
