package images

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
)

// Bounds on what an image may claim.
const (
	maxLayers     = 500
	maxConfigSize = 8 << 20
)

// unpacking is a layer on its way; others that want it wait for done.
type unpacking struct {
	done chan struct{}
	err  error
}

// add takes an image in: verifies its configuration and layers by digest, unpacks
// the layers that are not here yet, and records it under its names. On an error
// nothing of it is left.
func (s *Store) add(ctx context.Context, img v1.Image, tags, digests []string) (Image, error) {
	raw, err := img.RawConfigFile()
	if err != nil {
		return Image{}, fmt.Errorf("read the image configuration: %w", err)
	}
	if len(raw) > maxConfigSize {
		return Image{}, fmt.Errorf("the image configuration has %d bytes, at most %d are taken", len(raw), maxConfigSize)
	}
	manifest, err := img.Manifest()
	if err != nil {
		return Image{}, fmt.Errorf("read the image manifest: %w", err)
	}
	sum := fmt.Sprintf("sha256:%x", sha256.Sum256(raw))
	if want := manifest.Config.Digest.String(); sum != want {
		return Image{}, fmt.Errorf("the image configuration has digest %s, its manifest says %s", sum, want)
	}
	config, err := img.ConfigFile()
	if err != nil {
		return Image{}, fmt.Errorf("read the image configuration: %w", err)
	}
	layers, err := img.Layers()
	if err != nil {
		return Image{}, fmt.Errorf("read the image layers: %w", err)
	}
	if len(layers) != len(config.RootFS.DiffIDs) || len(layers) > maxLayers {
		return Image{}, fmt.Errorf("the image has %d layers and %d layer digests (at most %d)", len(layers), len(config.RootFS.DiffIDs), maxLayers)
	}
	out := Image{ID: sum, RepoTags: tags, RepoDigests: digests, Created: time.Now()}
	for _, id := range config.RootFS.DiffIDs {
		out.Layers = append(out.Layers, id.String())
	}
	// What was just unpacked must not be swept before the index names it.
	s.mu.Lock()
	err = s.retain(out.Layers)
	s.mu.Unlock()
	if err != nil {
		return Image{}, err
	}
	var once sync.Once
	release := func() { once.Do(func() { s.drop(out.Layers) }) }
	defer release()

	type result struct {
		size int64
		err  error
	}
	// Unpacking is bound by the disk and one decompressor: three at a time.
	slots := make(chan struct{}, 3)
	results := make(chan result, len(layers))
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for i, l := range layers {
		go func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			size, err := s.layer(ctx, l, config.RootFS.DiffIDs[i])
			results <- result{size, err}
		}()
	}
	var failed error
	for range layers {
		r := <-results
		out.Size += r.size
		if r.err != nil && failed == nil {
			failed = r.err
			cancel()
		}
	}
	if failed == nil {
		failed = s.record(out, raw)
	}
	if failed != nil {
		release()
		return Image{}, errors.Join(failed, s.forget())
	}
	return out, nil
}

// record writes an image down whose layers are in place.
func (s *Store) record(img Image, config []byte) error {
	// Two pulls of one image may be here at once, each with a file of its own.
	tmp := filepath.Join(s.root, "tmp", "config-"+rand.Text())
	err := writeSynced(tmp, config)
	if err == nil {
		err = os.Rename(tmp, s.configPath(img.ID))
	}
	if err != nil {
		_ = os.Remove(tmp)
		return fmt.Errorf("write the image configuration: %w", err)
	}
	return s.put(img)
}

// forget removes what a failed image leaves: layers and a configuration that no other has.
func (s *Store) forget() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.locked(s.sweep)
}

// layer makes sure that a layer is unpacked, once for all who ask, and returns its size.
func (s *Store) layer(ctx context.Context, l v1.Layer, diffID v1.Hash) (int64, error) {
	id := diffID.String()
	for {
		s.mu.Lock()
		if size, err := sizeOf(s.layerPath(id)); err == nil {
			s.mu.Unlock()
			return size, nil
		}
		u, busy := s.unpack[id]
		if !busy {
			u = &unpacking{done: make(chan struct{})}
			s.unpack[id] = u
		}
		s.mu.Unlock()
		if !busy {
			u.err = s.unpackLayer(ctx, l, diffID)
			s.mu.Lock()
			delete(s.unpack, id)
			s.mu.Unlock()
			close(u.done)
			if u.err != nil {
				return 0, fmt.Errorf("layer %s: %w", id, u.err)
			}
			continue
		}
		select {
		case <-u.done:
			// The one who unpacked may have been cancelled: then it is our turn.
			if u.err != nil && !errors.Is(u.err, context.Canceled) {
				return 0, fmt.Errorf("layer %s: %w", id, u.err)
			}
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// sizeFile, beside the layer's files, holds its size; it is written last, so a layer
// that has one is whole.
const sizeFile = ".proa-size"

func sizeOf(layer string) (int64, error) {
	b, err := os.ReadFile(layer + sizeFile)
	if err != nil {
		return 0, err
	}
	var n int64
	_, err = fmt.Sscan(string(b), &n)
	return n, err
}

func (s *Store) unpackLayer(ctx context.Context, l v1.Layer, diffID v1.Hash) error {
	r, err := l.Uncompressed()
	if err != nil {
		return err
	}
	defer r.Close()
	tmp, err := os.MkdirTemp(filepath.Join(s.root, "tmp"), "layer-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	room, err := free(tmp)
	if err != nil {
		return err
	}
	sum := sha256.New()
	counted := bufio.NewReaderSize(io.TeeReader(r, sum), 1<<20)
	// Apply resolves every path inside the root, whatever the archive says, and
	// turns whiteouts into those of overlayfs.
	size, err := archive.Apply(ctx, tmp, counted, archive.WithConvertWhiteout(archive.OverlayConvertWhiteout), archive.WithFilter(func(h *tar.Header) (bool, error) { return plain(h, &room) }))
	if err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	if _, err := io.Copy(io.Discard, counted); err != nil { // padding after the archive's end counts in the digest
		return fmt.Errorf("read to the end: %w", err)
	}
	if got := fmt.Sprintf("%x", sum.Sum(nil)); got != diffID.Hex {
		return fmt.Errorf("content has digest sha256:%s, the image says %s", got, diffID)
	}
	dest := s.layerPath(diffID.String())
	if err := os.RemoveAll(dest); err != nil {
		return err
	}
	if err := os.Rename(tmp, dest); err != nil {
		return err
	}
	if err := writeSynced(dest+sizeFile, []byte(fmt.Sprint(size))); err != nil {
		return errors.Join(err, os.RemoveAll(dest), os.RemoveAll(dest+sizeFile))
	}
	return nil
}

// free is how many bytes the file system of a folder has room for.
func free(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("look at the images' file system: %w", err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// plain leaves out what no image needs: a device with a whiteout's numbers, which
// would be taken for one, and attributes by which overlayfs is told what lies below.
// A file that is larger than the room there is is refused before it fills the disk:
// a sparse one costs the archive nothing.
func plain(h *tar.Header, room *int64) (bool, error) {
	if h.Typeflag == tar.TypeChar && h.Devmajor == 0 && h.Devminor == 0 {
		return false, nil
	}
	for key := range h.PAXRecords {
		if name, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok && (strings.HasPrefix(name, "trusted.") || strings.HasPrefix(name, "user.overlay.")) {
			delete(h.PAXRecords, key)
		}
	}
	if h.Typeflag == tar.TypeReg {
		if h.Size > *room {
			return false, fmt.Errorf("%s has %d bytes, there is room for %d: %w", h.Name, h.Size, *room, unix.ENOSPC)
		}
		*room -= h.Size
	}
	return true, nil
}
