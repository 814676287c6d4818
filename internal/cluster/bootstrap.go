package cluster

import (
	"context"
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/proa-dev/proa/internal/apiserver/rbac"
	"github.com/proa-dev/proa/internal/client"
)

// bootstrap makes the objects that every cluster has.
func (c *cluster) bootstrap(ctx context.Context) error {
	for _, name := range []string{"default", "kube-system", "kube-public", "kube-node-lease"} {
		if err := ensure(ctx, c.local, client.Namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}); err != nil {
			return err
		}
	}
	for _, r := range rbac.Roles() {
		if err := ensure(ctx, c.local, client.ClusterRoles, r); err != nil {
			return err
		}
	}
	for _, b := range rbac.Bindings() {
		if err := ensure(ctx, c.local, client.ClusterRoleBindings, b); err != nil {
			return err
		}
	}
	for name, value := range map[string]int32{"system-cluster-critical": 2000000000, "system-node-critical": 2000001000} {
		if err := ensure(ctx, c.local, client.PriorityClasses, &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Value: value,
			Description: "Used for system critical pods that must run in the cluster."}); err != nil {
			return err
		}
	}
	if err := c.serviceRange(ctx); err != nil {
		return err
	}
	if err := c.apiService(ctx); err != nil {
		return err
	}
	return c.dnsService(ctx)
}

// ensure creates an object that is not there yet.
func ensure[T client.Object](ctx context.Context, l client.Interface, kind client.Kind[T], obj T) error {
	if _, ok := l.Informer(kind.GVR, client.Scope{}).Get(obj.GetNamespace(), obj.GetName()); ok {
		return nil
	}
	if _, err := kind.Create(ctx, l, obj); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create %s %s: %w", kind.GVK.Kind, obj.GetName(), err)
	}
	return nil
}

// serviceRange shows the range of Service addresses (KEP-1880).
func (c *cluster) serviceRange(ctx context.Context) error {
	const name = "kubernetes"
	if err := ensure(ctx, c.local, client.ServiceCIDRs, &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{serviceRange.String()}}}); err != nil {
		return err
	}
	r, err := client.ServiceCIDRs.Get(ctx, c.local, "", name)
	if err != nil {
		return fmt.Errorf("get ServiceCIDR %s: %w", name, err)
	}
	if len(r.Status.Conditions) > 0 {
		return nil
	}
	r = r.DeepCopy()
	r.Status.Conditions = []metav1.Condition{{Type: networkingv1.ServiceCIDRConditionReady, Status: metav1.ConditionTrue, Reason: "ServiceCIDRReady", LastTransitionTime: metav1.Now(),
		Message: "Kubernetes default Service CIDR is ready"}}
	if _, err := client.ServiceCIDRs.UpdateStatus(ctx, c.local, r); err != nil {
		return fmt.Errorf("write the status of ServiceCIDR %s: %w", name, err)
	}
	return nil
}

// apiService is default/kubernetes and its endpoint, which moves with the address that is listened on.
func (c *cluster) apiService(ctx context.Context) error {
	const name = "kubernetes"
	if err := ensure(ctx, c.local, client.Services, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: name, Labels: map[string]string{"component": "apiserver", "provider": "kubernetes"}},
		Spec:       corev1.ServiceSpec{ClusterIP: apiServiceIP, ClusterIPs: []string{apiServiceIP}, Ports: []corev1.ServicePort{{Name: "https", Port: 443, Protocol: corev1.ProtocolTCP}}}}); err != nil {
		return err
	}
	number := int32(6443)
	if _, err := fmt.Sscan(port(c.Listen), &number); err != nil {
		return fmt.Errorf("the API server's port: %w", err)
	}
	return c.behind(ctx, metav1.NamespaceDefault, name, c.inside, nil, discoveryv1.EndpointPort{Name: ptr.To("https"), Port: &number, Protocol: ptr.To(corev1.ProtocolTCP)})
}

// dnsService is kube-system/kube-dns, the Service that pods ask names of. Behind it
// is this process.
func (c *cluster) dnsService(ctx context.Context) error {
	const name = "kube-dns"
	if err := ensure(ctx, c.local, client.Services, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: name,
			Labels: map[string]string{"k8s-app": name, "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS"}},
		Spec: corev1.ServiceSpec{ClusterIP: dnsServiceIP, ClusterIPs: []string{dnsServiceIP}, Ports: []corev1.ServicePort{
			{Name: "dns", Port: dnsPort, Protocol: corev1.ProtocolUDP}, {Name: "dns-tcp", Port: dnsPort, Protocol: corev1.ProtocolTCP}}}}); err != nil {
		return err
	}
	return c.behind(ctx, metav1.NamespaceSystem, name, gateway().String(), map[string]string{"k8s-app": name},
		discoveryv1.EndpointPort{Name: ptr.To("dns"), Port: ptr.To(int32(dnsPort)), Protocol: ptr.To(corev1.ProtocolUDP)},
		discoveryv1.EndpointPort{Name: ptr.To("dns-tcp"), Port: ptr.To(int32(dnsPort)), Protocol: ptr.To(corev1.ProtocolTCP)})
}

// behind puts one address of this process behind a Service without a selector, in
// both forms. Nothing is mirrored from the older form.
func (c *cluster) behind(ctx context.Context, namespace, name, address string, labels map[string]string, ports ...discoveryv1.EndpointPort) error {
	slice := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: ports,
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{address}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)}}}}
	maps.Copy(slice.Labels, labels)
	//nolint:staticcheck // the older form is still read
	older := &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{discoveryv1.LabelSkipMirror: "true"}},
		Subsets: []corev1.EndpointSubset{{Addresses: []corev1.EndpointAddress{{IP: address}}}}}
	maps.Copy(older.Labels, labels)
	for _, p := range ports {
		//nolint:staticcheck // as above
		older.Subsets[0].Ports = append(older.Subsets[0].Ports, corev1.EndpointPort{Name: *p.Name, Port: *p.Port, Protocol: *p.Protocol})
	}
	if have, ok := client.EndpointSlices.Informer(c.local, client.Scope{}).Get(namespace, name); !ok {
		if err := ensure(ctx, c.local, client.EndpointSlices, slice); err != nil {
			return err
		}
	} else if !apiequality.Semantic.DeepEqual(have.Endpoints, slice.Endpoints) || !apiequality.Semantic.DeepEqual(have.Ports, slice.Ports) {
		slice.ResourceVersion = have.ResourceVersion
		if _, err := client.EndpointSlices.Update(ctx, c.local, slice); err != nil {
			return fmt.Errorf("update EndpointSlice %s/%s: %w", namespace, name, err)
		}
	}
	if have, ok := client.Endpoints.Informer(c.local, client.Scope{}).Get(namespace, name); !ok {
		return ensure(ctx, c.local, client.Endpoints, older)
	} else if !apiequality.Semantic.DeepEqual(have.Subsets, older.Subsets) {
		older.ResourceVersion = have.ResourceVersion
		if _, err := client.Endpoints.Update(ctx, c.local, older); err != nil {
			return fmt.Errorf("update Endpoints %s/%s: %w", namespace, name, err)
		}
	}
	return nil
}
