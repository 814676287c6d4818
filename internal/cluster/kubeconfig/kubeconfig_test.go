package kubeconfig

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

var entry = Entry{Server: "https://127.0.0.1:6443", CA: []byte("ca"), Cert: []byte("cert"), Key: []byte("key")}

const foreign = `# work
apiVersion: v1
kind: Config
preferences: {}
clusters:
- cluster:
    server: https://example.test:6443 # the big one
    proxy-url: http://proxy.test
  name: work
contexts:
- context: {cluster: work, user: me}
  name: work
current-context: work
users:
- name: me
  user:
    exec:
      apiVersion: client.authentication.k8s.io/v1
      args: ["0123", 'yes']
      command: login
x-unknown: 0123
`

func file(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func self() User { return User{UID: os.Geteuid(), GID: os.Getegid()} }

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func meaning(t *testing.T, text string) map[string]any {
	t.Helper()
	out := map[string]any{}
	if err := yaml.Unmarshal([]byte(text), &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestMergeKeepsWhatElseIsThereAndRemoveTakesOnlyItsOwn(t *testing.T) {
	path := file(t, foreign)
	for range 2 { // the second merge changes nothing
		current, err := Merge(path, entry, self())
		if err != nil || current {
			t.Fatalf("Merge: current %v, %v", current, err)
		}
	}
	text := read(t, path)
	for _, want := range []string{"# work", "# the big one", `["0123", 'yes']`, "x-unknown: 0123", "current-context: work", "server: https://127.0.0.1:6443"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
	if n := strings.Count(text, "name: proa\n"); n != 2 {
		t.Errorf("%d entries named proa, want a cluster and a context:\n%s", n, text)
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, want 0600", info.Mode())
	}
	if err := Remove(path, []byte("another"), self()); err != nil || read(t, path) != text {
		t.Errorf("Remove of another cluster changed the file (%v)", err)
	}
	if err := Remove(path, entry.CA, self()); err != nil {
		t.Fatal(err)
	}
	if got := read(t, path); got != foreign {
		t.Errorf("after Remove:\n%s\nwant\n%s", got, foreign)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestMergeBecomesCurrentWhereNothingIs(t *testing.T) {
	for name, text := range map[string]string{"empty": "", "only a comment": "# mine\n", "null lists": "clusters: null\ncontexts: null\nusers: null\ncurrent-context: \"\"\n",
		"json": `{"clusters": [], "users": [], "contexts": []}`} {
		t.Run(name, func(t *testing.T) {
			path := file(t, text)
			current, err := Merge(path, entry, self())
			if err != nil || !current {
				t.Fatalf("Merge: current %v, %v", current, err)
			}
			m := meaning(t, read(t, path))
			if m["current-context"] != "proa" || len(m["clusters"].([]any)) != 1 {
				t.Errorf("%v", m)
			}
			if err := Remove(path, entry.CA, self()); err != nil {
				t.Fatal(err)
			}
			if m := meaning(t, read(t, path)); m["current-context"] != "" || len(m["users"].([]any)) != 0 {
				t.Errorf("after Remove: %v", m)
			}
		})
	}
}

func TestMergeKeepsTheNamespaceOfTheContext(t *testing.T) {
	path := file(t, "contexts:\n- name: proa\n  context: {cluster: proa, user: proa-admin, namespace: mine}\n")
	if _, err := Merge(path, entry, self()); err != nil {
		t.Fatal(err)
	}
	if text := read(t, path); !strings.Contains(text, "namespace: mine") {
		t.Error(text)
	}
}

func TestMergeMakesFoldersAndKeepsLinks(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "home", ".kube", "config")
	if _, err := Merge(path, entry, self()); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	if err := Remove(link, entry.CA, self()); err != nil {
		t.Fatal(err)
	}
	if info, _ := os.Lstat(link); info.Mode()&os.ModeSymlink == 0 {
		t.Error("the link was replaced by a file")
	}
	if strings.Contains(read(t, path), "name: proa") {
		t.Error("the file behind the link was not changed")
	}
}

func TestWhatIsNoKubeconfigIsLeftAlone(t *testing.T) {
	for _, text := range []string{"a: [", "- a\n", "just words\n", "clusters: {}\n", "a: 1\n---\nb: 2\n"} {
		path := file(t, text)
		if _, err := Merge(path, entry, self()); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%q: error %v, want one that names the file", text, err)
		}
		if got := read(t, path); got != text {
			t.Errorf("%q became %q", text, got)
		}
	}
}

func TestBehindSudoAFileOfAnotherUserIsRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	path := file(t, foreign)
	if _, err := Merge(path, entry, User{UID: 1234, GID: 1234}); err == nil || read(t, path) != foreign {
		t.Errorf("a file of root was changed for user 1234 (%v)", err)
	}
	if err := os.Chown(path, 1234, 1234); err != nil {
		t.Fatal(err)
	}
	if _, err := Merge(path, entry, User{UID: 1234, GID: 1234}); err != nil {
		t.Fatal(err)
	}
	u := owner(t, path)
	if u != 1234 {
		t.Errorf("owner %d, want 1234", u)
	}
}

func TestInvokerIsTheUserBehindSudo(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	t.Setenv("HOME", "/root")
	t.Setenv("SUDO_UID", "65534")
	if u := Invoker(); u.UID != 65534 || u.Home == "/root" {
		t.Errorf("Invoker = %+v", u)
	}
	t.Setenv("SUDO_UID", "")
	if u := Invoker(); u.UID != 0 || u.Home != "/root" {
		t.Errorf("Invoker = %+v", u)
	}
}

func TestPathFollowsKubectl(t *testing.T) {
	dir := t.TempDir()
	has := filepath.Join(dir, "has")
	b, err := New(entry)
	if err != nil {
		t.Fatal(err)
	}
	other := file(t, foreign)
	if err := os.WriteFile(has, b, 0o600); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(dir, "missing")
	for variable, want := range map[string]string{
		"":                            "/home/me/.kube/config",
		missing:                       missing,
		missing + ":" + other:         other,
		other + ":" + has:             has,
		missing + ":" + missing + "2": missing + "2",
	} {
		if got := Path(variable, User{Home: "/home/me"}); got != want {
			t.Errorf("Path(%q) = %q, want %q", variable, got, want)
		}
	}
	if got := Path("", User{}); got != "" {
		t.Errorf("without a home: %q", got)
	}
}

func FuzzAddThenRemove(f *testing.F) {
	f.Add([]byte(foreign))
	f.Add([]byte("a: &x 1\nb: *x\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		out, _, err := add(b, entry)
		if err != nil {
			return
		}
		if !hasContext(out) {
			t.Fatalf("no context in %q", out)
		}
		out, changed, err := remove(out, entry.CA)
		if err != nil || !changed {
			t.Fatalf("remove from %q: %v, %v", out, changed, err)
		}
		if hasContext(out) {
			t.Fatalf("still a context in %q", out)
		}
	})
}
