package cache

import (
	"strings"
	"sync"
	"time"

	"github.com/tidwall/btree"
)

// Snapshot is the immutable state of a resource at a revision.
type Snapshot struct {
	cache   *Cache
	last    int64 // revision of the newest change in it
	tree    *btree.Map[string, *Entry]
	byIndex *btree.Map[string, *Entry]
}

// Get returns the entry of a key.
func (s *Snapshot) Get(key string) (*Entry, bool) { return s.tree.Get(key) }

// Len returns the number of objects.
func (s *Snapshot) Len() int { return s.tree.Len() }

// Ascend calls fn for the entries of a namespace ("": all) in key order,
// starting with the first key that is not below from, until fn returns false.
func (s *Snapshot) Ascend(namespace, from string, fn func(*Entry) bool) {
	prefix := s.cache.Prefix(namespace)
	whole := namespace == ""
	s.tree.Ascend(max(from, prefix), func(key string, e *Entry) bool {
		if !whole && !strings.HasPrefix(key, prefix) {
			return false
		}
		return fn(e)
	})
}

// AscendIndex is Ascend over the entries with an index value.
func (s *Snapshot) AscendIndex(value, namespace, from string, fn func(*Entry) bool) {
	if s.byIndex == nil {
		s.Ascend(namespace, from, fn)
		return
	}
	start := value + "\x00"
	prefix := start + s.cache.Prefix(namespace)
	s.byIndex.Ascend(max(start+from, prefix), func(key string, e *Entry) bool {
		return strings.HasPrefix(key, prefix) && fn(e)
	})
}

// Scan calls fn for the entries that a scope finds.
func (s *Snapshot) Scan(scope Scope, from string, fn func(*Entry) bool) {
	namespaced := s.cache.cfg.Namespaced
	switch {
	case scope.Name != "" && (scope.Namespace != "" || !namespaced):
		if e, ok := s.Get(s.cache.Key(scope.Namespace, scope.Name)); ok && e.Key >= from {
			fn(e)
		}
	case scope.Index != "":
		s.AscendIndex(scope.Index, scope.Namespace, from, fn)
	default:
		s.Ascend(scope.Namespace, from, fn)
	}
}

// Pinned snapshots serve the next pages of a list. What is no longer pinned is
// read from the store, as long as that keeps it.
const (
	pinMost = 32
	pinAge  = 75 * time.Second
)

type pin struct {
	revision int64
	snapshot *Snapshot
	used     time.Time
}

type pins struct {
	mu    sync.Mutex
	list  []pin
	timer *time.Timer
}

func (p *pins) get(revision int64) *Snapshot {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.list {
		if p.list[i].revision == revision {
			p.list[i].used = time.Now()
			return p.list[i].snapshot
		}
	}
	return nil
}

func (p *pins) put(revision int64, s *Snapshot) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	oldest := 0
	for i := range p.list {
		if p.list[i].revision == revision {
			p.list[i].used = now
			return
		}
		if p.list[i].used.Before(p.list[oldest].used) {
			oldest = i
		}
	}
	if len(p.list) < pinMost {
		p.list = append(p.list, pin{revision, s, now})
	} else {
		p.list[oldest] = pin{revision, s, now}
	}
	if p.timer == nil {
		p.timer = time.AfterFunc(pinAge, p.sweep)
	}
}

// sweep unpins what was not used for pinAge; the timer runs only while something is pinned.
func (p *pins) sweep() {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	kept := p.list[:0]
	for _, x := range p.list {
		if now.Sub(x.used) < pinAge {
			kept = append(kept, x)
		}
	}
	clear(p.list[len(kept):])
	p.list = kept
	if p.timer == nil {
		return // stopped
	}
	if len(kept) == 0 {
		p.timer = nil
		return
	}
	p.timer.Reset(pinAge)
}

func (p *pins) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.timer != nil {
		p.timer.Stop()
		p.timer = nil
	}
	p.list = nil
}
