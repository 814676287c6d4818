package observe

import (
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/util/workqueue"
)

// Queues returns what measures the controllers' queues; each has its name in the
// label "name".
func Queues(reg prometheus.Registerer) workqueue.MetricsProvider {
	gauge := func(name, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "workqueue_" + name, Help: help}, []string{"name"})
	}
	counter := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "workqueue_" + name, Help: help}, []string{"name"})
	}
	histogram := func(name, help string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "workqueue_" + name, Help: help, Buckets: prometheus.ExponentialBuckets(1e-6, 10, 9)}, []string{"name"})
	}
	q := &queues{
		depth: gauge("depth", "Keys that wait for work."), adds: counter("adds_total", "Keys that were added."), retries: counter("retries_total", "Keys that were added again after an error."),
		latency: histogram("queue_duration_seconds", "How long a key waited for work, in seconds."), work: histogram("work_duration_seconds", "How long work on a key took, in seconds."),
	}
	reg.MustRegister(q.depth, q.adds, q.retries, q.latency, q.work)
	return q
}

type queues struct {
	depth         *prometheus.GaugeVec
	adds, retries *prometheus.CounterVec
	latency, work *prometheus.HistogramVec
}

func (q *queues) NewDepthMetric(name string) workqueue.GaugeMetric {
	return q.depth.WithLabelValues(name)
}
func (q *queues) NewAddsMetric(name string) workqueue.CounterMetric {
	return q.adds.WithLabelValues(name)
}
func (q *queues) NewLatencyMetric(name string) workqueue.HistogramMetric {
	return q.latency.WithLabelValues(name)
}
func (q *queues) NewWorkDurationMetric(name string) workqueue.HistogramMetric {
	return q.work.WithLabelValues(name)
}

// Unfinished work is not measured: a queue would wake twice a second to tell.
func (q *queues) NewUnfinishedWorkSecondsMetric(string) workqueue.SettableGaugeMetric { return none{} }
func (q *queues) NewLongestRunningProcessorSecondsMetric(string) workqueue.SettableGaugeMetric {
	return none{}
}

type none struct{}

func (none) Set(float64) {}

func (q *queues) NewRetriesMetric(name string) workqueue.CounterMetric {
	return q.retries.WithLabelValues(name)
}
