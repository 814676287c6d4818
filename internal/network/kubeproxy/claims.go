package kubeproxy

import (
	"log/slog"
	"slices"

	"k8s.io/apimachinery/pkg/types"
)

// claims says whose each frontend is. Nobody keeps two Services from asking for
// the same external address and port; the first has it, the others wait.
type claims struct {
	owners  map[frontend]types.NamespacedName
	waiting map[frontend]map[types.NamespacedName]bool
	of      map[types.NamespacedName][]frontend // that a Service has or waits for
}

func newClaims() *claims {
	return &claims{owners: map[frontend]types.NamespacedName{}, waiting: map[frontend]map[types.NamespacedName]bool{}, of: map[types.NamespacedName][]frontend{}}
}

// claim takes the frontends of a Service's portals, and those that others have
// out of them.
func (c *claims) claim(key types.NamespacedName, portals []*portal, log *slog.Logger) {
	for _, p := range portals {
		for _, list := range []*[]frontend{&p.inside, &p.outside, &p.guarded} {
			*list = slices.DeleteFunc(*list, func(f frontend) bool {
				c.of[key] = append(c.of[key], f)
				owner, taken := c.owners[f]
				if !taken {
					c.owners[f] = key
					return false
				}
				if owner == key && slices.Contains(c.of[key][:len(c.of[key])-1], f) || owner != key {
					log.Warn("kube-proxy: an address and port is another Service's already", "namespace", key.Namespace, "name", key.Name,
						"address", f.addr, "port", f.port, "owner", owner.String())
					if c.waiting[f] == nil {
						c.waiting[f] = map[types.NamespacedName]bool{}
					}
					c.waiting[f][key] = true
					return true
				}
				return false
			})
		}
	}
}

// release gives back what a Service has, and returns who waits for it.
func (c *claims) release(key types.NamespacedName) (next []types.NamespacedName) {
	for _, f := range c.of[key] {
		if delete(c.waiting[f], key); len(c.waiting[f]) == 0 {
			delete(c.waiting, f)
		}
		if c.owners[f] != key {
			continue
		}
		delete(c.owners, f)
		for other := range c.waiting[f] {
			next = append(next, other)
		}
	}
	delete(c.of, key)
	return next
}

// sameFrontends says whether a portal keeps its ways in, so that it can be changed
// in place.
func sameFrontends(a, b *portal) bool {
	return slices.Equal(a.inside, b.inside) && slices.Equal(a.outside, b.outside) && slices.Equal(a.guarded, b.guarded)
}
