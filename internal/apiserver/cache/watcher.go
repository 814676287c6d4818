package cache

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
)

// Scope narrows a watch to what an index can find. The zero value is everything.
// A watcher may still be handed events outside its scope; it must filter.
type Scope struct {
	Namespace string
	Name      string // with Namespace, for namespaced resources
	Index     string // value of the cache's index (a pod's spec.nodeName)
}

// ExpiredError says that changes after a revision are no longer kept.
type ExpiredError struct {
	Revision int64 // asked for
	Oldest   int64 // that can be asked for; 0: the watcher was too slow
}

func (e *ExpiredError) Error() string {
	return fmt.Sprintf("too old resource version: %d (%d)", e.Revision, e.Oldest)
}

// narrowMax bounds the events that wait for one watcher with a narrow scope.
const narrowMax = 4096

// Watcher is a cursor into a resource's changes. Poll, and the bookkeeping of
// one watch, belong to one goroutine.
type Watcher struct {
	cache *Cache
	scope Scope
	wake  chan struct{}

	// A watcher of everything reads the history itself.
	chunk *chunk
	pos   int

	// A narrow one is handed its events.
	mu      sync.Mutex
	queue   []*Event
	expired bool

	slot     int // place in its bucket; the cache's
	last     int64
	bookmark atomic.Bool
	marked   bool
	ended    atomic.Bool
	over     atomic.Bool // the resource is gone, or not what it was
}

// ErrOver says that a watch ends in order: the resource is not served any more as
// it was when the watch began.
var ErrOver = errors.New("the resource has changed")

func (w *Watcher) narrow() bool { return w.scope != Scope{} }

// Wake is sent to when there may be something new.
func (w *Watcher) Wake() <-chan struct{} { return w.wake }

func (w *Watcher) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// pollMost bounds one Poll.
const pollMost = 512

// Poll appends the events that have happened since the last call (some of them:
// call again until there are none) to buf. It does not block. Events of a batch that
// is still being applied are left for the next call, which its signal asks for: who is
// told of a change must find it when he reads.
func (w *Watcher) Poll(buf []*Event) ([]*Event, error) {
	over := w.over.Load() // what came before the end is still told
	visible := w.cache.set.Revision()
	var err error
	if w.narrow() {
		buf, err = w.pollQueue(buf, visible)
	} else {
		buf, err = w.pollHistory(buf, visible)
	}
	if over && (len(buf) == 0 || err != nil) {
		return buf[:0], ErrOver
	}
	return buf, err
}

func (w *Watcher) pollHistory(buf []*Event, visible int64) ([]*Event, error) {
	for len(buf) < pollMost {
		if w.chunk.dropped.Load() {
			return buf[:0], &ExpiredError{Revision: w.last}
		}
		n := int(w.chunk.n.Load())
		if w.pos == n {
			if n < len(w.chunk.events) {
				break
			}
			next := w.chunk.next.Load()
			if next == nil {
				if w.chunk.dropped.Load() {
					return buf[:0], &ExpiredError{Revision: w.last}
				}
				break
			}
			w.chunk, w.pos = next, 0
			continue
		}
		for ; w.pos < n && len(buf) < pollMost; w.pos++ {
			e := &w.chunk.events[w.pos]
			if e.Revision > visible {
				return buf, nil
			}
			buf = append(buf, e)
			w.last = e.Revision
		}
	}
	return buf, nil
}

func (w *Watcher) pollQueue(buf []*Event, visible int64) ([]*Event, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.expired {
		return buf[:0], &ExpiredError{Revision: w.last}
	}
	n := min(len(w.queue), pollMost)
	for n > 0 && w.queue[n-1].Revision > visible {
		n--
	}
	buf = append(buf, w.queue[:n]...)
	if n > 0 {
		w.last = w.queue[n-1].Revision
	}
	if n == len(w.queue) {
		clear(w.queue)
		w.queue = w.queue[:0]
		if cap(w.queue) > 1024 {
			w.queue = nil
		}
	} else {
		w.queue = w.queue[n:]
	}
	return buf, nil
}

// push hands an event to a narrow watcher. The cache's writer calls it.
func (w *Watcher) push(e *Event) {
	w.mu.Lock()
	if len(w.queue) >= narrowMax {
		w.expired, w.queue = true, nil
	}
	if !w.expired {
		w.queue = append(w.queue, e)
	}
	w.mu.Unlock()
	w.cache.wakeLater = append(w.cache.wakeLater, w)
}

func (w *Watcher) expire() {
	if w.narrow() {
		w.mu.Lock()
		w.expired, w.queue = true, nil
		w.mu.Unlock()
	}
	w.signal()
}

// Last is the revision of the last event that Poll returned, or that the watch started after.
func (w *Watcher) Last() int64 { return w.last }

// WantBookmarks makes BookmarkDue true about once a minute.
func (w *Watcher) WantBookmarks() {
	w.marked = true
	w.cache.set.bookmarks.add(w)
}

// BookmarkDue reports, once for each tick, that it is time for a bookmark.
func (w *Watcher) BookmarkDue() bool { return w.bookmark.Load() && w.bookmark.Swap(false) }

// Stop ends the watch. It may be called more than once and from any goroutine.
func (w *Watcher) Stop() {
	if w.ended.Swap(true) {
		return
	}
	if w.marked {
		w.cache.set.bookmarks.remove(w)
	}
	c := w.cache
	c.mu.Lock()
	c.unregister(w)
	c.mu.Unlock()
}

// bucket is a set of watchers that are woken together.
type bucket struct{ watchers []*Watcher }

func (b *bucket) add(w *Watcher) {
	w.slot = len(b.watchers)
	b.watchers = append(b.watchers, w)
}

func (b *bucket) remove(w *Watcher) {
	last := len(b.watchers) - 1
	b.watchers[w.slot] = b.watchers[last]
	b.watchers[w.slot].slot = w.slot
	b.watchers[last] = nil
	b.watchers = b.watchers[:last]
}

// buckets finds narrow watchers by what they watch.
type buckets map[string]*bucket

func (m buckets) add(key string, w *Watcher) {
	b := m[key]
	if b == nil {
		b = new(bucket)
		m[key] = b
	}
	b.add(w)
}

func (m buckets) remove(key string, w *Watcher) {
	b := m[key]
	b.remove(w)
	if len(b.watchers) == 0 {
		delete(m, key)
	}
}

func (m buckets) push(key string, e *Event) {
	if b := m[key]; b != nil {
		for _, w := range b.watchers {
			w.push(e)
		}
	}
}
