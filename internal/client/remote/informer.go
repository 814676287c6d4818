package remote

import (
	"context"
	"sync"

	"github.com/tidwall/btree"

	"github.com/proa-dev/proa/internal/client"
)

// informer is the state of a view, which its reflector (reflect.go) keeps up to
// date, and those who follow it.
type informer struct {
	c *Client
	view

	synced chan struct{} // closed when the view is complete, or has failed
	once   sync.Once

	mu        sync.RWMutex
	items     *btree.BTreeG[client.Object]
	revision  int64
	err       error // of a view that has ended: its resource is not served
	followers map[*follower]struct{}
}

func before(a, b client.Object) bool {
	if a.GetNamespace() != b.GetNamespace() {
		return a.GetNamespace() < b.GetNamespace()
	}
	return a.GetName() < b.GetName()
}

func newInformer(c *Client, v view) *informer {
	return &informer{c: c, view: v, synced: make(chan struct{}), items: btree.NewBTreeGOptions(before, btree.Options{NoLocks: true}), followers: map[*follower]struct{}{}}
}

// place is where an object stands in the tree.
type place struct {
	client.Object
	namespace, name string
}

func (p place) GetNamespace() string { return p.namespace }
func (p place) GetName() string      { return p.name }

func (i *informer) failed() bool {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return i.err != nil
}

// fail ends the view.
func (i *informer) fail(err error) {
	i.mu.Lock()
	i.err = err
	for f := range i.followers {
		f.signal()
	}
	i.mu.Unlock()
	i.once.Do(func() { close(i.synced) })
}

func (i *informer) Get(namespace, name string) (client.Object, bool) {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return i.items.Get(place{namespace: namespace, name: name})
}

func (i *informer) List(namespace string) []client.Object {
	i.mu.RLock()
	defer i.mu.RUnlock()
	var out []client.Object
	if namespace == "" {
		out = make([]client.Object, 0, i.items.Len())
	}
	i.items.Ascend(place{namespace: namespace}, func(o client.Object) bool {
		if namespace != "" && o.GetNamespace() != namespace {
			return false
		}
		out = append(out, o)
		return true
	})
	return out
}

func (i *informer) Revision() int64 {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return i.revision
}

func (i *informer) WaitSynced(ctx context.Context) error {
	select {
	case <-i.synced:
	case <-ctx.Done():
		return ctx.Err()
	}
	i.mu.RLock()
	defer i.mu.RUnlock()
	return i.err
}

// maxQueue is how many changes wait for a follower before it is told only of what
// has become of them.
const maxQueue = 4096

// follower is one call of Watch. Changes are queued; when too many wait, the queue
// is dropped and the follower compares what it knows with the state.
type follower struct {
	wake   chan struct{}
	queue  []client.Event
	behind bool
}

func (f *follower) signal() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// Watch tells fn of the state and its changes until ctx or the view ends.
func (i *informer) Watch(ctx context.Context, fn func(client.Event)) error {
	select {
	case <-i.synced:
	case <-ctx.Done():
		return nil
	}
	f := &follower{wake: make(chan struct{}, 1), behind: true}
	i.mu.Lock()
	i.followers[f] = struct{}{}
	i.mu.Unlock()
	defer func() {
		i.mu.Lock()
		delete(i.followers, f)
		i.mu.Unlock()
	}()
	known := map[key]client.Object{}
	for first := true; ctx.Err() == nil; {
		i.mu.Lock()
		err, behind, queue := i.err, f.behind, f.queue
		f.behind, f.queue = false, nil
		var state []client.Object
		if behind {
			state = i.items.Items()
		}
		i.mu.Unlock()
		switch {
		case err != nil:
			return err
		case behind:
			compare(known, state, fn)
			if first {
				fn(client.Event{Type: client.Synced})
				first = false
			}
			continue
		case len(queue) > 0:
			for _, e := range queue {
				if ctx.Err() != nil {
					return nil
				}
				if e.Type == client.Deleted {
					delete(known, keyOf(e.Object))
				} else {
					known[keyOf(e.Object)] = e.Object
				}
				fn(e)
			}
			continue
		}
		select {
		case <-f.wake:
		case <-ctx.Done():
		case <-i.c.ctx.Done():
			return ErrClosed
		}
	}
	return nil
}

type key struct{ namespace, name string }

func keyOf(o client.Object) key { return key{o.GetNamespace(), o.GetName()} }

// compare tells fn of the differences between what is known and the state, and
// makes known the state.
func compare(known map[key]client.Object, state []client.Object, fn func(client.Event)) {
	gone := make(map[key]client.Object, len(known))
	for k, o := range known {
		gone[k] = o
	}
	for _, o := range state {
		k := keyOf(o)
		old, had := known[k]
		delete(gone, k)
		known[k] = o
		switch {
		case !had:
			fn(client.Event{Type: client.Added, Object: o})
		case old.GetUID() != o.GetUID(): // another object of the same name
			fn(client.Event{Type: client.Deleted, Object: old, Old: old})
			fn(client.Event{Type: client.Added, Object: o})
		case old.GetResourceVersion() != o.GetResourceVersion():
			fn(client.Event{Type: client.Modified, Object: o, Old: old})
		}
	}
	for k, o := range gone {
		delete(known, k)
		fn(client.Event{Type: client.Deleted, Object: o, Old: o})
	}
}

// tell hands an event to the followers. The caller holds mu.
func (i *informer) tell(e client.Event) {
	for f := range i.followers {
		switch {
		case f.behind: // it will compare
		case len(f.queue) >= maxQueue:
			f.queue, f.behind = nil, true
		default:
			f.queue = append(f.queue, e)
		}
		f.signal()
	}
}

// replace makes the objects of a list the state.
func (i *informer) replace(list []client.Object, revision int64) {
	i.mu.Lock()
	defer i.mu.Unlock()
	next := btree.NewBTreeGOptions(before, btree.Options{NoLocks: true})
	for _, o := range list {
		next.Set(o)
	}
	known := make(map[key]client.Object, i.items.Len())
	i.items.Scan(func(o client.Object) bool { known[keyOf(o)] = o; return true })
	i.items, i.revision = next, revision
	if len(i.followers) > 0 {
		compare(known, next.Items(), i.tell)
	}
	i.once.Do(func() { close(i.synced) })
}

// apply makes one change of the state.
func (i *informer) apply(kind client.EventType, o client.Object, revision int64) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.revision = max(i.revision, revision)
	if kind == client.Deleted {
		if old, had := i.items.Delete(o); had {
			i.tell(client.Event{Type: client.Deleted, Object: o, Old: old})
		}
		return
	}
	old, had := i.items.Set(o)
	switch {
	case !had:
		i.tell(client.Event{Type: client.Added, Object: o})
	case old.GetResourceVersion() != o.GetResourceVersion():
		i.tell(client.Event{Type: client.Modified, Object: o, Old: old})
	}
}

// progress notes how far the view is.
func (i *informer) progress(revision int64) {
	i.mu.Lock()
	i.revision = max(i.revision, revision)
	i.mu.Unlock()
}
