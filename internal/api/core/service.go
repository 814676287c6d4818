package core

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
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
	k.ValidateName = validation.NameIsDNSLabel
	k.Default = defaultService
	k.PrepareForCreate = func(o *corev1.Service) { alignClusterIPs(&o.Spec, &corev1.ServiceSpec{}) }
	k.PrepareForUpdate = func(o, old *corev1.Service) {
		releaseUnneeded(o, old)
		alignClusterIPs(&o.Spec, &old.Spec)
	}
	k.Validate = func(o *corev1.Service) field.ErrorList { return validateService(o, nil) }
	k.ValidateUpdate = validateServiceUpdate
	k.CopyStatus = func(dst, src *corev1.Service) { src.Status.DeepCopyInto(&dst.Status) }
	k.ValidateStatusUpdate = validateServiceStatus
	k.Warnings = serviceWarnings
	k.Fields = func(o *corev1.Service) fields.Set {
		return fields.Set{"spec.clusterIP": o.Spec.ClusterIP, "spec.type": string(o.Spec.Type)}
	}
	k.Resource.FieldLabels = []string{"spec.clusterIP", "spec.type"}
	doc := corev1.ServiceSpec{}.SwaggerDoc()
	k.Resource.Columns = []metav1.TableColumnDefinition{
		rules.Name(), rules.Text("Type", doc["type"]), rules.Text("Cluster-IP", doc["clusterIP"]), rules.Text("External-IP", doc["externalIPs"]),
		rules.Text("Port(s)", doc["ports"]), rules.Age(), rules.Wide("Selector", doc["selector"]),
	}
	k.Row = func(o *corev1.Service) []any {
		ip := rules.None
		if len(o.Spec.ClusterIPs) > 0 {
			ip = o.Spec.ClusterIPs[0]
		}
		return []any{o.Name, string(o.Spec.Type), ip, externalIP(o), portsText(o.Spec.Ports), rules.Created(o), labels.FormatLabels(o.Spec.Selector)}
	}
	return k.Erase()
}

func portsText(ports []corev1.ServicePort) string {
	list := make([]string, len(ports))
	for i, p := range ports {
		list[i] = fmt.Sprintf("%d/%s", p.Port, p.Protocol)
		if p.NodePort > 0 {
			list[i] = fmt.Sprintf("%d:%d/%s", p.Port, p.NodePort, p.Protocol)
		}
	}
	return orNone(strings.Join(list, ","))
}

func externalIP(o *corev1.Service) string {
	switch o.Spec.Type {
	case corev1.ServiceTypeExternalName:
		return o.Spec.ExternalName
	case corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort:
		return orNone(strings.Join(o.Spec.ExternalIPs, ","))
	case corev1.ServiceTypeLoadBalancer:
	default:
		return rules.Unknown
	}
	var list []string
	for _, in := range o.Status.LoadBalancer.Ingress {
		if in.IP != "" {
			list = append(list, in.IP)
		} else if in.Hostname != "" {
			list = append(list, in.Hostname)
		}
	}
	slices.Sort(list)
	list = append(slices.Compact(list), o.Spec.ExternalIPs...)
	if len(list) == 0 {
		return "<pending>"
	}
	return strings.Join(list, ",")
}

// external reports whether a Service takes traffic from outside of the cluster.
func external(s *corev1.ServiceSpec) bool {
	return usesNodePorts(s) || s.Type == corev1.ServiceTypeClusterIP && len(s.ExternalIPs) > 0
}

func usesNodePorts(s *corev1.ServiceSpec) bool {
	return s.Type == corev1.ServiceTypeNodePort || s.Type == corev1.ServiceTypeLoadBalancer
}

// usesHealthPort: load balancers ask each node by it whether it has endpoints of its own.
func usesHealthPort(s *corev1.ServiceSpec) bool {
	return s.Type == corev1.ServiceTypeLoadBalancer && s.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
}

func isHeadless(s *corev1.ServiceSpec) bool {
	return len(s.ClusterIPs) == 1 && s.ClusterIPs[0] == corev1.ClusterIPNone
}

func defaultService(o *corev1.Service) {
	s := &o.Spec
	zero(&s.SessionAffinity, corev1.ServiceAffinityNone)
	zero(&s.Type, corev1.ServiceTypeClusterIP)
	switch c := s.SessionAffinityConfig; {
	case s.SessionAffinity == corev1.ServiceAffinityNone:
		s.SessionAffinityConfig = nil
	case s.SessionAffinity == corev1.ServiceAffinityClientIP && (c == nil || c.ClientIP == nil || c.ClientIP.TimeoutSeconds == nil):
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
	if external(s) {
		zero(&s.ExternalTrafficPolicy, corev1.ServiceExternalTrafficPolicyCluster)
	}
	if usesNodePorts(s) || s.Type == corev1.ServiceTypeClusterIP {
		def(&s.InternalTrafficPolicy, corev1.ServiceInternalTrafficPolicyCluster)
	}
	if s.Type != corev1.ServiceTypeLoadBalancer {
		return
	}
	def(&s.AllocateLoadBalancerNodePorts, true)
	for i := range o.Status.LoadBalancer.Ingress {
		if in := &o.Status.LoadBalancer.Ingress[i]; in.IP != "" {
			def(&in.IPMode, corev1.LoadBalancerIPModeVIP)
		}
	}
}

// alignClusterIPs lets writers that know clusterIP only set clusterIPs as well.
func alignClusterIPs(now, was *corev1.ServiceSpec) {
	switch {
	case now.ClusterIP != "" && len(now.ClusterIPs) == 0:
		if now.ClusterIP == was.ClusterIP {
			now.ClusterIPs = slices.Clone(was.ClusterIPs)
		} else {
			now.ClusterIPs = []string{now.ClusterIP}
		}
	case was.ClusterIP == "" || now.ClusterIP == was.ClusterIP || !slices.Equal(now.ClusterIPs, was.ClusterIPs):
	case now.ClusterIP == "":
		now.ClusterIPs = nil
	default:
		now.ClusterIPs = []string{now.ClusterIP}
	}
}

// releaseUnneeded drops what the Service was given for a type that it is no
// longer of. What the writer changed as well stays, and validation refuses it.
func releaseUnneeded(o, old *corev1.Service) {
	now, was := &o.Spec, &old.Spec
	if was.Type != corev1.ServiceTypeExternalName && now.Type == corev1.ServiceTypeExternalName {
		if now.ClusterIP == was.ClusterIP && slices.Equal(now.ClusterIPs, was.ClusterIPs) {
			now.ClusterIP, now.ClusterIPs = "", nil
		}
		if slices.Equal(now.IPFamilies, was.IPFamilies) {
			now.IPFamilies = nil
		}
		if rules.Same(now.IPFamilyPolicy, was.IPFamilyPolicy) {
			now.IPFamilyPolicy = nil
		}
	}
	if usesNodePorts(was) && !usesNodePorts(now) && noNewNodePorts(now, was) {
		for i := range now.Ports {
			now.Ports[i].NodePort = 0
		}
	}
	if usesHealthPort(was) && !usesHealthPort(now) && now.HealthCheckNodePort == was.HealthCheckNodePort {
		now.HealthCheckNodePort = 0
	}
	if was.Type == corev1.ServiceTypeLoadBalancer && now.Type != corev1.ServiceTypeLoadBalancer {
		if rules.Same(now.AllocateLoadBalancerNodePorts, was.AllocateLoadBalancerNodePorts) {
			now.AllocateLoadBalancerNodePorts = nil
		}
		if rules.Same(now.LoadBalancerClass, was.LoadBalancerClass) {
			now.LoadBalancerClass = nil
		}
	}
	if external(was) && !external(now) && now.ExternalTrafficPolicy == was.ExternalTrafficPolicy {
		now.ExternalTrafficPolicy = ""
	}
	if now.Type != corev1.ServiceTypeLoadBalancer {
		o.Status.LoadBalancer = corev1.LoadBalancerStatus{}
	}
}

func noNewNodePorts(now, was *corev1.ServiceSpec) bool {
	for _, p := range now.Ports {
		if p.NodePort != 0 && !slices.ContainsFunc(was.Ports, func(b corev1.ServicePort) bool { return b.NodePort == p.NodePort }) {
			return false
		}
	}
	return true
}

// serviceWarnings tells of fields that have no effect.
func serviceWarnings(o *corev1.Service) (warnings []string) {
	s, p := &o.Spec, field.NewPath("spec")
	if _, ok := o.Annotations[corev1.DeprecatedAnnotationTopologyAwareHints]; ok {
		warnings = append(warnings, fmt.Sprintf("annotation %s is deprecated, please use %s instead", corev1.DeprecatedAnnotationTopologyAwareHints, corev1.AnnotationTopologyMode))
	}
	headless := s.Type == corev1.ServiceTypeClusterIP && isHeadless(s)
	if headless {
		if s.LoadBalancerIP != "" {
			warnings = append(warnings, "spec.loadBalancerIP is ignored for headless services")
		}
		if len(s.ExternalIPs) > 0 {
			warnings = append(warnings, "spec.externalIPs is ignored for headless services")
		}
		if s.SessionAffinity != corev1.ServiceAffinityNone {
			warnings = append(warnings, "spec.SessionAffinity is ignored for headless services")
		}
	} else {
		for i, ip := range s.ClusterIPs {
			warnings = append(warnings, utilvalidation.GetWarningsForIP(p.Child("clusterIPs").Index(i), ip)...)
		}
	}
	for i, ip := range s.ExternalIPs {
		warnings = append(warnings, utilvalidation.GetWarningsForIP(p.Child("externalIPs").Index(i), ip)...)
	}
	if len(s.ExternalIPs) > 0 && !headless && s.Type != corev1.ServiceTypeExternalName {
		warnings = append(warnings, "spec.externalIPs is deprecated and may no longer be implemented in some clusters")
	}
	if s.LoadBalancerIP != "" {
		// This field was never checked, so that only what is an address can be warned of.
		if ip := p.Child("loadBalancerIP"); len(utilvalidation.IsValidIPForLegacyField(ip, s.LoadBalancerIP, false, nil)) == 0 {
			warnings = append(warnings, utilvalidation.GetWarningsForIP(ip, s.LoadBalancerIP)...)
		}
	}
	for i, cidr := range s.LoadBalancerSourceRanges {
		warnings = append(warnings, utilvalidation.GetWarningsForCIDR(p.Child("loadBalancerSourceRanges").Index(i), strings.TrimSpace(cidr))...)
	}
	if s.Type == corev1.ServiceTypeExternalName && len(s.ExternalIPs) > 0 {
		warnings = append(warnings, `spec.externalIPs is ignored when spec.type is "ExternalName"`)
	}
	if s.Type != corev1.ServiceTypeExternalName && s.ExternalName != "" {
		warnings = append(warnings, `spec.externalName is ignored when spec.type is not "ExternalName"`)
	}
	if s.TrafficDistribution != nil && *s.TrafficDistribution == corev1.ServiceTrafficDistributionPreferClose {
		warnings = append(warnings, fmt.Sprintf("spec.trafficDistribution: %q is deprecated; use %q", corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone))
	}
	return warnings
}
