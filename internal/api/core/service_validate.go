package core

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api/rules"
)

const onlyLoadBalancer = "may only be used when `type` is 'LoadBalancer'"

// maxAffinitySeconds is a day.
const maxAffinitySeconds = 86400

// validateService checks a Service; old is nil when it is created. What old has
// of addresses may stay though the rules have become stricter.
func validateService(o, old *corev1.Service) (errs field.ErrorList) {
	s, p := &o.Spec, field.NewPath("spec")
	was := &corev1.ServiceSpec{}
	if old != nil {
		was = &old.Spec
	}
	mode, isSet := o.Annotations[corev1.AnnotationTopologyMode]
	if hints, also := o.Annotations[corev1.DeprecatedAnnotationTopologyAwareHints]; isSet && also && mode != hints {
		errs = append(errs, field.Invalid(field.NewPath("metadata", "annotations").Key(corev1.AnnotationTopologyMode), mode,
			fmt.Sprintf("must match annotations[%s] when both are specified", corev1.DeprecatedAnnotationTopologyAwareHints)))
	}
	if len(s.Ports) == 0 && !isHeadless(s) && s.Type != corev1.ServiceTypeExternalName {
		errs = append(errs, field.Required(p.Child("ports"), ""))
	}
	if isHeadless(s) && usesNodePorts(s) {
		errs = append(errs, field.Invalid(p.Child("clusterIPs").Index(0), s.ClusterIP, fmt.Sprintf("may not be set to 'None' for %s services", s.Type)))
	}
	if s.Type == corev1.ServiceTypeExternalName {
		errs = append(errs, validateExternalName(s, p)...)
	}
	names := map[string]bool{}
	for i := range s.Ports {
		errs = append(errs, validateServicePort(&s.Ports[i], len(s.Ports) > 1, names, p.Child("ports").Index(i))...)
	}
	errs = append(errs, metav1validation.ValidateLabels(s.Selector, p.Child("selector"))...)
	errs = append(errs, oneOf(p.Child("sessionAffinity"), s.SessionAffinity, corev1.ServiceAffinityClientIP, corev1.ServiceAffinityNone)...)
	errs = append(errs, validateAffinityConfig(s, p.Child("sessionAffinityConfig"))...)
	if s.Type != corev1.ServiceTypeExternalName {
		errs = append(errs, validateClusterIPs(s, was, p)...)
	}
	for i, ip := range s.ExternalIPs {
		ip, ipp := ip, p.Child("externalIPs").Index(i)
		if bad := utilvalidation.IsValidIPForLegacyField(ipp, ip, true, was.ExternalIPs); len(bad) > 0 {
			errs = append(errs, bad...)
		} else {
			errs = append(errs, reachable(ip, ipp)...)
		}
	}
	errs = append(errs, oneOf(p.Child("type"), s.Type, corev1.ServiceTypeClusterIP, corev1.ServiceTypeExternalName, corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeNodePort)...)
	errs = append(errs, validateDistinctPorts(s, p.Child("ports"))...)
	errs = append(errs, validateSourceRanges(o, old)...)
	if s.AllocateLoadBalancerNodePorts != nil && s.Type != corev1.ServiceTypeLoadBalancer {
		errs = append(errs, field.Forbidden(p.Child("allocateLoadBalancerNodePorts"), onlyLoadBalancer))
	}
	if class := s.LoadBalancerClass; class != nil {
		if s.Type == corev1.ServiceTypeLoadBalancer {
			errs = append(errs, qualified(p.Child("loadBalancerClass"), *class)...)
		} else {
			errs = append(errs, field.Forbidden(p.Child("loadBalancerClass"), onlyLoadBalancer))
		}
	}
	return append(errs, validateTrafficPolicies(s, p)...)
}

func validateExternalName(s *corev1.ServiceSpec, p *field.Path) (errs field.ErrorList) {
	const detail = "may not be set for ExternalName services"
	if len(s.ClusterIPs) > 0 || s.ClusterIP != "" {
		errs = append(errs, field.Forbidden(p.Child("clusterIPs"), detail))
	}
	if len(s.IPFamilies) > 0 {
		errs = append(errs, field.Forbidden(p.Child("ipFamilies"), detail))
	}
	if s.IPFamilyPolicy != nil {
		errs = append(errs, field.Forbidden(p.Child("ipFamilyPolicy"), detail))
	}
	name := strings.TrimSuffix(s.ExternalName, ".") // the dot says that the name is complete
	if name == "" {
		return append(errs, field.Required(p.Child("externalName"), ""))
	}
	return append(errs, subdomain(p.Child("externalName"), name)...)
}

func validateServicePort(sp *corev1.ServicePort, named bool, names map[string]bool, p *field.Path) (errs field.ErrorList) {
	if sp.Name != "" {
		errs = append(errs, label(p.Child("name"), sp.Name)...)
		if names[sp.Name] {
			errs = append(errs, field.Duplicate(p.Child("name"), sp.Name))
		}
		names[sp.Name] = true
	} else if named {
		errs = append(errs, field.Required(p.Child("name"), ""))
	}
	errs = append(errs, port(p.Child("port"), sp.Port)...)
	errs = append(errs, oneOf(p.Child("protocol"), sp.Protocol, corev1.ProtocolSCTP, corev1.ProtocolTCP, corev1.ProtocolUDP)...)
	errs = append(errs, portNumberOrName(p.Child("targetPort"), sp.TargetPort)...)
	if sp.AppProtocol != nil {
		errs = append(errs, qualified(p.Child("appProtocol"), *sp.AppProtocol)...)
	}
	return errs
}

// validateDistinctPorts refuses ports, and node ports, that are there twice for a protocol.
func validateDistinctPorts(s *corev1.ServiceSpec, p *field.Path) (errs field.ErrorList) {
	if s.Type == corev1.ServiceTypeClusterIP {
		for i := range s.Ports {
			if s.Ports[i].NodePort != 0 {
				errs = append(errs, field.Forbidden(p.Index(i).Child("nodePort"), "may not be used when `type` is 'ClusterIP'"))
			}
		}
	}
	type key struct {
		protocol corev1.Protocol
		number   int32
	}
	ports, nodePorts := map[key]bool{}, map[key]bool{}
	for i, sp := range s.Ports {
		if sp.NodePort == 0 {
			continue
		}
		k := key{sp.Protocol, sp.NodePort}
		if nodePorts[k] {
			errs = append(errs, field.Duplicate(p.Index(i).Child("nodePort"), sp.NodePort))
		}
		nodePorts[k] = true
	}
	for i, sp := range s.Ports {
		k := key{sp.Protocol, sp.Port}
		if ports[k] {
			errs = append(errs, field.Duplicate(p.Index(i), corev1.ServicePort{Protocol: sp.Protocol, Port: sp.Port}))
		}
		ports[k] = true
	}
	return errs
}

func validateAffinityConfig(s *corev1.ServiceSpec, p *field.Path) field.ErrorList {
	c := s.SessionAffinityConfig
	switch s.SessionAffinity {
	case corev1.ServiceAffinityNone:
		if c != nil {
			return field.ErrorList{field.Forbidden(p, "must not be set when session affinity is None")}
		}
		return nil
	case corev1.ServiceAffinityClientIP:
	default:
		return nil
	}
	const detail = "when session affinity type is ClientIP"
	switch {
	case c == nil:
		return field.ErrorList{field.Required(p, detail)}
	case c.ClientIP == nil:
		return field.ErrorList{field.Required(p.Child("clientIP"), detail)}
	}
	p = p.Child("clientIP", "timeoutSeconds")
	switch t := c.ClientIP.TimeoutSeconds; {
	case t == nil:
		return field.ErrorList{field.Required(p, detail)}
	case *t <= 0 || *t > maxAffinitySeconds:
		return field.ErrorList{field.Invalid(p, *t, fmt.Sprintf("must be greater than 0 and less than %d", maxAffinitySeconds))}
	}
	return nil
}

// validateClusterIPs checks the addresses of a Service and their families against each other.
func validateClusterIPs(s, was *corev1.ServiceSpec, p *field.Path) (errs field.ErrorList) {
	ips, families := p.Child("clusterIPs"), p.Child("ipFamilies")
	switch {
	case s.ClusterIP == "" && len(s.ClusterIPs) > 0:
		errs = append(errs, field.Invalid(ips, s.ClusterIPs, "must be empty when `clusterIP` is not specified"))
	case s.ClusterIP != "" && len(s.ClusterIPs) == 0:
		errs = append(errs, field.Required(ips, ""))
	case s.ClusterIP != "" && s.ClusterIPs[0] != s.ClusterIP:
		errs = append(errs, field.Invalid(ips, s.ClusterIPs, "first value must match `clusterIP`"))
	}
	for i, f := range s.IPFamilies {
		errs = append(errs, among(families.Index(i), f, corev1.IPv4Protocol, corev1.IPv6Protocol)...)
		if slices.Contains(s.IPFamilies[:i], f) {
			errs = append(errs, field.Duplicate(families.Index(i), f))
		}
	}
	errs = append(errs, amongPointer(p.Child("ipFamilyPolicy"), s.IPFamilyPolicy, corev1.IPFamilyPolicyPreferDualStack, corev1.IPFamilyPolicyRequireDualStack, corev1.IPFamilyPolicySingleStack)...)
	bad := false
	for i, ip := range s.ClusterIPs {
		if i == 0 && ip == corev1.ClusterIPNone {
			if len(s.ClusterIPs) > 1 {
				errs, bad = append(errs, field.Invalid(ips, s.ClusterIPs, "'None' must be the first and only value")), true
			}
			continue
		}
		wrong := utilvalidation.IsValidIPForLegacyField(ips.Index(i), ip, true, was.ClusterIPs)
		errs, bad = append(errs, wrong...), bad || len(wrong) > 0
	}
	if len(s.ClusterIPs) > 2 {
		errs = append(errs, field.Invalid(ips, s.ClusterIPs, "may only hold up to 2 values"))
	}
	if bad {
		return errs
	}
	if len(s.ClusterIPs) > 1 && len(s.ClusterIPs) != 2 || len(s.ClusterIPs) == 2 && isIPv6(s.ClusterIPs[0]) == isIPv6(s.ClusterIPs[1]) {
		errs = append(errs, field.Invalid(ips, s.ClusterIPs, "may specify no more than one IP for each IP family"))
	}
	if isHeadless(s) {
		return errs
	}
	for i := range min(len(s.ClusterIPs), len(s.IPFamilies)) {
		switch ip, six := s.ClusterIPs[i], isIPv6(s.ClusterIPs[i]); {
		case s.IPFamilies[i] == corev1.IPv4Protocol && six:
			errs = append(errs, field.Invalid(ips.Index(i), ip, fmt.Sprintf("expected an IPv4 value as indicated by `ipFamilies[%v]`", i)))
		case s.IPFamilies[i] == corev1.IPv6Protocol && !six:
			errs = append(errs, field.Invalid(ips.Index(i), ip, fmt.Sprintf("expected an IPv6 value as indicated by `ipFamilies[%v]`", i)))
		}
	}
	return errs
}

func isIPv6(ip string) bool {
	addr, err := netip.ParseAddr(ip)
	return err == nil && addr.Is6() && !addr.Is4In6()
}

// validateSourceRanges checks the clients that a load balancer serves, in the field or the old annotation.
func validateSourceRanges(o, old *corev1.Service) (errs field.ErrorList) {
	s := &o.Spec
	if len(s.LoadBalancerSourceRanges) > 0 {
		p := field.NewPath("spec", "LoadBalancerSourceRanges")
		if s.Type != corev1.ServiceTypeLoadBalancer {
			errs = append(errs, field.Forbidden(p, onlyLoadBalancer))
		}
		var had []string
		if old != nil {
			for _, cidr := range old.Spec.LoadBalancerSourceRanges {
				had = append(had, strings.TrimSpace(cidr))
			}
		}
		for i, cidr := range s.LoadBalancerSourceRanges {
			errs = append(errs, utilvalidation.IsValidCIDRForLegacyField(p.Index(i), strings.TrimSpace(cidr), true, had)...)
		}
		return errs
	}
	value, ok := o.Annotations[corev1.AnnotationLoadBalancerSourceRangesKey]
	if !ok {
		return nil
	}
	p := field.NewPath("metadata", "annotations").Key(corev1.AnnotationLoadBalancerSourceRangesKey)
	if s.Type != corev1.ServiceTypeLoadBalancer {
		errs = append(errs, field.Forbidden(p, onlyLoadBalancer))
	}
	if old != nil && old.Annotations[corev1.AnnotationLoadBalancerSourceRangesKey] == value || strings.TrimSpace(value) == "" {
		return errs
	}
	for cidr := range strings.SplitSeq(value, ",") {
		errs = append(errs, utilvalidation.IsValidCIDRForLegacyField(p, strings.TrimSpace(cidr), true, nil)...)
	}
	return errs
}

func validateTrafficPolicies(s *corev1.ServiceSpec, p *field.Path) (errs field.ErrorList) {
	ep := p.Child("externalTrafficPolicy")
	if external(s) {
		errs = append(errs, oneOf(ep, s.ExternalTrafficPolicy, corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal)...)
	} else if s.ExternalTrafficPolicy != "" {
		errs = append(errs, field.Invalid(ep, s.ExternalTrafficPolicy, "may only be set for externally-accessible services"))
	}
	hp := p.Child("healthCheckNodePort")
	switch n := s.HealthCheckNodePort; {
	case !usesHealthPort(s) && n != 0:
		errs = append(errs, field.Invalid(hp, n, "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'"))
	case usesHealthPort(s) && n == 0:
		errs = append(errs, field.Required(hp, ""))
	case usesHealthPort(s):
		errs = append(errs, port(hp, n)...)
	}
	if s.InternalTrafficPolicy != nil {
		errs = append(errs, among(p.Child("internalTrafficPolicy"), *s.InternalTrafficPolicy, corev1.ServiceInternalTrafficPolicyCluster, corev1.ServiceInternalTrafficPolicyLocal)...)
	} else if s.Type == corev1.ServiceTypeClusterIP || usesNodePorts(s) {
		errs = append(errs, field.Required(p.Child("internalTrafficPolicy"), ""))
	}
	return append(errs, amongPointer(p.Child("trafficDistribution"), s.TrafficDistribution,
		corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone, corev1.ServiceTrafficDistributionPreferSameNode)...)
}

// validateServiceUpdate: the first address of a Service, and its family, stay as
// long as it has one; a second one may come and go.
func validateServiceUpdate(o, old *corev1.Service) (errs field.ErrorList) {
	now, was, p := &o.Spec, &old.Spec, field.NewPath("spec")
	if now.Type != corev1.ServiceTypeExternalName && was.Type != corev1.ServiceTypeExternalName {
		if !isHeadless(now) || !isHeadless(was) {
			errs = append(errs, keepClusterIPs(now, was, p)...)
		}
		if !isHeadless(now) && !isHeadless(was) {
			errs = append(errs, keepFamilies(now, was, p)...)
		}
	}
	if was.Type == corev1.ServiceTypeLoadBalancer && now.Type == corev1.ServiceTypeLoadBalancer && !rules.Same(now.LoadBalancerClass, was.LoadBalancerClass) {
		errs = append(errs, field.Invalid(p.Child("loadBalancerClass"), now.LoadBalancerClass, "may not change once set"))
	}
	if usesHealthPort(was) && usesHealthPort(now) && was.HealthCheckNodePort != now.HealthCheckNodePort {
		errs = append(errs, field.Forbidden(p.Child("healthCheckNodePort"), "field is immutable"))
	}
	return append(errs, validateService(o, old)...)
}

func keepClusterIPs(now, was *corev1.ServiceSpec, p *field.Path) (errs field.ErrorList) {
	ips := p.Child("clusterIPs")
	changed := func(i int) {
		errs = append(errs, field.Invalid(ips.Index(i), now.ClusterIPs, "may not change once set"))
	}
	if len(now.ClusterIPs) == len(was.ClusterIPs) {
		for i := range was.ClusterIPs {
			if now.ClusterIPs[i] != was.ClusterIPs[i] {
				changed(i)
			}
		}
		return errs
	}
	if len(was.ClusterIPs) > 0 {
		if len(now.ClusterIPs) == 0 {
			errs = append(errs, field.Invalid(ips.Index(0), now.ClusterIPs, "primary clusterIP can not be unset"))
		} else if now.ClusterIPs[0] != was.ClusterIPs[0] {
			changed(0)
		}
	}
	if len(was.ClusterIPs) > len(now.ClusterIPs) && len(now.ClusterIPs) == 1 && rules.Or(now.IPFamilyPolicy, "") != corev1.IPFamilyPolicySingleStack {
		errs = append(errs, field.Invalid(p.Child("ipFamilyPolicy"), now.IPFamilyPolicy, "must be set to 'SingleStack' when releasing the secondary clusterIP"))
	}
	return errs
}

func keepFamilies(now, was *corev1.ServiceSpec, p *field.Path) (errs field.ErrorList) {
	families := p.Child("ipFamilies").Index(0)
	if len(now.IPFamilies) == len(was.IPFamilies) {
		for i := range was.IPFamilies {
			if now.IPFamilies[i] != was.IPFamilies[i] {
				errs = append(errs, field.Invalid(families, now.IPFamilies, "may not change once set"))
			}
		}
		return errs
	}
	released := len(was.IPFamilies) > len(now.IPFamilies)
	if released && len(now.ClusterIPs) == 0 {
		errs = append(errs, field.Invalid(families, now.IPFamilies, "primary ipFamily can not be unset"))
	}
	if len(was.IPFamilies) > 0 && len(now.IPFamilies) > 0 && now.IPFamilies[0] != was.IPFamilies[0] {
		errs = append(errs, field.Invalid(families, now.ClusterIPs, "may not change once set"))
	}
	if released && len(now.IPFamilies) == 1 && rules.Or(now.IPFamilyPolicy, "") != corev1.IPFamilyPolicySingleStack {
		errs = append(errs, field.Invalid(p.Child("ipFamilyPolicy"), now.IPFamilyPolicy, "must be set to 'SingleStack' when releasing the secondary ipFamily"))
	}
	return errs
}

func validateServiceStatus(o, old *corev1.Service) (errs field.ErrorList) {
	p := field.NewPath("status", "loadBalancer", "ingress")
	ingress := o.Status.LoadBalancer.Ingress
	if o.Spec.Type != corev1.ServiceTypeLoadBalancer && len(ingress) > 0 {
		return field.ErrorList{field.Forbidden(p, "may only be used when `spec.type` is 'LoadBalancer'")}
	}
	var had []string
	for _, in := range old.Status.LoadBalancer.Ingress {
		had = append(had, in.IP)
	}
	for i, in := range ingress {
		ip := p.Index(i)
		if in.IP != "" {
			errs = append(errs, utilvalidation.IsValidIPForLegacyField(ip.Child("ip"), in.IP, true, had)...)
		}
		switch {
		case in.IPMode == nil && in.IP != "":
			errs = append(errs, field.Required(ip.Child("ipMode"), "must be specified when `ip` is set"))
		case in.IPMode != nil && in.IP == "":
			errs = append(errs, field.Forbidden(ip.Child("ipMode"), "may not be specified when `ip` is not set"))
		default:
			errs = append(errs, amongPointer(ip.Child("ipMode"), in.IPMode, corev1.LoadBalancerIPModeProxy, corev1.LoadBalancerIPModeVIP)...)
		}
		if in.Hostname == "" {
			continue
		}
		errs = append(errs, subdomain(ip.Child("hostname"), in.Hostname)...)
		if _, err := netip.ParseAddr(in.Hostname); err == nil {
			errs = append(errs, field.Invalid(ip.Child("hostname"), in.Hostname, "must be a DNS name, not an IP address"))
		}
	}
	return errs
}
