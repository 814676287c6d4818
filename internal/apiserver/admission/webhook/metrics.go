package webhook

import (
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/proa-dev/proa/internal/apiserver/rest"
)

// Metrics counts calls, under Kubernetes' names. Nil counts nothing.
type Metrics struct {
	duration                      *prometheus.HistogramVec
	rejections, failOpen, request *prometheus.CounterVec
}

// NewMetrics registers the metrics of webhooks.
func NewMetrics(r prometheus.Registerer) *Metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "apiserver", Subsystem: "admission", Name: name, Help: help}, labels)
	}
	m := &Metrics{
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: "apiserver", Subsystem: "admission", Name: "webhook_admission_duration_seconds",
			Help: "How long admission webhooks take to answer.", Buckets: []float64{0.005, 0.025, 0.1, 0.5, 1, 2.5, 10, 25}}, []string{"name", "type", "operation", "rejected"}),
		rejections: counter("webhook_rejection_count", "Requests that admission webhooks rejected, or whose webhooks failed.", "name", "type", "operation", "error_type", "rejection_code"),
		failOpen:   counter("webhook_fail_open_count", "Failures of admission webhooks that were ignored.", "name", "type"),
		request:    counter("webhook_request_total", "Calls of admission webhooks.", "name", "type", "operation", "code", "rejected"),
	}
	r.MustRegister(m.duration, m.rejections, m.failOpen, m.request)
	return m
}

// called counts one call; err is its error, or that of the denial.
func (m *Metrics) called(h *hook, kind string, verb rest.Verb, took time.Duration, err error) {
	if m == nil {
		return
	}
	rejected, code, why := err != nil, http.StatusOK, "no_error"
	var failure *callError
	status, isStatus := errors.AsType[*apierrors.StatusError](err)
	switch {
	case err == nil:
	case errors.As(err, &failure):
		rejected, code, why = !h.ignore, http.StatusServiceUnavailable, "calling_webhook_error"
		if isStatus {
			code = int(status.ErrStatus.Code)
		}
	case isStatus && status.ErrStatus.Code >= http.StatusInternalServerError:
		code, why = 0, "apiserver_internal_error"
	case isStatus:
		code = int(status.ErrStatus.Code)
	}
	code = min(code, 600)
	m.duration.WithLabelValues(h.name, kind, string(verb), strconv.FormatBool(rejected)).Observe(took.Seconds())
	m.request.WithLabelValues(h.name, kind, string(verb), strconv.Itoa(code), strconv.FormatBool(rejected)).Inc()
	switch {
	case rejected:
		m.rejections.WithLabelValues(h.name, kind, string(verb), why, strconv.Itoa(code)).Inc()
	case err != nil:
		m.failOpen.WithLabelValues(h.name, kind).Inc()
	}
}
