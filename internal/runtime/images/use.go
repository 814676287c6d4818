package images

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// use is a layer that must stay. The lock tells other processes.
type use struct {
	count int
	lock  *os.File
}

func (s *Store) lockPath(layer string) string { return filepath.Join(s.root, "locks", hex(layer)) }

// retain keeps layers, there already or about to be, until they are dropped. The
// caller holds mu.
func (s *Store) retain(layers []string) error {
	for i, l := range layers {
		if u := s.inUse[l]; u != nil {
			u.count++
			continue
		}
		f, err := share(s.lockPath(l))
		if err != nil {
			s.unretain(layers[:i])
			return fmt.Errorf("lock layer %s: %w", l, err)
		}
		s.inUse[l] = &use{1, f}
	}
	return nil
}

// share takes a lock that others may have too, but no one who removes the layer.
func share(path string) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_SH); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		mine, err := f.Stat()
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		// Whoever removed the layer meanwhile has removed the file as well.
		if now, err := os.Stat(path); err == nil && os.SameFile(mine, now) {
			return f, nil
		}
		f.Close()
	}
}

func (s *Store) unretain(layers []string) {
	for _, l := range layers {
		u := s.inUse[l]
		if u == nil {
			continue
		}
		if u.count--; u.count <= 0 {
			u.lock.Close()
			delete(s.inUse, l)
		}
	}
}

func (s *Store) drop(layers []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unretain(layers)
}

// sweep removes layers and configurations that no image has and no one uses, in
// this process or another. The caller holds mu and the store's lock.
func (s *Store) sweep() error {
	keep := map[string]bool{}
	for _, img := range s.index {
		keep[hex(img.ID)] = true
		for _, l := range img.Layers {
			keep[hex(l)] = true
		}
	}
	for l := range s.inUse {
		keep[hex(l)] = true
	}
	for l := range s.unpack {
		keep[hex(l)] = true
	}
	var errs []error
	for _, dir := range []string{"configs", "layers"} {
		entries, err := os.ReadDir(filepath.Join(s.root, dir))
		if err != nil {
			return fmt.Errorf("clear the image store: %w", err)
		}
		for _, e := range entries {
			name := strings.TrimSuffix(e.Name(), sizeFile)
			if keep[name] {
				continue
			}
			path := filepath.Join(s.root, dir, e.Name())
			if dir == "layers" {
				errs = append(errs, s.removeLayer(name))
			} else {
				errs = append(errs, os.RemoveAll(path))
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("clear the image store: %w", err)
	}
	return nil
}

// removeLayer removes a layer unless another process uses it.
func (s *Store) removeLayer(name string) error {
	lock := s.lockPath(name)
	f, err := os.OpenFile(lock, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil // it is in use, and goes with a later sweep
	}
	// The size goes first: without it the layer is not taken for whole.
	path := s.layerPath(name)
	return errors.Join(os.RemoveAll(path+sizeFile), os.RemoveAll(path), os.Remove(lock))
}
