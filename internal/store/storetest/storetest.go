// Package storetest is the suite that every engine of package store must pass.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/proa-dev/proa/internal/store"
)

// Run tests the engine that open makes; each call must give an empty store that
// is closed when its test ends.
func Run(t *testing.T, open func(t *testing.T) store.Store) {
	for _, c := range []struct {
		name string
		test func(*testing.T, store.Store)
	}{
		{"writes are guarded by revision", guards},
		{"a write at revision 0 matches nothing", atZero},
		{"a list is a snapshot", lists},
		{"the empty prefix is every key", everything},
		{"a list pages through a snapshot", pages},
		{"a replay claims no more than it delivered", replays},
		{"a watch may start in the future", future},
		{"the writer keeps its buffer", buffers},
		{"a large value is refused", tooLarge},
		{"a watch has no gaps under concurrent writers", watches},
		{"compaction forgets, and says so", compacts},
		{"concurrent updates of one key lose nothing", counter},
		{"a watch sees deletes and ends with its context", deletes},
		{"a closed store says so", closes},
		{"a store closes under load", closesUnderLoad},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, open(t)) })
	}
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// A4: of two writes with one revision, one succeeds.
func guards(t *testing.T, s store.Store) {
	ctx := t.Context()
	if _, _, err := s.Get(ctx, "/a"); !errors.Is(err, store.ErrNotFound) {
		t.Fatalf("get of nothing: %v", err)
	}
	r1 := must(s.Create(ctx, "/a", []byte("1")))(t)
	var conflict *store.ConflictError
	if _, err := s.Create(ctx, "/a", []byte("2")); !errors.As(err, &conflict) || conflict.Current == nil || string(conflict.Current.Value) != "1" {
		t.Fatalf("second create: %v", err)
	}
	r2 := must(s.Update(ctx, "/a", []byte("2"), r1))(t)
	if r2 <= r1 {
		t.Fatalf("revision went from %d to %d", r1, r2)
	}
	if _, err := s.Update(ctx, "/a", []byte("3"), r1); !errors.As(err, &conflict) || conflict.Current.ModRevision != r2 {
		t.Fatalf("update at an old revision: %v", err)
	}
	if _, err := s.Delete(ctx, "/a", r1); !errors.As(err, &conflict) {
		t.Fatalf("delete at an old revision: %v", err)
	}
	kv, rev, err := s.Get(ctx, "/a")
	if err != nil || string(kv.Value) != "2" || kv.ModRevision != r2 || kv.CreateRevision != r1 || rev < r2 {
		t.Fatalf("get: %+v at %d, %v", kv, rev, err)
	}
	must(s.Delete(ctx, "/a", r2))(t)
	if _, err := s.Update(ctx, "/a", []byte("x"), r2); !errors.As(err, &conflict) || conflict.Current != nil {
		t.Fatalf("update of a deleted key: %v", err)
	}
}

func lists(t *testing.T, s store.Store) {
	ctx := t.Context()
	var at int64
	for i := range 10 {
		at = must(s.Create(ctx, fmt.Sprintf("/l/%02d", i), []byte(strconv.Itoa(i))))(t)
	}
	must(s.Create(ctx, "/m", nil))(t)
	must(s.Create(ctx, "/l/99", nil))(t)
	old := must(s.List(ctx, "/l/", store.ListOptions{Revision: at}))(t)
	if len(old.KVs) != 10 || old.Revision != at || old.More {
		t.Fatalf("list at %d: %d keys at %d, more %v", at, len(old.KVs), old.Revision, old.More)
	}
	page := must(s.List(ctx, "/l/", store.ListOptions{Limit: 3, From: "/l/04", Revision: at}))(t)
	if len(page.KVs) != 3 || page.KVs[0].Key != "/l/04" || !page.More {
		t.Fatalf("page: %+v", page)
	}
	keys := must(s.List(ctx, "/l/", store.ListOptions{KeysOnly: true}))(t)
	if len(keys.KVs) != 11 || len(keys.KVs[3].Value) != 0 {
		t.Fatalf("keys only: %d, value %q", len(keys.KVs), keys.KVs[3].Value)
	}
	if _, err := s.List(ctx, "/l/", store.ListOptions{Revision: keys.Revision + 100}); !errors.Is(err, store.ErrFutureRevision) {
		t.Fatalf("list in the future: %v", err)
	}
}

// A6: every event once, in order, none missing.
func watches(t *testing.T, s store.Store) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	start := must(s.Create(ctx, "/w/before", nil))(t)
	const writers, each = 8, 50
	w := must(s.Watch(ctx, "/w/", start))(t)
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			for j := range each {
				if _, err := s.Create(ctx, fmt.Sprintf("/w/%d-%d", i, j), []byte("x")); err != nil {
					t.Errorf("create: %v", err)
				}
				if _, err := s.Create(ctx, fmt.Sprintf("/other/%d-%d", i, j), nil); err != nil {
					t.Errorf("create: %v", err)
				}
			}
		})
	}
	seen := map[string]bool{}
	last := start
	for len(seen) < writers*each {
		batch, ok := <-w.Batches()
		if !ok {
			t.Fatalf("the watch ended after %d events: %v", len(seen), w.Err())
		}
		for _, e := range batch.Events {
			if e.KV.ModRevision <= last {
				t.Fatalf("revision %d after %d", e.KV.ModRevision, last)
			}
			last = e.KV.ModRevision
			if seen[e.KV.Key] || e.Type != store.Put || string(e.KV.Value) != "x" {
				t.Fatalf("event %+v", e)
			}
			seen[e.KV.Key] = true
		}
		if batch.Revision < last {
			t.Fatalf("batch at %d holds revision %d", batch.Revision, last)
		}
	}
	wg.Wait()
	// A second watch from the same revision replays the same.
	again := must(s.Watch(ctx, "/w/", start))(t)
	n := 0
	for n < writers*each {
		batch, ok := <-again.Batches()
		if !ok {
			t.Fatalf("the replay ended after %d events: %v", n, again.Err())
		}
		n += len(batch.Events)
	}
}

// A7: at a compacted revision there is an error, never a gap.
func compacts(t *testing.T, s store.Store) {
	ctx := t.Context()
	r1 := must(s.Create(ctx, "/c/a", []byte("1")))(t)
	r2 := must(s.Update(ctx, "/c/a", []byte("2"), r1))(t)
	r3 := must(s.Update(ctx, "/c/a", []byte("3"), r2))(t)
	if err := s.Compact(ctx, r2); err != nil {
		t.Fatal(err)
	}
	if _, err := s.List(ctx, "/c/", store.ListOptions{Revision: r1}); !errors.Is(err, store.ErrCompacted) {
		t.Errorf("list at a compacted revision: %v", err)
	}
	if w, err := s.Watch(ctx, "/c/", r2-1); err == nil {
		for range w.Batches() {
			t.Error("a watch from a compacted revision delivers events")
		}
		err = w.Err()
		if !errors.Is(err, store.ErrCompacted) {
			t.Errorf("watch from a compacted revision: %v", err)
		}
	} else if !errors.Is(err, store.ErrCompacted) {
		t.Errorf("watch from a compacted revision: %v", err)
	}
	// The revision itself can still be read, and watched from.
	if at, err := s.List(ctx, "/c/", store.ListOptions{Revision: r2}); err != nil || len(at.KVs) != 1 || string(at.KVs[0].Value) != "2" {
		t.Errorf("list at the compacted revision: %+v, %v", at, err)
	}
	watching, stop := context.WithCancel(ctx)
	if w, err := s.Watch(watching, "/c/", r2); err != nil {
		t.Errorf("watch after the compacted revision: %v", err)
	} else if batch := <-w.Batches(); len(batch.Events) != 1 || batch.Events[0].KV.ModRevision != r3 {
		t.Errorf("watch after the compacted revision: %+v, %v", batch, w.Err())
	}
	stop()
	if err := s.Compact(ctx, r1); !errors.Is(err, store.ErrCompacted) {
		t.Errorf("compact twice: %v", err)
	}
	if err := s.Compact(ctx, r3+100); !errors.Is(err, store.ErrFutureRevision) {
		t.Errorf("compact the future: %v", err)
	}
	kv, _, err := s.Get(ctx, "/c/a")
	if err != nil || string(kv.Value) != "3" {
		t.Errorf("after compaction: %+v, %v", kv, err)
	}
}

// A2: compare and swap from many sides.
func counter(t *testing.T, s store.Store) {
	ctx := t.Context()
	must(s.Create(ctx, "/n", []byte("0")))(t)
	const writers, each = 8, 25
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for done := 0; done < each; {
				kv, _, err := s.Get(ctx, "/n")
				if err != nil {
					t.Errorf("get: %v", err)
					return
				}
				n, _ := strconv.Atoi(string(kv.Value))
				_, err = s.Update(ctx, "/n", []byte(strconv.Itoa(n+1)), kv.ModRevision)
				var conflict *store.ConflictError
				switch {
				case err == nil:
					done++
				case !errors.As(err, &conflict):
					t.Errorf("update: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	if kv, _, err := s.Get(ctx, "/n"); err != nil || string(kv.Value) != strconv.Itoa(writers*each) {
		t.Fatalf("counted %s, %v; want %d", kv.Value, err, writers*each)
	}
}

func deletes(t *testing.T, s store.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	rev := must(s.Create(ctx, "/d", []byte("x")))(t)
	w := must(s.Watch(ctx, "/d", rev))(t)
	gone := must(s.Delete(ctx, "/d", rev))(t)
	batch := <-w.Batches()
	if len(batch.Events) != 1 || batch.Events[0].Type != store.Delete || batch.Events[0].KV.ModRevision != gone || batch.Events[0].KV.Key != "/d" {
		t.Fatalf("got %+v, want the delete at %d", batch, gone)
	}
	cancel()
	for range w.Batches() {
	}
	if err := w.Err(); err != nil {
		t.Fatalf("a cancelled watch ended with %v", err)
	}
	if _, err := s.Create(ctx, "/e", nil); !errors.Is(err, context.Canceled) {
		t.Fatalf("a write with a cancelled context: %v", err)
	}
}

func closes(t *testing.T, s store.Store) {
	ctx := t.Context()
	must(s.Create(ctx, "/x", nil))(t)
	w := must(s.Watch(ctx, "/", mustRevision(t, s)))(t)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for range w.Batches() {
	}
	if !errors.Is(w.Err(), store.ErrClosed) {
		t.Errorf("the watch ended with %v", w.Err())
	}
	for name, call := range map[string]func() error{
		"create":   func() error { _, err := s.Create(ctx, "/y", nil); return err },
		"update":   func() error { _, err := s.Update(ctx, "/x", nil, 2); return err },
		"delete":   func() error { _, err := s.Delete(ctx, "/x", 2); return err },
		"get":      func() error { _, _, err := s.Get(ctx, "/x"); return err },
		"list":     func() error { _, err := s.List(ctx, "/", store.ListOptions{}); return err },
		"watch":    func() error { _, err := s.Watch(ctx, "/", 0); return err },
		"revision": func() error { _, err := s.Revision(ctx); return err },
		"compact":  func() error { return s.Compact(ctx, 2) },
	} {
		if err := call(); !errors.Is(err, store.ErrClosed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
}

// Close under load neither crashes nor hangs, and every call that fails says why.
func closesUnderLoad(t *testing.T, s store.Store) {
	ctx := t.Context()
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for j := 0; ; j++ {
				_, err := s.Create(ctx, fmt.Sprintf("/x/%d-%d", i, j), []byte("x"))
				if err == nil {
					_, err = s.List(ctx, "/x/", store.ListOptions{Limit: 10})
				}
				if err != nil {
					if !errors.Is(err, store.ErrClosed) {
						t.Errorf("a call failed with %v", err)
					}
					return
				}
			}
		})
	}
	time.Sleep(20 * time.Millisecond)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
}

func atZero(t *testing.T, s store.Store) {
	ctx := t.Context()
	var conflict *store.ConflictError
	if _, err := s.Update(ctx, "/z", nil, 0); !errors.As(err, &conflict) || conflict.Current != nil {
		t.Errorf("update of nothing at 0: %v", err)
	}
	if _, err := s.Delete(ctx, "/z", 0); !errors.As(err, &conflict) || conflict.Current != nil {
		t.Errorf("delete of nothing at 0: %v", err)
	}
	rev := must(s.Create(ctx, "/z", []byte("x")))(t)
	if _, err := s.Delete(ctx, "/z", 0); !errors.As(err, &conflict) || conflict.Current == nil || conflict.Current.ModRevision != rev {
		t.Errorf("delete at 0: %v", err)
	}
}

func everything(t *testing.T, s store.Store) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	w := must(s.Watch(ctx, "", mustRevision(t, s)))(t)
	must(s.Create(ctx, "/a", nil))(t)
	must(s.Create(ctx, "b", nil))(t)
	for got := 0; got < 2; {
		batch, ok := <-w.Batches()
		if !ok {
			t.Fatalf("the watch ended after %d events: %v", got, w.Err())
		}
		got += len(batch.Events)
	}
	if all := must(s.List(ctx, "", store.ListOptions{}))(t); len(all.KVs) != 2 {
		t.Fatalf("%d keys", len(all.KVs))
	}
}

func pages(t *testing.T, s store.Store) {
	ctx := t.Context()
	for i := range 25 {
		must(s.Create(ctx, fmt.Sprintf("/p/%02d", i), nil))(t)
	}
	must(s.Create(ctx, "/q", nil))(t)
	var got []string
	opts := store.ListOptions{Limit: 10}
	for {
		page := must(s.List(ctx, "/p/", opts))(t)
		for _, kv := range page.KVs {
			got = append(got, kv.Key)
		}
		if !page.More {
			break
		}
		opts.Revision, opts.From = page.Revision, page.KVs[len(page.KVs)-1].Key+"\x00"
		// What is written between the pages is in none of them.
		must(s.Create(ctx, fmt.Sprintf("/p/new-%d", len(got)), nil))(t)
	}
	if len(got) != 25 || got[0] != "/p/00" || got[24] != "/p/24" {
		t.Fatalf("paged through %v", got)
	}
	if past := must(s.List(ctx, "/p/", store.ListOptions{From: "/q"}))(t); len(past.KVs) != 0 || past.More {
		t.Fatalf("from after the prefix: %+v", past)
	}
	exact := must(s.List(ctx, "/p/", store.ListOptions{Limit: 25, Revision: opts.Revision}))(t)
	if len(exact.KVs) != 25 || exact.More {
		t.Fatalf("a limit that fits: %d keys, more %v", len(exact.KVs), exact.More)
	}
}

// Batch.Revision is what a reader may resume from: it must never be beyond an
// event still to come, however long the replay is.
func replays(t *testing.T, s store.Store) {
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	const n = 2500
	start := mustRevision(t, s)
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			for j := range n / 10 {
				if _, err := s.Create(ctx, fmt.Sprintf("/r/%d-%d", i, j), nil); err != nil {
					t.Errorf("create: %v", err)
				}
			}
		})
	}
	wg.Wait()
	w := must(s.Watch(ctx, "/r/", start))(t)
	want := start
	var claimed int64
	for want < start+n {
		batch, ok := <-w.Batches()
		if !ok {
			t.Fatalf("the replay ended at %d: %v", want, w.Err())
		}
		for _, e := range batch.Events {
			if want++; e.KV.ModRevision != want {
				t.Fatalf("revision %d, want %d", e.KV.ModRevision, want)
			}
			if e.KV.ModRevision <= claimed {
				t.Fatalf("revision %d comes after a batch that claimed all up to %d", e.KV.ModRevision, claimed)
			}
		}
		claimed = batch.Revision
	}
}

func future(t *testing.T, s store.Store) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	now := mustRevision(t, s)
	w := must(s.Watch(ctx, "/f/", now+2))(t)
	for i := range 3 {
		must(s.Create(ctx, fmt.Sprintf("/f/%d", i), nil))(t)
	}
	batch, ok := <-w.Batches()
	if !ok || len(batch.Events) == 0 || batch.Events[0].KV.ModRevision != now+3 {
		t.Fatalf("got %+v, %v; want revision %d first", batch, w.Err(), now+3)
	}
}

func buffers(t *testing.T, s store.Store) {
	ctx := t.Context()
	buffer := []byte("before")
	must(s.Create(ctx, "/b", buffer))(t)
	copy(buffer, "AFTER!")
	if kv, _, err := s.Get(ctx, "/b"); err != nil || string(kv.Value) != "before" {
		t.Fatalf("%q, %v", kv.Value, err)
	}
}

func tooLarge(t *testing.T, s store.Store) {
	if _, err := s.Create(t.Context(), "/large", make([]byte, 4<<20)); !errors.Is(err, store.ErrTooLarge) {
		t.Fatalf("4 MiB: %v", err)
	}
	must(s.Create(t.Context(), "/fits", make([]byte, 1<<20)))(t)
}

func mustRevision(t *testing.T, s store.Store) int64 {
	t.Helper()
	return must(s.Revision(t.Context()))(t)
}
