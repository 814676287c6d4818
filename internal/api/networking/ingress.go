package networking

import (
	"fmt"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/validation/path"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	netutils "k8s.io/utils/net"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

const (
	annotationIngressClass = "kubernetes.io/ingress.class"
	maxControllerName      = 250
	shownHosts             = 3
)

func validateSegment(name string, at *field.Path) field.ErrorList {
	if name == "" {
		return field.ErrorList{field.Required(at, "")}
	}
	return rules.Messages(name, at, path.IsValidPathSegmentName(name))
}

func ingressClasses(gv schema.GroupVersion) *api.Resource {
	r := rules.Cluster[networkingv1.IngressClass, networkingv1.IngressClassList](gv, "ingressclasses")
	r.UnconditionalUpdate = true
	r.Columns = []metav1.TableColumnDefinition{
		rules.Name(),
		rules.Text("Controller", "Controller that is responsible for handling this class"),
		rules.Text("Parameters", "A reference to a resource with additional parameters"),
		rules.Age(),
	}
	return api.Kind[*networkingv1.IngressClass]{
		Resource: r,
		Default: func(c *networkingv1.IngressClass) {
			if p := c.Spec.Parameters; p != nil {
				rules.Refer(&p.Scope, networkingv1.IngressClassParametersReferenceScopeCluster)
			}
		},
		Validate: validateIngressClass,
		ValidateUpdate: func(c, old *networkingv1.IngressClass) field.ErrorList {
			return append(validateIngressClass(c), rules.Immutable(c.Spec.Controller, old.Spec.Controller, field.NewPath("spec", "controller"))...)
		},
		SpecChanged: func(c, old *networkingv1.IngressClass) bool { return !rules.Same(c.Spec, old.Spec) },
		Row: func(c *networkingv1.IngressClass) []any {
			parameters := rules.None
			if p := c.Spec.Parameters; p != nil {
				parameters = p.Kind
				if group := rules.Or(p.APIGroup, ""); group != "" {
					parameters += "." + group
				}
				parameters += "/" + p.Name
			}
			return []any{c.Name, c.Spec.Controller, parameters, rules.Created(c)}
		},
	}.Erase()
}

func validateIngressClass(c *networkingv1.IngressClass) (errs field.ErrorList) {
	spec := field.NewPath("spec")
	if len(c.Spec.Controller) > maxControllerName {
		errs = append(errs, field.TooLong(spec.Child("controller"), c.Spec.Controller, maxControllerName))
	}
	errs = append(errs, validation.IsDomainPrefixedPath(spec.Child("controller"), c.Spec.Controller)...)
	p, at := c.Spec.Parameters, spec.Child("parameters")
	if p == nil {
		return errs
	}
	errs = append(errs, validateReference(rules.Or(p.APIGroup, ""), p.Kind, p.Name, at)...)
	namespace := rules.Or(p.Namespace, "")
	switch scope := rules.Or(p.Scope, ""); scope {
	case "":
		errs = append(errs, field.Required(at.Child("scope"), ""))
	case networkingv1.IngressClassParametersReferenceScopeNamespace:
		if namespace == "" {
			errs = append(errs, field.Required(at.Child("namespace"), "`parameters.scope` is set to 'Namespace'"))
		} else {
			errs = append(errs, rules.Label(namespace, at.Child("namespace"))...)
		}
	case networkingv1.IngressClassParametersReferenceScopeCluster:
		if p.Namespace != nil {
			errs = append(errs, field.Forbidden(at.Child("namespace"), "`parameters.scope` is set to 'Cluster'"))
		}
	default:
		errs = append(errs, field.NotSupported(at.Child("scope"), scope,
			[]string{networkingv1.IngressClassParametersReferenceScopeCluster, networkingv1.IngressClassParametersReferenceScopeNamespace}))
	}
	return errs
}

func validateReference(group, kind, name string, at *field.Path) (errs field.ErrorList) {
	if group != "" {
		errs = append(errs, rules.Subdomain(group, at.Child("apiGroup"))...)
	}
	errs = append(errs, validateSegment(kind, at.Child("kind"))...)
	return append(errs, validateSegment(name, at.Child("name"))...)
}

func ingresses(gv schema.GroupVersion) *api.Resource {
	r := rules.Namespaced[networkingv1.Ingress, networkingv1.IngressList](gv, "ingresses", "ing")
	r.UnconditionalUpdate = true
	r.Columns = []metav1.TableColumnDefinition{
		rules.Name(),
		rules.Text("Class", "The name of the IngressClass resource that should be used for additional configuration"),
		rules.Text("Hosts", "Hosts that incoming requests are matched against before the ingress rule"),
		rules.Text("Address", "Address is a list containing ingress points for the load-balancer"),
		rules.Text("Ports", "Ports of TLS configurations that open"),
		rules.Age(),
	}
	return api.Kind[*networkingv1.Ingress]{
		Resource: r,
		Validate: validateIngress,
		ValidateUpdate: func(i, old *networkingv1.Ingress) field.ErrorList {
			errs := validateIngress(i)
			if old.Annotations[annotationIngressClass] != "" && old.Spec.IngressClassName != nil {
				return drop(errs, classConflict)
			}
			return errs
		},
		CopyStatus:           func(dst, src *networkingv1.Ingress) { dst.Status = *src.Status.DeepCopy() },
		ValidateStatusUpdate: func(i, _ *networkingv1.Ingress) field.ErrorList { return validateLoadBalancer(i) },
		SpecChanged:          func(i, old *networkingv1.Ingress) bool { return !rules.Same(i.Spec, old.Spec) },
		Warnings: func(i *networkingv1.Ingress) []string {
			if i.Annotations[annotationIngressClass] != "" {
				return []string{`annotation "` + annotationIngressClass + `" is deprecated, please use 'spec.ingressClassName' instead`}
			}
			return nil
		},
		Row: func(i *networkingv1.Ingress) []any {
			class, ports := rules.None, "80"
			if i.Spec.IngressClassName != nil {
				class = *i.Spec.IngressClassName
			}
			if len(i.Spec.TLS) > 0 {
				ports = "80, 443"
			}
			return []any{i.Name, class, hosts(i.Spec.Rules), points(i), ports, rules.Created(i)}
		},
	}.Erase()
}

func hosts(list []networkingv1.IngressRule) string {
	var names []string
	for _, rule := range list {
		if rule.Host != "" {
			names = append(names, rule.Host)
		}
	}
	if len(names) == 0 {
		return "*"
	}
	return rules.First(names, shownHosts)
}

func points(i *networkingv1.Ingress) string {
	var list []string
	for _, p := range i.Status.LoadBalancer.Ingress {
		if p.IP != "" {
			list = append(list, p.IP)
		} else if p.Hostname != "" {
			list = append(list, p.Hostname)
		}
	}
	return strings.Join(list, ",")
}

const classConflict = "can not be set when the class field is also set"

// drop leaves out the errors with a detail that updates may carry on with.
func drop(errs field.ErrorList, detail string) (kept field.ErrorList) {
	for _, e := range errs {
		if e.Detail != detail {
			kept = append(kept, e)
		}
	}
	return kept
}

func validateIngress(i *networkingv1.Ingress) (errs field.ErrorList) {
	spec := field.NewPath("spec")
	if class := i.Annotations[annotationIngressClass]; class != "" && i.Spec.IngressClassName != nil {
		errs = append(errs, field.Invalid(field.NewPath("annotations").Child(annotationIngressClass), class, classConflict))
	}
	if len(i.Spec.Rules) == 0 && i.Spec.DefaultBackend == nil {
		errs = append(errs, field.Invalid(spec, i.Spec.Rules, "either `defaultBackend` or `rules` must be specified"))
	}
	if b := i.Spec.DefaultBackend; b != nil {
		errs = append(errs, validateBackend(b, spec.Child("defaultBackend"))...)
	}
	for n := range i.Spec.Rules {
		errs = append(errs, validateRule(&i.Spec.Rules[n], spec.Child("rules").Index(n))...)
	}
	for n, tls := range i.Spec.TLS {
		at := spec.Child("tls").Index(n)
		for h, host := range tls.Hosts {
			errs = append(errs, validateHost(host, at.Child("hosts").Index(h))...)
		}
		if tls.SecretName != "" {
			errs = append(errs, rules.Subdomain(tls.SecretName, at.Child("secretName"))...)
		}
	}
	if class := i.Spec.IngressClassName; class != nil {
		errs = append(errs, rules.Subdomain(*class, spec.Child("ingressClassName"))...)
	}
	return errs
}

func validateHost(host string, at *field.Path) field.ErrorList {
	if strings.Contains(host, "*") {
		return rules.Messages(host, at, validation.IsWildcardDNS1123Subdomain(host))
	}
	return rules.Subdomain(host, at)
}

func validateRule(r *networkingv1.IngressRule, at *field.Path) (errs field.ErrorList) {
	if r.Host != "" {
		if netutils.ParseIPSloppy(r.Host) != nil {
			errs = append(errs, field.Invalid(at.Child("host"), r.Host, "must be a DNS name, not an IP address"))
		}
		errs = append(errs, validateHost(r.Host, at.Child("host"))...)
	}
	if r.HTTP == nil {
		return errs
	}
	paths := at.Child("http", "paths")
	if len(r.HTTP.Paths) == 0 {
		errs = append(errs, field.Required(paths, ""))
	}
	for i := range r.HTTP.Paths {
		errs = append(errs, validateHTTPPath(&r.HTTP.Paths[i], paths.Index(i))...)
	}
	return errs
}

func validateHTTPPath(p *networkingv1.HTTPIngressPath, at *field.Path) (errs field.ErrorList) {
	if p.PathType == nil {
		return field.ErrorList{field.Required(at.Child("pathType"), "pathType must be specified")}
	}
	where := at.Child("path")
	switch *p.PathType {
	case networkingv1.PathTypeExact, networkingv1.PathTypePrefix:
		if !strings.HasPrefix(p.Path, "/") {
			errs = append(errs, field.Invalid(where, p.Path, "must be an absolute path"))
		}
		for _, bad := range []string{"//", "/./", "/../", "%2f", "%2F"} {
			if strings.Contains(p.Path, bad) {
				errs = append(errs, field.Invalid(where, p.Path, fmt.Sprintf("must not contain '%s'", bad)))
			}
		}
		for _, bad := range []string{"/..", "/."} {
			if strings.HasSuffix(p.Path, bad) {
				errs = append(errs, field.Invalid(where, p.Path, fmt.Sprintf("cannot end with '%s'", bad)))
			}
		}
	case networkingv1.PathTypeImplementationSpecific:
		if p.Path != "" && !strings.HasPrefix(p.Path, "/") {
			errs = append(errs, field.Invalid(where, p.Path, "must be an absolute path"))
		}
	default:
		errs = append(errs, field.NotSupported(at.Child("pathType"), *p.PathType,
			[]networkingv1.PathType{networkingv1.PathTypeExact, networkingv1.PathTypeImplementationSpecific, networkingv1.PathTypePrefix}))
	}
	return append(errs, validateBackend(&p.Backend, at.Child("backend"))...)
}

func validateBackend(b *networkingv1.IngressBackend, at *field.Path) (errs field.ErrorList) {
	switch {
	case b.Service != nil && b.Resource != nil:
		return field.ErrorList{field.Invalid(at, "", "cannot set both resource and service backends")}
	case b.Resource != nil:
		return validateReference(rules.Or(b.Resource.APIGroup, ""), b.Resource.Kind, b.Resource.Name, at.Child("resource"))
	case b.Service == nil:
		return field.ErrorList{field.Required(at, "must specify a service or a resource backend")}
	}
	s, where := b.Service, at.Child("service")
	if s.Name == "" {
		errs = append(errs, field.Required(where.Child("name"), ""))
	} else {
		errs = append(errs, rules.Messages(s.Name, where.Child("name"), validation.IsDNS1035Label(s.Name))...)
	}
	port := where.Child("port")
	switch {
	case s.Port.Name != "" && s.Port.Number != 0:
		errs = append(errs, field.Invalid(port, "", "cannot set both port name & port number"))
	case s.Port.Name != "":
		errs = append(errs, rules.Messages(s.Port.Name, port.Child("name"), validation.IsValidPortName(s.Port.Name))...)
	case s.Port.Number != 0:
		errs = append(errs, rules.Messages(s.Port.Number, port.Child("number"), validation.IsValidPortNum(int(s.Port.Number)))...)
	default:
		errs = append(errs, field.Required(port, "port name or number is required"))
	}
	return errs
}

func validateLoadBalancer(i *networkingv1.Ingress) (errs field.ErrorList) {
	list := field.NewPath("status", "loadBalancer", "ingress")
	for n, p := range i.Status.LoadBalancer.Ingress {
		at := list.Index(n)
		if p.IP != "" {
			errs = append(errs, validation.IsValidIPForLegacyField(at.Child("ip"), p.IP, true, nil)...)
		}
		if p.Hostname != "" {
			errs = append(errs, rules.Subdomain(p.Hostname, at.Child("hostname"))...)
			if netutils.ParseIPSloppy(p.Hostname) != nil {
				errs = append(errs, field.Invalid(at.Child("hostname"), p.Hostname, "must be a DNS name, not an IP address"))
			}
		}
		for k, port := range p.Ports {
			where := at.Child("ports").Index(k)
			errs = append(errs, rules.Messages(strconv.Itoa(int(port.Port)), where.Child("port"), validation.IsValidPortNum(int(port.Port)))...)
			errs = append(errs, rules.OneOf(port.Protocol, where.Child("protocol"), "", corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)...)
		}
	}
	return errs
}
