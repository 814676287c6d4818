package webhook

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/proa-dev/proa/internal/apiserver/rest"
)

func TestCallsAreCounted(t *testing.T) {
	for _, x := range []struct {
		name   string
		ignore bool
		err    error
		want   []string
	}{
		{"allowed", false, nil, []string{"apiserver_admission_webhook_request_total code=200 rejected=false"}},
		{"denied", false, denied("h", &metav1.Status{Code: 403}), []string{"apiserver_admission_webhook_rejection_count error_type=no_error rejection_code=403", "apiserver_admission_webhook_request_total code=403 rejected=true"}},
		{"failed", false, &callError{"h", errors.New("no route")}, []string{"apiserver_admission_webhook_rejection_count error_type=calling_webhook_error rejection_code=503", "apiserver_admission_webhook_request_total code=503 rejected=true"}},
		{"failed, as the webhook said", false, &callError{"h", apierrors.NewInternalError(errors.New("x"))}, []string{"apiserver_admission_webhook_rejection_count error_type=calling_webhook_error rejection_code=500", "apiserver_admission_webhook_request_total code=500 rejected=true"}},
		{"failed open", true, &callError{"h", errors.New("no route")}, []string{"apiserver_admission_webhook_fail_open_count", "apiserver_admission_webhook_request_total code=503 rejected=false"}},
	} {
		t.Run(x.name, func(t *testing.T) {
			r := prometheus.NewRegistry()
			NewMetrics(r).called(&hook{name: "h", ignore: x.ignore}, "admit", rest.Create, time.Millisecond, x.err)
			families, err := r.Gather()
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, f := range families {
				if f.GetName() == "apiserver_admission_webhook_admission_duration_seconds" {
					continue
				}
				s := f.GetName()
				for _, l := range f.GetMetric()[0].GetLabel() {
					if n := l.GetName(); n != "name" && n != "type" && n != "operation" {
						s += " " + n + "=" + l.GetValue()
					}
				}
				got = append(got, s)
			}
			if slices.Sort(got); !slices.Equal(got, x.want) {
				t.Errorf("got %q, want %q", got, x.want)
			}
		})
	}
	var none *Metrics
	none.called(&hook{}, "admit", rest.Create, 0, nil)
}
