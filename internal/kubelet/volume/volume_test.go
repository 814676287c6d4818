package volume

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

func TestWriteAtomic(t *testing.T) {
	dir := t.TempDir()
	read := func(name string) string {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return "error: " + err.Error()
		}
		return string(b)
	}
	put := func(want bool, files map[string]File) {
		t.Helper()
		changed, err := WriteAtomic(dir, files, nil)
		if err != nil || changed != want {
			t.Fatalf("changed %v, %v", changed, err)
		}
	}
	put(true, map[string]File{"a": {Data: []byte("1"), Mode: 0o600}, "sub/b": {Data: []byte("2"), Mode: 0o444}})
	if read("a") != "1" || read("sub/b") != "2" {
		t.Fatalf("%q %q", read("a"), read("sub/b"))
	}
	if st, _ := os.Stat(filepath.Join(dir, "a")); st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", st.Mode())
	}
	first, _ := os.Readlink(filepath.Join(dir, "..data"))
	put(false, map[string]File{"a": {Data: []byte("1"), Mode: 0o600}, "sub/b": {Data: []byte("2"), Mode: 0o444}})
	put(true, map[string]File{"sub/b": {Data: []byte("3"), Mode: 0o444}, "c": {Mode: 0o644}})
	if read("sub/b") != "3" || read("c") != "" || !strings.HasPrefix(read("a"), "error") {
		t.Errorf("after the change: a %q, sub/b %q, c %q", read("a"), read("sub/b"), read("c"))
	}
	if _, err := os.Stat(filepath.Join(dir, first)); err == nil {
		t.Error("the old content is still there")
	}
	for _, bad := range []string{"../x", "/x", "..x", "a/../b", ""} {
		if _, err := WriteAtomic(dir, map[string]File{bad: {}}, nil); err == nil {
			t.Errorf("path %q accepted", bad)
		}
	}
}

func root(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for mounts")
	}
}

func TestRemoveTreeNeverCrossesAMount(t *testing.T) {
	root(t)
	precious := t.TempDir()
	keep := filepath.Join(precious, "keep")
	if err := os.WriteFile(keep, []byte("data"), 0o644); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "pod")
	target := filepath.Join(dir, "volumes", "x")
	if err := os.MkdirAll(target, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(precious, target, "", unix.MS_BIND, ""); err != nil {
		t.Skipf("bind mount: %v", err)
	}
	defer unix.Unmount(target, unix.MNT_DETACH)
	if err := os.Symlink(precious, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := RemoveTree(dir); err == nil {
		t.Error("removal crossed a mount without complaint")
	}
	if _, err := os.Stat(keep); err != nil {
		t.Fatal("data behind a mount was removed")
	}
	if err := unmountBelow(dir); err != nil {
		t.Fatal(err)
	}
	if err := RemoveTree(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("directory still there")
	}
	if _, err := os.Stat(keep); err != nil {
		t.Fatal("data behind a symlink was removed")
	}
	if err := RemoveTree(dir); err != nil {
		t.Errorf("second removal: %v", err)
	}
}

func TestSubPathStaysInTheVolume(t *testing.T) {
	root(t)
	vol, out := t.TempDir(), t.TempDir()
	for _, f := range []string{"dir/file", "dir2/x"} {
		p := filepath.Join(vol, f)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(f), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{"abs": "/etc", "up": "../..", "inside": "dir", "abs-inside": vol + "/dir", "file-out": "/etc/passwd"} {
		if err := os.Symlink(to, filepath.Join(vol, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		path string
		want string // a file to find below the target; "-" for an error
	}{
		{"dir", "file"}, {"inside", "file"}, {"dir/file", ""}, {"new/deep", "."}, {".", "dir/file"},
		{"abs", "-"}, {"up", "-"}, {"abs-inside", "-"}, {"file-out", "-"}, {"../x", "-"}, {"/etc", "-"}, {"dir/../../x", "-"}, {"up/new", "-"},
	} {
		t.Run(strings.ReplaceAll(tc.path, "/", "_"), func(t *testing.T) {
			target := filepath.Join(out, "t")
			err := bindSubPath(vol, tc.path, target, false)
			defer unmountBelow(target)
			if tc.want == "-" {
				if err == nil {
					t.Error("bound something outside")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if m, err := isMount(target); err != nil || !m {
				t.Errorf("not a mount: %v", err)
			}
			if _, err := os.Stat(filepath.Join(target, tc.want)); err != nil {
				t.Error(err)
			}
		})
	}
	if _, err := os.Stat("/etc/new"); err == nil {
		t.Error("a directory was made outside the volume")
	}
}

func TestMemoryVolume(t *testing.T) {
	root(t)
	v := New(Config{RootDir: t.TempDir()})
	gid := int64(1234)
	pod := &corev1.Pod{}
	pod.UID = "u1"
	pod.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: &gid}
	pod.Spec.Volumes = []corev1.Volume{
		{Name: "mem", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}}},
		{Name: "disk", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
	}
	for range 2 { // setting up again changes nothing
		m, err := v.Setup(t.Context(), pod)
		if err != nil {
			t.Fatal(err)
		}
		if ok, _ := isMount(m["mem"].Path); !ok {
			t.Error("no tmpfs")
		}
		mounts, _ := mountsBelow(m["mem"].Path)
		if len(mounts) != 1 {
			t.Errorf("mounts %q", mounts)
		}
		var st unix.Stat_t
		if err := unix.Stat(m["disk"].Path, &st); err != nil || st.Gid != 1234 || st.Mode&0o7777 != 0o2777 {
			t.Errorf("gid %d mode %o %v", st.Gid, st.Mode, err)
		}
	}
	if err := v.Remove("u1"); err != nil {
		t.Fatal(err)
	}
	if p, _ := v.Pods(); slices.Contains(p, "u1") {
		t.Error("not removed")
	}
}
