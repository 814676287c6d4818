package quota

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/proa-dev/proa/internal/api"
)

// services count their node ports and load balancers apart.
type services struct{}

func (services) Charges(w Write) bool { return w.Subresource == "" }

func (services) Counts(names []corev1.ResourceName) (out []corev1.ResourceName) {
	for _, name := range names {
		switch name {
		case "count/services", corev1.ResourceServices, corev1.ResourceServicesNodePorts, corev1.ResourceServicesLoadBalancers:
			out = append(out, name)
		}
	}
	return out
}

func (services) InScope(corev1.ScopedResourceSelectorRequirement, api.Object) (bool, error) {
	return false, nil
}
func (services) Require([]corev1.ResourceName, api.Object) error { return nil }

func (services) Usage(obj api.Object) corev1.ResourceList {
	svc, ok := obj.(*corev1.Service)
	if !ok {
		return nil
	}
	balancers, ports := int64(0), int64(0)
	switch svc.Spec.Type {
	case corev1.ServiceTypeNodePort:
		ports = int64(len(svc.Spec.Ports))
	case corev1.ServiceTypeLoadBalancer:
		balancers = 1
		all := svc.Spec.AllocateLoadBalancerNodePorts == nil || *svc.Spec.AllocateLoadBalancerNodePorts
		for _, p := range svc.Spec.Ports {
			if all || p.NodePort != 0 { // what will be allocated counts already
				ports++
			}
		}
	}
	return corev1.ResourceList{
		"count/services":                     one(),
		corev1.ResourceServices:              one(),
		corev1.ResourceServicesNodePorts:     *resource.NewQuantity(ports, resource.DecimalSI),
		corev1.ResourceServicesLoadBalancers: *resource.NewQuantity(balancers, resource.DecimalSI),
	}
}

// volumeClaims count the storage that they ask for, in all and by storage class.
type volumeClaims struct{}

const byStorageClass = ".storageclass.storage.k8s.io/"

func (volumeClaims) Charges(w Write) bool {
	switch w.Subresource {
	case "":
		return true
	case "status":
		now, ok1 := w.Object.(*corev1.PersistentVolumeClaim)
		was, ok2 := w.Old.(*corev1.PersistentVolumeClaim)
		return w.Update && ok1 && ok2 && Refilled(now, was)
	}
	return false
}

// Refilled reports whether a change of a claim's status changes what it is charged for.
func Refilled(now, was *corev1.PersistentVolumeClaim) bool {
	if now.Status.AllocatedResources.Storage().Cmp(*was.Status.AllocatedResources.Storage()) != 0 {
		return true
	}
	a, b := attributeClasses(now), attributeClasses(was)
	if len(a) != len(b) {
		return true
	}
	for i := range a {
		if a[i] != b[i] {
			return true
		}
	}
	return false
}

// attributeClasses are the VolumeAttributesClasses that a claim has or is on its way to.
func attributeClasses(c *corev1.PersistentVolumeClaim) (out []string) {
	add := func(name string) {
		for _, have := range out {
			if have == name {
				return
			}
		}
		if name != "" {
			out = append(out, name)
		}
	}
	if n := c.Spec.VolumeAttributesClassName; n != nil {
		add(*n)
	}
	if n := c.Status.CurrentVolumeAttributesClassName; n != nil {
		add(*n)
	}
	if m := c.Status.ModifyVolumeStatus; m != nil {
		add(m.TargetVolumeAttributesClassName)
	}
	return out
}

func (volumeClaims) Counts(names []corev1.ResourceName) (out []corev1.ResourceName) {
	for _, name := range names {
		switch {
		case name == "count/persistentvolumeclaims", name == corev1.ResourcePersistentVolumeClaims, name == corev1.ResourceRequestsStorage,
			strings.HasSuffix(string(name), byStorageClass+string(corev1.ResourcePersistentVolumeClaims)),
			strings.HasSuffix(string(name), byStorageClass+string(corev1.ResourceRequestsStorage)):
			out = append(out, name)
		}
	}
	return out
}

func (volumeClaims) InScope(s corev1.ScopedResourceSelectorRequirement, obj api.Object) (bool, error) {
	claim, ok := obj.(*corev1.PersistentVolumeClaim)
	if !ok || s.ScopeName != corev1.ResourceQuotaScopeVolumeAttributesClass {
		return false, nil
	}
	return hasValue(s, attributeClasses(claim)...)
}
func (volumeClaims) Require([]corev1.ResourceName, api.Object) error { return nil }

func (volumeClaims) Usage(obj api.Object) corev1.ResourceList {
	claim, ok := obj.(*corev1.PersistentVolumeClaim)
	if !ok {
		return nil
	}
	class := claim.Annotations[corev1.BetaStorageClassAnnotation]
	if n := claim.Spec.StorageClassName; class == "" && n != nil {
		class = *n
	}
	out := corev1.ResourceList{}
	put := func(name corev1.ResourceName, q resource.Quantity) {
		out[name] = q
		if class != "" {
			out[corev1.ResourceName(class+byStorageClass)+name] = q
		}
	}
	put(corev1.ResourcePersistentVolumeClaims, one())
	out["count/persistentvolumeclaims"] = one()
	if size, ok := claim.Spec.Resources.Requests[corev1.ResourceStorage]; ok {
		// A volume that could not grow still has what was allocated (KEP-1790).
		if have, ok := claim.Status.AllocatedResources[corev1.ResourceStorage]; ok && have.Cmp(size) > 0 {
			size = have
		}
		size = size.DeepCopy()
		size.RoundUp(0) // whole bytes, as a quota has them
		put(corev1.ResourceRequestsStorage, size)
	}
	return out
}

// deviceClaims count the devices that they may be given, by device class.
type deviceClaims struct{ e Evaluators }

var (
	deviceClasses  = resourcev1.SchemeGroupVersion.WithResource("deviceclasses")
	resourceClaims = resourcev1.SchemeGroupVersion.WithResource("resourceclaims")
	podsGVR        = corev1.SchemeGroupVersion.WithResource("pods")
)

func (deviceClaims) Charges(w Write) bool { return w.Subresource == "" }

func (d deviceClaims) Counts(names []corev1.ResourceName) (out []corev1.ResourceName) {
	for _, name := range names {
		switch {
		case name == "count/resourceclaims.resource.k8s.io", strings.HasSuffix(string(name), corev1.ResourceClaimsPerClass):
			out = append(out, name)
		case extendedRequest(name) && d.offered(string(name[len(requestsPrefix):])):
			out = append(out, name)
		}
	}
	return out
}

// offered reports whether a device class gives out devices as an extended resource.
func (d deviceClaims) offered(name string) bool {
	implicit, ok := strings.CutPrefix(name, deviceClassName)
	for _, obj := range d.e.Reader.List(deviceClasses, "") {
		c, isClass := obj.(*resourcev1.DeviceClass)
		if isClass && (ok && c.Name == implicit && extendedName(c) != "" || extendedName(c) == name) {
			return true
		}
	}
	return false
}

func extendedName(c *resourcev1.DeviceClass) string {
	if n := c.Spec.ExtendedResourceName; n != nil {
		return *n
	}
	return ""
}

func (deviceClaims) InScope(corev1.ScopedResourceSelectorRequirement, api.Object) (bool, error) {
	return false, nil
}
func (deviceClaims) Require([]corev1.ResourceName, api.Object) error { return nil }

func (d deviceClaims) Usage(obj api.Object) corev1.ResourceList {
	claim, ok := obj.(*resourcev1.ResourceClaim)
	if !ok {
		return nil
	}
	devices := map[string]int64{}
	for i := range claim.Spec.Devices.Requests {
		r := &claim.Spec.Devices.Requests[i]
		if r.Exactly != nil {
			devices[r.Exactly.DeviceClassName] += most(r.Exactly.AllocationMode, r.Exactly.Count)
			continue
		}
		worst := map[string]int64{}
		for j := range r.FirstAvailable {
			s := &r.FirstAvailable[j]
			worst[s.DeviceClassName] = max(worst[s.DeviceClassName], most(s.AllocationMode, s.Count))
		}
		for class, n := range worst {
			devices[class] += n
		}
	}
	out := corev1.ResourceList{"count/resourceclaims.resource.k8s.io": one()}
	var paid corev1.ResourceList
	if len(devices) > 0 {
		paid = d.paidByPod(claim)
	}
	for class, n := range devices {
		out[corev1.ResourceName(class+corev1.ResourceClaimsPerClass)] = *resource.NewQuantity(n, resource.DecimalSI)
		names := []corev1.ResourceName{corev1.ResourceName(requestsPrefix + deviceClassName + class)}
		if c, ok := d.e.Reader.Get(deviceClasses, "", class); ok {
			if name := extendedName(c.(*resourcev1.DeviceClass)); name != "" {
				names = append(names, corev1.ResourceName(requestsPrefix+name))
			}
		}
		for _, name := range names {
			q := *resource.NewQuantity(n, resource.DecimalSI)
			if have, ok := paid[name]; ok {
				q.Sub(have)
			}
			if q.Sign() > 0 {
				addTo(out, corev1.ResourceList{name: q})
			}
		}
	}
	return out
}

// most is how many devices a request may get.
func most(mode resourcev1.DeviceAllocationMode, count int64) int64 {
	switch mode {
	case resourcev1.DeviceAllocationModeExactCount:
		return count
	case resourcev1.DeviceAllocationModeAll:
		return resourcev1.AllocationResultsMaxSize
	}
	return 0
}

// paidByPod is what the pod of a claim for its extended resources is charged
// for: the claim is not charged for that again (KEP-5004).
func (d deviceClaims) paidByPod(claim *resourcev1.ResourceClaim) corev1.ResourceList {
	if claim.Annotations[resourcev1.ExtendedResourceClaimAnnotation] != "true" {
		return nil
	}
	owner := metav1.GetControllerOfNoCopy(claim)
	if owner == nil || owner.Kind != "Pod" || owner.APIVersion != "v1" {
		return nil
	}
	obj, ok := d.e.Reader.Get(podsGVR, claim.Namespace, owner.Name)
	if !ok || obj.GetUID() != owner.UID {
		return nil
	}
	pod := obj.(*corev1.Pod)
	if s := pod.Status.ExtendedResourceClaimStatus; s != nil {
		if s.ResourceClaimName != claim.Name {
			return nil
		}
	} else {
		for _, other := range d.e.Reader.List(resourceClaims, claim.Namespace) {
			o := metav1.GetControllerOfNoCopy(other)
			if o == nil || o.UID != pod.UID || other.GetAnnotations()[resourcev1.ExtendedResourceClaimAnnotation] != "true" {
				continue
			}
			made, mine := other.GetCreationTimestamp(), claim.CreationTimestamp
			if made.Before(&mine) || made.Equal(&mine) && other.GetName() < claim.Name {
				return nil // the pod pays for its first claim
			}
		}
	}
	return pods{d.e.Now}.Usage(pod)
}
