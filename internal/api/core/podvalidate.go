package core

import (
	"fmt"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func invalid(p *field.Path, v any, messages []string) (errs field.ErrorList) {
	for _, m := range messages {
		errs = append(errs, field.Invalid(p, v, m))
	}
	return errs
}

func dataKey(p *field.Path, key string) field.ErrorList {
	return invalid(p, key, utilvalidation.IsConfigMapKey(key))
}

func oneOf[T ~string](p *field.Path, v T, allowed ...T) field.ErrorList {
	if slices.Contains(allowed, v) {
		return nil
	}
	if v == "" {
		return field.ErrorList{field.Required(p, "")}
	}
	return field.ErrorList{field.NotSupported(p, v, allowed)}
}

// ValidatePodTemplateSpec checks the pod template of a workload.
func ValidatePodTemplateSpec(t *corev1.PodTemplateSpec, p *field.Path) field.ErrorList {
	errs := metav1validation.ValidateLabels(t.Labels, p.Child("labels"))
	errs = append(errs, validation.ValidateAnnotations(t.Annotations, p.Child("annotations"))...)
	errs = append(errs, ValidatePodSpec(&t.Spec, p.Child("spec"))...)
	if len(t.Spec.EphemeralContainers) > 0 {
		errs = append(errs, field.Forbidden(p.Child("spec", "ephemeralContainers"), "ephemeral containers not allowed in pod template"))
	}
	return errs
}

// ValidatePodSpec checks a defaulted pod spec.
func ValidatePodSpec(s *corev1.PodSpec, p *field.Path) (errs field.ErrorList) {
	volumes := map[string]*corev1.Volume{}
	for i := range s.Volumes {
		errs = append(errs, validateVolume(&s.Volumes[i], p.Child("volumes").Index(i), volumes)...)
	}
	names := map[string]bool{}
	if len(s.Containers) == 0 {
		errs = append(errs, field.Required(p.Child("containers"), ""))
	}
	hostPorts := map[string]bool{}
	for i := range s.Containers {
		cp := p.Child("containers").Index(i)
		errs = append(errs, validateContainer(&s.Containers[i], cp, names, volumes, hostPorts, s)...)
		if s.Containers[i].RestartPolicy != nil && len(s.Containers[i].RestartPolicyRules) == 0 && *s.Containers[i].RestartPolicy == "" {
			errs = append(errs, field.Required(cp.Child("restartPolicy"), ""))
		}
	}
	for i := range s.InitContainers {
		c, cp := &s.InitContainers[i], p.Child("initContainers").Index(i)
		errs = append(errs, validateContainer(c, cp, names, volumes, hostPorts, s)...)
		sidecar := c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
		if !sidecar {
			for field_, set := range map[string]bool{"lifecycle": c.Lifecycle != nil, "livenessProbe": c.LivenessProbe != nil, "readinessProbe": c.ReadinessProbe != nil, "startupProbe": c.StartupProbe != nil} {
				if set {
					errs = append(errs, field.Forbidden(cp.Child(field_), "may not be set for init containers without restartPolicy=Always"))
				}
			}
		}
	}
	for i := range s.EphemeralContainers {
		c := corev1.Container(s.EphemeralContainers[i].EphemeralContainerCommon)
		cp := p.Child("ephemeralContainers").Index(i)
		errs = append(errs, validateContainer(&c, cp, names, volumes, hostPorts, s)...)
		if t := s.EphemeralContainers[i].TargetContainerName; t != "" && !slices.ContainsFunc(s.Containers, func(c corev1.Container) bool { return c.Name == t }) &&
			!slices.ContainsFunc(s.InitContainers, func(c corev1.Container) bool { return c.Name == t }) {
			errs = append(errs, field.NotFound(cp.Child("targetContainerName"), t))
		}
	}
	errs = append(errs, oneOf(p.Child("restartPolicy"), s.RestartPolicy, corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever)...)
	errs = append(errs, oneOf(p.Child("dnsPolicy"), s.DNSPolicy, corev1.DNSClusterFirstWithHostNet, corev1.DNSClusterFirst, corev1.DNSDefault, corev1.DNSNone)...)
	errs = append(errs, metav1validation.ValidateLabels(s.NodeSelector, p.Child("nodeSelector"))...)
	if s.ActiveDeadlineSeconds != nil && (*s.ActiveDeadlineSeconds < 1 || *s.ActiveDeadlineSeconds > 1<<31-1) {
		errs = append(errs, field.Invalid(p.Child("activeDeadlineSeconds"), *s.ActiveDeadlineSeconds, utilvalidation.InclusiveRangeError(1, 1<<31-1)))
	}
	if s.TerminationGracePeriodSeconds == nil {
		errs = append(errs, field.Required(p.Child("terminationGracePeriodSeconds"), ""))
	}
	if s.ServiceAccountName != "" {
		errs = append(errs, invalid(p.Child("serviceAccountName"), s.ServiceAccountName, validation.ValidateServiceAccountName(s.ServiceAccountName, false))...)
	}
	if s.NodeName != "" {
		errs = append(errs, invalid(p.Child("nodeName"), s.NodeName, validation.NameIsDNSSubdomain(s.NodeName, false))...)
	}
	for _, h := range []struct{ name, value string }{{"hostname", s.Hostname}, {"subdomain", s.Subdomain}} {
		if h.value != "" {
			errs = append(errs, invalid(p.Child(h.name), h.value, utilvalidation.IsDNS1123Label(h.value))...)
		}
	}
	errs = append(errs, validateTolerations(s.Tolerations, p.Child("tolerations"))...)
	errs = append(errs, validateAffinity(s.Affinity, p.Child("affinity"))...)
	errs = append(errs, validateSpread(s.TopologySpreadConstraints, p.Child("topologySpreadConstraints"))...)
	for i, a := range s.HostAliases {
		errs = append(errs, utilvalidation.IsValidIP(p.Child("hostAliases").Index(i).Child("ip"), a.IP)...)
		for j, n := range a.Hostnames {
			errs = append(errs, invalid(p.Child("hostAliases").Index(i).Child("hostnames").Index(j), n, utilvalidation.IsDNS1123Subdomain(n))...)
		}
	}
	if s.DNSPolicy == corev1.DNSNone && (s.DNSConfig == nil || len(s.DNSConfig.Nameservers) == 0) {
		errs = append(errs, field.Required(p.Child("dnsConfig", "nameservers"), fmt.Sprintf("must provide at least one DNS nameserver when `dnsPolicy` is %s", corev1.DNSNone)))
	}
	gates := map[string]bool{}
	for i, g := range s.SchedulingGates {
		gp := p.Child("schedulingGates").Index(i)
		errs = append(errs, invalid(gp, g.Name, utilvalidation.IsQualifiedName(g.Name))...)
		if gates[g.Name] {
			errs = append(errs, field.Duplicate(gp, g.Name))
		}
		gates[g.Name] = true
	}
	if sc := s.SecurityContext; sc != nil {
		errs = append(errs, validateIDs(p.Child("securityContext"), sc.RunAsUser, sc.RunAsGroup)...)
		if sc.FSGroup != nil {
			errs = append(errs, invalid(p.Child("securityContext", "fsGroup"), *sc.FSGroup, utilvalidation.IsValidGroupID(*sc.FSGroup))...)
		}
		if s.HostPID && s.ShareProcessNamespace != nil && *s.ShareProcessNamespace {
			errs = append(errs, field.Invalid(p.Child("shareProcessNamespace"), true, "ShareProcessNamespace and HostPID cannot both be enabled"))
		}
	}
	return errs
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

func validateContainer(c *corev1.Container, p *field.Path, names map[string]bool, volumes map[string]*corev1.Volume, hostPorts map[string]bool, s *corev1.PodSpec) (errs field.ErrorList) {
	switch {
	case c.Name == "":
		errs = append(errs, field.Required(p.Child("name"), ""))
	case names[c.Name]:
		errs = append(errs, field.Duplicate(p.Child("name"), c.Name))
	default:
		errs = append(errs, invalid(p.Child("name"), c.Name, utilvalidation.IsDNS1123Label(c.Name))...)
	}
	names[c.Name] = true
	if c.Image == "" {
		errs = append(errs, field.Required(p.Child("image"), ""))
	} else if strings.TrimSpace(c.Image) != c.Image {
		errs = append(errs, field.Invalid(p.Child("image"), c.Image, "must not have leading or trailing whitespace"))
	}
	errs = append(errs, oneOf(p.Child("imagePullPolicy"), c.ImagePullPolicy, corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever)...)
	errs = append(errs, oneOf(p.Child("terminationMessagePolicy"), c.TerminationMessagePolicy, corev1.TerminationMessageReadFile, corev1.TerminationMessageFallbackToLogsOnError)...)
	portNames := map[string]bool{}
	for i, port := range c.Ports {
		pp := p.Child("ports").Index(i)
		if port.Name != "" {
			errs = append(errs, invalid(pp.Child("name"), port.Name, utilvalidation.IsValidPortName(port.Name))...)
			if portNames[port.Name] {
				errs = append(errs, field.Duplicate(pp.Child("name"), port.Name))
			}
			portNames[port.Name] = true
		}
		if port.ContainerPort == 0 {
			errs = append(errs, field.Required(pp.Child("containerPort"), ""))
		} else {
			errs = append(errs, invalid(pp.Child("containerPort"), port.ContainerPort, utilvalidation.IsValidPortNum(int(port.ContainerPort)))...)
		}
		if port.HostPort != 0 {
			errs = append(errs, invalid(pp.Child("hostPort"), port.HostPort, utilvalidation.IsValidPortNum(int(port.HostPort)))...)
			if s.HostNetwork && port.HostPort != port.ContainerPort {
				errs = append(errs, field.Invalid(pp.Child("hostPort"), port.HostPort, "must match `containerPort` when `hostNetwork` is true"))
			}
			key := fmt.Sprintf("%s/%s/%d", port.Protocol, port.HostIP, port.HostPort)
			if hostPorts[key] {
				errs = append(errs, field.Duplicate(pp.Child("hostPort"), fmt.Sprintf("%s//%d", port.Protocol, port.HostPort)))
			}
			hostPorts[key] = true
		}
		errs = append(errs, oneOf(pp.Child("protocol"), port.Protocol, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)...)
	}
	for i := range c.Env {
		errs = append(errs, validateEnv(&c.Env[i], p.Child("env").Index(i))...)
	}
	for i, e := range c.EnvFrom {
		ep := p.Child("envFrom").Index(i)
		if e.Prefix != "" {
			errs = append(errs, invalid(ep.Child("prefix"), e.Prefix, utilvalidation.IsRelaxedEnvVarName(e.Prefix))...)
		}
		switch {
		case e.ConfigMapRef == nil && e.SecretRef == nil:
			errs = append(errs, field.Invalid(ep, "", "must specify one of: `configMapRef` or `secretRef`"))
		case e.ConfigMapRef != nil && e.SecretRef != nil:
			errs = append(errs, field.Invalid(ep, "", "may not have more than one field specified at a time"))
		case e.ConfigMapRef != nil && e.ConfigMapRef.Name == "":
			errs = append(errs, field.Required(ep.Child("configMapRef", "name"), ""))
		case e.SecretRef != nil && e.SecretRef.Name == "":
			errs = append(errs, field.Required(ep.Child("secretRef", "name"), ""))
		}
	}
	mounts := map[string]bool{}
	for i, m := range c.VolumeMounts {
		mp := p.Child("volumeMounts").Index(i)
		if m.Name == "" {
			errs = append(errs, field.Required(mp.Child("name"), ""))
		} else if volumes[m.Name] == nil {
			errs = append(errs, field.NotFound(mp.Child("name"), m.Name))
		}
		if m.MountPath == "" {
			errs = append(errs, field.Required(mp.Child("mountPath"), ""))
		} else if mounts[m.MountPath] {
			errs = append(errs, field.Invalid(mp.Child("mountPath"), m.MountPath, "must be unique"))
		}
		mounts[m.MountPath] = true
		errs = append(errs, localPath(mp.Child("subPath"), m.SubPath)...)
		errs = append(errs, localPath(mp.Child("subPathExpr"), m.SubPathExpr)...)
		if m.SubPath != "" && m.SubPathExpr != "" {
			errs = append(errs, field.Invalid(mp.Child("subPathExpr"), m.SubPathExpr, "subPathExpr and subPath are mutually exclusive"))
		}
	}
	for _, probe := range []struct {
		name string
		p    *corev1.Probe
		one  bool
	}{{"livenessProbe", c.LivenessProbe, true}, {"readinessProbe", c.ReadinessProbe, false}, {"startupProbe", c.StartupProbe, true}} {
		errs = append(errs, validateProbe(probe.p, p.Child(probe.name), probe.one)...)
	}
	if c.Lifecycle != nil {
		for _, h := range []struct {
			name string
			h    *corev1.LifecycleHandler
		}{{"postStart", c.Lifecycle.PostStart}, {"preStop", c.Lifecycle.PreStop}} {
			if h.h != nil {
				errs = append(errs, validateHandler(h.h.Exec, h.h.HTTPGet, h.h.TCPSocket, nil, h.h.Sleep, p.Child("lifecycle", h.name))...)
			}
		}
	}
	errs = append(errs, validateResources(&c.Resources, p.Child("resources"))...)
	if sc := c.SecurityContext; sc != nil {
		sp := p.Child("securityContext")
		errs = append(errs, validateIDs(sp, sc.RunAsUser, sc.RunAsGroup)...)
		if sc.AllowPrivilegeEscalation != nil && !*sc.AllowPrivilegeEscalation {
			if sc.Privileged != nil && *sc.Privileged {
				errs = append(errs, field.Invalid(sp, sc, "cannot set `allowPrivilegeEscalation` to false and `privileged` to true"))
			}
			if sc.Capabilities != nil && slices.Contains(sc.Capabilities.Add, "CAP_SYS_ADMIN") {
				errs = append(errs, field.Invalid(sp, sc, "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN"))
			}
		}
	}
	return errs
}

func localPath(p *field.Path, v string) (errs field.ErrorList) {
	if path.IsAbs(v) {
		errs = append(errs, field.Invalid(p, v, "must be a relative path"))
	}
	if slices.Contains(strings.Split(v, "/"), "..") {
		errs = append(errs, field.Invalid(p, v, "must not contain '..'"))
	}
	return errs
}

func validateEnv(e *corev1.EnvVar, p *field.Path) (errs field.ErrorList) {
	if e.Name == "" {
		errs = append(errs, field.Required(p.Child("name"), ""))
	} else {
		errs = append(errs, invalid(p.Child("name"), e.Name, utilvalidation.IsRelaxedEnvVarName(e.Name))...)
	}
	from := e.ValueFrom
	if from == nil {
		return errs
	}
	vp := p.Child("valueFrom")
	n := 0
	if r := from.FieldRef; r != nil {
		n++
		ok := strings.HasPrefix(r.FieldPath, "metadata.labels['") || strings.HasPrefix(r.FieldPath, "metadata.annotations['")
		supported := []string{"metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName", "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs"}
		if r.FieldPath == "" {
			errs = append(errs, field.Required(vp.Child("fieldRef", "fieldPath"), ""))
		} else if !ok && !slices.Contains(supported, r.FieldPath) {
			errs = append(errs, field.NotSupported(vp.Child("fieldRef", "fieldPath"), r.FieldPath, supported))
		}
	}
	if r := from.ResourceFieldRef; r != nil {
		n++
		if r.Resource == "" {
			errs = append(errs, field.Required(vp.Child("resourceFieldRef", "resource"), ""))
		}
	}
	if r := from.ConfigMapKeyRef; r != nil {
		n++
		if r.Name == "" {
			errs = append(errs, field.Required(vp.Child("configMapKeyRef", "name"), ""))
		}
		if r.Key == "" {
			errs = append(errs, field.Required(vp.Child("configMapKeyRef", "key"), ""))
		}
	}
	if r := from.SecretKeyRef; r != nil {
		n++
		if r.Name == "" {
			errs = append(errs, field.Required(vp.Child("secretKeyRef", "name"), ""))
		}
		if r.Key == "" {
			errs = append(errs, field.Required(vp.Child("secretKeyRef", "key"), ""))
		}
	}
	if from.FileKeyRef != nil {
		n++
	}
	switch {
	case e.Value != "" && n > 0:
		errs = append(errs, field.Invalid(vp, "", "may not be specified when `value` is not empty"))
	case n == 0:
		errs = append(errs, field.Invalid(vp, "", "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"))
	case n > 1:
		errs = append(errs, field.Invalid(vp, "", "may not have more than one field specified at a time"))
	}
	return errs
}

func validateProbe(probe *corev1.Probe, p *field.Path, successIsOne bool) (errs field.ErrorList) {
	if probe == nil {
		return nil
	}
	errs = validateHandler(probe.Exec, probe.HTTPGet, probe.TCPSocket, probe.GRPC, nil, p)
	for _, f := range []struct {
		name string
		v    int32
	}{{"initialDelaySeconds", probe.InitialDelaySeconds}, {"timeoutSeconds", probe.TimeoutSeconds}, {"periodSeconds", probe.PeriodSeconds},
		{"successThreshold", probe.SuccessThreshold}, {"failureThreshold", probe.FailureThreshold}} {
		if f.v < 0 {
			errs = append(errs, field.Invalid(p.Child(f.name), f.v, "must be greater than or equal to 0"))
		}
	}
	if successIsOne && probe.SuccessThreshold != 1 {
		errs = append(errs, field.Invalid(p.Child("successThreshold"), probe.SuccessThreshold, "must be 1"))
	}
	if g := probe.TerminationGracePeriodSeconds; g != nil {
		if !successIsOne {
			errs = append(errs, field.Invalid(p.Child("terminationGracePeriodSeconds"), *g, "must not be set for readinessProbes"))
		} else if *g <= 0 {
			errs = append(errs, field.Invalid(p.Child("terminationGracePeriodSeconds"), *g, "must be greater than 0"))
		}
	}
	return errs
}

func validateHandler(exec *corev1.ExecAction, http *corev1.HTTPGetAction, tcp *corev1.TCPSocketAction, grpc *corev1.GRPCAction, sleep *corev1.SleepAction, p *field.Path) (errs field.ErrorList) {
	n := 0
	second := func(name string) bool {
		n++
		if n > 1 {
			errs = append(errs, field.Forbidden(p.Child(name), "may not specify more than 1 handler type"))
		}
		return n == 1
	}
	if exec != nil && second("exec") && len(exec.Command) == 0 {
		errs = append(errs, field.Required(p.Child("exec", "command"), ""))
	}
	if http != nil && second("httpGet") {
		if http.Path == "" {
			errs = append(errs, field.Required(p.Child("httpGet", "path"), ""))
		}
		errs = append(errs, portRef(http.Port, p.Child("httpGet", "port"))...)
		errs = append(errs, oneOf(p.Child("httpGet", "scheme"), http.Scheme, corev1.URISchemeHTTP, corev1.URISchemeHTTPS)...)
	}
	if tcp != nil && second("tcpSocket") {
		errs = append(errs, portRef(tcp.Port, p.Child("tcpSocket", "port"))...)
	}
	if grpc != nil && second("grpc") {
		errs = append(errs, invalid(p.Child("grpc", "port"), grpc.Port, utilvalidation.IsValidPortNum(int(grpc.Port)))...)
	}
	if sleep != nil && second("sleep") && sleep.Seconds < 0 {
		errs = append(errs, field.Invalid(p.Child("sleep", "seconds"), sleep.Seconds, "must be non-negative"))
	}
	if n == 0 {
		errs = append(errs, field.Required(p, "must specify a handler type"))
	}
	return errs
}

func portRef(port intstr.IntOrString, p *field.Path) field.ErrorList {
	if port.Type == intstr.Int {
		return invalid(p, port.IntValue(), utilvalidation.IsValidPortNum(port.IntValue()))
	}
	return invalid(p, port.StrVal, utilvalidation.IsValidPortName(port.StrVal))
}

func validateResources(r *corev1.ResourceRequirements, p *field.Path) (errs field.ErrorList) {
	check := func(list corev1.ResourceList, lp *field.Path) {
		for name, q := range list {
			kp := lp.Key(string(name))
			errs = append(errs, invalid(kp, string(name), utilvalidation.IsQualifiedName(string(name)))...)
			if !strings.Contains(string(name), "/") && !slices.Contains([]corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage}, name) && !strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix) {
				errs = append(errs, field.Invalid(kp, string(name), "must be a standard resource for containers"))
			}
			if q.Cmp(resource.Quantity{}) < 0 {
				errs = append(errs, field.Invalid(kp, q.String(), "must be greater than or equal to 0"))
			}
		}
	}
	check(r.Limits, p.Child("limits"))
	check(r.Requests, p.Child("requests"))
	for name, req := range r.Requests {
		lim, ok := r.Limits[name]
		kp := p.Child("requests")
		switch {
		case ok && req.Cmp(lim) > 0:
			errs = append(errs, field.Invalid(kp, req.String(), fmt.Sprintf("must be less than or equal to %s limit of %s", name, lim.String())))
		case strings.Contains(string(name), "/") && (!ok || req.Cmp(lim) != 0):
			errs = append(errs, field.Invalid(kp.Key(string(name)), req.String(), fmt.Sprintf("must be equal to %s limit", name)))
		}
	}
	return errs
}

func validateVolume(v *corev1.Volume, p *field.Path, seen map[string]*corev1.Volume) (errs field.ErrorList) {
	if v.Name == "" {
		errs = append(errs, field.Required(p.Child("name"), ""))
	} else {
		errs = append(errs, invalid(p.Child("name"), v.Name, utilvalidation.IsDNS1123Label(v.Name))...)
	}
	if seen[v.Name] != nil {
		errs = append(errs, field.Duplicate(p.Child("name"), v.Name))
	}
	seen[v.Name] = v
	n := 0
	source := func(name string, set bool, required string, value string) {
		if !set {
			return
		}
		if n++; n > 1 {
			errs = append(errs, field.Forbidden(p.Child(name), "may not specify more than 1 volume type"))
			return
		}
		if required != "" && value == "" {
			errs = append(errs, field.Required(p.Child(name, required), ""))
		}
	}
	source("emptyDir", v.EmptyDir != nil, "", "")
	if h := v.HostPath; h != nil {
		source("hostPath", true, "path", h.Path)
		if slices.Contains(strings.Split(h.Path, "/"), "..") {
			errs = append(errs, field.Invalid(p.Child("hostPath", "path"), h.Path, "must not contain '..'"))
		}
		if h.Type != nil {
			types := []corev1.HostPathType{corev1.HostPathUnset, corev1.HostPathBlockDev, corev1.HostPathCharDev, corev1.HostPathDirectory, corev1.HostPathDirectoryOrCreate, corev1.HostPathFile, corev1.HostPathFileOrCreate, corev1.HostPathSocket}
			if !slices.Contains(types, *h.Type) {
				errs = append(errs, field.NotSupported(p.Child("hostPath", "type"), *h.Type, types))
			}
		}
	}
	if s := v.Secret; s != nil {
		source("secret", true, "secretName", s.SecretName)
		errs = append(errs, validateItems(s.Items, p.Child("secret", "items"))...)
	}
	if s := v.ConfigMap; s != nil {
		source("configMap", true, "name", s.Name)
		errs = append(errs, validateItems(s.Items, p.Child("configMap", "items"))...)
	}
	source("downwardAPI", v.DownwardAPI != nil, "", "")
	if s := v.PersistentVolumeClaim; s != nil {
		source("persistentVolumeClaim", true, "claimName", s.ClaimName)
	}
	if s := v.Projected; s != nil {
		source("projected", true, "", "")
		for i, src := range s.Sources {
			sp := p.Child("projected", "sources").Index(i)
			if src.ConfigMap != nil {
				errs = append(errs, validateItems(src.ConfigMap.Items, sp.Child("configMap", "items"))...)
			}
			if src.Secret != nil {
				errs = append(errs, validateItems(src.Secret.Items, sp.Child("secret", "items"))...)
			}
			if t := src.ServiceAccountToken; t != nil && t.ExpirationSeconds != nil && *t.ExpirationSeconds < 600 {
				errs = append(errs, field.Invalid(sp.Child("serviceAccountToken", "expirationSeconds"), *t.ExpirationSeconds, "may not specify a duration less than 10 minutes"))
			}
		}
	}
	if s := v.NFS; s != nil {
		source("nfs", true, "server", s.Server)
	}
	if s := v.ISCSI; s != nil {
		source("iscsi", true, "iqn", s.IQN)
	}
	if s := v.CSI; s != nil {
		source("csi", true, "driver", s.Driver)
	}
	source("ephemeral", v.Ephemeral != nil, "", "")
	source("image", v.Image != nil, "", "")
	source("fc", v.FC != nil, "", "")
	if n == 0 && v.VolumeSource == (corev1.VolumeSource{}) {
		errs = append(errs, field.Required(p, "must specify a volume type"))
	}
	return errs
}

func validateItems(items []corev1.KeyToPath, p *field.Path) (errs field.ErrorList) {
	for i, item := range items {
		if item.Key == "" {
			errs = append(errs, field.Required(p.Index(i).Child("key"), ""))
		}
		if item.Path == "" {
			errs = append(errs, field.Required(p.Index(i).Child("path"), ""))
		} else {
			errs = append(errs, localPath(p.Index(i).Child("path"), item.Path)...)
		}
		if item.Mode != nil && (*item.Mode < 0 || *item.Mode > 0o777) {
			errs = append(errs, field.Invalid(p.Index(i).Child("mode"), *item.Mode, "must be a number between 0 and 0777 (octal), both inclusive"))
		}
	}
	return errs
}

func validateTolerations(list []corev1.Toleration, p *field.Path) (errs field.ErrorList) {
	for i, t := range list {
		tp := p.Index(i)
		if t.Key != "" {
			errs = append(errs, metav1validation.ValidateLabelName(t.Key, tp.Child("key"))...)
		} else if t.Operator != corev1.TolerationOpExists {
			errs = append(errs, field.Invalid(tp.Child("operator"), t.Operator, "operator must be Exists when `key` is empty, which means \"match all values and all keys\""))
		}
		if t.TolerationSeconds != nil && t.Effect != corev1.TaintEffectNoExecute {
			errs = append(errs, field.Invalid(tp.Child("effect"), t.Effect, "effect must be 'NoExecute' when `tolerationSeconds` is set"))
		}
		switch t.Operator {
		case corev1.TolerationOpEqual, "":
			errs = append(errs, invalid(tp.Child("operator"), t.Value, utilvalidation.IsValidLabelValue(t.Value))...)
		case corev1.TolerationOpExists:
			if t.Value != "" {
				errs = append(errs, field.Invalid(tp.Child("operator"), t.Value, "value must be empty when `operator` is 'Exists'"))
			}
		default:
			errs = append(errs, field.NotSupported(tp.Child("operator"), t.Operator, []corev1.TolerationOperator{corev1.TolerationOpEqual, corev1.TolerationOpExists}))
		}
		if t.Effect != "" {
			errs = append(errs, oneOf(tp.Child("effect"), t.Effect, corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute)...)
		}
	}
	return errs
}

func validateAffinity(a *corev1.Affinity, p *field.Path) (errs field.ErrorList) {
	if a == nil {
		return nil
	}
	if n := a.NodeAffinity; n != nil {
		np := p.Child("nodeAffinity")
		if r := n.RequiredDuringSchedulingIgnoredDuringExecution; r != nil {
			rp := np.Child("requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms")
			if len(r.NodeSelectorTerms) == 0 {
				errs = append(errs, field.Required(rp, "must have at least one node selector term"))
			}
			for i := range r.NodeSelectorTerms {
				errs = append(errs, validateTerm(&r.NodeSelectorTerms[i], rp.Index(i))...)
			}
		}
		for i := range n.PreferredDuringSchedulingIgnoredDuringExecution {
			t := &n.PreferredDuringSchedulingIgnoredDuringExecution[i]
			tp := np.Child("preferredDuringSchedulingIgnoredDuringExecution").Index(i)
			errs = append(errs, weight(t.Weight, tp)...)
			errs = append(errs, validateTerm(&t.Preference, tp.Child("preference"))...)
		}
	}
	pods := func(required []corev1.PodAffinityTerm, preferred []corev1.WeightedPodAffinityTerm, ap *field.Path) {
		for i := range required {
			errs = append(errs, validatePodTerm(&required[i], ap.Child("requiredDuringSchedulingIgnoredDuringExecution").Index(i))...)
		}
		for i := range preferred {
			tp := ap.Child("preferredDuringSchedulingIgnoredDuringExecution").Index(i)
			errs = append(errs, weight(preferred[i].Weight, tp)...)
			errs = append(errs, validatePodTerm(&preferred[i].PodAffinityTerm, tp.Child("podAffinityTerm"))...)
		}
	}
	if x := a.PodAffinity; x != nil {
		pods(x.RequiredDuringSchedulingIgnoredDuringExecution, x.PreferredDuringSchedulingIgnoredDuringExecution, p.Child("podAffinity"))
	}
	if x := a.PodAntiAffinity; x != nil {
		pods(x.RequiredDuringSchedulingIgnoredDuringExecution, x.PreferredDuringSchedulingIgnoredDuringExecution, p.Child("podAntiAffinity"))
	}
	return errs
}

func weight(w int32, p *field.Path) field.ErrorList {
	if w < 1 || w > 100 {
		return field.ErrorList{field.Invalid(p.Child("weight"), w, "must be in the range 1-100")}
	}
	return nil
}

func validateTerm(t *corev1.NodeSelectorTerm, p *field.Path) (errs field.ErrorList) {
	for i, r := range t.MatchExpressions {
		rp := p.Child("matchExpressions").Index(i)
		switch r.Operator {
		case corev1.NodeSelectorOpIn, corev1.NodeSelectorOpNotIn:
			if len(r.Values) == 0 {
				errs = append(errs, field.Required(rp.Child("values"), "must be specified when `operator` is 'In' or 'NotIn'"))
			}
		case corev1.NodeSelectorOpExists, corev1.NodeSelectorOpDoesNotExist:
			if len(r.Values) > 0 {
				errs = append(errs, field.Forbidden(rp.Child("values"), "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"))
			}
		case corev1.NodeSelectorOpGt, corev1.NodeSelectorOpLt:
			if len(r.Values) != 1 {
				errs = append(errs, field.Required(rp.Child("values"), "must be specified single value when `operator` is 'Lt' or 'Gt'"))
			}
		default:
			errs = append(errs, field.Invalid(rp.Child("operator"), r.Operator, "not a valid selector operator"))
		}
		errs = append(errs, metav1validation.ValidateLabelName(r.Key, rp.Child("key"))...)
	}
	return errs
}

func validatePodTerm(t *corev1.PodAffinityTerm, p *field.Path) (errs field.ErrorList) {
	errs = append(errs, metav1validation.ValidateLabelSelector(t.LabelSelector, metav1validation.LabelSelectorValidationOptions{}, p.Child("labelSelector"))...)
	errs = append(errs, metav1validation.ValidateLabelSelector(t.NamespaceSelector, metav1validation.LabelSelectorValidationOptions{}, p.Child("namespaceSelector"))...)
	for i, n := range t.Namespaces {
		errs = append(errs, invalid(p.Child("namespaces").Index(i), n, validation.ValidateNamespaceName(n, false))...)
	}
	if t.TopologyKey == "" {
		errs = append(errs, field.Required(p.Child("topologyKey"), "can not be empty"))
	} else {
		errs = append(errs, metav1validation.ValidateLabelName(t.TopologyKey, p.Child("topologyKey"))...)
	}
	return errs
}

func validateSpread(list []corev1.TopologySpreadConstraint, p *field.Path) (errs field.ErrorList) {
	for i, c := range list {
		cp := p.Index(i)
		if c.MaxSkew <= 0 {
			errs = append(errs, field.Invalid(cp.Child("maxSkew"), c.MaxSkew, "must be greater than zero"))
		}
		if c.TopologyKey == "" {
			errs = append(errs, field.Required(cp.Child("topologyKey"), "can not be empty"))
		}
		errs = append(errs, oneOf(cp.Child("whenUnsatisfiable"), c.WhenUnsatisfiable, corev1.DoNotSchedule, corev1.ScheduleAnyway)...)
		if c.MinDomains != nil {
			if *c.MinDomains <= 0 {
				errs = append(errs, field.Invalid(cp.Child("minDomains"), *c.MinDomains, "must be greater than zero"))
			}
			if c.WhenUnsatisfiable != corev1.DoNotSchedule {
				errs = append(errs, field.Invalid(cp.Child("minDomains"), *c.MinDomains, fmt.Sprintf("can only use minDomains if whenUnsatisfiable=%s, not %s", corev1.DoNotSchedule, c.WhenUnsatisfiable)))
			}
		}
		errs = append(errs, metav1validation.ValidateLabelSelector(c.LabelSelector, metav1validation.LabelSelectorValidationOptions{}, cp.Child("labelSelector"))...)
		for j := range list[:i] {
			if list[j].TopologyKey == c.TopologyKey && list[j].WhenUnsatisfiable == c.WhenUnsatisfiable {
				errs = append(errs, field.Duplicate(cp.Child("{topologyKey, whenUnsatisfiable}"), fmt.Sprintf("{%v, %v}", c.TopologyKey, c.WhenUnsatisfiable)))
			}
		}
	}
	return errs
}
