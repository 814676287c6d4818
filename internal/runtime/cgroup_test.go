package runtime

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func fake(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func read(t *testing.T, path ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

var resources = &runtimeapi.LinuxContainerResources{CpuShares: 512, CpuPeriod: 100000, CpuQuota: 50000, MemoryLimitInBytes: 64 << 20}

func TestCgroupVersion2(t *testing.T) {
	root := fake(t, map[string]string{"cgroup.controllers": "cpu memory pids", "cgroup.subtree_control": "",
		"kubepods/cgroup.subtree_control": "", "kubepods/pod1/memory.current": "1000\n", "kubepods/pod1/memory.stat": "anon 300\ninactive_file 400\n",
		"kubepods/pod1/cpu.stat": "usage_usec 7\n", "kubepods/pod1/memory.events": "oom 1\noom_kill 1\n", "kubepods/pod1/cgroup.procs": "41\n42\n"})
	c := newCgroups(root)
	if !c.v2 {
		t.Fatal("version 2 is not recognised")
	}
	if err := c.create("/kubepods/pod1"); err != nil {
		t.Fatal(err)
	}
	if err := c.limit("/kubepods/pod1", resources); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(root, "kubepods/pod1")
	for file, want := range map[string]string{"cpu.weight": "20", "cpu.max": "50000 100000", "memory.max": "67108864", "memory.swap.max": "0"} {
		if got := read(t, dir, file); got != want {
			t.Errorf("%s is %q, want %q", file, got, want)
		}
	}
	u := c.usage("/kubepods/pod1")
	if u.cpuNanos != 7000 || u.memory != 1000 || u.workingSet != 600 || u.rss != 300 {
		t.Errorf("usage %+v", u)
	}
	if !c.oomKilled("/kubepods/pod1") {
		t.Error("an out-of-memory kill is not seen")
	}
	if pids := c.pidsOf("/kubepods/pod1"); len(pids) != 2 || pids[1] != 42 {
		t.Errorf("processes %v", pids)
	}
	bad := &runtimeapi.LinuxContainerResources{Unified: map[string]string{"../cgroup.procs": "1"}}
	if err := c.limit("/kubepods/pod1", bad); err == nil {
		t.Error("a file outside the group is written")
	}
}

func TestCgroupVersion1(t *testing.T) {
	files := map[string]string{"cpuset/cpuset.cpus": "0-1\n", "cpuset/cpuset.mems": "0\n"}
	for _, name := range []string{"cpu", "cpuset", "memory"} {
		files[name+"/cgroup.procs"] = ""
	}
	// The kernel makes the files of a group with it.
	for _, dir := range []string{"kubepods", "kubepods/pod1"} {
		files["cpuset/"+dir+"/cpuset.cpus"], files["cpuset/"+dir+"/cpuset.mems"] = "\n", "\n"
	}
	root := fake(t, files)
	c := newCgroups(root)
	if c.v2 || len(c.v1) != 3 {
		t.Fatalf("version 2: %v, controllers %v", c.v2, c.v1)
	}
	if err := c.create("/kubepods/pod1"); err != nil {
		t.Fatal(err)
	}
	if got := read(t, root, "cpuset/kubepods/pod1/cpuset.cpus"); got != "0-1" {
		t.Errorf("cpuset.cpus is %q: no process could join", got)
	}
	if err := c.limit("/kubepods/pod1", resources); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{"cpu/kubepods/pod1/cpu.shares": "512", "cpu/kubepods/pod1/cpu.cfs_quota_us": "50000", "memory/kubepods/pod1/memory.limit_in_bytes": "67108864"} {
		if got := read(t, root, file); got != want {
			t.Errorf("%s is %q, want %q", file, got, want)
		}
	}
	if got := len(c.joins("/kubepods/pod1")); got != 3 {
		t.Errorf("%d files to join by, want one for each controller", got)
	}
}

func TestCapabilities(t *testing.T) {
	own, err := ownCaps()
	if err != nil {
		t.Fatal(err)
	}
	net, _ := capBit("CAP_NET_ADMIN")
	chown, _ := capBit("chown")
	set, err := capabilities(&runtimeapi.LinuxContainerSecurityContext{Capabilities: &runtimeapi.Capability{AddCapabilities: []string{"NET_ADMIN"}, DropCapabilities: []string{"ALL"}}})
	if err != nil || set != net&own {
		t.Errorf("drop all, add one: %x, %v", set, err)
	}
	set, err = capabilities(&runtimeapi.LinuxContainerSecurityContext{Capabilities: &runtimeapi.Capability{DropCapabilities: []string{"CHOWN"}}})
	if err != nil || set&chown != 0 || set == 0 && own != 0 {
		t.Errorf("drop one: %x, %v", set, err)
	}
	if _, err := capabilities(&runtimeapi.LinuxContainerSecurityContext{Capabilities: &runtimeapi.Capability{AddCapabilities: []string{"NO_SUCH"}}}); err == nil {
		t.Error("an unknown capability is accepted")
	}
}
