package request

import (
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/proa-dev/proa/internal/apiserver/rest"
)

// Round is one pass of those that may change an object. When one changed it,
// there is a second pass, in which those that asked for it see it again.
type Round struct {
	Second  bool
	changed bool
	memory  map[any]*memory
}

// memory is what one plugin remembers between the rounds.
type memory struct {
	last    runtime.Object  // what its last call left behind
	called  map[string]bool // whoever wants to be called again, and was
	waiting map[string]bool // whoever is to be called again
}

// Changed reports whether there has to be a second round.
func (r *Round) Changed() bool { return r.changed }

// Turn is the turn of one plugin in a round.
type Turn struct {
	round *Round
	m     *memory
}

// Begin begins the turn of a plugin.
func (r *Round) Begin(plugin any, a *rest.Attributes) *Turn {
	m := r.memory[plugin]
	if m == nil {
		m = &memory{called: map[string]bool{}, waiting: map[string]bool{}}
		if r.memory == nil {
			r.memory = map[any]*memory{}
		}
		r.memory[plugin] = m
	}
	t := &Turn{round: r, m: m}
	if r.Second && !apiequality.Semantic.DeepEqual(m.last, a.Object) {
		t.again()
	}
	return t
}

// again has everybody who was called so far called again.
func (t *Turn) again() {
	for id := range t.m.called {
		t.m.waiting[id] = true
	}
	clear(t.m.called)
}

// Calls reports whether id is called in this turn.
func (t *Turn) Calls(id string) bool { return !t.round.Second || t.m.waiting[id] }

// Called notes a call: whether it changed the object, and whether id wants to see later changes.
func (t *Turn) Called(id string, changed, wantsAgain bool) {
	if changed {
		t.again()
		t.round.changed = true
	}
	if wantsAgain {
		t.m.called[id] = true
	}
}

// End ends the turn.
func (t *Turn) End(a *rest.Attributes) {
	if a.Object != nil && !t.round.Second {
		t.m.last = a.Object.DeepCopyObject()
	}
}
