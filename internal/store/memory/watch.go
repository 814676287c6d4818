package memory

import (
	"context"
	"strings"

	"github.com/proa-dev/proa/internal/store"
)

// maxScan bounds how much of the log one batch is made from.
const maxScan = 1024

// watcher reads the log from a position of its own. A slow one holds up nobody.
type watcher struct {
	batches chan store.Batch
	err     error
	prefix  string
	after   int64
	signal  chan struct{} // holds one token while there may be something to take

	// Guarded by Store.mu.
	next      int64 // revision of the first event not yet taken; 0: none
	compacted bool  // next was compacted away
}

func (w *watcher) Batches() <-chan store.Batch { return w.batches }
func (w *watcher) Err() error                  { return w.err }

// Watch implements store.Store. Events carry no Prev, as those of the etcd engine.
func (s *Store) Watch(ctx context.Context, prefix string, after int64) (store.Watcher, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	after = max(after, 0)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return nil, store.ErrClosed
	case after < s.compacted:
		return nil, store.ErrCompacted
	}
	w := &watcher{batches: make(chan store.Batch), prefix: prefix, after: after, signal: make(chan struct{}, 1)}
	if after < s.revision {
		w.next = max(after, s.logStart) + 1
		w.wake()
	}
	s.watchers[w] = struct{}{}
	s.running.Go(func() {
		defer close(w.batches)
		w.err = s.follow(ctx, w)
		s.mu.Lock()
		delete(s.watchers, w)
		s.mu.Unlock()
	})
	return w, nil
}

// notice tells the watcher of a write. Callers hold Store.mu.
func (w *watcher) notice(key string, revision int64) {
	if revision <= w.after || !strings.HasPrefix(key, w.prefix) {
		return
	}
	if w.next == 0 {
		w.next = revision
	}
	w.wake()
}

func (w *watcher) wake() {
	select {
	case w.signal <- struct{}{}:
	default:
	}
}

// take returns the next part of the log and the revision of its end.
func (s *Store) take(w *watcher) (part []store.Event, end int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w.compacted {
		return nil, 0, store.ErrCompacted
	}
	if w.next == 0 {
		return nil, 0, nil
	}
	part = s.log[w.next-1-s.logStart:]
	if len(part) > maxScan {
		part = part[:maxScan]
	}
	end = w.next - 1 + int64(len(part))
	w.next = 0
	if end < s.revision {
		w.next = end + 1
		w.wake()
	}
	return part, end, nil
}

// follow returns nil when ctx ended.
func (s *Store) follow(ctx context.Context, w *watcher) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.done:
			return store.ErrClosed
		case <-w.signal:
		}
		part, end, err := s.take(w)
		if err != nil {
			return err
		}
		var events []store.Event
		for i := range part {
			if strings.HasPrefix(part[i].KV.Key, w.prefix) {
				events = append(events, part[i])
			}
		}
		if len(events) == 0 {
			continue
		}
		select {
		case w.batches <- store.Batch{Events: events, Revision: end}:
		case <-ctx.Done():
			return nil
		case <-s.done:
			return store.ErrClosed
		}
	}
}
