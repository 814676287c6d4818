//go:build bench

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// server is a proa process.
type server struct {
	cmd    *exec.Cmd
	config *rest.Config
	ready  time.Duration // from the start of the process to a node that is Ready
}

const listen = "127.0.0.1:16443"

func (b *bench) reset() {
	if out, err := exec.Command(b.binary, "--data-dir", b.data, "reset").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "reset: %v\n%s", err, out)
	}
}

// up starts proa on an empty data folder and waits until a client sees its node Ready.
func (b *bench) up(ctx context.Context, images ...string) (*server, error) {
	b.reset()
	if len(images) > 0 {
		if out, err := exec.Command(b.binary, append([]string{"--data-dir", b.data, "image", "import"}, images...)...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("import the image: %w\n%s", err, out)
		}
	}
	cmd := exec.Command(b.binary, "--data-dir", b.data, "up", "--listen", listen)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s := &server{cmd: cmd}
	kubeconfig := filepath.Join(b.data, "admin.kubeconfig")
	var c *client
	for {
		if time.Since(begin) > 30*time.Second || ctx.Err() != nil {
			s.stop()
			return nil, fmt.Errorf("no Ready node after %s:\n%s", time.Since(begin), log.String())
		}
		if c == nil {
			cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
			if err != nil {
				time.Sleep(2 * time.Millisecond)
				continue
			}
			if c, err = newClient(cfg); err != nil {
				return nil, err
			}
			s.config = cfg
		}
		if ready, err := c.nodeReady(ctx); err == nil && ready {
			s.ready = time.Since(begin)
			return s, nil
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (s *server) stop() {
	_ = s.cmd.Process.Signal(unix.SIGTERM)
	_ = s.cmd.Wait()
}

// cpu is what the process has used so far; its children are not in it.
func (s *server) cpu() time.Duration { return cpuOf(s.cmd.Process.Pid) }

// helpers is what the processes that hold its containers use: their CPU so far and their memory.
func (b *bench) helpers() (cpu time.Duration, rss int64, n int) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		line, err := os.ReadFile(filepath.Join(d, "cmdline"))
		if err != nil || !bytes.Contains(line, []byte("proa-shim")) || !bytes.Contains(line, []byte(b.data)) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(d))
		if err != nil {
			continue
		}
		n++
		cpu += cpuOf(pid)
		rss += rssOf(pid)
	}
	return cpu, rss, n
}

// tick is the kernel's unit in /proc/PID/stat (USER_HZ, 100 on every Linux).
const tick = 10 * time.Millisecond

func cpuOf(pid int) time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The name, in parentheses, may hold blanks.
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.ParseInt(f[11], 10, 64)
	system, _ := strconv.ParseInt(f[12], 10, 64)
	return time.Duration(user+system) * tick
}

func rssOf(pid int) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	f := strings.Fields(rest)
	if len(f) == 0 {
		return 0
	}
	kib, _ := strconv.ParseInt(f[0], 10, 64)
	return kib << 10
}
