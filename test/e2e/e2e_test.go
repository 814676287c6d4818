//go:build e2e

// Package e2e runs the real binary on this machine, as root, with the machine's
// own kubectl: real containers, real network.
package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const (
	data   = "/tmp/proa-e2e"
	listen = "127.0.0.1:16443"
)

var proa, _ = filepath.Abs("../../bin/proa")

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := tryRun(name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

func tryRun(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+data+"/admin.kubeconfig")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func kubectl(t *testing.T, args ...string) string { t.Helper(); return run(t, "kubectl", args...) }

// start runs proa until its node is ready.
func start(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(proa, "--data-dir", data, "up", "--listen", listen)
	var log bytes.Buffer
	cmd.Stderr = &log
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ready := make(chan bool, 1)
	go func() {
		var text strings.Builder
		buf := make([]byte, 4096)
		for {
			n, err := out.Read(buf)
			text.Write(buf[:n])
			if strings.Contains(text.String(), "the node is ready") {
				select {
				case ready <- true:
				default:
				}
			}
			if err != nil {
				ready <- false
				return
			}
		}
	}()
	select {
	case ok := <-ready:
		if !ok {
			t.Fatalf("proa ended:\n%s", log.String())
		}
	case <-time.After(30 * time.Second):
		t.Fatalf("the node is not ready after 30 s:\n%s", log.String())
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd
}

func eventually(t *testing.T, what string, within time.Duration, check func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

type pod struct {
	Status struct {
		Phase string
		PodIP string
	}
}

func running(t *testing.T, name string) pod {
	t.Helper()
	var p pod
	eventually(t, "pod "+name+" runs", 20*time.Second, func() error {
		out, err := tryRun("kubectl", "get", "pod", name, "-o", "json")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		if err := json.Unmarshal([]byte(out), &p); err != nil {
			return err
		}
		if p.Status.Phase != "Running" || p.Status.PodIP == "" {
			return fmt.Errorf("phase %s", p.Status.Phase)
		}
		return nil
	})
	return p
}

func get(url string) (string, error) {
	c := http.Client{Timeout: 2 * time.Second}
	r, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	return string(b), err
}

func TestAPodFromKubectlRunToItsEnd(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test runs containers: run it as root")
	}
	_, _ = tryRun(proa, "--data-dir", data, "reset")
	t.Cleanup(func() {
		if out, err := tryRun(proa, "--data-dir", data, "reset"); err != nil {
			t.Errorf("reset: %v\n%s", err, out)
		}
		leftovers(t)
	})
	dir := t.TempDir()
	hello, busybox := filepath.Join(dir, "hello"), filepath.Join(dir, "busybox.tar")
	build := exec.Command("go", "build", "-o", hello, "../../examples/hello")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the example: %v\n%s", err, out)
	}
	run(t, "go", "run", "../image", "-o", filepath.Join(dir, "hello.tar"), "-t", "proa.example/hello:v1", "-e", "VERSION=v1", "-c", "/hello", hello+"=/hello")
	run(t, "go", "run", "../image", "-o", busybox, "-t", "proa.example/busybox:1", "-c", "sh", "-l", "bin/sh=busybox", "-l", "bin/sleep=busybox",
		"-l", "bin/id=busybox", "-l", "bin/cat=busybox", "/bin/busybox=/bin/busybox", hello+"=/bin/hello")
	if err := os.MkdirAll(data, 0o700); err != nil {
		t.Fatal(err)
	}
	run(t, proa, "--data-dir", data, "image", "import", filepath.Join(dir, "hello.tar"), busybox)

	server := start(t)
	if out := kubectl(t, "get", "nodes", "--no-headers"); !strings.Contains(out, " Ready ") {
		t.Fatalf("nodes: %s", out)
	}
	eventually(t, "default service account", 10*time.Second, func() error {
		out, err := tryRun("kubectl", "get", "serviceaccount", "default")
		if err != nil {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	kubectl(t, "run", "hello", "--image=proa.example/hello:v1", "--env=GREETING=hi")
	kubectl(t, "run", "tools", "--image=proa.example/busybox:1", "--", "sleep", "3600")
	web := running(t, "hello")
	running(t, "tools")
	eventually(t, "the pod answers", 10*time.Second, func() error {
		out, err := get("http://" + web.Status.PodIP + ":8080/")
		if err == nil && !strings.Contains(out, "hello v1 from hello: hi") {
			err = fmt.Errorf("got %q", out)
		}
		return err
	})
	if out := kubectl(t, "logs", "hello"); out != "listening on :8080\n" {
		t.Errorf("logs: %q", out)
	}
	for range 10 {
		if out := kubectl(t, "exec", "tools", "--", "id", "-u"); strings.TrimSpace(out) != "0" {
			t.Errorf("exec: %q", out)
		}
	}
	if out := kubectl(t, "exec", "tools", "--", "hello", "get", "http://"+web.Status.PodIP+":8080/"); !strings.Contains(out, "hello v1") {
		t.Errorf("from pod to pod: %q", out)
	}
	kubectl(t, "expose", "pod", "hello", "--type=NodePort", "--port=80", "--target-port=8080")
	ip := kubectl(t, "get", "service", "hello", "-o", "jsonpath={.spec.clusterIP}")
	nodePort := kubectl(t, "get", "service", "hello", "-o", "jsonpath={.spec.ports[0].nodePort}")
	node := kubectl(t, "get", "nodes", "-o", "jsonpath={.items[0].status.addresses[0].address}")
	for what, url := range map[string]string{"ClusterIP": "http://" + ip + "/", "NodePort": "http://" + node + ":" + nodePort + "/"} {
		eventually(t, "the Service answers at its "+what, 10*time.Second, func() error {
			out, err := get(url)
			if err == nil && !strings.Contains(out, "hello v1") {
				err = fmt.Errorf("got %q", out)
			}
			return err
		})
	}
	eventually(t, "the Service answers a pod", 10*time.Second, func() error {
		out, err := tryRun("kubectl", "exec", "tools", "--", "hello", "get", "http://"+ip+"/")
		if err != nil || !strings.Contains(out, "hello v1") {
			return fmt.Errorf("%v: %q", err, out)
		}
		return nil
	})
	cmd := exec.Command("kubectl", "exec", "tools", "--", "sh", "-c", "exit 3")
	cmd.Env = append(os.Environ(), "KUBECONFIG="+data+"/admin.kubeconfig")
	if err := cmd.Run(); cmd.ProcessState.ExitCode() != 3 {
		t.Errorf("the exit code of exec: %d, %v", cmd.ProcessState.ExitCode(), err)
	}

	t.Run("bad input is named", func(t *testing.T) {
		for name, c := range map[string]struct{ manifest, want string }{
			"an unknown field":          {`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"x"},"spec":{"foo":1,"containers":[{"name":"c","image":"i"}]}}`, `unknown field "spec.foo"`},
			"a wrong type":              {`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x"},"data":{"a":1}}`, "cannot unmarshal number"},
			"a name that is no label":   {`{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"A_b"}}`, "a lowercase RFC 1123 label must consist of"},
			"a container without image": {`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"x"},"spec":{"containers":[{"name":"c"}]}}`, "spec.containers[0].image: Required value"},
		} {
			t.Run(name, func(t *testing.T) {
				file := filepath.Join(t.TempDir(), "m.json")
				if err := os.WriteFile(file, []byte(c.manifest), 0o600); err != nil {
					t.Fatal(err)
				}
				out, err := tryRun("kubectl", "create", "-f", file)
				if err == nil || !strings.Contains(out, c.want) {
					t.Errorf("got %v: %s", err, out)
				}
			})
		}
	})

	// A1, D2: after kill -9 nothing acknowledged is lost and containers run on.
	before := run(t, "pgrep", "-x", "hello")
	kubectl(t, "create", "configmap", "kept", "--from-literal=a=b")
	if err := server.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = server.Wait()
	if now := run(t, "pgrep", "-x", "hello"); now != before {
		t.Fatalf("the container's process was %s, is %s", before, now)
	}
	start(t)
	if out := kubectl(t, "get", "configmap", "kept", "-o", "jsonpath={.data.a}"); out != "b" {
		t.Errorf("after kill -9: %q", out)
	}
	running(t, "hello")
	if now := run(t, "pgrep", "-x", "hello"); now != before {
		t.Errorf("the container was restarted: its process was %s, is %s", before, now)
	}
	if out := kubectl(t, "get", "pod", "hello", "-o", "jsonpath={.status.containerStatuses[0].restartCount}"); out != "0" {
		t.Errorf("restart count %s", out)
	}
	if out := strings.TrimSpace(kubectl(t, "exec", "tools", "--", "id", "-u")); out != "0" {
		t.Errorf("exec after a restart: %q", out)
	}

	kubectl(t, "delete", "pod", "hello", "--timeout=60s")
	eventually(t, "the container's process ends", 5*time.Second, func() error {
		if out, err := tryRun("pgrep", "-x", "hello"); err == nil {
			return fmt.Errorf("process %s", out)
		}
		return nil
	})
}

// leftovers checks that nothing of the cluster is left on the machine.
func leftovers(t *testing.T) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), data) {
		t.Error("a mount is left")
	}
	if out, err := tryRun("pgrep", "-f", "proa-shim.*"+data); err == nil {
		t.Errorf("processes are left: %s", out)
	}
	if _, err := os.Stat("/sys/class/net/proa0"); err == nil {
		t.Error("the bridge is left")
	}
	if left, _ := filepath.Glob("/sys/fs/cgroup/*/kubepods"); len(left) > 0 {
		t.Errorf("cgroups are left: %v", left)
	}
	if _, err := os.Stat(data); err == nil {
		t.Error("the data folder is left")
	}
}
