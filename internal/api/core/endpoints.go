package core

import (
	"net"
	"net/netip"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

// shownEndpoints is how many endpoints a table shows of an object.
const shownEndpoints = 3

func endpoints() *api.Resource {
	k := api.Kind[*corev1.Endpoints]{Resource: rules.Namespaced[corev1.Endpoints, corev1.EndpointsList](gv, "endpoints", "ep")}
	k.Resource.CreateOnUpdate, k.Resource.UnconditionalUpdate = true, true
	k.Default = func(o *corev1.Endpoints) {
		for i := range o.Subsets {
			for j := range o.Subsets[i].Ports {
				zero(&o.Subsets[i].Ports[j].Protocol, corev1.ProtocolTCP)
			}
		}
	}
	k.Validate = validateEndpoints
	k.ValidateUpdate = func(o, old *corev1.Endpoints) field.ErrorList {
		errs := validateEndpoints(o)
		// Endpoints of old, when rules were laxer, may stay.
		if len(errs) > 0 && apiequality.Semantic.DeepEqual(o.Subsets, old.Subsets) {
			return nil
		}
		return errs
	}
	k.Warnings = endpointsWarnings
	k.Resource.Columns = []metav1.TableColumnDefinition{rules.Name(), rules.Text("Endpoints", corev1.Endpoints{}.SwaggerDoc()["subsets"]), rules.Age()}
	k.Row = func(o *corev1.Endpoints) []any { return []any{o.Name, endpointsText(o), rules.Created(o)} }
	return k.Erase()
}

// endpointsWarnings tells of the successor of Endpoints, and of addresses in unusual form.
func endpointsWarnings(o *corev1.Endpoints) []string {
	warnings := []string{"v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"}
	for i := range o.Subsets {
		p := field.NewPath("subsets").Index(i)
		for j, a := range o.Subsets[i].Addresses {
			warnings = append(warnings, utilvalidation.GetWarningsForIP(p.Child("addresses").Index(j).Child("ip"), a.IP)...)
		}
		for j, a := range o.Subsets[i].NotReadyAddresses {
			warnings = append(warnings, utilvalidation.GetWarningsForIP(p.Child("notReadyAddresses").Index(j).Child("ip"), a.IP)...)
		}
	}
	return warnings
}

// endpointsText shows the first addresses with their ports, and how many more there are.
func endpointsText(o *corev1.Endpoints) string {
	if len(o.Subsets) == 0 {
		return rules.None
	}
	var list []string
	for i := range o.Subsets {
		s := &o.Subsets[i]
		if len(s.Ports) == 0 { // those of a headless Service without ports
			for _, a := range s.Addresses {
				list = append(list, a.IP)
			}
		}
		for _, p := range s.Ports {
			for _, a := range s.Addresses {
				list = append(list, net.JoinHostPort(a.IP, strconv.Itoa(int(p.Port))))
			}
		}
	}
	if len(list) == 0 { // none is ready
		return ""
	}
	return rules.First(list, shownEndpoints)
}

func validateEndpoints(o *corev1.Endpoints) (errs field.ErrorList) {
	for i := range o.Subsets {
		s, p := &o.Subsets[i], field.NewPath("subsets").Index(i)
		if len(s.Addresses) == 0 && len(s.NotReadyAddresses) == 0 {
			errs = append(errs, field.Required(p, "must specify `addresses` or `notReadyAddresses`"))
		}
		for j := range s.Addresses {
			errs = append(errs, validateEndpointAddress(&s.Addresses[j], p.Child("addresses").Index(j))...)
		}
		for j := range s.NotReadyAddresses {
			errs = append(errs, validateEndpointAddress(&s.NotReadyAddresses[j], p.Child("notReadyAddresses").Index(j))...)
		}
		for j := range s.Ports {
			errs = append(errs, validateEndpointPort(&s.Ports[j], len(s.Ports) > 1, p.Child("ports").Index(j))...)
		}
	}
	return errs
}

func validateEndpointAddress(a *corev1.EndpointAddress, p *field.Path) (errs field.ErrorList) {
	errs = utilvalidation.IsValidIPForLegacyField(p.Child("ip"), a.IP, true, nil)
	if a.Hostname != "" {
		errs = append(errs, label(p.Child("hostname"), a.Hostname)...)
	}
	if a.NodeName != nil {
		errs = append(errs, invalid(p.Child("nodeName"), *a.NodeName, validation.NameIsDNSSubdomain(*a.NodeName, false))...)
	}
	return append(errs, reachable(a.IP, p.Child("ip"))...)
}

// reachable refuses addresses that mean something else on every node.
func reachable(ip string, p *field.Path) (errs field.ErrorList) {
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		// Its form was checked before, unless it is old: leading zeros are no address here.
		if len(utilvalidation.IsValidIPForLegacyField(p, ip, false, nil)) == 0 {
			return nil
		}
		return field.ErrorList{field.Invalid(p, ip, "must be a valid IP address")}
	}
	addr = addr.Unmap()
	if addr.IsUnspecified() {
		errs = append(errs, field.Invalid(p, ip, "may not be unspecified ("+ip+")"))
	}
	if addr.IsLoopback() {
		errs = append(errs, field.Invalid(p, ip, "may not be in the loopback range (127.0.0.0/8, ::1/128)"))
	}
	if addr.IsLinkLocalUnicast() {
		errs = append(errs, field.Invalid(p, ip, "may not be in the link-local range (169.254.0.0/16, fe80::/10)"))
	}
	if addr.IsLinkLocalMulticast() {
		errs = append(errs, field.Invalid(p, ip, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"))
	}
	return errs
}

func validateEndpointPort(ep *corev1.EndpointPort, named bool, p *field.Path) (errs field.ErrorList) {
	if ep.Name != "" {
		errs = append(errs, label(p.Child("name"), ep.Name)...)
	} else if named {
		errs = append(errs, field.Required(p.Child("name"), ""))
	}
	errs = append(errs, port(p.Child("port"), ep.Port)...)
	errs = append(errs, oneOf(p.Child("protocol"), ep.Protocol, corev1.ProtocolSCTP, corev1.ProtocolTCP, corev1.ProtocolUDP)...)
	if ep.AppProtocol != nil {
		errs = append(errs, qualified(p.Child("appProtocol"), *ep.AppProtocol)...)
	}
	return errs
}
