package owned

import (
	"strconv"
	"sync"

	"k8s.io/apimachinery/pkg/types"

	"github.com/proa-dev/proa/internal/client"
)

// Writes remembers the creations and deletions that a controller made for a key
// until its Index shows them, so that a lagging watch never makes it do the same
// again. Since a creation is known by its UID and a deletion by its target, no
// count can go wrong, and nothing has to time out.
type Writes[K comparable, T client.Object] struct {
	informer client.Informer // newer than the index, or as new
	index    *Index[T]

	mu      sync.Mutex
	pending map[K]map[types.NamespacedName]ownWrite
}

type ownWrite struct {
	uid      types.UID
	revision int64 // of a creation; 0: it is a deletion
}

// NewWrites returns an empty record for what index shows of informer.
func NewWrites[K comparable, T client.Object](informer client.Informer, index *Index[T]) *Writes[K, T] {
	return &Writes[K, T]{informer: informer, index: index, pending: map[K]map[types.NamespacedName]ownWrite{}}
}

func nameOf(obj client.Object) types.NamespacedName {
	return types.NamespacedName{Namespace: obj.GetNamespace(), Name: obj.GetName()}
}

func (w *Writes[K, T]) note(key K, obj client.Object, revision int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	m := w.pending[key]
	if m == nil {
		m = map[types.NamespacedName]ownWrite{}
		w.pending[key] = m
	}
	m[nameOf(obj)] = ownWrite{obj.GetUID(), revision}
}

// Created notes that obj was created: it is as the API returned it.
func (w *Writes[K, T]) Created(key K, obj T) {
	revision, err := strconv.ParseInt(obj.GetResourceVersion(), 10, 64)
	if err != nil || revision <= 0 {
		revision = 1
	}
	w.note(key, obj, revision)
}

// Deleting notes that obj is about to be deleted; Kept that it was not.
func (w *Writes[K, T]) Deleting(key K, obj T) { w.note(key, obj, 0) }

func (w *Writes[K, T]) Kept(key K, obj T) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.pending[key], nameOf(obj))
}

// Settled reports whether the index shows every write of the key. When it does
// not, an event of the missing one will follow.
func (w *Writes[K, T]) Settled(key K) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	m, ok := w.pending[key]
	if !ok {
		return true
	}
	for name, x := range m {
		if w.shown(name, x) {
			delete(m, name)
		}
	}
	if len(m) > 0 {
		return false
	}
	delete(w.pending, key)
	return true
}

func (w *Writes[K, T]) shown(name types.NamespacedName, x ownWrite) bool {
	obj, ok := w.index.Get(name.Namespace, name.Name)
	same := ok && obj.GetUID() == x.uid
	if x.revision == 0 {
		return !same || obj.GetDeletionTimestamp() != nil
	}
	if same {
		return true
	}
	// It may have gone again before the watch told of it.
	if w.informer.Revision() < x.revision {
		return false
	}
	now, ok := w.informer.Get(name.Namespace, name.Name)
	return !ok || now.GetUID() != x.uid
}

// Forget drops what is remembered of a key.
func (w *Writes[K, T]) Forget(key K) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.pending, key)
}
