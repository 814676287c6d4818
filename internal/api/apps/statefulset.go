package apps

import (
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/core"
	"github.com/proa-dev/proa/internal/api/rules"
)

func statefulSets(gv schema.GroupVersion) *api.Resource {
	r := workload(rules.Namespaced[appsv1.StatefulSet, appsv1.StatefulSetList](gv, "statefulsets", "sts"))
	r.Columns = []metav1.TableColumnDefinition{
		rules.Name(),
		rules.Text("Ready", "Number of the pod with ready state"),
		rules.Age(),
		rules.Wide("Containers", "Names of each container in the template."),
		rules.Wide("Images", "Images referenced by each container in the template."),
	}
	return api.Kind[*appsv1.StatefulSet]{
		Resource:       r,
		Default:        defaultStatefulSet,
		Validate:       validateStatefulSet,
		ValidateUpdate: validateStatefulSetUpdate,
		CopyStatus:     func(dst, src *appsv1.StatefulSet) { dst.Status = *src.Status.DeepCopy() },
		ValidateStatusUpdate: func(s, old *appsv1.StatefulSet) field.ErrorList {
			path := field.NewPath("status")
			return append(validateStatefulSetStatus(&s.Status, path), rules.CollisionCount(s.Status.CollisionCount, old.Status.CollisionCount, path)...)
		},
		SpecChanged: func(s, old *appsv1.StatefulSet) bool { return !rules.Same(s.Spec, old.Spec) },
		Warnings:    func(s *appsv1.StatefulSet) []string { return rules.PodNameWarnings(s) },
		ScaleGet: func(s *appsv1.StatefulSet) (int32, int32, string) {
			return rules.Or(s.Spec.Replicas, 1), s.Status.Replicas, rules.SelectorText(s.Spec.Selector)
		},
		ScaleSet: func(s *appsv1.StatefulSet, n int32) { s.Spec.Replicas = &n },
		Row: func(s *appsv1.StatefulSet) []any {
			pods := rules.PodCells(&s.Spec.Template.Spec, s.Spec.Selector)
			return []any{
				s.Name, fmt.Sprintf("%d/%d", s.Status.ReadyReplicas, rules.Or(s.Spec.Replicas, 1)), rules.Created(s), pods[0], pods[1],
			}
		},
	}.Erase()
}

func defaultStatefulSet(s *appsv1.StatefulSet) {
	core.DefaultPodTemplate(&s.Spec.Template)
	rules.Fill(&s.Spec.PodManagementPolicy, appsv1.OrderedReadyPodManagement)
	u := &s.Spec.UpdateStrategy
	if u.Type == "" {
		u.Type = appsv1.RollingUpdateStatefulSetStrategyType
		rules.Refer(&u.RollingUpdate, appsv1.RollingUpdateStatefulSetStrategy{})
	}
	if u.Type == appsv1.RollingUpdateStatefulSetStrategyType && u.RollingUpdate != nil {
		rules.Refer(&u.RollingUpdate.Partition, 0)
		rules.Refer(&u.RollingUpdate.MaxUnavailable, intstr.FromInt32(1))
	}
	rules.Refer(&s.Spec.PersistentVolumeClaimRetentionPolicy, appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{})
	p := s.Spec.PersistentVolumeClaimRetentionPolicy
	rules.Fill(&p.WhenDeleted, appsv1.RetainPersistentVolumeClaimRetentionPolicyType)
	rules.Fill(&p.WhenScaled, appsv1.RetainPersistentVolumeClaimRetentionPolicyType)
	rules.Refer(&s.Spec.Replicas, 1)
	rules.Refer(&s.Spec.RevisionHistoryLimit, 10)
	for i := range s.Spec.VolumeClaimTemplates {
		claim := &s.Spec.VolumeClaimTemplates[i]
		claim.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolumeClaim"}
		rules.Refer(&claim.Spec.VolumeMode, corev1.PersistentVolumeFilesystem)
		rules.Fill(&claim.Status.Phase, corev1.ClaimPending)
	}
}

func validateStatefulSet(o *appsv1.StatefulSet) field.ErrorList {
	spec := field.NewPath("spec")
	s := &o.Spec
	var errs field.ErrorList
	switch policy := s.PodManagementPolicy; policy {
	case "":
		errs = append(errs, field.Required(spec.Child("podManagementPolicy"), ""))
	case appsv1.OrderedReadyPodManagement, appsv1.ParallelPodManagement:
	default:
		errs = append(errs, field.Invalid(spec.Child("podManagementPolicy"), policy,
			fmt.Sprintf("must be '%s' or '%s'", appsv1.OrderedReadyPodManagement, appsv1.ParallelPodManagement)))
	}
	errs = append(errs, validateStatefulSetStrategy(&s.UpdateStrategy, spec.Child("updateStrategy"))...)
	if p := s.PersistentVolumeClaimRetentionPolicy; p != nil {
		path := spec.Child("persistentVolumeClaimRetentionPolicy")
		retain, remove := appsv1.RetainPersistentVolumeClaimRetentionPolicyType, appsv1.DeletePersistentVolumeClaimRetentionPolicyType
		for name, value := range map[string]appsv1.PersistentVolumeClaimRetentionPolicyType{"whenDeleted": p.WhenDeleted, "whenScaled": p.WhenScaled} {
			if value != retain && value != remove {
				errs = append(errs, field.NotSupported(path.Child(name), value, []appsv1.PersistentVolumeClaimRetentionPolicyType{remove, retain}))
			}
		}
	}
	errs = append(errs, rules.NonnegativePointer(s.Replicas, spec.Child("replicas"))...)
	errs = append(errs, rules.Nonnegative(s.MinReadySeconds, spec.Child("minReadySeconds"))...)
	errs = append(errs, rules.NonnegativePointer(s.RevisionHistoryLimit, spec.Child("revisionHistoryLimit"))...)
	if s.Ordinals != nil {
		errs = append(errs, rules.Nonnegative(s.Ordinals.Start, spec.Child("ordinals", "start"))...)
	}
	if s.Selector == nil {
		errs = append(errs, field.Required(spec.Child("selector"), ""))
	} else {
		errs = append(errs, rules.Selector(s.Selector, spec.Child("selector"))...)
		if rules.Empty(s.Selector) {
			errs = append(errs, field.Invalid(spec.Child("selector"), s.Selector, "empty selector is invalid for statefulset"))
		}
		if selector, err := metav1.LabelSelectorAsSelector(s.Selector); err == nil && !selector.Empty() {
			errs = append(errs, rules.SelectsTemplate(selector, s.Template.Labels, spec.Child("template"))...)
		}
	}
	return append(errs, validatePods(&s.Template, spec.Child("template"), "StatefulSet")...)
}

func validateStatefulSetStrategy(u *appsv1.StatefulSetUpdateStrategy, path *field.Path) (errs field.ErrorList) {
	rolling := path.Child("rollingUpdate")
	switch u.Type {
	case "":
		return field.ErrorList{field.Required(path.Child("type"), "")}
	case appsv1.OnDeleteStatefulSetStrategyType:
		if u.RollingUpdate != nil {
			errs = append(errs, field.Invalid(rolling, u.RollingUpdate,
				fmt.Sprintf("only allowed for updateStrategy '%s'", appsv1.RollingUpdateStatefulSetStrategyType)))
		}
	case appsv1.RollingUpdateStatefulSetStrategyType:
		if u.RollingUpdate == nil {
			return nil
		}
		errs = append(errs, rules.NonnegativePointer(u.RollingUpdate.Partition, rolling.Child("partition"))...)
		if most := u.RollingUpdate.MaxUnavailable; most != nil {
			path := rolling.Child("maxUnavailable")
			errs = append(errs, rules.IntOrPercent(*most, path)...)
			if rules.IsZero(most) {
				errs = append(errs, field.Invalid(path, *most, "cannot be 0"))
			}
			errs = append(errs, rules.AtMostAll(*most, path)...)
		}
	default:
		errs = append(errs, field.Invalid(path.Child("type"), u.Type,
			fmt.Sprintf("must be '%s' or '%s'", appsv1.RollingUpdateStatefulSetStrategyType, appsv1.OnDeleteStatefulSetStrategyType)))
	}
	return errs
}

func validateStatefulSetUpdate(s, old *appsv1.StatefulSet) field.ErrorList {
	errs := validateStatefulSet(s)
	rest := s.Spec
	rest.Replicas = old.Spec.Replicas
	rest.Ordinals = old.Spec.Ordinals
	rest.Template = old.Spec.Template
	rest.UpdateStrategy = old.Spec.UpdateStrategy
	rest.RevisionHistoryLimit = old.Spec.RevisionHistoryLimit
	rest.PersistentVolumeClaimRetentionPolicy = old.Spec.PersistentVolumeClaimRetentionPolicy
	rest.MinReadySeconds = old.Spec.MinReadySeconds
	if !rules.Same(rest, old.Spec) {
		errs = append(errs, field.Forbidden(field.NewPath("spec"),
			"updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden"))
	}
	return errs
}

func validateStatefulSetStatus(s *appsv1.StatefulSetStatus, path *field.Path) field.ErrorList {
	ready := rules.Count{Name: "readyReplicas", Value: s.ReadyReplicas}
	current := rules.Count{Name: "currentReplicas", Value: s.CurrentReplicas}
	updated := rules.Count{Name: "updatedReplicas", Value: s.UpdatedReplicas}
	available := rules.Count{Name: "availableReplicas", Value: s.AvailableReplicas}
	errs := rules.Counts(path, rules.Count{Name: "replicas", Value: s.Replicas}, ready, current, updated, available,
		rules.Count{Name: "collisionCount", Value: rules.Or(s.CollisionCount, 0)})
	errs = append(errs, rules.Nonnegative(s.ObservedGeneration, path.Child("observedGeneration"))...)
	for _, c := range []rules.Count{ready, current, updated, available} {
		errs = append(errs, rules.AtMost(path, c, s.Replicas, "cannot be greater than status.replicas")...)
	}
	return append(errs, rules.AtMost(path, available, s.ReadyReplicas, "cannot be greater than status.readyReplicas")...)
}
