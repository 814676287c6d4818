package server

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/proa-dev/proa/internal/kubelet/cri"
)

const metricsType = "text/plain; version=0.0.4; charset=utf-8"

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// cpuRates turns counters into nanocores, between two looks.
type cpuRates struct {
	mu   sync.Mutex
	last map[string]cpuSample
}

type cpuSample struct {
	at   time.Time
	used uint64
	rate uint64
}

func (c *cpuRates) rate(key string, used uint64, at time.Time) *uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	old, ok := c.last[key]
	if ok && at.Sub(old.at) < time.Second {
		if old.rate == 0 {
			return nil
		}
		return &old.rate
	}
	s := cpuSample{at: at, used: used}
	if ok && used >= old.used {
		s.rate = uint64(float64(used-old.used) / at.Sub(old.at).Seconds())
	}
	if len(c.last) > 4096 {
		clear(c.last)
	}
	c.last[key] = s
	if !ok {
		return nil
	}
	return &s.rate
}

// summary is the statistics of the node and its pods.
func (s *Server) summary(w http.ResponseWriter, r *http.Request) {
	out, err := s.collect(r.Context())
	if err != nil {
		http.Error(w, cri.ErrorText(err), http.StatusInternalServerError)
		return
	}
	if only, _ := strconv.ParseBool(r.URL.Query().Get("only_cpu_and_memory")); only {
		out.Node.Fs, out.Node.Network, out.Node.Runtime, out.Node.Rlimit = nil, nil, nil, nil
		for i := range out.Pods {
			p := &out.Pods[i]
			p.Network, p.EphemeralStorage, p.VolumeStats, p.ProcessStats = nil, nil, nil, nil
			for k := range p.Containers {
				p.Containers[k].Rootfs, p.Containers[k].Logs = nil, nil
			}
		}
	}
	s.json(w, out)
}

func (s *Server) collect(ctx context.Context) (*statsapi.Summary, error) {
	list, err := s.cfg.Runtime.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{})
	var byUID map[string]*runtimeapi.PodSandboxStats
	var containers map[string]*runtimeapi.ContainerStats
	if err == nil {
		byUID = make(map[string]*runtimeapi.PodSandboxStats, len(list.Stats))
		for _, st := range list.Stats {
			byUID[st.GetAttributes().GetMetadata().GetUid()] = st
		}
	} else {
		// A runtime without pod statistics still has those of containers.
		cl, cerr := s.cfg.Runtime.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
		if cerr != nil {
			return nil, cerr
		}
		containers = map[string]*runtimeapi.ContainerStats{}
		for _, st := range cl.Stats {
			containers[st.GetAttributes().GetId()] = st
		}
	}
	out := &statsapi.Summary{Node: s.nodeStats(), Pods: []statsapi.PodStats{}}
	for _, snap := range s.sorted() {
		if !snap.Running {
			continue
		}
		p := statsapi.PodStats{
			PodRef:     statsapi.PodReference{Name: snap.Pod.Name, Namespace: snap.Pod.Namespace, UID: string(snap.Pod.UID)},
			Containers: []statsapi.ContainerStats{},
		}
		if t := snap.Pod.Status.StartTime; t != nil {
			p.StartTime = *t
		}
		var found []*runtimeapi.ContainerStats
		if st := byUID[string(snap.Pod.UID)]; st != nil {
			l := st.GetLinux()
			p.CPU, p.Memory = s.cpuStats("pod/"+p.PodRef.UID, l.GetCpu()), memoryStats(l.GetMemory())
			p.Network = networkStats(l.GetNetwork())
			if n := l.GetProcess().GetProcessCount(); n != nil {
				p.ProcessStats = &statsapi.ProcessStats{ProcessCount: &n.Value}
			}
			found = l.GetContainers()
		} else {
			for _, infos := range snap.Containers {
				if len(infos) > 0 && containers[infos[0].ID] != nil {
					found = append(found, containers[infos[0].ID])
				}
			}
		}
		started := map[string]metav1.Time{}
		for i := range snap.Pod.Status.ContainerStatuses {
			if r := snap.Pod.Status.ContainerStatuses[i].State.Running; r != nil {
				started[snap.Pod.Status.ContainerStatuses[i].Name] = r.StartedAt
			}
		}
		for _, c := range found {
			p.Containers = append(p.Containers, s.containerStats(c, started))
		}
		slices.SortFunc(p.Containers, func(a, b statsapi.ContainerStats) int { return cmp.Compare(a.Name, b.Name) })
		if p.CPU == nil {
			sumContainers(&p)
		}
		out.Pods = append(out.Pods, p)
	}
	return out, nil
}

func (s *Server) containerStats(c *runtimeapi.ContainerStats, started map[string]metav1.Time) statsapi.ContainerStats {
	name := cmp.Or(c.GetAttributes().GetLabels()[cri.LabelContainerName], c.GetAttributes().GetMetadata().GetName())
	cs := statsapi.ContainerStats{Name: name, StartTime: started[name]}
	cs.CPU = s.cpuStats("container/"+c.GetAttributes().GetId(), c.Cpu)
	cs.Memory = memoryStats(c.Memory)
	if l := c.WritableLayer; l != nil {
		cs.Rootfs = &statsapi.FsStats{Time: at(l.Timestamp)}
		if l.UsedBytes != nil {
			cs.Rootfs.UsedBytes = &l.UsedBytes.Value
		}
		if l.InodesUsed != nil {
			cs.Rootfs.InodesUsed = &l.InodesUsed.Value
		}
	}
	if sw := c.Swap; sw != nil {
		cs.Swap = &statsapi.SwapStats{Time: at(sw.Timestamp), SwapAvailableBytes: value(sw.SwapAvailableBytes), SwapUsageBytes: value(sw.SwapUsageBytes)}
	}
	return cs
}

func sumContainers(p *statsapi.PodStats) {
	var cpu, rate, mem, rss, usage uint64
	var t metav1.Time
	for i := range p.Containers {
		if c := p.Containers[i].CPU; c != nil {
			t = c.Time
			cpu += deref(c.UsageCoreNanoSeconds)
			rate += deref(c.UsageNanoCores)
		}
		if m := p.Containers[i].Memory; m != nil {
			mem += deref(m.WorkingSetBytes)
			rss += deref(m.RSSBytes)
			usage += deref(m.UsageBytes)
		}
	}
	p.CPU = &statsapi.CPUStats{Time: t, UsageCoreNanoSeconds: &cpu, UsageNanoCores: &rate}
	p.Memory = &statsapi.MemoryStats{Time: t, WorkingSetBytes: &mem, RSSBytes: &rss, UsageBytes: &usage}
}

func deref(p *uint64) uint64 {
	if p == nil {
		return 0
	}
	return *p
}

func value(v *runtimeapi.UInt64Value) *uint64 {
	if v == nil {
		return nil
	}
	n := v.Value
	return &n
}

func at(ns int64) metav1.Time { return metav1.Time{Time: time.Unix(0, ns)} }

func (s *Server) cpuStats(key string, c *runtimeapi.CpuUsage) *statsapi.CPUStats {
	if c == nil {
		return nil
	}
	out := &statsapi.CPUStats{Time: at(c.Timestamp), UsageCoreNanoSeconds: value(c.UsageCoreNanoSeconds), UsageNanoCores: value(c.UsageNanoCores)}
	if out.UsageNanoCores == nil && out.UsageCoreNanoSeconds != nil {
		out.UsageNanoCores = s.cpu.rate(key, *out.UsageCoreNanoSeconds, out.Time.Time)
	}
	return out
}

func memoryStats(m *runtimeapi.MemoryUsage) *statsapi.MemoryStats {
	if m == nil {
		return nil
	}
	return &statsapi.MemoryStats{
		Time: at(m.Timestamp), AvailableBytes: value(m.AvailableBytes), UsageBytes: value(m.UsageBytes), WorkingSetBytes: value(m.WorkingSetBytes),
		RSSBytes: value(m.RssBytes), PageFaults: value(m.PageFaults), MajorPageFaults: value(m.MajorPageFaults),
	}
}

func networkStats(n *runtimeapi.NetworkUsage) *statsapi.NetworkStats {
	if n == nil {
		return nil
	}
	conv := func(i *runtimeapi.NetworkInterfaceUsage) statsapi.InterfaceStats {
		return statsapi.InterfaceStats{Name: i.GetName(), RxBytes: value(i.GetRxBytes()), RxErrors: value(i.GetRxErrors()), TxBytes: value(i.GetTxBytes()), TxErrors: value(i.GetTxErrors())}
	}
	out := &statsapi.NetworkStats{Time: at(n.Timestamp)}
	if n.DefaultInterface != nil {
		out.InterfaceStats = conv(n.DefaultInterface)
		out.Interfaces = append(out.Interfaces, out.InterfaceStats)
	}
	for _, i := range n.Interfaces {
		out.Interfaces = append(out.Interfaces, conv(i))
	}
	return out
}

// userHZ is the unit of /proc/stat, the same on all of Linux.
const userHZ = 100

func (s *Server) nodeStats() statsapi.NodeStats {
	now := metav1.Now()
	n := statsapi.NodeStats{NodeName: s.cfg.NodeName}
	if data, err := os.ReadFile("/proc/stat"); err == nil {
		for line := range strings.Lines(string(data)) {
			f := strings.Fields(line)
			if len(f) > 8 && f[0] == "cpu" {
				var used uint64
				for _, i := range []int{1, 2, 3, 6, 7, 8} {
					v, _ := strconv.ParseUint(f[i], 10, 64)
					used += v
				}
				used *= uint64(time.Second) / userHZ
				n.CPU = &statsapi.CPUStats{Time: now, UsageCoreNanoSeconds: &used, UsageNanoCores: s.cpu.rate("node", used, now.Time)}
			}
			if len(f) == 2 && f[0] == "btime" {
				v, _ := strconv.ParseInt(f[1], 10, 64)
				n.StartTime = metav1.Unix(v, 0)
			}
		}
	}
	if data, err := os.ReadFile("/proc/meminfo"); err == nil {
		m := map[string]uint64{}
		for line := range strings.Lines(string(data)) {
			if f := strings.Fields(line); len(f) >= 2 {
				v, _ := strconv.ParseUint(f[1], 10, 64)
				m[strings.TrimSuffix(f[0], ":")] = v << 10
			}
		}
		usage, avail := m["MemTotal"]-m["MemFree"], m["MemAvailable"]
		ws, rss := m["MemTotal"]-avail, m["AnonPages"]
		n.Memory = &statsapi.MemoryStats{Time: now, AvailableBytes: &avail, UsageBytes: &usage, WorkingSetBytes: &ws, RSSBytes: &rss}
	}
	n.Fs = fsStats(s.cfg.RootDir, now)
	n.Runtime = &statsapi.RuntimeStats{ImageFs: fsStats(s.cfg.RootDir, now), ContainerFs: fsStats(s.cfg.RootDir, now)}
	if data, err := os.ReadFile("/proc/loadavg"); err == nil {
		if f := strings.Fields(string(data)); len(f) > 3 {
			_, total, _ := strings.Cut(f[3], "/")
			cur, _ := strconv.ParseInt(total, 10, 64)
			limit := int64(0)
			if b, err := os.ReadFile("/proc/sys/kernel/pid_max"); err == nil {
				limit, _ = strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
			}
			n.Rlimit = &statsapi.RlimitStats{Time: now, MaxPID: &limit, NumOfRunningProcesses: &cur}
		}
	}
	return n
}

func fsStats(path string, now metav1.Time) *statsapi.FsStats {
	var st unix.Statfs_t
	if unix.Statfs(path, &st) != nil {
		return nil
	}
	b := uint64(st.Bsize)
	avail, capacity, used, inodes, free := st.Bavail*b, st.Blocks*b, (st.Blocks-st.Bfree)*b, st.Files, st.Ffree
	usedInodes := inodes - free
	return &statsapi.FsStats{Time: now, AvailableBytes: &avail, CapacityBytes: &capacity, UsedBytes: &used, Inodes: &inodes, InodesFree: &free, InodesUsed: &usedInodes}
}

// metrics is what the node says of itself.
func (s *Server) metrics(w http.ResponseWriter, _ *http.Request) {
	pods, byState := 0, map[string]int{}
	for _, p := range s.cfg.Pods() {
		if p.Running {
			pods++
		}
		for _, l := range p.Containers {
			for _, c := range l {
				byState[strings.ToLower(strings.TrimPrefix(c.State.String(), "CONTAINER_"))]++
			}
		}
	}
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	var b bytes.Buffer
	gauge := func(name, help, labels string, v any) { metric(&b, name, help, "gauge", labels, v) }
	gauge("kubernetes_build_info", "A metric with a constant '1' value labeled by version.", fmt.Sprintf("git_version=%q,go_version=%q", s.cfg.Version, runtime.Version()), 1)
	gauge("kubelet_node_name", "The node's name. The count is always 1.", fmt.Sprintf("node=%q", s.cfg.NodeName), 1)
	gauge("kubelet_running_pods", "Number of pods that have a running pod sandbox", "", pods)
	for i, st := range sortedKeys(byState) {
		help := ""
		if i == 0 {
			help = "Number of containers currently running"
		}
		gauge("kubelet_running_containers", help, fmt.Sprintf("container_state=%q", st), byState[st])
	}
	gauge("go_goroutines", "Number of goroutines that currently exist.", "", runtime.NumGoroutine())
	gauge("go_memstats_heap_alloc_bytes", "Number of heap bytes allocated and currently in use.", "", mem.HeapAlloc)
	w.Header().Set("Content-Type", metricsType)
	_, _ = w.Write(b.Bytes())
}

func metric(b *bytes.Buffer, name, help, kind, labels string, v any) {
	if help != "" {
		fmt.Fprintf(b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
	}
	if labels != "" {
		labels = "{" + labels + "}"
	}
	fmt.Fprintf(b, "%s%s %v\n", name, labels, v)
}

// resourceMetrics is what the metrics API reads.
func (s *Server) resourceMetrics(w http.ResponseWriter, r *http.Request) {
	sum, err := s.collect(r.Context())
	var b bytes.Buffer
	failed := 0
	if err != nil {
		failed, sum = 1, &statsapi.Summary{}
	}
	type sample struct {
		labels string
		value  float64
		at     time.Time
	}
	family := func(name, help, kind string, samples []sample) {
		if len(samples) == 0 {
			return
		}
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
		for _, x := range samples {
			l := x.labels
			if l != "" {
				l = "{" + l + "}"
			}
			fmt.Fprintf(&b, "%s%s %s %d\n", name, l, strconv.FormatFloat(x.value, 'g', -1, 64), x.at.UnixMilli())
		}
	}
	var ccpu, cmem, cstart, pcpu, pmem, ncpu, nmem []sample
	cpu := func(c *statsapi.CPUStats) (float64, time.Time, bool) {
		if c == nil || c.UsageCoreNanoSeconds == nil {
			return 0, time.Time{}, false
		}
		return float64(*c.UsageCoreNanoSeconds) / 1e9, c.Time.Time, true
	}
	mem := func(m *statsapi.MemoryStats) (float64, time.Time, bool) {
		if m == nil || m.WorkingSetBytes == nil {
			return 0, time.Time{}, false
		}
		return float64(*m.WorkingSetBytes), m.Time.Time, true
	}
	add := func(to *[]sample, labels string, v float64, t time.Time, ok bool) {
		if ok {
			*to = append(*to, sample{labels, v, t})
		}
	}
	for i := range sum.Pods {
		p := &sum.Pods[i]
		labels := fmt.Sprintf("namespace=%q,pod=%q", p.PodRef.Namespace, p.PodRef.Name)
		v, t, ok := cpu(p.CPU)
		add(&pcpu, labels, v, t, ok)
		v, t, ok = mem(p.Memory)
		add(&pmem, labels, v, t, ok)
		for k := range p.Containers {
			c := &p.Containers[k]
			l := fmt.Sprintf("container=%q,", c.Name) + labels
			v, t, ok = cpu(c.CPU)
			add(&ccpu, l, v, t, ok)
			v, t, ok = mem(c.Memory)
			add(&cmem, l, v, t, ok)
			add(&cstart, l, float64(c.StartTime.Unix()), time.Now(), !c.StartTime.IsZero())
		}
	}
	v, t, ok := cpu(sum.Node.CPU)
	add(&ncpu, "", v, t, ok)
	v, t, ok = mem(sum.Node.Memory)
	add(&nmem, "", v, t, ok)
	family("container_cpu_usage_seconds_total", "Cumulative cpu time consumed by the container in core-seconds", "counter", ccpu)
	family("container_memory_working_set_bytes", "Current working set of the container in bytes", "gauge", cmem)
	family("container_start_time_seconds", "Start time of the container since unix epoch in seconds", "gauge", cstart)
	family("node_cpu_usage_seconds_total", "Cumulative cpu time consumed by the node in core-seconds", "counter", ncpu)
	family("node_memory_working_set_bytes", "Current working set of the node in bytes", "gauge", nmem)
	family("pod_cpu_usage_seconds_total", "Cumulative cpu time consumed by the pod in core-seconds", "counter", pcpu)
	family("pod_memory_working_set_bytes", "Current working set of the pod in bytes", "gauge", pmem)
	metric(&b, "resource_scrape_error", "1 if there was an error while getting container metrics, 0 otherwise", "gauge", "", failed)
	w.Header().Set("Content-Type", metricsType)
	_, _ = w.Write(b.Bytes())
}

// cadvisorMetrics gives the container metrics that dashboards know by cAdvisor's names.
func (s *Server) cadvisorMetrics(w http.ResponseWriter, r *http.Request) {
	sum, err := s.collect(r.Context())
	if err != nil {
		http.Error(w, cri.ErrorText(err), http.StatusInternalServerError)
		return
	}
	var cpu, ws, rss, rx, tx bytes.Buffer
	for i := range sum.Pods {
		p := &sum.Pods[i]
		pod := fmt.Sprintf("namespace=%q,pod=%q", p.PodRef.Namespace, p.PodRef.Name)
		if n := p.Network; n != nil {
			fmt.Fprintf(&rx, "container_network_receive_bytes_total{container=\"\",interface=%q,%s} %d\n", n.Name, pod, deref(n.RxBytes))
			fmt.Fprintf(&tx, "container_network_transmit_bytes_total{container=\"\",interface=%q,%s} %d\n", n.Name, pod, deref(n.TxBytes))
		}
		for k := range p.Containers {
			c := &p.Containers[k]
			l := fmt.Sprintf("{container=%q,%s}", c.Name, pod)
			if c.CPU != nil {
				fmt.Fprintf(&cpu, "container_cpu_usage_seconds_total%s %g\n", l, float64(deref(c.CPU.UsageCoreNanoSeconds))/1e9)
			}
			if c.Memory != nil {
				fmt.Fprintf(&ws, "container_memory_working_set_bytes%s %d\n", l, deref(c.Memory.WorkingSetBytes))
				fmt.Fprintf(&rss, "container_memory_rss%s %d\n", l, deref(c.Memory.RSSBytes))
			}
		}
	}
	w.Header().Set("Content-Type", metricsType)
	for _, f := range []struct {
		name, help, kind string
		b                *bytes.Buffer
	}{
		{"container_cpu_usage_seconds_total", "Cumulative cpu time consumed in seconds.", "counter", &cpu},
		{"container_memory_working_set_bytes", "Current working set in bytes.", "gauge", &ws},
		{"container_memory_rss", "Size of RSS in bytes.", "gauge", &rss},
		{"container_network_receive_bytes_total", "Cumulative count of bytes received", "counter", &rx},
		{"container_network_transmit_bytes_total", "Cumulative count of bytes transmitted", "counter", &tx},
	} {
		fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n", f.name, f.help, f.name, f.kind)
		_, _ = w.Write(f.b.Bytes())
	}
}
