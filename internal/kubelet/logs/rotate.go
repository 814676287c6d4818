package logs

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Defaults of rotation: containerLogMaxSize and containerLogMaxFiles.
const (
	MaxSize  = 10 << 20
	MaxFiles = 5
)

// Reopener is the runtime's part of a rotation.
type Reopener interface {
	ReopenContainerLog(context.Context, *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error)
}

// Rotator keeps log files small.
type Rotator struct {
	rt  Reopener
	log *slog.Logger
	// MaxSize of a file and MaxFiles of a container.
	MaxSize  int64
	MaxFiles int
}

func NewRotator(rt Reopener, log *slog.Logger) *Rotator {
	return &Rotator{rt: rt, log: log, MaxSize: MaxSize, MaxFiles: MaxFiles}
}

// Check rotates the log of a running container if it has grown too large.
func (r *Rotator) Check(ctx context.Context, id, path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("rotating log: %w", err)
	}
	if st.Size() < r.MaxSize || !st.Mode().IsRegular() {
		return nil
	}
	old, err := rotatedOf(path)
	if err != nil {
		return err
	}
	// The current file and the one that is about to be made count.
	for len(old) > max(r.MaxFiles-2, 0) {
		if err := os.Remove(old[0]); err != nil {
			return fmt.Errorf("rotating log: %w", err)
		}
		old = old[1:]
	}
	for _, p := range old {
		if !strings.HasSuffix(p, ".gz") {
			if err := compress(p); err != nil {
				return fmt.Errorf("rotating log: %w", err)
			}
		}
	}
	to := path + "." + time.Now().UTC().Format("20060102-150405")
	if err := os.Rename(path, to); err != nil {
		return fmt.Errorf("rotating log: %w", err)
	}
	if _, err := r.rt.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: id}); err != nil {
		// The runtime still writes to the old file: give it back its name.
		if rerr := os.Rename(to, path); rerr != nil {
			r.log.Warn("giving a log its name back", "path", path, "err", rerr)
		}
		return fmt.Errorf("rotating log %s: %w", path, err)
	}
	return nil
}

// rotatedOf returns the rotated files of a log, the oldest first.
func rotatedOf(path string) ([]string, error) {
	all, err := filepath.Glob(path + ".*")
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(p string) bool {
		if strings.HasSuffix(p, ".tmp") {
			os.Remove(p)
			return true
		}
		return false
	})
	slices.Sort(all)
	return all, nil
}

func compress(path string) error {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	tmp := path + ".tmp"
	out, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	z := gzip.NewWriter(out)
	_, err = io.Copy(z, in)
	err = errors.Join(err, z.Close(), out.Close())
	if err == nil {
		err = os.Rename(tmp, path+".gz")
	}
	if err != nil {
		os.Remove(tmp)
		return err
	}
	return os.Remove(path)
}
