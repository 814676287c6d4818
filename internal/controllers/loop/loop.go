// Package loop runs a controller's work: a queue of keys that events fill, each
// key worked on by one goroutine at a time, tried again with back-off after an
// error. An idle loop sleeps.
package loop

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/clock"

	"github.com/proa-dev/proa/internal/client"
)

// Loop is a queue and what works on it.
type Loop[K comparable] struct {
	name  string
	log   *slog.Logger
	queue workqueue.TypedRateLimitingInterface[K]
	work  func(ctx context.Context, key K) error
}

// quiet is the clock without tickers, by which every queue would wake an idle
// process several times a second, to measure itself and to look at timers that
// wake it anyway.
type quiet struct{ clock.RealClock }

func (quiet) NewTicker(time.Duration) clock.Ticker { return quiet{} }
func (quiet) C() <-chan time.Time                  { return nil }
func (quiet) Stop()                                {}

// New returns a loop; work is called for each key that was added.
func New[K comparable](name string, log *slog.Logger, work func(ctx context.Context, key K) error) *Loop[K] {
	limiter := workqueue.NewTypedItemExponentialFailureRateLimiter[K](10*time.Millisecond, 30*time.Second)
	return &Loop[K]{name: name, log: log, work: work, queue: workqueue.NewTypedRateLimitingQueueWithConfig(limiter, workqueue.TypedRateLimitingQueueConfig[K]{Name: name, Clock: quiet{}})}
}

// Add asks for work on a key; After asks for it later.
func (l *Loop[K]) Add(key K)                    { l.queue.Add(key) }
func (l *Loop[K]) After(key K, d time.Duration) { l.queue.AddAfter(key, d) }

// Source is an informer with what its events ask for.
type Source struct {
	Informer client.Informer
	Handle   func(client.Event)
}

// Run follows the sources and works with n goroutines until ctx ends. The work
// begins when every Handle has been told of all that was there (Synced), so that
// what they gather is whole.
func (l *Loop[K]) Run(ctx context.Context, n int, sources ...Source) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	defer l.queue.ShutDown()
	failed := make(chan error, len(sources))
	told := make(chan struct{}, len(sources))
	for _, s := range sources {
		wg.Go(func() {
			synced := false
			err := s.Informer.Watch(ctx, func(e client.Event) {
				s.Handle(e)
				if e.Type == client.Synced && !synced {
					synced = true
					told <- struct{}{}
				}
			})
			if err != nil && ctx.Err() == nil {
				failed <- fmt.Errorf("%s: watch: %w", l.name, err)
			}
		})
	}
	for range sources {
		select {
		case <-told:
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		}
	}
	for range n {
		wg.Go(func() {
			for l.next(ctx) {
			}
		})
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return err
	}
}

func (l *Loop[K]) next(ctx context.Context) bool {
	key, down := l.queue.Get()
	if down {
		return false
	}
	defer l.queue.Done(key)
	if err := l.once(ctx, key); err != nil && ctx.Err() == nil {
		// A conflict is somebody else's write in between: the ordinary case.
		level := slog.LevelWarn
		if apierrors.IsConflict(err) {
			level = slog.LevelDebug
		}
		l.log.Log(ctx, level, "controller will try again", "controller", l.name, "key", key, "err", err)
		l.queue.AddRateLimited(key)
		return true
	}
	l.queue.Forget(key)
	return true
}

// once catches a panic: one object must not end the controller (W9).
func (l *Loop[K]) once(ctx context.Context, key K) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return l.work(ctx, key)
}
