package memory

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/proa-dev/proa/internal/store"
	"github.com/proa-dev/proa/internal/store/storetest"
)

func open(t testing.TB) store.Store {
	s := New()
	t.Cleanup(func() { s.Close() })
	return s
}

func TestStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store { return open(t) })
}

// Within a bubble every goroutine of the store is blocked while nothing is
// written, so time can move on, and all end with Close.
func TestWorksInABubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New()
		w, err := s.Watch(t.Context(), "/a/", 1)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			time.Sleep(time.Hour)
			s.Create(t.Context(), "/a/x", nil)
		}()
		start := time.Now()
		if b := <-w.Batches(); len(b.Events) != 1 || time.Since(start) != time.Hour {
			t.Errorf("got %+v after %v", b, time.Since(start))
		}
		s.Close()
		if _, open := <-w.Batches(); open || !errors.Is(w.Err(), store.ErrClosed) {
			t.Errorf("after close: %v", w.Err())
		}
	})
}

// A watcher that has missed nothing is not ended by a compaction; one whose
// events were forgotten before it took them is.
func TestCompactionEndsOnlyWatchersThatLoseEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New()
		defer s.Close()
		ctx := t.Context()
		quiet, _ := s.Watch(ctx, "/quiet/", 1)
		slow, _ := s.Watch(ctx, "/busy/", 1)
		var rev int64
		for i := range 10 {
			rev, _ = s.Create(ctx, fmt.Sprintf("/busy/%d", i), nil)
			synctest.Wait() // slow has taken the first and is blocked in its send
		}
		if err := s.Compact(ctx, rev); err != nil {
			t.Fatal(err)
		}
		if b := <-slow.Batches(); len(b.Events) != 1 {
			t.Errorf("slow: %d events in the batch it had taken", len(b.Events))
		}
		if _, open := <-slow.Batches(); open || !errors.Is(slow.Err(), store.ErrCompacted) {
			t.Errorf("slow ended with %v", slow.Err())
		}
		s.Create(ctx, "/quiet/a", nil)
		if b := <-quiet.Batches(); len(b.Events) != 1 || b.Events[0].KV.Key != "/quiet/a" {
			t.Errorf("quiet: %+v, %v", b, quiet.Err())
		}
	})
}

func BenchmarkStore(b *testing.B) {
	storetest.Benchmark(b, func(b *testing.B) store.Store { return open(b) })
}
