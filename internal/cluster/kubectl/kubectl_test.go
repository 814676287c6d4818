package kubectl

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"
)

func packed(t *testing.T, program string) *Packed {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	p, err := parse(w.EncodeAll([]byte(program), nil), fmt.Appendf(nil, "%x %d\n", sha256.Sum256([]byte(program)), len(program)))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

const script = "#!/bin/sh\necho \"$@\"\n"

func TestUnpackMakesAProgramOnceAndRunsIt(t *testing.T) {
	p, dir := packed(t, script), filepath.Join(t.TempDir(), "a", "b")
	path, err := p.Unpack(dir)
	if err != nil {
		t.Fatal(err)
	}
	before, _ := os.Stat(path)
	if before.Mode().Perm() != 0o755 {
		t.Errorf("mode %v, want 0755", before.Mode())
	}
	if out, err := exec.Command(path, "a", "b").Output(); err != nil || string(out) != "a b\n" {
		t.Errorf("run: %q, %v", out, err)
	}
	if again, err := p.Unpack(dir); err != nil || again != path {
		t.Fatalf("again: %q, %v", again, err)
	}
	if after, _ := os.Stat(path); !os.SameFile(before, after) {
		t.Error("it was unpacked twice")
	}
}

func TestUnpackByManyAtOnceLeavesOneWholeFile(t *testing.T) {
	p, dir := packed(t, script), t.TempDir()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			path, err := p.Unpack(dir)
			if err != nil {
				t.Error(err)
				return
			}
			if b, err := os.ReadFile(path); err != nil || string(b) != script {
				t.Errorf("%q, %v", b, err)
			}
		})
	}
	wg.Wait()
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
}

func TestUnpackReplacesWhatIsNotWholeOrNotTrusted(t *testing.T) {
	for name, spoil := range map[string]func(path string) error{
		"cut short":          func(p string) error { return os.Truncate(p, 3) },
		"writable by others": func(p string) error { return os.Chmod(p, 0o777) },
		"not executable":     func(p string) error { return os.Chmod(p, 0o644) },
		"a link":             func(p string) error { return errOf(os.Remove(p), os.Symlink("/bin/true", p)) },
	} {
		t.Run(name, func(t *testing.T) {
			p, dir := packed(t, script), t.TempDir()
			path, err := p.Unpack(dir)
			if err != nil {
				t.Fatal(err)
			}
			if err := spoil(path); err != nil {
				t.Fatal(err)
			}
			if path, err = p.Unpack(dir); err != nil {
				t.Fatal(err)
			}
			if b, _ := os.ReadFile(path); string(b) != script {
				t.Errorf("content %q", b)
			}
		})
	}
}

func errOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func TestUnpackRefusesDamageAndFoldersOfOthers(t *testing.T) {
	p, dir := packed(t, script), t.TempDir()
	p.digest = strings.Repeat("0", 64)
	if _, err := p.Unpack(dir); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("wrong digest: %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	open := t.TempDir()
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	second := t.TempDir()
	if path, err := packed(t, script).Unpack(open, second); err != nil || filepath.Dir(path) != second {
		t.Errorf("Unpack = %q, %v; want the folder that nobody else writes to", path, err)
	}
}

func TestUnpackRemovesOlderVersions(t *testing.T) {
	dir := t.TempDir()
	old, err := packed(t, script+"# old\n").Unpack(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := packed(t, script).Unpack(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(old); err == nil {
		t.Error("the older version is still there")
	}
}

func TestEmbeddedUnpacksOrSaysHowToBuild(t *testing.T) {
	p, err := Embedded()
	if err != nil {
		if !strings.Contains(err.Error(), "make build") {
			t.Errorf("%v says not how to build it", err)
		}
		return
	}
	path, err := p.Unpack(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(path, "version", "--client", "-o", "json").CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte(`"gitVersion": "v1.37`)) {
		t.Errorf("kubectl version: %s, %v", out, err)
	}
}

func TestEnvironment(t *testing.T) {
	const withContext, without = "contexts:\n- name: proa\n", "contexts:\n- name: work\n"
	for name, c := range map[string]struct {
		env       string // KUBECONFIG
		admin     bool
		own       string
		asKubectl bool
		want      string // with ADMIN and OWN and CACHE put in
	}{
		"the user's variable wins":                        {env: "/x", admin: true, want: "/x"},
		"the cluster's own where it can be read":          {admin: true, own: without, want: "ADMIN"},
		"as kubectl, the user's file decides":             {admin: true, own: without, asKubectl: true, want: ""},
		"as kubectl without a file, the cluster's own":    {admin: true, asKubectl: true, want: "ADMIN"},
		"as kubectl with nothing, kubectl's default":      {asKubectl: true, want: ""},
		"a user without root, by the merged context":      {own: withContext, want: "CACHE/context.kubeconfig:OWN"},
		"a user whose file knows only another cluster":    {own: without, want: "ADMIN"},
		"a user with nothing, to be told what is lacking": {want: "ADMIN"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			admin, cache, own := filepath.Join(dir, "admin"), filepath.Join(dir, "cache"), filepath.Join(dir, ".kube", "config")
			for _, d := range []string{cache, filepath.Dir(own)} {
				if err := os.Mkdir(d, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			caller := Caller{Home: dir, Admin: admin, AsKubectl: c.asKubectl, Env: []string{"A=b"}}
			if c.env != "" {
				caller.Env = append(caller.Env, "KUBECONFIG="+c.env)
			}
			for path, text := range map[string]string{own: c.own, admin: map[bool]string{true: "x"}[c.admin]} {
				if text == "" {
					continue
				}
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			env, err := caller.environment(cache)
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			for _, e := range env {
				if v, ok := strings.CutPrefix(e, "KUBECONFIG="); ok {
					got = v
				}
			}
			if want := strings.NewReplacer("ADMIN", admin, "OWN", own, "CACHE", cache).Replace(c.want); got != want {
				t.Errorf("KUBECONFIG=%q, want %q", got, want)
			}
		})
	}
}
