package job_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/controllers/job"
	"github.com/proa-dev/proa/test/control"
)

var quiet = slog.New(slog.DiscardHandler)

type world struct {
	*testing.T
	c client.Interface
}

func in(t *testing.T, test func(w world)) {
	synctest.Test(t, func(t *testing.T) { test(world{t, control.New(t)}) })
}

// run runs the controller; exits says with what code the n-th pod (from 1) ends (-1: it runs on).
func (w world) run(exits func(n int, p *corev1.Pod) int) (stop func()) {
	var n atomic.Int32
	return control.Run(w, job.New(w.c, quiet), control.Kubelet{Client: w.c, Ready: time.Second, Stop: time.Second, Status: func(p *corev1.Pod) corev1.PodStatus {
		s := p.Status
		code := exits(int(n.Add(1)), p)
		if code < 0 {
			return s
		}
		s.Phase = corev1.PodSucceeded
		if code > 0 {
			s.Phase = corev1.PodFailed
		}
		s.Conditions[len(s.Conditions)-1].Status = corev1.ConditionFalse
		s.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: int32(code), FinishedAt: metav1.Now(), StartedAt: metav1.Now()}}}}
		return s
	}})
}

func (w world) create(change func(*batchv1.JobSpec)) {
	w.Helper()
	j := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "j"},
		Spec: batchv1.JobSpec{Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{{Name: "c", Image: "i"}}}}}}
	change(&j.Spec)
	if _, err := client.Jobs.Create(w.Context(), w.c, j); err != nil {
		w.Fatal(err)
	}
}

func (w world) get() *batchv1.Job {
	w.Helper()
	synctest.Wait()
	j, err := client.Jobs.Get(w.Context(), w.c, "default", "j")
	if err != nil {
		w.Fatal(err)
	}
	return j
}

// says is the job in a line: its end, and its numbers.
func (w world) says() string {
	s := w.get().Status
	end := "runs"
	for _, c := range s.Conditions {
		if c.Status == corev1.ConditionTrue {
			end = string(c.Type) + "/" + c.Reason
		}
	}
	out := fmt.Sprintf("%s active %d succeeded %d failed %d", end, s.Active, s.Succeeded, s.Failed)
	if s.CompletedIndexes != "" {
		out += " indexes " + s.CompletedIndexes
	}
	if f := ptr.Deref(s.FailedIndexes, ""); f != "" {
		out += " lost " + f
	}
	return out
}

func (w world) want(what, want string) {
	w.Helper()
	if got := w.says(); got != want {
		w.Errorf("%s: %s, want %s", what, got, want)
	}
}

func (w world) pods() []*corev1.Pod {
	return client.Pods.Informer(w.c, client.Scope{}).List("default", nil)
}

func ok(int, *corev1.Pod) int { return 0 }

func TestToTheEnd(t *testing.T) {
	for name, c := range map[string]struct {
		spec  func(*batchv1.JobSpec)
		exits func(int, *corev1.Pod) int
		after time.Duration
		want  string
	}{
		"one pod":                 {func(s *batchv1.JobSpec) {}, ok, time.Minute, "Complete/CompletionsReached active 0 succeeded 1 failed 0"},
		"ten of two":              {func(s *batchv1.JobSpec) { s.Completions, s.Parallelism = ptr.To[int32](10), ptr.To[int32](2) }, ok, time.Minute, "Complete/CompletionsReached active 0 succeeded 10 failed 0"},
		"a work queue":            {func(s *batchv1.JobSpec) { s.Parallelism = ptr.To[int32](3) }, ok, time.Minute, "Complete/CompletionsReached active 0 succeeded 3 failed 0"},
		"no completions are done": {func(s *batchv1.JobSpec) { s.Completions = ptr.To[int32](0) }, ok, time.Minute, "Complete/CompletionsReached active 0 succeeded 0 failed 0"},
		"some fail first": {func(s *batchv1.JobSpec) { s.Completions = ptr.To[int32](2) }, func(n int, _ *corev1.Pod) int { return n % 2 }, 10 * time.Minute,
			"Complete/CompletionsReached active 0 succeeded 2 failed 2"},
		"all fail":      {func(s *batchv1.JobSpec) { s.BackoffLimit = ptr.To[int32](2) }, func(int, *corev1.Pod) int { return 1 }, 10 * time.Minute, "Failed/BackoffLimitExceeded active 0 succeeded 0 failed 3"},
		"it lasts long": {func(s *batchv1.JobSpec) { s.ActiveDeadlineSeconds = ptr.To[int64](30) }, func(int, *corev1.Pod) int { return -1 }, time.Minute, "Failed/DeadlineExceeded active 0 succeeded 0 failed 1"},
		"indexed": {func(s *batchv1.JobSpec) {
			s.Completions, s.Parallelism, s.CompletionMode = ptr.To[int32](5), ptr.To[int32](3), ptr.To(batchv1.IndexedCompletion)
		}, ok, time.Minute, "Complete/CompletionsReached active 0 succeeded 5 failed 0 indexes 0-4"},
		"an index fails for ever": {func(s *batchv1.JobSpec) {
			s.Completions, s.Parallelism, s.CompletionMode, s.BackoffLimitPerIndex = ptr.To[int32](4), ptr.To[int32](4), ptr.To(batchv1.IndexedCompletion), ptr.To[int32](1)
		}, func(_ int, p *corev1.Pod) int {
			if p.Annotations[batchv1.JobCompletionIndexAnnotation] == "2" {
				return 1
			}
			return 0
		}, 10 * time.Minute, "Failed/FailedIndexes active 0 succeeded 3 failed 2 indexes 0,1,3 lost 2"},
		"enough indexes": {func(s *batchv1.JobSpec) {
			s.Completions, s.Parallelism, s.CompletionMode = ptr.To[int32](4), ptr.To[int32](4), ptr.To(batchv1.IndexedCompletion)
			s.SuccessPolicy = &batchv1.SuccessPolicy{Rules: []batchv1.SuccessPolicyRule{{SucceededIndexes: ptr.To("0-1"), SucceededCount: ptr.To[int32](1)}}}
		}, func(_ int, p *corev1.Pod) int {
			if p.Annotations[batchv1.JobCompletionIndexAnnotation] == "1" {
				return 0
			}
			return -1
		}, 10 * time.Minute, "Complete/SuccessPolicy active 0 succeeded 1 failed 3 indexes 1"},
		"a code that means the end": {func(s *batchv1.JobSpec) {
			s.PodFailurePolicy = &batchv1.PodFailurePolicy{Rules: []batchv1.PodFailurePolicyRule{{Action: batchv1.PodFailurePolicyActionFailJob,
				OnExitCodes: &batchv1.PodFailurePolicyOnExitCodesRequirement{Operator: batchv1.PodFailurePolicyOnExitCodesOpIn, Values: []int32{42}}}}}
		}, func(int, *corev1.Pod) int { return 42 }, time.Minute, "Failed/PodFailurePolicy active 0 succeeded 0 failed 1"},
		"a code that does not count": {func(s *batchv1.JobSpec) {
			s.BackoffLimit = ptr.To[int32](0)
			s.PodFailurePolicy = &batchv1.PodFailurePolicy{Rules: []batchv1.PodFailurePolicyRule{{Action: batchv1.PodFailurePolicyActionIgnore,
				OnExitCodes: &batchv1.PodFailurePolicyOnExitCodesRequirement{Operator: batchv1.PodFailurePolicyOnExitCodesOpIn, Values: []int32{7}}}}}
		}, func(n int, _ *corev1.Pod) int {
			if n < 4 {
				return 7
			}
			return 0
		}, time.Minute, "Complete/CompletionsReached active 0 succeeded 1 failed 0"},
	} {
		t.Run(name, func(t *testing.T) {
			in(t, func(w world) {
				w.run(c.exits)
				w.create(c.spec)
				time.Sleep(c.after)
				w.want("at the end", c.want)
				for _, p := range w.pods() {
					if slices.Contains(p.Finalizers, batchv1.JobTrackingFinalizer) {
						w.Errorf("pod %s still has the finalizer", p.Name)
					}
				}
			})
		})
	}
}

func TestBackoffBetweenFailures(t *testing.T) {
	in(t, func(w world) {
		w.run(func(int, *corev1.Pod) int { return 1 })
		w.create(func(s *batchv1.JobSpec) {})
		for _, c := range []struct {
			at   time.Duration
			pods int
		}{{5 * time.Second, 1}, {10 * time.Second, 2}, {15 * time.Second, 2}, {10 * time.Second, 3}, {30 * time.Second, 3}, {20 * time.Second, 4}} {
			time.Sleep(c.at)
			synctest.Wait()
			if got := len(w.pods()); got != c.pods {
				w.Errorf("%d pods, want %d", got, c.pods)
			}
		}
	})
}

// C8: there are never more active pods than the parallelism.
func TestParallelismIsKept(t *testing.T) {
	in(t, func(w world) {
		w.run(ok)
		most := 0
		control.Run(w, watch{w.c, func(client.Event) {
			n := 0
			for _, p := range w.pods() {
				if p.Status.Phase != corev1.PodSucceeded && p.DeletionTimestamp == nil {
					n++
				}
			}
			most = max(most, n)
		}})
		w.create(func(s *batchv1.JobSpec) { s.Completions, s.Parallelism = ptr.To[int32](30), ptr.To[int32](4) })
		time.Sleep(time.Minute)
		w.want("at the end", "Complete/CompletionsReached active 0 succeeded 30 failed 0")
		if most != 4 {
			w.Errorf("%d pods were active at once, want 4", most)
		}
	})
}

func TestSuspendAndResume(t *testing.T) {
	in(t, func(w world) {
		w.run(func(int, *corev1.Pod) int { return -1 })
		w.create(func(s *batchv1.JobSpec) { s.Suspend = ptr.To(true) })
		time.Sleep(time.Minute)
		w.want("suspended from the start", "Suspended/JobSuspended active 0 succeeded 0 failed 0")
		if w.get().Status.StartTime != nil {
			w.Error("it has a start time")
		}
		set := func(v bool) {
			j := w.get()
			j.Spec.Suspend = &v
			if _, err := client.Jobs.Update(w.Context(), w.c, j); err != nil {
				w.Fatal(err)
			}
			time.Sleep(time.Minute)
		}
		set(false)
		w.want("resumed", "runs active 1 succeeded 0 failed 0")
		set(true)
		w.want("suspended", "Suspended/JobSuspended active 0 succeeded 0 failed 0")
		if n := len(w.pods()); n != 0 {
			w.Errorf("%d pods are left", n)
		}
	})
}

// C9: a controller that is killed again and again counts each pod once.
func TestRestartsCountOnce(t *testing.T) {
	in(t, func(w world) {
		w.create(func(s *batchv1.JobSpec) { s.Completions, s.Parallelism = ptr.To[int32](40), ptr.To[int32](5) })
		for range 60 {
			stop := w.run(ok)
			time.Sleep(1100 * time.Millisecond)
			stop()
		}
		w.run(ok)
		time.Sleep(time.Minute)
		w.want("at the end", "Complete/CompletionsReached active 0 succeeded 40 failed 0")
		if n := len(w.pods()); n != 40 {
			w.Errorf("%d pods", n)
		}
	})
}

func TestPodsOfADeletedJobAreFree(t *testing.T) {
	in(t, func(w world) {
		w.run(func(int, *corev1.Pod) int { return -1 })
		w.create(func(s *batchv1.JobSpec) {})
		time.Sleep(time.Minute)
		if err := client.Jobs.Delete(w.Context(), w.c, "default", "j", metav1.DeleteOptions{PropagationPolicy: ptr.To(metav1.DeletePropagationBackground)}); err != nil {
			w.Fatal(err)
		}
		time.Sleep(time.Minute)
		for _, p := range w.pods() {
			if len(p.Finalizers) > 0 {
				w.Errorf("pod %s has finalizers %v", p.Name, p.Finalizers)
			}
		}
	})
}

func TestIndexedPods(t *testing.T) {
	in(t, func(w world) {
		w.run(func(int, *corev1.Pod) int { return -1 })
		w.create(func(s *batchv1.JobSpec) {
			s.Completions, s.Parallelism, s.CompletionMode = ptr.To[int32](2), ptr.To[int32](2), ptr.To(batchv1.IndexedCompletion)
		})
		time.Sleep(time.Minute)
		pods := w.pods()
		if len(pods) != 2 {
			w.Fatalf("%d pods", len(pods))
		}
		for i, p := range pods {
			n := fmt.Sprint(i)
			if !strings.HasPrefix(p.Name, "j-"+n+"-") || p.Spec.Hostname != "j-"+n || p.Annotations[batchv1.JobCompletionIndexAnnotation] != n || p.Labels[batchv1.JobCompletionIndexAnnotation] != n {
				w.Errorf("pod %+v", p.ObjectMeta)
			}
			if e := p.Spec.Containers[0].Env; len(e) != 1 || e[0].Name != "JOB_COMPLETION_INDEX" {
				w.Errorf("env %v", e)
			}
		}
		if got := ptr.Deref(w.get().Status.Ready, 0); got != 2 {
			w.Errorf("ready %d", got)
		}
	})
}

type watch struct {
	c  client.Interface
	fn func(client.Event)
}

func (p watch) Run(ctx context.Context) error {
	return client.Pods.Informer(p.c, client.Scope{}).Watch(ctx, p.fn)
}
