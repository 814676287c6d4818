package batch

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api/core"
	"github.com/proa-dev/proa/internal/api/rules"
)

// What an Indexed job may ask for at most; larger jobs would not fit an object.
const (
	maxIndexedParallelism = 100_000
	maxFailedIndexes      = 100_000
	// Above these a job's failures are limited further.
	manyCompletions            = 100_000
	manyCompletionsParallelism = 10_000
	manyCompletionsFailed      = 10_000

	maxFailureRules     = 20
	maxExitCodes        = 255
	maxPodConditions    = 20
	maxSuccessRules     = 20
	maxSucceededIndexes = 64 * 1024
	maxManagedBy        = 63
)

func validateJob(j *batchv1.Job) field.ErrorList {
	spec := field.NewPath("spec")
	errs := validateGeneratedSelector(j)
	if j.Spec.Selector == nil {
		errs = append(errs, field.Required(spec.Child("selector"), ""))
	} else {
		errs = append(errs, rules.Selector(j.Spec.Selector, spec.Child("selector"))...)
	}
	if selector, err := metav1.LabelSelectorAsSelector(j.Spec.Selector); err == nil {
		errs = append(errs, rules.SelectsTemplate(selector, j.Spec.Template.Labels, spec.Child("template"))...)
	}
	errs = append(errs, validateJobSpec(&j.Spec, spec)...)
	if rules.Or(j.Spec.CompletionMode, "") == batchv1.IndexedCompletion && rules.Or(j.Spec.Completions, 0) > 0 {
		// The pod with the highest index has the longest host name.
		name := j.Name + "-" + strconv.Itoa(int(*j.Spec.Completions-1))
		if msgs := validation.IsDNS1123Label(name); len(msgs) > 0 {
			errs = append(errs, field.Invalid(field.NewPath("metadata", "name"), j.Name,
				fmt.Sprintf("will not able to create pod with invalid DNS label: %s", name)))
		}
	}
	return errs
}

// validateGeneratedSelector refuses jobs whose selector could match pods of others without having said so.
func validateGeneratedSelector(j *batchv1.Job) (errs field.ErrorList) {
	if rules.Or(j.Spec.ManualSelector, false) || j.Spec.Selector == nil {
		return nil
	}
	if j.UID == "" {
		return field.ErrorList{field.Required(field.NewPath("metadata", "uid"), "")}
	}
	path := field.NewPath("spec", "template", "metadata", "labels")
	want := func(key, value string) {
		switch got, set := j.Spec.Template.Labels[key]; {
		case !set:
			errs = append(errs, field.Required(path.Key(key), fmt.Sprintf("must be '%s'", value)))
		case got != value:
			errs = append(errs, field.Invalid(path.Key(key), j.Spec.Template.Labels, fmt.Sprintf("must be '%s'", value)))
		}
	}
	want(legacyControllerUID, string(j.UID))
	want(legacyJobName, j.Name)
	want(batchv1.ControllerUidLabel, string(j.UID))
	want(batchv1.JobNameLabel, j.Name)
	generated := labels.Set{
		legacyControllerUID: string(j.UID), legacyJobName: j.Name,
		batchv1.ControllerUidLabel: string(j.UID), batchv1.JobNameLabel: j.Name,
	}
	if selector, err := metav1.LabelSelectorAsSelector(j.Spec.Selector); err == nil && !selector.Matches(generated) {
		errs = append(errs, field.Invalid(field.NewPath("spec", "selector"), j.Spec.Selector, "`selector` not auto-generated"))
	}
	return errs
}

// validateJobSpec checks all of a job but its selector, which a cron job's template does not have.
func validateJobSpec(s *batchv1.JobSpec, path *field.Path) field.ErrorList {
	errs := rules.NonnegativePointer(s.Parallelism, path.Child("parallelism"))
	errs = append(errs, rules.NonnegativePointer(s.Completions, path.Child("completions"))...)
	errs = append(errs, rules.NonnegativePointer(s.ActiveDeadlineSeconds, path.Child("activeDeadlineSeconds"))...)
	errs = append(errs, rules.NonnegativePointer(s.BackoffLimit, path.Child("backoffLimit"))...)
	errs = append(errs, rules.NonnegativePointer(s.TTLSecondsAfterFinished, path.Child("ttlSecondsAfterFinished"))...)
	errs = append(errs, rules.NonnegativePointer(s.BackoffLimitPerIndex, path.Child("backoffLimitPerIndex"))...)
	errs = append(errs, rules.NonnegativePointer(s.MaxFailedIndexes, path.Child("maxFailedIndexes"))...)
	if s.ManagedBy != nil {
		errs = append(errs, validation.IsDomainPrefixedPath(path.Child("managedBy"), *s.ManagedBy)...)
		if len(*s.ManagedBy) > maxManagedBy {
			errs = append(errs, field.TooLong(path.Child("managedBy"), *s.ManagedBy, maxManagedBy))
		}
	}
	errs = append(errs, validateIndexes(s, path)...)
	if s.PodFailurePolicy != nil {
		errs = append(errs, validatePodFailurePolicy(s, path.Child("podFailurePolicy"))...)
	}
	if s.SuccessPolicy != nil {
		errs = append(errs, validateSuccessPolicy(s, path.Child("successPolicy"))...)
	}
	if p := s.PodReplacementPolicy; p != nil {
		allowed := []batchv1.PodReplacementPolicy{batchv1.Failed, batchv1.TerminatingOrFailed}
		if s.PodFailurePolicy != nil {
			allowed = allowed[:1]
		}
		if !slices.Contains(allowed, *p) {
			errs = append(errs, field.NotSupported(path.Child("podReplacementPolicy"), *p, allowed))
		}
	}
	errs = append(errs, core.ValidatePodTemplateSpec(&s.Template, path.Child("template"))...)
	return append(errs, validateRestartPolicy(s, path.Child("template", "spec", "restartPolicy"))...)
}

func validateRestartPolicy(s *batchv1.JobSpec, path *field.Path) (errs field.ErrorList) {
	switch policy := s.Template.Spec.RestartPolicy; policy {
	case "", corev1.RestartPolicyAlways: // Always is what a pod's own defaulting has put in when there was nothing
		errs = append(errs, field.Required(path, fmt.Sprintf("valid values: %q, %q", corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever)))
	case corev1.RestartPolicyNever:
	case corev1.RestartPolicyOnFailure:
		if s.PodFailurePolicy != nil {
			errs = append(errs, field.Invalid(path, policy, fmt.Sprintf("only %q is supported when podFailurePolicy is specified", corev1.RestartPolicyNever)))
		}
		if s.BackoffLimitPerIndex != nil {
			errs = append(errs, field.Invalid(path, policy, fmt.Sprintf("only %q is supported when backoffLimitPerIndex is specified", corev1.RestartPolicyNever)))
		}
	default:
		errs = append(errs, field.NotSupported(path, policy, []corev1.RestartPolicy{corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever}))
	}
	return errs
}

func validateIndexes(s *batchv1.JobSpec, path *field.Path) (errs field.ErrorList) {
	if s.MaxFailedIndexes != nil && s.BackoffLimitPerIndex == nil {
		errs = append(errs, field.Required(path.Child("backoffLimitPerIndex"), "when maxFailedIndexes is specified"))
	}
	switch mode := rules.Or(s.CompletionMode, batchv1.NonIndexedCompletion); mode {
	case batchv1.NonIndexedCompletion:
		if s.BackoffLimitPerIndex != nil {
			errs = append(errs, field.Invalid(path.Child("backoffLimitPerIndex"), *s.BackoffLimitPerIndex, "requires indexed completion mode"))
		}
		if s.MaxFailedIndexes != nil {
			errs = append(errs, field.Invalid(path.Child("maxFailedIndexes"), *s.MaxFailedIndexes, "requires indexed completion mode"))
		}
		return errs
	case batchv1.IndexedCompletion:
	default:
		return append(errs, field.NotSupported(path.Child("completionMode"), mode,
			[]batchv1.CompletionMode{batchv1.IndexedCompletion, batchv1.NonIndexedCompletion}))
	}
	if s.Completions == nil {
		errs = append(errs, field.Required(path.Child("completions"), fmt.Sprintf("when completion mode is %s", batchv1.IndexedCompletion)))
	}
	if n := rules.Or(s.Parallelism, 0); n > maxIndexedParallelism {
		errs = append(errs, field.Invalid(path.Child("parallelism"), n,
			fmt.Sprintf("must be less than or equal to %d when completion mode is %s", maxIndexedParallelism, batchv1.IndexedCompletion)))
	}
	failed := path.Child("maxFailedIndexes")
	if s.Completions != nil && s.MaxFailedIndexes != nil && *s.MaxFailedIndexes > *s.Completions {
		errs = append(errs, field.Invalid(failed, *s.MaxFailedIndexes, "must be less than or equal to completions"))
	}
	if s.MaxFailedIndexes != nil && *s.MaxFailedIndexes > maxFailedIndexes {
		errs = append(errs, field.Invalid(failed, *s.MaxFailedIndexes, fmt.Sprintf("must be less than or equal to %d", maxFailedIndexes)))
	}
	if s.BackoffLimitPerIndex != nil && rules.Or(s.Completions, 0) > manyCompletions {
		switch {
		case s.MaxFailedIndexes == nil:
			errs = append(errs, field.Required(failed, fmt.Sprintf("must be specified when completions is above %d", manyCompletions)))
		case *s.MaxFailedIndexes > manyCompletionsFailed:
			errs = append(errs, field.Invalid(failed, *s.MaxFailedIndexes, fmt.Sprintf("must be less than or equal to %d when completions are above %d and used with backoff limit per index", manyCompletionsFailed, manyCompletions)))
		}
		if n := rules.Or(s.Parallelism, 0); n > manyCompletionsParallelism {
			errs = append(errs, field.Invalid(path.Child("parallelism"), n, fmt.Sprintf("must be less than or equal to %d when completions are above %d and used with backoff limit per index", manyCompletionsParallelism, manyCompletions)))
		}
	}
	return errs
}

func validatePodFailurePolicy(s *batchv1.JobSpec, path *field.Path) (errs field.ErrorList) {
	path = path.Child("rules")
	if n := len(s.PodFailurePolicy.Rules); n > maxFailureRules {
		errs = append(errs, field.TooMany(path, n, maxFailureRules))
	}
	containers := make(map[string]bool)
	for i := range s.Template.Spec.Containers {
		containers[s.Template.Spec.Containers[i].Name] = true
	}
	for i := range s.Template.Spec.InitContainers {
		containers[s.Template.Spec.InitContainers[i].Name] = true
	}
	for i := range s.PodFailurePolicy.Rules {
		errs = append(errs, validateFailureRule(s, &s.PodFailurePolicy.Rules[i], path.Index(i), containers)...)
	}
	return errs
}

func validateFailureRule(s *batchv1.JobSpec, r *batchv1.PodFailurePolicyRule, path *field.Path, containers map[string]bool) (errs field.ErrorList) {
	actions := []batchv1.PodFailurePolicyAction{batchv1.PodFailurePolicyActionCount, batchv1.PodFailurePolicyActionFailIndex, batchv1.PodFailurePolicyActionFailJob, batchv1.PodFailurePolicyActionIgnore}
	errs = append(errs, rules.OneOf(r.Action, path.Child("action"), fmt.Sprintf("valid values: %q", actions), actions...)...)
	if r.Action == batchv1.PodFailurePolicyActionFailIndex && s.BackoffLimitPerIndex == nil {
		errs = append(errs, field.Invalid(path.Child("action"), r.Action, "requires the backoffLimitPerIndex to be set"))
	}
	switch {
	case r.OnExitCodes != nil && len(r.OnPodConditions) > 0:
		errs = append(errs, field.Invalid(path, field.OmitValueType{}, "specifying both OnExitCodes and OnPodConditions is not supported"))
	case r.OnExitCodes == nil && len(r.OnPodConditions) == 0:
		errs = append(errs, field.Invalid(path, field.OmitValueType{}, "specifying one of OnExitCodes and OnPodConditions is required"))
	}
	if c := r.OnExitCodes; c != nil {
		errs = append(errs, validateExitCodes(c, path.Child("onExitCodes"), containers)...)
	}
	conditions := path.Child("onPodConditions")
	if n := len(r.OnPodConditions); n > maxPodConditions {
		errs = append(errs, field.TooMany(conditions, n, maxPodConditions))
	}
	for i, c := range r.OnPodConditions {
		p := conditions.Index(i)
		errs = append(errs, rules.Messages(c.Type, p.Child("type"), validation.IsQualifiedName(string(c.Type)))...)
		errs = append(errs, rules.OneOf(c.Status, p.Child("status"), "valid values: [\"False\" \"True\" \"Unknown\"]", corev1.ConditionFalse, corev1.ConditionTrue, corev1.ConditionUnknown)...)
	}
	return errs
}

func validateExitCodes(c *batchv1.PodFailurePolicyOnExitCodesRequirement, path *field.Path, containers map[string]bool) (errs field.ErrorList) {
	operators := []batchv1.PodFailurePolicyOnExitCodesOperator{batchv1.PodFailurePolicyOnExitCodesOpIn, batchv1.PodFailurePolicyOnExitCodesOpNotIn}
	errs = append(errs, rules.OneOf(c.Operator, path.Child("operator"), fmt.Sprintf("valid values: %q", operators), operators...)...)
	if c.ContainerName != nil && !containers[*c.ContainerName] {
		errs = append(errs, field.Invalid(path.Child("containerName"), *c.ContainerName, "must be one of the container or initContainer names in the pod template"))
	}
	values := path.Child("values")
	switch n := len(c.Values); {
	case n == 0:
		errs = append(errs, field.Invalid(values, c.Values, "at least one value is required"))
	case n > maxExitCodes:
		errs = append(errs, field.TooMany(values, n, maxExitCodes))
	}
	seen := make(map[int32]bool, len(c.Values))
	for i, v := range c.Values {
		if v == 0 && c.Operator == batchv1.PodFailurePolicyOnExitCodesOpIn {
			errs = append(errs, field.Invalid(values.Index(i), v, "must not be 0 for the In operator"))
		}
		if seen[v] {
			errs = append(errs, field.Duplicate(values.Index(i), v))
		}
		seen[v] = true
	}
	if !slices.IsSorted(c.Values) {
		errs = append(errs, field.Invalid(values, c.Values, "must be ordered"))
	}
	return errs
}

func validateSuccessPolicy(s *batchv1.JobSpec, path *field.Path) (errs field.ErrorList) {
	if rules.Or(s.CompletionMode, "") != batchv1.IndexedCompletion {
		return field.ErrorList{field.Invalid(path, field.OmitValueType{}, "requires indexed completion mode")}
	}
	list := path.Child("rules")
	switch n := len(s.SuccessPolicy.Rules); {
	case n == 0:
		errs = append(errs, field.Required(list, "at least one rules must be specified when the successPolicy is specified"))
	case n > maxSuccessRules:
		errs = append(errs, field.TooMany(list, n, maxSuccessRules))
	}
	completions := rules.Or(s.Completions, 0)
	for i, r := range s.SuccessPolicy.Rules {
		p := list.Index(i)
		if r.SucceededCount == nil && r.SucceededIndexes == nil {
			errs = append(errs, field.Required(p, "at least one of succeededCount or succeededIndexes must be specified"))
		}
		indexes := completions
		if r.SucceededIndexes != nil {
			at := p.Child("succeededIndexes")
			if len(*r.SucceededIndexes) > maxSucceededIndexes {
				errs = append(errs, field.TooLong(at, *r.SucceededIndexes, maxSucceededIndexes))
			}
			n, err := countIndexes(*r.SucceededIndexes, completions)
			if err != nil {
				errs = append(errs, field.Invalid(at, *r.SucceededIndexes, err.Error()))
			} else {
				indexes = n
			}
		}
		if r.SucceededCount != nil {
			at := p.Child("succeededCount")
			errs = append(errs, rules.Nonnegative(*r.SucceededCount, at)...)
			switch n := *r.SucceededCount; {
			case n > completions:
				errs = append(errs, field.Invalid(at, n, fmt.Sprintf("must be less than or equal to %d (the number of specified completions)", completions)))
			case n > indexes:
				errs = append(errs, field.Invalid(at, n, fmt.Sprintf("must be less than or equal to %d (the number of indexes in the specified succeededIndexes field)", indexes)))
			}
		}
	}
	return errs
}

// countIndexes counts the indexes of a text like "0,2-4", which must grow and stay below completions.
func countIndexes(text string, completions int32) (int32, error) {
	var total, last int64 = 0, -1
	if text == "" {
		return 0, nil
	}
	for part := range strings.SplitSeq(text, ",") {
		from, to, isRange := strings.Cut(part, "-")
		first, err := strconv.ParseInt(from, 10, 32)
		if err != nil {
			return 0, fmt.Errorf("cannot convert string to integer for index: %q", from)
		}
		end := first
		if isRange {
			if end, err = strconv.ParseInt(to, 10, 32); err != nil {
				return 0, fmt.Errorf("cannot convert string to integer for index: %q", to)
			}
			if first >= end {
				return 0, fmt.Errorf("non-increasing order, previous: %d, current: %d", first, end)
			}
		}
		if first <= last {
			return 0, fmt.Errorf("non-increasing order, previous: %d, current: %d", last, first)
		}
		if end >= int64(completions) {
			return 0, fmt.Errorf("too large index: %q", part)
		}
		total += end - first + 1
		last = end
	}
	return int32(total), nil
}

func validateJobUpdate(j, old *batchv1.Job) field.ErrorList {
	spec := field.NewPath("spec")
	errs := validateJob(j)
	errs = append(errs, validateCompletionsUpdate(&j.Spec, &old.Spec, spec.Child("completions"))...)
	errs = append(errs, rules.Immutable(j.Spec.Selector, old.Spec.Selector, spec.Child("selector"))...)
	errs = append(errs, validateTemplateUpdate(j, old, spec.Child("template"))...)
	errs = append(errs, rules.Immutable(j.Spec.CompletionMode, old.Spec.CompletionMode, spec.Child("completionMode"))...)
	errs = append(errs, rules.Immutable(j.Spec.PodFailurePolicy, old.Spec.PodFailurePolicy, spec.Child("podFailurePolicy"))...)
	errs = append(errs, rules.Immutable(j.Spec.BackoffLimitPerIndex, old.Spec.BackoffLimitPerIndex, spec.Child("backoffLimitPerIndex"))...)
	errs = append(errs, rules.Immutable(j.Spec.ManagedBy, old.Spec.ManagedBy, spec.Child("managedBy"))...)
	return append(errs, rules.Immutable(j.Spec.SuccessPolicy, old.Spec.SuccessPolicy, spec.Child("successPolicy"))...)
}

// validateCompletionsUpdate lets Indexed jobs grow and shrink with their parallelism (KEP-3715).
func validateCompletionsUpdate(s, old *batchv1.JobSpec, path *field.Path) field.ErrorList {
	if rules.Same(s.Completions, old.Completions) {
		return nil
	}
	if rules.Or(s.CompletionMode, "") != batchv1.IndexedCompletion {
		return rules.Immutable(s.Completions, old.Completions, path)
	}
	together := func(s *batchv1.JobSpec) bool {
		return s.Completions != nil && s.Parallelism != nil && *s.Completions == *s.Parallelism
	}
	if !together(s) || !together(old) {
		return field.ErrorList{field.Invalid(path, s.Completions, "can only be modified in tandem with spec.parallelism")}
	}
	return nil
}

// validateTemplateUpdate keeps a job's pods as they are, except that a
// suspended job may still be told where, and with what resources, to run.
func validateTemplateUpdate(j, old *batchv1.Job, path *field.Path) field.ErrorList {
	was := old.Spec.Template.DeepCopy()
	suspended := rules.Or(old.Spec.Suspend, false) && (old.Status.StartTime == nil || hasCondition(old, batchv1.JobSuspended))
	if suspended {
		now := &j.Spec.Template
		was.Annotations, was.Labels = now.Annotations, now.Labels
		was.Spec.NodeSelector, was.Spec.Tolerations, was.Spec.SchedulingGates = now.Spec.NodeSelector, now.Spec.Tolerations, now.Spec.SchedulingGates
		var wanted *corev1.NodeAffinity
		if now.Spec.Affinity != nil {
			wanted = now.Spec.Affinity.NodeAffinity
		}
		switch {
		case was.Spec.Affinity != nil:
			was.Spec.Affinity.NodeAffinity = wanted
			if *was.Spec.Affinity == (corev1.Affinity{}) && now.Spec.Affinity == nil {
				was.Spec.Affinity = nil
			}
		case wanted != nil:
			was.Spec.Affinity = &corev1.Affinity{NodeAffinity: wanted}
		}
		sameResources(was.Spec.Containers, now.Spec.Containers)
		sameResources(was.Spec.InitContainers, now.Spec.InitContainers)
	}
	return rules.Immutable(j.Spec.Template, *was, path)
}

func sameResources(was, now []corev1.Container) {
	for i := range min(len(was), len(now)) {
		was[i].Resources = now[i].Resources
	}
}

func validateJobStatusUpdate(j, old *batchv1.Job) field.ErrorList {
	path := field.NewPath("status")
	s := &j.Status
	errs := rules.Counts(path,
		rules.Count{Name: "active", Value: s.Active},
		rules.Count{Name: "succeeded", Value: s.Succeeded},
		rules.Count{Name: "failed", Value: s.Failed},
		rules.Count{Name: "ready", Value: rules.Or(s.Ready, 0)},
		rules.Count{Name: "terminating", Value: rules.Or(s.Terminating, 0)})
	complete, failed := hasCondition(j, batchv1.JobComplete), hasCondition(j, batchv1.JobFailed)
	if complete && failed {
		errs = append(errs, field.Invalid(path.Child("conditions"), field.OmitValueType{}, "cannot set Complete=True and Failed=true conditions"))
	}
	if hasCondition(old, batchv1.JobComplete) && !complete {
		errs = append(errs, field.Invalid(path.Child("conditions"), field.OmitValueType{}, "cannot disable the terminal Complete=True condition"))
	}
	if hasCondition(old, batchv1.JobFailed) && !failed {
		errs = append(errs, field.Invalid(path.Child("conditions"), field.OmitValueType{}, "cannot disable the terminal Failed=True condition"))
	}
	switch {
	case s.CompletionTime != nil && !complete:
		errs = append(errs, field.Invalid(path.Child("completionTime"), s.CompletionTime, "cannot set completionTime when there is no Complete=True condition"))
	case s.CompletionTime == nil && complete:
		errs = append(errs, field.Required(path.Child("completionTime"), "completionTime is required for Complete jobs"))
	case s.CompletionTime != nil && s.StartTime != nil && s.CompletionTime.Before(s.StartTime):
		errs = append(errs, field.Invalid(path.Child("completionTime"), s.CompletionTime, "completionTime cannot be set before startTime"))
	}
	if (complete || failed) && s.Active > 0 {
		errs = append(errs, field.Invalid(path.Child("active"), s.Active, "active>0 is invalid for finished job"))
	}
	return errs
}
