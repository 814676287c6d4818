package admission

import (
	"context"
	"fmt"
	"sort"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	helper "k8s.io/component-helpers/resource"

	"github.com/proa-dev/proa/internal/apiserver/rest"
)

var (
	limitRangesGVR = corev1.SchemeGroupVersion.WithResource("limitranges")
	podsGVR        = corev1.SchemeGroupVersion.WithResource("pods")
)

// LimitRanger fills in the requests and limits of containers from the
// namespace's LimitRanges, and refuses pods and claims outside their bounds.
type LimitRanger struct{ Reader Reader }

func (p LimitRanger) Admit(_ context.Context, a *rest.Attributes) error {
	if !is(a, "", "pods", rest.Create) {
		return nil
	}
	pod, ok := a.Object.(*corev1.Pod)
	if !ok {
		return nil
	}
	for _, obj := range p.Reader.List(limitRangesGVR, a.Namespace) {
		lr := obj.(*corev1.LimitRange)
		for _, item := range lr.Spec.Limits {
			if item.Type != corev1.LimitTypeContainer {
				continue
			}
			var set []string
			for _, list := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
				for i := range list {
					set = append(set, fill(&list[i], item)...)
				}
			}
			if len(set) > 0 {
				if pod.Annotations == nil {
					pod.Annotations = map[string]string{}
				}
				pod.Annotations["kubernetes.io/limit-ranger"] = "LimitRanger plugin set: " + strings.Join(set, "; ")
			}
		}
	}
	return nil
}

func fill(c *corev1.Container, item corev1.LimitRangeItem) []string {
	put := func(to *corev1.ResourceList, from corev1.ResourceList) []string {
		var names []string
		for name, q := range from {
			if _, ok := (*to)[name]; !ok {
				if *to == nil {
					*to = corev1.ResourceList{}
				}
				(*to)[name] = q.DeepCopy()
				names = append(names, string(name))
			}
		}
		sort.Strings(names)
		return names
	}
	var set []string
	if names := put(&c.Resources.Requests, item.DefaultRequest); len(names) > 0 {
		set = append(set, strings.Join(names, ", ")+" request for container "+c.Name)
	}
	if names := put(&c.Resources.Limits, item.Default); len(names) > 0 {
		set = append(set, strings.Join(names, ", ")+" limit for container "+c.Name)
	}
	return set
}

func (p LimitRanger) Validate(_ context.Context, a *rest.Attributes) error {
	resized := a.Verb == rest.Update && a.Subresource == "resize" && a.Resource.GVR == podsGVR
	if !resized && !is(a, "", "pods", rest.Create) && !is(a, "", "persistentvolumeclaims", rest.Create, rest.Update) {
		return nil
	}
	var problems []string
	for _, obj := range p.Reader.List(limitRangesGVR, a.Namespace) {
		for _, item := range obj.(*corev1.LimitRange).Spec.Limits {
			switch o := a.Object.(type) {
			case *corev1.Pod:
				problems = append(problems, podBounds(o, item)...)
			case *corev1.PersistentVolumeClaim:
				if item.Type == corev1.LimitTypePersistentVolumeClaim {
					problems = append(problems, bounds(item, corev1.ResourceList(o.Spec.Resources.Requests), corev1.ResourceList{})...)
				}
			}
		}
	}
	if len(problems) == 0 {
		return nil
	}
	text := problems[0]
	if len(problems) > 1 {
		text = "[" + strings.Join(problems, ", ") + "]"
	}
	return apierrors.NewForbidden(a.Resource.GVR.GroupResource(), a.Name, fmt.Errorf("%s", text))
}

func podBounds(pod *corev1.Pod, item corev1.LimitRangeItem) (problems []string) {
	switch item.Type {
	case corev1.LimitTypeContainer:
		for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
			for i := range list {
				problems = append(problems, bounds(item, list[i].Resources.Requests, list[i].Resources.Limits)...)
			}
		}
	case corev1.LimitTypePod:
		problems = bounds(item, helper.PodRequests(pod, helper.PodResourcesOptions{}), helper.PodLimits(pod, helper.PodResourcesOptions{}))
	}
	return problems
}

// bounds compares requests and limits with one item of a LimitRange.
func bounds(item corev1.LimitRangeItem, requests, limits corev1.ResourceList) (problems []string) {
	claim := item.Type == corev1.LimitTypePersistentVolumeClaim
	for _, name := range names(item.Min) {
		want, req, reqOK, lim, limOK := item.Min[name], requests[name], has(requests, name), limits[name], has(limits, name)
		switch {
		case !reqOK:
			problems = append(problems, fmt.Sprintf("minimum %s usage per %s is %s.  No request is specified", name, item.Type, want.String()))
		case req.Cmp(want) < 0:
			problems = append(problems, fmt.Sprintf("minimum %s usage per %s is %s, but request is %s", name, item.Type, want.String(), req.String()))
		case limOK && lim.Cmp(want) < 0:
			problems = append(problems, fmt.Sprintf("minimum %s usage per %s is %s, but limit is %s", name, item.Type, want.String(), lim.String()))
		}
	}
	for _, name := range names(item.Max) {
		want, req, lim, limOK := item.Max[name], requests[name], limits[name], has(limits, name)
		switch {
		case claim && req.Cmp(want) > 0:
			problems = append(problems, fmt.Sprintf("maximum %s usage per %s is %s, but request is %s", name, item.Type, want.String(), req.String()))
		case claim:
		case !limOK:
			problems = append(problems, fmt.Sprintf("maximum %s usage per %s is %s.  No limit is specified", name, item.Type, want.String()))
		case lim.Cmp(want) > 0:
			problems = append(problems, fmt.Sprintf("maximum %s usage per %s is %s, but limit is %s", name, item.Type, want.String(), lim.String()))
		case req.Cmp(want) > 0:
			problems = append(problems, fmt.Sprintf("maximum %s usage per %s is %s, but request is %s", name, item.Type, want.String(), req.String()))
		}
	}
	for _, name := range names(item.MaxLimitRequestRatio) {
		want, req, lim := item.MaxLimitRequestRatio[name], requests[name], limits[name]
		if req.IsZero() || lim.IsZero() {
			problems = append(problems, fmt.Sprintf("%s max limit to request ratio per %s is %s, but no request is specified or request is 0", name, item.Type, want.String()))
			continue
		}
		if ratio := float64(lim.MilliValue()) / float64(req.MilliValue()); ratio > float64(want.MilliValue())/1000 {
			problems = append(problems, fmt.Sprintf("%s max limit to request ratio per %s is %s, but provided ratio is %f", name, item.Type, want.String(), ratio))
		}
	}
	return problems
}

func has(list corev1.ResourceList, name corev1.ResourceName) bool {
	_, ok := list[name]
	return ok
}

func names(list map[corev1.ResourceName]resource.Quantity) []corev1.ResourceName {
	out := make([]corev1.ResourceName, 0, len(list))
	for name := range list {
		out = append(out, name)
	}
	sort.Slice(out, func(i, j int) bool { return out[i] < out[j] })
	return out
}
