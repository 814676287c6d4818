package runtime_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The runtime's share of a pod's start is to be below 25 ms (p50).
func BenchmarkPodStart(b *testing.B) {
	n := newNode(b)
	var took [3][]time.Duration
	var whole []time.Duration
	for b.Loop() {
		begin := time.Now()
		pod, pc := n.pod()
		sandbox := time.Now()
		id, err := n.create(pod, pc, config("exec sleep 1000", profile(runtimeapi.SecurityProfile_RuntimeDefault, "")))
		if err != nil {
			b.Fatal(err)
		}
		made := time.Now()
		if _, err := n.StartContainer(b.Context(), &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
			b.Fatal(err)
		}
		started := time.Now()
		for i, d := range []time.Duration{sandbox.Sub(begin), made.Sub(sandbox), started.Sub(made)} {
			took[i] = append(took[i], d)
		}
		whole = append(whole, started.Sub(begin))
		b.StopTimer()
		if _, err := n.RemovePodSandbox(b.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod}); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	// The tenth says more than the median when others use the machine.
	at := func(list []time.Duration, percent int) float64 {
		slices.Sort(list)
		return float64(list[len(list)*percent/100].Microseconds()) / 1000
	}
	b.ReportMetric(at(whole, 50), "ms-p50")
	b.ReportMetric(at(whole, 10), "ms-p10")
	for i, name := range []string{"sandbox", "create", "start"} {
		b.ReportMetric(at(took[i], 10), name+"-ms-p10")
	}
}

// BenchmarkHelper reports what the memory of a container's helper costs: all that is
// mapped, and what is its own.
func BenchmarkHelper(b *testing.B) {
	n := newNode(b)
	pod, pc := n.pod()
	for b.Loop() {
		id := n.begin(pod, pc, config("exec sleep 1000"))
		until(b, "the helper has settled", func() bool { return n.status(id).State == running })
		rss, private := helperMemory(b, id)
		b.ReportMetric(rss, "rss-KiB")
		b.ReportMetric(private, "private-KiB")
	}
}

func helperMemory(b *testing.B, id string) (rss, private float64) {
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		b.Fatal(err)
	}
	for _, path := range all {
		if line, _ := os.ReadFile(path); !strings.Contains(string(line), id) || !strings.Contains(string(line), "proa-shim") {
			continue
		}
		text, err := os.ReadFile(filepath.Join(filepath.Dir(path), "smaps_rollup"))
		if err != nil {
			b.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			var kib float64
			if name, rest, ok := strings.Cut(line, ":"); ok {
				if _, err := fmt.Sscan(rest, &kib); err != nil {
					continue
				}
				switch name {
				case "Rss":
					rss += kib
				case "Private_Dirty", "Private_Clean":
					private += kib
				}
			}
		}
	}
	return rss, private
}
