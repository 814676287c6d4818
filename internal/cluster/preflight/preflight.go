// Package preflight finds out what a machine lacks to run a node, before anything
// is changed on it, and says for each lack what to do about it. It does not
// change the machine, save that it has the kernel load modules that it ships.
package preflight

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Machine is what is looked at.
type Machine struct {
	Root fs.FS // of /
	EUID int
	// Load loads a kernel module.
	Load func(module string) error
	// Packets opens the kernel's packet filter.
	Packets func() error
}

// Host is this machine.
func Host(ctx context.Context) Machine {
	return Machine{Root: os.DirFS("/"), EUID: os.Geteuid(), Packets: packetFilter, Load: func(module string) error {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		return exec.CommandContext(ctx, "modprobe", module).Run()
	}}
}

// Check returns nil when a node can run here, or everything that is missing.
func (m Machine) Check() error {
	if m.EUID != 0 {
		return errors.New("proa runs containers and needs root: run it with sudo")
	}
	var errs []error
	for _, check := range []func() error{m.capabilities, m.overlay, m.namespaces, m.cgroups, m.packets} {
		if err := check(); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// capabilities: root of an ordinary container has few of them.
func (m Machine) capabilities() error {
	b, err := fs.ReadFile(m.Root, "proc/self/status")
	if err != nil {
		return fmt.Errorf("look at the process: %w", err)
	}
	value := ""
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "CapEff:"); ok {
			value = strings.TrimSpace(v)
		}
	}
	set, err := strconv.ParseUint(value, 16, 64)
	if err != nil {
		return fmt.Errorf("look at the capabilities of the process: %w", err)
	}
	var missing []string
	for _, c := range []struct {
		name string
		bit  int
	}{{"SYS_ADMIN", unix.CAP_SYS_ADMIN}, {"NET_ADMIN", unix.CAP_NET_ADMIN}, {"MKNOD", unix.CAP_MKNOD}} {
		if set&(1<<c.bit) == 0 {
			missing = append(missing, c.name)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("root has not the capabilities %s here: in a container, run it with --privileged", strings.Join(missing, ", "))
	}
	return nil
}

func (m Machine) overlay() error {
	has := func() bool {
		b, _ := fs.ReadFile(m.Root, "proc/filesystems")
		return bytes.Contains(b, []byte("\toverlay\n"))
	}
	if has() || m.Load("overlay") == nil && has() {
		return nil
	}
	return errors.New("the kernel has no overlayfs, which images are mounted with: load it with `modprobe overlay`, or use a kernel with CONFIG_OVERLAY_FS")
}

func (m Machine) namespaces() error {
	var missing []string
	for _, ns := range []string{"net", "pid", "mnt", "ipc", "uts"} {
		if _, err := fs.Stat(m.Root, "proc/self/ns/"+ns); err != nil {
			missing = append(missing, ns)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("the kernel has no namespaces of these kinds: %s: use one with CONFIG_NAMESPACES and all of its kinds", strings.Join(missing, ", "))
	}
	return nil
}

// controllers are those that pods' limits need.
var controllers = []string{"cpu", "memory", "pids"}

// cgroups looks at version 2, or else at version 1.
func (m Machine) cgroups() error {
	var have []string
	if b, err := fs.ReadFile(m.Root, "sys/fs/cgroup/cgroup.controllers"); err == nil {
		have = strings.Fields(string(b))
	} else {
		mounted := false
		for _, c := range controllers {
			if _, err := fs.Stat(m.Root, "sys/fs/cgroup/"+c); err == nil {
				mounted, have = true, append(have, c)
			}
		}
		if !mounted {
			return errors.New("no cgroups are mounted at /sys/fs/cgroup: mount them with `mount -t cgroup2 none /sys/fs/cgroup`")
		}
	}
	var missing []string
	for _, c := range controllers {
		if !slices.Contains(have, c) {
			missing = append(missing, c)
		}
	}
	switch {
	case len(missing) == 0:
		return nil
	case m.disabled(missing):
		return fmt.Errorf("these cgroup controllers are switched off: %s: add `cgroup_enable=%s` to the kernel's command line and start the machine again",
			strings.Join(missing, ", "), strings.Join(missing, " cgroup_enable="))
	}
	return fmt.Errorf("these cgroup controllers are missing at /sys/fs/cgroup: %s: in a container, run it with --privileged --cgroupns=host; otherwise use a kernel that has them", strings.Join(missing, ", "))
}

// disabled says whether the kernel has all of names, but switched off.
func (m Machine) disabled(names []string) bool {
	b, err := fs.ReadFile(m.Root, "proc/cgroups")
	if err != nil {
		return false
	}
	off := map[string]bool{}
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		if f := strings.Fields(s.Text()); len(f) == 4 {
			off[f[0]] = f[3] == "0"
		}
	}
	for _, n := range names {
		if !off[n] {
			return false
		}
	}
	return true
}

func (m Machine) packets() error {
	err := m.Packets()
	if err == nil {
		return nil
	}
	if m.Load("nf_tables") == nil && m.Packets() == nil {
		return nil
	}
	return fmt.Errorf("the kernel has no nftables, which Services are made of: load it with `modprobe nf_tables`, or use a kernel with CONFIG_NF_TABLES (%w)", err)
}
