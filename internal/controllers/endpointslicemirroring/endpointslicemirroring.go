// Package endpointslicemirroring writes EndpointSlices for the Endpoints objects
// that users keep for Services without a selector, so that kube-proxy and DNS need
// to read one form only.
package endpointslicemirroring

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/controllers/loop"
)

const (
	manager = "endpointslicemirroring-controller.k8s.io"
	// most bounds the addresses of a subset that are mirrored; perSlice those in a slice.
	most     = 1000
	perSlice = 100
)

// Controller writes mirrored EndpointSlices; it reads Services and Endpoints.
type Controller struct {
	client    client.Interface
	loop      *loop.Loop[types.NamespacedName]
	services  client.Typed[*corev1.Service]
	endpoints client.Typed[*corev1.Endpoints] //nolint:staticcheck // what users write
	slices    client.Typed[*discoveryv1.EndpointSlice]
}

// New returns the controller.
func New(c client.Interface, log *slog.Logger) *Controller {
	x := &Controller{client: c, services: client.Services.Informer(c, client.Scope{}), endpoints: client.Endpoints.Informer(c, client.Scope{}),
		slices: client.EndpointSlices.Informer(c, client.Scope{})}
	x.loop = loop.New("endpointslicemirroring", log, x.sync)
	return x
}

func (x *Controller) Name() string { return "endpointslicemirroring" }

// Run works until ctx ends.
func (x *Controller) Run(ctx context.Context) error {
	byName := func(e client.Event) {
		if e.Object != nil {
			x.loop.Add(types.NamespacedName{Namespace: e.Object.GetNamespace(), Name: e.Object.GetName()})
		}
	}
	return x.loop.Run(ctx, 1,
		loop.Source{Informer: x.services.Informer, Handle: byName},
		loop.Source{Informer: x.endpoints.Informer, Handle: byName},
		loop.Source{Informer: x.slices.Informer, Handle: func(e client.Event) {
			if e.Object != nil && e.Type != client.Added && e.Object.GetLabels()[discoveryv1.LabelManagedBy] == manager {
				x.loop.Add(types.NamespacedName{Namespace: e.Object.GetNamespace(), Name: e.Object.GetLabels()[discoveryv1.LabelServiceName]})
			}
		}})
}

// mirrored says whether Endpoints are a user's own, for a Service without selector.
func (x *Controller) mirrored(key types.NamespacedName) (*corev1.Endpoints, bool) { //nolint:staticcheck // as above
	svc, ok := x.services.Get(key.Namespace, key.Name)
	if !ok || len(svc.Spec.Selector) > 0 {
		return nil, false
	}
	e, ok := x.endpoints.Get(key.Namespace, key.Name)
	if !ok || e.Labels[discoveryv1.LabelSkipMirror] == "true" || e.Annotations["control-plane.alpha.kubernetes.io/leader"] != "" {
		return nil, false
	}
	return e, true
}

func (x *Controller) sync(ctx context.Context, key types.NamespacedName) error {
	var have, want []*discoveryv1.EndpointSlice
	for _, s := range x.slices.List(key.Namespace, nil) {
		if s.Labels[discoveryv1.LabelManagedBy] == manager && s.Labels[discoveryv1.LabelServiceName] == key.Name {
			have = append(have, s)
		}
	}
	if e, ok := x.mirrored(key); ok {
		want = Plan(e)
	}
	for i, w := range want {
		if i >= len(have) {
			if _, err := client.EndpointSlices.Create(ctx, x.client, w); err != nil && !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) && !apierrors.IsNotFound(err) {
				return fmt.Errorf("mirror endpoints %s: %w", key, err)
			}
			continue
		}
		h := have[i]
		if h.AddressType == w.AddressType && apiequality.Semantic.DeepEqual(h.Endpoints, w.Endpoints) && apiequality.Semantic.DeepEqual(h.Ports, w.Ports) && maps.Equal(h.Labels, w.Labels) && maps.Equal(h.Annotations, w.Annotations) {
			continue
		}
		if h.AddressType != w.AddressType { // it cannot be changed: the deletion brings the new one
			if err := x.remove(ctx, h); err != nil {
				return err
			}
			continue
		}
		out := h.DeepCopy()
		out.Endpoints, out.Ports, out.Labels, out.Annotations = w.Endpoints, w.Ports, w.Labels, w.Annotations
		if _, err := client.EndpointSlices.Update(ctx, x.client, out); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("mirror endpoints %s: %w", key, err)
		}
	}
	for _, h := range have[min(len(want), len(have)):] {
		if err := x.remove(ctx, h); err != nil {
			return err
		}
	}
	return nil
}

func (x *Controller) remove(ctx context.Context, s *discoveryv1.EndpointSlice) error {
	if err := client.EndpointSlices.Delete(ctx, x.client, s.Namespace, s.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete endpoint slice %s/%s: %w", s.Namespace, s.Name, err)
	}
	return nil
}

// Plan works out the slices that mirror Endpoints: for each subset and address
// family, as many as its addresses need. It has no I/O.
func Plan(e *corev1.Endpoints) (out []*discoveryv1.EndpointSlice) { //nolint:staticcheck // as above
	own := map[string]string{}
	maps.Copy(own, e.Labels)
	own[discoveryv1.LabelServiceName], own[discoveryv1.LabelManagedBy] = e.Name, manager
	notes := map[string]string{}
	maps.Copy(notes, e.Annotations)
	delete(notes, corev1.LastAppliedConfigAnnotation)
	delete(notes, corev1.EndpointsLastChangeTriggerTime)
	for i := range e.Subsets {
		s := &e.Subsets[i]
		var ports []discoveryv1.EndpointPort
		for _, p := range s.Ports {
			ports = append(ports, discoveryv1.EndpointPort{Name: ptr.To(p.Name), Port: ptr.To(p.Port), Protocol: ptr.To(p.Protocol), AppProtocol: p.AppProtocol})
		}
		families := map[discoveryv1.AddressType][]discoveryv1.Endpoint{}
		left := most
		add := func(list []corev1.EndpointAddress, ready bool) { //nolint:staticcheck // as above
			for _, a := range list {
				ip, err := netip.ParseAddr(a.IP)
				if err != nil || left == 0 {
					continue
				}
				left--
				family := discoveryv1.AddressTypeIPv4
				if ip.Is6() {
					family = discoveryv1.AddressTypeIPv6
				}
				p := discoveryv1.Endpoint{Addresses: []string{a.IP}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(ready)}, NodeName: a.NodeName, TargetRef: a.TargetRef}
				if a.Hostname != "" {
					p.Hostname = ptr.To(a.Hostname)
				}
				families[family] = append(families[family], p)
			}
		}
		add(s.Addresses, true)
		add(s.NotReadyAddresses, false)
		for _, family := range []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6} {
			list := families[family]
			slices.SortFunc(list, func(a, b discoveryv1.Endpoint) int { return strings.Compare(a.Addresses[0], b.Addresses[0]) })
			for part := range slices.Chunk(list, perSlice) {
				out = append(out, &discoveryv1.EndpointSlice{
					ObjectMeta: metav1.ObjectMeta{Namespace: e.Namespace, GenerateName: e.Name + "-", Labels: own, Annotations: notes,
						OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Endpoints", Name: e.Name, UID: e.UID, Controller: ptr.To(true), BlockOwnerDeletion: ptr.To(true)}}},
					AddressType: family, Endpoints: slices.Clone(part), Ports: ports})
			}
		}
	}
	return out
}
