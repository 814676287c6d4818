package memory

import (
	"testing"

	"github.com/proa-dev/proa/internal/store"
	"github.com/proa-dev/proa/internal/store/storetest"
)

func TestStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store {
		s := New()
		t.Cleanup(func() { s.Close() })
		return s
	})
}
