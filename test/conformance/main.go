// Command conformance runs Kubernetes' own conformance suite against a fresh
// cluster of the real binary, as root, and keeps the newest result of each spec,
// so that docs/conformance.md can be written from focused runs.
//
//	make conformance FOCUS='ConfigMap|Secrets'
//
// It is a module of its own, so that k8s.io/kubernetes is no part of the product.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

type runner struct {
	root, cache, data string
	focus, skip       string
	procs, nodes      int
	timeout           time.Duration
	keep, serial      bool
	listen            string
	pending           bool
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
}

func run() error {
	r := runner{}
	flag.StringVar(&r.root, "root", "../..", "folder of the project")
	flag.StringVar(&r.data, "data-dir", "/tmp/proa-conformance", "data folder of the cluster, emptied before and after")
	flag.StringVar(&r.focus, "focus", "", "regular expression: which conformance specs to run (default: all)")
	flag.StringVar(&r.skip, "skip", "", "regular expression: which not")
	flag.IntVar(&r.nodes, "nodes", 2, "nodes of the cluster, each in a network namespace of its own")
	flag.IntVar(&r.procs, "procs", 3, "specs that run at the same time; those marked Serial run alone")
	flag.BoolVar(&r.serial, "serial", true, "run the specs marked Serial too")
	flag.BoolVar(&r.pending, "pending", false, "run only what has not passed yet, in place of -focus")
	flag.DurationVar(&r.timeout, "timeout", 2*time.Hour, "bound of the run")
	flag.StringVar(&r.listen, "listen", "127.0.0.1:16443", "address of the API server")
	flag.BoolVar(&r.keep, "keep", false, "keep the cluster's data for a look at it")
	page := flag.String("page", "", "file to write the summary of all results to")
	only := flag.Bool("summary", false, "run nothing, summarize the results that are kept")
	flag.Parse()
	var err error
	if r.root, err = filepath.Abs(r.root); err != nil {
		return err
	}
	r.cache = filepath.Join(r.root, ".cache", "conformance")
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := r.build(ctx); err != nil {
		return err
	}
	failed := error(nil)
	if !*only {
		if failed = r.once(ctx); errors.Is(failed, errNothing) {
			return failed
		}
	}
	all, err := r.results()
	if err != nil {
		return err
	}
	fmt.Print(all.areas())
	if *page != "" {
		if err := os.WriteFile(*page, []byte(all.page()), 0o644); err != nil {
			return err
		}
	}
	return failed
}

func (r *runner) command(ctx context.Context, dir, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	return cmd
}

// build makes the suite and its runner, once.
func (r *runner) build(ctx context.Context) error {
	if err := os.MkdirAll(r.cache, 0o755); err != nil {
		return err
	}
	for file, args := range map[string][]string{
		"e2e.test": {"test", "-c", "-ldflags", ldflags, "-o", filepath.Join(r.cache, "e2e.test"), "k8s.io/kubernetes/test/e2e"},
		"ginkgo":   {"build", "-ldflags", "-s -w", "-o", filepath.Join(r.cache, "ginkgo"), "github.com/onsi/ginkgo/v2/ginkgo"},
	} {
		if _, err := os.Stat(filepath.Join(r.cache, file)); err == nil {
			continue
		}
		fmt.Println("building", file)
		if err := r.command(ctx, ".", "go", args...).Run(); err != nil {
			return fmt.Errorf("build %s: %w", file, err)
		}
	}
	return nil
}

const (
	version = "v1.37.2"
	// The suite asks for what its own version has.
	ldflags = "-s -w -X k8s.io/component-base/version.gitVersion=" + version + " -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=37"
)

// images makes those that are not there and returns all archives.
func (r *runner) images(ctx context.Context) ([]string, error) {
	packer := filepath.Join(r.cache, "pack")
	if err := r.command(ctx, r.root, "go", "build", "-o", packer, "./test/image").Run(); err != nil {
		return nil, fmt.Errorf("build the image packer: %w", err)
	}
	dir := filepath.Join(r.cache, "images")
	if err := r.command(ctx, ".", "./images.sh", dir, packer).Run(); err != nil {
		return nil, fmt.Errorf("make the images: %w", err)
	}
	return filepath.Glob(filepath.Join(dir, "*.tar"))
}

// once runs the suite on a fresh cluster and keeps its results.
func (r *runner) once(ctx context.Context) error {
	archives, err := r.images(ctx)
	if err != nil {
		return err
	}
	proa := filepath.Join(r.root, "bin", "proa")
	reset := func() {
		if out, err := exec.Command(proa, "--data-dir", r.data, "reset").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "reset: %v\n%s", err, out)
		}
	}
	reset()
	for n := 1; n <= r.nodes; n++ {
		folder := r.data
		if n > 1 { // where proa keeps the n-th node
			folder = filepath.Join(r.data, "nodes", strconv.Itoa(n))
		}
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return err
		}
		if out, err := exec.CommandContext(ctx, proa, append([]string{"--data-dir", folder, "image", "import"}, archives...)...).CombinedOutput(); err != nil {
			return fmt.Errorf("import the images for node %d: %w\n%s", n, err, out)
		}
	}
	log, err := os.Create(filepath.Join(r.cache, "proa.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	registries, stop, err := r.mirrored(archives)
	if err != nil {
		return err
	}
	defer stop()
	cluster := exec.Command(proa, "--data-dir", r.data, "--registries", registries, "up", "--nodes", strconv.Itoa(r.nodes), "--listen", r.listen, "--no-kubeconfig", "--log-level", "info")
	ready := &waiter{file: log, word: []byte("the node is ready"), seen: make(chan struct{})}
	cluster.Stdout, cluster.Stderr = ready, log
	if err := cluster.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cluster.Wait() }()
	defer func() {
		_ = cluster.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(30 * time.Second):
			_ = cluster.Process.Kill()
		}
		if !r.keep {
			reset()
		}
	}()
	select {
	case <-ready.seen:
	case err := <-ended:
		ended <- err
		return fmt.Errorf("the cluster ended (%v): see %s", err, log.Name())
	case <-time.After(30 * time.Second):
		return fmt.Errorf("no Ready node after 30 s: see %s", log.Name())
	}
	return r.suite(ctx)
}

// suite runs the specs that are asked for.
func (r *runner) suite(ctx context.Context) error {
	report := filepath.Join(r.cache, "report.json")
	_ = os.Remove(report)
	labels := "Conformance"
	if !r.serial {
		labels += " && !Serial"
	}
	args := []string{"run", "--label-filter=" + labels, fmt.Sprintf("--procs=%d", r.procs), "--timeout=" + r.timeout.String(), "--no-color",
		"--json-report=report.json", "--output-dir=" + r.cache, "--keep-separate-reports=false"}
	if r.pending {
		all, err := r.results()
		if err != nil {
			return err
		}
		var names []string
		for name, res := range all {
			if res.State != "passed" {
				names = append(names, regexp.QuoteMeta(name))
			}
		}
		r.focus = strings.Join(names, "|")
	}
	if r.focus != "" {
		args = append(args, "--focus="+r.focus)
	}
	if r.skip != "" {
		args = append(args, "--skip="+r.skip)
	}
	kubeconfig := filepath.Join(r.data, "admin.kubeconfig")
	args = append(args, filepath.Join(r.cache, "e2e.test"), "--", "-kubeconfig="+kubeconfig, "-provider=skeleton", "-num-nodes=1", "-disable-log-dump=true",
		"-allowed-not-ready-nodes=0", "-dns-domain=cluster.local", "-report-dir=")
	log, err := os.Create(filepath.Join(r.cache, "e2e.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := r.command(ctx, r.cache, filepath.Join(r.cache, "ginkgo"), args...)
	cmd.Env = append(cmd.Env, "KUBECONFIG="+kubeconfig)
	cmd.Stdout, cmd.Stderr = log, log
	begin := time.Now()
	failed := cmd.Run()
	n, err := r.keepResults(ctx, report)
	if err != nil {
		return errors.Join(err, failed)
	}
	fmt.Printf("%d specs ran in %s; the log is %s\n", n, time.Since(begin).Round(time.Second), log.Name())
	if n == 0 {
		return errNothing
	}
	if failed != nil {
		return fmt.Errorf("the suite failed: %w", failed)
	}
	return nil
}

var errNothing = errors.New("no spec ran: see the log")

// waiter passes on what is written and tells when a word was in it.
type waiter struct {
	file *os.File
	word []byte
	text []byte
	seen chan struct{}
}

func (w *waiter) Write(p []byte) (int, error) {
	if w.text = append(w.text, p...); w.word != nil && bytes.Contains(w.text, w.word) {
		close(w.seen)
		w.word = nil
	}
	return w.file.Write(p)
}

// commit is what the binary was built of.
func commit(ctx context.Context, root string) string {
	out, err := exec.CommandContext(ctx, filepath.Join(root, "bin", "proa"), "version").Output()
	f := strings.Fields(string(out))
	if err != nil || len(f) < 2 {
		return "unknown"
	}
	return strings.TrimSuffix(f[1], ",")
}
