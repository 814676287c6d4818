package cronjob_test

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/cluster/local"
	"github.com/proa-dev/proa/internal/controllers/cronjob"
	"github.com/proa-dev/proa/internal/controllers/garbagecollector"
	"github.com/proa-dev/proa/internal/controllers/job"
	"github.com/proa-dev/proa/test/control"
)

// world is a cluster whose pods run for a while, then end well or badly.
type world struct {
	*testing.T
	c *local.Client
}

func start(t *testing.T, runs time.Duration, ends corev1.PodPhase) world {
	c, quiet := control.New(t), slog.New(slog.DiscardHandler)
	control.Run(t, cronjob.New(c, quiet), job.New(c, quiet), garbagecollector.New(c, quiet), control.Kubelet{Client: c, Status: func(p *corev1.Pod) corev1.PodStatus {
		time.Sleep(runs)
		s := p.Status
		s.Phase = ends
		return s
	}})
	return world{t, c}
}

func (w world) create(name, schedule string, change func(*batchv1.CronJobSpec)) {
	w.Helper()
	cj := &batchv1.CronJob{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: batchv1.CronJobSpec{Schedule: schedule,
		JobTemplate: batchv1.JobTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"l": "v"}}, Spec: batchv1.JobSpec{BackoffLimit: ptr.To[int32](0),
			Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{{Name: "c", Image: "i"}}}}}}}}
	if change != nil {
		change(&cj.Spec)
	}
	if _, err := client.CronJobs.Create(w.Context(), w.c, cj); err != nil {
		w.Fatal(err)
	}
}

func (w world) status(name string) batchv1.CronJobStatus {
	w.Helper()
	cj, err := client.CronJobs.Get(w.Context(), w.c, "default", name)
	if err != nil {
		w.Fatal(err)
	}
	return cj.Status
}

func (w world) jobs() []*batchv1.Job {
	return client.Jobs.Informer(w.c, client.Scope{}).List("default", nil)
}

func (w world) reasons() string {
	var out []string
	for _, e := range client.Events.Informer(w.c, client.Scope{}).List("default", nil) {
		if e.InvolvedObject.Kind == "CronJob" && !slices.Contains(out, e.Reason) {
			out = append(out, e.Reason)
		}
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func TestAJobForEachMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, 5*time.Second, corev1.PodSucceeded)
		w.create("c", "* * * * *", nil)
		time.Sleep(10*time.Minute + 10*time.Second)
		names := map[string]bool{}
		for _, e := range client.Events.Informer(w.c, client.Scope{}).List("default", nil) {
			if e.Reason == "SuccessfulCreate" && e.InvolvedObject.Kind == "CronJob" {
				names[e.Message] = true
			}
		}
		if len(names) != 10 {
			t.Errorf("%d jobs in ten minutes: %v", len(names), names)
		}
		s := w.status("c")
		if len(s.Active) != 0 || s.LastScheduleTime == nil || s.LastSuccessfulTime == nil || s.LastScheduleTime.Second() != 0 {
			t.Errorf("status %+v", s)
		}
		left := w.jobs()
		if len(left) != 3 {
			t.Errorf("%d finished jobs are kept, want 3", len(left))
		}
		for _, j := range left {
			if j.Labels["l"] != "v" || j.Annotations[batchv1.CronJobScheduledTimestampAnnotation] == "" || !strings.HasPrefix(j.Name, "c-") {
				t.Errorf("job %s: %v %v", j.Name, j.Labels, j.Annotations)
			}
		}
		if r := w.reasons(); r != "SawCompletedJob SuccessfulCreate SuccessfulDelete" {
			t.Errorf("events %s", r)
		}
	})
}

func TestConcurrency(t *testing.T) {
	for policy, want := range map[batchv1.ConcurrencyPolicy]struct {
		active int
		reason string
	}{
		batchv1.AllowConcurrent:   {4, "SuccessfulCreate"},
		batchv1.ForbidConcurrent:  {1, "JobAlreadyActive SuccessfulCreate"},
		batchv1.ReplaceConcurrent: {1, "SuccessfulCreate SuccessfulDelete"},
	} {
		t.Run(string(policy), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := start(t, time.Hour, corev1.PodSucceeded)
				w.create("c", "* * * * *", func(s *batchv1.CronJobSpec) { s.ConcurrencyPolicy = policy })
				time.Sleep(4*time.Minute + 10*time.Second)
				s := w.status("c")
				if len(s.Active) != want.active || w.reasons() != want.reason {
					t.Errorf("%d active, want %d; events %s", len(s.Active), want.active, w.reasons())
				}
				for _, r := range s.Active {
					if _, err := client.Jobs.Get(t.Context(), w.c, "default", r.Name); err != nil {
						t.Error(err)
					}
				}
			})
		})
	}
}

func TestSuspendFailureAndMistakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, time.Second, corev1.PodFailed)
		w.create("fails", "*/2 * * * *", nil)
		w.create("suspended", "* * * * *", func(s *batchv1.CronJobSpec) { s.Suspend = ptr.To(true) })
		time.Sleep(10*time.Minute + 10*time.Second)
		if n := len(w.jobs()); n != 1 {
			t.Errorf("%d failed jobs are kept, want 1", n)
		}
		if s := w.status("fails"); s.LastSuccessfulTime != nil {
			t.Errorf("successful at %v", s.LastSuccessfulTime)
		}
		cj, err := client.CronJobs.Get(t.Context(), w.c, "default", "suspended")
		if err != nil || cj.Status.LastScheduleTime != nil {
			t.Fatalf("%v %+v", err, cj.Status)
		}
		// Resumed: the newest of the missed times is made up for, once.
		cj.Spec.Suspend = ptr.To(false)
		if _, err := client.CronJobs.Update(t.Context(), w.c, cj); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		if s := w.status("suspended"); s.LastScheduleTime == nil || time.Since(s.LastScheduleTime.Time) > time.Minute {
			t.Errorf("after resuming: %+v", s)
		}
	})
}

func TestDeadlinesAndTimeZones(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, time.Second, corev1.PodSucceeded)
		w.create("zone", "30 9 * * *", func(s *batchv1.CronJobSpec) { s.TimeZone = ptr.To("Asia/Kolkata") }) // 04:00 UTC
		w.create("late", "0 * * * *", func(s *batchv1.CronJobSpec) {
			s.Suspend, s.StartingDeadlineSeconds = ptr.To(true), ptr.To[int64](30)
		})
		time.Sleep(25 * time.Hour)
		if s := w.status("zone"); s.LastScheduleTime == nil || s.LastScheduleTime.UTC().Format("15:04") != "04:00" {
			t.Errorf("in its zone: %+v", s)
		}
		time.Sleep(5 * time.Minute)
		cj, err := client.CronJobs.Get(t.Context(), w.c, "default", "late")
		if err != nil {
			t.Fatal(err)
		}
		cj.Spec.Suspend = ptr.To(false)
		if _, err := client.CronJobs.Update(t.Context(), w.c, cj); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if s := w.status("late"); s.LastScheduleTime != nil {
			t.Errorf("started after its deadline: %+v", s)
		}
		time.Sleep(time.Hour)
		if s := w.status("late"); s.LastScheduleTime == nil {
			t.Error("the next time was not heeded")
		}
	})
}

// A CronJob that was away for years starts the newest Job, and says what it missed.
func TestManyMissedTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, time.Second, corev1.PodSucceeded)
		w.create("c", "* * * * *", func(s *batchv1.CronJobSpec) { s.Suspend = ptr.To(true) })
		time.Sleep(3 * 365 * 24 * time.Hour)
		cj, err := client.CronJobs.Get(t.Context(), w.c, "default", "c")
		if err != nil {
			t.Fatal(err)
		}
		cj.Spec.Suspend = ptr.To(false)
		if _, err := client.CronJobs.Update(t.Context(), w.c, cj); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		s := w.status("c")
		if s.LastScheduleTime == nil || time.Since(s.LastScheduleTime.Time) > time.Minute || !strings.Contains(w.reasons(), "TooManyMissedTimes") {
			t.Errorf("%+v, events %s", s, w.reasons())
		}
		if n := len(w.jobs()); n != 1 {
			t.Error(fmt.Sprint(n, " jobs"))
		}
	})
}
