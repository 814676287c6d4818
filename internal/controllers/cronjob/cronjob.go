// Package cronjob starts Jobs at the times of a schedule (batch/v1 CronJob), one
// for each time and never two: a Job's name tells the minute it is for.
package cronjob

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/client/events"
	"github.com/proa-dev/proa/internal/controllers/loop"
)

const workers = 5

// Controller writes Jobs and the status of CronJobs.
type Controller struct {
	client   client.Interface
	loop     *loop.Loop[types.NamespacedName]
	events   *events.Recorder
	cronJobs client.Typed[*batchv1.CronJob]
	jobs     client.Typed[*batchv1.Job]
}

// New returns the controller.
func New(c client.Interface, log *slog.Logger) *Controller {
	x := &Controller{client: c, events: events.New(c, "cronjob-controller", "", log),
		cronJobs: client.CronJobs.Informer(c, client.Scope{}), jobs: client.Jobs.Informer(c, client.Scope{})}
	x.loop = loop.New("cronjob", log, x.sync)
	return x
}

func (x *Controller) Name() string { return "cronjob" }

// Run works until ctx ends.
func (x *Controller) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { _ = x.events.Run(ctx) })
	err := x.loop.Run(ctx, workers,
		loop.Source{Informer: x.cronJobs.Informer, Handle: func(e client.Event) {
			if e.Object != nil {
				x.loop.Add(types.NamespacedName{Namespace: e.Object.GetNamespace(), Name: e.Object.GetName()})
			}
		}},
		loop.Source{Informer: x.jobs.Informer, Handle: func(e client.Event) {
			if e.Object == nil {
				return
			}
			if ref := metav1.GetControllerOfNoCopy(e.Object); ref != nil && ref.Kind == "CronJob" {
				x.loop.Add(types.NamespacedName{Namespace: e.Object.GetNamespace(), Name: ref.Name})
			}
		}})
	cancel()
	wg.Wait()
	return err
}

func (x *Controller) sync(ctx context.Context, key types.NamespacedName) error {
	// The newest state: on an older one a Job might be started twice or deleted too early.
	have, err := client.CronJobs.Get(ctx, x.client, key.Namespace, key.Name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read cronjob %s: %w", key, err)
	}
	p := &pass{Controller: x, ctx: ctx, now: time.Now(), cj: have.DeepCopy()}
	for _, j := range x.jobs.List(key.Namespace, nil) {
		if metav1.IsControlledBy(j, have) {
			p.jobs = append(p.jobs, j)
		}
	}
	failed := p.trim()
	if err := p.count(); err != nil {
		return err
	}
	next, err := p.start()
	if failed == nil {
		failed = err
	}
	if !apiequality.Semantic.DeepEqual(have.Status, p.cj.Status) {
		if _, err := client.CronJobs.UpdateStatus(ctx, x.client, p.cj); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("write the status of cronjob %s: %w", key, err)
		}
	}
	if failed != nil {
		return failed
	}
	if !next.IsZero() {
		// A little later, so that clocks that differ agree on the minute.
		x.loop.After(key, next.Sub(time.Now())+100*time.Millisecond)
	}
	return nil
}

// pass is the work on one CronJob.
type pass struct {
	*Controller
	ctx  context.Context
	now  time.Time
	cj   *batchv1.CronJob // a copy, whose status is written at the end
	jobs []*batchv1.Job
}

// finished is how a Job ended; "" when it has not.
func finished(j *batchv1.Job) batchv1.JobConditionType {
	for _, c := range j.Status.Conditions {
		if (c.Type == batchv1.JobComplete || c.Type == batchv1.JobFailed) && c.Status == corev1.ConditionTrue {
			return c.Type
		}
	}
	return ""
}

// count brings the list of active Jobs up to date.
func (p *pass) count() error {
	status := &p.cj.Status
	active := func(uid types.UID) int {
		return slices.IndexFunc(status.Active, func(r corev1.ObjectReference) bool { return r.UID == uid })
	}
	seen := map[types.UID]bool{}
	for _, j := range p.jobs {
		seen[j.UID] = true
		end, i := finished(j), active(j.UID)
		switch {
		case i < 0 && end == "":
			// Made in a pass that could not write its status.
			p.events.Eventf(p.cj, corev1.EventTypeWarning, "UnexpectedJob", "Saw a job that the controller did not create or forgot: %s", j.Name)
		case i >= 0 && end != "":
			status.Active = slices.Delete(status.Active, i, i+1)
			p.events.Eventf(p.cj, corev1.EventTypeNormal, "SawCompletedJob", "Saw completed job: %s, condition: %v", j.Name, end)
		}
		if end == batchv1.JobComplete && j.Status.CompletionTime != nil &&
			(status.LastSuccessfulTime == nil || j.Status.CompletionTime.After(status.LastSuccessfulTime.Time)) {
			status.LastSuccessfulTime = j.Status.CompletionTime
		}
	}
	for _, r := range slices.Clone(status.Active) {
		if seen[r.UID] {
			continue
		}
		if j, err := client.Jobs.Get(p.ctx, p.client, p.cj.Namespace, r.Name); err == nil && j.UID == r.UID {
			continue // it is there, but is another's now or the view is behind
		} else if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("read job %s/%s: %w", p.cj.Namespace, r.Name, err)
		}
		p.events.Eventf(p.cj, corev1.EventTypeNormal, "MissingJob", "Active job went missing: %v", r.Name)
		if i := active(r.UID); i >= 0 {
			status.Active = slices.Delete(status.Active, i, i+1)
		}
	}
	if len(status.Active) == 0 {
		status.Active = nil
	}
	return nil
}

// trim deletes the oldest finished Jobs beyond the limits of the history.
func (p *pass) trim() error {
	if p.cj.DeletionTimestamp != nil {
		return nil
	}
	by := map[batchv1.JobConditionType][]*batchv1.Job{}
	for _, j := range p.jobs {
		if end := finished(j); end != "" && j.DeletionTimestamp == nil {
			by[end] = append(by[end], j)
		}
	}
	for end, limit := range map[batchv1.JobConditionType]*int32{batchv1.JobComplete: p.cj.Spec.SuccessfulJobsHistoryLimit, batchv1.JobFailed: p.cj.Spec.FailedJobsHistoryLimit} {
		list := by[end]
		if limit == nil || len(list) <= int(*limit) {
			continue
		}
		slices.SortFunc(list, func(a, b *batchv1.Job) int { return begin(a).Compare(begin(b)) })
		for _, j := range list[:len(list)-int(*limit)] {
			if err := p.remove(j); err != nil {
				return err
			}
		}
	}
	return nil
}

func begin(j *batchv1.Job) time.Time {
	if j.Status.StartTime != nil {
		return j.Status.StartTime.Time
	}
	return j.CreationTimestamp.Time
}

func (p *pass) remove(j *batchv1.Job) error {
	policy := metav1.DeletePropagationBackground
	err := client.Jobs.Delete(p.ctx, p.client, j.Namespace, j.Name, metav1.DeleteOptions{PropagationPolicy: &policy, Preconditions: &metav1.Preconditions{UID: &j.UID}})
	if err != nil && !apierrors.IsNotFound(err) {
		p.events.Eventf(p.cj, corev1.EventTypeWarning, "FailedDelete", "Deleted job: %v", err)
		return fmt.Errorf("delete job %s/%s: %w", j.Namespace, j.Name, err)
	}
	p.cj.Status.Active = slices.DeleteFunc(p.cj.Status.Active, func(r corev1.ObjectReference) bool { return r.UID == j.UID })
	p.events.Eventf(p.cj, corev1.EventTypeNormal, "SuccessfulDelete", "Deleted job %v", j.Name)
	return nil
}

// start starts the Job that is due, and says when to look again.
func (p *pass) start() (next time.Time, err error) {
	cj := p.cj
	if cj.DeletionTimestamp != nil || cj.Spec.Suspend != nil && *cj.Spec.Suspend {
		return next, nil
	}
	schedule, reason, err := parse(cj)
	if err != nil { // only another spec mends it
		p.events.Eventf(cj, corev1.EventTypeWarning, reason, "%v", err)
		return next, nil
	}
	last := cj.CreationTimestamp.Time
	if cj.Status.LastScheduleTime != nil {
		last = cj.Status.LastScheduleTime.Time
	}
	due, next, missed := times(schedule, last, cj.Spec.StartingDeadlineSeconds, p.now)
	if missed > manyMissed {
		p.events.Eventf(cj, corev1.EventTypeWarning, "TooManyMissedTimes", "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew")
	}
	if due.IsZero() {
		return next, nil
	}
	if d := cj.Spec.StartingDeadlineSeconds; d != nil && due.Add(time.Duration(*d)*time.Second).Before(p.now) {
		p.events.Eventf(cj, corev1.EventTypeWarning, "MissSchedule", "Missed scheduled time to start a job: %s", due.UTC().Format(time.RFC1123Z))
		return next, nil
	}
	name := jobName(cj, due)
	if slices.ContainsFunc(cj.Status.Active, func(r corev1.ObjectReference) bool { return r.Name == name }) || cj.Status.LastScheduleTime != nil && cj.Status.LastScheduleTime.Time.Equal(due) {
		return next, nil
	}
	switch {
	case cj.Spec.ConcurrencyPolicy == batchv1.ForbidConcurrent && len(cj.Status.Active) > 0:
		p.events.Eventf(cj, corev1.EventTypeNormal, "JobAlreadyActive", "Not starting job because prior execution is running and concurrency policy is Forbid")
		return next, nil
	case cj.Spec.ConcurrencyPolicy == batchv1.ReplaceConcurrent:
		for _, r := range slices.Clone(cj.Status.Active) {
			j, err := client.Jobs.Get(p.ctx, p.client, cj.Namespace, r.Name)
			if apierrors.IsNotFound(err) {
				continue
			}
			if err != nil {
				p.events.Eventf(cj, corev1.EventTypeWarning, "FailedGet", "Get job: %v", err)
				return next, fmt.Errorf("read job %s/%s: %w", cj.Namespace, r.Name, err)
			}
			if err := p.remove(j); err != nil {
				return next, err
			}
		}
	}
	j, err := client.Jobs.Create(p.ctx, p.client, jobOf(cj, due))
	switch {
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return next, nil
	case apierrors.IsAlreadyExists(err):
		// A pass that could not write its status made it; another's is left alone.
		if j, err = client.Jobs.Get(p.ctx, p.client, cj.Namespace, name); err != nil || !metav1.IsControlledBy(j, cj) || finished(j) != "" {
			return next, err
		}
	case err != nil:
		p.events.Eventf(cj, corev1.EventTypeWarning, "FailedCreate", "Error creating job: %v", err)
		return next, fmt.Errorf("create job %s/%s: %w", cj.Namespace, name, err)
	default:
		p.events.Eventf(cj, corev1.EventTypeNormal, "SuccessfulCreate", "Created job %v", j.Name)
	}
	cj.Status.Active = append(cj.Status.Active, corev1.ObjectReference{Kind: "Job", APIVersion: "batch/v1", Namespace: j.Namespace, Name: j.Name, UID: j.UID, ResourceVersion: j.ResourceVersion})
	cj.Status.LastScheduleTime = &metav1.Time{Time: due}
	return next, nil
}

// jobName tells Jobs of different minutes apart.
func jobName(cj *batchv1.CronJob, due time.Time) string {
	return fmt.Sprintf("%s-%d", cj.Name, due.Unix()/60)
}

func jobOf(cj *batchv1.CronJob, due time.Time) *batchv1.Job {
	t := cj.Spec.JobTemplate.DeepCopy()
	annotations := t.Annotations
	if annotations == nil {
		annotations = map[string]string{}
	}
	at := due.UTC()
	if cj.Spec.TimeZone != nil {
		if zone, err := time.LoadLocation(*cj.Spec.TimeZone); err == nil {
			at = due.In(zone)
		}
	}
	annotations[batchv1.CronJobScheduledTimestampAnnotation] = at.Format(time.RFC3339)
	return &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: cj.Namespace, Name: jobName(cj, due), Labels: t.Labels, Annotations: annotations,
		OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(cj, client.CronJobs.GVK)}}, Spec: t.Spec}
}
