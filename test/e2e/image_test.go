//go:build e2e

package e2e

import (
	"archive/tar"
	"bytes"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// archive writes an image with one layer of these entries, as docker save does.
func archive(t *testing.T, tag string, entries ...tar.Header) string {
	t.Helper()
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for _, h := range entries {
		body := ""
		if h.Typeflag == tar.TypeReg {
			body = "evil"
		}
		h.Size, h.Mode = int64(len(body)), 0o755
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(w, body)
	}
	_ = w.Close()
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		t.Fatal(err)
	}
	return save(t, tag, img)
}

func save(t *testing.T, tag string, img v1.Image) string {
	t.Helper()
	ref, err := name.NewTag(tag)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "image.tar")
	if err := tarball.WriteToFile(path, ref, img); err != nil {
		t.Fatal(err)
	}
	return path
}

// An archive may say what it likes: nothing is written outside of its image, and of
// one that is refused nothing is left.
func TestImageArchivesWithMistakes(t *testing.T) {
	t.Parallel()
	outside := t.TempDir()
	images := func() string {
		out, err := try(proa, "--data-dir", data, "image", "list")
		if err != nil {
			t.Fatal(err, out)
		}
		return out
	}
	for what, entries := range map[string][]tar.Header{
		"dots":             {{Name: "../../../../../../.." + outside + "/dots", Typeflag: tar.TypeReg}},
		"symlink":          {{Name: "link", Linkname: outside, Typeflag: tar.TypeSymlink}, {Name: "link/through", Typeflag: tar.TypeReg}},
		"relative symlink": {{Name: "link", Linkname: "../../../../../../.." + outside, Typeflag: tar.TypeSymlink}, {Name: "link/through", Typeflag: tar.TypeReg}},
	} {
		out, err := try(proa, "--data-dir", data, "image", "import", archive(t, "evil.example/"+strings.ReplaceAll(what, " ", "-")+":1", entries...))
		if found, _ := os.ReadDir(outside); len(found) != 0 {
			t.Errorf("%s: wrote %v outside (%v: %s)", what, found, err, out)
		}
	}
	passwd, err := os.ReadFile("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	out, err := try(proa, "--data-dir", data, "image", "import", archive(t, "evil.example/hardlink:1", tar.Header{Name: "passwd", Linkname: "/etc/passwd", Typeflag: tar.TypeLink}))
	if err == nil || !strings.Contains(out, "passwd") || strings.Contains(images(), "evil.example/hardlink") {
		t.Errorf("a hard link to a file of the node: %v: %s", err, out)
	}
	if now, err := os.ReadFile("/etc/passwd"); err != nil || !bytes.Equal(now, passwd) {
		t.Error("/etc/passwd is another")
	}

	// The bytes of a layer that are not those of its digest.
	good, err := os.ReadFile(archive(t, "evil.example/digest:1", tar.Header{Name: "file", Typeflag: tar.TypeReg}))
	if err != nil {
		t.Fatal(err)
	}
	var bad bytes.Buffer
	w := tar.NewWriter(&bad)
	for r := tar.NewReader(bytes.NewReader(good)); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		body, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(h.Name, ".tar.gz") {
			body[len(body)-5] ^= 1 // in gzip's checksum or the content before it
		}
		_ = w.WriteHeader(h)
		_, _ = w.Write(body)
	}
	_ = w.Close()
	path := filepath.Join(t.TempDir(), "digest.tar")
	if err := os.WriteFile(path, bad.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err = try(proa, "--data-dir", data, "image", "import", path)
	if err == nil || strings.Contains(images(), "evil.example/digest") {
		t.Errorf("a layer with other bytes: %v: %s", err, out)
	}
}

// Images come from a registry, for the command and for a pod; a pod whose image is
// not there says so.
func TestPull(t *testing.T) {
	t.Parallel()
	n := inNamespace(t)
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	img, err := tarball.ImageFromPath(filepath.Join(bin, "hello-v1.tar"), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, tag := range []string{"/hello:cli", "/hello:pod"} {
		ref, err := name.ParseReference(host + tag)
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.Write(ref, img); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := try(proa, "--data-dir", data, "image", "pull", host+"/hello:cli"); err != nil || !strings.Contains(out, host+"/hello:cli") {
		t.Errorf("pull: %v: %s", err, out)
	}
	if out, err := try(proa, "--data-dir", data, "image", "pull", host+"/none:1"); err == nil || !strings.Contains(out, host+"/none:1") {
		t.Errorf("pull of what is not there: %v: %s", err, out)
	}
	n.kubectl("run", "pulled", "--image="+host+"/hello:pod")
	n.ready("pulled")
	if id := n.field("pod/pulled", ".status.containerStatuses[0].imageID"); !strings.Contains(id, "sha256:") {
		t.Errorf("image ID %q", id)
	}
	n.kubectl("run", "missing", "--image="+host+"/hello:none")
	n.says("the pod without an image", "ImagePull", 30*time.Second, func() (string, error) { return n.try("get", "pod", "missing") })
	n.says("its events", "Failed to pull image \""+host+"/hello:none\"", 30*time.Second, func() (string, error) { return n.try("describe", "pod", "missing") })
}
