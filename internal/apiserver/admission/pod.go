package admission

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/proa-dev/proa/internal/apiserver/rest"
)

// DefaultTolerations lets a pod stay five minutes on a node that became not ready
// or unreachable, unless it says otherwise.
type DefaultTolerations struct{}

func (DefaultTolerations) Admit(_ context.Context, a *rest.Attributes) error {
	if !is(a, "", "pods", rest.Create, rest.Update) {
		return nil
	}
	pod, ok := a.Object.(*corev1.Pod)
	if !ok {
		return nil
	}
	for _, key := range []string{corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable} {
		tolerated := false
		for _, t := range pod.Spec.Tolerations {
			if (t.Key == key || t.Key == "") && (t.Effect == corev1.TaintEffectNoExecute || t.Effect == "") {
				tolerated = true
			}
		}
		if !tolerated {
			seconds := int64(300)
			pod.Spec.Tolerations = append(pod.Spec.Tolerations, corev1.Toleration{
				Key: key, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: &seconds})
		}
	}
	return nil
}

var priorityClassesGVR = schedulingv1.SchemeGroupVersion.WithResource("priorityclasses")

// Priority turns a pod's priority class into its number, and keeps one global
// default class.
type Priority struct{ Reader Reader }

func (p Priority) Admit(_ context.Context, a *rest.Attributes) error {
	if !is(a, "", "pods", rest.Create, rest.Update) {
		return nil
	}
	pod, ok := a.Object.(*corev1.Pod)
	if !ok {
		return nil
	}
	if old, ok := a.Old.(*corev1.Pod); ok && a.Verb == rest.Update {
		// Priority is not to be changed; writers that do not know it keep it.
		if pod.Spec.Priority == nil {
			pod.Spec.Priority = old.Spec.Priority
		}
		if pod.Spec.PreemptionPolicy == nil {
			pod.Spec.PreemptionPolicy = old.Spec.PreemptionPolicy
		}
		return nil
	}
	class, err := p.class(a, pod.Spec.PriorityClassName)
	if err != nil {
		return err
	}
	value, policy := int32(0), corev1.PreemptLowerPriority
	if class != nil {
		pod.Spec.PriorityClassName = class.Name
		value = class.Value
		if class.PreemptionPolicy != nil {
			policy = *class.PreemptionPolicy
		}
	}
	if pod.Spec.Priority != nil && *pod.Spec.Priority != value {
		return apierrors.NewForbidden(a.Resource.GVR.GroupResource(), pod.Name,
			fmt.Errorf("the integer value of priority (%d) must not be provided in pod spec; priority admission controller computed %d from the given PriorityClass name", *pod.Spec.Priority, value))
	}
	if pod.Spec.PreemptionPolicy != nil && *pod.Spec.PreemptionPolicy != policy {
		return apierrors.NewForbidden(a.Resource.GVR.GroupResource(), pod.Name,
			fmt.Errorf("the string value of PreemptionPolicy (%s) must not be provided in pod spec; priority admission controller computed %s from the given PriorityClass name", *pod.Spec.PreemptionPolicy, policy))
	}
	pod.Spec.Priority, pod.Spec.PreemptionPolicy = &value, &policy
	return nil
}

func (p Priority) class(a *rest.Attributes, name string) (*schedulingv1.PriorityClass, error) {
	if name != "" {
		if obj, ok := p.Reader.Get(priorityClassesGVR, "", name); ok {
			return obj.(*schedulingv1.PriorityClass), nil
		}
		return nil, apierrors.NewForbidden(a.Resource.GVR.GroupResource(), a.Name, fmt.Errorf("no PriorityClass with name %s was found", name))
	}
	var best *schedulingv1.PriorityClass
	for _, obj := range p.Reader.List(priorityClassesGVR, "") {
		if c := obj.(*schedulingv1.PriorityClass); c.GlobalDefault && (best == nil || c.Value < best.Value) {
			best = c
		}
	}
	return best, nil
}

func (p Priority) Validate(_ context.Context, a *rest.Attributes) error {
	if !is(a, "scheduling.k8s.io", "priorityclasses", rest.Create, rest.Update) {
		return nil
	}
	class, ok := a.Object.(*schedulingv1.PriorityClass)
	if !ok || !class.GlobalDefault {
		return nil
	}
	for _, obj := range p.Reader.List(priorityClassesGVR, "") {
		if c := obj.(*schedulingv1.PriorityClass); c.GlobalDefault && c.Name != class.Name {
			return apierrors.NewForbidden(a.Resource.GVR.GroupResource(), class.Name,
				fmt.Errorf("PriorityClass %v is already marked as default. Only one default can exist", c.Name))
		}
	}
	return nil
}

var runtimeClassesGVR = nodev1.SchemeGroupVersion.WithResource("runtimeclasses")

// RuntimeClass adds a class's overhead and scheduling rules to its pods.
type RuntimeClass struct{ Reader Reader }

func (p RuntimeClass) Admit(_ context.Context, a *rest.Attributes) error {
	if !is(a, "", "pods", rest.Create) {
		return nil
	}
	pod, ok := a.Object.(*corev1.Pod)
	if !ok || pod.Spec.RuntimeClassName == nil || *pod.Spec.RuntimeClassName == "" {
		return nil
	}
	forbid := func(format string, args ...any) error {
		return apierrors.NewForbidden(a.Resource.GVR.GroupResource(), pod.Name, fmt.Errorf(format, args...))
	}
	obj, ok := p.Reader.Get(runtimeClassesGVR, "", *pod.Spec.RuntimeClassName)
	if !ok {
		return forbid("pod rejected: RuntimeClass %q not found", *pod.Spec.RuntimeClassName)
	}
	class := obj.(*nodev1.RuntimeClass)
	if class.Overhead != nil {
		if pod.Spec.Overhead != nil && !apiequality.Semantic.DeepEqual(pod.Spec.Overhead, class.Overhead.PodFixed) {
			return forbid("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead")
		}
		pod.Spec.Overhead = class.Overhead.PodFixed.DeepCopy()
	}
	if s := class.Scheduling; s != nil {
		for k, v := range s.NodeSelector {
			if have, ok := pod.Spec.NodeSelector[k]; ok && have != v {
				return forbid("pod rejected: conflict: runtimeClass.scheduling.nodeSelector[%s] = %s; pod.spec.nodeSelector[%s] = %s", k, v, k, have)
			}
			if pod.Spec.NodeSelector == nil {
				pod.Spec.NodeSelector = map[string]string{}
			}
			pod.Spec.NodeSelector[k] = v
		}
		for _, t := range s.Tolerations {
			have := false
			for i := range pod.Spec.Tolerations {
				have = have || apiequality.Semantic.DeepEqual(pod.Spec.Tolerations[i], t)
			}
			if !have {
				pod.Spec.Tolerations = append(pod.Spec.Tolerations, t)
			}
		}
	}
	return nil
}

// NodeTaints keeps pods away from a new node until it says that it is ready.
type NodeTaints struct{}

func (NodeTaints) Admit(_ context.Context, a *rest.Attributes) error {
	if !is(a, "", "nodes", rest.Create) {
		return nil
	}
	node, ok := a.Object.(*corev1.Node)
	if !ok {
		return nil
	}
	for _, t := range node.Spec.Taints {
		if t.Key == corev1.TaintNodeNotReady && t.Effect == corev1.TaintEffectNoSchedule {
			return nil
		}
	}
	node.Spec.Taints = append(node.Spec.Taints, corev1.Taint{Key: corev1.TaintNodeNotReady, Effect: corev1.TaintEffectNoSchedule})
	return nil
}
