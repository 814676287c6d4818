package kubelet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/kubelet/internal/crifake"
)

func restartPolicy(r corev1.RestartPolicy) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Spec.RestartPolicy = r }
}

func scripts(m map[string]crifake.Script) func(string, uint32) crifake.Script {
	return func(name string, _ uint32) crifake.Script { return m[name] }
}

func (w *world) delete(name string, grace int64) {
	w.t.Helper()
	opts := metav1.DeleteOptions{}
	if grace >= 0 {
		opts.GracePeriodSeconds = &grace
	}
	if err := client.Pods.Delete(context.Background(), w.api, "default", name, opts); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) exists(name string) bool {
	_, err := client.Pods.Get(context.Background(), w.api, "default", name)
	return err == nil
}

func TestCrashLoopBacksOffFromTenSecondsToFiveMinutes(t *testing.T) {
	run(t, func(w *world) {
		w.rt.Script = scripts(map[string]crifake.Script{"app": {Exit: time.Second, Code: 1}})
		w.start()
		p := w.create(newPod("web"))
		sleep(2500 * time.Millisecond) // ran 1 s, restarted at once, ran 1 s
		got := w.get("web")
		cs := got.Status.ContainerStatuses[0]
		if cs.RestartCount != 1 || cs.State.Waiting == nil || cs.State.Waiting.Reason != "CrashLoopBackOff" {
			t.Fatalf("after the second exit: %+v", cs)
		}
		want := fmt.Sprintf("back-off 10s restarting failed container=app pod=web_default(%s)", p.UID)
		if cs.State.Waiting.Message != want {
			t.Errorf("message %q, want %q", cs.State.Waiting.Message, want)
		}
		if l := cs.LastTerminationState.Terminated; l == nil || l.ExitCode != 1 || l.Reason != "Error" {
			t.Errorf("last state %+v", l)
		}
		if got.Status.Phase != corev1.PodRunning {
			t.Errorf("phase %s", got.Status.Phase)
		}
		if c := condition(got, corev1.PodReady); c != "False ContainersNotReady containers with unready status: [app]" {
			t.Errorf("Ready = %q", c)
		}
		w.rec.has(t, "Warning BackOff Back-off restarting failed container app in pod web_default(")
		// 10, 20, 40, 80, 160, 300 s, each after a second's run.
		for i, d := range []int{10, 20, 40, 80, 160, 300, 300} {
			sleep(time.Duration(d)*time.Second - 600*time.Millisecond)
			if n := w.get("web").Status.ContainerStatuses[0].RestartCount; int(n) != i+1 {
				t.Errorf("restart %d came too early (back-off %d s): count %d", i+2, d, n)
			}
			sleep(1600 * time.Millisecond)
			if n := w.get("web").Status.ContainerStatuses[0].RestartCount; int(n) != i+2 {
				t.Errorf("restart %d did not come after %d s: count %d", i+2, d, n)
			}
		}
		if n := len(w.rt.Log()); n > 60 {
			t.Errorf("%d runtime calls", n)
		}
	})
}

func TestPhaseIsFinal(t *testing.T) {
	for _, tc := range []struct {
		name   string
		policy corev1.RestartPolicy
		code   int32
		phase  corev1.PodPhase
		reason string
	}{
		{"never succeeds", corev1.RestartPolicyNever, 0, corev1.PodSucceeded, "PodCompleted"},
		{"never fails", corev1.RestartPolicyNever, 3, corev1.PodFailed, "PodFailed"},
		{"on failure succeeds", corev1.RestartPolicyOnFailure, 0, corev1.PodSucceeded, "PodCompleted"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			run(t, func(w *world) {
				w.rt.Script = scripts(map[string]crifake.Script{"app": {Exit: time.Second, Code: tc.code}})
				w.start()
				w.create(newPod("job", restartPolicy(tc.policy)))
				sleep(3 * time.Second)
				p := w.get("job")
				if p.Status.Phase != tc.phase {
					t.Fatalf("phase %s, want %s", p.Status.Phase, tc.phase)
				}
				if c := condition(p, corev1.PodReady); c != "False "+tc.reason {
					t.Errorf("Ready = %q", c)
				}
				term := p.Status.ContainerStatuses[0].State.Terminated
				if term == nil || term.ExitCode != tc.code || p.Status.PodIP == "" {
					t.Errorf("status %+v", p.Status)
				}
				if condition(p, corev1.PodReadyToStartContainers) != "False" {
					t.Errorf("PodReadyToStartContainers = %q", condition(p, corev1.PodReadyToStartContainers))
				}
				// A restart of the kubelet does not run it again.
				w.stop()
				w.start()
				sleep(time.Minute)
				if p := w.get("job"); p.Status.Phase != tc.phase || len(w.rt.Running()) != 0 {
					t.Errorf("after a restart: phase %s, running %v", p.Status.Phase, w.rt.Running())
				}
				w.delete("job", -1)
				sleep(time.Second)
				if w.exists("job") || w.rt.Sandboxes() != 0 {
					t.Error("not removed")
				}
			})
		})
	}
}

func TestInitContainersRunInOrderAndSidecarsStopLast(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	run(t, func(w *world) {
		w.rt.Script = scripts(map[string]crifake.Script{"first": {Exit: time.Second}, "second": {Exit: 2 * time.Second}, "app": {StopTakes: 3 * time.Second}})
		w.start()
		w.create(newPod("web", func(p *corev1.Pod) {
			p.Spec.InitContainers = []corev1.Container{
				{Name: "first", Image: "app:1"},
				{Name: "proxy", Image: "app:1", RestartPolicy: &always},
				{Name: "logger", Image: "app:1", RestartPolicy: &always},
				{Name: "second", Image: "app:1"},
			}
		}))
		sleep(500 * time.Millisecond)
		p := w.get("web")
		if c := condition(p, corev1.PodInitialized); c != "False ContainersNotInitialized containers with incomplete status: [first proxy logger second]" {
			t.Errorf("Initialized = %q", c)
		}
		if r := p.Status.ContainerStatuses[0].State.Waiting; r == nil || r.Reason != "PodInitializing" || p.Status.Phase != corev1.PodPending {
			t.Errorf("app waits for %+v, phase %s", r, p.Status.Phase)
		}
		sleep(4 * time.Second)
		if got := w.rt.Running(); !slices.Equal(got, []string{"app/0", "logger/0", "proxy/0"}) {
			t.Fatalf("running %v", got)
		}
		if p := w.get("web"); p.Status.Phase != corev1.PodRunning || condition(p, corev1.PodReady) != "True" {
			t.Errorf("phase %s, ready %q", p.Status.Phase, condition(p, corev1.PodReady))
		}
		var starts []string
		for _, c := range w.rt.Log() {
			if s, ok := strings.CutPrefix(c, "StartContainer "); ok {
				starts = append(starts, s)
			}
		}
		if want := []string{"first/0", "proxy/0", "logger/0", "second/0", "app/0"}; !slices.Equal(starts, want) {
			t.Errorf("started %v, want %v", starts, want)
		}
		w.delete("web", -1)
		sleep(time.Second)
		if got := w.rt.Running(); !slices.Equal(got, []string{"app/0", "logger/0", "proxy/0"}) {
			t.Errorf("sidecars must outlive the app: %v", got)
		}
		sleep(5 * time.Second)
		if w.exists("web") {
			t.Error("not deleted")
		}
		var stops []string
		for _, c := range w.rt.Log() {
			if s, ok := strings.CutPrefix(c, "StopContainer "); ok {
				stops = append(stops, s)
			}
		}
		if want := []string{"app/0 30s", "logger/0 27s", "proxy/0 27s"}; !slices.Equal(stops, want) {
			t.Errorf("stopped %v, want %v", stops, want)
		}
	})
}

func TestSidecarDoesNotKeepAJobFromEnding(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	run(t, func(w *world) {
		w.rt.Script = scripts(map[string]crifake.Script{"app": {Exit: time.Second}})
		w.start()
		w.create(newPod("job", restartPolicy(corev1.RestartPolicyNever), func(p *corev1.Pod) {
			p.Spec.InitContainers = []corev1.Container{{Name: "proxy", Image: "app:1", RestartPolicy: &always}}
		}))
		sleep(3 * time.Second)
		if p := w.get("job"); p.Status.Phase != corev1.PodSucceeded {
			t.Errorf("phase %s", p.Status.Phase)
		}
	})
}

func TestFailedInitContainer(t *testing.T) {
	run(t, func(w *world) {
		w.rt.Script = scripts(map[string]crifake.Script{"init": {Exit: time.Second, Code: 2}})
		w.start()
		w.create(newPod("web", restartPolicy(corev1.RestartPolicyNever), func(p *corev1.Pod) {
			p.Spec.InitContainers = []corev1.Container{{Name: "init", Image: "app:1"}}
		}))
		sleep(3 * time.Second)
		p := w.get("web")
		if p.Status.Phase != corev1.PodFailed {
			t.Errorf("phase %s", p.Status.Phase)
		}
		if c := condition(p, corev1.PodInitialized); c != "False ContainersNotInitialized containers with incomplete status: [init]" {
			t.Errorf("Initialized = %q", c)
		}
		if r := p.Status.ContainerStatuses[0].State.Waiting; r == nil || r.Reason != "PodInitializing" {
			t.Errorf("app: %+v", p.Status.ContainerStatuses[0].State)
		}
	})
}

func TestImagePullFailures(t *testing.T) {
	run(t, func(w *world) {
		var broken atomic.Bool
		broken.Store(true)
		w.rt.Pull = func(image string, _ *runtimeapi.AuthConfig) error {
			if broken.Load() {
				return errors.New("no such image")
			}
			return nil
		}
		w.start()
		w.create(newPod("web", func(p *corev1.Pod) { p.Spec.Containers[0].Image = "gone:2" }))
		w.create(newPod("never", func(p *corev1.Pod) {
			p.Spec.Containers[0].Image, p.Spec.Containers[0].ImagePullPolicy = "gone:2", corev1.PullNever
		}))
		w.create(newPod("invalid", func(p *corev1.Pod) { p.Spec.Containers[0].Image = "Not Valid" }))
		sleep(time.Second)
		for name, want := range map[string]string{
			"web":     "ImagePullBackOff Back-off pulling image \"gone:2\": ErrImagePull: no such image",
			"never":   "ErrImageNeverPull Container image \"gone:2\" is not present with pull policy of Never",
			"invalid": "InvalidImageName Failed to apply default image tag \"Not Valid\": couldn't parse image name \"Not Valid\": invalid reference format: repository name (library/Not Valid) must be lowercase",
		} {
			w := w.get(name).Status.ContainerStatuses[0].State.Waiting
			if got := w.Reason + " " + w.Message; got != want {
				t.Errorf("%s: %q, want %q", name, got, want)
			}
		}
		w.rec.has(t, `web Warning Failed Failed to pull image "gone:2": no such image`)
		w.rec.has(t, "web Warning Failed Error: ErrImagePull")
		w.rec.has(t, `web Normal BackOff Back-off pulling image "gone:2"`)
		broken.Store(false)
		sleep(10 * time.Second)
		if p := w.get("web"); p.Status.Phase != corev1.PodRunning {
			t.Errorf("after the back-off: %+v", p.Status.ContainerStatuses[0].State)
		}
		w.rec.has(t, `web Normal Pulled Successfully pulled image "gone:2"`)
	})
}

func TestMissingConfigMapHoldsThePodUntilItExists(t *testing.T) {
	run(t, func(w *world) {
		w.start()
		w.create(newPod("vol", func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{Name: "cfg", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "conf"}}}}}
			p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "cfg", MountPath: "/cfg"}}
		}))
		w.create(newPod("env", func(p *corev1.Pod) {
			p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "A", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "conf"}, Key: "a"}}}}
		}))
		sleep(time.Second)
		w.rec.has(t, `vol Warning FailedMount MountVolume.SetUp failed for volume "cfg" : configmap "conf" not found`)
		w.rec.has(t, `env Warning Failed Error: configmap "conf" not found`)
		if s := w.get("env").Status.ContainerStatuses[0].State.Waiting; s.Reason != "CreateContainerConfigError" || s.Message != `configmap "conf" not found` {
			t.Errorf("env waits for %+v", s)
		}
		if s := w.get("vol").Status.ContainerStatuses[0].State.Waiting; s.Reason != "ContainerCreating" {
			t.Errorf("vol waits for %+v", s)
		}
		cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "conf"}, Data: map[string]string{"a": "1"}}
		cm, err := client.ConfigMaps.Create(context.Background(), w.api, cm)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // no time passes: the change itself wakes the pods
		for _, n := range []string{"vol", "env"} {
			if p := w.get(n); p.Status.Phase != corev1.PodRunning {
				t.Errorf("%s: %+v", n, p.Status.ContainerStatuses[0].State)
			}
		}
		file := filepath.Join(w.dir, "kubelet", "pods", string(w.get("vol").UID), "volumes", "kubernetes.io~configmap", "cfg", "a")
		if b, err := os.ReadFile(file); err != nil || string(b) != "1" {
			t.Fatalf("%q %v", b, err)
		}
		cm.Data = map[string]string{"a": "2"}
		if _, err := client.ConfigMaps.Update(context.Background(), w.api, cm); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if b, err := os.ReadFile(file); err != nil || string(b) != "2" {
			t.Errorf("after the update: %q %v", b, err)
		}
	})
}

func TestTokensAreRotated(t *testing.T) {
	run(t, func(w *world) {
		w.start()
		p := w.create(newPod("web", func(p *corev1.Pod) {
			secs := int64(3600)
			p.Spec.Volumes = []corev1.Volume{{Name: "tok", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", ExpirationSeconds: &secs}}}}}}}
			p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "tok", MountPath: "/tok", ReadOnly: true}}
		}))
		synctest.Wait()
		file := filepath.Join(w.dir, "kubelet", "pods", string(p.UID), "volumes", "kubernetes.io~projected", "tok", "token")
		read := func() string { b, _ := os.ReadFile(file); return string(b) }
		if read() != "token-1" {
			t.Fatalf("token %q", read())
		}
		sleep(47 * time.Minute)
		if read() != "token-1" {
			t.Errorf("rotated early: %q", read())
		}
		sleep(2 * time.Minute)
		if read() != "token-2" {
			t.Errorf("not rotated after 80%%: %q", read())
		}
	})
}

func TestProbes(t *testing.T) {
	probe := func(name string, change ...func(*corev1.Probe)) *corev1.Probe {
		p := &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{name}}}, PeriodSeconds: 10, TimeoutSeconds: 1, SuccessThreshold: 1, FailureThreshold: 3}
		for _, f := range change {
			f(p)
		}
		return p
	}
	run(t, func(w *world) {
		healthy := map[string]bool{"startup": false, "ready": false, "live": true}
		var asked []string
		var mu sync.Mutex
		set := func(what string, ok bool) {
			mu.Lock()
			healthy[what] = ok
			mu.Unlock()
		}
		w.rt.Script = func(string, uint32) crifake.Script {
			return crifake.Script{Exec: func(cmd []string) (int32, string, error) {
				mu.Lock()
				defer mu.Unlock()
				asked = append(asked, cmd[0])
				if healthy[cmd[0]] {
					return 0, "", nil
				}
				return 1, "not yet", nil
			}}
		}
		w.start()
		w.create(newPod("web", func(p *corev1.Pod) {
			c := &p.Spec.Containers[0]
			c.StartupProbe = probe("startup", func(p *corev1.Probe) { p.FailureThreshold = 10 })
			c.ReadinessProbe, c.LivenessProbe = probe("ready"), probe("live")
		}))
		sleep(25 * time.Second)
		if slices.Contains(asked, "ready") || slices.Contains(asked, "live") {
			t.Errorf("probed before the start was seen: %v", asked)
		}
		if cs := w.get("web").Status.ContainerStatuses[0]; *cs.Started || cs.Ready {
			t.Errorf("status %+v", cs)
		}
		w.rec.has(t, "Warning Unhealthy Startup probe failed: not yet")
		set("startup", true)
		sleep(10 * time.Second)
		if cs := w.get("web").Status.ContainerStatuses[0]; !*cs.Started || cs.Ready {
			t.Errorf("started, not ready: %+v", cs)
		}
		set("ready", true)
		sleep(10 * time.Second)
		if p := w.get("web"); condition(p, corev1.PodReady) != "True" {
			t.Errorf("not ready: %q", condition(p, corev1.PodReady))
		}
		set("ready", false)
		sleep(21 * time.Second)
		if p := w.get("web"); condition(p, corev1.PodReady) != "True" {
			t.Error("unready before the failure threshold")
		}
		sleep(10 * time.Second)
		if p := w.get("web"); condition(p, corev1.PodReady) == "True" {
			t.Error("ready after three failures")
		}
		set("live", false)
		sleep(31 * time.Second)
		w.rec.has(t, "Normal Killing Container app failed liveness probe, will be restarted")
		if cs := w.get("web").Status.ContainerStatuses[0]; cs.RestartCount != 1 {
			t.Errorf("restarts %d", cs.RestartCount)
		}
	})
}

func TestTermination(t *testing.T) {
	run(t, func(w *world) {
		w.rt.Script = scripts(map[string]crifake.Script{"app": {StopTakes: time.Hour}})
		w.start()
		hooked := func(secs int64) func(*corev1.Pod) {
			return func(p *corev1.Pod) {
				p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: secs}}}
			}
		}
		w.create(newPod("slow", hooked(10)))
		w.create(newPod("slower", hooked(60)))
		w.create(newPod("short"))
		sleep(time.Second)
		begin := time.Now()
		for _, n := range []string{"slow", "slower", "short"} {
			w.delete(n, -1)
		}
		sleep(5 * time.Second)
		w.delete("short", 2) // a second, shorter grace counts
		sleep(3 * time.Second)
		if w.exists("short") {
			t.Error("the shorter grace was not heeded")
		}
		sleep(21*time.Second + time.Until(begin.Add(8*time.Second)))
		if !w.exists("slow") || !w.exists("slower") {
			t.Error("gone before the grace was over")
		}
		sleep(2 * time.Second)
		if w.exists("slow") {
			t.Error("slow: 30 s of grace are over")
		}
		sleep(2 * time.Second)
		if w.exists("slower") {
			t.Error("slower: the hook took all, two seconds remain")
		}
		log := strings.Join(w.rt.Log(), "\n")
		if !strings.Contains(log, "StopContainer app/0 20s") {
			t.Errorf("the hook's time counts:\n%s", log)
		}
		w.rec.has(t, "slower Warning FailedPreStopHook PreStopHook failed")
	})
}

func TestForcedDeletionStopsTheContainers(t *testing.T) {
	run(t, func(w *world) {
		w.start()
		w.create(newPod("web"))
		sleep(time.Second)
		w.delete("web", 0)
		sleep(2 * time.Second)
		if len(w.rt.Running()) != 0 || w.rt.Sandboxes() != 0 {
			t.Errorf("running %v, %d sandboxes", w.rt.Running(), w.rt.Sandboxes())
		}
	})
}

func TestActiveDeadline(t *testing.T) {
	run(t, func(w *world) {
		w.start()
		secs := int64(5)
		w.create(newPod("web", func(p *corev1.Pod) { p.Spec.ActiveDeadlineSeconds = &secs }))
		sleep(4 * time.Second)
		if p := w.get("web"); p.Status.Phase != corev1.PodRunning {
			t.Fatalf("phase %s", p.Status.Phase)
		}
		sleep(2 * time.Second)
		p := w.get("web")
		if p.Status.Phase != corev1.PodFailed || p.Status.Reason != "DeadlineExceeded" || p.Status.Message != "Pod was active on the node longer than the specified deadline" {
			t.Errorf("status %s %s %s", p.Status.Phase, p.Status.Reason, p.Status.Message)
		}
	})
}

func TestHooksAfterTheStart(t *testing.T) {
	run(t, func(w *world) {
		var fail atomic.Bool
		fail.Store(true)
		w.rt.Script = func(string, uint32) crifake.Script {
			return crifake.Script{Exec: func([]string) (int32, string, error) {
				if fail.Load() {
					return 1, "no", nil
				}
				return 0, "", nil
			}}
		}
		w.start()
		w.create(newPod("web", func(p *corev1.Pod) {
			p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"x"}}}}
		}))
		sleep(time.Second)
		w.rec.has(t, "Warning FailedPostStartHook PostStartHook failed")
		fail.Store(false)
		sleep(30 * time.Second)
		if p := w.get("web"); condition(p, corev1.PodReady) != "True" || p.Status.ContainerStatuses[0].RestartCount == 0 {
			t.Errorf("status %+v", p.Status.ContainerStatuses[0])
		}
	})
}

func TestKubeletTakesOverWhatRuns(t *testing.T) {
	run(t, func(w *world) {
		w.rt.Script = func(_ string, attempt uint32) crifake.Script {
			if attempt == 0 {
				return crifake.Script{Exit: time.Second, Code: 1}
			}
			return crifake.Script{}
		}
		w.start()
		w.create(newPod("web"))
		w.create(newPod("dies"))
		w.create(newPod("goes"))
		w.create(newPod("forced"))
		sleep(5 * time.Second)
		before := w.get("web").Status.ContainerStatuses[0]
		if before.RestartCount != 1 || len(w.rt.Running()) != 4 {
			t.Fatalf("status %+v, running %v", before, w.rt.Running())
		}
		w.stop()
		if len(w.rt.Running()) != 4 {
			t.Fatalf("running after the stop: %v", w.rt.Running())
		}
		sleep(time.Minute)
		w.delete("goes", -1)
		w.delete("forced", 0)
		for name, p := range map[string]*corev1.Pod{"dies": w.get("dies")} {
			w.rt.Kill(strings.TrimPrefix(p.Status.ContainerStatuses[0].ContainerID, "proa://"), 9)
			_ = name
		}
		calls := len(w.rt.Log())
		w.start()
		sleep(2 * time.Second)
		after := w.get("web").Status.ContainerStatuses[0]
		if after.ContainerID != before.ContainerID || after.RestartCount != 1 || !after.Ready {
			t.Errorf("before %+v\nafter %+v", before, after)
		}
		if d := w.get("dies").Status.ContainerStatuses[0]; d.RestartCount != 2 || d.LastTerminationState.Terminated == nil || d.LastTerminationState.Terminated.ExitCode != 9 {
			t.Errorf("died meanwhile: %+v", d)
		}
		if w.exists("goes") || w.rt.Sandboxes() != 2 {
			t.Errorf("deleted meanwhile: %d sandboxes, %q", w.rt.Sandboxes(), w.rt.Log()[calls:])
		}
		dirs, _ := os.ReadDir(filepath.Join(w.dir, "kubelet", "pods"))
		if len(dirs) != 2 {
			t.Errorf("%d pod directories", len(dirs))
		}
	})
}

func TestDeadSandboxIsReplaced(t *testing.T) {
	run(t, func(w *world) {
		w.start()
		w.create(newPod("web"))
		sleep(time.Second)
		ip := w.get("web").Status.PodIP
		w.rt.FailSandbox("web")
		sleep(time.Second)
		p := w.get("web")
		if p.Status.PodIP == ip || p.Status.Phase != corev1.PodRunning || condition(p, corev1.PodReady) != "True" || p.Status.ContainerStatuses[0].RestartCount != 1 {
			t.Errorf("status %+v", p.Status)
		}
		w.rec.has(t, "Normal SandboxChanged Pod sandbox changed, it will be killed and re-created.")
		w.delete("web", -1)
		sleep(2 * time.Second)
		if w.rt.Sandboxes() != 0 {
			t.Errorf("%d sandboxes left", w.rt.Sandboxes())
		}
	})
}

func TestRuntimeWithoutEvents(t *testing.T) {
	run(t, func(w *world) {
		w.rt.NoEvents = true
		w.rt.Script = scripts(map[string]crifake.Script{"app": {Exit: time.Second}})
		w.start()
		w.create(newPod("job", restartPolicy(corev1.RestartPolicyNever)))
		sleep(15 * time.Second)
		if p := w.get("job"); p.Status.Phase != corev1.PodSucceeded {
			t.Errorf("phase %s", p.Status.Phase)
		}
	})
}

func TestAdmission(t *testing.T) {
	cpu := func(n string) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(n)}
		}
	}
	run(t, func(w *world) {
		w.start()
		w.create(newPod("big", cpu("3")))
		w.create(newPod("too-big", cpu("2")))
		w.create(newPod("elsewhere", func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"disk": "ssd"} }))
		w.create(newPod("sysctl", func(p *corev1.Pod) {
			p.Spec.SecurityContext = &corev1.PodSecurityContext{Sysctls: []corev1.Sysctl{{Name: "kernel.msgmax", Value: "1"}}}
		}))
		sleep(time.Second)
		for name, want := range map[string]string{
			"too-big":   "Failed OutOfcpu Pod was rejected: Node didn't have enough resource: cpu, requested: 2000, used: 3000, capacity: 4000",
			"elsewhere": "Failed NodeAffinity Pod was rejected: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector",
			"sysctl":    `Failed SysctlForbidden Pod was rejected: forbidden sysctl: "kernel.msgmax" not allowlisted`,
		} {
			p := w.get(name)
			if got := fmt.Sprintf("%s %s %s", p.Status.Phase, p.Status.Reason, p.Status.Message); got != want {
				t.Errorf("%s: %q, want %q", name, got, want)
			}
			w.delete(name, -1)
		}
		w.delete("big", -1)
		sleep(2 * time.Second)
		w.create(newPod("next", cpu("2")))
		sleep(time.Second)
		if p := w.get("next"); p.Status.Phase != corev1.PodRunning {
			t.Errorf("phase %s %s", p.Status.Phase, p.Status.Message)
		}
		for _, n := range []string{"too-big", "elsewhere", "sysctl", "big"} {
			if w.exists(n) {
				t.Errorf("%s is still there", n)
			}
		}
	})
}

func TestContainerConfiguration(t *testing.T) {
	run(t, func(w *world) {
		svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "kubernetes"}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.1", Ports: []corev1.ServicePort{{Name: "https", Port: 443}}}}
		if _, err := client.Services.Create(context.Background(), w.api, svc); err != nil {
			t.Fatal(err)
		}
		w.start()
		uid, yes, no := int64(1000), true, false
		p := w.create(newPod("web", func(p *corev1.Pod) {
			p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: &uid, RunAsNonRoot: &yes, FSGroup: &uid, SupplementalGroups: []int64{7}}
			c := &p.Spec.Containers[0]
			c.Env = []corev1.EnvVar{{Name: "A", Value: "1"}, {Name: "B", Value: "$(A)-$(KUBERNETES_SERVICE_HOST)-$$(A)"}, {Name: "IP", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "status.podIP"}}}}
			c.Command, c.Args = []string{"/x", "$(B)"}, []string{"$(NOPE)"}
			c.SecurityContext = &corev1.SecurityContext{AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes, Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}}
			c.Resources = corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("250m")}, Limits: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("500m"), corev1.ResourceMemory: resource.MustParse("64Mi")}}
		}))
		sleep(time.Second)
		cfg, _ := w.rt.Config("app")
		if cfg == nil {
			t.Fatalf("no container: %+v", w.get("web").Status.ContainerStatuses)
		}
		env := map[string]string{}
		for _, e := range cfg.Envs {
			env[e.Key] = string(e.Value)
		}
		if env["B"] != "1-10.96.0.1-$(A)" || env["IP"] != w.get("web").Status.PodIP || env["KUBERNETES_PORT_443_TCP_PROTO"] != "tcp" {
			t.Errorf("env %v", env)
		}
		if !slices.Equal(cfg.Command, []string{"/x", "1-10.96.0.1-$(A)"}) || !slices.Equal(cfg.Args, []string{"$(NOPE)"}) {
			t.Errorf("command %q %q", cfg.Command, cfg.Args)
		}
		l, sc := cfg.Linux.Resources, cfg.Linux.SecurityContext
		if l.CpuShares != 256 || l.CpuQuota != 50000 || l.CpuPeriod != 100000 || l.MemoryLimitInBytes != 64<<20 || l.OomScoreAdj < 900 {
			t.Errorf("resources %v", l)
		}
		if !sc.NoNewPrivs || !sc.ReadonlyRootfs || sc.RunAsUser.Value != 1000 || !slices.Equal(sc.SupplementalGroups, []int64{1000, 7}) || sc.Seccomp.ProfileType != runtimeapi.SecurityProfile_RuntimeDefault || len(sc.MaskedPaths) == 0 {
			t.Errorf("security context %v", sc)
		}
		var mounts []string
		for _, m := range cfg.Mounts {
			mounts = append(mounts, m.ContainerPath)
		}
		if !slices.Equal(mounts, []string{"/etc/hosts", "/dev/termination-log"}) {
			t.Errorf("mounts %v", mounts)
		}
		// What the container writes there is its last word.
		if err := os.WriteFile(cfg.Mounts[1].HostPath, []byte("bye"), 0o666); err != nil {
			t.Fatal(err)
		}
		hosts, _ := os.ReadFile(cfg.Mounts[0].HostPath)
		if !strings.Contains(string(hosts), w.get("web").Status.PodIP+"\tweb\n") {
			t.Errorf("hosts %q", hosts)
		}
		_, id := w.rt.Config("app")
		w.rt.Kill(id, 1)
		sleep(time.Second)
		if m := w.get("web").Status.ContainerStatuses[0].LastTerminationState.Terminated; m == nil || m.Message != "bye" {
			t.Errorf("last words %+v", m)
		}
		// A changed request is applied in place.
		n := w.get("web")
		n.Spec.Containers[0].Resources.Requests[corev1.ResourceCPU] = resource.MustParse("500m")
		n.Generation++
		if _, err := client.Pods.Update(context.Background(), w.api, n); err != nil {
			t.Fatal(err)
		}
		sleep(time.Second)
		if log := w.rt.Log(); log[len(log)-1] != "UpdateContainerResources 512" {
			t.Errorf("calls %q", log)
		}
		_ = p
	})
}

func TestEphemeralContainerAndImageChange(t *testing.T) {
	run(t, func(w *world) {
		w.start()
		w.create(newPod("web"))
		sleep(time.Second)
		p := w.get("web")
		p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug", Image: "app:1"}, TargetContainerName: "app"}}
		p.Generation++
		if _, err := client.Pods.Update(context.Background(), w.api, p); err != nil {
			t.Fatal(err)
		}
		sleep(time.Second)
		if got := w.rt.Running(); !slices.Equal(got, []string{"app/0", "debug/0"}) {
			t.Fatalf("running %v", got)
		}
		cfg, _ := w.rt.Config("debug")
		if ns := cfg.Linux.SecurityContext.NamespaceOptions; ns.Pid != runtimeapi.NamespaceMode_TARGET || ns.TargetId == "" {
			t.Errorf("namespaces %v", ns)
		}
		p = w.get("web")
		if s := p.Status.EphemeralContainerStatuses; len(s) != 1 || s[0].State.Running == nil {
			t.Errorf("status %+v", s)
		}
		p.Spec.Containers[0].Image = "app:2"
		p.Generation++
		if _, err := client.Pods.Update(context.Background(), w.api, p); err != nil {
			t.Fatal(err)
		}
		sleep(time.Second)
		w.rec.has(t, "Normal Killing Container app definition changed, will be restarted")
		if cs := w.get("web").Status.ContainerStatuses[0]; cs.RestartCount != 1 || cs.Image != "app:2" || cs.State.Running == nil {
			t.Errorf("status %+v", cs)
		}
	})
}
