package etcd

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/proa-dev/proa/internal/store"
	"github.com/proa-dev/proa/internal/store/storetest"
)

func open(t testing.TB, opts Options) *Store {
	t.Helper()
	if opts.Dir == "" {
		opts.Dir = t.TempDir()
	}
	opts.Logger = slog.New(slog.DiscardHandler)
	s, err := New(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store { return open(t, Options{UnsafeNoFsync: true}) })
}

// A1, A3, W7: what was acknowledged is there after a restart, revisions go on,
// and a second process is refused.
func TestDataAndRevisionSurviveARestart(t *testing.T) {
	dir := t.TempDir()
	first := open(t, Options{Dir: dir})
	rev, err := first.Create(t.Context(), "/a", []byte("kept"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(t.Context(), Options{Dir: dir}); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), dir) {
		t.Fatalf("a second server on the same folder: %v", err)
	}
	first.Close()

	again := open(t, Options{Dir: dir})
	kv, _, err := again.Get(t.Context(), "/a")
	if err != nil || string(kv.Value) != "kept" || kv.ModRevision != rev {
		t.Fatalf("after a restart: %+v, %v", kv, err)
	}
	next, err := again.Update(t.Context(), "/a", []byte("new"), rev)
	if err != nil || next <= rev {
		t.Fatalf("revision %d after %d, %v", next, rev, err)
	}
}

// A25: a full store refuses writes, goes on reading, and recovers by itself.
func TestAFullStoreRecovers(t *testing.T) {
	s := open(t, Options{UnsafeNoFsync: true, QuotaBytes: 16 << 20})
	ctx := t.Context()
	value := make([]byte, 1<<20)
	rev, err := s.Create(ctx, "/big", value)
	for i := 0; err == nil && i < 100; i++ {
		rev2, e := s.Update(ctx, "/big", value, rev)
		if err = e; err == nil {
			rev = rev2
		}
	}
	if !errors.Is(err, store.ErrNoSpace) {
		t.Fatalf("writing 100 MiB into 16 MiB: %v", err)
	}
	if _, _, err := s.Get(ctx, "/big"); err != nil {
		t.Fatalf("read of a full store: %v", err)
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		if _, err = s.Update(ctx, "/big", []byte("small"), rev); err == nil {
			break
		}
		if !errors.Is(err, store.ErrNoSpace) || time.Now().After(deadline) {
			t.Fatalf("the store does not recover: %v", err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func TestATooLargeValueIsRefused(t *testing.T) {
	s := open(t, Options{UnsafeNoFsync: true})
	if _, err := s.Create(t.Context(), "/x", make([]byte, maxRequest+1)); !errors.Is(err, store.ErrTooLarge) {
		t.Fatalf("got %v", err)
	}
}

func BenchmarkPut(b *testing.B) {
	for _, parallel := range []int{1, 64} {
		b.Run(fmt.Sprintf("clients-%d", parallel), func(b *testing.B) {
			s := open(b, Options{})
			value := make([]byte, 1500)
			var n atomic.Int64
			b.SetParallelism(max(1, parallel/2))
			b.RunParallel(func(p *testing.PB) {
				for p.Next() {
					if _, err := s.Create(b.Context(), fmt.Sprintf("/k/%d", n.Add(1)), value); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}
