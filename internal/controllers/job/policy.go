package job

import (
	"fmt"
	"slices"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"
)

// verdict is what podFailurePolicy says of a failed pod.
type verdict struct {
	action  batchv1.PodFailurePolicyAction // "": no rule matches
	message string                         // why the Job fails
}

// judge applies the rules of a Job's podFailurePolicy in order (KEP-3329).
func judge(policy *batchv1.PodFailurePolicy, p *corev1.Pod) verdict {
	if policy == nil || p.Status.Phase != corev1.PodFailed {
		return verdict{}
	}
	for i, rule := range policy.Rules {
		if rule.OnExitCodes != nil {
			if c := byExitCode(p, rule.OnExitCodes); c != nil {
				return verdict{rule.Action, fmt.Sprintf("Container %s for pod %s failed with exit code %d matching %s rule at index %d", c.Name, p.Namespace+"/"+p.Name, c.State.Terminated.ExitCode, rule.Action, i)}
			}
		}
		for _, want := range rule.OnPodConditions {
			for _, have := range p.Status.Conditions {
				if have.Type == want.Type && have.Status == ptr.Deref(&want.Status, corev1.ConditionTrue) {
					return verdict{rule.Action, fmt.Sprintf("Pod %s has condition %v matching %s rule at index %d", p.Namespace+"/"+p.Name, want.Type, rule.Action, i)}
				}
			}
		}
	}
	return verdict{}
}

func byExitCode(p *corev1.Pod, rule *batchv1.PodFailurePolicyOnExitCodesRequirement) *corev1.ContainerStatus {
	for _, list := range [][]corev1.ContainerStatus{p.Status.ContainerStatuses, p.Status.InitContainerStatuses} {
		for i := range list {
			c := &list[i]
			if rule.ContainerName != nil && *rule.ContainerName != c.Name || c.State.Terminated == nil || c.State.Terminated.ExitCode == 0 {
				continue
			}
			in := slices.Contains(rule.Values, c.State.Terminated.ExitCode)
			if in == (rule.Operator == batchv1.PodFailurePolicyOnExitCodesOpIn) {
				return c
			}
		}
	}
	return nil
}

// judgeAll looks at the newly failed pods: it returns why the Job fails ("": it
// does not), and notes which failures do not count and which indexes are given up.
func (r *run) judgeAll() string {
	fails := ""
	var given []int
	for _, p := range r.failed {
		v := judge(r.job.Spec.PodFailurePolicy, p)
		switch v.action {
		case batchv1.PodFailurePolicyActionFailJob:
			if fails == "" {
				fails = v.message
			}
		case batchv1.PodFailurePolicyActionIgnore:
			r.ignored[p.UID] = true
		case batchv1.PodFailurePolicyActionFailIndex:
			if i, ok := index(p); ok {
				given = append(given, i)
			}
		}
	}
	r.failIndex = intervals(nil).with(given)
	return fails
}

// enough says that successPolicy ends the Job before all indexes are done (KEP-3998).
func (r *run) enough() (message string, ok bool) {
	policy := r.job.Spec.SuccessPolicy
	if policy == nil || !r.indexed() {
		return "", false
	}
	for i, rule := range policy.Rules {
		done := r.done.count()
		if rule.SucceededIndexes != nil {
			want := parseIntervals(*rule.SucceededIndexes, int(ptr.Deref(r.job.Spec.Completions, 0)))
			done = 0
			for _, w := range want {
				for n := w[0]; n <= w[1]; n++ {
					if r.done.has(n) {
						done++
					}
				}
			}
			if rule.SucceededCount == nil && done == want.count() {
				return fmt.Sprintf("Matched rules at index %d", i), true
			}
		}
		if rule.SucceededCount != nil && done >= int(*rule.SucceededCount) {
			return fmt.Sprintf("Matched rules at index %d", i), true
		}
	}
	return "", false
}
