//go:build bench

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const (
	atATime  = 50
	podsPath = "/api/v1/namespaces/default/pods"
)

// api measures requests for pods that no scheduler takes, so that the cost is
// that of the API server, its store, and the parts that watch pods.
func (b *bench) api(ctx context.Context) error {
	s, err := b.up(ctx)
	if err != nil {
		return err
	}
	defer s.stop()
	c, err := newClient(s.config)
	if err != nil {
		return err
	}
	if err := b.serviceAccount(ctx, c); err != nil {
		return err
	}
	total := 0
	create := func(ctx context.Context, n int) error {
		first := total
		total += n
		return createPods(ctx, c, first, n)
	}
	if err := create(ctx, 500); err != nil { // warm
		return err
	}
	per, rate, err := b.repeat(ctx, s, b.creates, create)
	if err != nil {
		return err
	}
	m := median(per)
	b.note(finding{what: "create a pod (JSON), 50 at a time: CPU per request of API server and store", vanilla: "2500 us", goal: "500 us", here: micros(m), spread: spread(per, micros), ok: m <= 500*time.Microsecond})
	b.note(finding{what: "create a pod, 50 at a time: rate, the client on the same cores", vanilla: "290/s", here: fmt.Sprintf("%.0f/s", mean(rate)), spread: ends(rate, "%.0f"), ok: true})

	get := func(ctx context.Context, n int) error {
		return parallel(ctx, n, func(ctx context.Context, i int) error {
			_, err := c.fetch(ctx, fmt.Sprintf("%s/bench-pod-%06d", podsPath, i%total), runtime.ContentTypeProtobuf)
			return err
		})
	}
	if err := get(ctx, 1000); err != nil {
		return err
	}
	if per, rate, err = b.repeat(ctx, s, b.gets, get); err != nil {
		return err
	}
	m = median(per)
	b.note(finding{what: "get a pod (protobuf), 50 at a time: CPU per request", vanilla: "660 us", goal: "80 us", here: micros(m), spread: spread(per, micros), ok: m <= 80*time.Microsecond})
	b.note(finding{what: "get a pod, 50 at a time: rate, the client on the same cores", vanilla: "1,100/s", here: fmt.Sprintf("%.0f/s", mean(rate)), spread: ends(rate, "%.0f"), ok: true})

	return nil
}

// repeat returns the CPU of the server for each request, and their rate, of several runs.
func (b *bench) repeat(ctx context.Context, s *server, n int, do func(context.Context, int) error) (per []time.Duration, rate []float64, err error) {
	for range b.runs {
		before, begin := s.cpu(), time.Now()
		if err := do(ctx, n); err != nil {
			return nil, nil, err
		}
		took := time.Since(begin)
		// What a request sets off after its answer counts too.
		if err := sleep(ctx, 200*time.Millisecond); err != nil {
			return nil, nil, err
		}
		per = append(per, (s.cpu()-before)/time.Duration(n))
		rate = append(rate, float64(n)/took.Seconds())
	}
	return per, rate, nil
}

// parallel does n things, 50 at a time.
func parallel(ctx context.Context, n int, do func(context.Context, int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	for w := range atATime {
		g.Go(func() error {
			for i := w; i < n; i += atATime {
				if err := do(ctx, i); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// podForNobody is a pod of usual size that no scheduler takes.
func podForNobody(name string) *corev1.Pod {
	probe := &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/healthz", Port: intstr.FromInt32(8080)}}, PeriodSeconds: 10}
	return &corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Name: name,
			Labels:      map[string]string{"app.kubernetes.io/name": "web", "pod-template-hash": "5d8b8f7c9d"},
			Annotations: map[string]string{"prometheus.io/scrape": "true"}},
		Spec: corev1.PodSpec{
			SchedulerName: "nobody",
			Containers: []corev1.Container{{
				Name: "web", Image: "registry.example.com/team/web:1.2.3",
				Ports:          []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}},
				Resources:      corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse("100m"), "memory": resource.MustParse("128Mi")}},
				ReadinessProbe: probe,
			}},
		},
	}
}

func createPods(ctx context.Context, c *client, first, n int) error {
	body, err := json.Marshal(podForNobody("NAME"))
	if err != nil {
		return err
	}
	return parallel(ctx, n, func(ctx context.Context, i int) error {
		return c.send(ctx, podsPath, runtime.ContentTypeJSON, strings.ReplaceAll(string(body), "NAME", fmt.Sprintf("bench-pod-%06d", first+i)))
	})
}

// list measures a large list: how long until its last byte is there.
func (b *bench) list(ctx context.Context) error {
	s, err := b.up(ctx)
	if err != nil {
		return err
	}
	defer s.stop()
	c, err := newClient(s.config)
	if err != nil {
		return err
	}
	if err := b.serviceAccount(ctx, c); err != nil {
		return err
	}
	if err := createPods(ctx, c, 0, b.listSize); err != nil {
		return err
	}
	if err := sleep(ctx, time.Second); err != nil {
		return err
	}
	for _, l := range []struct{ name, accept, vanilla, goal string }{
		{"JSON", runtime.ContentTypeJSON, "335 ms, 400 ms of CPU", "40 ms"},
		{"protobuf", runtime.ContentTypeProtobuf, "250 ms", ""},
	} {
		var took, cpu []time.Duration
		var size int64
		for range b.lists {
			before, begin := s.cpu(), time.Now()
			if size, err = c.fetch(ctx, podsPath, l.accept); err != nil {
				return err
			}
			took, cpu = append(took, time.Since(begin)), append(cpu, s.cpu()-before)
		}
		m := median(took)
		b.note(finding{what: fmt.Sprintf("list %d pods of %.1f KiB as %s", b.listSize, float64(size)/1024/float64(b.listSize), l.name), vanilla: l.vanilla, goal: l.goal,
			here: fmt.Sprintf("%s, %s of CPU", millis(m), millis(mean(cpu))), spread: spread(took, millis), ok: l.goal == "" || m <= 40*time.Millisecond})
	}
	return nil
}
