package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/term"
)

// progress writes what is being done: on a terminal the line under way is
// rewritten when it is done, in a log each step is a line of its own.
type progress struct {
	w        io.Writer
	terminal bool
	start    time.Time
	step     string // under way
	since    time.Time
}

func newProgress(w io.Writer) *progress {
	f, ok := w.(*os.File)
	return &progress{w: w, terminal: ok && term.IsTerminal(int(f.Fd())), start: time.Now()}
}

// say begins a step, and so ends the one before.
func (p *progress) say(step string) {
	p.end("✓")
	if !p.terminal {
		fmt.Fprintf(p.w, "%6.2fs  %s\n", time.Since(p.start).Seconds(), step)
		return
	}
	p.step, p.since = step, time.Now()
	fmt.Fprintf(p.w, "… %s", step)
}

// end ends the step under way.
func (p *progress) end(mark string) {
	if p.step == "" {
		return
	}
	fmt.Fprintf(p.w, "\r\x1b[K%s %s (%.2fs)\n", mark, p.step, time.Since(p.since).Seconds())
	p.step = ""
}

// done ends with a line that is no step.
func (p *progress) done(format string, args ...any) {
	p.end("✓")
	if !p.terminal {
		fmt.Fprintf(p.w, "%6.2fs  ", time.Since(p.start).Seconds())
	}
	fmt.Fprintf(p.w, format+"\n", args...)
}
