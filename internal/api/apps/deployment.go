package apps

import (
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/core"
	"github.com/proa-dev/proa/internal/api/rules"
)

func deployments(gv schema.GroupVersion) *api.Resource {
	r := workload(rules.Namespaced[appsv1.Deployment, appsv1.DeploymentList](gv, "deployments", "deploy"))
	r.Columns = append([]metav1.TableColumnDefinition{
		rules.Name(),
		rules.Text("Ready", "Number of the pod with ready state"),
		rules.Text("Up-to-date", "Total number of non-terminated pods targeted by this deployment that have the desired template spec."),
		rules.Text("Available", "Total number of available pods (ready for at least minReadySeconds) targeted by this deployment."),
		rules.Age(),
	}, rules.PodColumns()...)
	return api.Kind[*appsv1.Deployment]{
		Resource:       r,
		Default:        defaultDeployment,
		Validate:       validateDeployment,
		ValidateUpdate: validateDeploymentUpdate,
		CopyStatus:     func(dst, src *appsv1.Deployment) { dst.Status = *src.Status.DeepCopy() },
		ValidateStatusUpdate: func(d, old *appsv1.Deployment) field.ErrorList {
			status := field.NewPath("status")
			return append(validateDeploymentStatus(&d.Status, status),
				rules.CollisionCount(d.Status.CollisionCount, old.Status.CollisionCount, status)...)
		},
		// Annotations count as well: the controller copies them to the replica sets.
		SpecChanged: func(d, old *appsv1.Deployment) bool {
			return !rules.Same(d.Spec, old.Spec) || !rules.Same(d.Annotations, old.Annotations)
		},
		Warnings: func(d *appsv1.Deployment) []string { return rules.PodNameWarnings(d) },
		ScaleGet: func(d *appsv1.Deployment) (int32, int32, string) {
			return rules.Or(d.Spec.Replicas, 1), d.Status.Replicas, rules.SelectorText(d.Spec.Selector)
		},
		ScaleSet: func(d *appsv1.Deployment, n int32) { d.Spec.Replicas = &n },
		Row: func(d *appsv1.Deployment) []any {
			return append([]any{
				d.Name,
				fmt.Sprintf("%d/%d", d.Status.ReadyReplicas, rules.Or(d.Spec.Replicas, 1)),
				int64(d.Status.UpdatedReplicas),
				int64(d.Status.AvailableReplicas),
				rules.Created(d),
			}, rules.PodCells(&d.Spec.Template.Spec, d.Spec.Selector)...)
		},
	}.Erase()
}

func defaultDeployment(d *appsv1.Deployment) {
	core.DefaultPodTemplate(&d.Spec.Template)
	rules.Refer(&d.Spec.Replicas, 1)
	rules.Refer(&d.Spec.RevisionHistoryLimit, 10)
	rules.Refer(&d.Spec.ProgressDeadlineSeconds, 600)
	s := &d.Spec.Strategy
	rules.Fill(&s.Type, appsv1.RollingUpdateDeploymentStrategyType)
	if s.Type == appsv1.RollingUpdateDeploymentStrategyType {
		rules.Refer(&s.RollingUpdate, appsv1.RollingUpdateDeployment{})
		rules.Refer(&s.RollingUpdate.MaxUnavailable, intstr.FromString("25%"))
		rules.Refer(&s.RollingUpdate.MaxSurge, intstr.FromString("25%"))
	}
}

func validateDeployment(d *appsv1.Deployment) field.ErrorList {
	spec := field.NewPath("spec")
	s := &d.Spec
	errs := rules.NonnegativePointer(s.Replicas, spec.Child("replicas"))
	errs = append(errs, validateReplicaTemplate(s.Selector, &s.Template, spec)...)
	errs = append(errs, validateDeploymentStrategy(&s.Strategy, spec.Child("strategy"))...)
	errs = append(errs, rules.Nonnegative(s.MinReadySeconds, spec.Child("minReadySeconds"))...)
	errs = append(errs, rules.NonnegativePointer(s.RevisionHistoryLimit, spec.Child("revisionHistoryLimit"))...)
	if deadline := s.ProgressDeadlineSeconds; deadline != nil {
		path := spec.Child("progressDeadlineSeconds")
		errs = append(errs, rules.Nonnegative(*deadline, path)...)
		if *deadline <= s.MinReadySeconds {
			errs = append(errs, field.Invalid(path, *deadline, "must be greater than minReadySeconds"))
		}
	}
	return errs
}

func validateDeploymentUpdate(d, old *appsv1.Deployment) field.ErrorList {
	return append(validateDeployment(d), rules.Immutable(d.Spec.Selector, old.Spec.Selector, field.NewPath("spec", "selector"))...)
}

func validateDeploymentStrategy(s *appsv1.DeploymentStrategy, path *field.Path) field.ErrorList {
	rolling := path.Child("rollingUpdate")
	switch s.Type {
	case appsv1.RecreateDeploymentStrategyType:
		if s.RollingUpdate != nil {
			return field.ErrorList{field.Forbidden(rolling, "may not be specified when strategy `type` is 'Recreate'")}
		}
		return nil
	case appsv1.RollingUpdateDeploymentStrategyType:
		if s.RollingUpdate == nil {
			return field.ErrorList{field.Required(rolling, "this should be defaulted and never be nil")}
		}
		return validateRollingDeployment(s.RollingUpdate, rolling)
	}
	return field.ErrorList{field.NotSupported(path.Child("type"), s.Type,
		[]appsv1.DeploymentStrategyType{appsv1.RecreateDeploymentStrategyType, appsv1.RollingUpdateDeploymentStrategyType})}
}

func validateRollingDeployment(r *appsv1.RollingUpdateDeployment, path *field.Path) (errs field.ErrorList) {
	unavailable, surge := path.Child("maxUnavailable"), path.Child("maxSurge")
	if r.MaxUnavailable != nil {
		errs = append(errs, rules.IntOrPercent(*r.MaxUnavailable, unavailable)...)
		errs = append(errs, rules.AtMostAll(*r.MaxUnavailable, unavailable)...)
	}
	if r.MaxSurge != nil {
		errs = append(errs, rules.IntOrPercent(*r.MaxSurge, surge)...)
	}
	if rules.IsZero(r.MaxUnavailable) && rules.IsZero(r.MaxSurge) {
		errs = append(errs, field.Invalid(unavailable, r.MaxUnavailable, "may not be 0 when `maxSurge` is 0"))
	}
	return errs
}

func validateDeploymentStatus(s *appsv1.DeploymentStatus, path *field.Path) field.ErrorList {
	updated := rules.Count{Name: "updatedReplicas", Value: s.UpdatedReplicas}
	ready := rules.Count{Name: "readyReplicas", Value: s.ReadyReplicas}
	available := rules.Count{Name: "availableReplicas", Value: s.AvailableReplicas}
	errs := rules.Nonnegative(s.ObservedGeneration, path.Child("observedGeneration"))
	errs = append(errs, rules.Counts(path, rules.Count{Name: "replicas", Value: s.Replicas}, updated, ready, available,
		rules.Count{Name: "unavailableReplicas", Value: s.UnavailableReplicas},
		rules.Count{Name: "terminatingReplicas", Value: rules.Or(s.TerminatingReplicas, 0)},
		rules.Count{Name: "collisionCount", Value: rules.Or(s.CollisionCount, 0)})...)
	const total = "cannot be greater than status.replicas"
	errs = append(errs, rules.AtMost(path, updated, s.Replicas, total)...)
	errs = append(errs, rules.AtMost(path, ready, s.Replicas, total)...)
	errs = append(errs, rules.AtMost(path, available, s.Replicas, total)...)
	return append(errs, rules.AtMost(path, available, s.ReadyReplicas, "cannot be greater than readyReplicas")...)
}
