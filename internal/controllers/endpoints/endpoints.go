// Package endpoints keeps, for each Service with a selector, an Endpoints object
// (core/v1), the older form of EndpointSlices that some programs still read. It is
// worked out from the slices of package endpointslice.
package endpoints

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/controllers/loop"
)

const (
	// source is who manages the slices that are read.
	source       = "endpointslice-controller.k8s.io"
	managedBy    = "endpoints.kubernetes.io/managed-by"
	managerName  = "endpoint-controller"
	overCapacity = "endpoints.kubernetes.io/over-capacity"
	truncated    = "truncated"
	// most bounds the addresses of one object.
	most = 1000
)

// Controller writes Endpoints; it reads Services and EndpointSlices.
type Controller struct {
	client    client.Interface
	loop      *loop.Loop[types.NamespacedName]
	services  client.Typed[*corev1.Service]
	slices    client.Typed[*discoveryv1.EndpointSlice]
	endpoints client.Typed[*corev1.Endpoints] //nolint:staticcheck // written for those that read it
}

// New returns the controller.
func New(c client.Interface, log *slog.Logger) *Controller {
	x := &Controller{client: c, services: client.Services.Informer(c, client.Scope{}), slices: client.EndpointSlices.Informer(c, client.Scope{}),
		endpoints: client.Endpoints.Informer(c, client.Scope{})}
	x.loop = loop.New("endpoints", log, x.sync)
	return x
}

func (x *Controller) Name() string { return "endpoints" }

// Run works until ctx ends.
func (x *Controller) Run(ctx context.Context) error {
	byName := func(e client.Event) {
		if e.Object != nil {
			x.loop.Add(types.NamespacedName{Namespace: e.Object.GetNamespace(), Name: e.Object.GetName()})
		}
	}
	return x.loop.Run(ctx, 2,
		loop.Source{Informer: x.services.Informer, Handle: byName},
		loop.Source{Informer: x.endpoints.Informer, Handle: byName},
		loop.Source{Informer: x.slices.Informer, Handle: func(e client.Event) {
			if e.Object != nil && e.Object.GetLabels()[discoveryv1.LabelManagedBy] == source {
				x.loop.Add(types.NamespacedName{Namespace: e.Object.GetNamespace(), Name: e.Object.GetLabels()[discoveryv1.LabelServiceName]})
			}
		}})
}

func (x *Controller) sync(ctx context.Context, key types.NamespacedName) error {
	svc, ok := x.services.Get(key.Namespace, key.Name)
	if !ok {
		return x.remove(ctx, key)
	}
	if len(svc.Spec.Selector) == 0 {
		return nil // its owner writes the endpoints
	}
	var of []*discoveryv1.EndpointSlice
	for _, s := range x.slices.List(key.Namespace, nil) {
		if s.Labels[discoveryv1.LabelServiceName] == key.Name && s.Labels[discoveryv1.LabelManagedBy] == source && s.AddressType != discoveryv1.AddressTypeFQDN {
			of = append(of, s)
		}
	}
	want := Plan(svc, of)
	have, ok := x.endpoints.Get(key.Namespace, key.Name)
	if !ok {
		if _, err := client.Endpoints.Create(ctx, x.client, want); err != nil && !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) && !apierrors.IsNotFound(err) {
			return fmt.Errorf("create endpoints %s: %w", key, err)
		}
		return nil
	}
	out := have.DeepCopy()
	if apiequality.Semantic.DeepEqual(have.Subsets, want.Subsets) && maps.Equal(have.Labels, want.Labels) && have.Annotations[overCapacity] == want.Annotations[overCapacity] {
		return nil
	}
	out.Subsets, out.Labels = want.Subsets, want.Labels
	if out.Annotations == nil {
		out.Annotations = map[string]string{}
	}
	delete(out.Annotations, overCapacity)
	maps.Copy(out.Annotations, want.Annotations)
	if _, err := client.Endpoints.Update(ctx, x.client, out); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("update endpoints %s: %w", key, err)
	}
	return nil
}

// remove takes away what this controller wrote for a Service that is gone.
func (x *Controller) remove(ctx context.Context, key types.NamespacedName) error {
	have, ok := x.endpoints.Get(key.Namespace, key.Name)
	if !ok || have.Labels[managedBy] != managerName {
		return nil
	}
	err := client.Endpoints.Delete(ctx, x.client, key.Namespace, key.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &have.UID}})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete endpoints %s: %w", key, err)
	}
	return nil
}

// Plan works out the Endpoints of a Service from its slices. It has no I/O.
func Plan(svc *corev1.Service, of []*discoveryv1.EndpointSlice) *corev1.Endpoints { //nolint:staticcheck // as above
	out := &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Namespace: svc.Namespace, Name: svc.Name, Labels: map[string]string{}, //nolint:staticcheck // as above
		Annotations: map[string]string{corev1.EndpointsLastChangeTriggerTime: time.Now().UTC().Format(time.RFC3339Nano)}}}
	maps.Copy(out.Labels, svc.Labels)
	out.Labels[managedBy] = managerName
	delete(out.Labels, corev1.IsHeadlessService)
	if svc.Spec.ClusterIP == corev1.ClusterIPNone {
		out.Labels[corev1.IsHeadlessService] = ""
	}
	slices.SortFunc(of, func(a, b *discoveryv1.EndpointSlice) int { return strings.Compare(a.Name, b.Name) })
	subsets := map[string]*corev1.EndpointSubset{} //nolint:staticcheck // as above
	var order []string
	total, left := 0, most
	// Ready addresses have the room before those that are not.
	for _, ready := range []bool{true, false} {
		for _, s := range of {
			key := portKey(s.Ports)
			for i := range s.Endpoints {
				e := &s.Endpoints[i]
				is := e.Conditions.Ready == nil || *e.Conditions.Ready
				if is != ready || !ready && e.Conditions.Terminating != nil && *e.Conditions.Terminating {
					continue
				}
				if total++; left == 0 {
					continue
				}
				left--
				if subsets[key] == nil {
					subsets[key] = &corev1.EndpointSubset{Ports: ports(s.Ports)} //nolint:staticcheck // as above
					order = append(order, key)
				}
				a := corev1.EndpointAddress{IP: e.Addresses[0], NodeName: e.NodeName, TargetRef: e.TargetRef} //nolint:staticcheck // as above
				if e.Hostname != nil {
					a.Hostname = *e.Hostname
				}
				if ready {
					subsets[key].Addresses = append(subsets[key].Addresses, a)
				} else {
					subsets[key].NotReadyAddresses = append(subsets[key].NotReadyAddresses, a)
				}
			}
		}
	}
	if total > most {
		out.Annotations[overCapacity] = truncated
	}
	slices.Sort(order)
	for _, key := range order {
		s := subsets[key]
		byIP := func(a, b corev1.EndpointAddress) int { return strings.Compare(a.IP, b.IP) } //nolint:staticcheck // as above
		slices.SortFunc(s.Addresses, byIP)
		slices.SortFunc(s.NotReadyAddresses, byIP)
		out.Subsets = append(out.Subsets, *s)
	}
	return out
}

func portKey(ports []discoveryv1.EndpointPort) string {
	var b strings.Builder
	for _, p := range ports {
		if p.Name != nil && p.Port != nil && p.Protocol != nil {
			fmt.Fprintf(&b, "%s/%s/%d,", *p.Name, *p.Protocol, *p.Port)
		}
	}
	return b.String()
}

func ports(list []discoveryv1.EndpointPort) (out []corev1.EndpointPort) { //nolint:staticcheck // as above
	for _, p := range list {
		o := corev1.EndpointPort{AppProtocol: p.AppProtocol, Protocol: corev1.ProtocolTCP} //nolint:staticcheck // as above
		if p.Name != nil {
			o.Name = *p.Name
		}
		if p.Protocol != nil {
			o.Protocol = *p.Protocol
		}
		if p.Port != nil {
			o.Port = *p.Port
		}
		out = append(out, o)
	}
	return out
}
