// Package networking holds the rules of the API group networking.k8s.io:
// network policies, ingresses and their classes, and the addresses of services.
package networking

import (
	"net/netip"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

// Resources returns the resources of the group.
func Resources() []*api.Resource {
	gv := networkingv1.SchemeGroupVersion
	return []*api.Resource{ingressClasses(gv), ingresses(gv), ipAddresses(gv), networkPolicies(gv), serviceCIDRs(gv)}
}

func ipAddresses(gv schema.GroupVersion) *api.Resource {
	r := rules.Cluster[networkingv1.IPAddress, networkingv1.IPAddressList](gv, "ipaddresses", "ip")
	r.UnconditionalUpdate = true
	r.Columns = []metav1.TableColumnDefinition{
		rules.Name(), rules.Text("ParentRef", "The object that the address belongs to."), rules.Age(),
	}
	return api.Kind[*networkingv1.IPAddress]{
		Resource: r,
		ValidateName: func(name string, _ bool) []string {
			if ip, err := netip.ParseAddr(name); err != nil || ip.String() != name || ip.Zone() != "" {
				return []string{"must be a valid IP address in canonical form"}
			}
			return nil
		},
		Validate: validateAddress,
		ValidateUpdate: func(a, old *networkingv1.IPAddress) field.ErrorList {
			return append(validateAddress(a), rules.Immutable(a.Spec.ParentRef, old.Spec.ParentRef, field.NewPath("spec", "parentRef"))...)
		},
		Row: func(a *networkingv1.IPAddress) []any {
			return []any{a.Name, parent(a.Spec.ParentRef), rules.Created(a)}
		},
	}.Erase()
}

func parent(ref *networkingv1.ParentReference) string {
	if ref == nil {
		return rules.None
	}
	parts := make([]string, 0, 3)
	for _, part := range []string{schema.GroupResource{Group: ref.Group, Resource: ref.Resource}.String(), ref.Namespace, ref.Name} {
		if part != "" {
			parts = append(parts, part)
		}
	}
	return strings.Join(parts, "/")
}

func validateAddress(a *networkingv1.IPAddress) (errs field.ErrorList) {
	path := field.NewPath("spec", "parentRef")
	ref := a.Spec.ParentRef
	if ref == nil {
		return field.ErrorList{field.Required(path, "")}
	}
	if ref.Group != "" {
		errs = append(errs, rules.Subdomain(ref.Group, path.Child("group"))...)
	}
	errs = append(errs, validateSegment(ref.Resource, path.Child("resource"))...)
	errs = append(errs, validateSegment(ref.Name, path.Child("name"))...)
	if ref.Namespace != "" {
		errs = append(errs, rules.Label(ref.Namespace, path.Child("namespace"))...)
	}
	return errs
}

func serviceCIDRs(gv schema.GroupVersion) *api.Resource {
	r := rules.Cluster[networkingv1.ServiceCIDR, networkingv1.ServiceCIDRList](gv, "servicecidrs")
	r.UnconditionalUpdate = true
	r.Columns = []metav1.TableColumnDefinition{
		rules.Name(), rules.Text("CIDRs", "The ranges of addresses, one of each IP family."), rules.Age(),
	}
	return api.Kind[*networkingv1.ServiceCIDR]{
		Resource:   r,
		Validate:   validateServiceCIDR,
		CopyStatus: func(dst, src *networkingv1.ServiceCIDR) { dst.Status = *src.Status.DeepCopy() },
		ValidateUpdate: func(c, old *networkingv1.ServiceCIDR) field.ErrorList {
			errs := validateServiceCIDR(c)
			path := field.NewPath("spec", "cidrs")
			// One family may become two; what is there stays, because services have addresses of it.
			for i, cidr := range old.Spec.CIDRs {
				if i >= len(c.Spec.CIDRs) {
					errs = append(errs, field.Invalid(path.Index(i), "", "CIDRs may not be removed"))
				} else if c.Spec.CIDRs[i] != cidr {
					errs = append(errs, field.Invalid(path.Index(i), c.Spec.CIDRs[i], "field is immutable"))
				}
			}
			return errs
		},
		ValidateStatusUpdate: func(c, _ *networkingv1.ServiceCIDR) field.ErrorList {
			return rules.Conditions(c.Status.Conditions, field.NewPath("status", "conditions"))
		},
		Row: func(c *networkingv1.ServiceCIDR) []any {
			return []any{c.Name, strings.Join(c.Spec.CIDRs, ","), rules.Created(c)}
		},
	}.Erase()
}

func validateServiceCIDR(c *networkingv1.ServiceCIDR) (errs field.ErrorList) {
	path := field.NewPath("spec", "cidrs")
	list := c.Spec.CIDRs
	switch {
	case len(list) == 0:
		return field.ErrorList{field.Required(path, "at least one CIDR required")}
	case len(list) > 2:
		return field.ErrorList{field.Invalid(path, c.Spec, "may only hold up to 2 values")}
	}
	families := map[bool]bool{}
	for i, cidr := range list {
		bad := validation.IsValidCIDR(path.Index(i), cidr)
		errs = append(errs, bad...)
		if len(bad) == 0 {
			families[strings.Contains(cidr, ":")] = true
		}
	}
	if len(errs) == 0 && len(families) != len(list) {
		errs = append(errs, field.Invalid(path, c.Spec, "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/96"))
	}
	return errs
}
