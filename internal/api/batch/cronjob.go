package batch

import (
	"strings"
	"time"

	"github.com/robfig/cron/v3"
	batchv1 "k8s.io/api/batch/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/core"
	"github.com/proa-dev/proa/internal/api/rules"
)

// Jobs are named after their cron job with eleven more characters.
const maxCronJobName = 52

func cronJobs(gv schema.GroupVersion) *api.Resource {
	r := rules.Namespaced[batchv1.CronJob, batchv1.CronJobList](gv, "cronjobs", "cj")
	r.Categories = []string{"all"}
	r.UnconditionalUpdate = true
	r.Columns = append([]metav1.TableColumnDefinition{
		rules.Name(),
		rules.Text("Schedule", "The schedule in Cron format."),
		rules.Text("Timezone", "The time zone for the schedule."),
		rules.Boolean("Suspend", "Whether later runs are held back."),
		rules.Integer("Active", "The number of jobs that run now."),
		rules.Text("Last Schedule", "Time since a job was last scheduled."),
		rules.Age(),
	}, rules.PodColumns()...)
	return api.Kind[*batchv1.CronJob]{
		Resource:         r,
		Default:          defaultCronJob,
		PrepareForCreate: func(c *batchv1.CronJob) { c.Spec.JobTemplate.Spec.Scheduling = nil },
		PrepareForUpdate: func(c, old *batchv1.CronJob) {
			if old.Spec.JobTemplate.Spec.Scheduling == nil {
				c.Spec.JobTemplate.Spec.Scheduling = nil
			}
		},
		Validate: validateCronJob,
		ValidateUpdate: func(c, _ *batchv1.CronJob) field.ErrorList {
			return validateCronJob(c)
		},
		CopyStatus:  func(dst, src *batchv1.CronJob) { dst.Status = *src.Status.DeepCopy() },
		SpecChanged: func(c, old *batchv1.CronJob) bool { return !rules.Same(c.Spec, old.Spec) },
		Warnings:    func(c *batchv1.CronJob) []string { return rules.PodNameWarnings(c) },
		Row: func(c *batchv1.CronJob) []any {
			last := rules.None
			if t := c.Status.LastScheduleTime; t != nil {
				last = rules.Since(*t)
			}
			suspend := rules.Unset
			if s := c.Spec.Suspend; s != nil {
				suspend = map[bool]string{true: "True", false: "False"}[*s]
			}
			return append([]any{
				c.Name, c.Spec.Schedule, rules.Or(c.Spec.TimeZone, rules.None), suspend, int64(len(c.Status.Active)), last, rules.Created(c),
			}, rules.PodCells(&c.Spec.JobTemplate.Spec.Template.Spec, c.Spec.JobTemplate.Spec.Selector)...)
		},
	}.Erase()
}

func defaultCronJob(c *batchv1.CronJob) {
	core.DefaultPodTemplate(&c.Spec.JobTemplate.Spec.Template)
	rules.Fill(&c.Spec.ConcurrencyPolicy, batchv1.AllowConcurrent)
	rules.Refer(&c.Spec.Suspend, false)
	rules.Refer(&c.Spec.SuccessfulJobsHistoryLimit, 3)
	rules.Refer(&c.Spec.FailedJobsHistoryLimit, 1)
}

func validateCronJob(c *batchv1.CronJob) (errs field.ErrorList) {
	if len(c.Name) > maxCronJobName {
		errs = append(errs, field.Invalid(field.NewPath("metadata", "name"), c.Name, "must be no more than 52 characters"))
	}
	spec := field.NewPath("spec")
	s := &c.Spec
	errs = append(errs, validateSchedule(s, spec)...)
	errs = append(errs, rules.NonnegativePointer(s.StartingDeadlineSeconds, spec.Child("startingDeadlineSeconds"))...)
	errs = append(errs, rules.OneOf(s.ConcurrencyPolicy, spec.Child("concurrencyPolicy"), "",
		batchv1.AllowConcurrent, batchv1.ForbidConcurrent, batchv1.ReplaceConcurrent)...)
	job := spec.Child("jobTemplate", "spec")
	if s.JobTemplate.Spec.Selector != nil {
		errs = append(errs, field.Invalid(job.Child("selector"), s.JobTemplate.Spec.Selector, "`selector` will be auto-generated"))
	}
	if rules.Or(s.JobTemplate.Spec.ManualSelector, false) {
		errs = append(errs, field.NotSupported(job.Child("manualSelector"), true, []string{"nil", "false"}))
	}
	errs = append(errs, validateJobSpec(&s.JobTemplate.Spec, job)...)
	errs = append(errs, rules.NonnegativePointer(s.SuccessfulJobsHistoryLimit, spec.Child("successfulJobsHistoryLimit"))...)
	return append(errs, rules.NonnegativePointer(s.FailedJobsHistoryLimit, spec.Child("failedJobsHistoryLimit"))...)
}

func validateSchedule(s *batchv1.CronJobSpec, spec *field.Path) (errs field.ErrorList) {
	path := spec.Child("schedule")
	switch {
	case s.Schedule == "":
		errs = append(errs, field.Required(path, ""))
	case strings.Contains(s.Schedule, "TZ"):
		errs = append(errs, field.Invalid(path, s.Schedule, "cannot use TZ or CRON_TZ in schedule, use timeZone field instead"))
	default:
		if _, err := cron.ParseStandard(s.Schedule); err != nil {
			errs = append(errs, field.Invalid(path, s.Schedule, err.Error()))
		}
	}
	if s.TimeZone == nil {
		return errs
	}
	path = spec.Child("timeZone")
	switch zone := *s.TimeZone; {
	case zone == "":
		errs = append(errs, field.Invalid(path, zone, "timeZone must be nil or non-empty string"))
	case strings.EqualFold(zone, "Local"):
		errs = append(errs, field.Invalid(path, zone, "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones"))
	default:
		if _, err := time.LoadLocation(zone); err != nil {
			errs = append(errs, field.Invalid(path, zone, err.Error()))
		}
	}
	return errs
}
