//go:build bench

package main

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

// pods measures pods with a container that runs: one by one and 50 at once.
func (b *bench) pods(ctx context.Context) error {
	s, err := b.up(ctx, b.image)
	if err != nil {
		return err
	}
	defer b.reset()
	defer s.stop()
	c, err := newClient(s.config)
	if err != nil {
		return err
	}
	if err := b.serviceAccount(ctx, c); err != nil {
		return err
	}
	var run, gone []time.Duration
	cpu0, shim0, _ := b.both(s)
	for i := range b.single {
		r, g, err := b.wave(ctx, c, fmt.Sprintf("one-%d", i), 1)
		if err != nil {
			return err
		}
		run, gone = append(run, r), append(gone, g)
	}
	cpu1, shim1, _ := b.both(s)
	m := median(run)
	b.note(finding{what: "one pod, create to Running, image present, p50", vanilla: "611 ms", goal: "150 ms", here: millis(m), spread: spread(run, millis), ok: m <= 150*time.Millisecond})
	b.note(finding{what: "one pod, delete to gone, p50", vanilla: "", goal: "", here: millis(median(gone)), spread: spread(gone, millis), ok: true})
	b.note(finding{what: "CPU of a pod from create to gone, one by one", vanilla: "", goal: "", here: millis((cpu1 - cpu0) / time.Duration(b.single)), spread: "helpers that still run: " + millis(shim1-shim0), ok: true})

	run, gone = nil, nil
	for i := range b.waves {
		r, g, err := b.wave(ctx, c, fmt.Sprintf("wave-%d", i), 50)
		if err != nil {
			return err
		}
		run, gone = append(run, r), append(gone, g)
	}
	m = median(run)
	b.note(finding{what: "50 pods at once, until all run", vanilla: "14.1 s", goal: "4 s", here: seconds(m), spread: spread(run, seconds), ok: m <= 4*time.Second})
	b.note(finding{what: "50 pods deleted at once, until all are gone", vanilla: "", goal: "", here: seconds(median(gone)), spread: spread(gone, seconds), ok: true})
	return nil
}

func (b *bench) both(s *server) (cpu, shims time.Duration, n int) {
	shims, _, n = b.helpers()
	return s.cpu(), shims, n
}

// serviceAccount waits for the account that pods get.
func (b *bench) serviceAccount(ctx context.Context, c *client) error {
	for range 500 {
		err := c.Get().Namespace("default").Resource("serviceaccounts").Name("default").Do(ctx).Error()
		if err == nil {
			return nil
		}
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
	return fmt.Errorf("no default service account after 10 s")
}

// wave creates n pods at once and waits until a watch has shown each Running,
// then deletes them and waits until it has shown each gone.
func (b *bench) wave(ctx context.Context, c *client, name string, n int) (run, gone time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	w, err := c.Get().Namespace("default").Resource("pods").VersionedParams(&metav1.ListOptions{Watch: true, LabelSelector: "wave=" + name}, metav1.ParameterCodec).Watch(ctx)
	if err != nil {
		return 0, 0, err
	}
	defer w.Stop()
	each := func(do func(ctx context.Context, pod string) error) error {
		g, ctx := errgroup.WithContext(ctx)
		for i := range n {
			g.Go(func() error { return do(ctx, fmt.Sprintf("%s-%d", name, i)) })
		}
		return g.Wait()
	}
	begin := time.Now()
	if err := each(func(ctx context.Context, pod string) error {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: pod, Labels: map[string]string{"wave": name}},
			Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: b.imageName}}}}
		return c.Post().Namespace("default").Resource("pods").Body(p).Do(ctx).Error()
	}); err != nil {
		return 0, 0, err
	}
	if err := until(ctx, w, n, func(e watch.Event, p *corev1.Pod) bool {
		return p.Status.Phase == corev1.PodRunning
	}); err != nil {
		return 0, 0, fmt.Errorf("wait until %d pods run: %w", n, err)
	}
	run = time.Since(begin)
	begin = time.Now()
	if err := each(func(ctx context.Context, pod string) error {
		return c.Delete().Namespace("default").Resource("pods").Name(pod).Do(ctx).Error()
	}); err != nil {
		return 0, 0, err
	}
	if err := until(ctx, w, n, func(e watch.Event, _ *corev1.Pod) bool { return e.Type == watch.Deleted }); err != nil {
		return 0, 0, fmt.Errorf("wait until %d pods are gone: %w", n, err)
	}
	return run, time.Since(begin), nil
}

// until reads a watch until n pods have been shown that are as wanted.
func until(ctx context.Context, w watch.Interface, n int, ok func(watch.Event, *corev1.Pod) bool) error {
	seen := map[string]bool{}
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %d of %d", ctx.Err(), len(seen), n)
		case e, open := <-w.ResultChan():
			p, isPod := e.Object.(*corev1.Pod)
			if !open || !isPod {
				return fmt.Errorf("the watch ended after %d of %d: %v", len(seen), n, e.Object)
			}
			if ok(e, p) {
				seen[p.Name] = true
			}
			if len(seen) == n {
				return nil
			}
		}
	}
}
