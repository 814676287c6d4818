package etcd

import (
	"context"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/proa-dev/proa/internal/store"
)

type watcher struct {
	batches chan store.Batch
	err     error
}

func (w *watcher) Batches() <-chan store.Batch { return w.batches }
func (w *watcher) Err() error                  { return w.err }

func (s *Store) Watch(ctx context.Context, prefix string, after int64) (store.Watcher, error) {
	if s.ctx.Err() != nil {
		return nil, store.ErrClosed
	}
	if first := s.server.KV().FirstRev(); after+1 < first {
		return nil, store.ErrCompacted
	}
	stream := s.server.Watchable().NewWatchStream()
	if _, err := stream.Watch(ctx, 0, []byte(prefix), end(prefix), after+1); err != nil {
		stream.Close()
		return nil, err
	}
	w := &watcher{batches: make(chan store.Batch)}
	s.wg.Go(func() {
		defer close(w.batches)
		defer stream.Close()
		for {
			select {
			case <-ctx.Done():
				return
			case <-s.ctx.Done():
				w.err = store.ErrClosed
				return
			case r, ok := <-stream.Chan():
				switch {
				case !ok:
					w.err = store.ErrClosed
					return
				case r.CompactRevision != 0:
					w.err = store.ErrCompacted
					return
				}
				batch := store.Batch{Revision: r.Revision, Events: make([]store.Event, len(r.Events))}
				for i, e := range r.Events {
					batch.Events[i] = store.Event{KV: fromKV(e.Kv)}
					if e.Type == mvccpb.Event_DELETE {
						batch.Events[i].Type = store.Delete
					}
				}
				select {
				case w.batches <- batch:
				case <-ctx.Done():
					return
				case <-s.ctx.Done():
					w.err = store.ErrClosed
					return
				}
			}
		}
	})
	return w, nil
}
