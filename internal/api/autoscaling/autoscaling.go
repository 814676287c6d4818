// Package autoscaling holds the rules of the API group autoscaling: horizontal
// pod autoscalers. They are stored as v2; v1 is a view of them that keeps what
// it has no fields for in annotations. Scale, the group's other kind, is a
// subresource of what can be scaled.
package autoscaling

import (
	"fmt"
	"strconv"
	"strings"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

// Resources returns the resources of the group.
func Resources() []*api.Resource {
	return []*api.Resource{autoscalersV2(), autoscalersV1()}
}

func describe(r api.Resource) api.Resource {
	r.Categories = []string{"all"}
	r.UnconditionalUpdate = true
	r.Columns = []metav1.TableColumnDefinition{
		rules.Name(),
		rules.Text("Reference", "What is scaled."),
		rules.Text("Targets", "The metrics with their current and their wanted values."),
		rules.Text("MinPods", "The lower limit for the number of replicas."),
		rules.Text("MaxPods", "The upper limit for the number of replicas."),
		rules.Text("Replicas", "The current number of replicas."),
		rules.Age(),
	}
	return r
}

func autoscalersV2() *api.Resource {
	return api.Kind[*autoscalingv2.HorizontalPodAutoscaler]{
		Resource:    describe(rules.Namespaced[autoscalingv2.HorizontalPodAutoscaler, autoscalingv2.HorizontalPodAutoscalerList](autoscalingv2.SchemeGroupVersion, "horizontalpodautoscalers", "hpa")),
		Default:     defaultAutoscaler,
		Validate:    validateAutoscaler,
		CopyStatus:  func(dst, src *autoscalingv2.HorizontalPodAutoscaler) { dst.Status = *src.Status.DeepCopy() },
		SpecChanged: func(h, old *autoscalingv2.HorizontalPodAutoscaler) bool { return !rules.Same(h.Spec, old.Spec) },
		ValidateStatusUpdate: func(h, _ *autoscalingv2.HorizontalPodAutoscaler) field.ErrorList {
			return rules.Counts(field.NewPath("status"),
				rules.Count{Name: "currentReplicas", Value: h.Status.CurrentReplicas},
				rules.Count{Name: "desiredReplicas", Value: h.Status.DesiredReplicas})
		},
		Row: row,
	}.Erase()
}

func autoscalersV1() *api.Resource {
	r := describe(rules.Namespaced[autoscalingv1.HorizontalPodAutoscaler, autoscalingv1.HorizontalPodAutoscalerList](autoscalingv1.SchemeGroupVersion, "horizontalpodautoscalers", "hpa"))
	r.StoredAs = autoscalingv2.SchemeGroupVersion.WithResource("horizontalpodautoscalers")
	r.ToStored = func(obj runtime.Object) (runtime.Object, error) {
		h, ok := obj.(*autoscalingv1.HorizontalPodAutoscaler)
		if !ok {
			return nil, fmt.Errorf("convert %T to autoscaling/v2: not an autoscaler of autoscaling/v1", obj)
		}
		out, err := toV2(h)
		if err != nil {
			return nil, fmt.Errorf("convert horizontalpodautoscaler %s/%s to autoscaling/v2: %w", h.Namespace, h.Name, err)
		}
		return out, nil
	}
	r.FromStored = func(obj runtime.Object) (runtime.Object, error) {
		h, ok := obj.(*autoscalingv2.HorizontalPodAutoscaler)
		if !ok {
			return nil, fmt.Errorf("convert %T to autoscaling/v1: not an autoscaler of autoscaling/v2", obj)
		}
		out, err := fromV2(h)
		if err != nil {
			return nil, fmt.Errorf("convert horizontalpodautoscaler %s/%s to autoscaling/v1: %w", h.Namespace, h.Name, err)
		}
		return out, nil
	}
	return api.Kind[*autoscalingv1.HorizontalPodAutoscaler]{
		Resource: r,
		Default:  func(h *autoscalingv1.HorizontalPodAutoscaler) { rules.Refer(&h.Spec.MinReplicas, 1) },
		Validate: func(h *autoscalingv1.HorizontalPodAutoscaler) field.ErrorList {
			out, err := toV2(h)
			if err != nil {
				return field.ErrorList{field.Invalid(field.NewPath("metadata", "annotations"), h.Annotations, err.Error())}
			}
			return validateAutoscaler(out)
		},
		CopyStatus: func(dst, src *autoscalingv1.HorizontalPodAutoscaler) {
			dst.Status = *src.Status.DeepCopy()
			// These annotations are the rest of the status.
			for _, key := range []string{annotationConditions, annotationCurrentMetrics} {
				if value, set := src.Annotations[key]; set {
					metav1.SetMetaDataAnnotation(&dst.ObjectMeta, key, value)
				} else {
					delete(dst.Annotations, key)
				}
			}
		},
		SpecChanged: func(h, old *autoscalingv1.HorizontalPodAutoscaler) bool {
			return !rules.Same(h.Spec, old.Spec) || h.Annotations[annotationMetrics] != old.Annotations[annotationMetrics] ||
				h.Annotations[annotationBehavior] != old.Annotations[annotationBehavior]
		},
		Row: func(h *autoscalingv1.HorizontalPodAutoscaler) []any {
			out, err := toV2(h)
			if err != nil { // validation keeps such annotations out; the table shows the rest
				plain := h.DeepCopy()
				plain.Annotations = nil
				if out, err = toV2(plain); err != nil {
					out = &autoscalingv2.HorizontalPodAutoscaler{ObjectMeta: h.ObjectMeta}
				}
			}
			return row(out)
		},
	}.Erase()
}

func row(h *autoscalingv2.HorizontalPodAutoscaler) []any {
	least := rules.Unset
	if n := h.Spec.MinReplicas; n != nil {
		least = strconv.Itoa(int(*n))
	}
	return []any{
		h.Name,
		h.Spec.ScaleTargetRef.Kind + "/" + h.Spec.ScaleTargetRef.Name,
		targets(h.Spec.Metrics, h.Status.CurrentMetrics),
		least,
		int64(h.Spec.MaxReplicas),
		int64(h.Status.CurrentReplicas),
		rules.Created(h),
	}
}

// targets shows each metric as current/wanted; the first two of many.
func targets(specs []autoscalingv2.MetricSpec, statuses []autoscalingv2.MetricStatus) string {
	if len(specs) == 0 {
		return rules.None
	}
	const limit = 2
	var list []string
	for i := range specs {
		var now *autoscalingv2.MetricValueStatus
		if i < len(statuses) {
			now = current(&statuses[i])
		}
		list = append(list, target(&specs[i], now))
	}
	if len(list) > limit {
		return fmt.Sprintf("%s + %d more...", strings.Join(list[:limit], ", "), len(list)-limit)
	}
	return strings.Join(list, ", ")
}

func current(s *autoscalingv2.MetricStatus) *autoscalingv2.MetricValueStatus {
	switch {
	case s.External != nil:
		return &s.External.Current
	case s.Pods != nil:
		return &s.Pods.Current
	case s.Object != nil:
		return &s.Object.Current
	case s.Resource != nil:
		return &s.Resource.Current
	case s.ContainerResource != nil:
		return &s.ContainerResource.Current
	}
	return nil
}

func target(s *autoscalingv2.MetricSpec, now *autoscalingv2.MetricValueStatus) string {
	value, average, utilization := rules.Unknown, rules.Unknown, rules.Unknown
	if now != nil {
		if now.Value != nil {
			value = now.Value.String()
		}
		if now.AverageValue != nil {
			average = now.AverageValue.String()
		}
		if now.AverageUtilization != nil {
			utilization = fmt.Sprintf("%d%%", *now.AverageUtilization)
		}
	}
	plain := func(t *autoscalingv2.MetricTarget) string {
		if t.AverageValue != nil {
			return average + "/" + t.AverageValue.String() + " (avg)"
		}
		if t.Value != nil {
			return value + "/" + t.Value.String()
		}
		return value + "/" + "<auto>"
	}
	resource := func(name string, t *autoscalingv2.MetricTarget) string {
		if t.AverageValue != nil {
			return name + ": " + average + "/" + t.AverageValue.String()
		}
		wanted := "<auto>"
		if t.AverageUtilization != nil {
			wanted = fmt.Sprintf("%d%%", *t.AverageUtilization)
		}
		return name + ": " + utilization + "/" + wanted
	}
	switch {
	case s.External != nil:
		return plain(&s.External.Target)
	case s.Pods != nil:
		if t := s.Pods.Target.AverageValue; t != nil {
			return average + "/" + t.String()
		}
		return average + "/<auto>"
	case s.Object != nil:
		return plain(&s.Object.Target)
	case s.Resource != nil:
		return resource(string(s.Resource.Name), &s.Resource.Target)
	case s.ContainerResource != nil:
		return resource(string(s.ContainerResource.Name), &s.ContainerResource.Target)
	}
	return "<unknown type>"
}
