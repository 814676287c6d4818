package job

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/controllers/owned"
)

// A failed pod is replaced after 10 s, 20 s, 40 s ... (the API's documentation).
const (
	firstBackoff = 10 * time.Second
	maxBackoff   = 10 * time.Minute
)

// backoff counts the failures of a Job since its last success.
type backoff struct {
	failures int
	last     time.Time
	seen     map[types.UID]bool
}

func (x *Controller) forgetBackoff(key types.NamespacedName) {
	x.mu.Lock()
	delete(x.backoffs, key)
	x.mu.Unlock()
}

func wait(failures int) time.Duration {
	if failures <= 0 {
		return 0
	}
	return min(maxBackoff, firstBackoff<<min(failures-1, 10))
}

// backoffLeft notes the newly finished pods and says how long no pod may be made.
func (r *run) backoffLeft() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	b := r.backoffs[r.key]
	if b == nil {
		b = &backoff{seen: map[types.UID]bool{}}
		r.backoffs[r.key] = b
	}
	for _, p := range r.succeeded {
		if !b.seen[p.UID] {
			b.seen[p.UID] = true
			b.failures = 0
		}
	}
	for _, p := range r.failed {
		if !b.seen[p.UID] && !r.ignored[p.UID] {
			b.seen[p.UID] = true
			b.failures++
			if at := finishedAt(p, r.now); at.After(b.last) {
				b.last = at
			}
		}
	}
	return b.last.Add(wait(b.failures)).Sub(r.now)
}

// finishedAt is when the last container of a pod ended.
func finishedAt(p *corev1.Pod, now time.Time) time.Time {
	var at time.Time
	for _, c := range p.Status.ContainerStatuses {
		if t := c.State.Terminated; t != nil && t.FinishedAt.After(at) {
			at = t.FinishedAt.Time
		}
	}
	if at.IsZero() {
		return now
	}
	return at
}

// manage makes or deletes pods towards the parallelism, and says whether and when
// to look again (0: an event will say).
func (r *run) manage(ctx context.Context) (time.Duration, error) {
	want := int(ptr.Deref(r.job.Spec.Parallelism, 1))
	switch {
	case ptr.Deref(r.job.Spec.Suspend, false):
		want = 0
	case r.job.Spec.Completions == nil:
		// Once one has succeeded, the others finish and no new one begins.
		if r.succeededCount() > 0 {
			want = len(r.active)
		}
	default:
		want = min(want, int(*r.job.Spec.Completions)-r.succeededCount()-r.lost.count())
	}
	want = max(0, want)
	surplus := r.surplus(want)
	if len(surplus) > 0 {
		return 0, r.remove(ctx, surplus, true)
	}
	missing := want - len(r.active)
	if r.failedOnly() {
		missing -= len(r.terminating)
	}
	if missing <= 0 {
		return 0, nil
	}
	if r.perIndex() {
		return r.createIndexes(ctx, missing)
	}
	if left := r.backoffLeft(); left > 0 {
		return left, nil
	}
	if !r.indexed() {
		return 0, r.create(ctx, make([]int, min(missing, burst)))
	}
	return 0, r.create(ctx, r.free(min(missing, burst)))
}

// free returns the first indexes that nobody works on.
func (r *run) free(n int) (out []int) {
	taken := r.taken()
	for i := 0; i < int(*r.job.Spec.Completions) && len(out) < n; i++ {
		if !taken[i] && !r.done.has(i) && !r.lost.has(i) {
			out = append(out, i)
		}
	}
	return out
}

func (r *run) taken() map[int]bool {
	taken := map[int]bool{}
	for _, p := range r.active {
		if i, ok := index(p); ok {
			taken[i] = true
		}
	}
	if r.failedOnly() {
		for _, p := range r.terminating {
			if i, ok := index(p); ok {
				taken[i] = true
			}
		}
	}
	return taken
}

// surplus are the active pods that are too many, or of indexes that are not wanted.
func (r *run) surplus(want int) (out []*corev1.Pod) {
	rest := slices.Clone(r.active)
	if r.indexed() {
		seen := map[int]bool{}
		rest = slices.DeleteFunc(rest, func(p *corev1.Pod) bool {
			i, ok := index(p)
			if !ok || i >= int(ptr.Deref(r.job.Spec.Completions, 0)) || r.done.has(i) || r.lost.has(i) || seen[i] {
				out = append(out, p)
				return true
			}
			seen[i] = true
			return false
		})
	}
	if n := len(rest) - want; n > 0 {
		// Those that have come least far go first; of an Indexed Job, the highest.
		slices.SortStableFunc(rest, func(a, b *corev1.Pod) int {
			if r.indexed() {
				ai, _ := index(a)
				bi, _ := index(b)
				return bi - ai
			}
			if c := rank(a) - rank(b); c != 0 {
				return c
			}
			return b.CreationTimestamp.Compare(a.CreationTimestamp.Time)
		})
		out = append(out, rest[:n]...)
	}
	return out[:min(len(out), burst)]
}

func rank(p *corev1.Pod) int {
	_, ready := owned.ReadySince(p)
	switch {
	case p.Spec.NodeName == "":
		return 0
	case p.Status.Phase == corev1.PodPending:
		return 1
	case !ready:
		return 2
	}
	return 3
}

// remove deletes active pods; they are no longer active in this pass. Pods that are
// merely too many are freed first, so that they do not count as failures.
func (r *run) remove(ctx context.Context, pods []*corev1.Pod, surplus bool) error {
	_, err := owned.SlowStart(len(pods), func(i int) error {
		p := pods[i]
		if surplus && tracked(p) {
			if err := r.untrack(ctx, p); err != nil {
				return err
			}
		}
		err := client.Pods.Delete(ctx, r.client, p.Namespace, p.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &p.UID}})
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			r.events.Eventf(r.job, corev1.EventTypeWarning, "FailedDelete", "Error deleting: %v", err)
			return fmt.Errorf("delete pod %s/%s: %w", p.Namespace, p.Name, err)
		}
		r.events.Eventf(r.job, corev1.EventTypeNormal, "SuccessfulDelete", "Deleted pod: %v", p.Name)
		r.pending.Deleted(r.key, r.pods.Informer, p)
		return nil
	})
	if err != nil {
		return err
	}
	r.active = slices.DeleteFunc(r.active, func(p *corev1.Pod) bool { return slices.Contains(pods, p) })
	r.terminating = append(r.terminating, pods...)
	return nil
}

// create makes a pod for each index (all 0 when the Job is not Indexed).
func (r *run) create(ctx context.Context, indexes []int) error {
	made := make([]*corev1.Pod, len(indexes))
	_, err := owned.SlowStart(len(indexes), func(i int) error {
		pod, err := client.Pods.Create(ctx, r.client, r.pod(indexes[i]))
		switch {
		case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause), apierrors.IsNotFound(err):
			return nil
		case err != nil:
			r.events.Eventf(r.job, corev1.EventTypeWarning, "FailedCreate", "Error creating: %v", err)
			return fmt.Errorf("create a pod of job %s: %w", r.key, err)
		}
		r.events.Eventf(r.job, corev1.EventTypeNormal, "SuccessfulCreate", "Created pod: %v", pod.Name)
		r.pending.Created(r.key, r.pods.Informer, pod)
		made[i] = pod
		return nil
	})
	for _, p := range made {
		if p != nil {
			r.active = append(r.active, p)
		}
	}
	return err
}

// createIndexes makes pods of an Indexed Job with a back-off for each index.
func (r *run) createIndexes(ctx context.Context, missing int) (time.Duration, error) {
	var again time.Duration
	var ready []int
	last := r.lastFailures()
	for _, i := range r.free(int(*r.job.Spec.Completions)) {
		if p := last[i]; p != nil {
			if left := finishedAt(p, r.now).Add(wait(failuresOf(p) + 1)).Sub(r.now); left > 0 {
				if again == 0 || left < again {
					again = left
				}
				continue
			}
		}
		if len(ready) < min(missing, burst) {
			ready = append(ready, i)
		}
	}
	err := r.create(ctx, ready)
	return again, err
}

// lastFailures is, for each index, the failed pod of the most failures: it is kept
// until its successor, which carries the count on, is there.
func (r *run) lastFailures() map[int]*corev1.Pod {
	out := map[int]*corev1.Pod{}
	for _, p := range r.all {
		if i, ok := index(p); ok && tracked(p) && (p.Status.Phase == corev1.PodFailed || p.DeletionTimestamp != nil) {
			if have := out[i]; have == nil || failuresOf(p) >= failuresOf(have) {
				out[i] = p
			}
		}
	}
	return out
}

// failuresOf is how often an index had failed before a pod was made for it.
func failuresOf(p *corev1.Pod) int {
	n, _ := strconv.Atoi(p.Annotations[batchv1.JobIndexFailureCountAnnotation])
	return n
}

const indexField = "metadata.labels['" + batchv1.JobCompletionIndexAnnotation + "']"

// pod makes the pod of an index.
func (r *run) pod(i int) *corev1.Pod {
	pod := owned.Pod(&r.job.Spec.Template, r.shared, client.Jobs.GVK, r.job.Name+"-")
	pod.Finalizers = append(pod.Finalizers, batchv1.JobTrackingFinalizer)
	if !r.indexed() {
		return pod
	}
	if pod.Annotations == nil {
		pod.Annotations = map[string]string{}
	}
	if pod.Labels == nil {
		pod.Labels = map[string]string{}
	}
	number := strconv.Itoa(i)
	pod.Annotations[batchv1.JobCompletionIndexAnnotation] = number
	pod.Labels[batchv1.JobCompletionIndexAnnotation] = number
	if r.perIndex() {
		failures := 0
		if p := r.lastFailures()[i]; p != nil {
			failures = failuresOf(p)
			if !r.ignored[p.UID] {
				failures++
			}
		}
		pod.Annotations[batchv1.JobIndexFailureCountAnnotation] = strconv.Itoa(failures)
	}
	pod.GenerateName = indexedPrefix(r.job.Name, number)
	if pod.Spec.Hostname == "" {
		pod.Spec.Hostname = r.job.Name + "-" + number
	}
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for c := range list {
			if !slices.ContainsFunc(list[c].Env, func(e corev1.EnvVar) bool { return e.Name == "JOB_COMPLETION_INDEX" }) {
				list[c].Env = append(list[c].Env, corev1.EnvVar{Name: "JOB_COMPLETION_INDEX", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: indexField}}})
			}
		}
	}
	return pod
}

func indexedPrefix(job, number string) string {
	const room = 63 - 5 // the API adds five characters to a prefix
	tail := "-" + number + "-"
	return job[:min(len(job), room-len(tail))] + tail
}

// untrackAll frees the counted pods, many at a time, and returns those freed.
func (r *run) untrackAll(ctx context.Context, pods []*corev1.Pod) (map[types.UID]bool, error) {
	free := make([]bool, len(pods))
	errs := make([]error, len(pods))
	_, _ = owned.SlowStart(len(pods), func(i int) error {
		errs[i] = r.untrack(ctx, pods[i])
		free[i] = errs[i] == nil
		return nil
	})
	out := map[types.UID]bool{}
	for i, ok := range free {
		if ok {
			out[pods[i].UID] = true
		}
	}
	return out, errors.Join(errs...)
}
