package volume

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// File is one file of a projected volume.
type File struct {
	Data []byte
	Mode fs.FileMode
	UID  *int64
}

const (
	dataLink = "..data"
	dataTemp = "..data_tmp"
)

// WriteAtomic makes dir show exactly files: readers see either all old or all new
// ones. The files live in a timestamped directory, "..data" points to it, and the
// visible names point through "..data". It reports whether anything changed.
func WriteAtomic(dir string, files map[string]File, gid *int64) (bool, error) {
	for name := range files {
		if err := validPath(name); err != nil {
			return false, err
		}
	}
	old, err := os.Readlink(filepath.Join(dir, dataLink))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if old != "" {
		same, err := unchanged(filepath.Join(dir, old), files)
		if err != nil {
			return false, err
		}
		if same {
			return false, nil
		}
	}
	fresh, err := os.MkdirTemp(dir, time.Now().UTC().Format("..2006_01_02_15_04_05."))
	if err != nil {
		return false, err
	}
	if err := fill(fresh, files, gid); err != nil {
		os.RemoveAll(fresh)
		return false, err
	}
	tmp := filepath.Join(dir, dataTemp)
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if err := os.Symlink(filepath.Base(fresh), tmp); err != nil {
		return false, err
	}
	if err := os.Rename(tmp, filepath.Join(dir, dataLink)); err != nil {
		return false, err
	}
	if err := links(dir, files); err != nil {
		return false, err
	}
	if old != "" {
		if err := os.RemoveAll(filepath.Join(dir, filepath.Base(old))); err != nil {
			return true, err
		}
	}
	return true, nil
}

func validPath(p string) error {
	if p == "" || filepath.IsAbs(p) || filepath.Clean(p) != p || len(p) > 4096 {
		return fmt.Errorf("invalid path %q", p)
	}
	for part := range strings.SplitSeq(p, "/") {
		if part == ".." {
			return fmt.Errorf("invalid path %q: must not contain \"..\"", p)
		}
	}
	if strings.HasPrefix(p, "..") {
		return fmt.Errorf("invalid path %q: must not start with \"..\"", p)
	}
	return nil
}

// fill writes files below dir. Modes and owners are set after the content: a
// umask must not change them.
func fill(dir string, files map[string]File, gid *int64) error {
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	owner := -1
	if gid != nil {
		owner = int(*gid)
		if err := os.Chown(dir, -1, owner); err != nil {
			return err
		}
		if err := os.Chmod(dir, 0o775|fs.ModeSetgid); err != nil {
			return err
		}
	}
	for name, f := range files {
		p := filepath.Join(dir, name)
		if sub := filepath.Dir(p); sub != dir {
			if err := os.MkdirAll(sub, 0o755); err != nil {
				return err
			}
		}
		if err := os.WriteFile(p, f.Data, 0o600); err != nil {
			return err
		}
		mode := f.Mode
		uid := -1
		if f.UID != nil {
			uid = int(*f.UID)
		}
		if gid != nil {
			// The group may read what the owner may (fsGroup).
			mode |= 0o040
		}
		if uid >= 0 || owner >= 0 {
			if err := os.Chown(p, uid, owner); err != nil {
				return err
			}
		}
		if err := os.Chmod(p, mode); err != nil {
			return err
		}
	}
	return nil
}

func unchanged(dir string, files map[string]File) (bool, error) {
	n := 0
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		n++
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		f, ok := files[rel]
		if !ok {
			return fs.SkipAll
		}
		data, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		if !bytes.Equal(data, f.Data) {
			n = -1
			return fs.SkipAll
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil || n != len(files) {
		return false, err
	}
	for name := range files {
		if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
			return false, nil
		}
	}
	return true, nil
}

// links makes the visible names, one for each first path element, and removes
// those of files that are gone.
func links(dir string, files map[string]File) error {
	want := map[string]bool{}
	for name := range files {
		top, _, _ := strings.Cut(name, "/")
		want[top] = true
	}
	for top := range want {
		p := filepath.Join(dir, top)
		target := filepath.Join(dataLink, top)
		if have, err := os.Readlink(p); err == nil && have == target {
			continue
		}
		if err := os.Symlink(target, p); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "..") || want[e.Name()] {
			continue
		}
		if have, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && strings.HasPrefix(have, dataLink+"/") {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}
