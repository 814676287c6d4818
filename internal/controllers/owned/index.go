package owned

import (
	"slices"
	"strings"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/proa-dev/proa/internal/client"
)

// Index holds the objects of one resource that controllers of one kind own, and
// those that nobody owns. The watch of its controller fills it, so that it shows
// the state up to the event that the controller was last told of. Objects are
// shared: read only.
type Index[T client.Object] struct {
	kind schema.GroupKind

	mu      sync.RWMutex
	named   map[types.NamespacedName]T
	owned   map[types.UID][]T // sorted by name
	orphans map[string][]T    // of a namespace, sorted by name
}

// NewIndex returns an empty index for owners of kind.
func NewIndex[T client.Object](kind schema.GroupKind) *Index[T] {
	return &Index[T]{kind: kind, named: map[types.NamespacedName]T{}, owned: map[types.UID][]T{}, orphans: map[string][]T{}}
}

// Of returns the object's controllerRef when it is of the index' kind.
func (x *Index[T]) Of(obj client.Object) *metav1.OwnerReference {
	ref := metav1.GetControllerOfNoCopy(obj)
	if ref == nil || ref.Kind != x.kind.Kind {
		return nil
	}
	group, _, found := strings.Cut(ref.APIVersion, "/")
	if !found {
		group = ""
	}
	if group != x.kind.Group {
		return nil
	}
	return ref
}

// Apply takes an event of the resource.
func (x *Index[T]) Apply(e client.Event) {
	obj, ok := e.Object.(T)
	if !ok {
		return
	}
	key := types.NamespacedName{Namespace: obj.GetNamespace(), Name: obj.GetName()}
	x.mu.Lock()
	defer x.mu.Unlock()
	if had, ok := x.named[key]; ok {
		x.remove(key, had)
	}
	if e.Type == client.Deleted {
		return
	}
	switch ref := x.Of(obj); {
	case ref != nil:
		x.owned[ref.UID] = insert(x.owned[ref.UID], obj)
	case metav1.GetControllerOfNoCopy(obj) == nil:
		x.orphans[key.Namespace] = insert(x.orphans[key.Namespace], obj)
	default:
		return // of another kind of controller
	}
	x.named[key] = obj
}

func (x *Index[T]) remove(key types.NamespacedName, had T) {
	delete(x.named, key)
	if ref := x.Of(had); ref != nil {
		drop(x.owned, ref.UID, key.Name)
	} else {
		drop(x.orphans, key.Namespace, key.Name)
	}
}

func find[T client.Object](list []T, name string) (int, bool) {
	return slices.BinarySearchFunc(list, name, func(o T, name string) int { return strings.Compare(o.GetName(), name) })
}

func insert[T client.Object](list []T, obj T) []T {
	i, _ := find(list, obj.GetName())
	return slices.Insert(list, i, obj)
}

func drop[K comparable, T client.Object](m map[K][]T, key K, name string) {
	list := m[key]
	i, ok := find(list, name)
	switch {
	case !ok:
	case len(list) == 1:
		delete(m, key)
	default:
		m[key] = slices.Delete(list, i, i+1)
	}
}

// Get returns an object that the index holds.
func (x *Index[T]) Get(namespace, name string) (T, bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	obj, ok := x.named[types.NamespacedName{Namespace: namespace, Name: name}]
	return obj, ok
}

// Owned returns what the controller of a UID owns, by name.
func (x *Index[T]) Owned(uid types.UID) []T {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return slices.Clone(x.owned[uid])
}

// OwnedOrOrphaned returns what the controller of a UID owns and what nobody in
// the namespace owns: what there is to claim.
func (x *Index[T]) OwnedOrOrphaned(namespace string, uid types.UID) []T {
	x.mu.RLock()
	defer x.mu.RUnlock()
	owned, orphans := x.owned[uid], x.orphans[namespace]
	return append(append(make([]T, 0, len(owned)+len(orphans)), owned...), orphans...)
}
