package storetest

import (
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/proa-dev/proa/internal/store"
)

// Benchmark measures the engine that open makes.
func Benchmark(b *testing.B, open func(b *testing.B) store.Store) {
	value := make([]byte, 1500) // a pod
	for _, clients := range []int{1, 64} {
		b.Run(fmt.Sprintf("put/clients=%d", clients), func(b *testing.B) {
			s, ctx := open(b), b.Context()
			var n atomic.Int64
			put := func() {
				if _, err := s.Create(ctx, fmt.Sprintf("/registry/pods/default/%d", n.Add(1)), value); err != nil {
					b.Error(err)
				}
			}
			b.ReportAllocs()
			b.ResetTimer()
			if clients == 1 {
				for range b.N {
					put()
				}
				return
			}
			b.SetParallelism(max(1, clients/runtime.GOMAXPROCS(0)))
			b.RunParallel(func(p *testing.PB) {
				for p.Next() {
					put()
				}
			})
		})
	}
	b.Run("get", func(b *testing.B) {
		s, ctx := open(b), b.Context()
		if _, err := s.Create(ctx, "/registry/pods/default/web", value); err != nil {
			b.Fatal(err)
		}
		b.ReportAllocs()
		b.ResetTimer()
		for range b.N {
			if _, _, err := s.Get(ctx, "/registry/pods/default/web"); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("list/keys=10000", func(b *testing.B) {
		s, ctx := open(b), b.Context()
		for i := range 10000 {
			if _, err := s.Create(ctx, fmt.Sprintf("/registry/pods/default/%05d", i), value); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportAllocs()
		b.ResetTimer()
		for range b.N {
			if l, err := s.List(ctx, "/registry/pods/", store.ListOptions{}); err != nil || len(l.KVs) != 10000 {
				b.Fatalf("%d keys, %v", len(l.KVs), err)
			}
		}
	})
}
