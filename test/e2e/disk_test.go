//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"
)

// A disk that is full takes no write, says why, keeps what it has and goes on when
// there is room: shown on a second cluster, with a small disk and a network of its own.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := unix.Mount("proa-e2e", dir, "tmpfs", 0, "size=400m"); err != nil {
		t.Fatal(err)
	}
	const network = "proa-e2e-disk"
	run := func(name string, args ...string) (string, error) {
		cmd := exec.Command("nsenter", append([]string{"--net=/run/netns/" + network, name}, args...)...)
		cmd.Env = append(os.Environ(), "KUBECONFIG="+dir+"/admin.kubeconfig")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	must := func(out string, err error) string {
		t.Helper()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return out
	}
	_, _ = try("ip", "netns", "del", network)
	must(try("ip", "netns", "add", network))
	t.Cleanup(func() {
		// The other cluster's pods stay out of it. Only the mount point itself is left.
		if out, err := run(proa, "--data-dir", dir, "down"); err != nil {
			t.Error(err, out)
		}
		if out, err := run(proa, "--data-dir", dir, "reset"); err != nil && !strings.Contains(out, "unlinkat "+dir+": device or resource busy") {
			t.Error(err, out)
		}
		_, _ = try("ip", "netns", "del", network)
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	// A bridge gives the network an address without anything of the machine's.
	for _, args := range []string{"link set lo up", "link add d0 type bridge", "addr add 192.0.2.1/24 dev d0", "link set d0 up", "route add default dev d0"} {
		must(try("ip", append([]string{"-n", network}, strings.Fields(args)...)...))
	}
	must(run(proa, "--data-dir", dir, "up", "--detach", "--no-kubeconfig"))
	must(run("kubectl", "create", "configmap", "before", "--from-literal=a=1"))
	layer, err := random.Layer(64<<20, types.OCIUncompressedLayer)
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		t.Fatal(err)
	}
	large := save(t, "proa.example/large:1", img)

	filler := filepath.Join(dir, "filler")
	f, err := os.Create(filler)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fallocate(int(f.Fd()), 0, 0, int64(fs.Bfree)*int64(fs.Bsize)-40<<20); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		if out, err := run("kubectl", "create", "configmap", fmt.Sprint("full-", i%2), "--from-literal=a=1"); err == nil || !strings.Contains(out, "disk is nearly full") || !strings.Contains(out, dir) {
			t.Fatalf("a write on a full disk: %v: %s", err, out)
		}
	}
	if out := must(run("kubectl", "get", "configmaps", "-o", "name")); !strings.Contains(out, "before") || strings.Contains(out, "full") {
		t.Errorf("there are %s", out)
	}
	must(run("kubectl", "delete", "configmap", "before", "--wait=false"))
	// 40 MiB are left: an image of more than that is refused, and nothing of it stays.
	if out, err := run(proa, "--data-dir", dir, "image", "import", large); err == nil || !strings.Contains(out, "no space") {
		t.Errorf("an image larger than the disk: %v: %s", err, out)
	}
	if out := must(run(proa, "--data-dir", dir, "image", "list")); strings.Contains(out, "large") {
		t.Errorf("there are the images %s", out)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	f.Close()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		out, err := run("kubectl", "create", "configmap", "after", "--from-literal=a=1")
		if err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("with room again: %v: %s", err, out)
		}
	}
}
