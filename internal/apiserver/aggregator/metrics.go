package aggregator

import "github.com/prometheus/client_golang/prometheus"

// metrics have the names that Kubernetes gives them.
type metrics struct {
	unavailable *prometheus.GaugeVec
	changes     *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	if reg == nil {
		return nil
	}
	m := &metrics{
		unavailable: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "aggregator_unavailable_apiservice",
			Help: "1 for each APIService whose server does not answer now."}, []string{"name"}),
		changes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "aggregator_unavailable_apiservice_total",
			Help: "Checks that found the server of an APIService missing, by the reason."}, []string{"name", "reason"}),
	}
	reg.MustRegister(m.unavailable, m.changes)
	return m
}

func (m *metrics) set(name string, available bool, reason string) {
	if m == nil {
		return
	}
	if available {
		m.unavailable.WithLabelValues(name).Set(0)
		return
	}
	m.unavailable.WithLabelValues(name).Set(1)
	m.changes.WithLabelValues(name, reason).Inc()
}

func (m *metrics) forget(name string) {
	if m != nil {
		m.unavailable.DeleteLabelValues(name)
	}
}
