//go:build bench

// Command bench measures the real binary on this machine, as root: start, idle
// cost, pods, and what a request costs the API server and its store. The load
// comes from this process, over TLS; the CPU counted is that of the proa process
// alone, and of its container helpers apart.
//
//	go run -tags bench ./test/bench -proa bin/proa -out docs/performance.md
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"
)

// settings are the sizes of a run.
type settings struct {
	starts   int           // fresh starts
	idle     time.Duration // how long an idle cluster is watched
	settle   time.Duration // before that
	single   int           // pods one after the other
	waves    int           // times 50 pods at once
	creates  int           // pods created for nobody to schedule, of a run
	gets     int
	lists    int
	listSize int // pods in the list
	runs     int // of creates and gets
}

var (
	full  = settings{starts: 5, idle: time.Minute, settle: 20 * time.Second, single: 21, waves: 3, creates: 5000, gets: 20000, lists: 9, listSize: 10000, runs: 3}
	quick = settings{starts: 3, idle: 10 * time.Second, settle: 5 * time.Second, single: 9, waves: 1, creates: 1000, gets: 5000, lists: 5, listSize: 2000, runs: 1}
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() error {
	proa := flag.String("proa", "bin/proa", "the binary")
	data := flag.String("data-dir", "/tmp/proa-bench", "data folder, emptied before and after")
	out := flag.String("out", "", "file to write the table to (default: only print it)")
	fast := flag.Bool("quick", false, "few repetitions, a list of 2,000 pods: for CI, not for the table")
	repeat := flag.Int("lists", 0, "how often to list, for profiling (default: as the mode says)")
	only := flag.String("only", "", "measures to take: start,idle,pods,api,list (default: all)")
	image := flag.String("image", "bin/pause.tar", "archive of the image that the pods run")
	name := flag.String("image-name", "proa.example/pause:1", "its name")
	flag.Parse()
	if os.Geteuid() != 0 {
		return errors.New("containers need root: run it as root")
	}
	if *fast && *out != "" {
		return errors.New("a quick run is not for the record: leave out -out or -quick")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	binary, err := filepath.Abs(*proa)
	if err != nil {
		return err
	}
	s := full
	if *fast {
		s = quick
	}
	if *repeat > 0 {
		s.lists = *repeat
	}
	b := &bench{binary: binary, data: *data, image: *image, imageName: *name, settings: s}
	defer b.reset()
	for _, m := range []struct {
		name    string
		measure func(context.Context) error
	}{{"start", b.start}, {"idle", b.idleCost}, {"pods", b.pods}, {"api", b.api}, {"list", b.list}} {
		if *only != "" && !strings.Contains(","+*only+",", ","+m.name+",") {
			continue
		}
		if err := m.measure(ctx); err != nil {
			return fmt.Errorf("measure %s: %w", m.name, err)
		}
	}
	if err := b.size(); err != nil {
		return err
	}
	table := b.table()
	fmt.Print("\n", table)
	if *out == "" {
		return nil
	}
	return os.WriteFile(*out, []byte(b.page(table)), 0o644)
}

// bench is a run of the benchmark and what it found.
type bench struct {
	binary, data     string
	image, imageName string
	settings
	found []finding
}

// finding is a line of the table.
type finding struct {
	what, vanilla, goal, here, spread string
	ok                                bool
}

func (b *bench) note(f finding) {
	fmt.Printf("%-70s %s (%s)\n", f.what, f.here, f.spread)
	b.found = append(b.found, f)
}
