package endpoint

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are those of kube-apiserver's names and labels that dashboards and
// alerts ask for.
type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	sli      *prometheus.HistogramVec
	rejected *prometheus.CounterVec
	running  *prometheus.GaugeVec

	mu    sync.RWMutex
	known map[series]*counted
}

// series is what requests are counted by.
type series struct {
	verb, dryRun, group, version, resource, subresource, scope string
	code                                                       int
}

// counted are the metrics of a series: finding them by label costs more than many
// a request.
type counted struct {
	requests     prometheus.Counter
	seconds, sli prometheus.Observer
}

const component = "apiserver"

func newMetrics(reg prometheus.Registerer, h *Handler) *metrics {
	if reg == nil {
		return nil
	}
	what := []string{"group", "version", "resource", "subresource", "scope", "component"}
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "apiserver_request_total",
			Help: "Requests by verb, dry run, group, version, resource, subresource, scope, component and HTTP response code.",
		}, append([]string{"verb", "dry_run", "code"}, what...)),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "apiserver_request_duration_seconds",
			Help:    "Time to answer in seconds, of requests that are not long-running.",
			Buckets: []float64{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1, 2, 5, 10, 30, 60},
		}, append([]string{"verb", "dry_run"}, what...)),
		sli: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "apiserver_request_sli_duration_seconds",
			Help:    "Time to answer in seconds, as service level indicators take it.",
			Buckets: []float64{0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1, 2, 5, 10, 30, 60},
		}, append([]string{"verb"}, what...)),
		rejected: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "apiserver_dropped_requests_total",
			Help: "Requests refused because too many were under way.",
		}, []string{"request_kind"}),
		running: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "apiserver_longrunning_requests",
			Help: "Watches and connections that are open.",
		}, append([]string{"verb"}, what...)),
		known: map[series]*counted{},
	}
	reg.MustRegister(m.requests, m.seconds, m.sli, m.rejected, m.running)
	for kind, slots := range map[string]chan struct{}{"mutating": h.mutating, "readOnly": h.reading} {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "apiserver_current_inflight_requests", Help: "Requests under way, of those that are limited in number.", ConstLabels: prometheus.Labels{"request_kind": kind},
		}, func() float64 { return float64(len(slots)) }))
	}
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

// describe is the series of a request. Resources that are not served are counted
// together, so that a client cannot make series at will.
func (m *metrics) describe(q *request) series {
	i := &q.info
	s := series{verb: verbLabel(q), dryRun: dryRunLabel(q.r)}
	if q.res == nil || i.Subresource != "" && !HasSubresource(q.res, i.Subresource) {
		s.dryRun = ""
		return s
	}
	s.group, s.version, s.resource, s.subresource = i.Group, i.Version, i.Resource, i.Subresource
	switch {
	case i.Name != "" || i.Verb == "create":
		s.scope = "resource"
	case i.Namespace != "":
		s.scope = "namespace"
	default:
		s.scope = "cluster"
	}
	return s
}

// observe counts a finished request.
func (m *metrics) observe(q *request, took time.Duration) {
	if m == nil {
		return
	}
	s := m.describe(q)
	if s.code = q.w.code; s.code == 0 {
		s.code = http.StatusOK
	}
	m.mu.RLock()
	c := m.known[s]
	m.mu.RUnlock()
	if c == nil {
		c = m.add(s)
	}
	c.requests.Inc()
	if q.res != nil && !q.longRunning() {
		c.seconds.Observe(took.Seconds())
		c.sli.Observe(took.Seconds())
	}
}

func (m *metrics) add(s series) *counted {
	m.mu.Lock()
	defer m.mu.Unlock()
	what := []string{s.group, s.version, s.resource, s.subresource, s.scope, component}
	c := &counted{
		requests: m.requests.WithLabelValues(append([]string{s.verb, s.dryRun, strconv.Itoa(s.code)}, what...)...),
		seconds:  m.seconds.WithLabelValues(append([]string{s.verb, s.dryRun}, what...)...),
		sli:      m.sli.WithLabelValues(append([]string{s.verb}, what...)...),
	}
	m.known[s] = c
	return c
}

// open counts a long-running request until the returned function is called.
func (m *metrics) open(q *request) func() {
	if m == nil {
		return func() {}
	}
	s := m.describe(q)
	g := m.running.WithLabelValues(s.verb, s.group, s.version, s.resource, s.subresource, s.scope, component)
	g.Inc()
	return g.Dec
}

// verbLabel is a verb as kube-apiserver counts it: the method, with reads told apart.
func verbLabel(q *request) string {
	switch q.info.Verb {
	case "get", "list", "watch":
		return strings.ToUpper(q.info.Verb)
	case "create", "post":
		return "POST"
	case "update", "put":
		return "PUT"
	case "patch":
		if strings.HasPrefix(q.r.Header.Get("Content-Type"), "application/apply-patch+") {
			return "APPLY"
		}
		return "PATCH"
	case "delete", "deletecollection":
		return "DELETE"
	case "connect":
		return "CONNECT"
	case "head":
		return "GET"
	}
	return "other"
}

func dryRunLabel(r *http.Request) string {
	if !strings.Contains(r.URL.RawQuery, "dryRun") {
		return ""
	}
	values := r.URL.Query()["dryRun"]
	slices.Sort(values)
	values = slices.Compact(values)
	if len(values) == 1 && values[0] == "All" {
		return "All"
	}
	return "invalid"
}
