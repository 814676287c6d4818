package main

import (
	"bytes"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/proa-dev/proa/internal/cluster/instance"
)

// run runs the program with args on a data folder.
func run(t *testing.T, data, input string, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	cmd := command()
	cmd.SetArgs(append([]string{"--data-dir", data}, args...))
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetIn(strings.NewReader(input))
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}

func TestErrorsSayWhatToDo(t *testing.T) {
	used := t.TempDir()
	release, err := instance.Acquire(used, instance.Info{})
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	foreign := t.TempDir()
	if err := os.WriteFile(filepath.Join(foreign, "thesis.txt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		data string
		args []string
		want string
		root bool
	}{
		"status without a cluster":     {t.TempDir(), []string{"status"}, "no cluster runs on ", false},
		"a second one on the folder":   {used, []string{"up", "--no-kubeconfig"}, "choose another folder with --data-dir", true},
		"a level that is none":         {t.TempDir(), []string{"up", "--log-level", "loud"}, "debug, info, warn or error", false},
		"flags that exclude":           {t.TempDir(), []string{"up", "--kubeconfig", "x", "--no-kubeconfig"}, "none of the others can be", false},
		"reset of a foreign folder":    {foreign, []string{"reset"}, "nothing was removed", false},
		"an output that is none":       {t.TempDir(), []string{"version", "-o", "xml"}, "use json", false},
		"a password without a user":    {t.TempDir(), []string{"image", "pull", "x", "--password-stdin"}, "needs --user", false},
		"an image that is not there":   {t.TempDir(), []string{"image", "rm", "nothing:1"}, "nothing:1", false},
		"an archive that is not there": {t.TempDir(), []string{"image", "import", "/nowhere.tar"}, "/nowhere.tar", false},
	} {
		t.Run(name, func(t *testing.T) {
			if c.root && os.Geteuid() != 0 {
				t.Skip("needs root")
			}
			if out, err := run(t, c.data, "", c.args...); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v (output %q), want %q", err, out, c.want)
			}
		})
	}
	if _, err := os.Stat(filepath.Join(foreign, "thesis.txt")); err != nil {
		t.Error("reset removed a foreign file")
	}
}

func TestDownWithoutAClusterIsNoError(t *testing.T) {
	if out, err := run(t, t.TempDir(), "", "down"); err != nil || !strings.Contains(out, "no cluster runs") {
		t.Errorf("%q, %v", out, err)
	}
}

func TestVersionAndCompletion(t *testing.T) {
	out, err := run(t, "", "", "version", "-o", "json")
	var v map[string]string
	if err != nil || json.Unmarshal([]byte(out), &v) != nil || !strings.HasPrefix(v["kubernetes"], "v1.37.") {
		t.Errorf("version: %q, %v", out, err)
	}
	if out, err := run(t, "", "", "completion", "bash"); err != nil || !strings.Contains(out, "__start_proa") {
		t.Errorf("completion: %.80q, %v", out, err)
	}
}

func TestPullShowsTheRegistryItsLogin(t *testing.T) {
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "me" || password != "it: is secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		inner.ServeHTTP(w, r)
	}))
	defer server.Close()
	image := strings.TrimPrefix(server.URL, "http://") + "/a/b:1"
	ref, err := name.ParseReference(image)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, empty.Image, remote.WithAuth(&authn.Basic{Username: "me", Password: "it: is secret"})); err != nil {
		t.Fatal(err)
	}
	data, config := t.TempDir(), t.TempDir()
	t.Setenv("DOCKER_CONFIG", config)
	if _, err := run(t, data, "", "image", "pull", image); err == nil || !strings.Contains(err.Error(), "unauthorized") {
		t.Errorf("without a login: %v", err)
	}
	for _, c := range []struct {
		input string
		args  []string
	}{{"", []string{"-u", "me:it: is secret"}}, {"it: is secret\n", []string{"-u", "me", "--password-stdin"}}} {
		if out, err := run(t, data, c.input, append([]string{"image", "pull", image}, c.args...)...); err != nil || !strings.Contains(out, image) {
			t.Errorf("pull %v: %q, %v", c.args, out, err)
		}
	}
	file := `{"auths":{"` + strings.TrimPrefix(server.URL, "http://") + `":{"username":"me","password":"it: is secret"}}}`
	if err := os.WriteFile(filepath.Join(config, "config.json"), []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := run(t, data, "", "image", "pull", image); err != nil {
		t.Errorf("with docker's login: %v", err)
	}
	if out, err := run(t, data, "", "image", "list"); err != nil || strings.Count(out, "/a/b:1") != 1 {
		t.Errorf("list: %q, %v", out, err)
	}
	if _, err := run(t, data, "", "image", "rm", image); err != nil {
		t.Errorf("rm: %v", err)
	}
}

func TestProgressRewritesItsLineOnlyOnATerminal(t *testing.T) {
	var file, terminal bytes.Buffer
	for w, tty := range map[*bytes.Buffer]bool{&file: false, &terminal: true} {
		p := newProgress(w)
		p.terminal = tty
		p.say("one")
		p.say("two")
		p.done("ready %d", 3)
	}
	if got := file.String(); strings.ContainsAny(got, "\x1b\r") || strings.Count(got, "\n") != 3 {
		t.Errorf("in a log: %q", got)
	}
	if got := terminal.String(); !strings.Contains(got, "… one\r\x1b[K✓ one (") || !strings.HasSuffix(got, "ready 3\n") {
		t.Errorf("on a terminal: %q", got)
	}
}
