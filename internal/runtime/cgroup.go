package runtime

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/proa-dev/proa/internal/runtime/shim"
)

// cgroups makes and reads control groups by their files, of version 2 (one tree)
// or 1 (a tree for each controller).
type cgroups struct {
	root string // /sys/fs/cgroup
	v2   bool
	v1   []string // mounted controllers
}

// v1Controllers are those that containers are put into, as far as they are mounted.
var v1Controllers = []string{"cpu", "cpuacct", "cpuset", "memory", "pids", "freezer", "blkio", "devices", "hugetlb"}

func newCgroups(root string) *cgroups {
	c := &cgroups{root: root}
	if _, err := os.Stat(filepath.Join(root, "cgroup.controllers")); err == nil {
		c.v2 = true
		return c
	}
	for _, name := range v1Controllers {
		if _, err := os.Stat(filepath.Join(root, name, "cgroup.procs")); err == nil {
			c.v1 = append(c.v1, name)
		}
	}
	return c
}

// dirs are the folders of a group, one for each hierarchy.
func (c *cgroups) dirs(path string) map[string]string {
	if c.v2 {
		return map[string]string{"": filepath.Join(c.root, path)}
	}
	out := map[string]string{}
	for _, name := range c.v1 {
		out[name] = filepath.Join(c.root, name, path)
	}
	return out
}

// create makes a group and its parents.
func (c *cgroups) create(path string) error {
	if c.v2 {
		at := c.root
		for _, part := range strings.Split(strings.Trim(path, "/"), "/") {
			// A child has a controller only when its parent hands it down.
			for _, name := range []string{"cpu", "cpuset", "io", "memory", "hugetlb", "pids"} {
				_ = os.WriteFile(filepath.Join(at, "cgroup.subtree_control"), []byte("+"+name), 0)
			}
			at = filepath.Join(at, part)
			if err := os.Mkdir(at, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("make cgroup %s: %w", at, err)
			}
		}
		return nil
	}
	for name, dir := range c.dirs(path) {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make cgroup %s: %w", dir, err)
		}
		if name == "cpuset" {
			if err := inheritCpuset(filepath.Join(c.root, name), strings.Trim(path, "/")); err != nil {
				return err
			}
		}
	}
	return nil
}

// inheritCpuset gives a new group of version 1 its parent's processors and memory
// nodes, without which no process can join it.
func inheritCpuset(root, path string) error {
	at := root
	for _, part := range strings.Split(path, "/") {
		next := filepath.Join(at, part)
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			have, err := os.ReadFile(filepath.Join(next, file))
			if err != nil || len(strings.TrimSpace(string(have))) > 0 {
				continue
			}
			parent, err := os.ReadFile(filepath.Join(at, file))
			if err != nil {
				return fmt.Errorf("read %s of %s: %w", file, at, err)
			}
			if err := os.WriteFile(filepath.Join(next, file), parent, 0); err != nil {
				return fmt.Errorf("set %s of %s: %w", file, next, err)
			}
		}
		at = next
	}
	return nil
}

// joins are the files by which a process of one thread joins a group of version 1.
// The kernel stops all forks of the machine to move a whole process, and waits for
// a grace period before: not so for a thread that moves itself.
func (c *cgroups) joins(path string) (out []string) {
	if c.v2 {
		return nil
	}
	for _, dir := range c.dirs(path) {
		out = append(out, filepath.Join(dir, "tasks"))
	}
	return out
}

// put names a group to the helper.
func (c *cgroups) put(spec *shim.Spec, path string) {
	for _, p := range c.joins(path) {
		spec.Put("cgroup", p)
	}
	if c.v2 {
		spec.Put("cgroup-folder", filepath.Join(c.root, path)) // it forks into it
	}
}

// remove deletes a group, its processes being gone; those that are still on their
// way out are waited for a short while.
func (c *cgroups) remove(path string) error {
	var errs []error
	for _, dir := range c.dirs(path) {
		var err error
		for range 50 {
			err = os.Remove(dir)
			if err == nil || errors.Is(err, fs.ErrNotExist) {
				err = nil
				break
			}
			time.Sleep(2 * time.Millisecond)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("remove cgroup: %w", err))
		}
	}
	return errors.Join(errs...)
}

// set writes a limit; a controller that is not there is left out.
func set(dir, file, value string) error {
	err := os.WriteFile(filepath.Join(dir, file), []byte(value), 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("set %s to %s: %w", file, value, err)
	}
	return nil
}

// limit applies a container's resources.
func (c *cgroups) limit(path string, r *runtimeapi.LinuxContainerResources) error {
	if r == nil {
		return nil
	}
	dirs := c.dirs(path)
	n := func(v int64) string { return strconv.FormatInt(v, 10) }
	var errs []error
	do := func(controller, file, value string) { errs = append(errs, set(dirs[controller], file, value)) }
	if c.v2 {
		if r.CpuShares > 0 {
			// The kernel's range of shares, 2 to 262144, on that of weights, 1 to 10000.
			do("", "cpu.weight", n(1+(max(2, r.CpuShares)-2)*9999/262142))
		}
		if r.CpuPeriod > 0 {
			quota := "max"
			if r.CpuQuota > 0 {
				quota = n(r.CpuQuota)
			}
			do("", "cpu.max", quota+" "+n(r.CpuPeriod))
		}
		if r.MemoryLimitInBytes > 0 {
			do("", "memory.max", n(r.MemoryLimitInBytes))
			swap := "0"
			if r.MemorySwapLimitInBytes > r.MemoryLimitInBytes { // it counts memory and swap together
				swap = n(r.MemorySwapLimitInBytes - r.MemoryLimitInBytes)
			} else if r.MemorySwapLimitInBytes < 0 {
				swap = "max"
			}
			do("", "memory.swap.max", swap)
		}
		if r.CpusetCpus != "" {
			do("", "cpuset.cpus", r.CpusetCpus)
		}
		if r.CpusetMems != "" {
			do("", "cpuset.mems", r.CpusetMems)
		}
		for _, h := range r.HugepageLimits {
			do("", "hugetlb."+h.PageSize+".max", strconv.FormatUint(h.Limit, 10))
		}
		for file, value := range r.Unified {
			if strings.ContainsRune(file, '/') {
				errs = append(errs, fmt.Errorf("cgroup file %q: a name without / is wanted", file))
				continue
			}
			do("", file, value)
		}
		return errors.Join(errs...)
	}
	if r.CpuShares > 0 && dirs["cpu"] != "" {
		do("cpu", "cpu.shares", n(r.CpuShares))
	}
	if r.CpuPeriod > 0 && dirs["cpu"] != "" {
		do("cpu", "cpu.cfs_period_us", n(r.CpuPeriod))
		if r.CpuQuota != 0 {
			do("cpu", "cpu.cfs_quota_us", n(r.CpuQuota))
		}
	}
	if r.MemoryLimitInBytes > 0 && dirs["memory"] != "" {
		// Memory may not exceed memory with swap at any time: a larger limit is set from above.
		if swap := r.MemorySwapLimitInBytes; swap != 0 {
			do("memory", "memory.memsw.limit_in_bytes", "-1")
			do("memory", "memory.limit_in_bytes", n(r.MemoryLimitInBytes))
			do("memory", "memory.memsw.limit_in_bytes", n(swap))
		} else {
			do("memory", "memory.limit_in_bytes", n(r.MemoryLimitInBytes))
		}
	}
	if dirs["hugetlb"] != "" {
		for _, h := range r.HugepageLimits {
			do("hugetlb", "hugetlb."+h.PageSize+".limit_in_bytes", strconv.FormatUint(h.Limit, 10))
		}
	}
	if r.CpusetCpus != "" && dirs["cpuset"] != "" {
		do("cpuset", "cpuset.cpus", r.CpusetCpus)
	}
	if r.CpusetMems != "" && dirs["cpuset"] != "" {
		do("cpuset", "cpuset.mems", r.CpusetMems)
	}
	return errors.Join(errs...)
}

// usage is what a group's processes use.
type usage struct {
	cpuNanos             uint64
	memory, workingSet   uint64
	rss, faults, mfaults uint64
	pids                 uint64
}

func (c *cgroups) usage(path string) (u usage) {
	dirs := c.dirs(path)
	if c.v2 {
		d := dirs[""]
		u.cpuNanos = fields(d, "cpu.stat")["usage_usec"] * 1000
		u.memory = number(d, "memory.current")
		st := fields(d, "memory.stat")
		u.workingSet = u.memory - min(u.memory, st["inactive_file"])
		u.rss, u.faults, u.mfaults = st["anon"], st["pgfault"], st["pgmajfault"]
		u.pids = number(d, "pids.current")
		return u
	}
	u.cpuNanos = number(dirs["cpuacct"], "cpuacct.usage")
	u.memory = number(dirs["memory"], "memory.usage_in_bytes")
	st := fields(dirs["memory"], "memory.stat")
	u.workingSet = u.memory - min(u.memory, st["total_inactive_file"])
	u.rss, u.faults, u.mfaults = st["total_rss"], st["total_pgfault"], st["total_pgmajfault"]
	u.pids = number(dirs["pids"], "pids.current")
	return u
}

// oomKilled reports whether the kernel killed a process of the group for memory.
func (c *cgroups) oomKilled(path string) bool {
	dirs := c.dirs(path)
	if c.v2 {
		return fields(dirs[""], "memory.events")["oom_kill"] > 0
	}
	return fields(dirs["memory"], "memory.oom_control")["oom_kill"] > 0
}

func number(dir, file string) uint64 {
	b, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	return n
}

func fields(dir, file string) map[string]uint64 {
	out := map[string]uint64{}
	b, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return out
	}
	for line := range strings.Lines(string(b)) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok {
			continue
		}
		if n, err := strconv.ParseUint(value, 10, 64); err == nil {
			out[name] = n
		}
	}
	return out
}

// pidsOf lists the processes of a group.
func (c *cgroups) pidsOf(path string) (out []int) {
	for _, dir := range c.dirs(path) {
		b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil {
			continue
		}
		for _, f := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(f); err == nil {
				out = append(out, pid)
			}
		}
		break
	}
	return out
}

// kill ends the processes that are left in a group.
func (c *cgroups) kill(path string) {
	for range 20 {
		pids := c.pidsOf(path)
		if len(pids) == 0 {
			return
		}
		if c.v2 && os.WriteFile(filepath.Join(c.root, path, "cgroup.kill"), []byte("1"), 0) == nil {
			time.Sleep(time.Millisecond)
			continue
		}
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
