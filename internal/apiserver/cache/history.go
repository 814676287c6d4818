package cache

import (
	"sync/atomic"
	"time"
)

// EventType is what happened to an object.
type EventType uint8

const (
	Added EventType = iota
	Modified
	Deleted
)

// Event is one change of a resource. It is shared: read only.
type Event struct {
	Type     EventType
	Revision int64
	// Entry is the new state; for Deleted the last state, at the revision of the delete.
	Entry *Entry
	// Prev is the state before (nil for Added).
	Prev *Entry

	prevNow atomic.Pointer[Entry]
}

// PrevNow returns the state before at this event's revision: what a watcher is
// told whose selector the object has left.
func (e *Event) PrevNow() *Entry {
	if e.Type == Deleted {
		return e.Entry
	}
	if p := e.prevNow.Load(); p != nil {
		return p
	}
	p := e.Prev.At(e.Revision)
	if !e.prevNow.CompareAndSwap(nil, p) {
		return e.prevNow.Load()
	}
	return p
}

// The history holds at least historyMin events, and up to historyMax while they
// are younger than historyAge (an informer that lost its connection resumes
// within that time).
const (
	historyMin = 256
	historyMax = 16384
	historyAge = 75 * time.Second

	chunkSmallest = 16
	chunkLargest  = 256
)

// chunk is a run of events. The writer fills it and then publishes n; readers
// take events[:n] without a lock. A chunk that leaves the history is cut from
// its successors, so that a reader that stays on it holds nothing else.
type chunk struct {
	events  []Event
	n       atomic.Int64
	next    atomic.Pointer[chunk]
	dropped atomic.Bool
	newest  time.Time // of its last event; the writer's
}

// history is the events of one resource, oldest chunk first. Only the writer
// (who holds the cache's lock) uses it.
type history struct {
	chunks []*chunk
	total  int
	floor  int64 // changes up to here are no longer kept
}

func (h *history) tail() *chunk {
	if len(h.chunks) == 0 {
		h.chunks = append(h.chunks, &chunk{events: make([]Event, chunkSmallest)})
	}
	return h.chunks[len(h.chunks)-1]
}

// add appends an event, which readers see at once, and returns it.
func (h *history) add(typ EventType, revision int64, entry, prev *Entry, now time.Time) *Event {
	c := h.tail()
	n := c.n.Load()
	if int(n) == len(c.events) {
		next := &chunk{events: make([]Event, min(2*len(c.events), chunkLargest))}
		c.next.Store(next)
		h.chunks = append(h.chunks, next)
		c, n = next, 0
		h.trim(now)
	}
	e := &c.events[n]
	e.Type, e.Revision, e.Entry, e.Prev = typ, revision, entry, prev
	c.newest = now
	c.n.Store(n + 1)
	h.total++
	return e
}

func (h *history) trim(now time.Time) {
	for len(h.chunks) > 1 {
		oldest := h.chunks[0]
		n := int(oldest.n.Load())
		if h.total-n < historyMin || (h.total-n < historyMax && now.Sub(oldest.newest) < historyAge) {
			return
		}
		h.drop(oldest)
		h.chunks[0] = nil
		h.chunks = h.chunks[1:]
		h.total -= n
	}
}

func (h *history) drop(c *chunk) {
	if n := c.n.Load(); n > 0 {
		h.floor = max(h.floor, c.events[n-1].Revision)
	}
	c.dropped.Store(true)
	c.next.Store(nil)
}

// reset forgets everything up to revision.
func (h *history) reset(revision int64) {
	for _, c := range h.chunks {
		h.drop(c)
	}
	h.chunks, h.total, h.floor = nil, 0, revision
}

// after returns the place of the first event newer than revision.
func (h *history) after(revision int64) (*chunk, int) {
	h.tail()
	for _, c := range h.chunks {
		n := int(c.n.Load())
		if n == 0 || c.events[n-1].Revision <= revision {
			continue
		}
		lo, hi := 0, n
		for lo < hi {
			if m := (lo + hi) / 2; c.events[m].Revision > revision {
				hi = m
			} else {
				lo = m + 1
			}
		}
		return c, lo
	}
	c := h.tail()
	return c, int(c.n.Load())
}
