package revision

import (
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/proa-dev/proa/internal/client"
)

// Cache keeps the Data of each object's template: it is compared on every pass, and
// changes with the generation only.
type Cache[K comparable] struct {
	mu   sync.Mutex
	data map[K]encoded
}

type encoded struct {
	uid        types.UID
	generation int64
	data       []byte
}

// Data returns the Data of obj's template. It is shared: read only.
func (c *Cache[K]) Data(key K, obj client.Object, template *corev1.PodTemplateSpec) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if have, ok := c.data[key]; ok && have.uid == obj.GetUID() && have.generation == obj.GetGeneration() {
		return have.data, nil
	}
	data, err := Data(template)
	if err != nil {
		return nil, err
	}
	if c.data == nil {
		c.data = map[K]encoded{}
	}
	c.data[key] = encoded{obj.GetUID(), obj.GetGeneration(), data}
	return data, nil
}

// Forget drops what is kept of a key.
func (c *Cache[K]) Forget(key K) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.data, key)
}
