package core

import (
	"strconv"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

func replicationController() *api.Resource {
	k := api.Kind[*corev1.ReplicationController]{Resource: rules.Namespaced[corev1.ReplicationController, corev1.ReplicationControllerList](gv, "replicationcontrollers", "rc")}
	k.Resource.Categories = []string{"all"}
	k.Resource.UnconditionalUpdate, k.Resource.DefaultOrphan = true, true
	k.Default = func(o *corev1.ReplicationController) {
		if t := o.Spec.Template; t != nil {
			DefaultPodTemplate(t)
			if len(o.Spec.Selector) == 0 {
				o.Spec.Selector = t.Labels
			}
			if len(o.Labels) == 0 {
				o.Labels = t.Labels
			}
		}
		def(&o.Spec.Replicas, 1)
	}
	k.PrepareForCreate = func(o *corev1.ReplicationController) { o.Status = corev1.ReplicationControllerStatus{} }
	k.Validate = validateReplicationController
	k.CopyStatus = func(dst, src *corev1.ReplicationController) { src.Status.DeepCopyInto(&dst.Status) }
	k.ValidateStatusUpdate = func(o, _ *corev1.ReplicationController) field.ErrorList {
		st, p := &o.Status, field.NewPath("status")
		errs := rules.Counts(p, rules.Count{Name: "replicas", Value: st.Replicas}, rules.Count{Name: "fullyLabeledReplicas", Value: st.FullyLabeledReplicas},
			rules.Count{Name: "readyReplicas", Value: st.ReadyReplicas}, rules.Count{Name: "availableReplicas", Value: st.AvailableReplicas})
		errs = append(errs, rules.Nonnegative(st.ObservedGeneration, p.Child("observedGeneration"))...)
		const total = "cannot be greater than status.replicas"
		errs = append(errs, rules.AtMost(p, rules.Count{Name: "fullyLabeledReplicas", Value: st.FullyLabeledReplicas}, st.Replicas, total)...)
		errs = append(errs, rules.AtMost(p, rules.Count{Name: "readyReplicas", Value: st.ReadyReplicas}, st.Replicas, total)...)
		errs = append(errs, rules.AtMost(p, rules.Count{Name: "availableReplicas", Value: st.AvailableReplicas}, st.Replicas, total)...)
		return append(errs, rules.AtMost(p, rules.Count{Name: "availableReplicas", Value: st.AvailableReplicas}, st.ReadyReplicas, "cannot be greater than readyReplicas")...)
	}
	k.SpecChanged = func(o, old *corev1.ReplicationController) bool { return !rules.Same(o.Spec, old.Spec) }
	k.Warnings = func(o *corev1.ReplicationController) []string { return rules.PodNameWarnings(o) }
	k.ScaleGet = func(o *corev1.ReplicationController) (int32, int32, string) {
		return rules.Or(o.Spec.Replicas, 1), o.Status.Replicas, labels.SelectorFromSet(o.Spec.Selector).String()
	}
	k.ScaleSet = func(o *corev1.ReplicationController, n int32) { o.Spec.Replicas = &n }
	k.Fields = func(o *corev1.ReplicationController) fields.Set {
		return fields.Set{"status.replicas": strconv.Itoa(int(o.Status.Replicas))}
	}
	k.Resource.FieldLabels = []string{"status.replicas"}
	spec, status := corev1.ReplicationControllerSpec{}.SwaggerDoc(), corev1.ReplicationControllerStatus{}.SwaggerDoc()
	k.Resource.Columns = append([]metav1.TableColumnDefinition{
		rules.Name(), rules.Integer("Desired", spec["replicas"]), rules.Integer("Current", status["replicas"]), rules.Integer("Ready", status["readyReplicas"]), rules.Age(),
	}, rules.PodColumns()...)
	k.Row = func(o *corev1.ReplicationController) []any {
		names, images := "", ""
		if o.Spec.Template != nil {
			names, images = ContainerNames(&o.Spec.Template.Spec)
		}
		return []any{o.Name, int64(rules.Or(o.Spec.Replicas, 1)), int64(o.Status.Replicas), int64(o.Status.ReadyReplicas), rules.Created(o), names, images, labels.FormatLabels(o.Spec.Selector)}
	}
	return k.Erase()
}

func validateReplicationController(o *corev1.ReplicationController) (errs field.ErrorList) {
	s, p := &o.Spec, field.NewPath("spec")
	errs = append(errs, nonnegative(p.Child("minReadySeconds"), s.MinReadySeconds)...)
	if len(s.Selector) == 0 {
		errs = append(errs, field.Required(p.Child("selector"), ""))
	}
	if s.Replicas == nil {
		errs = append(errs, field.Required(p.Child("replicas"), ""))
	} else {
		errs = append(errs, nonnegative(p.Child("replicas"), *s.Replicas)...)
	}
	t, tp := s.Template, p.Child("template")
	if t == nil {
		return append(errs, field.Required(tp, ""))
	}
	if len(s.Selector) > 0 {
		errs = append(errs, rules.SelectsTemplate(labels.SelectorFromSet(s.Selector), t.Labels, tp)...)
	}
	errs = append(errs, ValidatePodTemplateSpec(t, tp)...)
	if t.Spec.RestartPolicy != corev1.RestartPolicyAlways {
		errs = append(errs, field.NotSupported(tp.Child("spec", "restartPolicy"), t.Spec.RestartPolicy, []corev1.RestartPolicy{corev1.RestartPolicyAlways}))
	}
	if t.Spec.ActiveDeadlineSeconds != nil {
		errs = append(errs, field.Forbidden(tp.Child("spec", "activeDeadlineSeconds"), "activeDeadlineSeconds in ReplicationController is not Supported"))
	}
	return errs
}
