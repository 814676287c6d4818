package images

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
)

// Annotations that name an image in an OCI layout.
const (
	refAnnotation        = "org.opencontainers.image.ref.name"
	containerdAnnotation = "io.containerd.image.name"
)

// Import takes in the images of an archive (docker save, or a packed OCI layout;
// plain, gzip or zstd) or of a folder that is an OCI layout. names, when given,
// replace the archive's own; they need an archive with one image.
func (s *Store) Import(ctx context.Context, from string, names []string) ([]Image, error) {
	out, err := s.importFrom(ctx, from, names)
	if err != nil {
		return out, fmt.Errorf("import %s: %w", from, err)
	}
	return out, nil
}

func (s *Store) importFrom(ctx context.Context, from string, names []string) ([]Image, error) {
	info, err := os.Stat(from)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return s.importLayout(ctx, from, names)
	}
	plain, cleanup, err := s.decompress(from)
	if err != nil {
		return nil, err
	}
	defer cleanup()
	oci, err := hasOCILayout(plain)
	if err != nil {
		return nil, err
	}
	if !oci {
		return s.importDocker(ctx, plain, names)
	}
	dir, err := os.MkdirTemp(filepath.Join(s.root, "tmp"), "oci-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if err := extractLayout(plain, dir); err != nil {
		return nil, err
	}
	return s.importLayout(ctx, dir, names)
}

// decompress returns the path of the archive without compression.
func (s *Store) decompress(from string) (string, func(), error) {
	f, err := os.Open(from)
	if err != nil {
		return "", nil, err
	}
	defer f.Close()
	magic := make([]byte, 4)
	n, _ := io.ReadFull(f, magic)
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return "", nil, err
	}
	var r io.Reader
	switch {
	case n >= 2 && magic[0] == 0x1f && magic[1] == 0x8b:
		if r, err = gzip.NewReader(f); err != nil {
			return "", nil, err
		}
	case n == 4 && magic[0] == 0x28 && magic[1] == 0xb5 && magic[2] == 0x2f && magic[3] == 0xfd:
		d, err := zstd.NewReader(f)
		if err != nil {
			return "", nil, err
		}
		defer d.Close()
		r = d
	default:
		return from, func() {}, nil
	}
	tmp, err := os.CreateTemp(filepath.Join(s.root, "tmp"), "import-")
	if err != nil {
		return "", nil, err
	}
	cleanup := func() { os.Remove(tmp.Name()) }
	_, err = io.Copy(tmp, r)
	if err := errors.Join(err, tmp.Close()); err != nil {
		cleanup()
		return "", nil, fmt.Errorf("decompress: %w", err)
	}
	return tmp.Name(), cleanup, nil
}

func hasOCILayout(archive string) (bool, error) {
	docker := false
	oci := false
	err := eachEntry(archive, func(h *tar.Header, _ io.Reader) error {
		switch path.Clean(h.Name) {
		case "oci-layout":
			oci = true
		case "manifest.json":
			docker = true
		}
		return nil
	})
	if err != nil {
		return false, err
	}
	if !oci && !docker {
		return false, errors.New("neither a docker archive (no manifest.json) nor an OCI layout (no oci-layout)")
	}
	return oci && !docker, nil // docker save writes both: its manifest.json has the names
}

func eachEntry(archive string, fn func(*tar.Header, io.Reader) error) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("not a tar archive, or a broken one: %w", err)
		}
		if err := fn(h, r); err != nil {
			return err
		}
	}
}

var blobName = regexp.MustCompile(`^blobs/sha256/[0-9a-f]{64}$`)

// extractLayout writes the files of an OCI layout and no others, whatever else
// the archive names.
func extractLayout(archive, dir string) error {
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o700); err != nil {
		return err
	}
	return eachEntry(archive, func(h *tar.Header, r io.Reader) error {
		clean := path.Clean(h.Name)
		if h.Typeflag != tar.TypeReg || clean != "oci-layout" && clean != "index.json" && !blobName.MatchString(clean) {
			return nil
		}
		f, err := os.OpenFile(filepath.Join(dir, clean), os.O_CREATE|os.O_WRONLY|os.O_TRUNC|os.O_EXCL, 0o600)
		if errors.Is(err, os.ErrExist) {
			return fmt.Errorf("the archive has %s twice", clean)
		}
		if err != nil {
			return err
		}
		_, err = io.Copy(f, r)
		return errors.Join(err, f.Close())
	})
}

func (s *Store) importDocker(ctx context.Context, archive string, names []string) ([]Image, error) {
	opener := func() (io.ReadCloser, error) { return os.Open(archive) }
	manifest, err := tarball.LoadManifest(opener)
	if err != nil {
		return nil, fmt.Errorf("read manifest.json: %w", err)
	}
	if len(manifest) == 0 {
		return nil, errors.New("manifest.json lists no image")
	}
	if len(names) > 0 && len(manifest) != 1 {
		return nil, fmt.Errorf("the archive has %d images: a name can be given to one only", len(manifest))
	}
	var out []Image
	for _, entry := range manifest {
		tags := names
		if len(tags) == 0 {
			tags = entry.RepoTags
		}
		var pick *name.Tag
		if len(entry.RepoTags) > 0 {
			t, err := name.NewTag(entry.RepoTags[0], name.WeakValidation)
			if err != nil {
				return out, fmt.Errorf("image name %q: %w", entry.RepoTags[0], err)
			}
			pick = &t
		} else if len(manifest) > 1 {
			return out, errors.New("the archive has several images, some without a name")
		}
		img, err := tarball.Image(opener, pick)
		if err != nil {
			return out, err
		}
		added, err := s.importOne(ctx, img, tags)
		if err != nil {
			return out, err
		}
		out = append(out, added)
	}
	return out, nil
}

func (s *Store) importOne(ctx context.Context, img v1.Image, tags []string) (Image, error) {
	full := make([]string, 0, len(tags))
	for _, t := range tags {
		n, err := Normalize(t)
		if err != nil {
			return Image{}, err
		}
		full = append(full, n)
	}
	if len(full) == 0 {
		return Image{}, errors.New("the archive names no image: give it a name with --name")
	}
	added, err := s.add(ctx, img, full, nil)
	if err != nil {
		return Image{}, err
	}
	return s.Resolve(added.ID)
}

func (s *Store) importLayout(ctx context.Context, dir string, names []string) ([]Image, error) {
	p, err := layout.FromPath(dir)
	if err != nil {
		return nil, fmt.Errorf("not an OCI layout: %w", err)
	}
	index, err := p.ImageIndex()
	if err != nil {
		return nil, err
	}
	type found struct {
		image v1.Image
		tags  []string
	}
	var list []found
	if err := walk(index, nil, 0, func(img v1.Image, tags []string) error {
		list = append(list, found{img, tags})
		return nil
	}); err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("no image for %s/%s in it", runtime.GOOS, runtime.GOARCH)
	}
	if len(names) > 0 && len(list) != 1 {
		return nil, fmt.Errorf("the layout has %d images: a name can be given to one only", len(list))
	}
	var out []Image
	for _, f := range list {
		tags := f.tags
		if len(names) > 0 {
			tags = names
		}
		added, err := s.importOne(ctx, f.image, tags)
		if err != nil {
			return out, err
		}
		out = append(out, added)
	}
	return out, nil
}

// walk visits the images of an index that run here, indexes within it too.
func walk(index v1.ImageIndex, tags []string, depth int, fn func(v1.Image, []string) error) error {
	if depth > 4 {
		return errors.New("indexes are nested too deep")
	}
	m, err := index.IndexManifest()
	if err != nil {
		return fmt.Errorf("read the index: %w", err)
	}
	for _, d := range m.Manifests {
		own := tags
		if n := d.Annotations[containerdAnnotation]; n != "" {
			own = []string{n}
		} else if n := d.Annotations[refAnnotation]; n != "" && strings.ContainsAny(n, "/:.") {
			own = []string{n}
		}
		switch d.MediaType {
		case types.OCIImageIndex, types.DockerManifestList:
			child, err := index.ImageIndex(d.Digest)
			if err != nil {
				return err
			}
			if err := walk(child, own, depth+1, fn); err != nil {
				return err
			}
		case types.OCIManifestSchema1, types.DockerManifestSchema2:
			if p := d.Platform; p != nil && (p.OS != runtime.GOOS || p.Architecture != runtime.GOARCH) {
				continue
			}
			img, err := index.Image(d.Digest)
			if err != nil {
				return err
			}
			raw, err := img.RawManifest()
			if err != nil {
				return err
			}
			if err := verify(raw, d.Digest); err != nil {
				return err
			}
			if err := fn(img, own); err != nil {
				return err
			}
		}
	}
	return nil
}

// verify checks bytes against their digest, and that a manifest is JSON.
func verify(raw []byte, want v1.Hash) error {
	got, _, err := v1.SHA256(strings.NewReader(string(raw)))
	if err != nil {
		return err
	}
	if got != want {
		return fmt.Errorf("the manifest has digest %s, the index says %s", got, want)
	}
	if !json.Valid(raw) {
		return errors.New("the manifest is no JSON")
	}
	return nil
}
