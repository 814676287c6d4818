// Package observe is what an operator sees of the control plane: the metrics of
// Kubernetes' names that no part registers itself (the store's, the controllers'
// queues', the process's), and the health checks. It decides nothing.
package observe

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/proa-dev/proa/internal/apiserver"
	"github.com/proa-dev/proa/internal/store"
)

// Registry returns a registry with the process's own metrics (process_*, go_*) and
// kubernetes_build_info.
func Registry(version string) *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "kubernetes_build_info", Help: "The version that is served; always 1.",
			ConstLabels: prometheus.Labels{"major": "1", "minor": "37", "git_version": version, "platform": "linux"}}, func() float64 { return 1 }))
	return r
}

// Started is a step of the start that readiness waits for.
type Started struct{ done atomic.Bool }

// Done says that the step is behind.
func (s *Started) Done() { s.done.Store(true) }

func (s *Started) check(context.Context) error {
	if !s.done.Load() {
		return errors.New("not finished")
	}
	return nil
}

// storeTimeout is how long the store may take to answer a health check.
const storeTimeout = 2 * time.Second

// Checks returns the health checks of kube-apiserver's names: the store's, and that
// the objects which every cluster has are there.
func Checks(st store.Store, bootstrap *Started) []apiserver.Check {
	alive := func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, storeTimeout)
		defer cancel()
		// A linearizable read of a key that never is: quorum and disk have answered.
		if _, _, err := st.Get(ctx, "/registry/health"); err != nil && !errors.Is(err, store.ErrNotFound) {
			return fmt.Errorf("read from the store: %w", err)
		}
		return nil
	}
	return []apiserver.Check{
		{Name: "etcd", Check: alive},
		{Name: "etcd-readiness", Check: alive, ReadyOnly: true},
		{Name: "poststarthook/start-system-namespaces-controller", Check: bootstrap.check},
		{Name: "poststarthook/rbac/bootstrap-roles", Check: bootstrap.check},
		{Name: "poststarthook/scheduling/bootstrap-system-priority-classes", Check: bootstrap.check},
	}
}
