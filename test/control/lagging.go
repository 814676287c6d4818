package control

import (
	"context"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/proa-dev/proa/internal/client"
)

// Lagging is a client whose watches tell of each event late.
type Lagging struct {
	client.Interface
	Delay time.Duration
}

func (l Lagging) Informer(gvr schema.GroupVersionResource, scope client.Scope) client.Informer {
	return late{l.Interface.Informer(gvr, scope), l.Delay}
}

type late struct {
	client.Informer
	delay time.Duration
}

func (l late) Watch(ctx context.Context, fn func(client.Event)) error {
	return l.Informer.Watch(ctx, func(e client.Event) {
		if e.Type != client.Synced {
			select {
			case <-time.After(l.delay):
			case <-ctx.Done():
				return
			}
		}
		fn(e)
	})
}

// AtEveryRevision calls check with all pods, by namespace/name, after each change
// until the test ends.
func AtEveryRevision(t testing.TB, c client.Interface, check func(pods map[string]*corev1.Pod) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	state := map[string]*corev1.Pod{}
	go func() {
		defer close(done)
		_ = client.Pods.Informer(c, client.Scope{}).Watch(ctx, func(e client.Event) {
			pod, ok := e.Object.(*corev1.Pod)
			switch {
			case !ok:
				return
			case e.Type == client.Deleted:
				delete(state, pod.Namespace+"/"+pod.Name)
			default:
				state[pod.Namespace+"/"+pod.Name] = pod
			}
			if err := check(state); err != nil {
				t.Errorf("after %s of pod %s at revision %s: %v", e.Type, pod.Name, pod.ResourceVersion, err)
			}
		})
	}()
	t.Cleanup(func() { cancel(); <-done })
}
