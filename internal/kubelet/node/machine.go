package node

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// Thresholds of pressure: what Kubernetes evicts at by default.
const (
	memoryThreshold   = 100 << 20
	diskThreshold     = 10 // percent left
	inodeThreshold    = 5
	pidThreshold      = 5
	imageDiskPressure = 15
)

// Machine is where facts about the machine come from.
type Machine struct {
	// Root is the directory whose file system holds pods' data.
	Root string
	// ImageRoot is the one that holds images (empty: Root).
	ImageRoot string
	// CPUs and Memory, when set, replace what the machine says (nodes in containers).
	CPUs, Memory int64
}

// Facts do not change while the machine runs.
type Facts struct {
	CPUs, Memory, Disk int64
	HugePages          map[string]int64
	Info               corev1.NodeSystemInfo
}

// Facts reads them.
func (m Machine) Facts() (Facts, error) {
	f := Facts{CPUs: int64(runtime.NumCPU()), HugePages: map[string]int64{}}
	mem, err := meminfo()
	if err != nil {
		return f, err
	}
	f.Memory = mem["MemTotal"]
	if m.CPUs > 0 {
		f.CPUs = m.CPUs
	}
	if m.Memory > 0 {
		f.Memory = m.Memory
	}
	if m.Root != "" {
		if err := os.MkdirAll(m.Root, 0o750); err != nil {
			return f, err
		}
		var st unix.Statfs_t
		if err := unix.Statfs(m.Root, &st); err != nil {
			return f, fmt.Errorf("statfs %s: %w", m.Root, err)
		}
		f.Disk = int64(st.Blocks) * st.Bsize
	}
	pages, _ := filepath.Glob("/sys/kernel/mm/hugepages/hugepages-*kB")
	for _, p := range pages {
		kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimPrefix(filepath.Base(p), "hugepages-"), "kB"), 10, 64)
		if err != nil {
			continue
		}
		count, err := strconv.ParseInt(readString(filepath.Join(p, "nr_hugepages")), 10, 64)
		if err != nil {
			continue
		}
		size := strconv.FormatInt(kb/1024, 10) + "Mi"
		if kb >= 1<<20 {
			size = strconv.FormatInt(kb>>20, 10) + "Gi"
		} else if kb < 1024 {
			size = strconv.FormatInt(kb, 10) + "Ki"
		}
		f.HugePages[size] = count * kb * 1024
	}
	var un unix.Utsname
	if unix.Uname(&un) == nil {
		f.Info.KernelVersion = unix.ByteSliceToString(un.Release[:])
	}
	f.Info.MachineID = readString("/etc/machine-id")
	if f.Info.MachineID == "" {
		f.Info.MachineID = readString("/var/lib/dbus/machine-id")
	}
	f.Info.SystemUUID = strings.ToLower(readString("/sys/class/dmi/id/product_uuid"))
	if f.Info.SystemUUID == "" {
		f.Info.SystemUUID = f.Info.MachineID
	}
	f.Info.BootID = readString("/proc/sys/kernel/random/boot_id")
	f.Info.OSImage = osImage()
	// Of a machine without swap nothing is said: the API takes only what is greater than zero.
	if total := mem["SwapTotal"]; total > 0 {
		f.Info.Swap = &corev1.NodeSwapStatus{Capacity: &total}
	}
	return f, nil
}

func readString(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func osImage() string {
	for _, p := range []string{"/etc/os-release", "/usr/lib/os-release"} {
		f, err := os.Open(p)
		if err != nil {
			continue
		}
		defer f.Close()
		for sc := bufio.NewScanner(f); sc.Scan(); {
			if v, ok := strings.CutPrefix(sc.Text(), "PRETTY_NAME="); ok {
				return strings.Trim(v, `"'`)
			}
		}
	}
	return "Linux"
}

// meminfo returns bytes by name.
func meminfo() (map[string]int64, error) {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return nil, err
	}
	out := map[string]int64{}
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		n, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil {
			continue
		}
		if len(f) > 2 {
			n *= 1024
		}
		out[strings.TrimSuffix(f[0], ":")] = n
	}
	return out, nil
}

// pressure looks at memory, disk and process ids.
func (n *Node) pressure() Pressure {
	var p Pressure
	if mem, err := meminfo(); err == nil && n.cfg.Machine.Memory == 0 {
		if a, ok := mem["MemAvailable"]; ok && a < memoryThreshold {
			p.Memory, p.Available = true, a
		}
	}
	low := func(path string, percent uint64) bool {
		var st unix.Statfs_t
		if path == "" || unix.Statfs(path, &st) != nil || st.Blocks == 0 {
			return false
		}
		return st.Bavail*100 < st.Blocks*percent || st.Files > 0 && st.Ffree*100 < st.Files*inodeThreshold
	}
	m := n.cfg.Machine
	p.Disk = low(m.Root, diskThreshold) || m.ImageRoot != "" && low(m.ImageRoot, imageDiskPressure)
	if f := strings.Fields(readString("/proc/loadavg")); len(f) > 3 {
		_, total, _ := strings.Cut(f[3], "/")
		used, err1 := strconv.ParseInt(total, 10, 64)
		limit, err2 := strconv.ParseInt(readString("/proc/sys/kernel/pid_max"), 10, 64)
		p.PID = err1 == nil && err2 == nil && (limit-used)*100 < limit*pidThreshold
	}
	return p
}
