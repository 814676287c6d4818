package runtime

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// On machines with version 1 the tree of version 2 is often there as well, without controllers.
func TestDevicesOfVersion2(t *testing.T) {
	root := "/sys/fs/cgroup"
	if _, err := os.Stat(filepath.Join(root, "cgroup.controllers")); err != nil {
		root = "/sys/fs/cgroup/unified"
	}
	c := newCgroups(root)
	if os.Getuid() != 0 || !c.v2 {
		t.Skip("needs root and a cgroup tree of version 2")
	}
	const group = "/proa-test-devices"
	if err := c.create(group); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.remove(group); err != nil {
			t.Error(err)
		}
	}()
	err := c.allow(group, append(standardDevices[:len(standardDevices):len(standardDevices)], deviceRule{'c', 1, 11, "r"}))
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPERM) {
		t.Skip("the kernel has no such programs: ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/bin/sh", "-c", `echo $$ > `+filepath.Join(root, group, "cgroup.procs")+` || exit 1
		echo x > /dev/null || exit 2
		head -c 1 /dev/zero > /dev/null || exit 3
		exec 3< /dev/kmsg || exit 4
		for d in /dev/vda /dev/sda /dev/nvme0n1; do [ -e $d ] && (exec 4< $d) 2> /dev/null && exit 5; done
		(exec 4> /dev/kmsg) 2> /dev/null && exit 6
		mknod `+t.TempDir()+`/node b 7 0 || exit 7
		exit 0`)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
