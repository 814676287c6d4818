//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestAPodAnswersAndEnds(t *testing.T) {
	t.Parallel()
	n := inNamespace(t)
	n.kubectl("run", "hello", "--image=proa.example/hello:v1", "--env=GREETING=hi")
	n.kubectl("run", "tools", "--image="+tools, "--", "sleep", "3600")
	n.ready("hello")
	n.ready("tools")
	url := "http://" + n.field("pod/hello", ".status.podIP") + ":8080/"
	n.says("the pod answers the host", "hello v1 from hello: hi", 10*time.Second, func() (string, error) { return get(url) })
	n.says("the pod answers a pod", "hello v1 from hello: hi", 10*time.Second, func() (string, error) { return n.try("exec", "tools", "--", "hello", "get", url) })
	if out := n.kubectl("logs", "hello"); !strings.Contains(out, "listening on :8080\n") {
		t.Errorf("logs: %q", out)
	}
	n.kubectl("delete", "pod", "hello", "tools", "--timeout=60s", "--grace-period=2")
	if out := n.kubectl("get", "pods"); !strings.Contains(out, "No resources found") {
		t.Errorf("after the delete: %s", out)
	}
}

func TestLogs(t *testing.T) {
	t.Parallel()
	n := inNamespace(t)
	n.kubectl("run", "count", "--image="+tools, "--restart=Never", "--", "sh", "-c", "for i in $(seq 1 5); do echo line $i; sleep 0.3; done; echo to stderr >&2")
	n.eventually("the container runs", 20*time.Second, func() error { _, err := n.try("logs", "count"); return err })
	if out := n.kubectl("logs", "-f", "count"); out != "line 1\nline 2\nline 3\nline 4\nline 5\nto stderr\n" {
		t.Errorf("logs -f: %q", out)
	}
	if out := n.kubectl("logs", "--tail=2", "count"); out != "line 5\nto stderr\n" {
		t.Errorf("logs --tail=2: %q", out)
	}
	first, _, _ := strings.Cut(n.kubectl("logs", "--timestamps", "count"), "\n")
	stamp, text, _ := strings.Cut(first, " ")
	if _, err := time.Parse(time.RFC3339Nano, stamp); err != nil || text != "line 1" {
		t.Errorf("logs --timestamps: %q: %v", first, err)
	}
	n.apply(`---
{apiVersion: v1, kind: Pod, metadata: {name: twice}, spec: {containers: [{name: c, image: "` + tools + `",
  volumeMounts: [{name: v, mountPath: /v}],
  command: [sh, -c, "if [ -e /v/second ]; then echo the second; sleep 3600; fi; touch /v/second; echo the first; exit 4"]}], volumes: [{name: v, emptyDir: {}}]}}`)
	n.says("the second run", "the second", 30*time.Second, func() (string, error) { return n.try("logs", "twice") })
	if out := n.kubectl("logs", "--previous", "twice"); out != "the first\n" {
		t.Errorf("logs --previous: %q", out)
	}
	if code := n.field("pod/twice", ".status.containerStatuses[0].lastState.terminated.exitCode"); code != "4" {
		t.Errorf("last exit code %s", code)
	}
}

func TestExecCpAndPortForward(t *testing.T) {
	t.Parallel()
	n := inNamespace(t)
	n.kubectl("run", "tools", "--image="+tools, "--", "sleep", "3600")
	n.kubectl("run", "hello", "--image=proa.example/hello:v1")
	n.ready("tools")
	for range 5 {
		if out := n.kubectl("exec", "tools", "--", "id", "-u"); out != "0\n" {
			t.Errorf("exec: %q", out)
		}
	}
	_, err := n.try("exec", "tools", "--", "sh", "-c", "exit 3")
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 3 {
		t.Errorf("the exit code of exec: %v", err)
	}
	in := exec.Command("kubectl", "--kubeconfig", data+"/admin.kubeconfig", "-n", n.name, "exec", "-i", "tools", "--", "cat")
	text := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
	in.Stdin = bytes.NewReader(text)
	if out, err := in.Output(); err != nil || !bytes.Equal(out, text) {
		t.Errorf("1 MiB through cat: %d bytes back, %v", len(out), err)
	}
	// script(1) gives kubectl the terminal that -t asks for.
	terminal := exec.Command("script", "-qec", "stty rows 33 cols 111; kubectl --kubeconfig "+data+"/admin.kubeconfig -n "+n.name+" exec -it tools -- sh -c 'sleep 0.5; stty size; test -t 0 && echo a terminal'", "/dev/null")
	terminal.Stdin = strings.NewReader("")
	if out, err := terminal.CombinedOutput(); err != nil || !strings.Contains(string(out), "33 111") || !strings.Contains(string(out), "a terminal") {
		t.Errorf("exec -t: %v: %q", err, out)
	}

	from, back := filepath.Join(t.TempDir(), "from"), filepath.Join(t.TempDir(), "back")
	if err := os.WriteFile(from, text, 0o600); err != nil {
		t.Fatal(err)
	}
	n.kubectl("cp", from, "tools:/tmp/copied")
	n.kubectl("cp", "tools:/tmp/copied", back)
	if got, err := os.ReadFile(back); err != nil || !bytes.Equal(got, text) {
		t.Errorf("cp there and back: %d bytes, %v", len(got), err)
	}

	n.ready("hello")
	forward := exec.Command("kubectl", "--kubeconfig", data+"/admin.kubeconfig", "-n", n.name, "port-forward", "pod/hello", ":8080")
	out, err := forward.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := forward.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = forward.Process.Kill(); _ = forward.Wait() }()
	line, err := bufio.NewReader(out).ReadString('\n')
	var port int
	if _, scan := fmt.Sscanf(line, "Forwarding from 127.0.0.1:%d", &port); scan != nil {
		t.Fatalf("port-forward says %q: %v", line, err)
	}
	for range 3 {
		if out, err := get(fmt.Sprintf("http://127.0.0.1:%d/", port)); err != nil || !strings.Contains(out, "hello v1 from hello") {
			t.Errorf("through the forwarded port: %q, %v", out, err)
		}
	}
}

func TestCrashLoopBacksOff(t *testing.T) {
	t.Parallel()
	n := inNamespace(t)
	n.kubectl("run", "crash", "--image="+tools, "--", "sh", "-c", "exit 7")
	n.says("the reason for waiting", "CrashLoopBackOff", 40*time.Second, func() (string, error) {
		return n.try("get", "pod", "crash", "-o", "jsonpath={.status.containerStatuses[0].state.waiting.reason}")
	})
	if out := n.kubectl("get", "pod", "crash", "--no-headers"); !strings.Contains(out, "CrashLoopBackOff") {
		t.Errorf("the row: %s", out)
	}
	n.says("the event", "Back-off restarting failed container crash in pod crash", 20*time.Second, func() (string, error) { return n.try("get", "events") })
	if out := n.field("pod/crash", ".status.containerStatuses[0].lastState.terminated"); !strings.Contains(out, `"exitCode":7`) || !strings.Contains(out, `"reason":"Error"`) {
		t.Errorf("the last state: %s", out)
	}
	// The first wait is 10 s, so two restarts at most within the first 15 s.
	if out := n.field("pod/crash", ".status.containerStatuses[0].restartCount"); out != "1" && out != "2" {
		t.Errorf("restarts: %s", out)
	}
}

func TestLivenessRestartsAndReadinessHolds(t *testing.T) {
	t.Parallel()
	n := inNamespace(t)
	n.apply(`
apiVersion: v1
kind: Pod
metadata: {name: live}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: ` + tools + `
    command: [sh, -c, "touch /tmp/ok; sleep 3600"]
    livenessProbe: {exec: {command: [cat, /tmp/ok]}, periodSeconds: 1, failureThreshold: 2}
    readinessProbe: {exec: {command: [cat, /tmp/ready]}, periodSeconds: 1}
`)
	n.says("the pod runs", "Running", 20*time.Second, func() (string, error) { return n.try("get", "pod", "live", "-o", "jsonpath={.status.phase}") })
	if out := n.field("pod/live", ".status.containerStatuses[0].ready"); out != "false" {
		t.Errorf("ready before its probe: %s", out)
	}
	n.kubectl("exec", "live", "--", "touch", "/tmp/ready")
	n.ready("live")
	n.kubectl("exec", "live", "--", "rm", "/tmp/ok")
	n.says("restarts", "1", 30*time.Second, func() (string, error) {
		return n.try("get", "pod", "live", "-o", "jsonpath={.status.containerStatuses[0].restartCount}")
	})
	events := n.kubectl("get", "events")
	for _, want := range []string{"Liveness probe failed: cat", "failed liveness probe, will be restarted"} {
		if !strings.Contains(events, want) {
			t.Errorf("no event says %q:\n%s", want, events)
		}
	}
}

func TestInitContainersVolumesAndEnvironment(t *testing.T) {
	t.Parallel()
	n := inNamespace(t)
	n.apply(`
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {color: blue, file.txt: "text of the file"}
---
apiVersion: v1
kind: Secret
metadata: {name: secret}
stringData: {password: hidden}
---
apiVersion: v1
kind: Pod
metadata: {name: all, labels: {app: all}, annotations: {note: here}}
spec:
  restartPolicy: Never
  securityContext: {runAsUser: 1000, fsGroup: 2000}
  initContainers:
  - {name: first, image: ` + tools + `, command: [sh, -c, "echo from init > /shared/init"], volumeMounts: [{name: shared, mountPath: /shared}]}
  containers:
  - name: c
    image: ` + tools + `
    command: [sh, -c]
    args:
    - |
      cat /shared/init /config/file.txt; echo; cat /secret/password; echo
      cat /down/labels; echo; echo $(COLOR) $SETTING_color $POD $NODE_CPU; id -u; id -G
      head -c 10 /all/token; echo; cat /all/namespace; echo
    env:
    - {name: COLOR, valueFrom: {configMapKeyRef: {name: settings, key: color}}}
    - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: NODE_CPU, valueFrom: {resourceFieldRef: {resource: requests.cpu, divisor: 1m}}}
    envFrom: [{prefix: SETTING_, configMapRef: {name: settings}}]
    resources: {requests: {cpu: 30m}}
    volumeMounts:
    - {name: shared, mountPath: /shared}
    - {name: config, mountPath: /config}
    - {name: secret, mountPath: /secret}
    - {name: down, mountPath: /down}
    - {name: all, mountPath: /all}
  volumes:
  - {name: shared, emptyDir: {medium: Memory}}
  - {name: config, configMap: {name: settings}}
  - {name: secret, secret: {secretName: secret, defaultMode: 0440}}
  - {name: down, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
  - name: all
    projected:
      sources:
      - {serviceAccountToken: {path: token}}
      - {downwardAPI: {items: [{path: namespace, fieldRef: {fieldPath: metadata.namespace}}]}}
`)
	n.says("the pod's end", "Succeeded", 30*time.Second, func() (string, error) { return n.try("get", "pod", "all", "-o", "jsonpath={.status.phase}") })
	out := n.kubectl("logs", "all")
	for _, want := range []string{"from init\n", "text of the file\n", "hidden\n", `app="all"`, "blue blue all 30\n", "1000\n", "2000", n.name + "\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
}
