package runtime_test

import (
	"os"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// On a machine with version 1 the tree of version 2 often is there too, with few
// controllers: enough for all but the limits.
func TestCgroupsOfVersion2(t *testing.T) {
	const tree = "/sys/fs/cgroup/unified"
	if _, err := os.Stat(tree + "/cgroup.controllers"); err != nil {
		t.Skip("no second tree: the other tests have covered this one")
	}
	n := newNode(t, tree)
	pod, pc := n.pod(namespaces(ofPod, ofPod, ofPod))
	out := n.scriptIn(pod, pc, "cat /proc/self/cgroup | grep ^0:; ls -d /sys/fs/cgroup/cgroup.procs; touch /sys/fs/cgroup/x 2>/dev/null || echo read-only", pids(ofPod, ""))
	contains(t, out, "0::/", "/sys/fs/cgroup/cgroup.procs", "read-only")
	id := n.begin(pod, pc, config("(sleep 779 &) ; sleep 778", pids(ofPod, "")))
	if out, code := n.exec(id, "cat", "/proc/self/cgroup"); code != 0 || !strings.Contains(out, "0::/\n") {
		t.Errorf("a command is in %q", out)
	}
	other := n.begin(pod, pc, config("sleep 780", pids(ofPod, "")))
	if _, err := n.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	if out, _ := n.exec(other, "ps", "-o", "args"); strings.Contains(out, "sleep 779") || !strings.Contains(out, "sleep 780") {
		t.Errorf("left of a container that was stopped:\n%s", out)
	}
	device := n.script("mknod /tmp/d b 7 0 && cat /tmp/d; echo > /dev/null && echo fine")
	if !strings.Contains(device, "fine") {
		t.Errorf("devices: %s", device)
	}
	n.stop()
	n.start()
	if n.status(other).State != running {
		t.Error("not taken up")
	}
}
