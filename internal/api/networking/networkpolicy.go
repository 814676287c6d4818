package networking

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

func networkPolicies(gv schema.GroupVersion) *api.Resource {
	r := rules.Namespaced[networkingv1.NetworkPolicy, networkingv1.NetworkPolicyList](gv, "networkpolicies", "netpol")
	r.UnconditionalUpdate = true
	r.Columns = []metav1.TableColumnDefinition{
		rules.Name(), rules.Text("Pod-Selector", "The pods that the policy applies to."), rules.Age(),
	}
	return api.Kind[*networkingv1.NetworkPolicy]{
		Resource:    r,
		Default:     defaultPolicy,
		Validate:    validatePolicy,
		SpecChanged: func(p, old *networkingv1.NetworkPolicy) bool { return !rules.Same(p.Spec, old.Spec) },
		Row: func(p *networkingv1.NetworkPolicy) []any {
			return []any{p.Name, metav1.FormatLabelSelector(&p.Spec.PodSelector), rules.Created(p)}
		},
	}.Erase()
}

func defaultPolicy(p *networkingv1.NetworkPolicy) {
	for i := range p.Spec.Ingress {
		defaultPorts(p.Spec.Ingress[i].Ports)
	}
	for i := range p.Spec.Egress {
		defaultPorts(p.Spec.Egress[i].Ports)
	}
	if len(p.Spec.PolicyTypes) == 0 {
		p.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
		if len(p.Spec.Egress) != 0 {
			p.Spec.PolicyTypes = append(p.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
		}
	}
}

func defaultPorts(ports []networkingv1.NetworkPolicyPort) {
	for i := range ports {
		rules.Refer(&ports[i].Protocol, corev1.ProtocolTCP)
	}
}

func validatePolicy(p *networkingv1.NetworkPolicy) field.ErrorList {
	spec := field.NewPath("spec")
	errs := rules.Selector(&p.Spec.PodSelector, spec.Child("podSelector"))
	for i, rule := range p.Spec.Ingress {
		at := spec.Child("ingress").Index(i)
		errs = append(errs, validatePolicyPorts(rule.Ports, at.Child("ports"))...)
		errs = append(errs, validatePeers(rule.From, at.Child("from"))...)
	}
	for i, rule := range p.Spec.Egress {
		at := spec.Child("egress").Index(i)
		errs = append(errs, validatePolicyPorts(rule.Ports, at.Child("ports"))...)
		errs = append(errs, validatePeers(rule.To, at.Child("to"))...)
	}
	types := spec.Child("policyTypes")
	if len(p.Spec.PolicyTypes) > 2 {
		return append(errs, field.Invalid(types, p.Spec.PolicyTypes, "may not specify more than two policyTypes"))
	}
	for i, t := range p.Spec.PolicyTypes {
		if t != networkingv1.PolicyTypeIngress && t != networkingv1.PolicyTypeEgress {
			errs = append(errs, field.NotSupported(types.Index(i), t, []networkingv1.PolicyType{networkingv1.PolicyTypeEgress, networkingv1.PolicyTypeIngress}))
		}
	}
	return errs
}

func validatePolicyPorts(ports []networkingv1.NetworkPolicyPort, path *field.Path) (errs field.ErrorList) {
	for i, p := range ports {
		at := path.Index(i)
		if p.Protocol != nil {
			switch *p.Protocol {
			case corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP:
			default:
				errs = append(errs, field.NotSupported(at.Child("protocol"), *p.Protocol, []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}))
			}
		}
		end := at.Child("endPort")
		switch {
		case p.Port == nil:
			if p.EndPort != nil {
				errs = append(errs, field.Invalid(end, *p.EndPort, "may not be specified when `port` is not specified"))
			}
		case p.Port.Type == intstr.Int:
			errs = append(errs, rules.Messages(p.Port.IntVal, at.Child("port"), validation.IsValidPortNum(int(p.Port.IntVal)))...)
			if p.EndPort != nil {
				if *p.EndPort < p.Port.IntVal {
					errs = append(errs, field.Invalid(end, *p.EndPort, "must be greater than or equal to `port`"))
				}
				errs = append(errs, rules.Messages(*p.EndPort, end, validation.IsValidPortNum(int(*p.EndPort)))...)
			}
		default:
			if p.EndPort != nil {
				errs = append(errs, field.Invalid(end, *p.EndPort, "may not be specified when `port` is non-numeric"))
			}
			errs = append(errs, rules.Messages(p.Port.StrVal, at.Child("port"), validation.IsValidPortName(p.Port.StrVal))...)
		}
	}
	return errs
}

func validatePeers(peers []networkingv1.NetworkPolicyPeer, path *field.Path) (errs field.ErrorList) {
	for i := range peers {
		p, at := &peers[i], path.Index(i)
		errs = append(errs, rules.Selector(p.PodSelector, at.Child("podSelector"))...)
		errs = append(errs, rules.Selector(p.NamespaceSelector, at.Child("namespaceSelector"))...)
		if p.IPBlock != nil {
			errs = append(errs, validateIPBlock(p.IPBlock, at.Child("ipBlock"))...)
		}
		selects := p.PodSelector != nil || p.NamespaceSelector != nil
		switch {
		case !selects && p.IPBlock == nil:
			errs = append(errs, field.Required(at, "must specify a peer"))
		case selects && p.IPBlock != nil:
			errs = append(errs, field.Forbidden(at, "may not specify both ipBlock and another peer"))
		}
	}
	return errs
}

func validateIPBlock(b *networkingv1.IPBlock, path *field.Path) (errs field.ErrorList) {
	if b.CIDR == "" {
		return field.ErrorList{field.Required(path.Child("cidr"), "")}
	}
	if errs = validation.IsValidCIDRForLegacyField(path.Child("cidr"), b.CIDR, true, nil); len(errs) > 0 {
		return errs
	}
	whole, err := netip.ParsePrefix(b.CIDR)
	for i, text := range b.Except {
		at := path.Child("except").Index(i)
		bad := validation.IsValidCIDRForLegacyField(at, text, true, nil)
		errs = append(errs, bad...)
		if len(bad) > 0 || err != nil {
			continue
		}
		if part, err := netip.ParsePrefix(text); err == nil && (!whole.Contains(part.Addr()) || part.Bits() <= whole.Bits()) {
			errs = append(errs, field.Invalid(at, text, "must be a strict subset of `cidr`"))
		}
	}
	return errs
}
