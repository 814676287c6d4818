package callout

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/proa-dev/proa/internal/api"
)

// Reader looks objects up in the newest known state. They are shared: read only.
type Reader interface {
	Get(gvr schema.GroupVersionResource, namespace, name string) (api.Object, bool)
	List(gvr schema.GroupVersionResource, namespace string) []api.Object
}

var (
	servicesGVR = corev1.SchemeGroupVersion.WithResource("services")
	slicesGVR   = discoveryv1.SchemeGroupVersion.WithResource("endpointslices")
)

// Services resolves Services by the cluster's state: to one of their ready
// endpoints, by chance, or to the cluster IP when nothing is known of endpoints.
type Services struct{ Reader Reader }

// Resolve returns host:port.
func (s Services) Resolve(namespace, name string, port int32) (string, error) {
	obj, ok := s.Reader.Get(servicesGVR, namespace, name)
	if !ok {
		return "", apierrors.NewNotFound(schema.GroupResource{Resource: "service"}, name)
	}
	svc := obj.(*corev1.Service)
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		return net.JoinHostPort(svc.Spec.ExternalName, strconv.Itoa(int(port))), nil
	}
	var found *corev1.ServicePort
	for i := range svc.Spec.Ports {
		if p := &svc.Spec.Ports[i]; p.Port == port && isTCP(string(p.Protocol)) {
			found = p
			break
		}
	}
	if found == nil {
		return "", apierrors.NewServiceUnavailable(fmt.Sprintf("no service port %d found for service %q", port, name))
	}
	var addresses []string
	slices := 0
	for _, obj := range s.Reader.List(slicesGVR, namespace) {
		slice, ok := obj.(*discoveryv1.EndpointSlice)
		if !ok || slice.Labels[discoveryv1.LabelServiceName] != name || slice.AddressType == discoveryv1.AddressTypeFQDN {
			continue
		}
		slices++
		for _, p := range slice.Ports {
			if p.Port == nil || p.Name != nil && *p.Name != found.Name || p.Name == nil && found.Name != "" {
				continue
			}
			for _, e := range slice.Endpoints {
				if ready(e.Conditions.Ready) && len(e.Addresses) > 0 {
					addresses = append(addresses, net.JoinHostPort(e.Addresses[0], strconv.Itoa(int(*p.Port))))
				}
			}
		}
	}
	switch {
	case len(addresses) > 0:
		return addresses[rand.IntN(len(addresses))], nil
	case slices > 0 || svc.Spec.ClusterIP == "" || svc.Spec.ClusterIP == corev1.ClusterIPNone:
		return "", apierrors.NewServiceUnavailable(fmt.Sprintf("no endpoints available for service %q", name))
	}
	return net.JoinHostPort(svc.Spec.ClusterIP, strconv.Itoa(int(port))), nil
}
