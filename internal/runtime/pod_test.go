package runtime_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func namespaces(net, pid, ipc runtimeapi.NamespaceMode) func(*podConfig) {
	return func(p *podConfig) {
		p.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Network: net, Pid: pid, Ipc: ipc}
	}
}

func pids(mode runtimeapi.NamespaceMode, target string) func(*conConfig) {
	return func(c *conConfig) {
		c.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: mode, TargetId: target}
	}
}

const (
	onNode      = runtimeapi.NamespaceMode_NODE
	ofPod       = runtimeapi.NamespaceMode_POD
	ofContainer = runtimeapi.NamespaceMode_CONTAINER
	ofTarget    = runtimeapi.NamespaceMode_TARGET
)

func TestNamespacesOfTheNode(t *testing.T) {
	n := newNode(t)
	own := func(kind string) string {
		s, err := os.Readlink("/proc/self/ns/" + kind)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	const ask = "for k in net pid ipc uts mnt; do readlink /proc/self/ns/$k; done"
	pod, pc := n.pod(namespaces(onNode, onNode, onNode))
	out := n.scriptIn(pod, pc, ask, pids(onNode, ""))
	contains(t, out, own("net"), own("pid"), own("ipc"), own("uts"))
	if strings.Contains(out, own("mnt")) {
		t.Error("the mounts are the node's")
	}
	pod, pc = n.pod()
	out = n.scriptIn(pod, pc, ask+"; hostname; cat /etc/hostname")
	for _, kind := range []string{"net", "pid", "ipc", "uts", "mnt"} {
		if strings.Contains(out, own(kind)) {
			t.Errorf("namespace %s is the node's", kind)
		}
	}
	if !strings.HasSuffix(out, pc.Hostname+"\n"+pc.Hostname+"\n") {
		t.Errorf("hostname: %s", out)
	}
}

func TestSharedProcessNamespace(t *testing.T) {
	n := newNode(t)
	pod, pc := n.pod(namespaces(ofPod, ofPod, ofPod))
	a := n.begin(pod, pc, config("sleep 777", pids(ofPod, "")))
	b := n.begin(pod, pc, config("sleep 778", pids(ofPod, "")))
	out, _ := n.exec(a, "ps", "-o", "pid,args")
	if !strings.Contains(out, "sleep 777") || !strings.Contains(out, "sleep 778") {
		t.Errorf("the containers do not see each other:\n%s", out)
	}
	if strings.Contains(out, n.dir) {
		t.Errorf("the processes show the node's paths:\n%s", out)
	}
	if out, code := n.exec(a, "ls", "/proc/1/root/etc"); code == 0 {
		t.Errorf("the first process shows the node's files: %s", out)
	}
	// An orphan is buried by the first process, and what is left goes with its container.
	n.exec(a, "sh", "-c", "(sleep 0.01 &) ; (sleep 779 >/dev/null 2>&1 &)")
	time.Sleep(50 * time.Millisecond)
	if out, _ := n.exec(b, "ps", "-o", "stat,args"); strings.Contains(out, "Z ") || !strings.Contains(out, "sleep 779") {
		t.Errorf("processes:\n%s", out)
	}
	if _, err := n.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: a}); err != nil {
		t.Fatal(err)
	}
	if out, _ := n.exec(b, "ps", "-o", "args"); strings.Contains(out, "sleep 779") || !strings.Contains(out, "sleep 778") {
		t.Errorf("after the end of one container:\n%s", out)
	}
	n.stop()
	n.start()
	if out, _ := n.exec(b, "ps", "-o", "args"); !strings.Contains(out, "sleep 778") {
		t.Errorf("after a restart:\n%s", out)
	}
	n.begin(pod, pc, config("sleep 780", pids(ofPod, "")))
}

func TestTargetProcessNamespace(t *testing.T) {
	n := newNode(t)
	pod, pc := n.pod()
	app := n.begin(pod, pc, config("sleep 777"))
	out := n.scriptIn(pod, pc, "ps -o pid,args; cat /proc/1/root/data/hello", pids(ofTarget, app), capsAdded("SYS_PTRACE"))
	if !strings.Contains(out, "sleep 777") || !strings.Contains(out, "hello from the image") {
		t.Errorf("a debug container sees:\n%s", out)
	}
	if n.status(app).State != running {
		t.Error("the target ended with its visitor")
	}
	other, otherConfig := n.pod()
	if _, err := n.create(other, otherConfig, config("true", pids(ofTarget, app))); err == nil {
		t.Error("a container of another pod is taken as target")
	}
	if _, err := n.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: app}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.create(pod, pc, config("true", pids(ofTarget, app))); err == nil {
		t.Error("a target that has ended is taken")
	}
}

func TestSysctls(t *testing.T) {
	n := newNode(t)
	sysctls := func(kv ...string) func(*podConfig) {
		return func(p *podConfig) {
			p.Linux.Sysctls = map[string]string{}
			for i := 0; i < len(kv); i += 2 {
				p.Linux.Sysctls[kv[i]] = kv[i+1]
			}
		}
	}
	pod, pc := n.pod(sysctls("net.ipv4.ip_local_port_range", "2000\t3000", "kernel.shm_rmid_forced", "1", "net.ipv4.ip_unprivileged_port_start", "80"))
	out := n.scriptIn(pod, pc, "cat /proc/sys/net/ipv4/ip_local_port_range /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/ping_group_range")
	if out != "2000\t3000\n1\n80\n0\t2147483647\n" {
		t.Errorf("%q", out)
	}
	for _, name := range []string{"kernel.hostname", "vm.swappiness", "net/../vm/swappiness"} {
		cfg := &podConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "x", Namespace: "x", Uid: "x"}, Linux: &runtimeapi.LinuxPodSandboxConfig{Sysctls: map[string]string{name: "1"},
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Pid: ofContainer}}}}
		if _, err := n.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: cfg}); err == nil {
			t.Errorf("sysctl %s of the node is set", name)
		}
	}
}

func TestMounts(t *testing.T) {
	n := newNode(t)
	volume := filepath.Join(n.dir, "volume")
	for name, text := range map[string]string{"file": "from the node\n", "below/file": "", "inner/file": ""} {
		path := filepath.Join(volume, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount("inner", filepath.Join(volume, "inner"), "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(filepath.Join(volume, "inner"), unix.MNT_DETACH)
	mounts := func(list ...*runtimeapi.Mount) func(*conConfig) { return func(c *conConfig) { c.Mounts = list } }
	try := "touch %s 2>/dev/null && echo %s || echo no %s; "
	for _, c := range []struct {
		name, script, want string
		change             func(*conConfig)
	}{
		{"a volume is written to", "cat /v/file; echo more > /v/new; cat /v/new", "from the node\nmore\n", mounts(&runtimeapi.Mount{HostPath: volume, ContainerPath: "/v"})},
		{"a read-only one is not, but a mount below it is", fmt.Sprintf(try+try, "/v/x", "outer", "outer", "/v/inner/x", "inner", "inner"), "no outer\ninner\n",
			mounts(&runtimeapi.Mount{HostPath: volume, ContainerPath: "/v", Readonly: true})},
		{"recursively read-only", fmt.Sprintf(try+try, "/v/x", "outer", "outer", "/v/inner/y", "inner", "inner"), "no outer\nno inner\n",
			mounts(&runtimeapi.Mount{HostPath: volume, ContainerPath: "/v", Readonly: true, RecursiveReadOnly: true})},
		{"a file", "cat /etc/some/file", "from the node\n", mounts(&runtimeapi.Mount{HostPath: volume + "/file", ContainerPath: "/etc/some/file"})},
		{"a folder that is not there is made", "ls /v; touch /v/x && ls /v", "x\n", mounts(&runtimeapi.Mount{HostPath: n.dir + "/made/new", ContainerPath: "/v"})},
		{"a mount in a mount", "cat /v/below/deep/file", "from the node\n", mounts(&runtimeapi.Mount{HostPath: volume, ContainerPath: "/v"}, &runtimeapi.Mount{HostPath: volume, ContainerPath: "/v/below/deep"})},
		{"read-only root", fmt.Sprintf(try+try, "/x", "root", "root", "/v/z", "volume", "volume"), "no root\nvolume\n", func(c *conConfig) {
			mounts(&runtimeapi.Mount{HostPath: volume, ContainerPath: "/v"})(c)
			c.Linux.SecurityContext.ReadonlyRootfs = true
		}},
		{"an image", "cat /i/data/hello; touch /i/x 2>/dev/null || echo read-only; /i/bin/busybox true 2>/dev/null || echo not executed", "hello from the image\nread-only\nnot executed\n",
			mounts(&runtimeapi.Mount{ContainerPath: "/i", Readonly: true, Image: &runtimeapi.ImageSpec{Image: testImage}})},
		{"a path in an image", "cat /i/hello /f", "hello from the image\nhello from the image\n",
			mounts(&runtimeapi.Mount{ContainerPath: "/i", Readonly: true, Image: &runtimeapi.ImageSpec{Image: testImage}, ImageSubPath: "data"},
				&runtimeapi.Mount{ContainerPath: "/f", Readonly: true, Image: &runtimeapi.ImageSpec{Image: testImage}, ImageSubPath: "data/hello"})},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := n.script(c.script, c.change); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
	pod, pc := n.pod()
	for name, m := range map[string]*runtimeapi.Mount{
		"recursively read-only and shared":    {HostPath: volume, ContainerPath: "/v", Readonly: true, RecursiveReadOnly: true, Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
		"recursively read-only and writable":  {HostPath: volume, ContainerPath: "/v", RecursiveReadOnly: true},
		"a writable image":                    {ContainerPath: "/i", Image: &runtimeapi.ImageSpec{Image: testImage}},
		"a path that the image does not have": {ContainerPath: "/i", Readonly: true, Image: &runtimeapi.ImageSpec{Image: testImage}, ImageSubPath: "none"},
		"an image that is not here":           {ContainerPath: "/i", Readonly: true, Image: &runtimeapi.ImageSpec{Image: "proa.example/none:1"}},
	} {
		if _, err := n.create(pod, pc, config("true", mounts(m))); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

func TestMountPropagation(t *testing.T) {
	n := newNode(t)
	volume := filepath.Join(n.dir, "volume")
	if err := os.MkdirAll(filepath.Join(volume, "a"), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(volume, "b"), 0o777); err != nil {
		t.Fatal(err)
	}
	pod, pc := n.pod()
	with := func(p runtimeapi.MountPropagation) func(*conConfig) {
		return func(c *conConfig) {
			c.Mounts = []*runtimeapi.Mount{{HostPath: volume, ContainerPath: "/v", Propagation: p}}
			c.Linux.SecurityContext.Privileged = true
		}
	}
	if err := unix.Mount("volume", volume, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(volume, unix.MNT_DETACH)
	for _, kind := range []uintptr{unix.MS_PRIVATE, unix.MS_SHARED} {
		if err := unix.Mount("", volume, "", kind, ""); err != nil {
			t.Fatal(err)
		}
		if _, err := n.create(pod, pc, config("true", with(runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL))); (err == nil) != (kind == unix.MS_SHARED) {
			t.Errorf("kind %#x: %v", kind, err)
		}
	}
	os.Mkdir(filepath.Join(volume, "a"), 0o777)
	os.Mkdir(filepath.Join(volume, "b"), 0o777)
	private := n.begin(pod, pc, config("sleep 1000", with(runtimeapi.MountPropagation_PROPAGATION_PRIVATE)))
	slave := n.begin(pod, pc, config("sleep 1000", with(runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER)))
	shared := n.begin(pod, pc, config("sleep 1000", with(runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL)))
	if err := unix.Mount("a", filepath.Join(volume, "a"), "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(filepath.Join(volume, "a"), unix.MNT_DETACH)
	if out, code := n.exec(shared, "mount", "-t", "tmpfs", "b", "/v/b"); code != 0 {
		t.Fatal(out)
	}
	defer unix.Unmount(filepath.Join(volume, "b"), unix.MNT_DETACH)
	for _, c := range []struct {
		id   string
		a, b bool
	}{{private, false, false}, {slave, true, true}, {shared, true, true}} {
		out, _ := n.exec(c.id, "cat", "/proc/self/mountinfo")
		if strings.Contains(out, " /v/a ") != c.a || strings.Contains(out, " /v/b ") != c.b {
			t.Errorf("container %.4s sees\n%s", c.id, out)
		}
	}
	if b, _ := os.ReadFile("/proc/self/mountinfo"); !strings.Contains(string(b), volume+"/b ") {
		t.Error("the node does not see the container's mount")
	}
}

func TestSharedMemory(t *testing.T) {
	n := newNode(t)
	pod, pc := n.pod()
	a := n.begin(pod, pc, config("echo shared > /dev/shm/x; sleep 1000"))
	until(t, "the file is there", func() bool { _, code := n.exec(a, "cat", "/dev/shm/x"); return code == 0 })
	if out := n.scriptIn(pod, pc, "cat /dev/shm/x"); out != "shared\n" {
		t.Errorf("%q", out)
	}
	if out := n.script("ls /dev/shm"); out != "" {
		t.Errorf("another pod sees %q", out)
	}
}

func TestDevices(t *testing.T) {
	n := newNode(t)
	const ask = "cat /dev/kmsgx 2>&1 | head -c 20 >/dev/null; ls -l /dev/null /dev/x 2>&1; mknod /tmp/m c 1 1 && (dd if=/tmp/m bs=1 count=1 2>&1 | grep -o 'Operation not permitted'); echo to > /dev/null && echo null works; head -c 1 /dev/x >/dev/null && echo x works"
	out := n.script(ask)
	contains(t, out, "null works", "Operation not permitted")
	out = n.script(ask, func(c *conConfig) {
		c.Devices = []*runtimeapi.Device{{HostPath: "/dev/kmsg", ContainerPath: "/dev/x", Permissions: "r"}}
	})
	if !strings.Contains(out, "1,  11") {
		t.Errorf("the device is not there:\n%s", out)
	}
	out = n.script("ls /dev/kmsg && ls /dev/shm && mknod /tmp/m c 1 1 && dd if=/tmp/m of=/dev/null bs=1 count=1 2>/dev/null; touch /dev/made", func(c *conConfig) { c.Linux.SecurityContext.Privileged = true })
	contains(t, out, "/dev/kmsg")
	if _, err := os.Stat("/dev/made"); err == nil {
		t.Error("a privileged container wrote into the node's /dev")
	}
	pod, pc := n.pod()
	for _, d := range []*runtimeapi.Device{{HostPath: "/dev/none", ContainerPath: "/dev/x", Permissions: "r"}, {HostPath: "/dev/null", ContainerPath: "/dev/x", Permissions: "z"}, {HostPath: "/etc/passwd", ContainerPath: "/dev/x", Permissions: "r"}} {
		if _, err := n.create(pod, pc, config("true", func(c *conConfig) { c.Devices = []*runtimeapi.Device{d} })); err == nil {
			t.Errorf("device %v is taken", d)
		}
	}
}

func TestFreeing(t *testing.T) {
	n := newNode(t)
	pod, pc := n.pod(namespaces(ofPod, ofPod, ofPod))
	id := n.begin(pod, pc, config("sleep 1000", pids(ofPod, "")))
	image := func(c *conConfig) {
		c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/i", Readonly: true, Image: &runtimeapi.ImageSpec{Image: testImage}}}
	}
	n.begin(pod, pc, config("sleep 1000", pids(ofPod, ""), image))
	if len(n.mounts()) == 0 || len(n.groups()) == 0 {
		t.Fatal("there is nothing to free")
	}
	if _, err := n.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod}); err != nil {
		t.Fatal(err)
	}
	if left := append(n.mounts(), n.groups()...); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	for _, dir := range []string{"state/containers", "state/sandboxes", "root"} {
		if left, _ := os.ReadDir(filepath.Join(n.dir, dir)); len(left) > 0 {
			t.Errorf("%d are left in %s", len(left), dir)
		}
	}
	if out, _ := exec.Command("sh", "-c", "cat /proc/*/cmdline | tr '\\0' ' '").Output(); strings.Contains(string(out), id) {
		t.Error("a helper is left")
	}
}
