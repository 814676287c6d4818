package cache_test

import (
	"fmt"
	"runtime"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/proa-dev/proa/internal/api/resources"
	"github.com/proa-dev/proa/internal/apiserver/cache"
	"github.com/proa-dev/proa/internal/apiserver/rest"
	"github.com/proa-dev/proa/internal/store/memory"
)

// Who is told of a change and reads the object then must find it: a controller or a
// client that gets NotFound for what it was just told of takes it for gone.
func TestAnEventIsNeverAheadOfReads(t *testing.T) {
	for name, scope := range map[string]cache.Scope{"watch of everything": {}, "watch of a namespace": {Namespace: "default"}} {
		t.Run(name, func(t *testing.T) {
			st := memory.New()
			defer st.Close()
			registry, err := rest.New(rest.Config{Store: st, Resources: resources.All(), Scheme: resources.Scheme()})
			if err != nil {
				t.Fatal(err)
			}
			if err := registry.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			defer registry.Close()
			gvr := corev1.SchemeGroupVersion.WithResource("configmaps")
			c, _, _ := registry.Cache(gvr)
			s, _ := registry.Storage(gvr)
			w, _, _, err := c.Watch(cache.WatchOptions{Scope: scope})
			if err != nil {
				t.Fatal(err)
			}
			defer w.Stop()
			const count = 4000
			done := make(chan error, 1)
			go func() {
				// It polls all the time, so that it looks while changes are applied.
				var buf []*cache.Event
				for seen := 0; seen < count; {
					if buf, err = w.Poll(buf[:0]); err != nil {
						done <- err
						return
					}
					for _, e := range buf {
						if now, ok := c.Get(e.Entry.Key); !ok || now.Revision < e.Revision {
							done <- fmt.Errorf("told of %s at %d, which a read does not show", e.Entry.Key, e.Revision)
							return
						}
						if registry.Revision() < e.Revision {
							done <- fmt.Errorf("told of revision %d at %d", e.Revision, registry.Revision())
							return
						}
					}
					seen += len(buf)
					runtime.Gosched()
				}
				done <- nil
			}()
			for i := range count {
				obj := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("c%d", i)}}
				if _, err := s.Create(t.Context(), "default", obj, metav1.CreateOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}
