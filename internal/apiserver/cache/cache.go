package cache

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidwall/btree"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/store"
)

// treeDegree is small because each write copies one node per level.
const treeDegree = 12

// Config says what a Cache holds.
type Config struct {
	// Dir is the part of the key between "/registry/" and the namespace or name,
	// for example "pods" or "stable.example.com/crontabs".
	Dir        string
	Namespaced bool
	Codec      Codec
	// Index, when set, returns the value by which objects can also be found
	// ("": none), for pods spec.nodeName.
	Index func(obj api.Object) string
}

// Cache is one resource.
type Cache struct {
	set    *Set
	cfg    Config
	prefix string // "/registry/pods/"
	codec  atomic.Pointer[Codec]

	// mu is held while a batch is applied and while watchers come and go. The
	// fields below it are the writer's.
	mu        sync.Mutex
	tree      *btree.Map[string, *Entry]
	byIndex   *btree.Map[string, *Entry] // index value, NUL, key
	last      int64                      // revision of the newest change (or of the fill)
	from      int64                      // changes up to here came with the fill
	history   history
	everyone  bucket
	byNS      buckets
	byKey     buckets
	byValue   buckets
	wakeLater []*Watcher
	inBatch   bool

	snapshot atomic.Pointer[Snapshot]

	pendMu  sync.Mutex
	pending map[string][]*Pending

	pins   pins
	broken sync.Map // key to error: values that cannot be decoded
}

func newCache(s *Set, cfg Config) *Cache {
	c := &Cache{set: s, cfg: cfg, prefix: Prefix + cfg.Dir + "/", byNS: buckets{}, byKey: buckets{}, byValue: buckets{}, pending: map[string][]*Pending{}}
	c.codec.Store(&cfg.Codec)
	c.clear()
	c.snapshot.Store(c.freeze())
	return c
}

// Key returns the store key of an object.
func (c *Cache) Key(namespace, name string) string {
	if namespace == "" {
		return c.prefix + name
	}
	return c.prefix + namespace + "/" + name
}

// Prefix returns the store prefix of a namespace ("": of everything).
func (c *Cache) Prefix(namespace string) string {
	if namespace == "" {
		return c.prefix
	}
	return c.prefix + namespace + "/"
}

// Codec returns the codec of what is stored.
func (c *Cache) Codec() Codec { return *c.codec.Load() }

// Namespaced reports whether the objects are in namespaces.
func (c *Cache) Namespaced() bool { return c.cfg.Namespaced }

// Set returns the set that the cache belongs to.
func (c *Cache) Set() *Set { return c.set }

func (c *Cache) clear() {
	c.tree = btree.NewMap[string, *Entry](treeDegree)
	c.byIndex = nil
	if c.cfg.Index != nil {
		c.byIndex = btree.NewMap[string, *Entry](treeDegree)
	}
}

// endWatches ends all watches in order.
func (c *Cache) endWatches() {
	c.mu.Lock()
	defer c.mu.Unlock()
	end := func(b *bucket) {
		for _, w := range b.watchers {
			w.over.Store(true)
			w.signal()
		}
	}
	end(&c.everyone)
	for _, m := range []buckets{c.byNS, c.byKey, c.byValue} {
		for _, b := range m {
			end(b)
		}
	}
}

// load fills the empty cache with entries sorted by key: the state at revision.
func (c *Cache) load(entries []*Entry, revision int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clear()
	for _, e := range entries {
		c.tree.Load(e.Key, e)
		if e.index != "" {
			c.byIndex.Set(e.index+"\x00"+e.Key, e)
		}
	}
	c.last, c.from = revision, revision
	c.history.reset(revision)
	c.snapshot.Store(c.freeze())
	for _, w := range c.everyone.watchers {
		w.expire()
	}
	for _, m := range []buckets{c.byNS, c.byKey, c.byValue} {
		for _, b := range m {
			for _, w := range b.watchers {
				w.expire()
			}
		}
	}
}

func (c *Cache) freeze() *Snapshot {
	s := &Snapshot{cache: c, last: c.last, tree: c.tree.Copy()}
	if c.byIndex != nil {
		s.byIndex = c.byIndex.Copy()
	}
	return s
}

// decode makes the entry of a stored value.
func (c *Cache) decode(kv store.KV) (*Entry, error) {
	obj, err := c.Codec().Decode(kv.Value)
	if err != nil {
		return nil, err
	}
	obj.SetResourceVersion(FormatRevision(kv.ModRevision))
	return c.entry(kv.Key, kv.Value, kv.ModRevision, obj), nil
}

func (c *Cache) entry(key string, value []byte, revision int64, obj api.Object) *Entry {
	e := &Entry{Key: key, Revision: revision, object: obj, encoder: c.Codec(), stored: value}
	if c.cfg.Index != nil {
		e.index = c.cfg.Index(obj)
	}
	return e
}

// apply takes one change. The caller holds mu and calls publish after the last
// one of a batch.
func (c *Cache) apply(ev *store.Event, now time.Time) {
	if ev.KV.ModRevision <= c.from {
		return
	}
	if ev.Type == store.Delete {
		c.applyDelete(ev.KV.Key, ev.KV.ModRevision, now)
		return
	}
	entry := c.expected(ev.KV)
	if entry == nil {
		var err error
		if entry, err = c.decode(ev.KV); err != nil {
			c.broken.Store(ev.KV.Key, err)
			c.set.log.Error("An object in the store cannot be read", "key", ev.KV.Key, "err", err)
			c.applyDelete(ev.KV.Key, ev.KV.ModRevision, now)
			return
		}
	}
	c.broken.Delete(ev.KV.Key)
	prev, existed := c.tree.Set(entry.Key, entry)
	typ := Added
	if existed {
		typ = Modified
		if prev.index != "" && prev.index != entry.index {
			c.byIndex.Delete(prev.index + "\x00" + entry.Key)
		}
	}
	if entry.index != "" {
		c.byIndex.Set(entry.index+"\x00"+entry.Key, entry)
	}
	c.last = entry.Revision
	c.notify(c.history.add(typ, entry.Revision, entry, prev, now))
}

func (c *Cache) applyDelete(key string, revision int64, now time.Time) {
	prev, existed := c.tree.Delete(key)
	if !existed {
		c.broken.Delete(key)
		return
	}
	if prev.index != "" {
		c.byIndex.Delete(prev.index + "\x00" + key)
	}
	c.last = revision
	c.notify(c.history.add(Deleted, revision, prev.At(revision), prev, now))
}

// notify hands an event to the narrow watchers that it may concern.
func (c *Cache) notify(e *Event) {
	if len(c.byKey) > 0 {
		c.byKey.push(e.Entry.Key, e)
	}
	if len(c.byNS) > 0 {
		c.byNS.push(c.namespace(e.Entry.Key), e)
	}
	if len(c.byValue) > 0 {
		if e.Entry.index != "" {
			c.byValue.push(e.Entry.index, e)
		}
		if e.Prev != nil && e.Prev.index != "" && e.Prev.index != e.Entry.index {
			c.byValue.push(e.Prev.index, e)
		}
	}
}

func (c *Cache) namespace(key string) string {
	ns, _, _ := strings.Cut(key[len(c.prefix):], "/")
	return ns
}

// publish makes the batch visible to new readers.
func (c *Cache) publish() { c.snapshot.Store(c.freeze()) }

// signal wakes the watchers of the batch. The caller holds mu.
func (c *Cache) signal() {
	for _, w := range c.everyone.watchers {
		w.signal()
	}
	for i, w := range c.wakeLater {
		w.signal()
		c.wakeLater[i] = nil
	}
	c.wakeLater = c.wakeLater[:0]
}

// Read returns the newest snapshot and the revision that it is the state of.
func (c *Cache) Read() (*Snapshot, int64) {
	applied := c.set.Revision() // before the load: the snapshot has all up to here
	s := c.snapshot.Load()
	return s, max(applied, s.last)
}

// Get returns the newest entry of a key that this process has seen.
func (c *Cache) Get(key string) (*Entry, bool) { return c.snapshot.Load().Get(key) }

// Broken returns why the value of a key cannot be read (nil: it can, or is not there).
func (c *Cache) Broken(key string) error {
	if err, ok := c.broken.Load(key); ok {
		return err.(error)
	}
	return nil
}

// WatchOptions says where a watch starts.
type WatchOptions struct {
	Scope Scope
	// After is the revision after which changes are wanted; 0: from the returned snapshot on.
	After int64
}

// Watch starts a watcher. When opts.After is 0 the snapshot is the state that
// the watcher's events follow, at the returned revision. Errors: *ExpiredError.
func (c *Cache) Watch(opts WatchOptions) (*Watcher, *Snapshot, int64, error) {
	if opts.Scope.Index != "" && c.cfg.Index == nil {
		opts.Scope.Index = ""
	}
	if !c.cfg.Namespaced {
		opts.Scope.Namespace = ""
	}
	if c.cfg.Namespaced && opts.Scope.Namespace == "" {
		opts.Scope.Name = "" // a name in any namespace has no index
	}
	w := &Watcher{cache: c, scope: opts.Scope, wake: make(chan struct{}, 1)}
	c.mu.Lock()
	defer c.mu.Unlock()
	revision := max(c.set.Revision(), c.last)
	after := opts.After
	if after == 0 {
		after = revision
	}
	if after < c.history.floor {
		return nil, nil, 0, &ExpiredError{Revision: opts.After, Oldest: c.history.floor}
	}
	w.last = after
	w.chunk, w.pos = c.history.after(after)
	if w.narrow() {
		for ch, pos := w.chunk, w.pos; ch != nil; ch, pos = ch.next.Load(), 0 {
			for n := int(ch.n.Load()); pos < n; pos++ {
				if e := &ch.events[pos]; c.concerns(e, w.scope) {
					w.push(e)
				}
			}
		}
		w.chunk = nil
		c.wakeLater = c.wakeLater[:0]
	}
	c.register(w)
	return w, c.snapshot.Load(), revision, nil
}

func (c *Cache) concerns(e *Event, s Scope) bool {
	switch {
	case s.Name != "":
		return e.Entry.Key == c.Key(s.Namespace, s.Name)
	case s.Index != "":
		return e.Entry.index == s.Index || (e.Prev != nil && e.Prev.index == s.Index)
	}
	return c.namespace(e.Entry.Key) == s.Namespace
}

func (c *Cache) register(w *Watcher) {
	switch s := w.scope; {
	case s.Name != "":
		c.byKey.add(c.Key(s.Namespace, s.Name), w)
	case s.Index != "":
		c.byValue.add(s.Index, w)
	case s.Namespace != "":
		c.byNS.add(s.Namespace, w)
	default:
		c.everyone.add(w)
	}
}

func (c *Cache) unregister(w *Watcher) {
	switch s := w.scope; {
	case s.Name != "":
		c.byKey.remove(c.Key(s.Namespace, s.Name), w)
	case s.Index != "":
		c.byValue.remove(s.Index, w)
	case s.Namespace != "":
		c.byNS.remove(s.Namespace, w)
	default:
		c.everyone.remove(w)
	}
}

// Pending is a write under way: the object that its value stands for.
type Pending struct {
	cache *Cache
	key   string
	value []byte
	obj   api.Object
	entry *Entry
}

// Expect announces a write of value, the stored form of obj, so that the cache
// takes obj (which then belongs to it) when the store reports the write, and
// need not decode it. Finish with Done or Cancel.
func (c *Cache) Expect(key string, value []byte, obj api.Object) *Pending {
	p := &Pending{cache: c, key: key, value: value, obj: obj}
	c.pendMu.Lock()
	c.pending[key] = append(c.pending[key], p)
	c.pendMu.Unlock()
	return p
}

// expected returns the entry of a write that was announced, nil if it was not.
func (c *Cache) expected(kv store.KV) *Entry {
	c.pendMu.Lock()
	defer c.pendMu.Unlock()
	for _, p := range c.pending[kv.Key] {
		if p.entry == nil && string(p.value) == string(kv.Value) {
			p.obj.SetResourceVersion(FormatRevision(kv.ModRevision))
			p.entry = c.entry(kv.Key, kv.Value, kv.ModRevision, p.obj)
			return p.entry
		}
	}
	return nil
}

func (p *Pending) forget() *Entry {
	c := p.cache
	c.pendMu.Lock()
	defer c.pendMu.Unlock()
	list := c.pending[p.key]
	for i, q := range list {
		if q == p {
			list[i] = list[len(list)-1]
			list = list[:len(list)-1]
			break
		}
	}
	if len(list) == 0 {
		delete(c.pending, p.key)
	} else {
		c.pending[p.key] = list
	}
	return p.entry
}

// Cancel says that the write did not happen, or that nobody knows.
func (p *Pending) Cancel() { p.forget() }

// Done waits until the cache has taken the write that got revision, and returns
// its entry. When ctx ends first the entry is right, but reads may not see it yet.
func (p *Pending) Done(ctx context.Context, revision int64) (*Entry, error) {
	p.cache.set.acknowledge(revision)
	waitErr := p.cache.set.WaitRevision(ctx, revision)
	if e := p.forget(); e != nil && e.Revision == revision {
		return e, nil
	}
	// The cache was filled anew in between, or is behind.
	if waitErr == nil {
		if e, ok := p.cache.Get(p.key); ok && e.Revision == revision {
			return e, nil
		}
	}
	return p.cache.decode(store.KV{Key: p.key, Value: p.value, ModRevision: revision})
}

// Historic returns the state at a past revision: from memory when a reader
// pinned it or nothing changed since, else from the store. Errors: *ExpiredError.
func (c *Cache) Historic(ctx context.Context, revision int64) (*Snapshot, error) {
	if s, now := c.Read(); s.last <= revision && revision <= now {
		return s, nil
	}
	if s := c.pins.get(revision); s != nil {
		return s, nil
	}
	res, err := c.set.store.List(ctx, c.prefix, store.ListOptions{Revision: revision})
	if err != nil {
		if errors.Is(err, store.ErrCompacted) {
			return nil, &ExpiredError{Revision: revision, Oldest: c.set.Revision()}
		}
		return nil, fmt.Errorf("list %s at revision %d: %w", c.prefix, revision, err)
	}
	entries, err := decodeAll(ctx, res.KVs, func(string) *Cache { return c })
	if err != nil {
		return nil, err
	}
	past := newCache(c.set, c.cfg)
	past.load(entries, revision)
	s := past.snapshot.Load()
	s.cache = c
	c.pins.put(revision, s)
	return s, nil
}

// Kept fails with an ExpiredError once the store has compacted a revision, also
// while its state is still known here.
func (c *Cache) Kept(ctx context.Context, revision int64) error {
	_, err := c.set.store.List(ctx, c.prefix, store.ListOptions{Revision: revision, Limit: 1, KeysOnly: true})
	if errors.Is(err, store.ErrCompacted) {
		return &ExpiredError{Revision: revision, Oldest: c.set.Revision()}
	}
	if err != nil {
		return fmt.Errorf("read %s at revision %d: %w", c.prefix, revision, err)
	}
	return nil
}

// Pin keeps a snapshot for a while so that Historic finds it.
func (c *Cache) Pin(revision int64, s *Snapshot) { c.pins.put(revision, s) }
