package core

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func (v *specValidator) validateContainers() (errs field.ErrorList) {
	s, p := v.spec, v.path.Child("containers")
	if len(s.Containers) == 0 {
		return field.ErrorList{field.Required(p, "")}
	}
	hostPorts := map[string]bool{}
	for i := range s.Containers {
		c, cp := &s.Containers[i], p.Index(i)
		errs = append(errs, v.validateContainer(c, cp)...)
		errs = append(errs, v.validateRunning(c, cp)...)
		errs = append(errs, validateHostPorts(c, cp, hostPorts)...)
		errs = append(errs, validateRestart(c, cp)...)
	}
	return errs
}

func (v *specValidator) validateInitContainers() (errs field.ErrorList) {
	for i := range v.spec.InitContainers {
		c, cp := &v.spec.InitContainers[i], v.path.Child("initContainers").Index(i)
		errs = append(errs, v.validateContainer(c, cp)...)
		// Init containers run one after the other: their ports may clash with other containers' but not with each other's.
		errs = append(errs, validateHostPorts(c, cp, map[string]bool{})...)
		errs = append(errs, validateRestart(c, cp)...)
		if isSidecar(c) {
			errs = append(errs, v.validateRunning(c, cp)...)
			continue
		}
		for _, f := range []struct {
			name string
			set  bool
		}{{"lifecycle", c.Lifecycle != nil}, {"livenessProbe", c.LivenessProbe != nil}, {"readinessProbe", c.ReadinessProbe != nil}, {"startupProbe", c.StartupProbe != nil}} {
			if f.set {
				errs = append(errs, field.Forbidden(cp.Child(f.name), "may not be set for init containers without restartPolicy=Always"))
			}
		}
	}
	return errs
}

func (v *specValidator) validateEphemeralContainers() (errs field.ErrorList) {
	for i := range v.spec.EphemeralContainers {
		e := &v.spec.EphemeralContainers[i]
		c, cp := (*corev1.Container)(&e.EphemeralContainerCommon), v.path.Child("ephemeralContainers").Index(i)
		errs = append(errs, v.validateContainer(c, cp)...)
		named := func(c corev1.Container) bool { return c.Name == e.TargetContainerName }
		if e.TargetContainerName != "" && !slices.ContainsFunc(v.spec.Containers, named) && !slices.ContainsFunc(v.spec.InitContainers, named) {
			errs = append(errs, field.NotFound(cp.Child("targetContainerName"), e.TargetContainerName))
		}
		for _, f := range []struct {
			name string
			set  bool
		}{
			{"ports", len(c.Ports) > 0}, {"resources", len(c.Resources.Limits)+len(c.Resources.Requests)+len(c.Resources.Claims) > 0},
			{"resizePolicy", len(c.ResizePolicy) > 0}, {"restartPolicy", c.RestartPolicy != nil}, {"restartPolicyRules", len(c.RestartPolicyRules) > 0},
			{"livenessProbe", c.LivenessProbe != nil}, {"readinessProbe", c.ReadinessProbe != nil}, {"startupProbe", c.StartupProbe != nil}, {"lifecycle", c.Lifecycle != nil},
		} {
			if f.set {
				errs = append(errs, field.Forbidden(cp.Child(f.name), "cannot be set for an Ephemeral Container"))
			}
		}
		for j, m := range c.VolumeMounts {
			if m.SubPath != "" {
				errs = append(errs, field.Forbidden(cp.Child("volumeMounts").Index(j).Child("subPath"), "cannot be set for an Ephemeral Container"))
			}
			if m.SubPathExpr != "" {
				errs = append(errs, field.Forbidden(cp.Child("volumeMounts").Index(j).Child("subPathExpr"), "cannot be set for an Ephemeral Container"))
			}
		}
	}
	return errs
}

// validateContainer checks what containers of every sort have in common.
func (v *specValidator) validateContainer(c *corev1.Container, p *field.Path) (errs field.ErrorList) {
	switch {
	case c.Name == "":
		errs = append(errs, field.Required(p.Child("name"), ""))
	default:
		errs = append(errs, label(p.Child("name"), c.Name)...)
		if v.names[c.Name] {
			errs = append(errs, field.Duplicate(p.Child("name"), c.Name))
		}
		v.names[c.Name] = true
	}
	errs = append(errs, required(p.Child("image"), c.Image)...)
	errs = append(errs, oneOf(p.Child("terminationMessagePolicy"), c.TerminationMessagePolicy, corev1.TerminationMessageReadFile, corev1.TerminationMessageFallbackToLogsOnError)...)
	errs = append(errs, validatePorts(c.Ports, p.Child("ports"))...)
	for i := range c.Env {
		errs = append(errs, v.validateEnv(&c.Env[i], p.Child("env").Index(i))...)
	}
	for i := range c.EnvFrom {
		errs = append(errs, validateEnvFrom(&c.EnvFrom[i], p.Child("envFrom"), i)...)
	}
	errs = append(errs, v.validateMounts(c, p.Child("volumeMounts"))...)
	errs = append(errs, v.validateDevices(c, p.Child("volumeDevices"))...)
	errs = append(errs, oneOf(p.Child("imagePullPolicy"), c.ImagePullPolicy, corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever)...)
	errs = append(errs, validateResources(&c.Resources, p.Child("resources"), v.claims)...)
	errs = append(errs, v.validateResizePolicy(c.ResizePolicy, p.Child("resizePolicy"))...)
	errs = append(errs, v.validateSecurityContext(c.SecurityContext, p.Child("securityContext"))...)
	return errs
}

// validateRunning checks what containers have that run beside others: hooks and probes.
func (v *specValidator) validateRunning(c *corev1.Container, p *field.Path) (errs field.ErrorList) {
	if l := c.Lifecycle; l != nil {
		lp := p.Child("lifecycle")
		if l.PostStart != nil {
			errs = append(errs, v.validateHook(l.PostStart, lp.Child("postStart"))...)
		}
		if l.PreStop != nil {
			errs = append(errs, v.validateHook(l.PreStop, lp.Child("preStop"))...)
		}
		if l.StopSignal != nil {
			errs = append(errs, v.validateStopSignal(*l.StopSignal, lp.Child("stopSignal"))...)
		}
	}
	errs = append(errs, validateProbe(c.LivenessProbe, p.Child("livenessProbe"), false)...)
	errs = append(errs, validateProbe(c.ReadinessProbe, p.Child("readinessProbe"), true)...)
	errs = append(errs, validateProbe(c.StartupProbe, p.Child("startupProbe"), false)...)
	return errs
}

// maxRestartRules and maxExitCodes bound what one container says about its restarts (KEP-5307).
const (
	maxRestartRules = 20
	maxExitCodes    = 255
)

func validateRestart(c *corev1.Container, p *field.Path) (errs field.ErrorList) {
	if c.RestartPolicy != nil {
		errs = append(errs, among(p.Child("restartPolicy"), *c.RestartPolicy, corev1.ContainerRestartPolicyAlways, corev1.ContainerRestartPolicyNever, corev1.ContainerRestartPolicyOnFailure)...)
	}
	rules := c.RestartPolicyRules
	if len(rules) == 0 {
		return errs
	}
	if c.RestartPolicy == nil {
		errs = append(errs, field.Required(p.Child("restartPolicy"), "must specify restartPolicy when restart rules are used"))
	}
	rp := p.Child("restartPolicyRules")
	if len(rules) > maxRestartRules {
		errs = append(errs, field.TooLong(rp, rules, maxRestartRules))
	}
	for i, r := range rules {
		errs = append(errs, among(rp.Index(i).Child("action"), r.Action, corev1.ContainerRestartRuleActionRestart, corev1.ContainerRestartRuleActionRestartAllContainers)...)
		ep := rp.Index(i).Child("exitCodes")
		if r.ExitCodes == nil {
			errs = append(errs, field.Required(ep, "must be specified"))
			continue
		}
		errs = append(errs, among(ep.Child("operator"), r.ExitCodes.Operator, corev1.ContainerRestartRuleOnExitCodesOpIn, corev1.ContainerRestartRuleOnExitCodesOpNotIn)...)
		if n := len(r.ExitCodes.Values); n > maxExitCodes {
			errs = append(errs, field.TooMany(ep.Child("values"), n, maxExitCodes))
		}
	}
	return errs
}

func validatePorts(ports []corev1.ContainerPort, p *field.Path) (errs field.ErrorList) {
	names := map[string]bool{}
	for i := range ports {
		c, pp := &ports[i], p.Index(i)
		if c.Name != "" {
			if msgs := utilvalidation.IsValidPortName(c.Name); len(msgs) > 0 {
				errs = append(errs, invalid(pp.Child("name"), c.Name, msgs)...)
			} else if names[c.Name] {
				errs = append(errs, field.Duplicate(pp.Child("name"), c.Name))
			}
			names[c.Name] = true
		}
		if c.ContainerPort == 0 {
			errs = append(errs, field.Required(pp.Child("containerPort"), ""))
		} else {
			errs = append(errs, port(pp.Child("containerPort"), c.ContainerPort)...)
		}
		if c.HostPort != 0 {
			errs = append(errs, port(pp.Child("hostPort"), c.HostPort)...)
		}
		errs = append(errs, oneOf(pp.Child("protocol"), c.Protocol, corev1.ProtocolSCTP, corev1.ProtocolTCP, corev1.ProtocolUDP)...)
	}
	return errs
}

func validateHostPorts(c *corev1.Container, p *field.Path, taken map[string]bool) (errs field.ErrorList) {
	for i := range c.Ports {
		cp := &c.Ports[i]
		if cp.HostPort == 0 {
			continue
		}
		key := fmt.Sprintf("%s/%s/%d", cp.Protocol, cp.HostIP, cp.HostPort)
		if taken[key] {
			errs = append(errs, field.Duplicate(p.Child("ports").Index(i).Child("hostPort"), key))
		}
		taken[key] = true
	}
	return errs
}

var (
	envFields = []string{"metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName",
		"status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs"}
	volumeFields = []string{"metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"}
	// knownFields are the field labels of a pod that the downward API can name at all.
	knownFields = append([]string{"metadata.annotations", "metadata.labels", "spec.host", "spec.restartPolicy", "spec.schedulerName", "status.phase"}, envFields...)
)

func (v *specValidator) validateEnv(e *corev1.EnvVar, p *field.Path) (errs field.ErrorList) {
	if e.Name == "" {
		errs = append(errs, field.Required(p.Child("name"), ""))
	} else {
		errs = append(errs, invalid(p.Child("name"), e.Name, utilvalidation.IsRelaxedEnvVarName(e.Name))...)
	}
	from := e.ValueFrom
	if from == nil {
		return errs
	}
	p = p.Child("valueFrom")
	n := 0
	if r := from.FieldRef; r != nil {
		n++
		errs = append(errs, validateFieldRef(r, p.Child("fieldRef"), envFields)...)
	}
	if r := from.ResourceFieldRef; r != nil {
		n++
		errs = append(errs, validateResourceFieldRef(r, p.Child("resourceFieldRef"), false)...)
	}
	if r := from.ConfigMapKeyRef; r != nil {
		n++
		errs = append(errs, validateKeyRef(r.Name, r.Key, p.Child("configMapKeyRef"))...)
	}
	if r := from.SecretKeyRef; r != nil {
		n++
		errs = append(errs, validateKeyRef(r.Name, r.Key, p.Child("secretKeyRef"))...)
	}
	if r := from.FileKeyRef; r != nil {
		n++
		errs = append(errs, v.validateFileKeyRef(r, p.Child("fileKeyRef"))...)
	}
	switch {
	case n == 0:
		errs = append(errs, field.Invalid(p, "", "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"))
	case e.Value != "":
		errs = append(errs, field.Invalid(p, "", "may not be specified when `value` is not empty"))
	case n > 1:
		errs = append(errs, field.Invalid(p, "", "may not have more than one field specified at a time"))
	}
	return errs
}

func validateKeyRef(name, key string, p *field.Path) (errs field.ErrorList) {
	errs = subdomain(p.Child("name"), name)
	if key == "" {
		return append(errs, field.Required(p.Child("key"), ""))
	}
	return append(errs, dataKey(p.Child("key"), key)...)
}

// maxFileKey is how long the name of a variable in an env file may be (KEP-3721).
const maxFileKey = 128

func (v *specValidator) validateFileKeyRef(r *corev1.FileKeySelector, p *field.Path) (errs field.ErrorList) {
	if r.VolumeName == "" {
		errs = append(errs, field.Required(p.Child("volumeName"), ""))
	} else if volume := v.volumes[r.VolumeName]; volume == nil {
		errs = append(errs, field.NotFound(p.Child("volumeName"), r.VolumeName))
	} else if volume.EmptyDir == nil {
		errs = append(errs, field.Invalid(p.Child("volumeName"), r.VolumeName, "must refer to an emptyDir volume"))
	}
	if r.Path == "" {
		errs = append(errs, field.Required(p.Child("path"), ""))
	} else {
		errs = append(errs, nonReserved(p.Child("path"), r.Path)...)
	}
	switch {
	case r.Key == "":
		errs = append(errs, field.Required(p.Child("key"), ""))
	case len(r.Key) > maxFileKey:
		errs = append(errs, field.TooLong(p.Child("key"), r.Key, maxFileKey))
	default:
		errs = append(errs, invalid(p.Child("key"), r.Key, utilvalidation.IsRelaxedEnvVarName(r.Key))...)
	}
	return errs
}

func validateFieldRef(r *corev1.ObjectFieldSelector, p *field.Path, allowed []string) (errs field.ErrorList) {
	if r.APIVersion == "" {
		return field.ErrorList{field.Required(p.Child("apiVersion"), "")}
	}
	if r.FieldPath == "" {
		return field.ErrorList{field.Required(p.Child("fieldPath"), "")}
	}
	// metadata.labels['key'] names one entry of a map.
	if name, rest, ok := strings.Cut(r.FieldPath, "['"); ok && strings.HasSuffix(rest, "']") {
		key := strings.TrimSuffix(rest, "']")
		switch name {
		case "metadata.annotations":
			return invalid(p, key, utilvalidation.IsQualifiedName(strings.ToLower(key)))
		case "metadata.labels":
			return qualified(p, key)
		default:
			return field.ErrorList{field.Invalid(p, name, "does not support subscript")}
		}
	}
	switch {
	case r.APIVersion != "v1":
		return field.ErrorList{field.Invalid(p.Child("fieldPath"), r.FieldPath, fmt.Sprintf("error converting fieldPath: unsupported pod version: %s", r.APIVersion))}
	case !slices.Contains(knownFields, r.FieldPath):
		return field.ErrorList{field.Invalid(p.Child("fieldPath"), r.FieldPath, fmt.Sprintf("error converting fieldPath: field label not supported: %s", r.FieldPath))}
	}
	return among(p.Child("fieldPath"), r.FieldPath, allowed...)
}

var resourceFields = []string{"limits.cpu", "limits.ephemeral-storage", "limits.memory", "requests.cpu", "requests.ephemeral-storage", "requests.memory"}

func validateResourceFieldRef(r *corev1.ResourceFieldSelector, p *field.Path, volume bool) (errs field.ErrorList) {
	_, name, _ := strings.Cut(r.Resource, ".")
	hugePages := strings.HasPrefix(r.Resource, "limits."+corev1.ResourceHugePagesPrefix) || strings.HasPrefix(r.Resource, "requests."+corev1.ResourceHugePagesPrefix)
	switch {
	case volume && r.ContainerName == "":
		return field.ErrorList{field.Required(p.Child("containerName"), "")}
	case r.Resource == "":
		return field.ErrorList{field.Required(p.Child("resource"), "")}
	case !hugePages && !slices.Contains(resourceFields, r.Resource):
		return field.ErrorList{field.NotSupported(p.Child("resource"), r.Resource, resourceFields)}
	case r.Divisor.IsZero():
		return nil
	}
	divisor, allowed, what := r.Divisor.String(), "1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei", name
	ok := slices.Contains(strings.Split(allowed, ", "), divisor)
	switch {
	case name == "cpu":
		allowed, ok = "1m and 1", divisor == "1m" || divisor == "1"
	case name == "ephemeral-storage":
		what = "local ephemeral storage"
	case hugePages:
		what = "hugepages"
	}
	if !ok {
		errs = append(errs, field.Invalid(p.Child("divisor"), r.Resource, fmt.Sprintf("only divisor's values %s are supported with the %s resource", allowed, what)))
	}
	return errs
}

func validateEnvFrom(e *corev1.EnvFromSource, list *field.Path, i int) (errs field.ErrorList) {
	p := list.Index(i)
	if e.Prefix != "" {
		errs = append(errs, invalid(p.Child("prefix"), e.Prefix, utilvalidation.IsRelaxedEnvVarName(e.Prefix))...)
	}
	ref := func(name string, np *field.Path) {
		if name == "" {
			errs = append(errs, field.Required(np, ""))
		} else {
			errs = append(errs, subdomain(np, name)...)
		}
	}
	if e.ConfigMapRef != nil {
		ref(e.ConfigMapRef.Name, p.Child("configMapRef", "name"))
	}
	if e.SecretRef != nil {
		ref(e.SecretRef.Name, p.Child("secretRef", "name"))
	}
	switch {
	case e.ConfigMapRef == nil && e.SecretRef == nil:
		errs = append(errs, field.Invalid(list, "", "must specify one of: `configMapRef` or `secretRef`"))
	case e.ConfigMapRef != nil && e.SecretRef != nil:
		errs = append(errs, field.Invalid(p, "", "may not have more than one field specified at a time"))
	}
	return errs
}

func (v *specValidator) validateMounts(c *corev1.Container, p *field.Path) (errs field.ErrorList) {
	seen := make(map[string]bool, len(c.VolumeMounts))
	for i := range c.VolumeMounts {
		m, mp := &c.VolumeMounts[i], p.Index(i)
		if m.Name == "" {
			errs = append(errs, field.Required(mp.Child("name"), ""))
		}
		if v.volumes[m.Name] == nil {
			errs = append(errs, field.NotFound(mp.Child("name"), m.Name))
		}
		errs = append(errs, required(mp.Child("mountPath"), m.MountPath)...)
		if seen[m.MountPath] {
			errs = append(errs, field.Invalid(mp.Child("mountPath"), m.MountPath, "must be unique"))
		}
		seen[m.MountPath] = true
		for _, d := range c.VolumeDevices {
			if d.Name == m.Name {
				errs = append(errs, field.Invalid(mp.Child("name"), m.Name, "must not already exist in volumeDevices"))
			}
			if d.DevicePath == m.MountPath {
				errs = append(errs, field.Invalid(mp.Child("mountPath"), m.MountPath, "must not already exist as a path in volumeDevices"))
			}
		}
		// These are reported at the list, as Kubernetes does.
		if m.SubPath != "" {
			errs = append(errs, descending(p.Child("subPath"), m.SubPath)...)
		}
		if m.SubPathExpr != "" {
			if m.SubPath != "" {
				errs = append(errs, field.Invalid(mp.Child("subPathExpr"), m.SubPathExpr, "subPathExpr and subPath are mutually exclusive"))
			}
			errs = append(errs, descending(p.Child("subPathExpr"), m.SubPathExpr)...)
		}
		if m.MountPropagation != nil {
			pp := p.Child("mountPropagation")
			errs = append(errs, among(pp, *m.MountPropagation, corev1.MountPropagationBidirectional, corev1.MountPropagationHostToContainer, corev1.MountPropagationNone)...)
			if *m.MountPropagation == corev1.MountPropagationBidirectional && (c.SecurityContext == nil || c.SecurityContext.Privileged == nil || !*c.SecurityContext.Privileged) {
				errs = append(errs, field.Forbidden(pp, "Bidirectional mount propagation is available only to privileged containers"))
			}
		}
		errs = append(errs, validateRecursiveReadOnly(m, p.Child("recursiveReadOnly"))...)
	}
	return errs
}

func validateRecursiveReadOnly(m *corev1.VolumeMount, p *field.Path) (errs field.ErrorList) {
	if m.RecursiveReadOnly == nil || *m.RecursiveReadOnly == corev1.RecursiveReadOnlyDisabled {
		return nil
	}
	if errs = among(p, *m.RecursiveReadOnly, corev1.RecursiveReadOnlyDisabled, corev1.RecursiveReadOnlyEnabled, corev1.RecursiveReadOnlyIfPossible); len(errs) > 0 {
		return errs
	}
	if !m.ReadOnly {
		errs = append(errs, field.Forbidden(p, "may only be specified when readOnly is true"))
	}
	if m.MountPropagation != nil && *m.MountPropagation != corev1.MountPropagationNone {
		errs = append(errs, field.Forbidden(p, "may only be specified when mountPropagation is None or not specified"))
	}
	return errs
}

func (v *specValidator) validateDevices(c *corev1.Container, p *field.Path) (errs field.ErrorList) {
	names, paths := map[string]bool{}, map[string]bool{}
	if len(c.VolumeDevices) > 0 && v.spec.HostUsers != nil && !*v.spec.HostUsers {
		errs = append(errs, field.Forbidden(p, "when `hostUsers` is false"))
	}
	for i, d := range c.VolumeDevices {
		dp := p.Index(i)
		if d.Name == "" {
			errs = append(errs, field.Required(dp.Child("name"), ""))
		}
		if names[d.Name] {
			errs = append(errs, field.Invalid(dp.Child("name"), d.Name, "must be unique"))
		}
		volume := v.volumes[d.Name]
		if volume == nil {
			errs = append(errs, field.NotFound(dp.Child("name"), d.Name))
		} else if volume.PersistentVolumeClaim == nil && volume.Ephemeral == nil {
			errs = append(errs, field.Invalid(dp.Child("name"), d.Name, "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode"))
		}
		if d.DevicePath == "" {
			errs = append(errs, field.Required(dp.Child("devicePath"), ""))
		}
		if paths[d.DevicePath] {
			errs = append(errs, field.Invalid(dp.Child("devicePath"), d.DevicePath, "must be unique"))
		}
		if len(noBacksteps(dp, d.DevicePath)) > 0 {
			errs = append(errs, field.Invalid(dp.Child("devicePath"), d.DevicePath, "can not contain backsteps ('..')"))
		}
		names[d.Name], paths[d.DevicePath] = true, true
	}
	return errs
}
