package runtime

import (
	"bufio"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func u64(v uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: v} }

// diskAge is how old the size of a writable layer may be: counting it reads every folder.
const diskAge = 10 * time.Second

// disk remembers the size of a writable layer.
type disk struct {
	mu            sync.Mutex
	at            time.Time
	bytes, inodes uint64
}

func (d *disk) usage(dir string) (bytes, inodes uint64, at time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if time.Since(d.at) < diskAge {
		return d.bytes, d.inodes, d.at
	}
	d.bytes, d.inodes = 0, 0
	seen := map[uint64]bool{} // hard links count once
	_ = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil // it is being written to: what has just gone does not count
		}
		var st unix.Stat_t
		if unix.Lstat(path, &st) != nil {
			return nil
		}
		if st.Nlink > 1 && !e.IsDir() {
			if seen[st.Ino] {
				return nil
			}
			seen[st.Ino] = true
		}
		d.bytes += uint64(st.Blocks) * 512
		d.inodes++
		return nil
	})
	d.at = time.Now()
	return d.bytes, d.inodes, d.at
}

// rate works out cores in use from two readings.
type rate struct {
	mu    sync.Mutex
	at    time.Time
	nanos uint64
	cores uint64
}

// update takes a reading and returns the billionths of cores in use since one that
// is at least a second older; nil when there is none.
func (r *rate) update(nanos uint64, now time.Time) *runtimeapi.UInt64Value {
	r.mu.Lock()
	defer r.mu.Unlock()
	first := r.at.IsZero()
	if passed := now.Sub(r.at); first || passed >= time.Second {
		if !first && nanos >= r.nanos {
			r.cores = uint64(float64(nanos-r.nanos) / passed.Seconds())
		}
		r.at, r.nanos = now, nanos
	}
	if first {
		return nil
	}
	return u64(r.cores)
}

func (s *Server) statsOf(c *container) *runtimeapi.ContainerStats {
	u, now := s.cgroups.usage(c.Cgroup), time.Now()
	data := filepath.Join(s.cfg.Root, c.ID, "upper")
	bytes, inodes, at := c.disk.usage(data)
	c.mu.Lock()
	defer c.mu.Unlock()
	return &runtimeapi.ContainerStats{
		Attributes: &runtimeapi.ContainerAttributes{Id: c.ID, Metadata: c.Config.Metadata, Labels: c.Config.Labels, Annotations: c.Config.Annotations},
		Cpu:        &runtimeapi.CpuUsage{Timestamp: now.UnixNano(), UsageCoreNanoSeconds: u64(u.cpuNanos), UsageNanoCores: c.rate.update(u.cpuNanos, now)},
		Memory: &runtimeapi.MemoryUsage{Timestamp: now.UnixNano(), WorkingSetBytes: u64(u.workingSet), AvailableBytes: available(c, u.workingSet), UsageBytes: u64(u.memory),
			RssBytes: u64(u.rss), PageFaults: u64(u.faults), MajorPageFaults: u64(u.mfaults)},
		WritableLayer: &runtimeapi.FilesystemUsage{Timestamp: at.UnixNano(), FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: s.cfg.Root}, UsedBytes: u64(bytes), InodesUsed: u64(inodes)},
	}
}

// available is what a container may use beyond its working set; nil without a limit.
func available(c *container, used uint64) *runtimeapi.UInt64Value {
	limit := c.Config.GetLinux().GetResources().GetMemoryLimitInBytes()
	if limit <= 0 {
		return nil
	}
	return u64(uint64(limit) - min(used, uint64(limit)))
}

// ContainerStats returns what one container uses.
func (s *Server) ContainerStats(_ context.Context, req *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	c, err := s.container(req.ContainerId)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ContainerStatsResponse{Stats: s.statsOf(c)}, nil
}

// isRunning reports whether a container runs.
func (c *container) isRunning() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state() == runtimeapi.ContainerState_CONTAINER_RUNNING
}

// ListContainerStats returns what the running containers use.
func (s *Server) ListContainerStats(_ context.Context, req *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	f := req.GetFilter()
	s.mu.Lock()
	list := make([]*container, 0, len(s.containers))
	for _, c := range s.containers {
		list = append(list, c)
	}
	s.mu.Unlock()
	out := &runtimeapi.ListContainerStatsResponse{}
	for _, c := range list {
		if strings.HasPrefix(c.ID, f.GetId()) && strings.HasPrefix(c.Sandbox, f.GetPodSandboxId()) && matches(f.GetLabelSelector(), c.Config.Labels) && c.isRunning() {
			out.Stats = append(out.Stats, s.statsOf(c))
		}
	}
	return out, nil
}

// podStats is what a sandbox and its running containers use.
func (s *Server) podStats(sb *sandbox) *runtimeapi.PodSandboxStats {
	now := time.Now()
	l := &runtimeapi.LinuxPodSandboxStats{}
	var pid int
	var sum usage
	for _, c := range s.of(sb.ID) {
		if !c.isRunning() {
			continue
		}
		l.Containers = append(l.Containers, s.statsOf(c))
		u := s.cgroups.usage(c.Cgroup)
		sum.cpuNanos, sum.memory, sum.workingSet, sum.rss = sum.cpuNanos+u.cpuNanos, sum.memory+u.memory, sum.workingSet+u.workingSet, sum.rss+u.rss
		sum.faults, sum.mfaults, sum.pids = sum.faults+u.faults, sum.mfaults+u.mfaults, sum.pids+u.pids
		c.mu.Lock()
		pid = c.Pid
		c.mu.Unlock()
	}
	// The pod's own group, where it has one, counts what has ended too.
	if parent := sb.Config.GetLinux().GetCgroupParent(); parent != "" {
		if u := s.cgroups.usage(parent); u.memory > 0 {
			u.pids = max(u.pids, sum.pids) // version 1 counts those of the group's children elsewhere
			sum = u
		}
	}
	l.Cpu = &runtimeapi.CpuUsage{Timestamp: now.UnixNano(), UsageCoreNanoSeconds: u64(sum.cpuNanos), UsageNanoCores: sb.rate.update(sum.cpuNanos, now)}
	l.Memory = &runtimeapi.MemoryUsage{Timestamp: now.UnixNano(), WorkingSetBytes: u64(sum.workingSet), UsageBytes: u64(sum.memory), RssBytes: u64(sum.rss),
		PageFaults: u64(sum.faults), MajorPageFaults: u64(sum.mfaults)}
	l.Process = &runtimeapi.ProcessUsage{Timestamp: now.UnixNano(), ProcessCount: u64(sum.pids)}
	if pid > 0 {
		l.Network = interfaces(fmt.Sprintf("/proc/%d/net/dev", pid), now)
	}
	return &runtimeapi.PodSandboxStats{Linux: l,
		Attributes: &runtimeapi.PodSandboxAttributes{Id: sb.ID, Metadata: sb.Config.Metadata, Labels: sb.Config.Labels, Annotations: sb.Config.Annotations}}
}

// interfaces reads a network namespace's counters (proc_net(5)); nil when it is gone.
func interfaces(path string, now time.Time) *runtimeapi.NetworkUsage {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	out := &runtimeapi.NetworkUsage{Timestamp: now.UnixNano()}
	scan := bufio.NewScanner(f)
	for scan.Scan() {
		name, counters, ok := strings.Cut(scan.Text(), ":")
		v := strings.Fields(counters)
		if name = strings.TrimSpace(name); !ok || len(v) < 11 || name == "lo" {
			continue
		}
		n := func(i int) *runtimeapi.UInt64Value {
			x, _ := strconv.ParseUint(v[i], 10, 64)
			return u64(x)
		}
		i := &runtimeapi.NetworkInterfaceUsage{Name: name, RxBytes: n(0), RxErrors: n(2), TxBytes: n(8), TxErrors: n(10)}
		if name == "eth0" {
			out.DefaultInterface = i
		} else {
			out.Interfaces = append(out.Interfaces, i)
		}
	}
	return out
}

// PodSandboxStats returns what one sandbox uses.
func (s *Server) PodSandboxStats(_ context.Context, req *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error) {
	sb, err := s.sandbox(req.PodSandboxId)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PodSandboxStatsResponse{Stats: s.podStats(sb)}, nil
}

// ListPodSandboxStats returns what the sandboxes use that are ready.
func (s *Server) ListPodSandboxStats(_ context.Context, req *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	f := req.GetFilter()
	s.mu.Lock()
	list := make([]*sandbox, 0, len(s.sandboxes))
	for _, sb := range s.sandboxes {
		list = append(list, sb)
	}
	s.mu.Unlock()
	out := &runtimeapi.ListPodSandboxStatsResponse{}
	for _, sb := range list {
		sb.mu.Lock()
		ready := !sb.Stopped
		sb.mu.Unlock()
		if ready && strings.HasPrefix(sb.ID, f.GetId()) && matches(f.GetLabelSelector(), sb.Config.Labels) {
			out.Stats = append(out.Stats, s.podStats(sb))
		}
	}
	return out, nil
}
