package kubelet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/kubelet/internal/apifake"
	"github.com/proa-dev/proa/internal/kubelet/internal/crifake"
)

type recorder struct {
	mu     sync.Mutex
	events []string
}

func (r *recorder) Eventf(obj client.Object, eventType, reason, format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, obj.GetName()+" "+eventType+" "+reason+" "+fmt.Sprintf(format, args...))
}

func (r *recorder) has(t *testing.T, want string) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		if strings.Contains(e, want) {
			return
		}
	}
	t.Errorf("no event %q in:\n%s", want, strings.Join(r.events, "\n"))
}

type world struct {
	t      *testing.T
	api    *apifake.Client
	rt     *crifake.Runtime
	rec    *recorder
	dir    string
	stop   func()
	k      *Kubelet
	labels map[string]string
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, api: apifake.New(), rt: crifake.New(), rec: &recorder{}, dir: t.TempDir()}
	w.rt.AddImage("app:1")
	return w
}

func (w *world) start() {
	w.t.Helper()
	k, err := New(Config{
		NodeName: "n1", NodeIPs: []string{"192.0.2.1"}, Client: w.api, Runtime: w.rt, Images: w.rt,
		RootDir: filepath.Join(w.dir, "kubelet"), LogDir: filepath.Join(w.dir, "logs"), ClusterDNS: []string{"10.96.0.10"},
		CPUs: 4, Memory: 8 << 30, Recorder: w.rec, NoMounts: true, Labels: w.labels,
		Logger: slog.New(slog.NewTextHandler(w.t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.k = k
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	w.stop = func() {
		w.t.Helper()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			w.t.Errorf("Run: %v", err)
		}
	}
	<-k.Synced()
}

func run(t *testing.T, f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		f(w)
		if w.stop != nil {
			w.stop()
		}
	})
}

func newPod(name string, change ...func(*corev1.Pod)) *corev1.Pod {
	grace := int64(30)
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"},
		Spec: corev1.PodSpec{
			NodeName: "n1", RestartPolicy: corev1.RestartPolicyAlways, TerminationGracePeriodSeconds: &grace, DNSPolicy: corev1.DNSClusterFirst,
			Containers: []corev1.Container{{Name: "app", Image: "app:1", ImagePullPolicy: corev1.PullIfNotPresent, TerminationMessagePath: "/dev/termination-log"}},
		},
		Status: corev1.PodStatus{Phase: corev1.PodPending, Conditions: []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionTrue}}},
	}
	for _, f := range change {
		f(p)
	}
	return p
}

func (w *world) create(p *corev1.Pod) *corev1.Pod {
	w.t.Helper()
	got, err := client.Pods.Create(context.Background(), w.api, p)
	if err != nil {
		w.t.Fatal(err)
	}
	return got
}

func (w *world) get(name string) *corev1.Pod {
	w.t.Helper()
	p, err := client.Pods.Get(context.Background(), w.api, "default", name)
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

// sleep lets time pass, and all that follows from it.
func sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func condition(p *corev1.Pod, c corev1.PodConditionType) string {
	for _, x := range p.Status.Conditions {
		if x.Type == c {
			return strings.TrimSpace(string(x.Status) + " " + x.Reason + " " + x.Message)
		}
	}
	return ""
}

func TestNodeBecomesReadyAndKeepsItsLease(t *testing.T) {
	run(t, func(w *world) {
		begin := time.Now()
		w.start()
		synctest.Wait()
		n, err := client.Nodes.Get(context.Background(), w.api, "", "n1")
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took > 100*time.Millisecond {
			t.Errorf("ready after %v", took)
		}
		var types []string
		for _, c := range n.Status.Conditions {
			types = append(types, fmt.Sprintf("%s=%s %s", c.Type, c.Status, c.Reason))
		}
		want := []string{"MemoryPressure=False KubeletHasSufficientMemory", "DiskPressure=False KubeletHasNoDiskPressure", "PIDPressure=False KubeletHasSufficientPID", "Ready=True KubeletReady"}
		if !slices.Equal(types, want) {
			t.Errorf("conditions %q, want %q", types, want)
		}
		if q := n.Status.Capacity.Cpu(); q.Value() != 4 {
			t.Errorf("cpu capacity %v", q)
		}
		if n.Labels[corev1.LabelHostname] != "n1" || n.Status.NodeInfo.ContainerRuntimeVersion != "fake://1" {
			t.Errorf("labels %v, info %+v", n.Labels, n.Status.NodeInfo)
		}
		first, err := client.Leases.Get(context.Background(), w.api, "kube-node-lease", "n1")
		if err != nil {
			t.Fatal(err)
		}
		sleep(11 * time.Second)
		second, _ := client.Leases.Get(context.Background(), w.api, "kube-node-lease", "n1")
		if d := second.Spec.RenewTime.Sub(first.Spec.RenewTime.Time); d != 10*time.Second {
			t.Errorf("renewed after %v", d)
		}
	})
}

func TestPodRunsAndIsDeleted(t *testing.T) {
	run(t, func(w *world) {
		w.start()
		w.create(newPod("web"))
		synctest.Wait()
		p := w.get("web")
		if p.Status.Phase != corev1.PodRunning || p.Status.PodIP == "" || p.Status.HostIP != "192.0.2.1" {
			t.Fatalf("status %+v", p.Status)
		}
		cs := p.Status.ContainerStatuses[0]
		if !cs.Ready || cs.State.Running == nil || !strings.HasPrefix(cs.ContainerID, "proa://") || cs.Started == nil || !*cs.Started {
			t.Errorf("container status %+v", cs)
		}
		for _, c := range []corev1.PodConditionType{corev1.PodReady, corev1.ContainersReady, corev1.PodInitialized, corev1.PodReadyToStartContainers, corev1.PodScheduled} {
			if got := condition(p, c); got != "True" {
				t.Errorf("condition %s = %q", c, got)
			}
		}
		// One is the rule; a slow machine may see the sandbox before the container.
		if w.api.StatusWrites > 2 {
			t.Errorf("%d status writes for a start, want 1", w.api.StatusWrites)
		}
		for _, e := range []string{"Normal Pulled Container image \"app:1\" already present", "Normal Created Container created", "Normal Started Container started"} {
			w.rec.has(t, e)
		}
		if err := client.Pods.Delete(context.Background(), w.api, "default", "web", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		sleep(time.Second)
		if _, err := client.Pods.Get(context.Background(), w.api, "default", "web"); err == nil {
			t.Error("the pod is still there")
		}
		if n := w.rt.Sandboxes(); n != 0 {
			t.Errorf("%d sandboxes left: %q", n, w.rt.Log())
		}
		w.rec.has(t, "Normal Killing Stopping container app")
		left, _ := os.ReadDir(filepath.Join(w.dir, "kubelet", "pods"))
		logsLeft, _ := os.ReadDir(filepath.Join(w.dir, "logs"))
		if len(left)+len(logsLeft) != 0 {
			t.Errorf("left behind: %v %v", left, logsLeft)
		}
	})
}
