package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/proa-dev/proa/internal/runtime/images"
)

// startFailed is the exit code of a container whose program could not be started.
const startFailed = 128

// maxMessage bounds what a helper says at a time.
const maxMessage = 2048

// socketPair is a connection to a helper that keeps messages apart.
func socketPair() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a socket to the container helper: %w", err)
	}
	// Ours waits in the runtime's poller and not in a thread.
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, nil, errors.Join(err, unix.Close(fds[0]), unix.Close(fds[1]))
	}
	return os.NewFile(uintptr(fds[0]), "helper"), os.NewFile(uintptr(fds[1]), "helper"), nil
}

// hear returns the helper's next message; "" when it has ended.
func hear(f *os.File) string {
	b := make([]byte, maxMessage)
	n, err := f.Read(b)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b[:n]))
}

// launch starts the helper and waits until the program runs or has failed to. The
// container is written down as started before the helper is told to go on: whatever
// kills this process on the way, what runs is known to the next.
func (s *Server) launch(ctx context.Context, c *container) (pid int, at int64, process *os.File, err error) {
	fail := func(err error) (int, int64, *os.File, error) {
		if process != nil {
			process.Close()
		}
		return 0, 0, nil, err
	}
	ours, theirs, err := socketPair()
	if err != nil {
		return fail(err)
	}
	defer ours.Close() // a helper that has not had its word then ends
	stop := context.AfterFunc(ctx, func() { _ = ours.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	cmd := exec.Command(s.helper, "run", filepath.Join(c.dir, "spec"))
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Env = []string{}
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		return fail(fmt.Errorf("run the container helper: %w", err))
	}
	// It is reaped when it ends; at the end of this process it is left running.
	go func() { _ = cmd.Wait() }()
	text := hear(ours)
	number, ok := strings.CutPrefix(text, "pid ")
	if pid, err = strconv.Atoi(number); !ok || err != nil {
		return fail(helperError(ctx, text))
	}
	// Its parent waits for our word and has not reaped it: the number still means it.
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fail(fmt.Errorf("open process %d: %w", pid, err))
	}
	process, at = os.NewFile(uintptr(fd), "pidfd"), time.Now().UnixNano()
	record := c.containerRecord
	record.Pid, record.Started = pid, at
	if err := writeJSON(filepath.Join(c.dir, "container.json"), &record); err != nil {
		return fail(fmt.Errorf("write down the container: %w", err))
	}
	if _, err := ours.Write([]byte("go")); err != nil {
		return fail(fmt.Errorf("talk to the container helper: %w", err))
	}
	if text = hear(ours); text != "ok" {
		// Out of patience, not out of luck: what may still start must not.
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		return fail(helperError(ctx, text))
	}
	return pid, at, process, nil
}

func helperError(ctx context.Context, text string) error {
	if text == "" && ctx.Err() != nil {
		return ctx.Err()
	}
	if text == "" {
		text = "the container helper ended without a word"
	}
	return errors.New(text)
}

// follow waits for the helper's end. It is called with c.mu held.
func (s *Server) follow(c *container) {
	conn, err := c.dial()
	if err == nil {
		_, err = conn.Write([]byte("wait\n"))
	}
	if err != nil {
		// It has ended already, or was killed.
		s.wg.Go(func() { s.ended(c) })
		return
	}
	c.conn = conn
	s.wg.Go(func() {
		buf := make([]byte, 1)
		_, _ = conn.Read(buf) // returns at the end of the connection
		conn.Close()
		if s.ctx.Err() == nil {
			s.ended(c)
		}
	})
}

// disconnect leaves a container alone, running or not.
func (c *container) disconnect() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != nil {
		c.conn.Close()
	}
	if c.process != nil {
		c.process.Close()
		c.process = nil
	}
}

// takeUp finds out what became of a container while nobody looked.
func (s *Server) takeUp(c *container) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, img := range append([]images.Image{c.Image}, c.Volumes...) {
		if _, release, err := s.cfg.Images.Hold(img); err == nil {
			c.hold(release)
		}
	}
	if c.Exited {
		close(c.done)
		return
	}
	if c.Started == 0 {
		return // created and never started: a helper that was under way had no word to go on
	}
	if fd, err := unix.PidfdOpen(c.Pid, 0); err == nil {
		// The helper, being the parent, says whether the number still means the container.
		process := os.NewFile(uintptr(fd), "pidfd")
		if pid, err := c.tell("pid"); err == nil && pid == strconv.Itoa(c.Pid) {
			c.process = process
		} else {
			process.Close()
		}
	}
	s.follow(c)
}

// ended notes the end of a container.
func (s *Server) ended(c *container) {
	c.mu.Lock()
	if c.Exited {
		c.mu.Unlock()
		return
	}
	c.Exited = true
	c.ExitCode, c.Reason, c.Finished = 137, "Error", time.Now().UnixNano()
	why, err := c.left()
	if err != nil {
		why = "the container helper was killed"
	}
	// Nothing of the container outlives its first process, even where it has no
	// process namespace of its own.
	s.cgroups.kill(c.Cgroup)
	switch {
	case c.ExitCode == startFailed && why != "":
		c.Reason = "StartError"
	case s.cgroups.oomKilled(c.Cgroup):
		c.Reason = "OOMKilled"
	case c.ExitCode == 0:
		c.Reason = "Completed"
	}
	c.Message = why
	if c.process != nil {
		c.process.Close()
		c.process = nil
	}
	if err := writeJSON(filepath.Join(c.dir, "container.json"), &c.containerRecord); err != nil {
		s.log.Warn("write down a container's end", "container", c.ID, "err", err)
	}
	close(c.done)
	c.mu.Unlock()
	s.events.publish(s, c, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
}

// left reads how the helper saw the container end.
func (c *container) left() (why string, err error) {
	b, err := os.ReadFile(filepath.Join(c.dir, "exit"))
	if err != nil {
		return "", err
	}
	first, why, _ := strings.Cut(string(b), "\n")
	var signal int
	var code int32
	var at int64
	if _, err := fmt.Sscan(first, &code, &signal, &at); err != nil {
		return "", fmt.Errorf("read the exit status: %w", err)
	}
	c.ExitCode, c.Finished = code, at
	return why, nil
}
