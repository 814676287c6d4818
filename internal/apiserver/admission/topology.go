package admission

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	helper "k8s.io/component-helpers/resource"

	"github.com/proa-dev/proa/internal/apiserver/rest"
)

var nodesGVR = corev1.SchemeGroupVersion.WithResource("nodes")

// PodTopologyLabels gives a pod the zone and region of its node as labels (KEP-4742).
type PodTopologyLabels struct{ Reader Reader }

func (p PodTopologyLabels) Admit(_ context.Context, a *rest.Attributes) error {
	if a.Resource.GVR.Resource != "pods" || a.Resource.GVR.Group != "" || a.Verb != rest.Create && a.Verb != rest.Update {
		return nil
	}
	switch o := a.Object.(type) {
	case *corev1.Pod:
		if a.Subresource == "" && o.Spec.NodeName != "" {
			o.Labels = p.with(o.Labels, o.Spec.NodeName)
		}
	case *corev1.Binding:
		if a.Subresource == "binding" && o.Target.Kind == "Node" {
			o.Labels = p.with(o.Labels, o.Target.Name)
		}
	}
	return nil
}

func (p PodTopologyLabels) with(labels map[string]string, node string) map[string]string {
	n, ok := p.Reader.Get(nodesGVR, "", node)
	if !ok {
		return labels
	}
	for _, key := range []string{corev1.LabelTopologyZone, corev1.LabelTopologyRegion} {
		if v, ok := n.GetLabels()[key]; ok && labels[key] != v {
			if labels == nil {
				labels = map[string]string{}
			}
			labels[key] = v
		}
	}
	return labels
}

// PodResize refuses to resize a pod to more than its node can give (KEP-1287).
type PodResize struct{ Reader Reader }

func (p PodResize) Validate(_ context.Context, a *rest.Attributes) error {
	if a.Subresource != "resize" || a.Verb != rest.Update || a.Resource.GVR.Resource != "pods" || a.Resource.GVR.Group != "" {
		return nil
	}
	pod, ok := a.Object.(*corev1.Pod)
	if !ok || pod.Spec.NodeName == "" || a.Old == nil || a.Old.GetGeneration() == pod.Generation {
		return nil
	}
	obj, ok := p.Reader.Get(nodesGVR, "", pod.Spec.NodeName)
	if !ok {
		return forbid(a, "node %q not found", pod.Spec.NodeName)
	}
	node := obj.(*corev1.Node)
	if os := node.Labels[corev1.LabelOSStable]; os != "" && os != "linux" {
		return because(forbid(a, "pod resize is only supported on linux nodes, node %q is %q", node.Name, os), "UnsupportedPlatform")
	}
	requests := helper.PodRequests(pod, helper.PodResourcesOptions{})
	var over []string
	if q := requests.Cpu(); q.Cmp(*node.Status.Allocatable.Cpu()) > 0 {
		over = append(over, fmt.Sprintf("cpu, requested: %d, allocatable: %d", q.MilliValue(), node.Status.Allocatable.Cpu().MilliValue()))
	}
	if q := requests.Memory(); q.Cmp(*node.Status.Allocatable.Memory()) > 0 {
		over = append(over, fmt.Sprintf("memory, requested: %d, allocatable: %d", q.Value(), node.Status.Allocatable.Memory().Value()))
	}
	if len(over) > 0 {
		return because(forbid(a, "node didn't have enough allocatable resources: %s", strings.Join(over, "; ")), "NodeCapacity")
	}
	return nil
}

// because adds a cause to a refusal.
func because(err error, cause metav1.CauseType) error {
	if s, ok := err.(interface{ Status() metav1.Status }); ok && s.Status().Details != nil {
		s.Status().Details.Causes = append(s.Status().Details.Causes, metav1.StatusCause{Type: cause})
	}
	return err
}
