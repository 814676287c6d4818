package logs

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
)

// Options of Read, as of PodLogOptions.
type Options struct {
	Follow     bool
	Tail       int64 // negative: all
	Since      time.Time
	Timestamps bool
	Limit      int64  // bytes written; 0: no limit
	Stream     string // "stdout", "stderr", or both when empty
}

// Open opens a log file below root. No part of the path may be a symlink.
func Open(root, path string) (*os.File, error) {
	rel, err := filepath.Rel(root, path)
	if err != nil || strings.HasPrefix(rel, "../") || rel == ".." {
		return nil, fmt.Errorf("log file %s is not below %s", path, root)
	}
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: root, Err: err}
	}
	defer unix.Close(dir)
	fd, err := unix.Openat2(dir, rel, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("log file %s is not a regular file", path)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// maxLine is more than a line of the CRI can be: runtimes split at 16 KiB.
const maxLine = 256 << 10

var errLimit = errors.New("limit reached")

// Read writes the log at path (below root) to w. With Follow it goes on until
// running says that the container has ended and all is read, or ctx ends.
func Read(ctx context.Context, root, path string, o Options, running func() bool, w io.Writer) error {
	f, err := Open(root, path)
	if err != nil {
		return err
	}
	defer func() { f.Close() }()
	start, err := tailOffset(f, o.Tail)
	if err != nil {
		return err
	}
	if _, err := f.Seek(start, io.SeekStart); err != nil {
		return err
	}
	var watch *fsnotify.Watcher
	if o.Follow {
		if watch, err = fsnotify.NewWatcher(); err != nil {
			return fmt.Errorf("watching the log: %w", err)
		}
		defer watch.Close()
		if err := watch.Add(filepath.Dir(path)); err != nil {
			return fmt.Errorf("watching the log: %w", err)
		}
	}
	out := &lineWriter{w: w, o: o}
	r := bufio.NewReaderSize(f, 64<<10)
	var pending []byte
	rotated := false
	for {
		// Asked before reading: what was written before the end is then read.
		ended := !o.Follow || !running()
		pending, err = drain(ctx, r, pending, out)
		if errors.Is(err, errLimit) {
			return nil
		}
		if err != nil {
			return err
		}
		if rotated {
			// The old file is read to its end; go on with the new one.
			next, err := Open(root, path)
			if err == nil {
				f.Close()
				f = next
				r.Reset(f)
				pending, rotated = pending[:0], false
				continue
			}
			if !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		if ended {
			if len(pending) > 0 {
				if err := out.line(pending); err != nil && !errors.Is(err, errLimit) {
					return err
				}
			}
			return nil
		}
		out.flush()
		if rotated, err = waitForChange(ctx, watch, path, f); err != nil {
			return nil //nolint:nilerr // the reader has gone, or the node stops
		}
	}
}

// waitForChange returns when the log may have grown or (true) was replaced. The
// second is for the end of the container, which writes nothing.
func waitForChange(ctx context.Context, watch *fsnotify.Watcher, path string, f *os.File) (bool, error) {
	t := time.NewTimer(time.Second)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-t.C:
			return replaced(path, f), nil
		case e, ok := <-watch.Events:
			if !ok {
				return false, errors.New("watch closed")
			}
			if e.Name != path {
				continue
			}
			if e.Has(fsnotify.Create) || e.Has(fsnotify.Rename) || e.Has(fsnotify.Remove) {
				return replaced(path, f), nil
			}
			return false, nil
		case err, ok := <-watch.Errors:
			if !ok {
				return false, errors.New("watch closed")
			}
			if !errors.Is(err, fsnotify.ErrEventOverflow) {
				return false, err
			}
			return replaced(path, f), nil
		}
	}
}

func replaced(path string, f *os.File) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(path)
	return err == nil && !os.SameFile(a, b)
}

// drain writes all complete lines; what remains is the begin of an incomplete one.
func drain(ctx context.Context, r *bufio.Reader, pending []byte, out *lineWriter) ([]byte, error) {
	for {
		chunk, err := r.ReadSlice('\n')
		if len(pending)+len(chunk) > maxLine {
			// Not a log of the CRI: hand it on rather than keep it.
			chunk, err = chunk[:0], nil
			pending = append(pending[:0], "\n"...)
		}
		switch {
		case err == nil:
			line := chunk
			if len(pending) > 0 {
				pending = append(pending, chunk...)
				line = pending
			}
			werr := out.line(line)
			pending = pending[:0]
			if werr != nil {
				return pending, werr
			}
			if ctx.Err() != nil {
				return pending, ctx.Err()
			}
		case errors.Is(err, bufio.ErrBufferFull):
			pending = append(pending, chunk...)
		case errors.Is(err, io.EOF):
			return append(pending, chunk...), nil
		default:
			return pending, fmt.Errorf("reading the log: %w", err)
		}
	}
}

type lineWriter struct {
	w       io.Writer
	o       Options
	written int64
	buf     []byte
	partial bool // the last line written was not complete
}

func (l *lineWriter) line(b []byte) error {
	m, err := Parse(b)
	if err != nil {
		return nil // a damaged line must not hide the others
	}
	if (l.o.Stream != "" && m.Stream != l.o.Stream) || m.Time.Before(l.o.Since) {
		return nil
	}
	l.buf = l.buf[:0]
	if l.o.Timestamps && !l.partial {
		l.buf = m.Time.AppendFormat(l.buf, "2006-01-02T15:04:05.000000000Z07:00")
		l.buf = append(l.buf, ' ')
	}
	l.buf = append(l.buf, m.Content...)
	if !m.Partial && !bytes.HasSuffix(l.buf, newline) {
		l.buf = append(l.buf, '\n')
	}
	l.partial = m.Partial
	done := false
	if l.o.Limit > 0 && l.written+int64(len(l.buf)) >= l.o.Limit {
		l.buf = l.buf[:l.o.Limit-l.written]
		done = true
	}
	n, err := l.w.Write(l.buf)
	l.written += int64(n)
	if err != nil {
		return err
	}
	if done {
		l.flush()
		return errLimit
	}
	return nil
}

func (l *lineWriter) flush() {
	if f, ok := l.w.(interface{ Flush() }); ok {
		f.Flush()
	}
}

// tailOffset is where the last n lines begin.
func tailOffset(f *os.File, n int64) (int64, error) {
	if n < 0 {
		return 0, nil
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, err
	}
	if n == 0 {
		return size, nil
	}
	const block = 32 << 10
	buf := make([]byte, block)
	// The newline that ends the last line does not count.
	end := size
	if size > 0 {
		var last [1]byte
		if _, err := f.ReadAt(last[:], size-1); err != nil {
			return 0, err
		}
		if last[0] == '\n' {
			end--
		}
	}
	var found int64
	for at := end; at > 0; {
		from := max(at-block, 0)
		b := buf[:at-from]
		if _, err := f.ReadAt(b, from); err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		for i := len(b) - 1; i >= 0; i-- {
			if b[i] == '\n' {
				if found++; found == n {
					return from + int64(i) + 1, nil
				}
			}
		}
		at = from
	}
	return 0, nil
}

// Tail returns the end of a log: at most lines lines and bytes bytes of content.
func Tail(path string, lines, bytesLimit int) string {
	f, err := Open(filepath.Dir(path), path)
	if err != nil {
		return ""
	}
	defer f.Close()
	start, err := tailOffset(f, int64(lines))
	if err != nil {
		return ""
	}
	if st, err := f.Stat(); err == nil {
		// A line has some 40 bytes before its content.
		start = max(start, st.Size()-int64(bytesLimit+lines*64))
	}
	if _, err := f.Seek(start, io.SeekStart); err != nil {
		return ""
	}
	var b bytes.Buffer
	out := &lineWriter{w: &b}
	if rest, err := drain(context.Background(), bufio.NewReader(f), nil, out); err == nil && len(rest) > 0 {
		_ = out.line(rest)
	}
	s := b.Bytes()
	if len(s) > bytesLimit {
		s = s[len(s)-bytesLimit:]
	}
	return strings.ToValidUTF8(string(s), "")
}
