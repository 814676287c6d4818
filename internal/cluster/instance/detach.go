package instance

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Log is where a process in the background writes.
func Log(data string) string { return filepath.Join(data, "proa.log") }

const (
	notifyFD = 3
	notify   = "PROA_NOTIFY" // tells the child that it has notifyFD
	maxLog   = 16 << 20
)

// Detach starts this program in the background with args, its output in the
// data folder's log, and returns when it says that it is ready. say is told what
// it reports until then. When ctx ends before, the process is ended.
func Detach(ctx context.Context, data string, args []string, say func(string)) (err error) {
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	if err := os.MkdirAll(data, 0o755); err != nil {
		return fmt.Errorf("make the data folder: %w", err)
	}
	path := Log(data)
	if info, err := os.Stat(path); err == nil && info.Size() > maxLog {
		if err := os.Rename(path, path+".1"); err != nil {
			return fmt.Errorf("rotate the log: %w", err)
		}
	}
	log, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	defer log.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("start in the background: %w", err)
	}
	defer r.Close()
	cmd := exec.Command(exe, args...)
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = log, log, []*os.File{w}
	cmd.Env = append(os.Environ(), notify+"=1")
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		return fmt.Errorf("start in the background: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(unix.SIGTERM) })
	defer stop()
	failure := ""
	for s := bufio.NewScanner(r); s.Scan(); {
		switch kind, text, _ := strings.Cut(s.Text(), " "); kind {
		case "step":
			say(text)
		case "error":
			failure = text
		case "ready":
			return cmd.Process.Release()
		}
	}
	err = cmd.Wait()
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case failure != "":
		return errors.New(failure)
	}
	return fmt.Errorf("the cluster ended before it was ready (%v): see %s", err, path)
}

// Reporter is the other end of Detach, in the process in the background.
type Reporter struct{ w io.WriteCloser }

// Background returns the reporter to who started this process by Detach; nobody
// listens to that of another process.
func Background() *Reporter {
	if os.Getenv(notify) == "" {
		return &Reporter{}
	}
	_ = os.Unsetenv(notify) // not for the processes that this one starts
	unix.CloseOnExec(notifyFD)
	return &Reporter{w: os.NewFile(notifyFD, "notify")}
}

func (r *Reporter) send(kind, text string) {
	if r.w != nil {
		_, _ = fmt.Fprintf(r.w, "%s %s\n", kind, strings.ReplaceAll(text, "\n", "; "))
	}
}

// Step reports a step.
func (r *Reporter) Step(text string) { r.send("step", text) }

// Fail reports why the process ends.
func (r *Reporter) Fail(err error) { r.send("error", err.Error()) }

// Ready reports that the process has started; nothing more is heard.
func (r *Reporter) Ready() {
	r.send("ready", "")
	if r.w != nil {
		_ = r.w.Close()
		r.w = nil
	}
}
