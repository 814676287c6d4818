// Package images keeps the container images of a node: pulled from a registry or
// imported from an archive, verified by digest, unpacked once per layer into
// folders that overlayfs stacks. Layers are shared between images by content.
//
// It runs nothing and mounts nothing.
package images

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
)

// Image is one image on this node.
type Image struct {
	ID          string    `json:"id"` // sha256:… of the image configuration
	RepoTags    []string  `json:"repoTags,omitempty"`
	RepoDigests []string  `json:"repoDigests,omitempty"`
	Layers      []string  `json:"layers"` // diff IDs, lowest first
	Size        int64     `json:"size"`   // bytes of the unpacked layers
	Pinned      bool      `json:"pinned,omitempty"`
	Created     time.Time `json:"created"` // when it came to this node
}

// ErrNotFound says that no image has the name or ID.
var ErrNotFound = errors.New("image not found")

// Store is the images in one folder. Several processes may use it: changes take
// a file lock, and the index is read again when another process changed it.
type Store struct {
	// Registries is the folder of the registries' hosts.toml files (see package
	// registries); "": none. It may be missing.
	Registries string

	root string
	log  *slog.Logger

	mu     sync.Mutex
	index  []Image
	stamp  fileStamp
	inUse  map[string]*use // diff ID -> containers and unpacking under way
	unpack map[string]*unpacking
}

type fileStamp struct {
	mod  time.Time
	size int64
	ino  uint64
}

// Open returns the store in root, made when it does not exist, and clears away
// what an interrupted unpacking left.
func Open(root string, log *slog.Logger) (*Store, error) {
	s := &Store{root: root, log: log, inUse: map[string]*use{}, unpack: map[string]*unpacking{}}
	for _, dir := range []string{"layers", "configs", "tmp", "locks"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o700); err != nil {
			return nil, fmt.Errorf("make the image folder: %w", err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.reload(); err != nil {
		return nil, err
	}
	return s, s.locked(func() error {
		// Whoever else works here holds the lock only to change the index, so old
		// temporary files may still be written to: only those of a day ago go.
		entries, err := os.ReadDir(filepath.Join(root, "tmp"))
		if err != nil {
			return err
		}
		for _, e := range entries {
			if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > 24*time.Hour {
				if err := os.RemoveAll(filepath.Join(root, "tmp", e.Name())); err != nil {
					return fmt.Errorf("clear the image store: %w", err)
				}
			}
		}
		return nil
	})
}

func (s *Store) indexPath() string              { return filepath.Join(s.root, "index.json") }
func (s *Store) layerPath(diffID string) string { return filepath.Join(s.root, "layers", hex(diffID)) }
func (s *Store) configPath(id string) string    { return filepath.Join(s.root, "configs", hex(id)) }
func hex(digest string) string                  { return strings.TrimPrefix(digest, "sha256:") }

// reload reads the index when it changed on disk. The caller holds mu.
func (s *Store) reload() error {
	info, err := os.Stat(s.indexPath())
	if errors.Is(err, fs.ErrNotExist) {
		s.index, s.stamp = nil, fileStamp{}
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the image index: %w", err)
	}
	stamp := fileStamp{mod: info.ModTime(), size: info.Size()}
	if st, ok := info.Sys().(*unixStat); ok {
		stamp.ino = st.Ino
	}
	if stamp == s.stamp {
		return nil
	}
	b, err := os.ReadFile(s.indexPath())
	if err != nil {
		return fmt.Errorf("read the image index: %w", err)
	}
	var index []Image
	if err := json.Unmarshal(b, &index); err != nil {
		return fmt.Errorf("read %s: %w: remove it and import the images again", s.indexPath(), err)
	}
	s.index, s.stamp = index, stamp
	return nil
}

// locked runs fn while no other process changes the store. The caller holds mu.
func (s *Store) locked(fn func() error) error {
	f, err := os.OpenFile(filepath.Join(s.root, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("lock the image store: %w", err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock the image store: %w", err)
	}
	if err := s.reload(); err != nil {
		return err
	}
	return fn()
}

// save writes the index whole. The caller holds the lock.
func (s *Store) save(index []Image) error {
	b, err := json.MarshalIndent(index, "", " ")
	if err != nil {
		return err
	}
	tmp := filepath.Join(s.root, "tmp", "index.json")
	if err := writeSynced(tmp, b); err != nil {
		_ = os.Remove(tmp)
		return fmt.Errorf("write the image index: %w", err)
	}
	if err := os.Rename(tmp, s.indexPath()); err != nil {
		return fmt.Errorf("write the image index: %w", err)
	}
	s.stamp = fileStamp{}
	return s.reload()
}

func writeSynced(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

// List returns the images, newest last.
func (s *Store) List() ([]Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.reload(); err != nil {
		return nil, err
	}
	return slices.Clone(s.index), nil
}

// Resolve finds an image by name, digest or ID (a prefix of at least 12 digits will do).
func (s *Store) Resolve(ref string) (Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.reload(); err != nil {
		return Image{}, err
	}
	return find(s.index, ref)
}

func find(index []Image, ref string) (Image, error) {
	for _, img := range index {
		if img.ID == ref || hex(img.ID) == ref || len(ref) >= 12 && strings.HasPrefix(hex(img.ID), ref) {
			return img, nil
		}
	}
	want, err := Normalize(ref)
	if err != nil {
		return Image{}, err
	}
	for _, img := range index {
		if slices.Contains(img.RepoTags, want) || slices.Contains(img.RepoDigests, want) {
			return img, nil
		}
	}
	return Image{}, fmt.Errorf("%q: %w", ref, ErrNotFound)
}

// Config returns an image's configuration (OCI image spec).
func (s *Store) Config(id string) (*v1.ConfigFile, error) {
	f, err := os.Open(s.configPath(id))
	if err != nil {
		return nil, fmt.Errorf("read the configuration of image %s: %w", id, err)
	}
	defer f.Close()
	return v1.ParseConfigFile(f)
}

// Hold returns the layer folders of an image, topmost first as overlayfs wants
// them, and keeps them until release is called.
func (s *Store) Hold(img Image) (dirs []string, release func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := len(img.Layers) - 1; i >= 0; i-- {
		path := s.layerPath(img.Layers[i])
		if _, err := os.Stat(path); err != nil {
			return nil, nil, fmt.Errorf("layer %s of image %s: %w: pull or import it again", img.Layers[i], img.ID, err)
		}
		dirs = append(dirs, path)
	}
	if err := s.retain(img.Layers); err != nil {
		return nil, nil, err
	}
	var once sync.Once
	return dirs, func() { once.Do(func() { s.drop(img.Layers) }) }, nil
}

// Remove takes a name off an image; with the last name, or when ref is an ID, the
// image goes. Removing what is not there is no error. Layers that a container
// uses stay until the next sweep.
func (s *Store) Remove(ref string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.locked(func() error {
		img, err := find(s.index, ref)
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		name, _ := Normalize(ref)
		index := slices.Clone(s.index)
		at := slices.IndexFunc(index, func(i Image) bool { return i.ID == img.ID })
		if slices.Contains(img.RepoTags, name) && len(img.RepoTags) > 1 {
			img.RepoTags = slices.DeleteFunc(slices.Clone(img.RepoTags), func(t string) bool { return t == name })
			index[at] = img
		} else {
			index = slices.Delete(index, at, at+1)
		}
		if err := s.save(index); err != nil {
			return err
		}
		return s.sweep()
	})
}

// put records an image whose layers and configuration are in place.
func (s *Store) put(img Image) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.locked(func() error {
		index := slices.Clone(s.index)
		// A name belongs to one image: it moves.
		for i := range index {
			if index[i].ID != img.ID {
				index[i].RepoTags = slices.DeleteFunc(slices.Clone(index[i].RepoTags), func(t string) bool { return slices.Contains(img.RepoTags, t) })
			}
		}
		if at := slices.IndexFunc(index, func(i Image) bool { return i.ID == img.ID }); at >= 0 {
			img.RepoTags = union(index[at].RepoTags, img.RepoTags)
			img.RepoDigests = union(index[at].RepoDigests, img.RepoDigests)
			img.Created, img.Pinned = index[at].Created, img.Pinned || index[at].Pinned
			index[at] = img
		} else {
			index = append(index, img)
		}
		return s.save(index)
	})
}

func union(a, b []string) []string {
	out := slices.Clone(a)
	for _, x := range b {
		if !slices.Contains(out, x) {
			out = append(out, x)
		}
	}
	return out
}

// Usage returns the bytes and inodes that the store's images take.
func (s *Store) Usage() (bytes, inodes uint64, err error) {
	list, err := s.List()
	if err != nil {
		return 0, 0, err
	}
	seen := map[string]bool{}
	for _, img := range list {
		if !seen[img.ID] {
			seen[img.ID] = true
			bytes += uint64(img.Size)
		}
	}
	return bytes, inodes, nil
}

// Root is the folder that the images are in.
func (s *Store) Root() string { return s.root }

// Normalize gives a reference its full name: "nginx" is
// docker.io/library/nginx:latest.
func Normalize(ref string) (string, error) {
	r, err := name.ParseReference(ref, name.WeakValidation)
	if err != nil {
		return "", fmt.Errorf("image name %q: %w", ref, err)
	}
	return display(r), nil
}

func display(r name.Reference) string {
	full := r.Name()
	if rest, ok := strings.CutPrefix(full, name.DefaultRegistry+"/"); ok {
		return "docker.io/" + rest
	}
	return full
}
