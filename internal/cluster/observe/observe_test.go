package observe

import (
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/util/workqueue"

	"github.com/proa-dev/proa/internal/store/memory"
)

func scrape(t *testing.T, r *prometheus.Registry) string {
	t.Helper()
	w := httptest.NewRecorder()
	promhttp.HandlerFor(r, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	return w.Body.String()
}

func has(t *testing.T, text string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(text, w) {
			t.Errorf("no %q in\n%s", w, text)
		}
	}
}

func TestTheStoreIsMeasuredByOperationAndResource(t *testing.T) {
	reg := Registry("v1.37.2")
	inner := memory.New()
	st := Store(inner, reg)
	st.Names(map[string]schema.GroupResource{"/registry/minions/": {Resource: "nodes"}, "/registry/deployments/": {Group: "apps", Resource: "deployments"}})
	ctx := t.Context()
	revision, err := st.Create(ctx, "/registry/pods/default/a", []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.Update(ctx, "/registry/pods/default/a", []byte("y"), revision+7); err == nil { // a conflict is an answer
		t.Fatal("no conflict")
	}
	if _, _, err := st.Get(ctx, "/registry/apps.example.com/widgets/default/b"); err == nil {
		t.Fatal("found")
	}
	for _, key := range []string{"/registry/minions/n", "/registry/deployments/default/d"} {
		if _, err := st.Create(ctx, key, nil); err != nil {
			t.Fatal(err)
		}
	}
	inner.Close()
	if _, _, err := st.Get(ctx, "/registry/pods/default/a"); err == nil {
		t.Fatal("a closed store answers")
	}
	has(t, scrape(t, reg),
		`etcd_requests_total{group="",operation="create",resource="pods"} 1`,
		`etcd_requests_total{group="apps.example.com",operation="get",resource="widgets"} 1`,
		`etcd_requests_total{group="",operation="create",resource="nodes"} 1`, `etcd_requests_total{group="apps",operation="create",resource="deployments"} 1`,
		`etcd_request_errors_total{group="",operation="update",resource="pods"} 0`,
		`etcd_request_errors_total{group="",operation="get",resource="pods"} 1`,
		`etcd_request_duration_seconds_count{group="",operation="create",resource="pods"} 1`,
		`process_resident_memory_bytes`, `go_goroutines`, `kubernetes_build_info{git_version="v1.37.2"`)
}

func TestQueuesAreMeasured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := prometheus.NewRegistry()
		q := workqueue.NewTypedRateLimitingQueueWithConfig(workqueue.DefaultTypedControllerRateLimiter[string](),
			workqueue.TypedRateLimitingQueueConfig[string]{Name: "deployment", MetricsProvider: Queues(reg)})
		q.Add("a")
		q.Add("b")
		time.Sleep(time.Second)
		key, _ := q.Get()
		time.Sleep(2 * time.Second)
		q.Done(key)
		has(t, scrape(t, reg), `workqueue_depth{name="deployment"} 1`, `workqueue_adds_total{name="deployment"} 2`,
			`workqueue_queue_duration_seconds_sum{name="deployment"} 1`, `workqueue_work_duration_seconds_sum{name="deployment"} 2`)
		q.ShutDown()
	})
}

func TestReadyWaitsForTheStoreAndTheFirstObjects(t *testing.T) {
	st, started := memory.New(), &Started{}
	failing := func() (names []string) {
		for _, c := range Checks(st, started) {
			if c.Check(t.Context()) != nil {
				names = append(names, c.Name)
			}
		}
		return names
	}
	if got := failing(); len(got) != 3 || got[1] != "poststarthook/rbac/bootstrap-roles" {
		t.Errorf("before the first objects: %v", got)
	}
	started.Done()
	if got := failing(); got != nil {
		t.Errorf("ready: %v", got)
	}
	st.Close()
	if got := failing(); len(got) != 2 || got[0] != "etcd" || got[1] != "etcd-readiness" {
		t.Errorf("without the store: %v", got)
	}
}
