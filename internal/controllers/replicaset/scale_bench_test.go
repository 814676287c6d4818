package replicaset_test

import (
	"testing"
	"time"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/controllers/replicaset"
	"github.com/proa-dev/proa/test/control"
)

// A set of 2,000 pods from nothing to all created.
func BenchmarkScaleUp(b *testing.B) {
	for range b.N {
		c := control.New(b)
		stop := control.Run(b, replicaset.New(c, quiet))
		start := time.Now()
		if _, err := client.ReplicaSets.Create(b.Context(), c, set(2000)); err != nil {
			b.Fatal(err)
		}
		informer := client.ReplicaSets.Informer(c, client.Scope{})
		for {
			if s, ok := informer.Get("default", "web"); ok && s.Status.Replicas == 2000 {
				break
			}
			time.Sleep(time.Millisecond)
		}
		b.ReportMetric(2000/time.Since(start).Seconds(), "pods/s")
		stop()
	}
}
