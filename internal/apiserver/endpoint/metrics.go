package endpoint

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are those of Kubernetes' names that dashboards and alerts ask for.
type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	rejected *prometheus.CounterVec
	running  *prometheus.GaugeVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	if reg == nil {
		return nil
	}
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "apiserver_request_total",
			Help: "Requests by verb, group, version, resource, scope and HTTP response code.",
		}, []string{"verb", "group", "version", "resource", "subresource", "scope", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "apiserver_request_duration_seconds",
			Help:    "Time to answer by verb, group, version and resource; long-running requests are left out.",
			Buckets: []float64{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60},
		}, []string{"verb", "group", "version", "resource", "subresource"}),
		rejected: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "apiserver_dropped_requests_total",
			Help: "Requests refused because too many were under way.",
		}, []string{"request_kind"}),
		running: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "apiserver_longrunning_requests",
			Help: "Watches and connections that are open, by verb, group, version and resource.",
		}, []string{"verb", "group", "version", "resource", "subresource"}),
	}
	reg.MustRegister(m.requests, m.seconds, m.rejected, m.running)
	return m
}

func (m *metrics) dropped(verb string) {
	if m == nil {
		return
	}
	kind := "mutating"
	switch verb {
	case "get", "list":
		kind = "readOnly"
	}
	m.rejected.WithLabelValues(kind).Inc()
}

// observe counts a finished request. Resources that are not served are counted
// together, so that a client cannot make series at will.
func (m *metrics) observe(q *request, took time.Duration) {
	if m == nil {
		return
	}
	i := &q.info
	code := q.w.code
	if q.res == nil {
		verb := i.Verb
		switch verb {
		case "get", "head", "options", "post", "put", "patch", "delete", "list", "watch", "create", "update", "deletecollection":
		default:
			verb = "other"
		}
		m.requests.WithLabelValues(verb, "", "", "", "", "", codeText(code)).Inc()
		return
	}
	scope := "resource"
	if i.Name == "" {
		scope = "cluster"
		if i.Namespace != "" {
			scope = "namespace"
		}
	}
	m.requests.WithLabelValues(i.Verb, i.Group, i.Version, i.Resource, i.Subresource, scope, codeText(code)).Inc()
	if !q.longRunning() {
		m.seconds.WithLabelValues(i.Verb, i.Group, i.Version, i.Resource, i.Subresource).Observe(took.Seconds())
	}
}

// open counts a long-running request until the returned function is called.
func (m *metrics) open(q *request) func() {
	if m == nil {
		return func() {}
	}
	i := &q.info
	g := m.running.WithLabelValues(i.Verb, i.Group, i.Version, i.Resource, i.Subresource)
	g.Inc()
	return g.Dec
}

func codeText(code int) string {
	switch code {
	case 200, 0:
		return "200"
	case 201:
		return "201"
	case 404:
		return "404"
	case 409:
		return "409"
	}
	return strconv.Itoa(code)
}
