// Package shim carries the container helper, a small static C program (see
// main.c), and writes the descriptions that it reads.
package shim

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

//go:generate sh -c "gcc -std=gnu11 -O2 -Wall -Wextra -Werror -ffreestanding -fno-tree-loop-distribute-patterns -fno-stack-protector -fno-asynchronous-unwind-tables -U_FORTIFY_SOURCE -fno-pie -no-pie -static -nostdlib -s -Wl,--build-id=none -Wl,-z,norelro -o bin/proa-shim src/*.c"

//go:embed all:bin
var files embed.FS

// ErrMissing says that the program was built without the helper.
var ErrMissing = errors.New("built without the container helper: run make build")

// Unpack writes the helper into dir under a name made of its content, so that an
// upgrade leaves running containers alone, and returns its path.
func Unpack(dir string) (string, error) {
	b, err := files.ReadFile("bin/proa-shim")
	if errors.Is(err, fs.ErrNotExist) {
		return "", ErrMissing
	}
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("unpack the container helper: %w", err)
	}
	path := filepath.Join(dir, fmt.Sprintf("proa-shim-%x", sha256.Sum256(b))[:len("proa-shim-")+16])
	if info, err := os.Stat(path); err == nil && info.Size() == int64(len(b)) {
		return path, nil
	}
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, b, 0o700); err != nil {
		return "", fmt.Errorf("unpack the container helper: %w", err)
	}
	return path, os.Rename(tmp, path)
}

// Spec is a description under way.
type Spec struct {
	buf bytes.Buffer
	err error
}

// Put adds a record. A field with a NUL byte makes Bytes fail.
func (s *Spec) Put(keyword string, fields ...string) {
	for _, f := range append([]string{keyword}, fields...) {
		if strings.IndexByte(f, 0) >= 0 && s.err == nil {
			s.err = fmt.Errorf("%s %q: a NUL byte is not allowed", keyword, f)
		}
		s.buf.WriteString(f)
		s.buf.WriteByte(0)
	}
}

// Flag adds a record without fields when on is set.
func (s *Spec) Flag(keyword string, on bool) {
	if on {
		s.Put(keyword)
	}
}

// Number adds a record of one number.
func (s *Spec) Number(keyword string, n int64) { s.Put(keyword, strconv.FormatInt(n, 10)) }

// Mount is one mount of a container, in the order in which they are made.
type Mount struct {
	Source, Target, Type, Data string
	Flags, Propagation         uintptr
	File                       bool // the target is a file
	AllReadonly                bool // the mounts below a bind too
}

// Mount adds a mount.
func (s *Spec) Mount(m Mount) {
	s.Put("mount", m.Source, m.Target, m.Type, strconv.FormatUint(uint64(m.Flags), 10), strconv.FormatUint(uint64(m.Propagation), 10), m.Data, flag(m.File), flag(m.AllReadonly))
}

func flag(on bool) string {
	if on {
		return "1"
	}
	return "0"
}

// Device is a node that a container gets at Path. Mode has the kind too.
type Device struct {
	Path         string
	Mode         uint32
	Major, Minor uint32
	UID, GID     uint32
}

// Device adds a device.
func (s *Spec) Device(d Device) {
	s.Put("device", d.Path)
	for _, n := range []uint32{d.Mode, d.Major, d.Minor, d.UID, d.GID} {
		s.Put(strconv.FormatUint(uint64(n), 10))
	}
}

// Bytes returns the description.
func (s *Spec) Bytes() ([]byte, error) { return s.buf.Bytes(), s.err }
