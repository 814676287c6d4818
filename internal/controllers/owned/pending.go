package owned

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/proa-dev/proa/internal/client"
)

// pendingFor bounds how long a write that the view does not show holds work back.
const pendingFor = 5 * time.Minute

// Pending remembers the creates and deletes that a view does not show yet, so that
// nothing is made or deleted twice while it lags. In process a view shows a write
// at once, and nothing is remembered.
type Pending[K comparable] struct {
	mu   sync.Mutex
	keys map[K]map[write]time.Time
}

type write struct {
	name types.NamespacedName
	uid  types.UID // "": a create
}

// Created remembers a create.
func (p *Pending[K]) Created(key K, view client.Informer, obj client.Object) {
	if _, ok := view.Get(obj.GetNamespace(), obj.GetName()); !ok {
		p.add(key, write{name: types.NamespacedName{Namespace: obj.GetNamespace(), Name: obj.GetName()}})
	}
}

// Deleted remembers a delete.
func (p *Pending[K]) Deleted(key K, view client.Informer, obj client.Object) {
	w := write{types.NamespacedName{Namespace: obj.GetNamespace(), Name: obj.GetName()}, obj.GetUID()}
	if !shown(view, w) {
		p.add(key, w)
	}
}

func (p *Pending[K]) add(key K, w write) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.keys == nil {
		p.keys = map[K]map[write]time.Time{}
	}
	if p.keys[key] == nil {
		p.keys[key] = map[write]time.Time{}
	}
	p.keys[key][w] = time.Now().Add(pendingFor)
}

// Shown says whether the view shows all writes for a key.
func (p *Pending[K]) Shown(key K, view client.Informer) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for w, until := range p.keys[key] {
		if !shown(view, w) && time.Now().Before(until) {
			return false
		}
		delete(p.keys[key], w)
	}
	delete(p.keys, key)
	return true
}

// Forget drops what is remembered of a key.
func (p *Pending[K]) Forget(key K) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.keys, key)
}

func shown(view client.Informer, w write) bool {
	obj, ok := view.Get(w.name.Namespace, w.name.Name)
	if w.uid == "" {
		return ok
	}
	return !ok || obj.GetUID() != w.uid || obj.GetDeletionTimestamp() != nil
}
