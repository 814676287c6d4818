// Package instance is the process that runs on a data folder: at most one at a
// time, found and stopped by any other. It knows nothing of what the process does.
package instance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Info is what the running process tells of itself.
type Info struct {
	PID     int       `json:"pid"`
	Version string    `json:"version"`
	Server  string    `json:"server"` // URL of the API server
	Started time.Time `json:"started"`
}

// ErrNone says that nothing runs on the data folder.
var ErrNone = errors.New("no cluster runs")

func file(data string) string { return filepath.Join(data, "proa.pid") }

// Acquire makes this process the one of the data folder until release is called
// or the process ends, however it does: the kernel keeps the lock.
func Acquire(data string, i Info) (release func(), err error) {
	if err := os.MkdirAll(data, 0o755); err != nil {
		return nil, fmt.Errorf("make the data folder: %w", err)
	}
	f, err := os.OpenFile(file(data), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock the data folder: %w", err)
	}
	// A lock of the open file: it may be asked for without being taken.
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
		defer f.Close()
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES) {
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		by := ""
		if other, err := Find(data); err == nil {
			by = fmt.Sprintf(" as process %d", other.PID)
		}
		return nil, fmt.Errorf("a proa runs on %s already%s: stop it with `proa down`, or choose another folder with --data-dir", data, by)
	}
	i.PID = os.Getpid()
	b, err := json.Marshal(i)
	if err == nil {
		err = f.Truncate(0)
	}
	if err == nil {
		_, err = f.WriteAt(append(b, '\n'), 0)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("write %s: %w", f.Name(), err)
	}
	return func() { _ = f.Close() }, nil
}

// Find returns the process that runs on the data folder, or ErrNone.
func Find(data string) (Info, error) {
	f, err := os.Open(file(data))
	if errors.Is(err, fs.ErrNotExist) {
		return Info{}, fmt.Errorf("%w on %s", ErrNone, data)
	}
	if err != nil {
		return Info{}, fmt.Errorf("look for a cluster: %w (run it with sudo)", err)
	}
	defer f.Close()
	ask := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &ask); err != nil {
		return Info{}, fmt.Errorf("look at the lock of %s: %w", f.Name(), err)
	}
	if ask.Type == unix.F_UNLCK {
		return Info{}, fmt.Errorf("%w on %s", ErrNone, data)
	}
	// Between lock and first write the file is empty.
	var info Info
	for range 50 {
		b, err := os.ReadFile(f.Name())
		if err == nil && json.Unmarshal(b, &info) == nil && info.PID > 0 {
			return info, nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return Info{}, fmt.Errorf("a proa runs on %s, but %s does not say which process", data, f.Name())
}

// Stop asks the process to end, and returns when it has. It returns ErrNone when
// nothing runs.
func Stop(ctx context.Context, data string) (Info, error) {
	info, err := Find(data)
	if err != nil {
		return Info{}, err
	}
	if err := unix.Kill(info.PID, unix.SIGTERM); err != nil && !errors.Is(err, unix.ESRCH) {
		return info, fmt.Errorf("stop process %d: %w", info.PID, err)
	}
	if err := wait(ctx, info.PID); err != nil {
		return info, fmt.Errorf("process %d does not end: %w", info.PID, err)
	}
	return info, nil
}

// wait returns when a process has ended.
func wait(ctx context.Context, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for ctx.Err() == nil {
		// Short enough to see the context's end.
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 200)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if n > 0 {
			return nil
		}
	}
	return ctx.Err()
}
