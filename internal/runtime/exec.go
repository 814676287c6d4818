package runtime

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"

	"github.com/proa-dev/proa/internal/runtime/shim"
)

// command is a program about to run in a container.
type command struct {
	*exec.Cmd
	ours   *os.File   // to the helper; closing it ends the program
	theirs []*os.File // what the helper gets
}

// command prepares the helper to run a program in a container.
func (s *Server) command(ctx context.Context, c *container, args []string, tty bool) (*command, error) {
	spec := &shim.Spec{}
	for _, a := range args {
		spec.Put("arg", a)
	}
	c.Spec.put(spec)
	spec.Flag("tty", tty)
	s.cgroups.put(spec, c.Cgroup)
	b, err := spec.Bytes()
	if err != nil {
		return nil, err
	}
	process, err := c.handle()
	if err != nil {
		return nil, err
	}
	description, err := memory(b)
	if err != nil {
		return nil, errors.Join(err, process.Close())
	}
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, errors.Join(err, process.Close(), description.Close())
	}
	cmd := exec.CommandContext(ctx, s.helper, "exec", "/proc/self/fd/5")
	cmd.ExtraFiles = []*os.File{theirs, process, description}
	cmd.Env = []string{}
	// The helper ends the program and then itself, so that after a time-out neither is left.
	cmd.Cancel = func() error { return hangUp(ours) }
	// What the program leaves behind may hold its streams: they are not waited for long.
	cmd.WaitDelay = time.Second
	return &command{cmd, ours, cmd.ExtraFiles}, nil
}

// hangUp ends a conversation; what is being read from it ends too.
func hangUp(socket *os.File) error {
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = unix.Shutdown(int(fd), unix.SHUT_RDWR) }); err != nil {
		return err
	}
	return failed
}

// handle is a descriptor of the running container's first process.
func (c *container) handle() (*os.File, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state() != runtimeapi.ContainerState_CONTAINER_RUNNING || c.process == nil {
		return nil, status.Errorf(codes.FailedPrecondition, "container %s is not running", c.ID)
	}
	fd, err := unix.FcntlInt(c.process.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("hold the process of container %s: %w", c.ID, err)
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// memory is a file without a name, read from its start.
func memory(b []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("spec", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("describe the command: %w", err)
	}
	f := os.NewFile(uintptr(fd), "spec")
	if _, err := f.Write(b); err != nil {
		return nil, errors.Join(fmt.Errorf("describe the command: %w", err), f.Close())
	}
	return f, nil
}

// drop closes what a command that is not started holds.
func (c *command) drop() {
	c.ours.Close()
	for _, f := range c.theirs {
		f.Close()
	}
}

// run starts the program and waits; one that ended with a code is a
// utilexec.CodeExitError.
func (c *command) run(began func() error) error {
	err := c.Start()
	for _, f := range c.theirs {
		f.Close()
	}
	defer c.ours.Close()
	if err != nil {
		return fmt.Errorf("run the container helper: %w", err)
	}
	if began != nil {
		if err := began(); err != nil {
			c.ours.Close()
			return errors.Join(err, ignoreExit(c.Wait()))
		}
	}
	text := hear(c.ours)
	err = c.Wait()
	if text != "ok" && text != "" {
		return notRun(text)
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return utilexec.CodeExitError{Code: exit.ExitCode(), Err: fmt.Errorf("command terminated with exit code %d", exit.ExitCode())}
	}
	if errors.Is(err, exec.ErrWaitDelay) {
		return nil
	}
	return err
}

// ignoreExit leaves out that a helper which has said why it failed has failed.
func ignoreExit(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil
	}
	return err
}

// notRun says why a program could not be run.
type notRun string

func (n notRun) Error() string { return string(n) }

// code is a shell's exit code for it.
func (n notRun) code() int {
	if strings.HasSuffix(string(n), "permission denied") {
		return 126
	}
	return 127
}

// maxOutput bounds what ExecSync keeps of each stream: both fit in the message of
// 16 MiB that kubelets take.
const maxOutput = 16<<20/2 - 4096

// limited keeps the first bytes. It must not have a ReadFrom, which io.Copy would prefer.
type limited struct {
	b []byte
}

func (l *limited) Write(p []byte) (int, error) {
	if room := maxOutput - len(l.b); room > 0 {
		l.b = append(l.b, p[:min(room, len(p))]...)
	}
	return len(p), nil
}

// ExecSync runs a command and returns its output.
func (s *Server) ExecSync(ctx context.Context, req *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	c, err := s.container(req.ContainerId)
	if err != nil {
		return nil, err
	}
	parent := ctx
	if req.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(req.Timeout)*time.Second)
		defer cancel()
	}
	cmd, err := s.command(ctx, c, req.Cmd, false)
	if err != nil {
		return nil, err
	}
	var out, errOut limited
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err = cmd.run(nil)
	if ctx.Err() != nil && parent.Err() == nil {
		return nil, status.Errorf(codes.DeadlineExceeded, "command %q timed out after %d seconds", req.Cmd, req.Timeout)
	}
	code := 0
	var exit utilexec.CodeExitError
	var not notRun
	switch {
	case errors.As(err, &exit):
		code = exit.Code
	case errors.As(err, &not):
		code, errOut.b = not.code(), []byte(not)
	case err != nil:
		return nil, fmt.Errorf("exec in container %s: %w", c.ID, err)
	}
	return &runtimeapi.ExecSyncResponse{Stdout: out.b, Stderr: errOut.b, ExitCode: int32(code)}, nil
}

// Exec, Attach and PortForward return the URL at which the stream is served.
func (s *Server) Exec(_ context.Context, req *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	if _, err := s.running(req.ContainerId); err != nil {
		return nil, err
	}
	return s.stream.GetExec(req)
}

func (s *Server) Attach(_ context.Context, req *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	if _, err := s.running(req.ContainerId); err != nil {
		return nil, err
	}
	return s.stream.GetAttach(req)
}

func (s *Server) PortForward(_ context.Context, req *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	if _, err := s.sandbox(req.PodSandboxId); err != nil {
		return nil, err
	}
	return s.stream.GetPortForward(req)
}

func (s *Server) running(id string) (*container, error) {
	c, err := s.container(id)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return nil, status.Errorf(codes.FailedPrecondition, "container %s is not running", id)
	}
	return c, nil
}

// streamRuntime serves the streams.
type streamRuntime struct{ s *Server }

func (r streamRuntime) Exec(ctx context.Context, id string, args []string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	c, err := r.s.container(id)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd, err := r.s.command(ctx, c, args, tty)
	if err != nil {
		return err
	}
	if tty {
		return runTerminal(ctx, cmd, in, out, resize)
	}
	if out != nil {
		cmd.Stdout = out
	}
	if errOut != nil {
		cmd.Stderr = errOut
	}
	if in != nil {
		// Not cmd.Stdin: Wait would wait for the client to close it.
		pipe, err := cmd.StdinPipe()
		if err != nil {
			cmd.drop()
			return err
		}
		go func() {
			_, _ = io.Copy(pipe, in)
			pipe.Close()
		}()
	}
	return cmd.run(nil)
}

// runTerminal runs a command at a terminal, which the helper opens among the
// container's own.
func runTerminal(ctx context.Context, cmd *command, in io.Reader, out io.Writer, resize <-chan remotecommand.TerminalSize) error {
	var master *os.File
	var wg sync.WaitGroup
	done := make(chan struct{})
	err := cmd.run(func() error {
		var err error
		if master, err = hearTerminal(cmd.ours); err != nil {
			return err
		}
		wg.Go(func() { follow(ctx, master, resize, done) })
		if in != nil {
			go func() { _, _ = io.Copy(master, in) }() // ends with the client's stream
		}
		if out == nil {
			out = io.Discard
		}
		wg.Go(func() { _, _ = io.Copy(out, master) })
		return nil
	})
	if ctx.Err() != nil && master != nil {
		master.Close() // it hangs up, whoever still holds it
	}
	close(done)
	wg.Wait() // the terminal reads EIO once the last process has closed it
	if master != nil {
		master.Close()
	}
	return err
}

// follow passes the client's sizes on.
func follow(ctx context.Context, terminal *os.File, sizes <-chan remotecommand.TerminalSize, done <-chan struct{}) {
	for {
		select {
		case size, ok := <-sizes:
			if !ok {
				return
			}
			setSize(terminal, size)
		case <-done:
			return
		case <-ctx.Done():
			return
		}
	}
}

func setSize(terminal *os.File, size remotecommand.TerminalSize) {
	raw, err := terminal.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Height, Col: size.Width})
	})
}

// hearTerminal receives the terminal that the helper has opened.
func hearTerminal(f *os.File) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	text, control := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(4))
	var n, nc int
	var failed error
	if err := raw.Read(func(fd uintptr) bool {
		n, nc, _, _, failed = unix.Recvmsg(int(fd), text, control, unix.MSG_CMSG_CLOEXEC)
		return !errors.Is(failed, unix.EAGAIN)
	}); err != nil {
		return nil, err
	}
	if failed != nil {
		return nil, fmt.Errorf("receive the terminal: %w", failed)
	}
	messages, err := unix.ParseSocketControlMessage(control[:nc])
	if err != nil || len(messages) == 0 {
		return nil, notRun(cmp.Or(string(text[:n]), "the container helper ended without a word"))
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("receive the terminal: %w", err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, errors.Join(err, unix.Close(fds[0]))
	}
	return os.NewFile(uintptr(fds[0]), "terminal"), nil
}

func (r streamRuntime) Attach(ctx context.Context, id string, in io.Reader, out, errOut io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize) error {
	c, err := r.s.running(id)
	if err != nil {
		return err
	}
	conn, err := c.dial()
	if err != nil {
		return fmt.Errorf("attach to container %s: %w", id, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	command := "attach\n"
	if in != nil {
		command = "attach-stdin\n"
	}
	if _, err := io.WriteString(conn, command); err != nil {
		return err
	}
	if _, err := io.ReadFull(conn, make([]byte, len("ok\n"))); err != nil {
		return fmt.Errorf("attach to container %s: %w", id, err)
	}
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case size, ok := <-resize:
				if !ok {
					return
				}
				_, _ = c.tell(fmt.Sprintf("resize %d %d", size.Width, size.Height))
			case <-done:
				return
			}
		}
	}()
	if in != nil {
		go func() {
			_, _ = io.Copy(conn, in)
			if u, ok := conn.(*net.UnixConn); ok {
				_ = u.CloseWrite()
			}
		}()
	}
	head := make([]byte, 5)
	for {
		if _, err := io.ReadFull(conn, head); err != nil {
			return nil // the container has ended, or the client has gone
		}
		to := io.Writer(out)
		if head[0] == 2 {
			to = errOut
		}
		if w, ok := to.(io.WriteCloser); !ok || w == nil || (head[0] == 1 && out == nil) || (head[0] == 2 && errOut == nil) {
			to = io.Discard
		}
		if _, err := io.CopyN(to, conn, int64(binary.BigEndian.Uint32(head[1:]))); err != nil {
			return nil
		}
	}
}

// PortForward connects to a port on the sandbox's loopback.
func (r streamRuntime) PortForward(ctx context.Context, id string, port int32, stream io.ReadWriteCloser) error {
	sb, err := r.s.sandbox(id)
	if err != nil {
		return err
	}
	conn, err := dialIn(ctx, sb, port)
	if err != nil {
		return fmt.Errorf("forward to port %d of the pod: %w", port, err)
	}
	defer conn.Close()
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = io.Copy(conn, stream)
		if t, ok := conn.(*net.TCPConn); ok {
			_ = t.CloseWrite()
		}
	})
	_, err = io.Copy(stream, conn)
	stream.Close()
	wg.Wait()
	return err
}

// dialIn connects from within a sandbox's network namespace.
func dialIn(ctx context.Context, sb *sandbox, port int32) (net.Conn, error) {
	// A literal address is dialled on the calling thread.
	dial := func() (net.Conn, error) {
		dialer := &net.Dialer{Timeout: 10 * time.Second}
		conn, err := dialer.DialContext(ctx, "tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))))
		if err == nil {
			return conn, nil
		}
		if six, err6 := dialer.DialContext(ctx, "tcp6", net.JoinHostPort("::1", strconv.Itoa(int(port)))); err6 == nil {
			return six, nil
		}
		return nil, err
	}
	if sb.hostNetwork() {
		return dial()
	}
	type result struct {
		conn net.Conn
		err  error
	}
	out := make(chan result, 1)
	go func() {
		// The thread enters the namespace and ends with the goroutine: it is never reused.
		runtime.LockOSThread()
		ns, err := netns.GetFromPath(filepath.Join(sb.dir, "net"))
		if err == nil {
			defer ns.Close()
			err = netns.Set(ns)
		}
		if err != nil {
			out <- result{nil, fmt.Errorf("enter the pod's network: %w", err)}
			return
		}
		conn, err := dial()
		out <- result{conn, err}
	}()
	r := <-out
	return r.conn, r.err
}
