package etcd

import (
	"context"
	"fmt"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/server/v3/storage/mvcc"

	"github.com/proa-dev/proa/internal/store"
)

// maxBatch bounds how many events that wait already are joined into one batch.
const maxBatch = 1024

type watcher struct {
	batches chan store.Batch
	err     error
}

func (w *watcher) Batches() <-chan store.Batch { return w.batches }
func (w *watcher) Err() error                  { return w.err }

// Watch implements store.Store. Events carry no Prev: it would cost a read each.
// A watch that starts in the past is caught up within etcd's 0.1 s.
func (s *Store) Watch(ctx context.Context, prefix string, after int64) (store.Watcher, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer s.leave()
	after = max(after, 0)
	stream := s.server.Watchable().NewWatchStream()
	from, end := keyRange(prefix)
	if _, err := stream.Watch(ctx, 0, from, end, after+1); err != nil {
		stream.Close()
		return nil, fmt.Errorf("watch %s: %w", prefix, err)
	}
	// Once the stream watches, etcd itself tells of a compaction that takes what
	// the stream has not read.
	if after < s.server.KV().FirstRev() {
		stream.Close()
		return nil, store.ErrCompacted
	}
	w := &watcher{batches: make(chan store.Batch)}
	s.wg.Go(func() {
		defer close(w.batches)
		defer stream.Close()
		w.err = s.follow(ctx, w, stream.Chan())
	})
	return w, nil
}

// follow returns nil when ctx ended.
func (s *Store) follow(ctx context.Context, w *watcher, responses <-chan mvcc.WatchResponse) error {
	for {
		var batch store.Batch
		var err error
		select {
		case <-ctx.Done():
			return nil
		case <-s.ctx.Done():
			return store.ErrClosed
		case r, open := <-responses:
			err = add(&batch, r, open)
		}
		for more := true; more && err == nil && len(batch.Events) < maxBatch; {
			select {
			case r, open := <-responses:
				err = add(&batch, r, open)
			default:
				more = false
			}
		}
		if len(batch.Events) > 0 {
			// Not the response's revision: while a watch catches up, that is ahead of
			// events still to come.
			batch.Revision = batch.Events[len(batch.Events)-1].KV.ModRevision
			select {
			case w.batches <- batch:
			case <-ctx.Done():
				return nil
			case <-s.ctx.Done():
				return store.ErrClosed
			}
		}
		if err != nil {
			return err
		}
	}
}

func add(batch *store.Batch, r mvcc.WatchResponse, open bool) error {
	switch {
	case !open:
		return store.ErrClosed
	case r.CompactRevision != 0:
		return store.ErrCompacted
	}
	if batch.Events == nil {
		batch.Events = make([]store.Event, 0, len(r.Events))
	}
	for _, e := range r.Events {
		event := store.Event{KV: fromKV(e.Kv)}
		if e.Type == mvccpb.Event_DELETE {
			event.Type = store.Delete
			event.KV.Value, event.KV.CreateRevision = nil, 0
		}
		batch.Events = append(batch.Events, event)
	}
	return nil
}
