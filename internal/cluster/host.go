package cluster

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/proa-dev/proa/internal/cluster/instance"
	"github.com/proa-dev/proa/internal/cluster/machines"
	"github.com/proa-dev/proa/internal/network/kubeproxy"
	"github.com/proa-dev/proa/internal/network/podnet"
	"github.com/proa-dev/proa/internal/network/routes"
)

// hostIP is the address that this machine is reached at: the first global IPv4
// address of an interface that is up, or loopback.
func hostIP() (string, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return "", fmt.Errorf("look at the network interfaces: %w", err)
	}
	for _, i := range interfaces {
		if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 || i.Name == podnet.Bridge || strings.HasPrefix(i.Name, "proa") {
			continue
		}
		addresses, err := i.Addrs()
		if err != nil {
			continue
		}
		for _, a := range addresses {
			if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && n.IP.IsGlobalUnicast() {
				return n.IP.String(), nil
			}
		}
	}
	return "127.0.0.1", nil
}

// Reset stops every container of a data folder and removes all of it: processes,
// mounts, cgroups, network and files. No proa may run on it.
func Reset(data string) error {
	if info, err := os.Stat(data); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil || !info.IsDir() {
		return fmt.Errorf("%s is no data folder", data)
	}
	if !ours(data) {
		return fmt.Errorf("%s is no data folder of proa: nothing was removed", data)
	}
	release, err := instance.Acquire(data, instance.Info{})
	if err != nil {
		return err
	}
	defer release()
	var errs []error
	// The other nodes' processes end before what they stand on.
	errs = append(errs, stopNodes(data))
	for _, folder := range machines.Folders(data) {
		errs = append(errs, killContainers(folder))
	}
	errs = append(errs, killContainers(data), unmountBelow(data))
	for _, folder := range Folders(data) {
		errs = append(errs, removeCgroups(cgroupRoot(folder)))
	}
	errs = append(errs, machines.Remove(), kubeproxy.Remove(), routes.Remove(), podnet.Remove(networkDir(data)))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("reset %s: %w", data, err)
	}
	return errors.Join(forgetKubeconfigs(data), os.RemoveAll(data))
}

// ours says whether a folder has something that only proa writes: another's folder
// is never removed.
func ours(data string) bool {
	for _, path := range []string{filepath.Join(pkiDir(data), "ca.crt"), filepath.Join(imageDir(data), "index.json"), filepath.Join(data, "proa.pid")} {
		if _, err := os.Stat(path); err == nil {
			return true
		}
	}
	return false
}

// killContainers ends the container helpers, and with them their containers.
func killContainers(data string) error {
	prefix := filepath.Join(runtimeDir(data), "bin") + "/"
	for range 100 {
		left := 0
		entries, err := os.ReadDir("/proc")
		if err != nil {
			return err
		}
		for _, e := range entries {
			var pid int
			if _, err := fmt.Sscan(e.Name(), &pid); err != nil {
				continue
			}
			exe, err := os.Readlink(filepath.Join("/proc", e.Name(), "exe"))
			if err == nil && strings.HasPrefix(exe, prefix) {
				left++
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
		if left == 0 {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return errors.New("containers do not end")
}

func unmountBelow(data string) error {
	for range 10 {
		b, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			return err
		}
		n := 0
		lines := strings.Split(strings.TrimSpace(string(b)), "\n")
		for i := len(lines) - 1; i >= 0; i-- {
			f := strings.Fields(lines[i])
			if len(f) > 4 && strings.HasPrefix(f[4], data+"/") {
				n++
				if err := unix.Unmount(strings.ReplaceAll(f[4], `\040`, " "), unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
					return fmt.Errorf("unmount %s: %w", f[4], err)
				}
			}
		}
		if n == 0 {
			return nil
		}
	}
	return nil
}

// DefaultDataDir is the data folder of a machine's own cluster.
const DefaultDataDir = "/var/lib/proa"

// cgroupRoot is the cgroup above those of a data folder's pods. The machine's own
// cluster has them where every tool looks (/kubepods); others have a tree each.
func cgroupRoot(data string) string {
	if data == DefaultDataDir {
		return ""
	}
	sum := sha256.Sum256([]byte(data))
	return "/proa-" + hex.EncodeToString(sum[:4])
}

// removeCgroups removes the trees of empty groups below root in every hierarchy.
func removeCgroups(root string) error {
	var trees []string
	for _, hierarchy := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		if root != "" {
			found, _ := filepath.Glob(hierarchy + root)
			trees = append(trees, found...)
			continue
		}
		for _, name := range []string{"/kubepods", "/proa"} {
			found, _ := filepath.Glob(hierarchy + name)
			trees = append(trees, found...)
		}
	}
	for _, tree := range trees {
		for range 50 {
			var dirs []string
			_ = filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					dirs = append(dirs, path)
				}
				return nil
			})
			for i := len(dirs) - 1; i >= 0; i-- {
				_ = os.Remove(dirs[i])
			}
			if _, err := os.Stat(tree); errors.Is(err, fs.ErrNotExist) {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		if _, err := os.Stat(tree); err == nil {
			return fmt.Errorf("cgroup %s has processes in it", tree)
		}
	}
	return nil
}
