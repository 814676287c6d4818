// Package discovery holds the rules of the API group discovery.k8s.io:
// endpoint slices.
package discovery

import (
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

// The limits of a slice.
const (
	maxAddresses = 100
	maxPorts     = 20000
	maxEndpoints = 1000
	maxZoneHints = 8
	maxNodeHints = 8

	// shown is how many ports and addresses a table cell names.
	shown = 3
)

// Resources returns the resources of the group.
func Resources() []*api.Resource {
	r := rules.Namespaced[discoveryv1.EndpointSlice, discoveryv1.EndpointSliceList](discoveryv1.SchemeGroupVersion, "endpointslices")
	r.UnconditionalUpdate = true
	r.Columns = []metav1.TableColumnDefinition{
		rules.Name(),
		rules.Text("AddressType", "The type of address carried by this EndpointSlice."),
		rules.Text("Ports", "The ports exposed by each endpoint in this slice."),
		rules.Text("Endpoints", "The addresses of the endpoints in this slice."),
		rules.Age(),
	}
	return []*api.Resource{api.Kind[*discoveryv1.EndpointSlice]{
		Resource: r,
		Default: func(s *discoveryv1.EndpointSlice) {
			for i := range s.Ports {
				rules.Refer(&s.Ports[i].Name, "")
				rules.Refer(&s.Ports[i].Protocol, corev1.ProtocolTCP)
			}
		},
		Validate: validateSlice,
		ValidateUpdate: func(s, old *discoveryv1.EndpointSlice) field.ErrorList {
			return append(validateSlice(s), rules.Immutable(s.AddressType, old.AddressType, field.NewPath("addressType"))...)
		},
		// There is no spec: all but the metadata is one, and labels count as well.
		SpecChanged: func(s, old *discoveryv1.EndpointSlice) bool {
			return s.AddressType != old.AddressType || !rules.Same(s.Endpoints, old.Endpoints) || !rules.Same(s.Ports, old.Ports) ||
				!rules.Same(s.Labels, old.Labels)
		},
		Row: func(s *discoveryv1.EndpointSlice) []any {
			return []any{s.Name, string(s.AddressType), ports(s.Ports), addresses(s.Endpoints), rules.Created(s)}
		},
	}.Erase()}
}

func ports(list []discoveryv1.EndpointPort) string {
	if len(list) == 0 {
		return rules.Unset
	}
	var texts []string
	for _, p := range list {
		switch {
		case p.Port != nil:
			texts = append(texts, strconv.Itoa(int(*p.Port)))
		case rules.Or(p.Name, "") != "":
			texts = append(texts, *p.Name)
		default:
			texts = append(texts, "*")
		}
	}
	return rules.First(texts, shown)
}

func addresses(list []discoveryv1.Endpoint) string {
	if len(list) == 0 {
		return rules.Unset
	}
	var texts []string
	for i := range list {
		texts = append(texts, list[i].Addresses...)
	}
	return rules.First(texts, shown)
}

func validateSlice(s *discoveryv1.EndpointSlice) field.ErrorList {
	types := []discoveryv1.AddressType{discoveryv1.AddressTypeFQDN, discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6}
	errs := rules.OneOf(s.AddressType, field.NewPath("addressType"), "", types...)
	errs = append(errs, validateEndpoints(s.Endpoints, s.AddressType, field.NewPath("endpoints"))...)
	return append(errs, validatePorts(s.Ports, field.NewPath("ports"))...)
}

func validateEndpoints(list []discoveryv1.Endpoint, kind discoveryv1.AddressType, path *field.Path) (errs field.ErrorList) {
	if len(list) > maxEndpoints {
		return field.ErrorList{field.TooMany(path, len(list), maxEndpoints)}
	}
	for i := range list {
		e, at := &list[i], path.Index(i)
		switch n := len(e.Addresses); {
		case n == 0:
			errs = append(errs, field.Required(at.Child("addresses"), "must contain at least 1 address"))
		case n > maxAddresses:
			errs = append(errs, field.TooMany(at.Child("addresses"), n, maxAddresses))
		}
		for j, address := range e.Addresses {
			errs = append(errs, validateAddress(address, kind, at.Child("addresses").Index(j))...)
		}
		if e.NodeName != nil {
			errs = append(errs, rules.Messages(*e.NodeName, at.Child("nodeName"), apivalidation.NameIsDNSSubdomain(*e.NodeName, false))...)
		}
		topology := at.Child("deprecatedTopology")
		errs = append(errs, metavalidation.ValidateLabels(e.DeprecatedTopology, topology)...)
		if _, set := e.DeprecatedTopology[corev1.LabelTopologyZone]; set {
			errs = append(errs, field.InternalError(topology.Key(corev1.LabelTopologyZone), errZone{}))
		}
		if e.Hostname != nil {
			errs = append(errs, rules.Messages(*e.Hostname, at.Child("hostname"), apivalidation.NameIsDNSLabel(*e.Hostname, false))...)
		}
		if e.Hints != nil {
			errs = append(errs, validateHints(e.Hints, at.Child("hints"))...)
		}
	}
	return errs
}

// errZone is why a topology may not name the zone.
type errZone struct{}

func (errZone) Error() string { return "reserved key was not removed in conversion" }

func validateAddress(address string, kind discoveryv1.AddressType, path *field.Path) field.ErrorList {
	switch kind {
	case discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6:
		errs := validation.IsValidIPForLegacyField(path, address, true, nil)
		v6 := strings.Contains(address, ":")
		if len(errs) == 0 && v6 != (kind == discoveryv1.AddressTypeIPv6) {
			if v6 {
				return append(errs, field.Invalid(path, address, "must be a valid IPv4 address"))
			}
			return append(errs, field.Invalid(path, address, "must be a valid IPv6 address"))
		}
		return append(errs, specialAddress(address, path)...)
	case discoveryv1.AddressTypeFQDN:
		return validation.IsFullyQualifiedDomainName(path, address)
	}
	return nil
}

func validateHints(h *discoveryv1.EndpointHints, path *field.Path) (errs field.ErrorList) {
	zones, nodes := make([]string, len(h.ForZones)), make([]string, len(h.ForNodes))
	for i := range h.ForZones {
		zones[i] = h.ForZones[i].Name
	}
	for i := range h.ForNodes {
		nodes[i] = h.ForNodes[i].Name
	}
	errs = append(errs, validateNames(zones, maxZoneHints, path.Child("forZones"))...)
	return append(errs, validateNames(nodes, maxNodeHints, path.Child("forNodes"))...)
}

func validateNames(names []string, limit int, path *field.Path) (errs field.ErrorList) {
	if len(names) > limit {
		return field.ErrorList{field.TooMany(path, len(names), limit)}
	}
	for i, name := range names {
		at := path.Index(i).Child("name")
		if slices.Contains(names[:i], name) {
			errs = append(errs, field.Duplicate(at, name))
		}
		errs = append(errs, rules.Messages(name, at, validation.IsDNS1123Subdomain(name))...)
	}
	return errs
}

func validatePorts(list []discoveryv1.EndpointPort, path *field.Path) (errs field.ErrorList) {
	if len(list) > maxPorts {
		return field.ErrorList{field.TooMany(path, len(list), maxPorts)}
	}
	names := make(map[string]bool, len(list))
	for i, p := range list {
		at := path.Index(i)
		name := rules.Or(p.Name, "")
		if name != "" {
			errs = append(errs, rules.Label(name, at.Child("name"))...)
		}
		if names[name] {
			errs = append(errs, field.Duplicate(at.Child("name"), p.Name))
		}
		names[name] = true
		if p.Protocol == nil {
			errs = append(errs, field.Required(at.Child("protocol"), ""))
		} else {
			errs = append(errs, rules.OneOf(*p.Protocol, at.Child("protocol"), "", corev1.ProtocolSCTP, corev1.ProtocolTCP, corev1.ProtocolUDP)...)
		}
		if p.Port != nil {
			errs = append(errs, rules.Messages(*p.Port, at.Child("port"), validation.IsValidPortNum(int(*p.Port)))...)
		}
		if p.AppProtocol != nil {
			errs = append(errs, rules.Messages(*p.AppProtocol, at.Child("appProtocol"), validation.IsQualifiedName(*p.AppProtocol))...)
		}
	}
	return errs
}
