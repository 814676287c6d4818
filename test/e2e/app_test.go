//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const example = "../../examples/hello.yaml"

// TestExampleApplication is the example as its users meet it: applied, read through
// its Service in every way, scaled, updated and rolled back under load.
func TestExampleApplication(t *testing.T) {
	t.Parallel()
	n := inNamespace(t)
	n.kubectl("apply", "-f", example)
	n.kubectl("rollout", "status", "deployment/hello", "--timeout=60s")
	n.kubectl("run", "tools", "--image="+tools, "--", "sleep", "3600")
	n.ready("tools")
	if out := n.kubectl("get", "deployment", "hello", "--no-headers"); !strings.Contains(out, "3/3") {
		t.Errorf("deployment: %s", out)
	}

	clusterIP := "http://" + n.field("service/hello", ".spec.clusterIP") + "/"
	nodePort := "http://" + n.kubectl("get", "nodes", "-o", "jsonpath={.items[0].status.addresses[0].address}") + ":" + n.field("service/hello", ".spec.ports[0].nodePort") + "/"
	fromPod := func(url string) func() (string, error) {
		return func() (string, error) { return n.try("exec", "tools", "--", "hello", "get", url) }
	}
	const want = "good day (secret of 8 bytes)"
	n.says("the ClusterIP from the host", want, 10*time.Second, func() (string, error) { return get(clusterIP) })
	n.says("the NodePort from the host", want, 10*time.Second, func() (string, error) { return get(nodePort) })
	n.says("the ClusterIP from a pod", want, 10*time.Second, fromPod(clusterIP))
	n.says("the NodePort from a pod", want, 10*time.Second, fromPod(nodePort))
	for _, name := range []string{"hello", "hello." + n.name, "hello." + n.name + ".svc", "hello." + n.name + ".svc.cluster.local", "hello." + n.name + ".svc.cluster.local."} {
		n.says("the DNS name "+name, want, 10*time.Second, fromPod("http://"+name+"/"))
	}
	n.says("the API server knows the pod's account", "system:serviceaccount:"+n.name+":default", 10*time.Second, fromPod("https://kubernetes.default.svc/api/v1/namespaces/"+n.name+"/pods"))

	n.kubectl("wait", "--for=condition=Complete", "job/hello", "--timeout=60s")
	if out := n.kubectl("logs", "job/hello"); out != "the job is done\n" {
		t.Errorf("logs of the job: %q", out)
	}

	n.kubectl("scale", "deployment/hello", "--replicas=5")
	n.kubectl("rollout", "status", "deployment/hello", "--timeout=60s")
	n.kubectl("scale", "deployment/hello", "--replicas=3")
	n.says("scaled down", "3 3 3", 60*time.Second, func() (string, error) {
		return n.try("get", "deployment", "hello", "-o", "jsonpath={.status.replicas} {.status.readyReplicas} {.status.availableReplicas}")
	})

	// Load goes through the Service from several clients with a connection each time.
	load := newLoad(clusterIP)
	n.kubectl("set", "image", "deployment/hello", "hello=proa.example/hello:v2")
	n.kubectl("rollout", "status", "deployment/hello", "--timeout=120s")
	n.says("the new version", "hello v2", 10*time.Second, func() (string, error) { return get(clusterIP) })
	n.kubectl("rollout", "undo", "deployment/hello")
	n.kubectl("rollout", "status", "deployment/hello", "--timeout=120s")
	n.says("the old version", "hello v1", 10*time.Second, func() (string, error) { return get(clusterIP) })
	requests, failed := load.stop()
	if requests < 100 || len(failed) > 0 {
		t.Errorf("%d requests during the update and its undo, of which failed: %v", requests, failed)
	}
	t.Logf("%d requests during the update and its undo", requests)
	if out := n.kubectl("rollout", "history", "deployment/hello"); !strings.Contains(out, "2") || !strings.Contains(out, "3") || strings.Contains(out, "\n1 ") {
		t.Errorf("history: %s", out)
	}

	n.kubectl("delete", "-f", example, "--timeout=60s")
	n.says("what a Deployment made goes with it", "", 60*time.Second, func() (string, error) {
		out, err := n.try("get", "replicasets,pods,endpointslices,endpoints", "-l", "app=hello", "-o", "name")
		if err == nil && out != "" {
			err = fmt.Errorf("left: %s", out)
		}
		return out, err
	})
}

// load asks a URL all the time.
type load struct {
	cancel   context.CancelFunc
	wg       sync.WaitGroup
	requests atomic.Int64
	mu       sync.Mutex
	failed   []string
}

func newLoad(url string) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{cancel: cancel}
	for range 2 {
		l.wg.Go(func() {
			for ctx.Err() == nil {
				out, err := get(url)
				l.requests.Add(1)
				if err != nil || !strings.Contains(out, "hello v") {
					l.mu.Lock()
					l.failed = append(l.failed, fmt.Sprintf("%s %v %q", time.Now().Format(time.TimeOnly), err, out))
					l.mu.Unlock()
				}
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	return l
}

func (l *load) stop() (int64, []string) {
	l.cancel()
	l.wg.Wait()
	return l.requests.Load(), l.failed
}

// TestDrain is not parallel: it empties the only node.
func TestDrain(t *testing.T) {
	n := inNamespace(t)
	node := n.kubectl("get", "nodes", "-o", "jsonpath={.items[0].metadata.name}")
	n.kubectl("create", "deployment", "hello", "--image=proa.example/hello:v1", "--replicas=2")
	n.kubectl("rollout", "status", "deployment/hello", "--timeout=60s")
	n.kubectl("create", "poddisruptionbudget", "held", "--selector=app=hello", "--min-available=2")
	n.says("the budget is counted", "2 2 0", 10*time.Second, func() (string, error) {
		return n.try("get", "poddisruptionbudget", "held", "-o", "jsonpath={.status.currentHealthy} {.status.desiredHealthy} {.status.disruptionsAllowed}")
	})
	drain := []string{"drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--pod-selector=app=hello"}
	if out, err := n.try(append(drain, "--timeout=3s")...); err == nil || !strings.Contains(out, "Cannot evict pod as it would violate the pod's disruption budget.") {
		t.Errorf("drain against the budget: %v", err)
	}
	n.kubectl("delete", "poddisruptionbudget", "held")
	n.kubectl(append(drain, "--timeout=60s")...)
	if out := n.kubectl("get", "node", node, "--no-headers"); !strings.Contains(out, "Ready,SchedulingDisabled") {
		t.Errorf("the node: %s", out)
	}
	n.says("the pods wait", "Pending Pending", 20*time.Second, func() (string, error) {
		return n.try("get", "pods", "-o", "jsonpath={.items[*].status.phase}")
	})
	n.says("and say why", "1 node(s) were unschedulable", 10*time.Second, func() (string, error) { return n.try("get", "events") })
	n.kubectl("uncordon", node)
	n.kubectl("rollout", "status", "deployment/hello", "--timeout=60s")
}

func TestDeleteOfANamespace(t *testing.T) {
	t.Parallel()
	n := inNamespace(t)
	other := n.name + "-gone"
	n.kubectl("create", "namespace", other)
	n.says("the service account", "default", 10*time.Second, func() (string, error) { return try("kubectl", "-n", other, "get", "serviceaccount", "default") })
	for _, args := range [][]string{
		{"create", "deployment", "web", "--image=proa.example/hello:v1", "--replicas=2"},
		{"create", "configmap", "c", "--from-literal=a=b"},
		{"create", "job", "j", "--image=" + tools, "--", "sleep", "1000"},
		{"create", "service", "clusterip", "web", "--tcp=80:8080"},
	} {
		if out, err := try("kubectl", append([]string{"-n", other}, args...)...); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	n.kubectl("delete", "namespace", other, "--timeout=90s")
	if _, err := n.try("get", "namespace", other); err == nil {
		t.Error("the namespace is left")
	}
	for _, kind := range []string{"pods", "deployments", "replicasets", "jobs", "configmaps", "services", "endpointslices", "events", "serviceaccounts"} {
		if out, err := try("kubectl", "-n", other, "get", kind, "-o", "name"); err != nil || out != "" {
			t.Errorf("%s are left: %v %s", kind, err, out)
		}
	}
}

func TestApplyDiffExplainAndServerSideApply(t *testing.T) {
	t.Parallel()
	n := inNamespace(t)
	manifest := func(value string) string {
		return writeFile(t, "c.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {a: "+value+"}\n")
	}
	n.kubectl("apply", "-f", manifest("one"))
	out, err := n.try("diff", "-f", manifest("two"))
	if err == nil || !strings.Contains(out, "-  a: one") || !strings.Contains(out, "+  a: two") {
		t.Errorf("diff: %v", err)
	}
	if out := n.kubectl("apply", "-f", manifest("two")); out != "configmap/c configured\n" {
		t.Errorf("apply: %q", out)
	}
	if out := n.kubectl("apply", "-f", manifest("two")); out != "configmap/c unchanged\n" {
		t.Errorf("apply again: %q", out)
	}
	server := writeFile(t, "s.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: s}\ndata: {a: one}\n")
	n.kubectl("apply", "--server-side", "--field-manager=first", "-f", server)
	clash := writeFile(t, "s.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: s}\ndata: {a: two}\n")
	if _, err := n.try("apply", "--server-side", "--field-manager=second", "-f", clash); err == nil || !strings.Contains(err.Error(), `Apply failed with 1 conflict: conflict with "first": .data.a`) {
		t.Errorf("a conflict: %v", err)
	}
	n.kubectl("apply", "--server-side", "--force-conflicts", "--field-manager=second", "-f", clash)
	if out := n.field("configmap/s", ".data.a"); out != "two" {
		t.Errorf("after force: %s", out)
	}
	if out := n.kubectl("explain", "deployment.spec.strategy.rollingUpdate.maxSurge"); !strings.Contains(out, "maximum number of pods that can be scheduled above the desired number of") {
		t.Errorf("explain: %s", out)
	}
	if out, _ := try("kubectl", "-n", n.name, "auth", "can-i", "get", "pods", "--as=system:serviceaccount:"+n.name+":default"); out != "no\n" {
		t.Errorf("can-i: %q", out)
	}
}
