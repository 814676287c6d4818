package runtime_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	created = runtimeapi.ContainerState_CONTAINER_CREATED
	running = runtimeapi.ContainerState_CONTAINER_RUNNING
	exited  = runtimeapi.ContainerState_CONTAINER_EXITED
)

func TestExit(t *testing.T) {
	n := newNode(t)
	pod, pc := n.pod()
	for _, c := range []struct {
		script string
		change func(*conConfig)
		code   int32
		reason string
	}{
		{"true", func(*conConfig) {}, 0, "Completed"},
		{"exit 3", func(*conConfig) {}, 3, "Error"},
		{"sh -c 'kill -9 $$'; exit $?", func(*conConfig) {}, 137, "Error"},
		{"memory", func(c *conConfig) {
			c.Args = []string{"tail /dev/zero"}
			c.Linux.Resources.MemoryLimitInBytes = 16 << 20
		}, 137, "OOMKilled"},
	} {
		before := time.Now()
		st := n.end(n.begin(pod, pc, config(c.script, c.change)))
		if st.ExitCode != c.code || st.Reason != c.reason {
			t.Errorf("%s: exit code %d, reason %s, want %d, %s", c.script, st.ExitCode, st.Reason, c.code, c.reason)
		}
		if st.CreatedAt < before.UnixNano() || st.StartedAt < st.CreatedAt || st.FinishedAt < st.StartedAt || st.FinishedAt > time.Now().UnixNano() {
			t.Errorf("%s: created %d, started %d, finished %d", c.script, st.CreatedAt, st.StartedAt, st.FinishedAt)
		}
	}
}

func TestProgramsThatCannotBeRun(t *testing.T) {
	n := newNode(t)
	pod, pc := n.pod()
	for _, c := range []struct{ command, says string }{
		{"/bin/none", "no such file or directory"}, {"none", "executable file not found in $PATH"}, {"/data/hello", "permission denied"},
	} {
		id, err := n.create(pod, pc, config("", func(cfg *conConfig) { cfg.Command, cfg.Args = []string{c.command}, nil }))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := n.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id}); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", c.command, err, c.says)
		}
		if st := n.status(id); st.State != exited || st.ExitCode != 128 || st.Reason != "StartError" || !strings.Contains(st.Message, c.says) {
			t.Errorf("%s: %+v", c.command, st)
		}
		if _, err := n.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id}); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("%s is started again: %v", c.command, err)
		}
	}
	if _, err := n.create(pod, pc, config("", func(c *conConfig) { c.Image.Image = "proa.example/none:1" })); status.Code(err) != codes.NotFound {
		t.Errorf("an image that is not here: %v", err)
	}
}

func TestLog(t *testing.T) {
	n := newNode(t)
	pod, pc := n.pod()
	long := strings.Repeat("x", 20000)
	id := n.begin(pod, pc, config("echo out; echo err >&2; echo; printf %020000d 0 | tr 0 x 2>/dev/null || printf '"+long+"'; echo; printf end"))
	n.end(id)
	b, err := os.ReadFile(n.status(id).LogPath)
	if err != nil {
		t.Fatal(err)
	}
	form := regexp.MustCompile(`^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z) (stdout|stderr) ([FP]) (.*)$`)
	var got []string
	for line := range strings.Lines(string(b)) {
		m := form.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		if m == nil {
			t.Fatalf("line %.80q", line)
		}
		at, err := time.Parse(time.RFC3339Nano, m[1])
		if err != nil || time.Since(at).Abs() > time.Minute {
			t.Errorf("time %s: %v", m[1], err)
		}
		if len(m[4]) > 10 {
			m[4] = fmt.Sprint(len(m[4]))
		}
		got = append(got, m[2]+" "+m[3]+" "+m[4])
	}
	for _, want := range []string{"stdout F out", "stderr F err", "stdout F ", "stdout P 16384", "stdout F 3616", "stdout P end"} {
		contains(t, strings.Join(got, "\n"), want)
	}
}

func TestLogRotation(t *testing.T) {
	n := newNode(t)
	pod, pc := n.pod()
	id := n.begin(pod, pc, config("echo one; while [ ! -e /tmp/go ]; do sleep 0.01; done; echo two; sleep 1000"))
	path := n.status(id).LogPath
	has := func(p, text string) func() bool {
		return func() bool { b, _ := os.ReadFile(p); return strings.Contains(string(b), text) }
	}
	until(t, "the first line is there", has(path, " one\n"))
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if _, err := n.ReopenContainerLog(t.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	n.exec(id, "touch", "/tmp/go")
	until(t, "the second line is in the new file", has(path, " two\n"))
	if has(path+".1", "two")() || has(path, "one")() {
		t.Error("the lines are in the wrong files")
	}
}

func TestExecSync(t *testing.T) {
	n := newNode(t)
	pod, pc := n.pod()
	id := n.begin(pod, pc, config("sleep 1000", func(c *conConfig) {
		c.Envs = []*runtimeapi.KeyValue{{Key: "GIVEN", Value: []byte("yes")}}
		c.WorkingDir = "/data"
	}))
	if out, code := n.exec(id, "sh", "-c", "echo out; echo err >&2; echo $FROM $GIVEN $PWD; exit 7"); out != "out\nimage yes /data\nerr\n" || code != 7 {
		t.Errorf("%d %q", code, out)
	}
	if out, code := n.exec(id, "none"); code != 127 || !strings.Contains(out, "executable file not found") {
		t.Errorf("a program that is not there: %d %q", code, out)
	}
	if _, code := n.exec(id, "/data/hello"); code != 126 {
		t.Errorf("a file that is no program: %d", code)
	}
	before := time.Now()
	_, err := n.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sleep", "777"}, Timeout: 1})
	if status.Code(err) != codes.DeadlineExceeded || time.Since(before) > 5*time.Second {
		t.Errorf("after %s: %v", time.Since(before), err)
	}
	if out, _ := n.exec(id, "ps", "-o", "args"); strings.Contains(out, "sleep 777") {
		t.Errorf("the command that took too long is there still: %s", out)
	}
	big, _ := n.exec(id, "dd", "if=/dev/zero", "bs=1M", "count=20")
	if len(big) < 7<<20 || len(big) > 8<<20 {
		t.Errorf("%d bytes of a large output", len(big))
	}
	if left, _ := filepath.Glob(filepath.Join(n.dir, "state/containers", id, "exec-*")); len(left) > 0 {
		t.Errorf("files are left: %v", left)
	}
	if _, err := n.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("exec in a container that has ended: %v", err)
	}
}

// A user that is not root: the kernel forgets the parent's death signal when IDs change.
func TestCommandOfAnotherUserEndsWithItsTimeout(t *testing.T) {
	n := newNode(t)
	pod, pc := n.pod()
	id := n.begin(pod, pc, config("sleep 1000", func(c *conConfig) { c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1000} }))
	_, _ = n.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sleep", "777"}, Timeout: 1})
	if out, _ := n.exec(id, "ps", "-o", "args"); strings.Contains(out, "sleep 777") {
		t.Errorf("the command is there still: %s", out)
	}
}

func TestStop(t *testing.T) {
	n := newNode(t)
	pod, pc := n.pod()
	stop := func(id string, grace int64) time.Duration {
		before := time.Now()
		if _, err := n.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: grace}); err != nil {
			t.Fatal(err)
		}
		return time.Since(before)
	}
	ready := func(id string) {
		until(t, "it listens to signals", func() bool { b, _ := os.ReadFile(n.status(id).LogPath); return strings.Contains(string(b), "ready") })
	}
	willing := n.begin(pod, pc, config("trap 'exit 5' TERM; echo ready; while true; do sleep 0.01; done"))
	ready(willing)
	if took := stop(willing, 20); took > 5*time.Second {
		t.Errorf("a willing container took %s", took)
	}
	if st := n.status(willing); st.ExitCode != 5 {
		t.Errorf("exit code %d, want the program's own", st.ExitCode)
	}
	stubborn := n.begin(pod, pc, config("trap '' TERM; echo ready; while true; do sleep 0.01; done"))
	ready(stubborn)
	if took := stop(stubborn, 1); took < time.Second || took > 5*time.Second {
		t.Errorf("a stubborn container took %s of 1s", took)
	}
	if st := n.status(stubborn); st.ExitCode != 137 {
		t.Errorf("exit code %d, want 137", st.ExitCode)
	}
	stop(stubborn, 1)
	if _, err := n.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: "none"}); err != nil {
		t.Error("stopping what is not there:", err)
	}
}

func pidOf(t *testing.T, n *node, id string) string {
	t.Helper()
	for _, g := range n.groups() {
		_ = g
	}
	found, _ := filepath.Glob("/sys/fs/cgroup/*" + n.base + "/*/" + id + "/cgroup.procs")
	more, _ := filepath.Glob("/sys/fs/cgroup" + n.base + "/*/" + id + "/cgroup.procs")
	for _, f := range append(found, more...) {
		if b, _ := os.ReadFile(f); len(b) > 0 {
			return strings.Fields(string(b))[0]
		}
	}
	t.Fatal("the container has no process")
	return ""
}

func TestContainersOutliveTheServer(t *testing.T) {
	n := newNode(t)
	pod, pc := n.pod()
	stays := n.begin(pod, pc, config("while [ ! -e /tmp/go ]; do sleep 0.01; done; echo late; exit 42"))
	leaves := n.begin(pod, pc, config("sleep 0.2; exit 43"))
	fresh, err := n.create(pod, pc, config("echo fresh"))
	if err != nil {
		t.Fatal(err)
	}
	pid := pidOf(t, n, stays)
	n.stop()
	time.Sleep(300 * time.Millisecond) // one ends while nobody looks
	n.start()
	if st := n.status(stays); st.State != running || pidOf(t, n, stays) != pid {
		t.Errorf("the container is %s with process %s, was %s", st.State, pidOf(t, n, stays), pid)
	}
	if st := n.end(leaves); st.ExitCode != 43 || st.Reason != "Error" {
		t.Errorf("the one that ended meanwhile: exit code %d, %s", st.ExitCode, st.Reason)
	}
	if st := n.status(fresh); st.State != created {
		t.Errorf("the one that was not started is %s", st.State)
	}
	if _, err := n.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: fresh}); err != nil {
		t.Error(err)
	}
	if _, code := n.exec(stays, "touch", "/tmp/go"); code != 0 {
		t.Error("exec in a container that was taken up fails")
	}
	if st := n.end(stays); st.ExitCode != 42 {
		t.Errorf("exit code %d, want 42", st.ExitCode)
	}
	if out := n.output(stays); out != "late\n" {
		t.Errorf("output %q", out)
	}
	ps, err := n.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod})
	if err != nil || ps.Status.State != runtimeapi.PodSandboxState_SANDBOX_READY || len(ps.ContainersStatuses) != 3 {
		t.Errorf("the sandbox: %v, %v", ps, err)
	}
}

// A helper that is killed takes its container along, whoever runs in it.
func TestContainerDoesNotOutliveItsHelper(t *testing.T) {
	n := newNode(t)
	pod, pc := n.pod()
	id := n.begin(pod, pc, config("sleep 1000", func(c *conConfig) { c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1000} }))
	pid := pidOf(t, n, id)
	b, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	parent := strings.Fields(string(b)[strings.LastIndexByte(string(b), ')')+1:])[1]
	n.stop() // the kernel alone must see to it
	var helper int
	fmt.Sscan(parent, &helper)
	if err := syscall.Kill(helper, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	until(t, "the container's process is gone", func() bool {
		b, err := os.ReadFile("/proc/" + pid + "/stat")
		return err != nil || strings.Contains(string(b), ") Z ")
	})
	n.start()
	if st := n.end(id); st.ExitCode != 137 || st.Message == "" {
		t.Errorf("exit code %d, message %q", st.ExitCode, st.Message)
	}
}

// A server that dies after it has started a helper and before it has written that
// down leaves nothing that runs.
func TestHelperWithoutAWordStartsNothing(t *testing.T) {
	n := newNode(t)
	pod, pc := n.pod()
	id, err := n.create(pod, pc, config("touch /tmp/ran; sleep 1000"))
	if err != nil {
		t.Fatal(err)
	}
	helpers, err := filepath.Glob(filepath.Join(n.dir, "state/bin/proa-shim-*"))
	if err != nil || len(helpers) != 1 {
		t.Fatal(helpers, err)
	}
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "")
	cmd := exec.Command(helpers[0], "run", filepath.Join(n.dir, "state/containers", id, "spec"))
	cmd.ExtraFiles = []*os.File{theirs}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	b := make([]byte, 100)
	if m, err := syscall.Read(pair[0], b); err != nil || !strings.HasPrefix(string(b[:m]), "pid ") {
		t.Fatalf("%q %v", b[:m], err)
	}
	syscall.Close(pair[0])
	if err := cmd.Wait(); err == nil {
		t.Error("the helper is content")
	}
	n.stop()
	n.start()
	if st := n.status(id); st.State != created {
		t.Errorf("the container is %s", st.State)
	}
	if _, err := os.Stat(filepath.Join(n.dir, "root", id, "rootfs/tmp/ran")); err == nil {
		t.Error("the program ran")
	}
	if _, err := n.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
		t.Error("it cannot be started any more:", err)
	}
}

func TestManyAtOnce(t *testing.T) {
	n := newNode(t)
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			pod, pc := n.pod()
			var inner sync.WaitGroup
			for j := range 3 {
				inner.Go(func() {
					ctx := context.Background()
					id, err := n.create(pod, pc, config(fmt.Sprintf("echo %d; sleep 0.0%d", i, j)))
					if err != nil {
						t.Error(err)
						return
					}
					if _, err := n.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
						t.Error(err)
						return
					}
					if j == 0 {
						if out := n.end(id); out.ExitCode != 0 {
							t.Error(out)
						}
						if out := n.output(id); out != fmt.Sprintf("%d\n", i) {
							t.Errorf("output %q", out)
						}
					}
					if _, err := n.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
						t.Error(err)
					}
				})
			}
			inner.Wait()
			if _, err := n.RemovePodSandbox(context.Background(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, dir := range []string{"state/containers", "state/sandboxes", "root"} {
		if left, _ := os.ReadDir(filepath.Join(n.dir, dir)); len(left) > 0 {
			t.Errorf("%d are left in %s", len(left), dir)
		}
	}
}

func TestLists(t *testing.T) {
	n := newNode(t)
	pod, pc := n.pod()
	other, otherConfig := n.pod()
	id := n.begin(pod, pc, config("sleep 1000", func(c *conConfig) {
		c.Labels, c.Annotations = map[string]string{"app": "web"}, map[string]string{"note": "x"}
		c.Metadata.Attempt = 3
	}))
	done := n.begin(other, otherConfig, config("true"))
	n.end(done)
	for name, c := range map[string]struct {
		filter *runtimeapi.ContainerFilter
		want   int
	}{
		"all":       {nil, 2},
		"sandbox":   {&runtimeapi.ContainerFilter{PodSandboxId: pod}, 1},
		"id prefix": {&runtimeapi.ContainerFilter{Id: id[:12]}, 1},
		"state":     {&runtimeapi.ContainerFilter{State: &runtimeapi.ContainerStateValue{State: exited}}, 1},
		"label":     {&runtimeapi.ContainerFilter{LabelSelector: map[string]string{"app": "web"}}, 1},
		"no match":  {&runtimeapi.ContainerFilter{LabelSelector: map[string]string{"app": "db"}}, 0},
	} {
		resp, err := n.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{Filter: c.filter})
		if err != nil || len(resp.Containers) != c.want {
			t.Errorf("%s: %d containers, %v, want %d", name, len(resp.Containers), err, c.want)
		}
	}
	st := n.status(id[:12])
	if st.Id != id || st.Metadata.Attempt != 3 || st.State != running || st.StartedAt == 0 || st.FinishedAt != 0 || st.ImageRef == "" ||
		st.Image.Image != testImage || st.Labels["app"] != "web" || st.Annotations["note"] != "x" || st.LogPath == "" {
		t.Errorf("%+v", st)
	}
	pods, err := n.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{LabelSelector: pc.Labels}})
	if err != nil || len(pods.Items) != 1 || pods.Items[0].Id != pod {
		t.Errorf("%v %v", pods, err)
	}
	if _, err := n.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
		t.Fatal(err)
	}
	if st := n.status(id); st.State != exited {
		t.Errorf("a container of a stopped sandbox is %s", st.State)
	}
	pods, err = n.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{State: &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY}}})
	if err != nil || len(pods.Items) != 1 {
		t.Errorf("%v %v", pods, err)
	}
	if _, err := n.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: "none"}); status.Code(err) != codes.NotFound {
		t.Errorf("status of nothing: %v", err)
	}
	if _, err := n.create(pod, pc, config("true")); err == nil {
		t.Error("a container is made in a stopped sandbox")
	}
}
