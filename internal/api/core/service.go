package core

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/intstr"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

func service() *api.Resource {
	k := api.Kind[*corev1.Service]{Resource: rules.Namespaced[corev1.Service, corev1.ServiceList](gv, "services", "svc")}
	k.Resource.Categories = []string{"all"}
	k.Resource.CreateOnUpdate, k.Resource.UnconditionalUpdate = true, true
	k.Resource.Subresources = []string{"proxy"}
	k.ValidateName = validation.NameIsDNS1035Label
	k.Default = defaultService
	k.Validate = validateService
	k.ValidateUpdate = func(o, old *corev1.Service) field.ErrorList {
		errs := validateService(o)
		// An address, once given, stays while the Service is of a kind that has one.
		if old.Spec.Type != corev1.ServiceTypeExternalName && o.Spec.Type != corev1.ServiceTypeExternalName && old.Spec.ClusterIP != "" && o.Spec.ClusterIP != old.Spec.ClusterIP {
			errs = append(errs, field.Invalid(field.NewPath("spec", "clusterIPs").Index(0), o.Spec.ClusterIPs, "may not change once set"))
		}
		return errs
	}
	k.CopyStatus = func(dst, src *corev1.Service) { src.Status.DeepCopyInto(&dst.Status) }
	k.Fields = func(o *corev1.Service) fields.Set {
		return fields.Set{"spec.clusterIP": o.Spec.ClusterIP, "spec.type": string(o.Spec.Type)}
	}
	k.Resource.FieldLabels = []string{"spec.clusterIP", "spec.type"}
	k.Resource.Columns = []metav1.TableColumnDefinition{nameColumn, column("Type", "string", "Type determines how the Service is exposed."),
		column("Cluster-IP", "string", "clusterIP is the IP address of the service."), column("External-IP", "string", "externalIPs is a list of IP addresses for which nodes in the cluster will also accept traffic for this service."),
		column("Port(s)", "string", "The list of ports that are exposed by this service."), ageColumn, column("Selector", "string", "Route service traffic to pods with label keys and values matching this selector.", true)}
	k.Row = func(o *corev1.Service) []any {
		ip := "<none>"
		if len(o.Spec.ClusterIPs) > 0 {
			ip = o.Spec.ClusterIPs[0]
		} else if o.Spec.ClusterIP != "" {
			ip = o.Spec.ClusterIP
		}
		var ports []string
		for _, p := range o.Spec.Ports {
			text := fmt.Sprintf("%d/%s", p.Port, p.Protocol)
			if p.NodePort > 0 {
				text = fmt.Sprintf("%d:%d/%s", p.Port, p.NodePort, p.Protocol)
			}
			ports = append(ports, text)
		}
		return []any{o.Name, string(o.Spec.Type), ip, externalIP(o), orNone(strings.Join(ports, ",")), age(o.CreationTimestamp),
			metav1.FormatLabelSelector(&metav1.LabelSelector{MatchLabels: o.Spec.Selector})}
	}
	return k.Erase()
}

func externalIP(o *corev1.Service) string {
	list := slices.Clone(o.Spec.ExternalIPs)
	switch o.Spec.Type {
	case corev1.ServiceTypeExternalName:
		return o.Spec.ExternalName
	case corev1.ServiceTypeLoadBalancer:
		for _, in := range o.Status.LoadBalancer.Ingress {
			if in.IP != "" {
				list = append(list, in.IP)
			} else if in.Hostname != "" {
				list = append(list, in.Hostname)
			}
		}
		if len(list) == 0 {
			return "<pending>"
		}
	}
	return orNone(strings.Join(list, ","))
}

func defaultService(o *corev1.Service) {
	s := &o.Spec
	zero(&s.SessionAffinity, corev1.ServiceAffinityNone)
	zero(&s.Type, corev1.ServiceTypeClusterIP)
	if s.SessionAffinity == corev1.ServiceAffinityNone {
		s.SessionAffinityConfig = nil
	} else if s.SessionAffinityConfig == nil || s.SessionAffinityConfig.ClientIP == nil || s.SessionAffinityConfig.ClientIP.TimeoutSeconds == nil {
		timeout := int32(corev1.DefaultClientIPServiceAffinitySeconds)
		s.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &timeout}}
	}
	for i := range s.Ports {
		p := &s.Ports[i]
		zero(&p.Protocol, corev1.ProtocolTCP)
		if p.TargetPort == intstr.FromInt32(0) || p.TargetPort == intstr.FromString("") {
			p.TargetPort = intstr.FromInt32(p.Port)
		}
	}
	if s.Type == corev1.ServiceTypeNodePort || s.Type == corev1.ServiceTypeLoadBalancer {
		zero(&s.ExternalTrafficPolicy, corev1.ServiceExternalTrafficPolicyCluster)
	}
	if s.Type != corev1.ServiceTypeExternalName {
		def(&s.InternalTrafficPolicy, corev1.ServiceInternalTrafficPolicyCluster)
	}
	if s.Type == corev1.ServiceTypeLoadBalancer {
		def(&s.AllocateLoadBalancerNodePorts, true)
	}
}

func validateService(o *corev1.Service) (errs field.ErrorList) {
	s, p := &o.Spec, field.NewPath("spec")
	headless := s.ClusterIP == corev1.ClusterIPNone
	errs = append(errs, oneOf(p.Child("type"), s.Type, corev1.ServiceTypeClusterIP, corev1.ServiceTypeExternalName, corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeNodePort)...)
	if len(s.Ports) == 0 && !headless && s.Type != corev1.ServiceTypeExternalName {
		errs = append(errs, field.Required(p.Child("ports"), ""))
	}
	if s.Type == corev1.ServiceTypeExternalName {
		if name := strings.TrimSuffix(s.ExternalName, "."); name == "" {
			errs = append(errs, field.Required(p.Child("externalName"), ""))
		} else {
			errs = append(errs, invalid(p.Child("externalName"), s.ExternalName, utilvalidation.IsDNS1123Subdomain(name))...)
		}
		if s.ClusterIP != "" {
			errs = append(errs, field.Forbidden(p.Child("clusterIPs"), "may not be set when `type` is 'ExternalName'"))
		}
	}
	if headless && (s.Type == corev1.ServiceTypeNodePort || s.Type == corev1.ServiceTypeLoadBalancer) {
		errs = append(errs, field.Invalid(p.Child("clusterIPs").Index(0), s.ClusterIP, fmt.Sprintf("may not be set to 'None' for %s services", s.Type)))
	}
	if s.ClusterIP != "" && !headless {
		if _, err := netip.ParseAddr(s.ClusterIP); err != nil {
			errs = append(errs, field.Invalid(p.Child("clusterIPs").Index(0), s.ClusterIP, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"))
		}
	}
	errs = append(errs, metav1validation.ValidateLabels(s.Selector, p.Child("selector"))...)
	errs = append(errs, oneOf(p.Child("sessionAffinity"), s.SessionAffinity, corev1.ServiceAffinityClientIP, corev1.ServiceAffinityNone)...)
	names, numbers := map[string]bool{}, map[string]bool{}
	for i, port := range s.Ports {
		pp := p.Child("ports").Index(i)
		switch {
		case port.Name == "" && len(s.Ports) > 1:
			errs = append(errs, field.Required(pp.Child("name"), ""))
		case port.Name != "":
			errs = append(errs, invalid(pp.Child("name"), port.Name, utilvalidation.IsDNS1123Label(port.Name))...)
			if names[port.Name] {
				errs = append(errs, field.Duplicate(pp.Child("name"), port.Name))
			}
			names[port.Name] = true
		}
		errs = append(errs, invalid(pp.Child("port"), port.Port, utilvalidation.IsValidPortNum(int(port.Port)))...)
		errs = append(errs, oneOf(pp.Child("protocol"), port.Protocol, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)...)
		errs = append(errs, portRef(port.TargetPort, pp.Child("targetPort"))...)
		if key := fmt.Sprintf("%s/%d", port.Protocol, port.Port); numbers[key] {
			errs = append(errs, field.Duplicate(pp, fmt.Sprintf("%s/%d", port.Protocol, port.Port)))
		} else {
			numbers[key] = true
		}
		if port.NodePort != 0 && (s.Type == corev1.ServiceTypeClusterIP || s.Type == corev1.ServiceTypeExternalName) {
			errs = append(errs, field.Forbidden(pp.Child("nodePort"), fmt.Sprintf("may not be used when `type` is '%s'", s.Type)))
		}
	}
	for i, ip := range s.ExternalIPs {
		if a, err := netip.ParseAddr(ip); err != nil {
			errs = append(errs, field.Invalid(p.Child("externalIPs").Index(i), ip, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"))
		} else if a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsUnspecified() || a.IsLinkLocalMulticast() {
			errs = append(errs, field.Invalid(p.Child("externalIPs").Index(i), ip, "may not be in the loopback, link-local or unspecified range"))
		}
	}
	if t := s.ExternalTrafficPolicy; t != "" {
		if s.Type != corev1.ServiceTypeNodePort && s.Type != corev1.ServiceTypeLoadBalancer && len(s.ExternalIPs) == 0 {
			errs = append(errs, field.Invalid(p.Child("externalTrafficPolicy"), t, "may only be set for externally-accessible services"))
		}
		errs = append(errs, oneOf(p.Child("externalTrafficPolicy"), t, corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal)...)
	}
	return errs
}

func claim() *api.Resource {
	k := api.Kind[*corev1.PersistentVolumeClaim]{Resource: rules.Namespaced[corev1.PersistentVolumeClaim, corev1.PersistentVolumeClaimList](gv, "persistentvolumeclaims", "pvc")}
	k.Resource.UnconditionalUpdate = true
	k.Default = func(o *corev1.PersistentVolumeClaim) {
		def(&o.Spec.VolumeMode, corev1.PersistentVolumeFilesystem)
		zero(&o.Status.Phase, corev1.ClaimPending)
	}
	k.PrepareForCreate = func(o *corev1.PersistentVolumeClaim) {
		o.Status = corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimPending}
	}
	validate := func(o *corev1.PersistentVolumeClaim) (errs field.ErrorList) {
		p := field.NewPath("spec")
		if len(o.Spec.AccessModes) == 0 {
			errs = append(errs, field.Required(p.Child("accessModes"), "at least 1 access mode is required"))
		}
		if q, ok := o.Spec.Resources.Requests[corev1.ResourceStorage]; !ok {
			errs = append(errs, field.Required(p.Child("resources").Key(string(corev1.ResourceStorage)), ""))
		} else if q.Sign() <= 0 {
			errs = append(errs, field.Invalid(p.Child("resources", "requests").Key("storage"), q.String(), "must be greater than zero"))
		}
		return errs
	}
	k.Validate = validate
	k.ValidateUpdate = func(o, old *corev1.PersistentVolumeClaim) field.ErrorList {
		errs := validate(o)
		a, b := o.Spec.DeepCopy(), old.Spec.DeepCopy()
		if b.VolumeName == "" {
			b.VolumeName = a.VolumeName
		}
		now, was := a.Resources.Requests[corev1.ResourceStorage], b.Resources.Requests[corev1.ResourceStorage]
		a.Resources.Requests, b.Resources.Requests = nil, nil
		b.VolumeAttributesClassName = a.VolumeAttributesClassName
		errs = append(errs, validation.ValidateImmutableField(a, b, field.NewPath("spec"))...)
		if now.Cmp(was) < 0 {
			errs = append(errs, field.Forbidden(field.NewPath("spec", "resources", "requests", "storage"), "field can not be less than status.capacity"))
		}
		return errs
	}
	k.CopyStatus = func(dst, src *corev1.PersistentVolumeClaim) { src.Status.DeepCopyInto(&dst.Status) }
	k.Resource.Columns = []metav1.TableColumnDefinition{nameColumn, column("Status", "string", ""), column("Volume", "string", ""), column("Capacity", "string", ""),
		column("Access Modes", "string", ""), column("StorageClass", "string", ""), column("VolumeAttributesClass", "string", ""), ageColumn, column("VolumeMode", "string", "", true)}
	k.Row = func(o *corev1.PersistentVolumeClaim) []any {
		phase := string(o.Status.Phase)
		if o.DeletionTimestamp != nil {
			phase = "Terminating"
		}
		capacity, modes := "", ""
		if o.Spec.VolumeName != "" {
			q := o.Status.Capacity[corev1.ResourceStorage]
			capacity, modes = q.String(), accessModes(o.Status.AccessModes)
		}
		mode := "<unset>"
		if o.Spec.VolumeMode != nil {
			mode = string(*o.Spec.VolumeMode)
		}
		return []any{o.Name, phase, o.Spec.VolumeName, capacity, modes, deref(o.Spec.StorageClassName), unsetOr(o.Spec.VolumeAttributesClassName), age(o.CreationTimestamp), mode}
	}
	return k.Erase()
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

func unsetOr(s *string) string {
	if s == nil {
		return "<unset>"
	}
	return *s
}

func accessModes(list []corev1.PersistentVolumeAccessMode) string {
	short := []struct {
		mode corev1.PersistentVolumeAccessMode
		text string
	}{{corev1.ReadWriteOnce, "RWO"}, {corev1.ReadOnlyMany, "ROX"}, {corev1.ReadWriteMany, "RWX"}, {corev1.ReadWriteOncePod, "RWOP"}}
	var out []string
	for _, s := range short {
		if slices.Contains(list, s.mode) {
			out = append(out, s.text)
		}
	}
	return strings.Join(out, ",")
}

func volume() *api.Resource {
	k := api.Kind[*corev1.PersistentVolume]{Resource: rules.Cluster[corev1.PersistentVolume, corev1.PersistentVolumeList](gv, "persistentvolumes", "pv")}
	k.Resource.UnconditionalUpdate = true
	k.Default = func(o *corev1.PersistentVolume) {
		zero(&o.Status.Phase, corev1.VolumePending)
		zero(&o.Spec.PersistentVolumeReclaimPolicy, corev1.PersistentVolumeReclaimRetain)
		def(&o.Spec.VolumeMode, corev1.PersistentVolumeFilesystem)
	}
	k.PrepareForCreate = func(o *corev1.PersistentVolume) {
		o.Status = corev1.PersistentVolumeStatus{Phase: corev1.VolumePending}
	}
	validate := func(o *corev1.PersistentVolume) (errs field.ErrorList) {
		p := field.NewPath("spec")
		if len(o.Spec.AccessModes) == 0 {
			errs = append(errs, field.Required(p.Child("accessModes"), ""))
		}
		if _, ok := o.Spec.Capacity[corev1.ResourceStorage]; !ok {
			errs = append(errs, field.Required(p.Child("capacity"), ""))
		}
		if o.Spec.PersistentVolumeSource == (corev1.PersistentVolumeSource{}) {
			errs = append(errs, field.Required(p, "must specify a volume type"))
		}
		return errs
	}
	k.Validate = validate
	k.ValidateUpdate = func(o, old *corev1.PersistentVolume) field.ErrorList {
		return append(validate(o), validation.ValidateImmutableField(o.Spec.PersistentVolumeSource, old.Spec.PersistentVolumeSource, field.NewPath("spec", "persistentvolumesource"))...)
	}
	k.CopyStatus = func(dst, src *corev1.PersistentVolume) { src.Status.DeepCopyInto(&dst.Status) }
	k.Resource.Columns = []metav1.TableColumnDefinition{nameColumn, column("Capacity", "string", ""), column("Access Modes", "string", ""), column("Reclaim Policy", "string", ""),
		column("Status", "string", ""), column("Claim", "string", ""), column("StorageClass", "string", ""), column("VolumeAttributesClass", "string", ""), column("Reason", "string", ""), ageColumn, column("VolumeMode", "string", "", true)}
	k.Row = func(o *corev1.PersistentVolume) []any {
		claim := ""
		if r := o.Spec.ClaimRef; r != nil {
			claim = r.Namespace + "/" + r.Name
		}
		phase := string(o.Status.Phase)
		if o.DeletionTimestamp != nil {
			phase = "Terminating"
		}
		q := o.Spec.Capacity[corev1.ResourceStorage]
		mode := "<unset>"
		if o.Spec.VolumeMode != nil {
			mode = string(*o.Spec.VolumeMode)
		}
		return []any{o.Name, q.String(), accessModes(o.Spec.AccessModes), string(o.Spec.PersistentVolumeReclaimPolicy), phase, claim, o.Spec.StorageClassName,
			unsetOr(o.Spec.VolumeAttributesClassName), o.Status.Reason, age(o.CreationTimestamp), mode}
	}
	return k.Erase()
}
