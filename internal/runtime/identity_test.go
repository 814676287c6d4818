package runtime_test

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func secure(change func(*runtimeapi.LinuxContainerSecurityContext)) func(*conConfig) {
	return func(c *conConfig) { change(c.Linux.SecurityContext) }
}

func number(v int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: v} }

func TestUsers(t *testing.T) {
	n := newNode(t)
	type sc = runtimeapi.LinuxContainerSecurityContext
	const strict = runtimeapi.SupplementalGroupsPolicy_Strict
	for _, c := range []struct {
		name   string
		change func(*sc)
		want   string
	}{
		{"root of the image", func(*sc) {}, "0 0 0 6 /root"},
		{"by number, found in /etc/passwd", func(s *sc) { s.RunAsUser = number(1000) }, "1000 1001 1001 2002 6 /home/web"},
		{"by name", func(s *sc) { s.RunAsUsername = "web" }, "1000 1001 1001 2002 6 /home/web"},
		{"a number that no one has", func(s *sc) { s.RunAsUser = number(4242) }, "4242 0 0 /"},
		{"with a group", func(s *sc) { s.RunAsUser, s.RunAsGroup = number(4242), number(7) }, "4242 7 7 /"},
		{"with fsGroup and other groups", func(s *sc) { s.RunAsUser, s.SupplementalGroups = number(1000), []int64{3000, 3001} }, "1000 1001 1001 2002 6 3000 3001 /home/web"},
		{"without the image's groups", func(s *sc) {
			s.RunAsUser, s.SupplementalGroups, s.SupplementalGroupsPolicy = number(1000), []int64{3000}, strict
		}, "1000 1001 1001 3000 /home/web"},
	} {
		out := n.script("echo $(id -u) $(id -g) $(grep ^Groups: /proc/self/status | cut -f2) $HOME", secure(c.change))
		got, want := strings.Fields(out), strings.Fields(c.want)
		if len(got) != len(want) || !sameSet(got, want) || got[0] != want[0] || got[1] != want[1] {
			t.Errorf("%s: %q, want %q", c.name, got, want)
		}
	}
	pod, pc := n.pod()
	if _, err := n.create(pod, pc, config("true", secure(func(s *sc) { s.RunAsUsername = "none" }))); err == nil || !strings.Contains(err.Error(), "unable to find user none") {
		t.Errorf("a user that no one knows: %v", err)
	}
	if _, err := n.create(pod, pc, config("true", secure(func(s *sc) { s.RunAsGroup = number(7) }))); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a group without a user: %v", err)
	}
	id := n.begin(pod, pc, config("sleep 1000", secure(func(s *sc) { s.RunAsUser, s.SupplementalGroups = number(1000), []int64{3000} })))
	if out, _ := n.exec(id, "id"); !strings.Contains(out, "uid=1000(web) gid=1001(web)") || !strings.Contains(out, "3000") {
		t.Errorf("a command runs as %s", out)
	}
	if u := n.status(id).User.GetLinux(); u.GetUid() != 1000 || u.GetGid() != 1001 || len(u.GetSupplementalGroups()) != 4 {
		t.Errorf("status says %v", u)
	}
}

func sameSet(a, b []string) bool {
	count := map[string]int{}
	for i := range a {
		count[a[i]]++
		count[b[i]]--
	}
	for _, n := range count {
		if n != 0 {
			return false
		}
	}
	return true
}

func TestPrivileges(t *testing.T) {
	n := newNode(t)
	type sc = runtimeapi.LinuxContainerSecurityContext
	const ask = "grep -E '^(Cap(Inh|Prm|Eff|Bnd|Amb)|NoNewPrivs)' /proc/self/status | tr -d '\\n\\t'"
	const standard = "00000000a80425fb"
	for _, c := range []struct {
		name   string
		change func(*sc)
		want   string
	}{
		{"the default set", func(*sc) {}, "CapInh:0000000000000000CapPrm:" + standard + "CapEff:" + standard + "CapBnd:" + standard + "CapAmb:0000000000000000NoNewPrivs:0"},
		{"nothing", func(s *sc) { s.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}} }, "CapInh:0000000000000000CapPrm:0000000000000000CapEff:0000000000000000CapBnd:0000000000000000CapAmb:0000000000000000NoNewPrivs:0"},
		{"one of them", func(s *sc) {
			s.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"NET_BIND_SERVICE"}}
		}, "CapInh:0000000000000000CapPrm:0000000000000400CapEff:0000000000000400CapBnd:0000000000000400CapAmb:0000000000000000NoNewPrivs:0"},
		{"a user without privileges", func(s *sc) { s.RunAsUser, s.NoNewPrivs = number(1000), true }, "CapInh:0000000000000000CapPrm:0000000000000000CapEff:0000000000000000CapBnd:" + standard + "CapAmb:0000000000000000NoNewPrivs:1"},
	} {
		if got := n.script(ask, secure(c.change)); got != c.want {
			t.Errorf("%s:\n%s\nwant\n%s", c.name, got, c.want)
		}
	}
	masked := secure(func(s *sc) {
		s.MaskedPaths, s.ReadonlyPaths = []string{"/proc/kcore", "/proc/scsi", "/proc/none"}, []string{"/proc/sys"}
	})
	out := n.script("wc -c < /proc/kcore; ls /proc/scsi | wc -l; echo 1 > /proc/sys/kernel/shm_rmid_forced || echo read-only", masked)
	contains(t, out, "0", "read-only")
	out = n.script("echo 1 > /proc/sys/kernel/shm_rmid_forced && echo writable; head -c 1 /proc/cmdline > /dev/null && echo seen")
	contains(t, out, "writable", "seen")
}

func TestLimits(t *testing.T) {
	n := newNode(t)
	pod, pc := n.pod()
	id := n.begin(pod, pc, config("sleep 1000", func(c *conConfig) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuShares: 512, CpuPeriod: 100000, CpuQuota: 50000, MemoryLimitInBytes: 64 << 20, CpusetCpus: "0", OomScoreAdj: 900}
	}))
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		out, _ := n.exec(id, "sh", "-c", "cd /sys/fs/cgroup; cat cpu.weight cpu.max memory.max cpuset.cpus /proc/1/oom_score_adj")
		if out != "20\n50000 100000\n67108864\n0\n900\n" {
			t.Errorf("%q", out)
		}
		return
	}
	ask := "cd /sys/fs/cgroup; cat cpu/cpu.shares cpu/cpu.cfs_quota_us memory/memory.limit_in_bytes cpuset/cpuset.cpus /proc/1/oom_score_adj"
	if out, _ := n.exec(id, "sh", "-c", ask); out != "512\n50000\n67108864\n0\n900\n" {
		t.Errorf("%q", out)
	}
	if out, code := n.exec(id, "sh", "-c", "echo 99999999 > /sys/fs/cgroup/memory/memory.limit_in_bytes; touch /sys/fs/cgroup/x"); code == 0 {
		t.Errorf("the container changes its limits: %s", out)
	}
	update := &runtimeapi.LinuxContainerResources{CpuQuota: 70000, CpuPeriod: 100000, MemoryLimitInBytes: 96 << 20}
	if _, err := n.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id, Linux: update}); err != nil {
		t.Fatal(err)
	}
	if out, _ := n.exec(id, "sh", "-c", ask); out != "512\n70000\n100663296\n0\n900\n" {
		t.Errorf("after an update: %q", out)
	}
	if r := n.status(id).Resources.GetLinux(); r.GetCpuShares() != 512 || r.GetCpuQuota() != 70000 || r.GetMemoryLimitInBytes() != 96<<20 || r.GetCpusetCpus() != "0" {
		t.Errorf("status says %v", r)
	}
}

func TestStats(t *testing.T) {
	n := newNode(t)
	pod, pc := n.pod()
	id := n.begin(pod, pc, config("dd if=/dev/zero of=/big bs=1M count=3 2>/dev/null; i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done; echo done; sleep 1000"))
	until(t, "it has worked", func() bool { return strings.Contains(n.output(id), "done") })
	resp, err := n.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: id})
	if err != nil {
		t.Fatal(err)
	}
	s := resp.Stats
	if s.Cpu.UsageCoreNanoSeconds.GetValue() == 0 || s.Memory.UsageBytes.GetValue() == 0 || s.WritableLayer.GetUsedBytes().GetValue() < 3<<20 || s.WritableLayer.GetInodesUsed().GetValue() == 0 {
		t.Errorf("%v", s)
	}
	list, err := n.ListContainerStats(t.Context(), &runtimeapi.ListContainerStatsRequest{Filter: &runtimeapi.ContainerStatsFilter{PodSandboxId: pod}})
	if err != nil || len(list.Stats) != 1 {
		t.Errorf("%v %v", list, err)
	}
	ps, err := n.PodSandboxStats(t.Context(), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: pod})
	if err != nil {
		t.Fatal(err)
	}
	l := ps.Stats.Linux
	if len(l.Containers) != 1 || l.Process.GetProcessCount().GetValue() < 1 || l.Cpu.UsageCoreNanoSeconds.GetValue() == 0 || l.Network == nil {
		t.Errorf("%v", l)
	}
	metrics, err := n.ListPodSandboxMetrics(t.Context(), &runtimeapi.ListPodSandboxMetricsRequest{})
	if err != nil || len(metrics.PodMetrics) != 1 || len(metrics.PodMetrics[0].ContainerMetrics) != 1 {
		t.Fatalf("%v %v", metrics, err)
	}
	described, err := n.ListMetricDescriptors(t.Context(), &runtimeapi.ListMetricDescriptorsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string]int{}
	for _, d := range described.Descriptors {
		keys[d.Name] = len(d.LabelKeys)
	}
	for _, m := range append(metrics.PodMetrics[0].Metrics, metrics.PodMetrics[0].ContainerMetrics[0].Metrics...) {
		if keys[m.Name] == 0 || keys[m.Name] != len(m.LabelValues) || m.Value == nil {
			t.Errorf("metric %v has %d labels by its description", m, keys[m.Name])
		}
	}
	pieces, err := n.StreamContainers(t.Context(), &runtimeapi.StreamContainersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := pieces.Recv(); err != nil || len(m.Containers) != 1 || m.Containers[0].Id != id {
		t.Errorf("%v %v", m, err)
	}
	if _, err := pieces.Recv(); err != io.EOF {
		t.Errorf("after the last piece: %v", err)
	}
	if _, err := n.UpdatePodSandboxResources(t.Context(), &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: pod, Resources: &runtimeapi.LinuxContainerResources{CpuShares: 700}}); err != nil {
		t.Error(err)
	}
	if _, err := n.CheckpointContainer(t.Context(), &runtimeapi.CheckpointContainerRequest{ContainerId: id}); status.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), "not supported") {
		t.Errorf("a checkpoint: %v", err)
	}
	all, err := n.ListPodSandboxStats(t.Context(), &runtimeapi.ListPodSandboxStatsRequest{})
	if err != nil || len(all.Stats) != 1 {
		t.Errorf("%v %v", all, err)
	}
}

// A hung client of attach, and input that no one reads, hold up neither the end of a
// container nor its log.
func TestHelperIsNotHeldUp(t *testing.T) {
	n := newNode(t)
	pod, pc := n.pod()
	id := n.begin(pod, pc, config("echo begun; sleep 1000", func(c *conConfig) { c.Stdin = true }))
	conn := dialHelper(t, filepath.Join(n.dir, "state/containers", id))
	defer conn.Close()
	if _, err := conn.Write([]byte("attach-stdin\n" + strings.Repeat("x", 1<<16))); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { _, _ = conn.Write(make([]byte, 1<<20)); close(done) }()
	if out, _ := n.exec(id, "echo", "alive"); out != "alive\n" {
		t.Errorf("%q", out)
	}
	if _, err := n.ReopenContainerLog(t.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: id}); err != nil {
		t.Error("the helper does not answer:", err)
	}
	if _, err := n.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id}); err != nil {
		t.Error(err)
	}
	<-done

	id = n.begin(pod, pc, config("while true; do echo $(seq 1000); done"))
	slow := dialHelper(t, filepath.Join(n.dir, "state/containers", id))
	defer slow.Close()
	if _, err := slow.Write([]byte("attach\n")); err != nil {
		t.Fatal(err)
	}
	until(t, "it writes", func() bool { return len(n.output(id)) > 1<<16 })
	if _, err := n.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 1}); err != nil {
		t.Error(err)
	}
}
