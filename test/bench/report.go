//go:build bench

package main

import (
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

type number interface{ ~int64 | ~float64 }

func median[T number](v []T) T {
	s := slices.Sorted(slices.Values(v))
	if len(s) == 0 {
		return 0
	}
	return s[len(s)/2]
}

func mean[T number](v []T) T {
	var sum T
	for _, x := range v {
		sum += x
	}
	return sum / T(max(len(v), 1))
}

func spread(v []time.Duration, show func(time.Duration) string) string {
	return fmt.Sprintf("%s to %s, n=%d", show(slices.Min(v)), show(slices.Max(v)), len(v))
}

func ends(v []float64, format string) string {
	return fmt.Sprintf(format+" to "+format+", n=%d", slices.Min(v), slices.Max(v), len(v))
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }
func millis(d time.Duration) string {
	return fmt.Sprintf("%.*f ms", digits(d.Seconds()*1e3), d.Seconds()*1e3)
}
func micros(d time.Duration) string { return fmt.Sprintf("%.0f us", d.Seconds()*1e6) }

func digits(v float64) int {
	if math.Abs(v) < 10 {
		return 1
	}
	return 0
}

func (b *bench) table() string {
	var w strings.Builder
	w.WriteString("| measure | vanilla 1.37.2 | goal, at most | here | spread | |\n|---|---|---|---|---|---|\n")
	for _, f := range b.found {
		verdict := ""
		switch {
		case f.goal == "":
		case f.ok:
			verdict = "met"
		default:
			verdict = "**missed**"
		}
		dash := func(s string) string {
			if s == "" {
				return "-"
			}
			return s
		}
		fmt.Fprintf(&w, "| %s | %s | %s | %s | %s | %s |\n", f.what, dash(f.vanilla), dash(f.goal), f.here, dash(f.spread), verdict)
	}
	return w.String()
}

// page is what docs/performance.md says.
func (b *bench) page(table string) string {
	return "# Performance\n\n" +
		"Written by `make bench` on " + time.Now().UTC().Format(time.DateOnly) + ", on " + machine() + ", everything, the load generator too, on it.\n" +
		"Vanilla is Kubernetes 1.37.2 with etcd 3.7.3, containerd 2.4 and runc 1.5.2 on the same kind of machine. Figures vary by 30% and more\n" +
		"between runs and machines: compare CPU per operation, side by side.\n\n" + table + `
How it is measured (` + "`test/bench`" + `):

- The real binary, on an empty data folder; the client is another process and speaks TLS. Values are medians (idle: means) of the runs
  that the spread counts.
- CPU is that of the proa process (user and system time of ` + "`/proc/PID/stat`" + `); the container helpers, which are processes of their own,
  are told apart. Memory is its resident set.
- Requests for pods use pods that no scheduler takes, so that API server and store are measured, and whatever watches pods.
- A pod counts as running, or gone, when a watch of the client has shown it. Its image is there, its program ends at SIGTERM.
- Lists are not compressed: proa never compresses for clients on the same machine.
`
}

// machine describes where this runs, in general words.
func machine() string {
	var info unix.Sysinfo_t
	var name unix.Utsname
	_ = unix.Sysinfo(&info)
	_ = unix.Uname(&name)
	release := strings.SplitN(unix.ByteSliceToString(name.Release[:]), ".", 3)
	kernel := strings.Join(release[:min(2, len(release))], ".")
	kind := "a machine"
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil && strings.Contains(string(b), "hypervisor") {
		kind = "a virtual machine"
	}
	return fmt.Sprintf("%s with %d cores and %d GiB, Linux %s, %s", kind, runtime.NumCPU(), int(math.Round(float64(info.Totalram)*float64(info.Unit)/(1<<30))), kernel, runtime.Version())
}
