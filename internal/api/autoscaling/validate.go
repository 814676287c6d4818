package autoscaling

import (
	"fmt"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/validation/path"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api/rules"
)

const (
	maxPeriod        = 1800
	maxStabilization = 3600
	defaultCPU       = 80
)

func defaultAutoscaler(h *autoscalingv2.HorizontalPodAutoscaler) {
	rules.Refer(&h.Spec.MinReplicas, 1)
	if len(h.Spec.Metrics) == 0 {
		utilization := int32(defaultCPU)
		h.Spec.Metrics = []autoscalingv2.MetricSpec{{
			Type: autoscalingv2.ResourceMetricSourceType,
			Resource: &autoscalingv2.ResourceMetricSource{
				Name:   corev1.ResourceCPU,
				Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: &utilization},
			},
		}}
	}
	b := h.Spec.Behavior
	if b == nil {
		return
	}
	// Up at once, by what is more of four pods and twice the number; down to any
	// number, after the controller's own stabilization window.
	rules.Refer(&b.ScaleUp, autoscalingv2.HPAScalingRules{})
	rules.Refer(&b.ScaleUp.StabilizationWindowSeconds, 0)
	defaultScaling(b.ScaleUp,
		autoscalingv2.HPAScalingPolicy{Type: autoscalingv2.PodsScalingPolicy, Value: 4, PeriodSeconds: 15},
		autoscalingv2.HPAScalingPolicy{Type: autoscalingv2.PercentScalingPolicy, Value: 100, PeriodSeconds: 15})
	rules.Refer(&b.ScaleDown, autoscalingv2.HPAScalingRules{})
	defaultScaling(b.ScaleDown,
		autoscalingv2.HPAScalingPolicy{Type: autoscalingv2.PercentScalingPolicy, Value: 100, PeriodSeconds: 15})
}

func defaultScaling(r *autoscalingv2.HPAScalingRules, policies ...autoscalingv2.HPAScalingPolicy) {
	rules.Refer(&r.SelectPolicy, autoscalingv2.MaxChangePolicySelect)
	if r.Policies == nil {
		r.Policies = policies
	}
}

func validateAutoscaler(h *autoscalingv2.HorizontalPodAutoscaler) field.ErrorList {
	spec := field.NewPath("spec")
	s := &h.Spec
	var errs field.ErrorList
	if s.MinReplicas != nil && *s.MinReplicas < 1 {
		errs = append(errs, field.Invalid(spec.Child("minReplicas"), *s.MinReplicas, "must be greater than or equal to 1"))
	}
	if s.MaxReplicas < 1 {
		errs = append(errs, field.Invalid(spec.Child("maxReplicas"), s.MaxReplicas, "must be greater than 0"))
	}
	if s.MinReplicas != nil && s.MaxReplicas < *s.MinReplicas {
		errs = append(errs, field.Invalid(spec.Child("maxReplicas"), s.MaxReplicas, "must be greater than or equal to `minReplicas`"))
	}
	errs = append(errs, validateReference(s.ScaleTargetRef, spec.Child("scaleTargetRef"))...)
	for i := range s.Metrics {
		errs = append(errs, validateMetric(&s.Metrics[i], spec.Child("metrics").Index(i))...)
	}
	if b := s.Behavior; b != nil {
		errs = append(errs, validateScaling(b.ScaleUp, spec.Child("behavior", "scaleUp"))...)
		errs = append(errs, validateScaling(b.ScaleDown, spec.Child("behavior", "scaleDown"))...)
	}
	return errs
}

func validateReference(ref autoscalingv2.CrossVersionObjectReference, at *field.Path) (errs field.ErrorList) {
	for _, f := range []struct{ name, value string }{{"kind", ref.Kind}, {"name", ref.Name}} {
		if f.value == "" {
			errs = append(errs, field.Required(at.Child(f.name), ""))
			continue
		}
		errs = append(errs, rules.Messages(f.value, at.Child(f.name), path.IsValidPathSegmentName(f.value))...)
	}
	return errs
}

func validateMetric(m *autoscalingv2.MetricSpec, at *field.Path) (errs field.ErrorList) {
	if m.Type == "" {
		errs = append(errs, field.Required(at.Child("type"), "must specify a metric source type"))
	}
	type source struct {
		kind  autoscalingv2.MetricSourceType
		field string
		set   bool
	}
	sources := []source{
		{autoscalingv2.ObjectMetricSourceType, "object", m.Object != nil},
		{autoscalingv2.PodsMetricSourceType, "pods", m.Pods != nil},
		{autoscalingv2.ResourceMetricSourceType, "resource", m.Resource != nil},
		{autoscalingv2.ContainerResourceMetricSourceType, "containerResource", m.ContainerResource != nil},
		{autoscalingv2.ExternalMetricSourceType, "external", m.External != nil},
	}
	known, set := false, 0
	var kinds []autoscalingv2.MetricSourceType
	for _, s := range sources {
		kinds = append(kinds, s.kind)
		known = known || s.kind == m.Type
		if s.set {
			set++
			if set > 1 {
				errs = append(errs, field.Forbidden(at.Child(s.field), "must populate the given metric source only"))
			}
		}
		if s.kind == m.Type && !s.set {
			errs = append(errs, field.Required(at.Child(s.field), "must populate information for the given metric source"))
		}
	}
	if !known && m.Type != "" {
		errs = append(errs, field.NotSupported(at.Child("type"), m.Type, kinds))
	}
	if o := m.Object; o != nil {
		at := at.Child("object")
		errs = append(errs, validateReference(o.DescribedObject, at.Child("describedObject"))...)
		errs = append(errs, validateIdentifier(&o.Metric, at.Child("metric"))...)
		errs = append(errs, validateTarget(&o.Target, at.Child("target"))...)
		if o.Target.Value == nil && o.Target.AverageValue == nil {
			errs = append(errs, field.Required(at.Child("target").Child("averageValue"), "must set either a target value or averageValue"))
		}
	}
	if p := m.Pods; p != nil {
		at := at.Child("pods")
		errs = append(errs, validateIdentifier(&p.Metric, at.Child("metric"))...)
		errs = append(errs, validateTarget(&p.Target, at.Child("target"))...)
		if p.Target.AverageValue == nil || p.Target.AverageValue.Sign() != 1 {
			errs = append(errs, field.Required(at.Child("target").Child("averageValue"), "must specify a positive target averageValue"))
		}
	}
	if r := m.Resource; r != nil {
		errs = append(errs, validateResource(string(r.Name), &r.Target, at.Child("resource"))...)
	}
	if c := m.ContainerResource; c != nil {
		at := at.Child("containerResource")
		errs = append(errs, rules.Required(c.Container, at.Child("container"), "must specify a container")...)
		errs = append(errs, validateResource(string(c.Name), &c.Target, at)...)
	}
	if e := m.External; e != nil {
		at := at.Child("external")
		errs = append(errs, validateIdentifier(&e.Metric, at.Child("metric"))...)
		errs = append(errs, validateTarget(&e.Target, at.Child("target"))...)
		switch {
		case e.Target.Value == nil && e.Target.AverageValue == nil:
			errs = append(errs, field.Required(at.Child("target").Child("averageValue"), "must set either a target value for metric or a per-pod target"))
		case e.Target.Value != nil && e.Target.AverageValue != nil:
			errs = append(errs, field.Forbidden(at.Child("target").Child("value"), "may not set both a target value for metric and a per-pod target"))
		}
	}
	return errs
}

func validateIdentifier(m *autoscalingv2.MetricIdentifier, at *field.Path) field.ErrorList {
	errs := rules.Required(m.Name, at.Child("name"), "must specify a metric name")
	if m.Name != "" {
		errs = append(errs, rules.Messages(m.Name, at.Child("name"), path.IsValidPathSegmentName(m.Name))...)
	}
	return append(errs, rules.Selector(m.Selector, at.Child("selector"))...)
}

func validateTarget(t *autoscalingv2.MetricTarget, at *field.Path) (errs field.ErrorList) {
	kinds := []autoscalingv2.MetricTargetType{autoscalingv2.AverageValueMetricType, autoscalingv2.UtilizationMetricType, autoscalingv2.ValueMetricType}
	switch t.Type {
	case "":
		errs = append(errs, field.Required(at.Child("type"), "must specify a metric target type"))
	case autoscalingv2.AverageValueMetricType, autoscalingv2.UtilizationMetricType, autoscalingv2.ValueMetricType:
	default:
		errs = append(errs, field.Invalid(at.Child("type"), t.Type, fmt.Sprintf("must be either %s, %s, or %s", kinds[1], kinds[2], kinds[0])))
	}
	if t.Value != nil && t.Value.Sign() != 1 {
		errs = append(errs, field.Invalid(at.Child("value"), t.Value, "must be positive"))
	}
	if t.AverageValue != nil && t.AverageValue.Sign() != 1 {
		errs = append(errs, field.Invalid(at.Child("averageValue"), t.AverageValue, "must be positive"))
	}
	if t.AverageUtilization != nil && *t.AverageUtilization < 1 {
		errs = append(errs, field.Invalid(at.Child("averageUtilization"), *t.AverageUtilization, "must be greater than 0"))
	}
	return errs
}

func validateResource(name string, t *autoscalingv2.MetricTarget, at *field.Path) field.ErrorList {
	errs := rules.Required(name, at.Child("name"), "must specify a resource name")
	errs = append(errs, validateTarget(t, at.Child("target"))...)
	switch {
	case t.AverageUtilization == nil && t.AverageValue == nil:
		errs = append(errs, field.Required(at.Child("target").Child("averageUtilization"), "must set either a target raw value or a target utilization"))
	case t.AverageUtilization != nil && t.AverageValue != nil:
		errs = append(errs, field.Forbidden(at.Child("target").Child("averageValue"), "may not set both a target raw value and a target utilization"))
	}
	return errs
}

func validateScaling(r *autoscalingv2.HPAScalingRules, at *field.Path) (errs field.ErrorList) {
	if r == nil {
		return nil
	}
	if n := r.StabilizationWindowSeconds; n != nil {
		window := at.Child("stabilizationWindowSeconds")
		if *n < 0 {
			errs = append(errs, field.Invalid(window, *n, "must be greater than or equal to zero"))
		}
		if *n > maxStabilization {
			errs = append(errs, field.Invalid(window, *n, fmt.Sprintf("must be less than or equal to %v", maxStabilization)))
		}
	}
	if p := r.SelectPolicy; p != nil {
		switch *p {
		case autoscalingv2.MaxChangePolicySelect, autoscalingv2.MinChangePolicySelect, autoscalingv2.DisabledPolicySelect:
		default:
			errs = append(errs, field.NotSupported(at.Child("selectPolicy"), *p,
				[]autoscalingv2.ScalingPolicySelect{autoscalingv2.DisabledPolicySelect, autoscalingv2.MaxChangePolicySelect, autoscalingv2.MinChangePolicySelect}))
		}
	}
	if len(r.Policies) == 0 {
		errs = append(errs, field.Required(at.Child("policies"), "must specify at least one Policy"))
	}
	for i, p := range r.Policies {
		at := at.Child("policies").Index(i)
		if p.Type != autoscalingv2.PodsScalingPolicy && p.Type != autoscalingv2.PercentScalingPolicy {
			errs = append(errs, field.NotSupported(at.Child("type"), p.Type,
				[]autoscalingv2.HPAScalingPolicyType{autoscalingv2.PercentScalingPolicy, autoscalingv2.PodsScalingPolicy}))
		}
		if p.Value <= 0 {
			errs = append(errs, field.Invalid(at.Child("value"), p.Value, "must be greater than zero"))
		}
		if p.PeriodSeconds <= 0 {
			errs = append(errs, field.Invalid(at.Child("periodSeconds"), p.PeriodSeconds, "must be greater than zero"))
		}
		if p.PeriodSeconds > maxPeriod {
			errs = append(errs, field.Invalid(at.Child("periodSeconds"), p.PeriodSeconds, fmt.Sprintf("must be less than or equal to %v", maxPeriod)))
		}
	}
	if r.Tolerance != nil && r.Tolerance.Sign() < 0 {
		errs = append(errs, field.Invalid(at.Child("tolerance"), r.Tolerance, "must be greater than or equal to zero"))
	}
	return errs
}
