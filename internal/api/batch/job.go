package batch

import (
	"fmt"
	"maps"
	"math"
	"strconv"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/core"
	"github.com/proa-dev/proa/internal/api/rules"
)

// The labels that jobs gave their pods before they had a domain; both are written.
const (
	legacyJobName       = "job-name"
	legacyControllerUID = "controller-uid"
)

func jobs(gv schema.GroupVersion) *api.Resource {
	r := rules.Namespaced[batchv1.Job, batchv1.JobList](gv, "jobs")
	r.Categories = []string{"all"}
	r.UnconditionalUpdate = true
	// batch/v1 has always left a job's pods alone unless asked; kubectl asks for Background.
	r.DefaultOrphan = true
	r.FieldLabels = []string{"status.successful"}
	r.Columns = append([]metav1.TableColumnDefinition{
		rules.Name(),
		rules.Text("Status", "Status of the job."),
		rules.Text("Completions", "The number of pods that have succeeded, of those wanted."),
		rules.Text("Duration", "Time required to complete the job."),
		rules.Age(),
	}, rules.PodColumns()...)
	return api.Kind[*batchv1.Job]{
		Resource:         r,
		Default:          defaultJob,
		PrepareForCreate: prepareJob,
		PrepareForUpdate: func(j, old *batchv1.Job) {
			if old.Spec.Scheduling == nil {
				j.Spec.Scheduling = nil
			}
		},
		Validate:             validateJob,
		ValidateUpdate:       validateJobUpdate,
		CopyStatus:           func(dst, src *batchv1.Job) { dst.Status = *src.Status.DeepCopy() },
		ValidateStatusUpdate: validateJobStatusUpdate,
		SpecChanged:          func(j, old *batchv1.Job) bool { return !rules.Same(j.Spec, old.Spec) },
		Warnings:             func(j *batchv1.Job) []string { return rules.PodNameWarnings(j) },
		Fields: func(j *batchv1.Job) fields.Set {
			return fields.Set{"status.successful": strconv.Itoa(int(j.Status.Succeeded))}
		},
		Row: func(j *batchv1.Job) []any {
			return append([]any{j.Name, jobState(j), jobCompletions(j), jobDuration(j), rules.Created(j)},
				rules.PodCells(&j.Spec.Template.Spec, j.Spec.Selector)...)
		},
	}.Erase()
}

func defaultJob(j *batchv1.Job) {
	core.DefaultPodTemplate(&j.Spec.Template)
	s := &j.Spec
	if s.Completions == nil && s.Parallelism == nil {
		rules.Refer(&s.Completions, 1)
	}
	rules.Refer(&s.Parallelism, 1)
	if s.BackoffLimitPerIndex != nil {
		rules.Refer(&s.BackoffLimit, math.MaxInt32)
	}
	rules.Refer(&s.BackoffLimit, 6)
	if len(j.Labels) == 0 {
		j.Labels = maps.Clone(s.Template.Labels)
	}
	rules.Refer(&s.CompletionMode, batchv1.NonIndexedCompletion)
	rules.Refer(&s.Suspend, false)
	rules.Refer(&s.ManualSelector, false)
	replacement := batchv1.TerminatingOrFailed
	if s.PodFailurePolicy != nil {
		replacement = batchv1.Failed
	}
	rules.Refer(&s.PodReplacementPolicy, replacement)
}

// prepareJob gives the job a selector of its own, which its UID makes unique,
// and its pods the labels that match it.
func prepareJob(j *batchv1.Job) {
	j.Spec.Scheduling = nil // alpha: gang scheduling of jobs
	if rules.Or(j.Spec.ManualSelector, false) {
		return
	}
	t := &j.Spec.Template
	inherited := len(j.Labels) == 0 || maps.Equal(j.Labels, t.Labels)
	if t.Labels == nil {
		t.Labels = make(map[string]string, 4)
	}
	for label, value := range map[string]string{
		legacyJobName:              j.Name,
		batchv1.JobNameLabel:       j.Name,
		legacyControllerUID:        string(j.UID),
		batchv1.ControllerUidLabel: string(j.UID),
	} {
		if _, set := t.Labels[label]; !set {
			t.Labels[label] = value
		}
	}
	if inherited {
		j.Labels = maps.Clone(t.Labels)
	}
	rules.Refer(&j.Spec.Selector, metav1.LabelSelector{})
	if j.Spec.Selector.MatchLabels == nil {
		j.Spec.Selector.MatchLabels = make(map[string]string, 1)
	}
	if _, set := j.Spec.Selector.MatchLabels[batchv1.ControllerUidLabel]; !set {
		j.Spec.Selector.MatchLabels[batchv1.ControllerUidLabel] = string(j.UID)
	}
}

func hasCondition(j *batchv1.Job, kind batchv1.JobConditionType) bool {
	for i := range j.Status.Conditions {
		if c := &j.Status.Conditions[i]; c.Type == kind {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func jobState(j *batchv1.Job) string {
	switch {
	case hasCondition(j, batchv1.JobComplete):
		return "Complete"
	case hasCondition(j, batchv1.JobFailed):
		return "Failed"
	case j.DeletionTimestamp != nil:
		return "Terminating"
	case hasCondition(j, batchv1.JobSuspended):
		return "Suspended"
	case hasCondition(j, batchv1.JobFailureTarget):
		return "FailureTarget"
	case hasCondition(j, batchv1.JobSuccessCriteriaMet):
		return "SuccessCriteriaMet"
	}
	return "Running"
}

func jobCompletions(j *batchv1.Job) string {
	if j.Spec.Completions != nil {
		return fmt.Sprintf("%d/%d", j.Status.Succeeded, *j.Spec.Completions)
	}
	if n := rules.Or(j.Spec.Parallelism, 0); n > 1 {
		return fmt.Sprintf("%d/1 of %d", j.Status.Succeeded, n)
	}
	return fmt.Sprintf("%d/1", j.Status.Succeeded)
}

func jobDuration(j *batchv1.Job) string {
	switch {
	case j.Status.StartTime == nil:
		return ""
	case j.Status.CompletionTime == nil:
		return duration.HumanDuration(time.Since(j.Status.StartTime.Time))
	}
	return duration.HumanDuration(j.Status.CompletionTime.Sub(j.Status.StartTime.Time))
}
