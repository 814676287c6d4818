// Package kubectl carries the whole of kubectl (cmd/kubectl), compressed, and
// unpacks it on first use. It knows nothing of what kubectl does; it only says
// which cluster it speaks to when the user has not.
package kubectl

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

//go:embed all:bin
var embedded embed.FS

// ErrMissing says that the program was built without kubectl.
var ErrMissing = errors.New("this proa was built without kubectl: build it with `make build`, or use any kubectl of 1.36 or later")

// Packed is a compressed program with the digest of what it unpacks to.
type Packed struct {
	program []byte // zstd
	digest  string
	size    int64
}

// Embedded returns the kubectl that this program was built with, or ErrMissing.
func Embedded() (*Packed, error) {
	program, err := embedded.ReadFile("bin/kubectl.zst")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrMissing
	}
	if err != nil {
		return nil, fmt.Errorf("read the kubectl inside: %w", err)
	}
	sum, err := embedded.ReadFile("bin/kubectl.sha256")
	if err != nil {
		return nil, fmt.Errorf("read the kubectl inside: %w", err)
	}
	return parse(program, sum)
}

func parse(program, sum []byte) (*Packed, error) {
	p := &Packed{program: program}
	if n, err := fmt.Sscanf(string(sum), "%s %d", &p.digest, &p.size); n != 2 || len(p.digest) != 2*sha256.Size {
		return nil, fmt.Errorf("the digest of the kubectl inside is damaged: %w", err)
	}
	return p, nil
}

// name is made of the content, so that versions do not meet.
func (p *Packed) name() string { return "kubectl-" + p.digest[:16] }

// Unpack returns the path of the unpacked program in the first of dirs that has
// it, or else that takes it. Processes that unpack at the same time do not harm
// each other: a file appears whole or not at all.
func (p *Packed) Unpack(dirs ...string) (string, error) {
	for _, dir := range dirs {
		if path := filepath.Join(dir, p.name()); trusted(dir) && p.usable(path) {
			return path, nil
		}
	}
	var errs []error
	for _, dir := range dirs {
		path, err := p.unpack(dir)
		if err == nil {
			return path, nil
		}
		errs = append(errs, err)
	}
	return "", fmt.Errorf("unpack kubectl: %w", errors.Join(errs...))
}

// usable says whether path is what unpack left there: whole, and of a hand that
// may be trusted. Unpack has checked the digest before the file got this name.
func (p *Packed) usable(path string) bool {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return false
	}
	return st.Mode&unix.S_IFMT == unix.S_IFREG && st.Mode&0o777 == 0o755 && st.Size == p.size && (st.Uid == 0 || int(st.Uid) == os.Geteuid())
}

// trusted says whether nobody else can exchange the files in dir.
func trusted(dir string) bool {
	var st unix.Stat_t
	return unix.Lstat(dir, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR && st.Mode&0o022 == 0 && (st.Uid == 0 || int(st.Uid) == os.Geteuid())
}

func (p *Packed) unpack(dir string) (path string, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	if !trusted(dir) {
		return "", fmt.Errorf("others may write to %s", dir)
	}
	f, err := os.CreateTemp(dir, ".kubectl-*")
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	zr, err := zstd.NewReader(bytes.NewReader(p.program), zstd.WithDecoderLowmem(false))
	if err != nil {
		return "", err
	}
	defer zr.Close()
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, sum), io.LimitReader(zr, p.size+1))
	if err != nil {
		return "", fmt.Errorf("decompress into %s: %w", f.Name(), err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); n != p.size || got != p.digest {
		return "", fmt.Errorf("the kubectl inside is damaged: digest %s of %d bytes, want %s of %d", got, n, p.digest, p.size)
	}
	if err := f.Chmod(0o755); err != nil {
		return "", err
	}
	if err := f.Sync(); err != nil { // else a power cut can leave an empty file under the name
		return "", err
	}
	if err := f.Close(); err != nil {
		return "", err
	}
	path = filepath.Join(dir, p.name())
	if err := os.Rename(f.Name(), path); err != nil {
		return "", err
	}
	p.sweep(dir)
	return path, nil
}

// sweep removes the kubectl of other versions, so that upgrades do not pile up.
// One that runs keeps its file until it ends.
func (p *Packed) sweep(dir string) {
	old, _ := filepath.Glob(filepath.Join(dir, "kubectl-????????????????"))
	for _, path := range old {
		if filepath.Base(path) != p.name() {
			_ = os.Remove(path)
		}
	}
}
