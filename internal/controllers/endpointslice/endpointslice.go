// Package endpointslice keeps, for each Service with a selector, EndpointSlices
// that say which pods are behind it (discovery.k8s.io/v1), at most 100 endpoints
// in each.
//
// It serves IPv4. It writes no Endpoints objects and mirrors none.
package endpointslice

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sort"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/controllers/loop"
)

const (
	manager      = "endpointslice-controller.k8s.io"
	maxEndpoints = 100
)

// Controller writes EndpointSlices that it manages; it reads Services and Pods.
type Controller struct {
	client   client.Interface
	loop     *loop.Loop[types.NamespacedName]
	services client.Typed[*corev1.Service]
	pods     client.Typed[*corev1.Pod]
	slices   client.Typed[*discoveryv1.EndpointSlice]
}

// New returns the controller.
func New(c client.Interface, log *slog.Logger) *Controller {
	x := &Controller{client: c, services: client.Services.Informer(c, client.Scope{}), pods: client.Pods.Informer(c, client.Scope{}),
		slices: client.EndpointSlices.Informer(c, client.Scope{})}
	x.loop = loop.New("endpointslice", log, x.sync)
	return x
}

func (x *Controller) Name() string { return "endpointslice" }

// Run works until ctx ends.
func (x *Controller) Run(ctx context.Context) error {
	return x.loop.Run(ctx, 2,
		loop.Source{Informer: x.services.Informer, Handle: func(e client.Event) {
			if e.Object != nil {
				x.loop.Add(types.NamespacedName{Namespace: e.Object.GetNamespace(), Name: e.Object.GetName()})
			}
		}},
		loop.Source{Informer: x.pods.Informer, Handle: func(e client.Event) {
			for _, obj := range []client.Object{e.Object, e.Old} {
				if pod, ok := obj.(*corev1.Pod); ok {
					x.addServicesOf(pod)
				}
			}
		}},
		loop.Source{Informer: x.slices.Informer, Handle: func(e client.Event) {
			if e.Object == nil || e.Type == client.Added || e.Object.GetLabels()[discoveryv1.LabelManagedBy] != manager {
				return
			}
			x.loop.Add(types.NamespacedName{Namespace: e.Object.GetNamespace(), Name: e.Object.GetLabels()[discoveryv1.LabelServiceName]})
		}})
}

func (x *Controller) addServicesOf(pod *corev1.Pod) {
	for _, svc := range x.services.List(pod.Namespace, nil) {
		if len(svc.Spec.Selector) > 0 && labels.SelectorFromSet(svc.Spec.Selector).Matches(labels.Set(pod.Labels)) {
			x.loop.Add(types.NamespacedName{Namespace: svc.Namespace, Name: svc.Name})
		}
	}
}

func (x *Controller) sync(ctx context.Context, key types.NamespacedName) error {
	var have []*discoveryv1.EndpointSlice
	for _, s := range x.slices.List(key.Namespace, nil) {
		if s.Labels[discoveryv1.LabelManagedBy] == manager && s.Labels[discoveryv1.LabelServiceName] == key.Name {
			have = append(have, s)
		}
	}
	var want []*discoveryv1.EndpointSlice
	if svc, ok := x.services.Get(key.Namespace, key.Name); ok && len(svc.Spec.Selector) > 0 && svc.Spec.Type != corev1.ServiceTypeExternalName {
		want = Plan(svc, x.pods.List(key.Namespace, labels.SelectorFromSet(svc.Spec.Selector)))
	}
	// The plan is the same for the same state, so what is there is matched in order.
	sort.Slice(have, func(i, j int) bool { return have[i].Name < have[j].Name })
	for i, w := range want {
		if i >= len(have) {
			if _, err := client.EndpointSlices.Create(ctx, x.client, w); err != nil && !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) && !apierrors.IsNotFound(err) {
				return fmt.Errorf("create an endpoint slice of service %s: %w", key, err)
			}
			continue
		}
		h := have[i]
		if apiequality.Semantic.DeepEqual(h.Endpoints, w.Endpoints) && apiequality.Semantic.DeepEqual(h.Ports, w.Ports) && apiequality.Semantic.DeepEqual(h.Labels, w.Labels) {
			continue
		}
		out := h.DeepCopy()
		out.Endpoints, out.Ports, out.Labels = w.Endpoints, w.Ports, w.Labels
		if _, err := client.EndpointSlices.Update(ctx, x.client, out); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("update endpoint slice %s/%s: %w", h.Namespace, h.Name, err)
		}
	}
	for _, h := range have[min(len(want), len(have)):] {
		if err := client.EndpointSlices.Delete(ctx, x.client, h.Namespace, h.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("delete endpoint slice %s/%s: %w", h.Namespace, h.Name, err)
		}
	}
	return nil
}

// Plan works out the slices of a Service from the pods that its selector
// matches. Pods whose named ports differ go into slices of their own. It has no I/O.
func Plan(svc *corev1.Service, pods []*corev1.Pod) []*discoveryv1.EndpointSlice {
	type group struct {
		ports     []discoveryv1.EndpointPort
		endpoints []discoveryv1.Endpoint
	}
	groups := map[string]*group{}
	for _, pod := range pods {
		if pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded {
			continue
		}
		addr, err := netip.ParseAddr(pod.Status.PodIP)
		if err != nil || !addr.Is4() {
			continue
		}
		ports := portsOf(svc, pod)
		key := fmt.Sprint(textOf(ports))
		if groups[key] == nil {
			groups[key] = &group{ports: ports}
		}
		groups[key].endpoints = append(groups[key].endpoints, endpoint(svc, pod))
	}
	if len(groups) == 0 {
		groups[""] = &group{} // a Service without pods has one empty slice
	}
	keys := make([]string, 0, len(groups))
	for k := range groups {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	var out []*discoveryv1.EndpointSlice
	yes := true
	for _, k := range keys {
		g := groups[k]
		slices.SortFunc(g.endpoints, func(a, b discoveryv1.Endpoint) int { return strings.Compare(a.Addresses[0], b.Addresses[0]) })
		for first := true; first || len(g.endpoints) > 0; first = false {
			n := min(maxEndpoints, len(g.endpoints))
			own := map[string]string{}
			for l, v := range svc.Labels {
				own[l] = v
			}
			own[discoveryv1.LabelServiceName], own[discoveryv1.LabelManagedBy] = svc.Name, manager
			if svc.Spec.ClusterIP == corev1.ClusterIPNone {
				own[corev1.IsHeadlessService] = ""
			}
			out = append(out, &discoveryv1.EndpointSlice{
				ObjectMeta: metav1.ObjectMeta{Namespace: svc.Namespace, GenerateName: svc.Name + "-", Labels: own,
					OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Service", Name: svc.Name, UID: svc.UID, Controller: &yes, BlockOwnerDeletion: &yes}}},
				AddressType: discoveryv1.AddressTypeIPv4, Endpoints: g.endpoints[:n:n], Ports: g.ports,
			})
			g.endpoints = g.endpoints[n:]
		}
	}
	return out
}

func textOf(ports []discoveryv1.EndpointPort) (out []string) {
	for _, p := range ports {
		out = append(out, fmt.Sprintf("%s/%s/%d", *p.Name, *p.Protocol, *p.Port))
	}
	return out
}

func portsOf(svc *corev1.Service, pod *corev1.Pod) (out []discoveryv1.EndpointPort) {
	for i := range svc.Spec.Ports {
		p := &svc.Spec.Ports[i]
		number := p.TargetPort.IntVal
		if p.TargetPort.Type == intstr.String {
			number = named(pod, p.TargetPort.StrVal, p.Protocol)
		}
		if number == 0 {
			continue
		}
		name, protocol := p.Name, p.Protocol
		out = append(out, discoveryv1.EndpointPort{Name: &name, Protocol: &protocol, Port: &number, AppProtocol: p.AppProtocol})
	}
	return out
}

func named(pod *corev1.Pod, name string, protocol corev1.Protocol) int32 {
	for i := range pod.Spec.Containers {
		for _, p := range pod.Spec.Containers[i].Ports {
			if p.Name == name && p.Protocol == protocol {
				return p.ContainerPort
			}
		}
	}
	return 0
}

func endpoint(svc *corev1.Service, pod *corev1.Pod) discoveryv1.Endpoint {
	serving := slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
	terminating := pod.DeletionTimestamp != nil
	ready := svc.Spec.PublishNotReadyAddresses || serving && !terminating
	e := discoveryv1.Endpoint{
		Addresses:  []string{pod.Status.PodIP},
		Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating},
		TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID},
	}
	if pod.Spec.NodeName != "" {
		node := pod.Spec.NodeName
		e.NodeName = &node
	}
	if pod.Spec.Hostname != "" && pod.Spec.Subdomain == svc.Name {
		host := pod.Spec.Hostname
		e.Hostname = &host
	}
	return e
}
