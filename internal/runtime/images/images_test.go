package images

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func open(t *testing.T) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "images"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

type file struct {
	name, link, body string
	kind             byte
}

func image(t *testing.T, layers ...[]file) v1.Image {
	t.Helper()
	img := v1.Image(empty.Image)
	for _, files := range layers {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, f := range files {
			h := &tar.Header{Name: f.name, Linkname: f.link, Typeflag: f.kind, Mode: 0o755, Size: int64(len(f.body))}
			if h.Typeflag == 0 {
				h.Typeflag = tar.TypeReg
			}
			if err := w.WriteHeader(h); err != nil {
				t.Fatal(err)
			}
			io.WriteString(w, f.body)
		}
		w.Close()
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
		if err != nil {
			t.Fatal(err)
		}
		if img, err = mutate.AppendLayers(img, l); err != nil {
			t.Fatal(err)
		}
	}
	img, err := mutate.Config(img, v1.Config{Cmd: []string{"/hello"}, Env: []string{"A=b"}})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func save(t *testing.T, img v1.Image, tag string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.tar")
	ref, err := name.NewTag(tag)
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.WriteToFile(path, ref, img); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestADockerArchiveIsImportedAndFoundByItsNames(t *testing.T) {
	s := open(t)
	img := image(t, []file{{name: "hello", body: "one"}, {name: "gone", body: "x"}}, []file{{name: ".wh.gone"}, {name: "b", body: "two"}})
	got, err := s.Import(t.Context(), save(t, img, "example/web:v1"), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{"example/web:v1", "docker.io/example/web:v1", got[0].ID, hex(got[0].ID)[:12]} {
		found, err := s.Resolve(ref)
		if err != nil || found.ID != got[0].ID {
			t.Errorf("%s: %v, %v", ref, found.ID, err)
		}
	}
	if _, err := s.Resolve("example/web:v2"); !errors.Is(err, ErrNotFound) {
		t.Errorf("another tag: %v", err)
	}
	config, err := s.Config(got[0].ID)
	if err != nil || config.Config.Cmd[0] != "/hello" {
		t.Errorf("config: %+v, %v", config, err)
	}
	dirs, release, err := s.Hold(got[0])
	if err != nil || len(dirs) != 2 {
		t.Fatalf("hold: %v, %v", dirs, err)
	}
	if b, err := os.ReadFile(filepath.Join(dirs[1], "hello")); err != nil || string(b) != "one" {
		t.Errorf("lower layer: %q, %v", b, err)
	}
	info, err := os.Lstat(filepath.Join(dirs[0], "gone"))
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		t.Errorf("the whiteout is %v, %v", info, err)
	}
	// A layer in use outlives its image; a store opened anew knows the image.
	again, err := Open(s.Root(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := again.Resolve("example/web:v1"); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	if err := s.Remove("example/web:v1"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dirs[0]); err != nil {
		t.Errorf("a layer in use was removed: %v", err)
	}
	release()
	if err := s.Remove("example/web:v1"); err != nil {
		t.Fatalf("removing what is not there: %v", err)
	}
}

func TestAnOCILayoutIsImported(t *testing.T) {
	s := open(t)
	img := image(t, []file{{name: "hello", body: "oci"}})
	dir := t.TempDir()
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AppendImage(img, layout.WithAnnotations(map[string]string{refAnnotation: "example/oci:1"})); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Import(t.Context(), dir, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Resolve("example/oci:1"); err != nil {
		t.Fatal(err)
	}
	// A13: a flipped bit in a layer is noticed, and nothing is half done.
	layers, _ := img.Layers()
	digest, _ := layers[0].Digest()
	if err := os.WriteFile(filepath.Join(dir, "blobs", "sha256", digest.Hex), []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	fresh := open(t)
	if _, err := fresh.Import(t.Context(), dir, nil); err == nil {
		t.Fatal("a broken layer was imported")
	}
	assertEmpty(t, fresh)
}

func assertEmpty(t *testing.T, s *Store) {
	t.Helper()
	if list, err := s.List(); err != nil || len(list) != 0 {
		t.Errorf("images %v, %v", list, err)
	}
	for _, dir := range []string{"layers", "tmp"} {
		if entries, _ := os.ReadDir(filepath.Join(s.Root(), dir)); len(entries) != 0 {
			t.Errorf("%s holds %v", dir, entries)
		}
	}
}

// D13: a layer whose content is not what the configuration says is refused.
func TestAWrongDigestIsRefused(t *testing.T) {
	s := open(t)
	path := save(t, image(t, []file{{name: "hello", body: "right"}}), "example/bad:1")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// Swap the layer for another one under the same file name.
	other := save(t, image(t, []file{{name: "hello", body: "wrong"}}), "example/bad:1")
	layer := func(p string) (string, []byte) {
		var n string
		var body []byte
		if err := eachEntry(p, func(h *tar.Header, r io.Reader) error {
			if strings.HasSuffix(h.Name, ".tar.gz") {
				n = h.Name
				body, err = io.ReadAll(r)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return n, body
	}
	_, evil := layer(other)
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	r := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		body, _ := io.ReadAll(r)
		if strings.HasSuffix(h.Name, ".tar.gz") {
			body = evil
			h.Size = int64(len(evil))
		}
		w.WriteHeader(h)
		w.Write(body)
	}
	w.Close()
	if err := os.WriteFile(path, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Import(t.Context(), path, nil); err == nil || !strings.Contains(err.Error(), "digest") {
		t.Fatalf("got %v", err)
	}
	assertEmpty(t, s)
}

// Paths that point out of the image stay inside its layer.
func TestAnArchiveCannotLeaveItsLayer(t *testing.T) {
	s := open(t)
	outside := filepath.Join(t.TempDir(), "target")
	if err := os.Mkdir(outside, 0o755); err != nil {
		t.Fatal(err)
	}
	img := image(t, []file{
		{name: "../../../../../../" + outside + "/dotdot", body: "x"},
		{name: "link", link: outside, kind: tar.TypeSymlink},
		{name: "link/through", body: "x"},
		{name: "/abs", body: "x"},
	})
	_, err := s.Import(t.Context(), save(t, img, "example/evil:1"), nil)
	if entries, _ := os.ReadDir(outside); len(entries) != 0 {
		t.Fatalf("the archive wrote %v outside (import: %v)", entries, err)
	}
}

func TestPull(t *testing.T) {
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	img := image(t, []file{{name: "hello", body: "pulled"}})
	ref, err := name.ParseReference(host + "/team/app:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		t.Fatal(err)
	}
	s := open(t)
	got, err := s.Pull(t.Context(), host+"/team/app:1", Auth{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	digest, _ := img.Digest()
	byDigest := fmt.Sprintf("%s/team/app@%s", host, digest)
	if len(got.RepoDigests) != 1 || got.RepoDigests[0] != byDigest {
		t.Errorf("digests %v, want %s", got.RepoDigests, byDigest)
	}
	if found, err := s.Resolve(byDigest); err != nil || found.ID != got.ID {
		t.Errorf("by digest: %v", err)
	}
	if _, err := s.Pull(t.Context(), host+"/team/none:1", Auth{}, nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("an unknown image: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := open(t).Pull(ctx, host+"/team/app:1", Auth{}, nil); err == nil {
		t.Error("a cancelled pull succeeded")
	}
}

// A mirror is asked first, without the registry's credentials; what it has not comes
// from the next.
func TestPullFromAMirror(t *testing.T) {
	var asked []string
	content := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && r.URL.Query().Get("ns") != "" {
			asked = append(asked, r.URL.Query().Get("ns"))
			if r.Header.Get("Authorization") != "" {
				t.Error("credentials were shown to a mirror")
			}
		}
		content.ServeHTTP(w, r)
	}))
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	ref, err := name.ParseReference(host + "/team/app:1")
	if err != nil {
		t.Fatal(err)
	}
	img := image(t, []file{{name: "hello", body: "mirrored"}})
	if err := remote.Write(ref, img); err != nil {
		t.Fatal(err)
	}
	empty := httptest.NewServer(http.NotFoundHandler())
	defer empty.Close()
	s := open(t)
	s.Registries = t.TempDir()
	dir := filepath.Join(s.Registries, "r.example")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf("server = %q\n[host.%q]\n[host.%q]\n", empty.URL, empty.URL, server.URL)
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := s.Pull(t.Context(), "r.example/team/app:1", Auth{Username: "me", Password: "secret"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	digest, _ := img.Digest()
	if want := "[r.example/team/app:1] [r.example/team/app@" + digest.String() + "]"; fmt.Sprint(got.RepoTags, got.RepoDigests) != want {
		t.Errorf("stored as %v %v, want %s", got.RepoTags, got.RepoDigests, want)
	}
	if len(asked) == 0 || asked[0] != "r.example" {
		t.Errorf("the mirror was asked for %v", asked)
	}
	if _, err := s.Pull(t.Context(), "r.example/team/none:1", Auth{}, nil); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "mirror "+host) {
		t.Errorf("an image that no place has: %v", err)
	}
}

func FuzzNormalize(f *testing.F) {
	for _, s := range []string{"nginx", "a/b:c", "localhost:5000/x@sha256:" + strings.Repeat("a", 64), ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, ref string) {
		full, err := Normalize(ref)
		if err != nil {
			return
		}
		if again, err := Normalize(full); err != nil || again != full {
			t.Errorf("%q becomes %q, then %q (%v)", ref, full, again, err)
		}
	})
}
