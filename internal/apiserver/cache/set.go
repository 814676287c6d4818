package cache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/proa-dev/proa/internal/store"
)

// Prefix is where objects are kept in the store.
const Prefix = "/registry/"

// BookmarkPeriod is the time between the bookmarks of one watch.
const BookmarkPeriod = time.Minute

// Options configure a Set.
type Options struct {
	Store  store.Store
	Logger *slog.Logger
	// Shared says that other processes write to the store too, so that a
	// consistent read has to ask it for its revision.
	Shared bool
	// CompactEvery is how often the store is told to forget its history, while
	// there are writes. 0: never (someone else does).
	CompactEvery time.Duration
}

// Set follows the store for all resources with one watch, so that they all move
// through the same revisions.
type Set struct {
	store   store.Store
	log     *slog.Logger
	shared  bool
	compact time.Duration

	// mu is held while a batch is applied and while a resource comes or goes.
	mu      sync.Mutex
	caches  map[string]*Cache // by Config.Dir
	touched []*Cache
	started bool

	applied atomic.Int64
	acked   atomic.Int64

	waitMu  sync.Mutex
	waiters []waiter

	bookmarks bookmarks

	compactMu    sync.Mutex
	compactTimer *time.Timer

	cancel context.CancelFunc
	done   chan struct{}
}

type waiter struct {
	revision int64
	ready    chan struct{}
}

// NewSet returns a Set without resources.
func NewSet(o Options) *Set {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Set{store: o.Store, log: o.Logger, shared: o.Shared, compact: o.CompactEvery, caches: map[string]*Cache{}, done: make(chan struct{})}
}

// Add makes room for a resource. After Start it returns when the resource's
// objects are there.
func (s *Set) Add(ctx context.Context, cfg Config) (*Cache, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.caches[cfg.Dir]; ok {
		return nil, fmt.Errorf("cache of %s: exists already", cfg.Dir)
	}
	c := newCache(s, cfg)
	if s.started {
		if err := s.fill(ctx, c.prefix, map[string]*Cache{cfg.Dir: c}, nil); err != nil {
			return nil, err
		}
	}
	s.caches[cfg.Dir] = c
	return c, nil
}

// Reload reads the objects of a resource again, with another codec, and ends its watches.
func (s *Set) Reload(ctx context.Context, dir string, codec Codec) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.caches[dir]
	if c == nil {
		return fmt.Errorf("cache of %s: it does not exist", dir)
	}
	c.endWatches()
	before := c.codec.Swap(&codec)
	if !s.started {
		return nil
	}
	if err := s.fill(ctx, c.prefix, map[string]*Cache{dir: c}, nil); err != nil {
		c.codec.Store(before)
		return err
	}
	return nil
}

// Remove forgets a resource and ends its watches.
func (s *Set) Remove(dir string) {
	s.mu.Lock()
	c := s.caches[dir]
	delete(s.caches, dir)
	s.mu.Unlock()
	if c != nil {
		c.endWatches()
		c.pins.stop()
	}
}

// Start fills all caches and returns; they then follow the store until ctx ends
// or Close is called.
func (s *Set) Start(ctx context.Context) error {
	ctx, s.cancel = context.WithCancel(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	var revision int64
	err := s.fill(ctx, Prefix, s.caches, &revision)
	if err != nil {
		s.cancel()
		close(s.done)
		return err
	}
	s.started = true
	s.advance(revision)
	w, err := s.store.Watch(ctx, Prefix, revision)
	if err != nil {
		s.cancel()
		close(s.done)
		return fmt.Errorf("watch the store after revision %d: %w", revision, err)
	}
	go s.follow(ctx, w)
	return nil
}

// Close ends the following and waits for it.
func (s *Set) Close() {
	if s.cancel == nil {
		return
	}
	s.cancel()
	<-s.done
	s.bookmarks.stop()
	s.compactMu.Lock()
	if s.compactTimer != nil {
		s.compactTimer.Stop()
	}
	s.compactMu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.caches {
		c.pins.stop()
	}
}

// fill lists prefix and loads what it finds into caches. The caller holds mu.
func (s *Set) fill(ctx context.Context, prefix string, caches map[string]*Cache, revision *int64) error {
	res, err := s.store.List(ctx, prefix, store.ListOptions{})
	if err != nil {
		return fmt.Errorf("list %s: %w", prefix, err)
	}
	entries, err := decodeAll(ctx, res.KVs, func(key string) *Cache { return route(caches, key) })
	if err != nil {
		return err
	}
	byCache := make(map[*Cache][]*Entry, len(caches))
	for i, n := 0, 0; i < len(entries); i = n {
		c := route(caches, entries[i].Key)
		for n = i + 1; n < len(entries) && strings.HasPrefix(entries[n].Key, c.prefix); n++ {
		}
		byCache[c] = entries[i:n]
	}
	for _, c := range caches {
		c.load(byCache[c], res.Revision)
	}
	if revision != nil {
		*revision = res.Revision
	}
	return nil
}

// decodeAll makes entries of what belongs to a cache, on all processors. What
// cannot be read is noted with its cache and left out.
func decodeAll(ctx context.Context, kvs []store.KV, of func(key string) *Cache) ([]*Entry, error) {
	entries := make([]*Entry, len(kvs))
	part := max(64, (len(kvs)+runtime.GOMAXPROCS(0)-1)/runtime.GOMAXPROCS(0))
	var wg sync.WaitGroup
	for from := 0; from < len(kvs); from += part {
		wg.Go(func() {
			for i := from; i < min(from+part, len(kvs)) && ctx.Err() == nil; i++ {
				c := of(kvs[i].Key)
				if c == nil {
					continue
				}
				e, err := c.decode(kvs[i])
				if err != nil {
					c.broken.Store(kvs[i].Key, err)
					c.set.log.Error("An object in the store cannot be read", "key", kvs[i].Key, "err", err)
					continue
				}
				entries[i] = e
			}
		})
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	kept := entries[:0]
	for _, e := range entries {
		if e != nil {
			kept = append(kept, e)
		}
	}
	return kept, nil
}

// route finds the cache of a key: by the first segment after the prefix, or by the first two.
func route(caches map[string]*Cache, key string) *Cache {
	if len(key) <= len(Prefix) {
		return nil
	}
	rest := key[len(Prefix):]
	i := strings.IndexByte(rest, '/')
	if i < 0 {
		return nil
	}
	if c := caches[rest[:i]]; c != nil {
		return c
	}
	j := strings.IndexByte(rest[i+1:], '/')
	if j < 0 {
		return nil
	}
	return caches[rest[:i+1+j]]
}

func (s *Set) follow(ctx context.Context, w store.Watcher) {
	defer close(s.done)
	for {
		for b := range w.Batches() {
			s.apply(b)
		}
		if ctx.Err() != nil {
			return
		}
		s.log.Warn("The watch of the store ended: reading everything again", "err", w.Err())
		for wait := 10 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
			var err error
			if w, err = s.again(ctx); err == nil {
				break
			}
			if errors.Is(err, store.ErrClosed) || ctx.Err() != nil {
				return
			}
			s.log.Error("Cannot follow the store", "err", err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(wait):
			}
		}
	}
}

// again continues where the last watch ended, or, when the store has forgotten
// that, fills the caches anew (which expires every watch).
func (s *Set) again(ctx context.Context) (store.Watcher, error) {
	w, err := s.store.Watch(ctx, Prefix, s.Revision())
	if !errors.Is(err, store.ErrCompacted) && !failedCompacted(w) {
		return w, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var revision int64
	if err := s.fill(ctx, Prefix, s.caches, &revision); err != nil {
		return nil, err
	}
	s.advance(revision)
	return s.store.Watch(ctx, Prefix, revision)
}

// failedCompacted reports whether a watcher has already ended because its start is gone.
func failedCompacted(w store.Watcher) bool {
	return w != nil && errors.Is(w.Err(), store.ErrCompacted)
}

// apply takes one batch into all caches.
func (s *Set) apply(b store.Batch) {
	s.mu.Lock()
	now := time.Now()
	for i := range b.Events {
		ev := &b.Events[i]
		c := route(s.caches, ev.KV.Key)
		if c == nil {
			continue
		}
		if !c.inBatch {
			c.inBatch = true
			c.mu.Lock()
			s.touched = append(s.touched, c)
		}
		c.apply(ev, now)
	}
	for _, c := range s.touched {
		c.publish()
	}
	s.advance(b.Revision)
	for i, c := range s.touched {
		c.signal()
		c.inBatch = false
		c.mu.Unlock()
		s.touched[i] = nil
	}
	s.touched = s.touched[:0]
	s.mu.Unlock()
	if len(b.Events) > 0 {
		s.scheduleCompaction()
	}
}

// advance publishes the revision that all caches have reached.
func (s *Set) advance(revision int64) {
	if revision > s.applied.Load() {
		s.applied.Store(revision)
	}
	s.waitMu.Lock()
	kept := s.waiters[:0]
	for _, w := range s.waiters {
		if w.revision <= revision {
			close(w.ready)
		} else {
			kept = append(kept, w)
		}
	}
	clear(s.waiters[len(kept):])
	s.waiters = kept
	s.waitMu.Unlock()
}

// Revision is what all caches have reached.
func (s *Set) Revision() int64 { return s.applied.Load() }

// WaitRevision returns when all caches have reached revision.
func (s *Set) WaitRevision(ctx context.Context, revision int64) error {
	if s.applied.Load() >= revision {
		return nil
	}
	ready := make(chan struct{})
	s.waitMu.Lock()
	if s.applied.Load() >= revision {
		s.waitMu.Unlock()
		return nil
	}
	s.waiters = append(s.waiters, waiter{revision, ready})
	s.waitMu.Unlock()
	select {
	case <-ready:
		return nil
	case <-ctx.Done():
	case <-s.done:
	}
	s.waitMu.Lock()
	for i, w := range s.waiters {
		if w.ready == ready {
			s.waiters = append(s.waiters[:i], s.waiters[i+1:]...)
			break
		}
	}
	s.waitMu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	return store.ErrClosed
}

func (s *Set) acknowledge(revision int64) {
	for {
		have := s.acked.Load()
		if have >= revision || s.acked.CompareAndSwap(have, revision) {
			return
		}
	}
}

// Acknowledge records a revision that a client has been told of by this process.
func (s *Set) Acknowledge(revision int64) { s.acknowledge(revision) }

// WaitConsistent returns when the caches include every write that had been
// acknowledged when it was called: a read after it is linearizable. With a
// store of our own those are the writes of this process.
func (s *Set) WaitConsistent(ctx context.Context) error {
	revision := s.acked.Load()
	if s.shared {
		var err error
		if revision, err = s.store.Revision(ctx); err != nil {
			return fmt.Errorf("ask the store for its revision: %w", err)
		}
	}
	return s.WaitRevision(ctx, revision)
}

// scheduleCompaction lets the store forget, CompactEvery from now, what is old now.
func (s *Set) scheduleCompaction() {
	if s.compact == 0 {
		return
	}
	s.compactMu.Lock()
	defer s.compactMu.Unlock()
	if s.compactTimer != nil {
		return
	}
	to := s.Revision()
	s.compactTimer = time.AfterFunc(s.compact, func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := s.store.Compact(ctx, to); err != nil && !errors.Is(err, store.ErrCompacted) && !errors.Is(err, store.ErrClosed) {
			s.log.Warn("Cannot compact the store", "revision", to, "err", err)
		}
		s.compactMu.Lock()
		s.compactTimer = nil
		s.compactMu.Unlock()
	})
}

// bookmarks ticks for all watchers that want bookmarks, while there are any.
type bookmarks struct {
	mu       sync.Mutex
	watchers map[*Watcher]struct{}
	timer    *time.Timer
}

func (b *bookmarks) add(w *Watcher) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.watchers == nil {
		b.watchers = map[*Watcher]struct{}{}
	}
	b.watchers[w] = struct{}{}
	if b.timer == nil {
		b.timer = time.AfterFunc(BookmarkPeriod, b.tick)
	}
}

func (b *bookmarks) remove(w *Watcher) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.watchers, w)
	if len(b.watchers) == 0 && b.timer != nil {
		b.timer.Stop()
		b.timer = nil
	}
}

func (b *bookmarks) tick() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.timer == nil {
		return // stopped while the tick was on its way
	}
	for w := range b.watchers {
		w.bookmark.Store(true)
		w.signal()
	}
	b.timer.Reset(BookmarkPeriod)
}

func (b *bookmarks) stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.timer != nil {
		b.timer.Stop()
		b.timer = nil
	}
	b.watchers = nil
}
