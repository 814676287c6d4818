package etcd

import (
	"fmt"
	"sync"
	"testing"

	"github.com/proa-dev/proa/internal/store"
)

// A start in the middle of a long log elects the member while entries are applied
// and the log is cut behind them; what raft still looks at must be there.
func TestRestartsWithALongLog(t *testing.T) {
	dir := t.TempDir()
	rounds := 4
	if testing.Short() {
		rounds = 2
	}
	for round := range rounds {
		s := open(t, Options{Dir: dir, UnsafeNoFsync: true})
		var wg sync.WaitGroup
		for w := range 50 {
			wg.Go(func() {
				for i := range 100 {
					if _, err := s.Create(t.Context(), fmt.Sprintf("/%d/%d/%d", round, w, i), []byte("v")); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	s := open(t, Options{Dir: dir, UnsafeNoFsync: true})
	list, err := s.List(t.Context(), "/", store.ListOptions{})
	if err != nil || len(list.KVs) != rounds*50*100 {
		t.Fatalf("%d keys, %v", len(list.KVs), err)
	}
}
