package preflight

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"testing/fstest"
)

// good is a machine on which a node can run.
func good() (Machine, fstest.MapFS) {
	root := fstest.MapFS{
		"proc/self/status":                 {Data: []byte("Name:\tproa\nCapEff:\t000001ffffffffff\n")},
		"proc/filesystems":                 {Data: []byte("nodev\tsysfs\nnodev\toverlay\n")},
		"sys/fs/cgroup/cgroup.controllers": {Data: []byte("cpuset cpu io memory pids\n")},
	}
	for _, ns := range []string{"net", "pid", "mnt", "ipc", "uts"} {
		root["proc/self/ns/"+ns] = &fstest.MapFile{}
	}
	return Machine{Root: root, Load: func(string) error { return errors.New("no such module") }, Packets: func() error { return nil }}, root
}

func TestCheckSaysWhatIsMissingAndWhatToDo(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(*Machine, fstest.MapFS)
		want  []string // none: the machine is good
	}{
		"a good machine":   {func(*Machine, fstest.MapFS) {}, nil},
		"no root":          {func(m *Machine, _ fstest.MapFS) { m.EUID = 1000 }, []string{"needs root", "sudo"}},
		"a poor container": {func(_ *Machine, r fstest.MapFS) { r["proc/self/status"].Data = []byte("CapEff:\t00000000a80425fb\n") }, []string{"SYS_ADMIN, NET_ADMIN", "--privileged"}},
		"no overlayfs":     {func(_ *Machine, r fstest.MapFS) { r["proc/filesystems"].Data = nil }, []string{"overlayfs", "modprobe overlay"}},
		"overlayfs as a module": {func(m *Machine, r fstest.MapFS) {
			r["proc/filesystems"].Data = nil
			m.Load = func(string) error { r["proc/filesystems"].Data = []byte("nodev\toverlay\n"); return nil }
		}, nil},
		"no namespaces": {func(_ *Machine, r fstest.MapFS) { delete(r, "proc/self/ns/pid") }, []string{"pid", "CONFIG_NAMESPACES"}},
		"no cgroups":    {func(_ *Machine, r fstest.MapFS) { delete(r, "sys/fs/cgroup/cgroup.controllers") }, []string{"mount -t cgroup2"}},
		"version 1 of cgroups": {func(_ *Machine, r fstest.MapFS) {
			delete(r, "sys/fs/cgroup/cgroup.controllers")
			for _, c := range controllers {
				r["sys/fs/cgroup/"+c+"/tasks"] = &fstest.MapFile{}
			}
		}, nil},
		"memory switched off": {func(_ *Machine, r fstest.MapFS) {
			r["sys/fs/cgroup/cgroup.controllers"].Data = []byte("cpu pids\n")
			r["proc/cgroups"] = &fstest.MapFile{Data: []byte("#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t0\t1\t1\nmemory\t0\t1\t0\n")}
		}, []string{"memory", "cgroup_enable=memory"}},
		"pids not in the kernel": {func(_ *Machine, r fstest.MapFS) { r["sys/fs/cgroup/cgroup.controllers"].Data = []byte("cpu memory\n") }, []string{"missing", "pids"}},
		"no nftables":            {func(m *Machine, _ fstest.MapFS) { m.Packets = func() error { return errors.New("refused") } }, []string{"nftables", "modprobe nf_tables", "refused"}},
		"several at once": {func(_ *Machine, r fstest.MapFS) {
			r["proc/filesystems"].Data = nil
			delete(r, "proc/self/ns/net")
		}, []string{"overlayfs", "net"}},
	} {
		t.Run(name, func(t *testing.T) {
			m, root := good()
			c.spoil(&m, root)
			err := m.Check()
			if (err == nil) != (c.want == nil) {
				t.Fatalf("Check = %v", err)
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q is not in: %v", want, err)
				}
			}
		})
	}
}

func TestAPortInUseIsNamedWithItsUser(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	err = Host(context.Background()).Ports(Port{Part: "kubelet", Address: l.Addr().String()}, Port{Part: "store", Address: "127.0.0.1:0"})
	if err == nil {
		t.Fatal("a port in use was taken to be free")
	}
	for _, want := range []string{l.Addr().String(), "kubelet", fmt.Sprintf("process %d", os.Getpid())} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
	if strings.Contains(err.Error(), "store") {
		t.Errorf("a free port is complained about: %v", err)
	}
}
