package job

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/controllers/owned"
)

// uncountedMax bounds how many finished pods one pass takes into the status.
const uncountedMax = 500

// end is how and why a Job ends.
type end struct {
	failed          bool
	reason, message string
}

// step does one pass: it notes the finished pods, decides, and makes or deletes
// pods. Finished pods are counted in two writes, so that each counts once whatever
// happens in between: first their UIDs are noted, then their finalizers taken,
// then the numbers raised.
func (r *run) step(ctx context.Context) error {
	s := &r.job.Status
	suspended := ptr.Deref(r.job.Spec.Suspend, false)
	if !suspended && s.StartTime == nil {
		s.StartTime = ptr.To(metav1.NewTime(r.now))
	}
	u := s.UncountedTerminatedPods
	if u == nil {
		u = &batchv1.UncountedTerminatedPods{}
		s.UncountedTerminatedPods = u
	}
	r.count(func(uid types.UID) bool { return !r.holds(uid) })
	fails := r.judgeAll()
	r.note(u)

	var again time.Duration
	var managed error
	ending := r.ending(fails)
	if ending != nil {
		r.target(*ending)
		managed = r.remove(ctx, slices.Clone(r.active), false)
	} else {
		if r.job.DeletionTimestamp == nil {
			again, managed = r.manage(ctx)
		}
		r.suspend(suspended)
		// The pods deleted just now may have been the last.
		if ending = r.ending(""); ending != nil {
			r.target(*ending)
		}
	}
	r.numbers()
	if err := r.write(ctx); err != nil {
		return errors.Join(managed, err)
	}
	freed, err := r.untrackAll(ctx, r.countable())
	r.count(func(uid types.UID) bool { return freed[uid] || !r.holds(uid) })
	finished := ending != nil && len(r.active) == 0 && len(r.terminating) == 0 && len(u.Succeeded) == 0 && len(u.Failed) == 0 && err == nil
	if finished {
		r.finish(*ending)
	}
	if werr := r.write(ctx); werr != nil {
		return errors.Join(managed, err, werr)
	}
	if finished {
		r.say(*ending)
	}
	if left := r.deadline(); left > 0 && (again == 0 || left < again) {
		again = left
	}
	if again > 0 && ending == nil {
		r.loop.After(r.key, again)
	}
	return errors.Join(managed, err)
}

// holds says that a pod of that UID is there with its finalizer.
func (r *run) holds(uid types.UID) bool {
	return slices.ContainsFunc(r.all, func(p *corev1.Pod) bool { return p.UID == uid && tracked(p) })
}

// count raises the numbers by the noted pods that are free.
func (r *run) count(free func(types.UID) bool) {
	u := r.job.Status.UncountedTerminatedPods
	take := func(list []types.UID, n *int32) []types.UID {
		return slices.DeleteFunc(list, func(uid types.UID) bool {
			if free(uid) {
				*n++
				return true
			}
			return false
		})
	}
	succeeded := r.job.Status.Succeeded
	u.Succeeded = take(u.Succeeded, &succeeded)
	if !r.indexed() {
		r.job.Status.Succeeded = succeeded
	}
	u.Failed = take(u.Failed, &r.job.Status.Failed)
}

// note takes the newly finished pods into the status: by UID, or by index.
func (r *run) note(u *batchv1.UncountedTerminatedPods) {
	s := &r.job.Status
	room := func() bool { return len(u.Succeeded)+len(u.Failed) < uncountedMax }
	if r.indexed() {
		limit := int(ptr.Deref(r.job.Spec.Completions, 0))
		var done []int
		for _, p := range r.succeeded {
			if i, ok := index(p); ok {
				done = append(done, i)
			}
		}
		r.done = parseIntervals(s.CompletedIndexes, limit).with(done)
		s.CompletedIndexes, s.Succeeded = r.done.String(), int32(r.done.count())
		if r.perIndex() {
			var lost []int
			for _, p := range r.failed {
				if i, ok := index(p); ok && !r.done.has(i) && (r.failIndex.has(i) || !r.ignored[p.UID] && failuresOf(p)+1 > int(*r.job.Spec.BackoffLimitPerIndex)) {
					lost = append(lost, i)
				}
			}
			r.lost = parseIntervals(ptr.Deref(s.FailedIndexes, ""), limit).with(lost)
			s.FailedIndexes = ptr.To(r.lost.String())
		}
	} else {
		for _, p := range r.succeeded {
			if room() {
				u.Succeeded = append(u.Succeeded, p.UID)
			}
		}
	}
	for _, p := range r.failed {
		if !r.ignored[p.UID] && room() {
			u.Failed = append(u.Failed, p.UID)
		}
	}
}

// countable are the finished pods whose finalizer may go now.
func (r *run) countable() (out []*corev1.Pod) {
	u := r.job.Status.UncountedTerminatedPods
	noted := map[types.UID]bool{}
	for _, uid := range append(slices.Clone(u.Succeeded), u.Failed...) {
		noted[uid] = true
	}
	last := map[types.UID]bool{}
	if r.perIndex() {
		taken := r.taken()
		for i, p := range r.lastFailures() {
			// It carries the count of failures until the next pod of its index does.
			if !taken[i] && !r.done.has(i) && !r.lost.has(i) {
				last[p.UID] = true
			}
		}
	}
	for _, p := range r.all {
		ended := p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed || p.DeletionTimestamp != nil && !r.failedOnly()
		if !tracked(p) || !ended || last[p.UID] {
			continue
		}
		plain := !r.indexed() && p.Status.Phase == corev1.PodSucceeded || p.Status.Phase != corev1.PodSucceeded && !r.ignored[p.UID] && r.counts(p)
		if plain && !noted[p.UID] {
			continue // there was no room for it: the next pass
		}
		out = append(out, p)
	}
	return out
}

func (r *run) succeededCount() int {
	n := int(r.job.Status.Succeeded)
	if !r.indexed() {
		n += len(r.job.Status.UncountedTerminatedPods.Succeeded)
	}
	return n
}

func (r *run) has(t batchv1.JobConditionType) *batchv1.JobCondition {
	for i := range r.job.Status.Conditions {
		if c := &r.job.Status.Conditions[i]; c.Type == t && c.Status == corev1.ConditionTrue {
			return c
		}
	}
	return nil
}

// ending decides whether the Job ends; fails is what podFailurePolicy says.
func (r *run) ending(fails string) *end {
	spec, s := &r.job.Spec, &r.job.Status
	if c := r.has(batchv1.JobFailureTarget); c != nil {
		return &end{true, c.Reason, c.Message}
	}
	if c := r.has(batchv1.JobSuccessCriteriaMet); c != nil {
		return &end{false, c.Reason, c.Message}
	}
	failed := int(s.Failed) + len(s.UncountedTerminatedPods.Failed)
	switch {
	case fails != "":
		return &end{true, batchv1.JobReasonPodFailurePolicy, fails}
	case failed > int(ptr.Deref(spec.BackoffLimit, 6)), r.restartedTooOften():
		return &end{true, batchv1.JobReasonBackoffLimitExceeded, "Job has reached the specified backoff limit"}
	case r.late():
		return &end{true, batchv1.JobReasonDeadlineExceeded, "Job was active longer than specified deadline"}
	}
	if r.perIndex() {
		if most := spec.MaxFailedIndexes; most != nil && r.lost.count() > int(*most) {
			return &end{true, batchv1.JobReasonMaxFailedIndexesExceeded, "Job has exceeded the specified maximal number of failed indexes"}
		}
	}
	if message, ok := r.enough(); ok {
		return &end{false, batchv1.JobReasonSuccessPolicy, message}
	}
	reached := &end{false, batchv1.JobReasonCompletionsReached, "Reached expected number of succeeded pods"}
	switch {
	case len(r.active) > 0:
	case spec.Completions == nil:
		if r.succeededCount() > 0 {
			return reached
		}
	case r.succeededCount() >= int(*spec.Completions):
		return reached
	case r.perIndex() && r.done.count()+r.lost.count() >= int(*spec.Completions):
		return &end{true, batchv1.JobReasonFailedIndexes, "Job has failed indexes"}
	}
	return nil
}

// restartedTooOften counts the restarts of containers that restart in place.
func (r *run) restartedTooOften() bool {
	if r.job.Spec.Template.Spec.RestartPolicy != corev1.RestartPolicyOnFailure {
		return false
	}
	restarts := int32(0)
	for _, p := range r.active {
		for _, c := range append(slices.Clone(p.Status.InitContainerStatuses), p.Status.ContainerStatuses...) {
			restarts += c.RestartCount
		}
	}
	limit := ptr.Deref(r.job.Spec.BackoffLimit, 6)
	return limit == 0 && restarts > 0 || limit > 0 && restarts >= limit
}

// deadline is how long until the Job is too late (0: it has no deadline).
func (r *run) deadline() time.Duration {
	if r.job.Spec.ActiveDeadlineSeconds == nil || ptr.Deref(r.job.Spec.Suspend, false) || r.job.Status.StartTime == nil {
		return 0
	}
	return max(time.Millisecond, r.job.Status.StartTime.Add(time.Duration(*r.job.Spec.ActiveDeadlineSeconds)*time.Second).Sub(r.now))
}

func (r *run) late() bool {
	left := r.deadline()
	return left > 0 && left <= time.Millisecond
}

// set sets a condition of the Job.
func (r *run) set(t batchv1.JobConditionType, status corev1.ConditionStatus, reason, message string) bool {
	now := metav1.NewTime(r.now)
	for i := range r.job.Status.Conditions {
		c := &r.job.Status.Conditions[i]
		if c.Type != t {
			continue
		}
		if c.Status == status && c.Reason == reason && c.Message == message {
			return false
		}
		if c.Status != status {
			c.LastTransitionTime = now
		}
		c.Status, c.Reason, c.Message, c.LastProbeTime = status, reason, message, now
		return true
	}
	if status == corev1.ConditionFalse {
		return false // what never was is not denied
	}
	r.job.Status.Conditions = append(r.job.Status.Conditions, batchv1.JobCondition{Type: t, Status: status, Reason: reason, Message: message, LastProbeTime: now, LastTransitionTime: now})
	return true
}

// target says how the Job will end, once its pods have.
func (r *run) target(e end) {
	t := batchv1.JobSuccessCriteriaMet
	if e.failed {
		t = batchv1.JobFailureTarget
	}
	r.set(t, corev1.ConditionTrue, e.reason, e.message)
}

func (r *run) finish(e end) {
	if e.failed {
		r.set(batchv1.JobFailed, corev1.ConditionTrue, e.reason, e.message)
		return
	}
	r.set(batchv1.JobComplete, corev1.ConditionTrue, e.reason, e.message)
	r.job.Status.CompletionTime = ptr.To(metav1.NewTime(r.now))
}

func (r *run) say(e end) {
	if e.failed {
		r.events.Eventf(r.job, corev1.EventTypeWarning, e.reason, "%s", e.message)
		return
	}
	r.events.Eventf(r.job, corev1.EventTypeNormal, "Completed", "Job completed")
}

// suspend notes that the Job is suspended, or goes on.
func (r *run) suspend(suspended bool) {
	if suspended {
		if r.set(batchv1.JobSuspended, corev1.ConditionTrue, "JobSuspended", "Job suspended") {
			r.events.Eventf(r.job, corev1.EventTypeNormal, "Suspended", "Job suspended")
		}
		return
	}
	if r.set(batchv1.JobSuspended, corev1.ConditionFalse, "JobResumed", "Job resumed") {
		r.events.Eventf(r.job, corev1.EventTypeNormal, "Resumed", "Job resumed")
		r.job.Status.StartTime = ptr.To(metav1.NewTime(r.now)) // the deadline begins anew
	}
}

func (r *run) numbers() {
	s := &r.job.Status
	ready := int32(0)
	for _, p := range r.active {
		if _, ok := owned.ReadySince(p); ok {
			ready++
		}
	}
	s.Active, s.Ready, s.Terminating = int32(len(r.active)), &ready, ptr.To(int32(len(r.terminating)))
}

// write writes the status when it differs from the last written one.
func (r *run) write(ctx context.Context) error {
	if apiequality.Semantic.DeepEqual(r.shared.Status, r.job.Status) {
		return nil
	}
	updated, err := client.Jobs.UpdateStatus(ctx, r.client, r.job)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("write the status of job %s: %w", r.key, err)
	}
	r.shared, r.job.ResourceVersion = updated, updated.ResourceVersion
	return nil
}
