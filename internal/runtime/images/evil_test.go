package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/tls"
	"crypto/x509"
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

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"
)

// pack makes an archive of entries as they are, sizes that lie included.
func pack(t testing.TB, headers []*tar.Header, bodies ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i, h := range headers {
		body := ""
		if i < len(bodies) {
			body = bodies[i]
		}
		if h.Size == 0 {
			h.Size = int64(len(body))
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(w, body)
	}
	_ = w.Close()
	return b.Bytes()
}

func write(t testing.TB, b []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "archive.tar")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func reg(name string) *tar.Header { return &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644} }

// Whatever an archive says, there is a clear error and nothing of it is left.
func TestArchivesThatAreRefused(t *testing.T) {
	const config = `{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]}}`
	for name, c := range map[string]struct {
		body []byte
		says string
	}{
		"no archive":             {[]byte("nothing of the kind"), "not a tar archive"},
		"empty":                  {nil, "neither a docker archive"},
		"neither kind":           {pack(t, []*tar.Header{reg("hello")}), "neither a docker archive"},
		"broken gzip":            {[]byte{0x1f, 0x8b, 8, 0, 0}, "EOF"},
		"manifest is no JSON":    {pack(t, []*tar.Header{reg("manifest.json")}, "{"), "manifest.json"},
		"manifest lists nothing": {pack(t, []*tar.Header{reg("manifest.json")}, "[]"), "no image"},
		"no configuration":       {pack(t, []*tar.Header{reg("manifest.json")}, `[{"Config":"c.json","RepoTags":["a:1"],"Layers":[]}]`), "c.json"},
		"no layer":               {pack(t, []*tar.Header{reg("manifest.json"), reg("c.json")}, `[{"Config":"c.json","RepoTags":["a:1"],"Layers":["l.tar"]}]`, config), "l.tar"},
		"fewer layers than said": {pack(t, []*tar.Header{reg("manifest.json"), reg("c.json")}, `[{"Config":"c.json","RepoTags":["a:1"],"Layers":[]}]`, config), "layer"},
		"a path out of it":       {pack(t, []*tar.Header{reg("manifest.json")}, `[{"Config":"../../../../etc/passwd","RepoTags":["a:1"],"Layers":[]}]`), "etc/passwd"},
		"a name that is none":    {pack(t, []*tar.Header{reg("manifest.json"), reg("c.json")}, `[{"Config":"c.json","RepoTags":["A B"],"Layers":[]}]`, config), "A B"},
		"OCI index is no JSON":   {pack(t, []*tar.Header{reg("oci-layout"), reg("index.json")}, `{"imageLayoutVersion":"1.0.0"}`, "{"), "index"},
		"OCI file twice":         {pack(t, []*tar.Header{reg("oci-layout"), reg("index.json"), reg("./index.json")}, `{"imageLayoutVersion":"1.0.0"}`, "{}", "{}"), "twice"},
		"cut off":                {pack(t, []*tar.Header{reg("manifest.json"), reg("x")}, "[]", strings.Repeat("x", 4096))[:2600], "EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			_, err := s.Import(t.Context(), write(t, c.body), nil)
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want an error with %q", err, c.says)
			}
			assertEmpty(t, s)
		})
	}
}

func TestLayersThatAreRefused(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		files []file
		says  string
	}{
		"a hard link to a file of the node":              {[]file{{name: "x", link: secret, kind: tar.TypeLink}}, "no such file"},
		"a hard link that climbs":                        {[]file{{name: "x", link: strings.Repeat("../", 30) + secret, kind: tar.TypeLink}}, "no such file"},
		"a hard link through a symbolic one":             {[]file{{name: "up", link: filepath.Dir(secret), kind: tar.TypeSymlink}, {name: "x", link: "up/secret", kind: tar.TypeLink}}, "no such file"},
		"a whiteout of everything":                       {[]file{{name: ".wh..", body: ""}}, "whiteout"},
		"a good layer, then one with a file as a folder": {[]file{{name: "a", body: "x"}, {name: "a/b", body: "x"}}, "not a directory"},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			img := image(t, []file{{name: "good", body: "good"}}, c.files)
			_, err := s.Import(t.Context(), save(t, img, "example/evil:1"), nil)
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want an error with %q", err, c.says)
			}
			assertEmpty(t, s)
			if b, err := os.ReadFile(secret); err != nil || string(b) != "secret" {
				t.Errorf("the node's file: %q %v", b, err)
			}
		})
	}
}

// A sparse file of an exabyte costs the archive a few bytes.
func TestAHugeSparseFileIsRefused(t *testing.T) {
	room := int64(1 << 30)
	if _, err := plain(&tar.Header{Name: "big", Typeflag: tar.TypeReg, Size: 1 << 60}, &room); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("%v", err)
	}
	for range 3 {
		if _, err := plain(&tar.Header{Name: "part", Typeflag: tar.TypeReg, Size: 1 << 29}, &room); err != nil && room != 0 {
			t.Errorf("%v with room for %d", err, room)
		}
	}
	if room != 0 {
		t.Errorf("files that do not fit together leave %d", room)
	}
	h := &tar.Header{Name: "d", Typeflag: tar.TypeDir, PAXRecords: map[string]string{"SCHILY.xattr.trusted.overlay.redirect": "/etc", "SCHILY.xattr.security.capability": "x"}}
	if _, err := plain(h, &room); err != nil || len(h.PAXRecords) != 1 {
		t.Errorf("attributes %v, %v", h.PAXRecords, err)
	}
}

func TestAFullDiskLeavesNothing(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("a small disk needs root")
	}
	disk := t.TempDir()
	if err := unix.Mount("small", disk, "tmpfs", 0, "size=2m"); err != nil {
		t.Skip("a small disk cannot be had: ", err)
	}
	defer unix.Unmount(disk, unix.MNT_DETACH)
	s, err := Open(filepath.Join(disk, "images"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	img := image(t, []file{{name: "good", body: "good"}}, []file{{name: "big", body: strings.Repeat("x", 3<<20)}})
	path := save(t, img, "example/big:1")
	if _, err := s.Import(t.Context(), path, nil); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("%v", err)
	}
	assertEmpty(t, s)
	// Compressed once more it does not even get to the layers.
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = w.Write(append(b, make([]byte, 4<<20)...))
	w.Close()
	if _, err := s.Import(t.Context(), write(t, packed.Bytes()), nil); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("%v", err)
	}
	assertEmpty(t, s)
	if _, err := s.Import(t.Context(), save(t, image(t, []file{{name: "good", body: "good"}}), "example/small:1"), nil); err != nil {
		t.Errorf("what fits is not taken: %v", err)
	}
}

// Two processes share a store: neither removes what the other uses.
func TestALayerInUseByAnotherProcessStays(t *testing.T) {
	s := open(t)
	got, err := s.Import(t.Context(), save(t, image(t, []file{{name: "hello", body: "x"}}), "example/a:1"), nil)
	if err != nil {
		t.Fatal(err)
	}
	dirs, release, err := s.Hold(got[0])
	if err != nil {
		t.Fatal(err)
	}
	other, err := Open(s.Root(), slog.New(slog.DiscardHandler)) // its own locks, as in another process
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Remove("example/a:1"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dirs[0], "hello")); err != nil {
		t.Errorf("the layer is gone: %v", err)
	}
	release()
	if err := other.forget(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dirs[0]); !os.IsNotExist(err) {
		t.Errorf("the layer is still there: %v", err)
	}
	if left, _ := os.ReadDir(filepath.Join(s.Root(), "locks")); len(left) > 0 {
		t.Errorf("locks are left: %v", left)
	}
}

func TestPullWithCredentialsOverTLS(t *testing.T) {
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, ok := r.BasicAuth(); !ok || user != "me" || password != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`)
			return
		}
		inner.ServeHTTP(w, r)
	}))
	defer server.Close()
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	ref := strings.TrimPrefix(server.URL, "https://") + "/team/private:1"
	parsed, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	img := image(t, []file{{name: "hello", body: "private"}})
	if err := remote.Write(parsed, img, remote.WithTransport(server.Client().Transport), remote.WithAuth(&authn.Basic{Username: "me", Password: "secret"})); err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(server.Certificate())
	trusting := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
	defer trusting.CloseIdleConnections()
	for name, c := range map[string]struct {
		auth   Auth
		client http.RoundTripper
		want   error
		ok     bool
	}{
		"with the password":        {Auth{Username: "me", Password: "secret"}, trusting, nil, true},
		"with both in one":         {Auth{Auth: "bWU6c2VjcmV0"}, trusting, nil, true},
		"with another":             {Auth{Username: "me", Password: "guess"}, trusting, ErrUnauthorized, false},
		"with none":                {Auth{}, trusting, ErrUnauthorized, false},
		"an authority not trusted": {Auth{Username: "me", Password: "secret"}, nil, nil, false},
	} {
		s := open(t)
		_, err := s.Pull(t.Context(), ref, c.auth, c.client)
		if (err == nil) != c.ok || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if !c.ok {
			assertEmpty(t, s)
		}
	}
}

// FuzzImport feeds archives; whatever is in them, an error leaves nothing.
func FuzzImport(f *testing.F) {
	var seeds []string
	dir := f.TempDir()
	for i, headers := range [][]*tar.Header{{reg("manifest.json"), reg("c.json")}, {reg("oci-layout"), reg("index.json")}} {
		path := filepath.Join(dir, fmt.Sprint(i))
		if err := os.WriteFile(path, pack(f, headers, `[{"Config":"c.json","RepoTags":["a:1"],"Layers":[]}]`, `{"rootfs":{"type":"layers","diff_ids":[]}}`), 0o600); err != nil {
			f.Fatal(err)
		}
		seeds = append(seeds, path)
	}
	for _, path := range seeds {
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Open(filepath.Join(t.TempDir(), "images"), slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "archive")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if list, err := s.Import(t.Context(), path, nil); err != nil && len(list) == 0 {
			assertEmpty(t, s)
		}
	})
}

// FuzzUnpack feeds layers to the unpacking of one.
func FuzzUnpack(f *testing.F) {
	f.Add(pack(f, []*tar.Header{reg("a/b"), {Name: "l", Linkname: "../../../x", Typeflag: tar.TypeSymlink}, {Name: "a/.wh.b", Typeflag: tar.TypeReg}}, "x"))
	f.Fuzz(func(t *testing.T, b []byte) {
		outside := t.TempDir()
		s, err := Open(filepath.Join(outside, "images"), slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		l := static.NewLayer(b, types.OCIUncompressedLayer)
		id, err := l.DiffID()
		if err != nil {
			t.Fatal(err)
		}
		_ = s.unpackLayer(t.Context(), l, id)
		entries, err := os.ReadDir(outside)
		if err != nil || len(entries) != 1 {
			t.Errorf("outside the store: %v %v", entries, err)
		}
	})
}
