package observe

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/proa-dev/proa/internal/store"
)

// Store returns st with its requests measured.
func Store(st store.Store, reg prometheus.Registerer) *Measured {
	labels := []string{"operation", "group", "resource"}
	m := &Measured{Store: st, known: map[operation]*requests{},
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "etcd_request_duration_seconds",
			Help:    "Time of a request to the store in seconds, by operation and resource.",
			Buckets: []float64{0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1, 2, 5, 10, 30, 60}}, labels),
		total:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "etcd_requests_total", Help: "Requests to the store, by operation and resource."}, labels),
		failed: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "etcd_request_errors_total", Help: "Requests to the store that failed, by operation and resource."}, labels),
	}
	reg.MustRegister(m.seconds, m.total, m.failed)
	return m
}

// Measured is a store with its requests measured.
type Measured struct {
	store.Store
	names         map[string]schema.GroupResource
	seconds       *prometheus.HistogramVec
	total, failed *prometheus.CounterVec

	mu    sync.RWMutex
	known map[operation]*requests
}

// operation is what requests are counted by: dir is the folder of a resource.
type operation struct{ name, dir string }

type requests struct {
	seconds       prometheus.Observer
	total, failed prometheus.Counter
}

// Names says which resource is kept under which prefix; folders of built-in
// resources do not tell their group. It is called before the first request.
func (m *Measured) Names(byPrefix map[string]schema.GroupResource) {
	m.names = map[string]schema.GroupResource{}
	for prefix, gr := range byPrefix {
		m.names[folder(prefix)] = gr
	}
}

func (m *Measured) of(name, key string) *requests {
	o := operation{name, folder(key)}
	m.mu.RLock()
	r := m.known[o]
	m.mu.RUnlock()
	if r != nil {
		return r
	}
	group, resource := "", o.dir
	if gr, ok := m.names[o.dir]; ok {
		group, resource = gr.Group, gr.Resource
	} else if g, r, ok := strings.Cut(o.dir, "/"); ok {
		group, resource = g, r
	}
	r = &requests{m.seconds.WithLabelValues(name, group, resource), m.total.WithLabelValues(name, group, resource), m.failed.WithLabelValues(name, group, resource)}
	m.mu.Lock()
	m.known[o] = r
	m.mu.Unlock()
	return r
}

// folder is the part of a key that names the resource: pods, example.com/widgets.
func folder(key string) string {
	rest := strings.TrimPrefix(strings.TrimPrefix(key, "/"), "registry/")
	first, after, _ := strings.Cut(rest, "/")
	if strings.Contains(first, ".") { // a group
		second, _, _ := strings.Cut(after, "/")
		return first + "/" + second
	}
	return first
}

// end counts a request. That a key is not what the caller believed is an answer.
func (r *requests) end(start time.Time, err error) {
	r.seconds.Observe(time.Since(start).Seconds())
	r.total.Inc()
	var conflict *store.ConflictError
	if err != nil && !errors.Is(err, store.ErrNotFound) && !errors.As(err, &conflict) {
		r.failed.Inc()
	}
}

func (m *Measured) Get(ctx context.Context, key string) (store.KV, int64, error) {
	start := time.Now()
	kv, revision, err := m.Store.Get(ctx, key)
	m.of("get", key).end(start, err)
	return kv, revision, err
}

func (m *Measured) List(ctx context.Context, prefix string, opts store.ListOptions) (store.ListResult, error) {
	start := time.Now()
	out, err := m.Store.List(ctx, prefix, opts)
	m.of("list", prefix).end(start, err)
	return out, err
}

func (m *Measured) Create(ctx context.Context, key string, value []byte) (int64, error) {
	start := time.Now()
	revision, err := m.Store.Create(ctx, key, value)
	m.of("create", key).end(start, err)
	return revision, err
}

func (m *Measured) Update(ctx context.Context, key string, value []byte, revision int64) (int64, error) {
	start := time.Now()
	revision, err := m.Store.Update(ctx, key, value, revision)
	m.of("update", key).end(start, err)
	return revision, err
}

func (m *Measured) Delete(ctx context.Context, key string, revision int64) (int64, error) {
	start := time.Now()
	revision, err := m.Store.Delete(ctx, key, revision)
	m.of("delete", key).end(start, err)
	return revision, err
}
