//go:build e2e

// Package e2e runs the real binary on this machine, as root, with the machine's
// own kubectl: real containers, real network. `make test` builds what it needs.
package e2e

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	data   = "/tmp/proa-e2e"
	listen = "127.0.0.1:16443"
	tools  = "proa.example/tools:1"
)

var (
	bin, _ = filepath.Abs("../../bin")
	proa   = filepath.Join(bin, "proa")
)

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests run containers: run them as root")
		os.Exit(1)
	}
	os.Exit(runAll(m))
}

// runAll starts one cluster for all tests, and checks after them that a reset
// leaves nothing on the machine.
func runAll(m *testing.M) (code int) {
	fail := func(err error) int { fmt.Fprintln(os.Stderr, "e2e:", err); return 1 }
	_, _ = try(proa, "--data-dir", data, "reset")
	if err := os.MkdirAll(data, 0o700); err != nil {
		return fail(err)
	}
	defer func() {
		server.kill()
		if out, err := try(proa, "--data-dir", data, "reset"); err != nil {
			code = fail(fmt.Errorf("reset: %w\n%s", err, out))
		}
		if err := leftovers(); err != nil {
			code = fail(err)
		}
	}()
	archive := filepath.Join(data, "tools.tar")
	pack := []string{"run", "../image", "-o", archive, "-t", tools, "-c", "sh"}
	for _, applet := range strings.Fields("sh sleep id cat nc wget nslookup tar ls stty mkdir rm hostname env seq date touch kill ps head wc mount grep") {
		pack = append(pack, "-l", "bin/"+applet+"=busybox")
	}
	if out, err := try("go", append(pack, "/bin/busybox=/bin/busybox", filepath.Join(bin, "hello")+"=/bin/hello")...); err != nil {
		return fail(fmt.Errorf("pack the tools: %w\n%s", err, out))
	}
	if out, err := try(proa, "--data-dir", data, "image", "import", filepath.Join(bin, "hello-v1.tar"), filepath.Join(bin, "hello-v2.tar"), archive); err != nil {
		return fail(fmt.Errorf("import the images: %w\n%s", err, out))
	}
	if err := server.start(); err != nil {
		return fail(err)
	}
	code = m.Run()
	if code != 0 {
		fmt.Fprintf(os.Stderr, "the last of proa's log:\n%s\n", server.log.last(8000))
	}
	return code
}

// leftovers says what of the cluster is left on the machine.
func leftovers() error {
	var left []error
	say := func(format string, args ...any) { left = append(left, fmt.Errorf(format, args...)) }
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	if strings.Contains(string(mounts), data) {
		say("a mount is left")
	}
	if out, err := try("pgrep", "-f", "proa-shim.*"+data); err == nil {
		say("processes are left: %s", out)
	}
	for _, link := range []string{"proa0"} {
		if _, err := os.Stat("/sys/class/net/" + link); err == nil {
			say("the interface %s is left", link)
		}
	}
	sum := sha256.Sum256([]byte(data)) // the name of this cluster's tree
	for _, pattern := range []string{"*/proa-%x", "proa-%x"} {
		if found, _ := filepath.Glob("/sys/fs/cgroup/" + fmt.Sprintf(pattern, sum[:4])); len(found) > 0 {
			say("the cgroups %v are left", found)
		}
	}
	if out, err := try("nft", "list", "tables"); err == nil && strings.Contains(out, "proa") {
		say("rules are left: %s", out)
	}
	if _, err := os.Stat(data); err == nil {
		say("the data folder is left")
	}
	return errors.Join(left...)
}

// server is the cluster's process.
var server process

type process struct {
	cmd  *exec.Cmd
	log  tail
	done chan struct{}
}

// tail keeps what a process writes.
type tail struct {
	mu   sync.Mutex
	text []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	if len(t.text) > 1<<20 {
		t.text = t.text[len(t.text)-1<<19:]
	}
	return len(p), nil
}

func (t *tail) contains(s string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return bytes.Contains(t.text, []byte(s))
}

func (t *tail) last(n int) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.text[max(0, len(t.text)-n):])
}

// start runs proa until its node is ready.
func (p *process) start(flags ...string) error {
	p.log = tail{}
	p.cmd = exec.Command(proa, append([]string{"--data-dir", data, "up", "--listen", listen}, flags...)...)
	p.cmd.Env = append(os.Environ(), "KUBECONFIG="+filepath.Join(data, "merged.kubeconfig"))
	p.cmd.Stdout, p.cmd.Stderr = &p.log, &p.log
	if err := p.cmd.Start(); err != nil {
		return err
	}
	p.done = make(chan struct{})
	go func() { _ = p.cmd.Wait(); close(p.done) }()
	deadline := time.After(30 * time.Second)
	for !p.log.contains("the node is ready") {
		select {
		case <-p.done:
			return fmt.Errorf("proa ended: %s", p.log.last(8000))
		case <-deadline:
			return fmt.Errorf("the node is not ready after 30 s: %s", p.log.last(8000))
		case <-time.After(5 * time.Millisecond):
		}
	}
	return nil
}

func (p *process) kill() { p.signal(syscall.SIGKILL) }

func (p *process) signal(s syscall.Signal) {
	if p.cmd != nil {
		_ = p.cmd.Process.Signal(s)
		<-p.done
	}
}

func try(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+data+"/admin.kubeconfig", "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// namespace is one test's own.
type namespace struct {
	*testing.T
	name string
}

// inNamespace makes a namespace that ends with the test.
func inNamespace(t *testing.T) namespace {
	t.Helper()
	name := strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(t.Name()))
	n := namespace{t, name[:min(len(name), 50)]}
	n.kubectl("create", "namespace", n.name)
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := try("kubectl", "-n", n.name, "get", "pods,jobs,deployments,events", "-o", "wide")
			t.Log(out)
		}
		_, _ = try("kubectl", "delete", "namespace", n.name, "--wait=false")
	})
	n.eventually("the default service account", 10*time.Second, func() error {
		_, err := n.try("get", "serviceaccount", "default")
		return err
	})
	return n
}

func (n namespace) try(args ...string) (string, error) {
	out, err := try("kubectl", append([]string{"-n", n.name}, args...)...)
	if err != nil {
		err = fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return out, err
}

func (n namespace) kubectl(args ...string) string {
	n.Helper()
	out, err := n.try(args...)
	if err != nil {
		n.Fatal(err)
	}
	return out
}

// apply applies a manifest given as text.
func (n namespace) apply(manifest string) {
	n.Helper()
	n.kubectl("apply", "-f", writeFile(n.T, "manifest.yaml", manifest))
}

// field is what a JSON path says of an object.
func (n namespace) field(object, path string) string {
	n.Helper()
	return n.kubectl("get", object, "-o", "jsonpath={"+path+"}")
}

func (n namespace) ready(pod string) {
	n.Helper()
	n.kubectl("wait", "--for=condition=Ready", "pod/"+pod, "--timeout=60s")
}

func (n namespace) eventually(what string, within time.Duration, check func() error) {
	n.Helper()
	deadline := time.Now().Add(within)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			n.Fatalf("%s: %v", what, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// says checks what a function answers until it contains what is wanted.
func (n namespace) says(what, want string, within time.Duration, ask func() (string, error)) {
	n.Helper()
	n.eventually(what, within, func() error {
		out, err := ask()
		if err == nil && !strings.Contains(out, want) {
			err = fmt.Errorf("got %q, want %q in it", out, want)
		}
		return err
	})
}

func get(url string) (string, error) {
	c := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err == nil && r.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", r.Status, b)
	}
	return string(b), err
}

func writeFile(t *testing.T, name, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
