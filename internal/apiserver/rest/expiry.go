package rest

import (
	"context"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/proa-dev/proa/internal/apiserver/cache"
)

// eventExpiry deletes core Events some time after their last occurrence. It
// sleeps until the oldest one is due; a cluster without events is never woken.
type eventExpiry struct {
	storage *storage
	ttl     time.Duration
	cancel  context.CancelFunc
	wg      sync.WaitGroup
}

func newEventExpiry(s *storage, ttl time.Duration) *eventExpiry {
	return &eventExpiry{storage: s, ttl: ttl}
}

func (e *eventExpiry) start(context.Context) error {
	w, _, _, err := e.storage.cache.Watch(cache.WatchOptions{})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	e.cancel = cancel
	e.wg.Go(func() {
		defer w.Stop()
		e.run(ctx, w)
	})
	return nil
}

func (e *eventExpiry) close() {
	if e.cancel != nil {
		e.cancel()
	}
	e.wg.Wait()
}

// expiryGrain puts events that end close together into one round.
const expiryGrain = time.Minute

func (e *eventExpiry) run(ctx context.Context, w *cache.Watcher) {
	for ctx.Err() == nil {
		next, any := e.round(ctx)
		var timer <-chan time.Time
		var wake <-chan struct{}
		if any {
			timer = time.After(max(expiryGrain, time.Until(next)))
		} else {
			wake = w.Wake()
		}
		select {
		case <-ctx.Done():
			return
		case <-timer:
		case <-wake:
		}
		// What the watcher holds was only to wake us; falling behind is no harm.
		for {
			if batch, err := w.Poll(nil); err != nil || len(batch) == 0 {
				break
			}
		}
	}
}

// round deletes what is due and returns when the next one is.
func (e *eventExpiry) round(ctx context.Context) (next time.Time, any bool) {
	now := e.storage.reg.cfg.Now()
	snapshot, _ := e.storage.cache.Read()
	type target struct {
		namespace, name string
		uid             *metav1.Preconditions
	}
	var due []target
	snapshot.Scan(cache.Scope{}, "", func(entry *cache.Entry) bool {
		ev, ok := entry.Object().(*corev1.Event)
		if !ok {
			return true
		}
		ends := lastSeen(ev).Add(e.ttl)
		if !ends.After(now) {
			uid := ev.UID
			due = append(due, target{ev.Namespace, ev.Name, &metav1.Preconditions{UID: &uid}})
		} else if !any || ends.Before(next) {
			next, any = ends, true
		}
		return true
	})
	for _, t := range due {
		if ctx.Err() != nil {
			return next, any
		}
		// One that is gone or new in between is no error.
		_, _, _ = e.storage.Delete(ctx, t.namespace, t.name, metav1.DeleteOptions{Preconditions: t.uid})
	}
	return next, any
}

func lastSeen(e *corev1.Event) time.Time {
	last := e.CreationTimestamp.Time
	for _, t := range []time.Time{e.LastTimestamp.Time, e.EventTime.Time} {
		if t.After(last) {
			last = t
		}
	}
	if e.Series != nil && e.Series.LastObservedTime.After(last) {
		last = e.Series.LastObservedTime.Time
	}
	return last
}
