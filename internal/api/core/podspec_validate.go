package core

import (
	"fmt"
	"math"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// specValidator carries what the parts of a pod spec must know of each other.
type specValidator struct {
	spec    *corev1.PodSpec
	path    *field.Path
	volumes map[string]*corev1.Volume
	claims  map[string]bool
	names   map[string]bool // of all containers
}

func (v *specValidator) validate() (errs field.ErrorList) {
	s, p := v.spec, v.path
	v.names = make(map[string]bool, len(s.Containers)+len(s.InitContainers))
	errs = append(errs, v.validateVolumes()...)
	errs = append(errs, v.validateResourceClaims()...)
	errs = append(errs, v.validateContainers()...)
	errs = append(errs, v.validateInitContainers()...)
	errs = append(errs, v.validateEphemeralContainers()...)
	errs = append(errs, v.validatePodResources()...)
	errs = append(errs, oneOf(p.Child("restartPolicy"), s.RestartPolicy, corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever)...)
	errs = append(errs, oneOf(p.Child("dnsPolicy"), s.DNSPolicy, corev1.DNSClusterFirstWithHostNet, corev1.DNSClusterFirst, corev1.DNSDefault, corev1.DNSNone)...)
	errs = append(errs, metav1validation.ValidateLabels(s.NodeSelector, p.Child("nodeSelector"))...)
	errs = append(errs, v.validatePodSecurity()...)
	errs = append(errs, v.validateAffinity()...)
	errs = append(errs, v.validateDNSConfig()...)
	for i, g := range s.ReadinessGates {
		errs = append(errs, qualified(p.Child("readinessGates").Index(i).Child("conditionType"), string(g.ConditionType))...)
	}
	errs = append(errs, v.validateSchedulingGates()...)
	errs = append(errs, validateTopologySpread(s.TopologySpreadConstraints, p.Child("topologySpreadConstraints"))...)
	if s.ServiceAccountName != "" {
		errs = append(errs, invalid(p.Child("serviceAccountName"), s.ServiceAccountName, validation.ValidateServiceAccountName(s.ServiceAccountName, false))...)
	}
	if s.NodeName != "" {
		errs = append(errs, invalid(p.Child("nodeName"), s.NodeName, validation.NameIsDNSSubdomain(s.NodeName, false))...)
	}
	if d := s.ActiveDeadlineSeconds; d != nil && (*d < 1 || *d > math.MaxInt32) {
		errs = append(errs, field.Invalid(p.Child("activeDeadlineSeconds"), *d, utilvalidation.InclusiveRangeError(1, math.MaxInt32)))
	}
	errs = append(errs, v.validateHostnames()...)
	errs = append(errs, validateTolerations(s.Tolerations, p.Child("tolerations"))...)
	errs = append(errs, validateHostAliases(s.HostAliases, p.Child("hostAliases"))...)
	if s.PriorityClassName != "" {
		errs = append(errs, subdomain(p.Child("priorityClassName"), s.PriorityClassName)...)
	}
	if s.RuntimeClassName != nil {
		errs = append(errs, subdomain(p.Child("runtimeClassName"), *s.RuntimeClassName)...)
	}
	if s.PreemptionPolicy != nil {
		errs = append(errs, oneOf(p.Child("preemptionPolicy"), *s.PreemptionPolicy, corev1.PreemptLowerPriority, corev1.PreemptNever)...)
	}
	if s.Overhead != nil {
		errs = append(errs, validateResources(&corev1.ResourceRequirements{Limits: s.Overhead}, p.Child("overhead"), nil)...)
	}
	errs = append(errs, v.validateOS()...)
	return errs
}

func (v *specValidator) validateHostnames() (errs field.ErrorList) {
	s, p := v.spec, v.path
	if s.Hostname != "" {
		errs = append(errs, label(p.Child("hostname"), s.Hostname)...)
	}
	if s.Subdomain != "" {
		errs = append(errs, label(p.Child("subdomain"), s.Subdomain)...)
	}
	override := s.HostnameOverride
	if override == nil {
		return errs
	}
	op := p.Child("hostnameOverride")
	errs = append(errs, subdomain(op, *override)...)
	if len(*override) > 64 {
		errs = append(errs, field.TooLong(op, *override, 64))
	}
	if s.SetHostnameAsFQDN != nil && *s.SetHostnameAsFQDN {
		errs = append(errs, field.Forbidden(op, "may not be specified when setHostnameAsFQDN is true"))
	}
	if s.HostNetwork {
		errs = append(errs, field.Forbidden(op, "may not be specified when hostNetwork is true"))
	}
	return errs
}

// What the DNS libraries of Linux can take.
const (
	maxNameservers   = 3
	maxSearchDomains = 32
	maxSearchChars   = 2048
)

func (v *specValidator) validateDNSConfig() (errs field.ErrorList) {
	s, p, c := v.spec, v.path.Child("dnsConfig"), v.spec.DNSConfig
	if s.DNSPolicy == corev1.DNSNone {
		if c == nil {
			return field.ErrorList{field.Required(p, fmt.Sprintf("must provide `dnsConfig` when `dnsPolicy` is %s", corev1.DNSNone))}
		}
		if len(c.Nameservers) == 0 {
			errs = append(errs, field.Required(p.Child("nameservers"), fmt.Sprintf("must provide at least one DNS nameserver when `dnsPolicy` is %s", corev1.DNSNone)))
		}
	}
	if c == nil {
		return errs
	}
	if len(c.Nameservers) > maxNameservers {
		errs = append(errs, field.Invalid(p.Child("nameservers"), c.Nameservers, fmt.Sprintf("must not have more than %v nameservers", maxNameservers)))
	}
	for i, ns := range c.Nameservers {
		errs = append(errs, utilvalidation.IsValidIPForLegacyField(p.Child("nameservers").Index(i), ns, true, nil)...)
	}
	if len(c.Searches) > maxSearchDomains {
		errs = append(errs, field.Invalid(p.Child("searches"), c.Searches, fmt.Sprintf("must not have more than %v search paths", maxSearchDomains)))
	}
	if len(strings.Join(c.Searches, " ")) > maxSearchChars {
		errs = append(errs, field.Invalid(p.Child("searches"), c.Searches, fmt.Sprintf("must not have more than %v characters (including spaces) in the search list", maxSearchChars)))
	}
	for i, search := range c.Searches {
		if search == "." { // the root alone: no search
			continue
		}
		trimmed := strings.TrimSuffix(search, ".")
		errs = append(errs, invalid(p.Child("searches").Index(i), trimmed, utilvalidation.IsDNS1123SubdomainWithUnderscore(trimmed))...)
	}
	for i, o := range c.Options {
		if o.Name == "" {
			errs = append(errs, field.Required(p.Child("options").Index(i), "must not be empty"))
		}
	}
	return errs
}

func (v *specValidator) validateSchedulingGates() (errs field.ErrorList) {
	seen := map[string]bool{}
	for i, g := range v.spec.SchedulingGates {
		p := v.path.Child("schedulingGates").Index(i)
		errs = append(errs, qualified(p, g.Name)...)
		if seen[g.Name] {
			errs = append(errs, field.Duplicate(p, g.Name))
		}
		seen[g.Name] = true
	}
	return errs
}

func validateHostAliases(list []corev1.HostAlias, p *field.Path) (errs field.ErrorList) {
	for i, a := range list {
		errs = append(errs, utilvalidation.IsValidIPForLegacyField(p.Index(i).Child("ip"), a.IP, true, nil)...)
		for j, n := range a.Hostnames {
			errs = append(errs, subdomain(p.Index(i).Child("hostnames").Index(j), n)...)
		}
	}
	return errs
}

func (v *specValidator) validateResourceClaims() (errs field.ErrorList) {
	v.claims = make(map[string]bool, len(v.spec.ResourceClaims))
	for i, c := range v.spec.ResourceClaims {
		p := v.path.Child("resourceClaims").Index(i)
		switch {
		case c.Name == "":
			errs = append(errs, field.Required(p.Child("name"), ""))
		case v.claims[c.Name]:
			errs = append(errs, field.Duplicate(p.Child("name"), c.Name))
		default:
			errs = append(errs, label(p.Child("name"), c.Name)...)
			v.claims[c.Name] = true
		}
		name, template := c.ResourceClaimName, c.ResourceClaimTemplateName
		switch {
		case name != nil && template != nil:
			errs = append(errs, field.Invalid(p, c, "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified"))
		case name == nil && template == nil:
			errs = append(errs, field.Invalid(p, c, "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`"))
		case name != nil:
			errs = append(errs, subdomain(p.Child("resourceClaimName"), *name)...)
		default:
			errs = append(errs, subdomain(p.Child("resourceClaimTemplateName"), *template)...)
		}
	}
	return errs
}

// validateOS refuses what the operating system that a pod is for does not have.
func (v *specValidator) validateOS() (errs field.ErrorList) {
	s, p := v.spec, v.path
	if s.OS == nil {
		return nil
	}
	if s.OS.Name == "" {
		return field.ErrorList{field.Required(p.Child("os", "name"), "")}
	}
	if errs = among(p.Child("os"), s.OS.Name, corev1.Linux, corev1.Windows); len(errs) > 0 {
		return errs
	}
	if s.OS.Name == corev1.Linux {
		if s.SecurityContext != nil && s.SecurityContext.WindowsOptions != nil {
			errs = append(errs, field.Forbidden(p.Child("securityContext", "windowsOptions"), "windows options cannot be set for a linux pod"))
		}
		v.eachContainer(func(c *corev1.Container, cp *field.Path) {
			if c.SecurityContext != nil && c.SecurityContext.WindowsOptions != nil {
				errs = append(errs, field.Forbidden(cp.Child("securityContext", "windowsOptions"), "windows options cannot be set for a linux pod"))
			}
		})
		return errs
	}
	const detail = "cannot be set for a windows pod"
	forbid := func(set bool, p *field.Path) {
		if set {
			errs = append(errs, field.Forbidden(p, detail))
		}
	}
	forbid(s.HostPID, p.Child("hostPID"))
	forbid(s.HostIPC, p.Child("hostIPC"))
	forbid(s.HostUsers != nil, p.Child("hostUsers"))
	if s.Resources != nil {
		errs = append(errs, field.Forbidden(p.Child("resources"), "may not be set for a windows pod"))
	}
	if sc := s.SecurityContext; sc != nil {
		sp := p.Child("securityContext")
		forbid(sc.AppArmorProfile != nil, sp.Child("appArmorProfile"))
		forbid(sc.SELinuxOptions != nil, sp.Child("seLinuxOptions"))
		forbid(sc.SeccompProfile != nil, sp.Child("seccompProfile"))
		forbid(sc.FSGroup != nil, sp.Child("fsGroup"))
		forbid(sc.FSGroupChangePolicy != nil, sp.Child("fsGroupChangePolicy"))
		forbid(len(sc.Sysctls) > 0, sp.Child("sysctls"))
		forbid(sc.RunAsUser != nil, sp.Child("runAsUser"))
		forbid(sc.RunAsGroup != nil, sp.Child("runAsGroup"))
		forbid(sc.SupplementalGroups != nil, sp.Child("supplementalGroups"))
		forbid(sc.SupplementalGroupsPolicy != nil, sp.Child("supplementalGroupsPolicy"))
		forbid(sc.SELinuxChangePolicy != nil, sp.Child("seLinuxChangePolicy"))
	}
	forbid(s.ShareProcessNamespace != nil, p.Child("shareProcessNamespace"))
	v.eachContainer(func(c *corev1.Container, cp *field.Path) {
		sc, sp := c.SecurityContext, cp.Child("securityContext")
		if sc == nil {
			return
		}
		forbid(sc.AppArmorProfile != nil, sp.Child("appArmorProfile"))
		forbid(sc.SELinuxOptions != nil, sp.Child("seLinuxOptions"))
		forbid(sc.SeccompProfile != nil, sp.Child("seccompProfile"))
		forbid(sc.Capabilities != nil, sp.Child("capabilities"))
		forbid(sc.ReadOnlyRootFilesystem != nil, sp.Child("readOnlyRootFilesystem"))
		forbid(sc.Privileged != nil, sp.Child("privileged"))
		forbid(sc.AllowPrivilegeEscalation != nil, sp.Child("allowPrivilegeEscalation"))
		forbid(sc.ProcMount != nil, sp.Child("procMount"))
		forbid(sc.RunAsUser != nil, sp.Child("runAsUser"))
		forbid(sc.RunAsGroup != nil, sp.Child("runAsGroup"))
	})
	return errs
}

// eachContainer calls do with every container of any sort and its path.
func (v *specValidator) eachContainer(do func(*corev1.Container, *field.Path)) {
	for i := range v.spec.InitContainers {
		do(&v.spec.InitContainers[i], v.path.Child("initContainers").Index(i))
	}
	for i := range v.spec.Containers {
		do(&v.spec.Containers[i], v.path.Child("containers").Index(i))
	}
	for i := range v.spec.EphemeralContainers {
		do((*corev1.Container)(&v.spec.EphemeralContainers[i].EphemeralContainerCommon), v.path.Child("ephemeralContainers").Index(i))
	}
}

const sysctlName = "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$"

// validSysctl accepts segments of lower case that are joined by dots or slashes.
func validSysctl(name string) bool {
	if len(name) > 253 {
		return false
	}
	for segment := range strings.SplitSeq(strings.ReplaceAll(name, "/", "."), ".") {
		if segment == "" || strings.Trim(segment, "-_") != segment {
			return false
		}
		for _, r := range segment {
			if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '_' {
				return false
			}
		}
	}
	return true
}

// validatePodSecurity checks the pod's security context and what it shares with its host.
func (v *specValidator) validatePodSecurity() (errs field.ErrorList) {
	s, sc, p := v.spec, v.spec.SecurityContext, v.path.Child("securityContext")
	if s.HostNetwork {
		for i := range s.Containers {
			for j, port := range s.Containers[i].Ports {
				if port.HostPort != 0 && port.HostPort != port.ContainerPort {
					errs = append(errs, field.Invalid(v.path.Child("containers").Index(i).Child("ports").Index(j).Child("containerPort"), port.ContainerPort, "must match `hostPort` when `hostNetwork` is true"))
				}
			}
		}
	}
	if s.HostPID && s.ShareProcessNamespace != nil && *s.ShareProcessNamespace {
		errs = append(errs, field.Invalid(p.Child("shareProcessNamespace"), true, "ShareProcessNamespace and HostPID cannot both be enabled"))
	}
	if s.HostUsers != nil && !*s.HostUsers {
		for _, f := range []struct {
			name string
			set  bool
		}{{"hostNetwork", s.HostNetwork}, {"hostPID", s.HostPID}, {"hostIPC", s.HostIPC}} {
			if f.set {
				errs = append(errs, field.Forbidden(v.path.Child(f.name), "when `hostUsers` is false"))
			}
		}
	}
	if sc == nil {
		return errs
	}
	errs = append(errs, validateIDs(p, sc.RunAsUser, sc.RunAsGroup)...)
	if sc.FSGroup != nil {
		errs = append(errs, invalid(p.Child("fsGroup"), *sc.FSGroup, utilvalidation.IsValidGroupID(*sc.FSGroup))...)
	}
	for i, gid := range sc.SupplementalGroups {
		errs = append(errs, invalid(p.Child("supplementalGroups").Index(i), gid, utilvalidation.IsValidGroupID(gid))...)
	}
	names := map[string]bool{}
	for i, sysctl := range sc.Sysctls {
		np := p.Child("sysctls").Index(i).Child("name")
		switch {
		case sysctl.Name == "":
			errs = append(errs, field.Required(np, ""))
		case !validSysctl(sysctl.Name):
			errs = append(errs, field.Invalid(np, sysctl.Name, sysctlName))
		case names[sysctl.Name]:
			errs = append(errs, field.Duplicate(np, sysctl.Name))
		case s.HostNetwork && strings.HasPrefix(strings.ReplaceAll(sysctl.Name, "/", "."), "net."):
			errs = append(errs, field.Invalid(np, sysctl.Name, "may not be specified when 'hostNetwork' is true"))
		case s.HostIPC && isIPCSysctl(sysctl.Name):
			errs = append(errs, field.Invalid(np, sysctl.Name, "may not be specified when 'hostIPC' is true"))
		}
		names[sysctl.Name] = true
	}
	errs = append(errs, amongPointer(p.Child("fsGroupChangePolicy"), sc.FSGroupChangePolicy, corev1.FSGroupChangeAlways, corev1.FSGroupChangeOnRootMismatch)...)
	errs = append(errs, amongPointer(p.Child("supplementalGroupsPolicy"), sc.SupplementalGroupsPolicy, corev1.SupplementalGroupsPolicyMerge, corev1.SupplementalGroupsPolicyStrict)...)
	errs = append(errs, amongPointer(p.Child("seLinuxChangePolicy"), sc.SELinuxChangePolicy, corev1.SELinuxChangePolicyMountOption, corev1.SELinuxChangePolicyRecursive)...)
	errs = append(errs, validateSeccomp(sc.SeccompProfile, p.Child("seccompProfile"))...)
	errs = append(errs, validateAppArmor(sc.AppArmorProfile, p.Child("appArmorProfile"))...)
	return errs
}

func isIPCSysctl(name string) bool {
	name = strings.ReplaceAll(name, "/", ".")
	return strings.HasPrefix(name, "kernel.shm") || strings.HasPrefix(name, "kernel.msg") || name == "kernel.sem" || strings.HasPrefix(name, "fs.mqueue.")
}

func validateIDs(p *field.Path, uid, gid *int64) (errs field.ErrorList) {
	if uid != nil {
		errs = append(errs, invalid(p.Child("runAsUser"), *uid, utilvalidation.IsValidUserID(*uid))...)
	}
	if gid != nil {
		errs = append(errs, invalid(p.Child("runAsGroup"), *gid, utilvalidation.IsValidGroupID(*gid))...)
	}
	return errs
}

func validateSeccomp(s *corev1.SeccompProfile, p *field.Path) field.ErrorList {
	if s == nil {
		return nil
	}
	lp := p.Child("localhostProfile")
	switch s.Type {
	case corev1.SeccompProfileTypeLocalhost:
		if s.LocalhostProfile == nil {
			return field.ErrorList{field.Required(lp, "must be set when seccomp type is Localhost")}
		}
		return descending(lp, *s.LocalhostProfile)
	}
	errs := field.ErrorList{field.Required(p.Child("type"), "type is required when seccompProfile is set")}
	if s.Type != "" {
		errs = among(p.Child("type"), s.Type, corev1.SeccompProfileTypeLocalhost, corev1.SeccompProfileTypeRuntimeDefault, corev1.SeccompProfileTypeUnconfined)
	}
	if s.LocalhostProfile != nil {
		errs = append(errs, field.Invalid(lp, *s.LocalhostProfile, "can only be set when seccomp type is Localhost"))
	}
	return errs
}

func validateAppArmor(s *corev1.AppArmorProfile, p *field.Path) field.ErrorList {
	if s == nil {
		return nil
	}
	lp := p.Child("localhostProfile")
	switch s.Type {
	case corev1.AppArmorProfileTypeLocalhost:
		switch profile := s.LocalhostProfile; {
		case profile == nil:
			return field.ErrorList{field.Required(lp, "must be set when AppArmor type is Localhost")}
		case strings.TrimSpace(*profile) != *profile:
			return field.ErrorList{field.Invalid(lp, *profile, "must not be padded with whitespace")}
		case *profile == "":
			return field.ErrorList{field.Required(lp, "must be set when AppArmor type is Localhost")}
		case len(*profile) > 4095: // PATH_MAX of Linux
			return field.ErrorList{field.TooLong(lp, *profile, 4095)}
		}
		return nil
	case "":
		return field.ErrorList{field.Required(p.Child("type"), "type is required when appArmorProfile is set")}
	}
	errs := among(p.Child("type"), s.Type, corev1.AppArmorProfileTypeLocalhost, corev1.AppArmorProfileTypeRuntimeDefault, corev1.AppArmorProfileTypeUnconfined)
	if s.LocalhostProfile != nil {
		errs = append(errs, field.Invalid(lp, *s.LocalhostProfile, "can only be set when AppArmor type is Localhost"))
	}
	return errs
}

func (v *specValidator) validateSecurityContext(sc *corev1.SecurityContext, p *field.Path) (errs field.ErrorList) {
	if sc == nil {
		return nil
	}
	errs = append(errs, validateIDs(p, sc.RunAsUser, sc.RunAsGroup)...)
	if sc.ProcMount != nil {
		errs = append(errs, among(p.Child("procMount"), *sc.ProcMount, corev1.DefaultProcMount, corev1.UnmaskedProcMount)...)
		if *sc.ProcMount == corev1.UnmaskedProcMount && (v.spec.HostUsers == nil || *v.spec.HostUsers) {
			errs = append(errs, field.Invalid(p.Child("procMount"), *sc.ProcMount, "`hostUsers` must be false to use `Unmasked`"))
		}
	}
	errs = append(errs, validateSeccomp(sc.SeccompProfile, p.Child("seccompProfile"))...)
	errs = append(errs, validateAppArmor(sc.AppArmorProfile, p.Child("appArmorProfile"))...)
	if sc.AllowPrivilegeEscalation != nil && !*sc.AllowPrivilegeEscalation {
		if sc.Privileged != nil && *sc.Privileged {
			errs = append(errs, field.Invalid(p, sc, "cannot set `allowPrivilegeEscalation` to false and `privileged` to true"))
		}
		if sc.Capabilities != nil && slices.Contains(sc.Capabilities.Add, "CAP_SYS_ADMIN") {
			errs = append(errs, field.Invalid(p, sc, "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN"))
		}
	}
	return errs
}

func absolute(p *field.Path, v string) field.ErrorList {
	if !path.IsAbs(v) {
		return field.ErrorList{field.Invalid(p, v, "must be an absolute path")}
	}
	return nil
}
