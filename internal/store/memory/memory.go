// Package memory is a store that lives in the process: for tests and
// simulations. It keeps every revision until Compact, starts one goroutine for
// each watcher and none besides, and works within testing/synctest. Nothing is
// kept when the process ends.
package memory

import (
	"context"
	"fmt"
	"math"
	"strings"
	"sync"

	"github.com/tidwall/btree"

	"github.com/proa-dev/proa/internal/store"
)

// maxValue is what the etcd engine accepts, so that a test meets the same limit.
const maxValue = 3 << 20

// Store is a revisioned map. Each key has its own list of versions, so a write
// costs the same however much history is kept, and a read in the past is a read.
type Store struct {
	mu        sync.RWMutex
	keys      btree.Map[string, *history]
	revision  int64
	compacted int64
	// log has one event for each revision in (logStart, revision]. It is only ever
	// appended to, or replaced by Compact: a watcher may read a part of it without mu.
	log      []store.Event
	logStart int64
	watchers map[*watcher]struct{}
	closed   bool

	done    chan struct{}
	running sync.WaitGroup
}

// history holds a key's versions in revision order. A delete is a version
// without a CreateRevision.
type history struct {
	versions []store.KV
}

var _ store.Store = (*Store)(nil)

// New returns an empty store at revision 1, as etcd begins.
func New() *Store {
	return &Store{revision: 1, logStart: 1, watchers: map[*watcher]struct{}{}, done: make(chan struct{})}
}

// at returns the key's state at a revision.
func (h *history) at(revision int64) (store.KV, bool) {
	for i := len(h.versions) - 1; i >= 0; i-- {
		if v := h.versions[i]; v.ModRevision <= revision {
			return v, v.CreateRevision != 0
		}
	}
	return store.KV{}, false
}

// get returns the newest state. Callers hold mu.
func (s *Store) get(key string) (store.KV, bool) {
	if h, ok := s.keys.Get(key); ok {
		return h.at(math.MaxInt64)
	}
	return store.KV{}, false
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string) (store.KV, int64, error) {
	if err := ctx.Err(); err != nil {
		return store.KV{}, 0, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return store.KV{}, 0, store.ErrClosed
	}
	kv, ok := s.get(key)
	if !ok {
		return store.KV{}, s.revision, store.ErrNotFound
	}
	return kv, s.revision, nil
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, prefix string, opts store.ListOptions) (store.ListResult, error) {
	if err := ctx.Err(); err != nil {
		return store.ListResult{}, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	at := opts.Revision
	switch {
	case s.closed:
		return store.ListResult{}, store.ErrClosed
	case at <= 0:
		at = s.revision
	case at > s.revision:
		return store.ListResult{}, store.ErrFutureRevision
	case at < s.compacted:
		return store.ListResult{}, store.ErrCompacted
	}
	out := store.ListResult{Revision: at}
	s.keys.Ascend(max(prefix, opts.From), func(key string, h *history) bool {
		if !strings.HasPrefix(key, prefix) {
			return false
		}
		kv, ok := h.at(at)
		if !ok {
			return true
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

// Create implements store.Store.
func (s *Store) Create(ctx context.Context, key string, value []byte) (int64, error) {
	return s.write(ctx, store.Put, key, value, func(_ store.KV, exists bool) bool { return !exists })
}

// Update implements store.Store.
func (s *Store) Update(ctx context.Context, key string, value []byte, revision int64) (int64, error) {
	return s.write(ctx, store.Put, key, value, isAt(revision))
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, key string, revision int64) (int64, error) {
	return s.write(ctx, store.Delete, key, nil, isAt(revision))
}

func isAt(revision int64) func(store.KV, bool) bool {
	return func(kv store.KV, exists bool) bool { return exists && kv.ModRevision == revision }
}

// write changes a key whose present state passes guard.
func (s *Store) write(ctx context.Context, typ store.EventType, key string, value []byte, guard func(kv store.KV, exists bool) bool) (int64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if len(key)+len(value) > maxValue {
		return 0, fmt.Errorf("write %s: %w", key, store.ErrTooLarge)
	}
	if typ == store.Put {
		// The caller may use its buffer again, as with etcd.
		value = append(make([]byte, 0, len(value)), value...)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0, store.ErrClosed
	}
	old, exists := s.get(key)
	if !guard(old, exists) {
		err := &store.ConflictError{Key: key}
		if exists {
			err.Current = &old
		}
		return 0, err
	}
	s.revision++
	kv := store.KV{Key: key, ModRevision: s.revision}
	if typ == store.Put {
		kv.Value, kv.CreateRevision = value, s.revision
		if exists {
			kv.CreateRevision = old.CreateRevision
		}
	}
	h, known := s.keys.Get(key)
	if !known {
		h = &history{}
		s.keys.Set(key, h)
	}
	h.versions = append(h.versions, kv)
	s.log = append(s.log, store.Event{Type: typ, KV: kv})
	for w := range s.watchers {
		w.notice(key, s.revision)
	}
	return s.revision, nil
}

// Revision implements store.Store.
func (s *Store) Revision(ctx context.Context) (int64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return 0, store.ErrClosed
	}
	return s.revision, nil
}

// Compact implements store.Store. The state at the revision itself can still be read.
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
	if revision <= s.logStart {
		return nil
	}
	gone := s.log[:revision-s.logStart]
	for i := range gone {
		s.prune(gone[i].KV.Key, revision)
	}
	s.log = append([]store.Event(nil), s.log[len(gone):]...)
	s.logStart = revision
	for w := range s.watchers {
		if w.next != 0 && w.next <= revision {
			w.compacted = true
			w.wake()
		}
	}
	return nil
}

// prune forgets the versions of a key that no read at or after revision can see.
func (s *Store) prune(key string, revision int64) {
	h, ok := s.keys.Get(key)
	if !ok {
		return
	}
	keep := 0
	for keep+1 < len(h.versions) && h.versions[keep+1].ModRevision <= revision {
		keep++
	}
	if v := h.versions[keep]; v.CreateRevision == 0 && v.ModRevision <= revision {
		keep++
	}
	switch {
	case keep == len(h.versions):
		s.keys.Delete(key)
	case keep > 0:
		h.versions = append([]store.KV(nil), h.versions[keep:]...)
	}
}

// Close ends every watch and waits for them.
func (s *Store) Close() error {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.done)
	}
	s.mu.Unlock()
	s.running.Wait()
	return nil
}
