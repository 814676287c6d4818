package apps

import (
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/core"
	"github.com/proa-dev/proa/internal/api/rules"
)

func replicaSets(gv schema.GroupVersion) *api.Resource {
	r := workload(rules.Namespaced[appsv1.ReplicaSet, appsv1.ReplicaSetList](gv, "replicasets", "rs"))
	r.FieldLabels = []string{"status.replicas"}
	r.Columns = append([]metav1.TableColumnDefinition{
		rules.Name(),
		rules.Integer("Desired", "Number of desired pods."),
		rules.Integer("Current", "Most recently observed number of replicas."),
		rules.Integer("Ready", "Number of pods targeted by this ReplicaSet with a Ready condition."),
		rules.Age(),
	}, rules.PodColumns()...)
	return api.Kind[*appsv1.ReplicaSet]{
		Resource: r,
		Default: func(s *appsv1.ReplicaSet) {
			core.DefaultPodTemplate(&s.Spec.Template)
			rules.Refer(&s.Spec.Replicas, 1)
		},
		Validate: validateReplicaSet,
		ValidateUpdate: func(s, old *appsv1.ReplicaSet) field.ErrorList {
			return append(validateReplicaSet(s), rules.Immutable(s.Spec.Selector, old.Spec.Selector, field.NewPath("spec", "selector"))...)
		},
		CopyStatus:           func(dst, src *appsv1.ReplicaSet) { dst.Status = *src.Status.DeepCopy() },
		ValidateStatusUpdate: func(s, _ *appsv1.ReplicaSet) field.ErrorList { return validateReplicaSetStatus(&s.Status) },
		SpecChanged:          func(s, old *appsv1.ReplicaSet) bool { return !rules.Same(s.Spec, old.Spec) },
		Warnings:             func(s *appsv1.ReplicaSet) []string { return rules.PodNameWarnings(s) },
		ScaleGet: func(s *appsv1.ReplicaSet) (int32, int32, string) {
			return rules.Or(s.Spec.Replicas, 1), s.Status.Replicas, rules.SelectorText(s.Spec.Selector)
		},
		ScaleSet: func(s *appsv1.ReplicaSet, n int32) { s.Spec.Replicas = &n },
		Fields: func(s *appsv1.ReplicaSet) fields.Set {
			return fields.Set{"status.replicas": strconv.Itoa(int(s.Status.Replicas))}
		},
		Row: func(s *appsv1.ReplicaSet) []any {
			return append([]any{
				s.Name, int64(rules.Or(s.Spec.Replicas, 1)), int64(s.Status.Replicas), int64(s.Status.ReadyReplicas), rules.Created(s),
			}, rules.PodCells(&s.Spec.Template.Spec, s.Spec.Selector)...)
		},
	}.Erase()
}

func validateReplicaSet(s *appsv1.ReplicaSet) field.ErrorList {
	spec := field.NewPath("spec")
	errs := rules.NonnegativePointer(s.Spec.Replicas, spec.Child("replicas"))
	errs = append(errs, rules.Nonnegative(s.Spec.MinReadySeconds, spec.Child("minReadySeconds"))...)
	return append(errs, validateReplicaTemplate(s.Spec.Selector, &s.Spec.Template, spec)...)
}

func validateReplicaSetStatus(s *appsv1.ReplicaSetStatus) field.ErrorList {
	path := field.NewPath("status")
	labeled := rules.Count{Name: "fullyLabeledReplicas", Value: s.FullyLabeledReplicas}
	ready := rules.Count{Name: "readyReplicas", Value: s.ReadyReplicas}
	available := rules.Count{Name: "availableReplicas", Value: s.AvailableReplicas}
	errs := rules.Counts(path, rules.Count{Name: "replicas", Value: s.Replicas}, labeled, ready, available,
		rules.Count{Name: "terminatingReplicas", Value: rules.Or(s.TerminatingReplicas, 0)})
	errs = append(errs, rules.Nonnegative(s.ObservedGeneration, path.Child("observedGeneration"))...)
	const total = "cannot be greater than status.replicas"
	errs = append(errs, rules.AtMost(path, labeled, s.Replicas, total)...)
	errs = append(errs, rules.AtMost(path, ready, s.Replicas, total)...)
	errs = append(errs, rules.AtMost(path, available, s.Replicas, total)...)
	return append(errs, rules.AtMost(path, available, s.ReadyReplicas, "cannot be greater than readyReplicas")...)
}
