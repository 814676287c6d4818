package apps

import (
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/core"
	"github.com/proa-dev/proa/internal/api/rules"
)

func daemonSets(gv schema.GroupVersion) *api.Resource {
	r := workload(rules.Namespaced[appsv1.DaemonSet, appsv1.DaemonSetList](gv, "daemonsets", "ds"))
	r.Columns = append([]metav1.TableColumnDefinition{
		rules.Name(),
		rules.Integer("Desired", "The total number of nodes that should be running the daemon pod."),
		rules.Integer("Current", "The number of nodes that run at least one daemon pod and should."),
		rules.Integer("Ready", "The number of nodes that should run the daemon pod and have a ready one."),
		rules.Integer("Up-to-date", "The total number of nodes that are running an updated daemon pod."),
		rules.Integer("Available", "The number of nodes that should run the daemon pod and have an available one."),
		rules.Text("Node Selector", "The selector that a node must match for the pod to be scheduled on it."),
		rules.Age(),
	}, rules.PodColumns()...)
	return api.Kind[*appsv1.DaemonSet]{
		Resource:         r,
		Default:          defaultDaemonSet,
		PrepareForCreate: func(d *appsv1.DaemonSet) { setTemplateGeneration(d, 1) },
		PrepareForUpdate: func(d, old *appsv1.DaemonSet) {
			generation := templateGeneration(old)
			if !rules.Same(d.Spec.Template, old.Spec.Template) {
				generation++
			}
			setTemplateGeneration(d, generation)
		},
		Validate: validateDaemonSet,
		ValidateUpdate: func(d, old *appsv1.DaemonSet) field.ErrorList {
			return append(validateDaemonSet(d), rules.Immutable(d.Spec.Selector, old.Spec.Selector, field.NewPath("spec", "selector"))...)
		},
		CopyStatus: func(dst, src *appsv1.DaemonSet) { dst.Status = *src.Status.DeepCopy() },
		ValidateStatusUpdate: func(d, old *appsv1.DaemonSet) field.ErrorList {
			path := field.NewPath("status")
			s := &d.Status
			errs := rules.Counts(path,
				rules.Count{Name: "currentNumberScheduled", Value: s.CurrentNumberScheduled},
				rules.Count{Name: "numberMisscheduled", Value: s.NumberMisscheduled},
				rules.Count{Name: "desiredNumberScheduled", Value: s.DesiredNumberScheduled},
				rules.Count{Name: "numberReady", Value: s.NumberReady},
				rules.Count{Name: "updatedNumberScheduled", Value: s.UpdatedNumberScheduled},
				rules.Count{Name: "numberAvailable", Value: s.NumberAvailable},
				rules.Count{Name: "numberUnavailable", Value: s.NumberUnavailable},
				rules.Count{Name: "collisionCount", Value: rules.Or(s.CollisionCount, 0)})
			errs = append(errs, rules.Nonnegative(s.ObservedGeneration, path.Child("observedGeneration"))...)
			return append(errs, rules.CollisionCount(s.CollisionCount, old.Status.CollisionCount, path)...)
		},
		SpecChanged: func(d, old *appsv1.DaemonSet) bool { return !rules.Same(d.Spec, old.Spec) },
		Row: func(d *appsv1.DaemonSet) []any {
			s := &d.Status
			return append([]any{
				d.Name, int64(s.DesiredNumberScheduled), int64(s.CurrentNumberScheduled), int64(s.NumberReady),
				int64(s.UpdatedNumberScheduled), int64(s.NumberAvailable),
				metav1.FormatLabelSelector(&metav1.LabelSelector{MatchLabels: d.Spec.Template.Spec.NodeSelector}), rules.Created(d),
			}, rules.PodCells(&d.Spec.Template.Spec, d.Spec.Selector)...)
		},
	}.Erase()
}

func defaultDaemonSet(d *appsv1.DaemonSet) {
	core.DefaultPodTemplate(&d.Spec.Template)
	rules.Refer(&d.Spec.RevisionHistoryLimit, 10)
	u := &d.Spec.UpdateStrategy
	rules.Fill(&u.Type, appsv1.RollingUpdateDaemonSetStrategyType)
	if u.Type == appsv1.RollingUpdateDaemonSetStrategyType {
		rules.Refer(&u.RollingUpdate, appsv1.RollingUpdateDaemonSet{})
		rules.Refer(&u.RollingUpdate.MaxUnavailable, intstr.FromInt32(1))
		rules.Refer(&u.RollingUpdate.MaxSurge, intstr.FromInt32(0))
	}
}

// The generation of a daemon set's template lives in an annotation: apps/v1 has
// no field for it, and the hashes of pods made by old controllers need it.
func templateGeneration(d *appsv1.DaemonSet) int64 {
	n, err := strconv.ParseInt(d.Annotations[appsv1.DeprecatedTemplateGeneration], 10, 64)
	if err != nil {
		return 1
	}
	return n
}

func setTemplateGeneration(d *appsv1.DaemonSet, n int64) {
	if d.Annotations == nil {
		d.Annotations = make(map[string]string, 1)
	}
	d.Annotations[appsv1.DeprecatedTemplateGeneration] = strconv.FormatInt(n, 10)
}

func validateDaemonSet(d *appsv1.DaemonSet) field.ErrorList {
	spec := field.NewPath("spec")
	s := &d.Spec
	errs := rules.Selector(s.Selector, spec.Child("selector"))
	if selector, err := metav1.LabelSelectorAsSelector(s.Selector); err == nil {
		errs = append(errs, rules.SelectsTemplate(selector, s.Template.Labels, spec.Child("template"))...)
	}
	if s.Selector != nil && rules.Empty(s.Selector) {
		errs = append(errs, field.Invalid(spec.Child("selector"), s.Selector, "empty selector is invalid for daemonset"))
	}
	errs = append(errs, validatePods(&s.Template, spec.Child("template"), "DaemonSet")...)
	errs = append(errs, rules.Nonnegative(s.MinReadySeconds, spec.Child("minReadySeconds"))...)
	errs = append(errs, validateDaemonSetStrategy(&s.UpdateStrategy, spec.Child("updateStrategy"))...)
	return append(errs, rules.NonnegativePointer(s.RevisionHistoryLimit, spec.Child("revisionHistoryLimit"))...)
}

func validateDaemonSetStrategy(u *appsv1.DaemonSetUpdateStrategy, path *field.Path) (errs field.ErrorList) {
	rolling := path.Child("rollingUpdate")
	switch u.Type {
	case appsv1.OnDeleteDaemonSetStrategyType:
		return nil
	case appsv1.RollingUpdateDaemonSetStrategyType:
		if u.RollingUpdate == nil {
			return field.ErrorList{field.Required(rolling, "")}
		}
	default:
		return field.ErrorList{field.NotSupported(path.Child("type"), u.Type,
			[]appsv1.DaemonSetUpdateStrategyType{appsv1.RollingUpdateDaemonSetStrategyType, appsv1.OnDeleteDaemonSetStrategyType})}
	}
	r := u.RollingUpdate
	unavailable, surge := rolling.Child("maxUnavailable"), rolling.Child("maxSurge")
	if r.MaxUnavailable != nil {
		errs = append(errs, rules.IntOrPercent(*r.MaxUnavailable, unavailable)...)
		errs = append(errs, rules.AtMostAll(*r.MaxUnavailable, unavailable)...)
	}
	if r.MaxSurge != nil {
		errs = append(errs, rules.IntOrPercent(*r.MaxSurge, surge)...)
		errs = append(errs, rules.AtMostAll(*r.MaxSurge, surge)...)
	}
	switch none, noSurge := rules.IsZero(r.MaxUnavailable), rules.IsZero(r.MaxSurge); {
	case none && noSurge:
		errs = append(errs, field.Required(unavailable, "cannot be 0 when maxSurge is 0"))
	case !none && !noSurge:
		errs = append(errs, field.Invalid(surge, r.MaxSurge, "may not be set when maxUnavailable is non-zero"))
	}
	return errs
}
