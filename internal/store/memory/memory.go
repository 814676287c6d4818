// Package memory is a store that lives in the process: for tests and
// simulations. It keeps every revision until Compact, starts one goroutine for
// each watcher and none besides, and works within testing/synctest.
package memory

import (
	"context"
	"strings"
	"sync"

	"github.com/tidwall/btree"

	"github.com/proa-dev/proa/internal/store"
)

type tree = btree.BTreeG[store.KV]

// Store is an empty store at revision 1, as etcd begins.
type Store struct {
	mu        sync.RWMutex
	now       *tree
	revision  int64
	compacted int64
	past      []version     // ascending; past[i] holds from its revision on
	log       []store.Event // every change after compacted
	changed   chan struct{} // closed and replaced at each change
	closed    bool
	watchers  sync.WaitGroup
	done      chan struct{}
}

type version struct {
	revision int64
	tree     *tree
}

var _ store.Store = (*Store)(nil)

// New returns an empty store.
func New() *Store {
	t := btree.NewBTreeG(func(a, b store.KV) bool { return a.Key < b.Key })
	return &Store{now: t, revision: 1, past: []version{{1, t.Copy()}}, changed: make(chan struct{}), done: make(chan struct{})}
}

func (s *Store) Get(ctx context.Context, key string) (store.KV, int64, error) {
	if err := ctx.Err(); err != nil {
		return store.KV{}, 0, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return store.KV{}, 0, store.ErrClosed
	}
	kv, ok := s.now.Get(store.KV{Key: key})
	if !ok {
		return store.KV{}, s.revision, store.ErrNotFound
	}
	return kv, s.revision, nil
}

func (s *Store) List(ctx context.Context, prefix string, opts store.ListOptions) (store.ListResult, error) {
	if err := ctx.Err(); err != nil {
		return store.ListResult{}, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return store.ListResult{}, store.ErrClosed
	}
	at := opts.Revision
	if at == 0 {
		at = s.revision
	}
	if at > s.revision {
		return store.ListResult{}, store.ErrFutureRevision
	}
	if at < s.compacted {
		return store.ListResult{}, store.ErrCompacted
	}
	t := s.now
	if at < s.revision {
		for i := len(s.past) - 1; i >= 0; i-- {
			if s.past[i].revision <= at {
				t = s.past[i].tree
				break
			}
		}
	}
	out := store.ListResult{Revision: at}
	from := max(prefix, opts.From)
	t.Ascend(store.KV{Key: from}, func(kv store.KV) bool {
		if !strings.HasPrefix(kv.Key, prefix) {
			return false
		}
		if opts.Limit > 0 && len(out.KVs) == opts.Limit {
			out.More = true
			return false
		}
		if opts.KeysOnly {
			kv.Value = nil
		}
		out.KVs = append(out.KVs, kv)
		return true
	})
	return out, nil
}

func (s *Store) Create(ctx context.Context, key string, value []byte) (int64, error) {
	return s.write(ctx, key, 0, value, store.Put)
}

func (s *Store) Update(ctx context.Context, key string, value []byte, revision int64) (int64, error) {
	return s.write(ctx, key, revision, value, store.Put)
}

func (s *Store) Delete(ctx context.Context, key string, revision int64) (int64, error) {
	return s.write(ctx, key, revision, nil, store.Delete)
}

// write changes a key whose ModRevision is expected (0: it must not exist).
func (s *Store) write(ctx context.Context, key string, expected int64, value []byte, kind store.EventType) (int64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0, store.ErrClosed
	}
	old, exists := s.now.Get(store.KV{Key: key})
	if exists != (expected != 0) || exists && old.ModRevision != expected {
		err := &store.ConflictError{Key: key}
		if exists {
			err.Current = &old
		}
		return 0, err
	}
	s.revision++
	e := store.Event{Type: kind, KV: store.KV{Key: key, ModRevision: s.revision, CreateRevision: s.revision}}
	if exists {
		e.Prev = &old
		e.KV.CreateRevision = old.CreateRevision
	}
	if kind == store.Put {
		e.KV.Value = append([]byte(nil), value...)
		s.now.Set(e.KV)
	} else {
		s.now.Delete(store.KV{Key: key})
	}
	s.past = append(s.past, version{s.revision, s.now.Copy()})
	s.log = append(s.log, e)
	close(s.changed)
	s.changed = make(chan struct{})
	return s.revision, nil
}

func (s *Store) Revision(ctx context.Context) (int64, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return 0, store.ErrClosed
	}
	return s.revision, ctx.Err()
}

func (s *Store) Compact(ctx context.Context, revision int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return store.ErrClosed
	case revision > s.revision:
		return store.ErrFutureRevision
	case revision <= s.compacted:
		return store.ErrCompacted
	}
	s.compacted = revision
	i := 0
	for i < len(s.past)-1 && s.past[i+1].revision <= revision {
		i++
	}
	s.past = append([]version(nil), s.past[i:]...)
	j := 0
	for j < len(s.log) && s.log[j].KV.ModRevision <= revision {
		j++
	}
	s.log = append([]store.Event(nil), s.log[j:]...)
	return nil
}

// Close ends every watch and waits for them.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	close(s.done)
	s.mu.Unlock()
	s.watchers.Wait()
	return nil
}

type watcher struct {
	batches chan store.Batch
	err     error
}

func (w *watcher) Batches() <-chan store.Batch { return w.batches }
func (w *watcher) Err() error                  { return w.err }

func (s *Store) Watch(ctx context.Context, prefix string, after int64) (store.Watcher, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, store.ErrClosed
	}
	if after < s.compacted {
		return nil, store.ErrCompacted
	}
	w := &watcher{batches: make(chan store.Batch)}
	s.watchers.Go(func() {
		defer close(w.batches)
		w.err = s.follow(ctx, w, prefix, after)
	})
	return w, nil
}

func (s *Store) follow(ctx context.Context, w *watcher, prefix string, after int64) error {
	for {
		s.mu.RLock()
		if after < s.compacted {
			s.mu.RUnlock()
			return store.ErrCompacted
		}
		var events []store.Event
		// Revisions in the log are consecutive, so the place of one is known.
		start := len(s.log) - int(s.revision-after)
		for _, e := range s.log[min(max(0, start), len(s.log)):] {
			if strings.HasPrefix(e.KV.Key, prefix) {
				events = append(events, e)
			}
		}
		reached, changed := max(after, s.revision), s.changed
		s.mu.RUnlock()
		after = reached
		if len(events) > 0 {
			select {
			case w.batches <- store.Batch{Events: events, Revision: reached}:
			case <-ctx.Done():
				return nil
			case <-s.done:
				return store.ErrClosed
			}
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		case <-s.done:
			return store.ErrClosed
		}
	}
}
