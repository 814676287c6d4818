package runtime_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/proa-dev/proa/internal/runtime"
	"github.com/proa-dev/proa/internal/runtime/images"
)

// node is a runtime on folders of its own, reached over its socket as a kubelet does.
type node struct {
	t    testing.TB
	dir  string
	base string // cgroup of all its pods
	tree string // of cgroups; "": this machine's
	runtimeapi.RuntimeServiceClient
	image runtimeapi.ImageServiceClient
	stop  func()
}

const testImage = "proa.example/busybox:test"

var nodes atomic.Int32

func newNode(t testing.TB, tree ...string) *node {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("containers need root")
	}
	n := &node{t: t, dir: t.TempDir(), base: fmt.Sprintf("/proa-test-%d-%d", os.Getpid(), nodes.Add(1))}
	if len(tree) > 0 {
		n.tree = tree[0]
	}
	store, err := images.Open(filepath.Join(n.dir, "images"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Import(t.Context(), busyboxArchive(t, n.dir), nil); err != nil {
		t.Fatal(err)
	}
	n.start()
	t.Cleanup(n.clear)
	return n
}

// busyboxArchive packs an image of the machine's static busybox.
func busyboxArchive(t testing.TB, dir string) string {
	t.Helper()
	program, err := os.ReadFile("/usr/bin/busybox")
	if err != nil {
		t.Skip("no static busybox at /usr/bin/busybox: ", err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	put := func(h *tar.Header, body string) {
		h.Size = int64(len(body))
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(w, body)
	}
	for _, d := range []string{"bin", "etc", "tmp", "data"} {
		put(&tar.Header{Name: d + "/", Typeflag: tar.TypeDir, Mode: 0o755}, "")
	}
	put(&tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755}, string(program))
	for _, applet := range strings.Fields("sh cat echo sleep id ls mount unshare env dd kill ps grep nc touch mkdir stat wc head yes true false hostname ip chroot mknod ping pwd ulimit tail sync tty su printf seq date readlink chmod test stty") {
		put(&tar.Header{Name: "bin/" + applet, Linkname: "busybox", Typeflag: tar.TypeSymlink, Mode: 0o777}, "")
	}
	put(&tar.Header{Name: "etc/passwd", Typeflag: tar.TypeReg, Mode: 0o644}, "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1001:web:/home/web:/bin/sh\n")
	put(&tar.Header{Name: "etc/group", Typeflag: tar.TypeReg, Mode: 0o644}, "root:x:0:\nweb:x:1001:\nlogs:x:2002:web\ndisk:x:6:root,web\n")
	put(&tar.Header{Name: "data/hello", Typeflag: tar.TypeReg, Mode: 0o644}, "hello from the image\n")
	w.Close()
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		t.Fatal(err)
	}
	if img, err = mutate.Config(img, v1.Config{Entrypoint: []string{"/bin/sh", "-c"}, Cmd: []string{"echo default"}, Env: []string{"FROM=image", "PATH=/bin"}}); err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag(testImage)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "busybox.tar")
	if err := tarball.WriteToFile(path, tag, img); err != nil {
		t.Fatal(err)
	}
	return path
}

// start serves from the folders; what runs there since before is taken up.
func (n *node) start() {
	n.t.Helper()
	log := slog.New(slog.NewTextHandler(testWriter{n.t}, nil))
	store, err := images.Open(filepath.Join(n.dir, "images"), log)
	if err != nil {
		n.t.Fatal(err)
	}
	s, err := runtime.New(runtime.Config{State: filepath.Join(n.dir, "state"), Root: filepath.Join(n.dir, "root"), Images: store, Version: "test", Logger: log, CgroupRoot: n.tree})
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	socket := filepath.Join(n.dir, "cri.sock")
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, socket, nil) }()
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.WaitForReady(true), grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		n.t.Fatal(err)
	}
	n.RuntimeServiceClient, n.image = runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn)
	n.stop = func() {
		conn.Close()
		cancel()
		if err := <-served; err != nil {
			n.t.Error(err)
		}
		s.Close()
	}
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// clear removes every pod, and fails when something of them is left.
func (n *node) clear() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	list, err := n.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		n.t.Error(err)
	}
	for _, p := range list.GetItems() {
		if _, err := n.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.Id}); err != nil {
			n.t.Errorf("remove sandbox %s: %v", p.Id, err)
		}
	}
	n.stop()
	if left := n.mounts(); len(left) > 0 {
		n.t.Errorf("mounts are left: %q", left)
	}
	if left := n.groups(); len(left) > 0 {
		n.t.Errorf("cgroups are left: %q", left)
	}
	removeGroups(n.base)
}

// mounts are those of this machine below the node's folder.
func (n *node) mounts() (out []string) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		n.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); strings.HasPrefix(f[4], n.dir+"/") {
			out = append(out, f[4])
		}
	}
	return out
}

// groups are the cgroups of pods and containers that exist.
func (n *node) groups() (out []string) {
	found, _ := filepath.Glob("/sys/fs/cgroup/*" + n.base + "/*")
	more, _ := filepath.Glob("/sys/fs/cgroup" + n.base + "/*")
	for _, p := range append(found, more...) {
		if info, err := os.Stat(p); err == nil && info.IsDir() {
			out = append(out, p)
		}
	}
	return out
}

func removeGroups(base string) {
	found, _ := filepath.Glob("/sys/fs/cgroup/*" + base)
	for _, p := range append(found, "/sys/fs/cgroup"+base) {
		_ = os.Remove(p)
	}
}

type (
	podConfig = runtimeapi.PodSandboxConfig
	conConfig = runtimeapi.ContainerConfig
)

// pod runs a sandbox.
func (n *node) pod(change ...func(*podConfig)) (string, *podConfig) {
	n.t.Helper()
	id := nodes.Add(1)
	uid := fmt.Sprintf("uid-%d", id)
	cfg := &podConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: fmt.Sprintf("pod-%d", id), Namespace: "default", Uid: uid},
		Hostname: fmt.Sprintf("pod-%d", id), LogDirectory: filepath.Join(n.dir, "logs", uid), Labels: map[string]string{"pod": uid},
		Linux: &runtimeapi.LinuxPodSandboxConfig{CgroupParent: n.base + "/" + uid, SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}}},
	}
	for _, f := range change {
		f(cfg)
	}
	resp, err := n.RunPodSandbox(n.t.Context(), &runtimeapi.RunPodSandboxRequest{Config: cfg})
	if err != nil {
		n.t.Fatal(err)
	}
	return resp.PodSandboxId, cfg
}

// config describes a container that runs a shell script.
func config(script string, change ...func(*conConfig)) *conConfig {
	id := nodes.Add(1)
	cfg := &conConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: fmt.Sprintf("c%d", id)}, Image: &runtimeapi.ImageSpec{Image: testImage},
		Args: []string{script}, LogPath: fmt.Sprintf("c%d.log", id),
		Linux: &runtimeapi.LinuxContainerConfig{Resources: &runtimeapi.LinuxContainerResources{}, SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}}},
	}
	for _, f := range change {
		f(cfg)
	}
	return cfg
}

func (n *node) create(pod string, pc *podConfig, cfg *conConfig) (string, error) {
	resp, err := n.CreateContainer(n.t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: cfg, SandboxConfig: pc})
	return resp.GetContainerId(), err
}

// begin creates and starts a container.
func (n *node) begin(pod string, pc *podConfig, cfg *conConfig) string {
	n.t.Helper()
	id, err := n.create(pod, pc, cfg)
	if err != nil {
		n.t.Fatal(err)
	}
	if _, err := n.StartContainer(n.t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
		n.t.Fatal(err)
	}
	return id
}

func (n *node) status(id string) *runtimeapi.ContainerStatus {
	n.t.Helper()
	resp, err := n.ContainerStatus(n.t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		n.t.Fatal(err)
	}
	return resp.Status
}

// until waits for what is about to happen.
func until(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !done(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// end waits until a container has ended.
func (n *node) end(id string) *runtimeapi.ContainerStatus {
	n.t.Helper()
	until(n.t, "the container ends", func() bool { return n.status(id).State == runtimeapi.ContainerState_CONTAINER_EXITED })
	return n.status(id)
}

// output is what a container has written, without the log's marks.
func (n *node) output(id string) string {
	n.t.Helper()
	b, err := os.ReadFile(n.status(id).LogPath)
	if err != nil {
		n.t.Fatal(err)
	}
	var out strings.Builder
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(line, " ", 4)
		if len(f) != 4 {
			n.t.Fatalf("log line %q", line)
		}
		if f[2] == "P" {
			f[3] = strings.TrimSuffix(f[3], "\n")
		}
		out.WriteString(f[3])
	}
	return out.String()
}

// script runs a script to its end and returns what it wrote.
func (n *node) script(text string, change ...func(*conConfig)) string {
	n.t.Helper()
	pod, pc := n.pod()
	return n.scriptIn(pod, pc, text, change...)
}

func (n *node) scriptIn(pod string, pc *podConfig, text string, change ...func(*conConfig)) string {
	n.t.Helper()
	id := n.begin(pod, pc, config(text, change...))
	n.end(id)
	return n.output(id)
}

// exec runs a command in a container.
func (n *node) exec(id string, args ...string) (string, int32) {
	n.t.Helper()
	resp, err := n.ExecSync(n.t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: args, Timeout: 20})
	if err != nil {
		n.t.Fatal(err)
	}
	return string(resp.Stdout) + string(resp.Stderr), resp.ExitCode
}

func contains(t testing.TB, out string, wants ...string) {
	t.Helper()
	lines := strings.Split(out, "\n")
	for _, w := range wants {
		if !slices.Contains(lines, w) {
			t.Errorf("no line %q in:\n%s", w, out)
		}
	}
}

// dialHelper connects to a container's helper as the server does.
func dialHelper(t testing.TB, dir string) net.Conn {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	conn, err := net.Dial("unix", fmt.Sprintf("/proc/self/fd/%d/ctl.sock", f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	return conn
}
