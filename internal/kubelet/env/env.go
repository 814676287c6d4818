// Package env makes a container's environment, command and arguments from its
// spec: $(VAR) expansion, values from ConfigMaps, Secrets, env files, the pod's
// own fields and the variables of services. It also renders the downward API,
// which volumes share. It does no I/O: what it needs is handed in.
package env

import (
	"fmt"
	"maps"
	"math"
	"net"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Sources is where values come from. ConfigMap and Secret return an API error
// that says not found when there is none.
type Sources struct {
	ConfigMap func(name string) (*corev1.ConfigMap, error)
	Secret    func(name string) (*corev1.Secret, error)
	// File reads an env file of a volume.
	File     func(volume, path string) ([]byte, error)
	NotFound func(error) bool

	// Services are those of the pod's namespace, API those that every pod sees
	// (the service "kubernetes" of namespace default).
	Services, API []*corev1.Service

	HostIPs, PodIPs []string
	Allocatable     corev1.ResourceList
	// Skipped is told the keys of an envFrom that are no names of variables.
	Skipped func(kind, name string, keys []string)
}

// Var is one variable.
type Var struct{ Name, Value string }

// Make returns the variables of a container in the order of its spec: services,
// envFrom, env. A later one of the same name replaces the earlier.
func Make(pod *corev1.Pod, c *corev1.Container, s Sources) ([]Var, error) {
	out := newVars()
	service := map[string]string{}
	if pod.Spec.EnableServiceLinks == nil || *pod.Spec.EnableServiceLinks {
		for _, svc := range s.Services {
			serviceVars(service, svc)
		}
	}
	for _, svc := range s.API {
		serviceVars(service, svc)
	}
	if err := fromSources(pod, c, s, out); err != nil {
		return nil, err
	}
	lookup := func(name string) (string, bool) {
		if v, ok := out.get(name); ok {
			return v, true
		}
		v, ok := service[name]
		return v, ok
	}
	for i := range c.Env {
		e := &c.Env[i]
		if e.ValueFrom == nil {
			out.set(e.Name, Expand(e.Value, lookup))
			continue
		}
		v, ok, err := valueFrom(pod, c, e, s)
		if err != nil {
			return nil, err
		}
		if ok {
			out.set(e.Name, v)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(service)) {
		if _, ok := out.get(k); !ok {
			out.set(k, service[k])
		}
	}
	return out.list, nil
}

type vars struct {
	list []Var
	at   map[string]int
}

func newVars() *vars { return &vars{at: map[string]int{}} }

func (v *vars) set(name, value string) {
	if i, ok := v.at[name]; ok {
		v.list[i].Value = value
		return
	}
	v.at[name] = len(v.list)
	v.list = append(v.list, Var{name, value})
}

func (v *vars) get(name string) (string, bool) {
	i, ok := v.at[name]
	if !ok {
		return "", false
	}
	return v.list[i].Value, true
}

func fromSources(pod *corev1.Pod, c *corev1.Container, s Sources, out *vars) error {
	for _, from := range c.EnvFrom {
		data := map[string]string{}
		var kind, name string
		switch {
		case from.ConfigMapRef != nil:
			kind, name = "configMap", from.ConfigMapRef.Name
			cm, err := s.ConfigMap(name)
			if err != nil {
				if s.NotFound(err) && isTrue(from.ConfigMapRef.Optional) {
					continue
				}
				return err
			}
			data = cm.Data
		case from.SecretRef != nil:
			kind, name = "secret", from.SecretRef.Name
			sec, err := s.Secret(name)
			if err != nil {
				if s.NotFound(err) && isTrue(from.SecretRef.Optional) {
					continue
				}
				return err
			}
			for k, v := range sec.Data {
				data[k] = string(v)
			}
		}
		var bad []string
		for _, k := range slices.Sorted(maps.Keys(data)) {
			full := from.Prefix + k
			if !validName(full) {
				bad = append(bad, full)
				continue
			}
			out.set(full, data[k])
		}
		if len(bad) > 0 && s.Skipped != nil {
			s.Skipped(kind, pod.Namespace+"/"+name, bad)
		}
	}
	return nil
}

// validName: printable ASCII except "=" (KEP-4369).
func validName(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < 0x20 || s[i] > 0x7e || s[i] == '=' {
			return false
		}
	}
	return s != ""
}

func valueFrom(pod *corev1.Pod, c *corev1.Container, e *corev1.EnvVar, s Sources) (string, bool, error) {
	switch from := e.ValueFrom; {
	case from.FieldRef != nil:
		v, err := Field(pod, from.FieldRef.FieldPath, s.HostIPs, s.PodIPs)
		return v, true, err
	case from.ResourceFieldRef != nil:
		v, err := Resource(pod, c, from.ResourceFieldRef, s.Allocatable)
		return v, true, err
	case from.ConfigMapKeyRef != nil:
		ref := from.ConfigMapKeyRef
		cm, err := s.ConfigMap(ref.Name)
		if err != nil {
			if s.NotFound(err) && isTrue(ref.Optional) {
				return "", false, nil
			}
			return "", false, err
		}
		if v, ok := cm.Data[ref.Key]; ok {
			return v, true, nil
		}
		if isTrue(ref.Optional) {
			return "", false, nil
		}
		return "", false, fmt.Errorf("couldn't find key %v in ConfigMap %v/%v", ref.Key, pod.Namespace, ref.Name)
	case from.SecretKeyRef != nil:
		ref := from.SecretKeyRef
		sec, err := s.Secret(ref.Name)
		if err != nil {
			if s.NotFound(err) && isTrue(ref.Optional) {
				return "", false, nil
			}
			return "", false, err
		}
		if v, ok := sec.Data[ref.Key]; ok {
			return string(v), true, nil
		}
		if isTrue(ref.Optional) {
			return "", false, nil
		}
		return "", false, fmt.Errorf("couldn't find key %v in Secret %v/%v", ref.Key, pod.Namespace, ref.Name)
	case from.FileKeyRef != nil:
		ref := from.FileKeyRef
		data, err := s.File(ref.VolumeName, ref.Path)
		if err != nil {
			if isTrue(ref.Optional) && s.NotFound(err) {
				return "", false, nil
			}
			return "", false, fmt.Errorf("couldn't read env file %s of volume %s: %w", ref.Path, ref.VolumeName, err)
		}
		v, ok, err := FileKey(data, ref.Key)
		if err != nil {
			return "", false, fmt.Errorf("couldn't parse env file %s of volume %s: %w", ref.Path, ref.VolumeName, err)
		}
		if !ok && !isTrue(ref.Optional) {
			return "", false, fmt.Errorf("environment variable key %q not found in file %q", ref.Key, ref.Path)
		}
		return v, ok, nil
	}
	return "", false, fmt.Errorf("environment variable %s has no source", e.Name)
}

func isTrue(b *bool) bool { return b != nil && *b }

// maxFileKey is the longest key of an env file (KEP-5307).
const maxFileKey = 128

// FileKey finds a key in an env file: lines KEY='value' (the value in single
// quotes may span lines), blank lines and lines that begin with "#" aside.
func FileKey(data []byte, key string) (string, bool, error) {
	rest := strings.ReplaceAll(string(data), "\r\n", "\n")
	var value string
	found := false
	for n := 1; rest != ""; n++ {
		line, after, _ := strings.Cut(rest, "\n")
		t := strings.TrimSpace(line)
		if t == "" || t[0] == '#' {
			rest = after
			continue
		}
		k, v, ok := strings.Cut(rest, "=")
		if !ok || strings.Contains(k, "\n") {
			return "", false, fmt.Errorf("line %d: missing \"=\"", n)
		}
		if strings.TrimSpace(k) != k || !validName(k) || len(k) > maxFileKey {
			return "", false, fmt.Errorf("line %d: invalid key", n)
		}
		if v == "" || v[0] != '\'' {
			return "", false, fmt.Errorf("line %d: the value must be in single quotes", n)
		}
		end := strings.IndexByte(v[1:], '\'')
		if end < 0 {
			return "", false, fmt.Errorf("line %d: unterminated quoted value", n)
		}
		tail, after, _ := strings.Cut(v[end+2:], "\n")
		if tail = strings.TrimSpace(tail); tail != "" && tail[0] != '#' {
			return "", false, fmt.Errorf("line %d: unexpected text after the value", n)
		}
		if k == key {
			value, found = v[1:end+1], true
		}
		n += strings.Count(v[:end+1], "\n")
		rest = after
	}
	return value, found, nil
}

// serviceVars adds the docker-link style variables of a service.
func serviceVars(out map[string]string, svc *corev1.Service) {
	ip := svc.Spec.ClusterIP
	if ip == "" || ip == corev1.ClusterIPNone || len(svc.Spec.Ports) == 0 {
		return
	}
	name := strings.ToUpper(strings.ReplaceAll(svc.Name, "-", "_"))
	first := true
	for _, p := range svc.Spec.Ports {
		port := strconv.Itoa(int(p.Port))
		if first {
			out[name+"_SERVICE_HOST"], out[name+"_SERVICE_PORT"] = ip, port
		}
		if p.Name != "" {
			out[name+"_SERVICE_PORT_"+strings.ToUpper(strings.ReplaceAll(p.Name, "-", "_"))] = port
		}
		proto := string(p.Protocol)
		if proto == "" {
			proto = string(corev1.ProtocolTCP)
		}
		url := strings.ToLower(proto) + "://" + net.JoinHostPort(ip, port)
		if first {
			out[name+"_PORT"] = url
		}
		prefix := name + "_PORT_" + port + "_" + proto
		out[prefix], out[prefix+"_PROTO"], out[prefix+"_PORT"], out[prefix+"_ADDR"] = url, strings.ToLower(proto), port, ip
		first = false
	}
}

// Expand replaces $(NAME) by its value, leaves unknown names as they are and
// turns $$ into $.
func Expand(in string, lookup func(string) (string, bool)) string {
	if strings.IndexByte(in, '$') < 0 {
		return in
	}
	var b strings.Builder
	for i := 0; i < len(in); i++ {
		if in[i] != '$' || i+1 == len(in) {
			b.WriteByte(in[i])
			continue
		}
		switch in[i+1] {
		case '$':
			b.WriteByte('$')
			i++
		case '(':
			end := strings.IndexByte(in[i+2:], ')')
			if end < 0 {
				b.WriteString("$(")
				i++
				continue
			}
			name := in[i+2 : i+2+end]
			if v, ok := lookup(name); ok {
				b.WriteString(v)
			} else {
				b.WriteString("$(" + name + ")")
			}
			i += 2 + end
		default:
			b.WriteByte('$')
			b.WriteByte(in[i+1])
			i++
		}
	}
	return b.String()
}

// ExpandAll expands each string with the container's variables.
func ExpandAll(in []string, vars []Var) []string {
	if len(in) == 0 {
		return nil
	}
	lookup := Lookup(vars)
	out := make([]string, len(in))
	for i, s := range in {
		out[i] = Expand(s, lookup)
	}
	return out
}

// Lookup finds variables by name.
func Lookup(vars []Var) func(string) (string, bool) {
	return func(name string) (string, bool) {
		for i := range vars {
			if vars[i].Name == name {
				return vars[i].Value, true
			}
		}
		return "", false
	}
}

// ExpandStrict is Expand for subPathExpr: an unknown variable is an error.
func ExpandStrict(in string, vars []Var) (string, error) {
	var missing string
	lookup := Lookup(vars)
	out := Expand(in, func(name string) (string, bool) {
		v, ok := lookup(name)
		if !ok {
			missing = name
		}
		return v, ok
	})
	if missing != "" {
		return "", fmt.Errorf("missing value for %q", missing)
	}
	return out, nil
}

// Field returns a field of the pod as the downward API names it.
func Field(pod *corev1.Pod, path string, hostIPs, podIPs []string) (string, error) {
	if base, key, ok := subscript(path); ok {
		switch base {
		case "metadata.labels":
			return pod.Labels[key], nil
		case "metadata.annotations":
			return pod.Annotations[key], nil
		}
		return "", fmt.Errorf("fieldPath %q does not support subscript", path)
	}
	switch path {
	case "metadata.name":
		return pod.Name, nil
	case "metadata.namespace":
		return pod.Namespace, nil
	case "metadata.uid":
		return string(pod.UID), nil
	case "metadata.labels":
		return formatMap(pod.Labels), nil
	case "metadata.annotations":
		return formatMap(pod.Annotations), nil
	case "spec.nodeName":
		return pod.Spec.NodeName, nil
	case "spec.serviceAccountName":
		return pod.Spec.ServiceAccountName, nil
	case "status.hostIP":
		return first(hostIPs), nil
	case "status.hostIPs":
		return strings.Join(hostIPs, ","), nil
	case "status.podIP":
		return first(podIPs), nil
	case "status.podIPs":
		return strings.Join(podIPs, ","), nil
	}
	return "", fmt.Errorf("unsupported fieldPath: %v", path)
}

func first(s []string) string {
	if len(s) == 0 {
		return ""
	}
	return s[0]
}

func subscript(path string) (base, key string, ok bool) {
	if !strings.HasSuffix(path, "']") {
		return "", "", false
	}
	base, key, ok = strings.Cut(strings.TrimSuffix(path, "']"), "['")
	return base, key, ok
}

func formatMap(m map[string]string) string {
	var b strings.Builder
	for i, k := range slices.Sorted(maps.Keys(m)) {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "%s=%q", k, m[k])
	}
	return b.String()
}

// Resource returns a request or limit of a container in units of the divisor.
// A limit that is not set is what the node can give; an unset request is the limit.
func Resource(pod *corev1.Pod, c *corev1.Container, ref *corev1.ResourceFieldSelector, allocatable corev1.ResourceList) (string, error) {
	if ref.ContainerName != "" && (c == nil || ref.ContainerName != c.Name) {
		if c = findContainer(pod, ref.ContainerName); c == nil {
			return "", fmt.Errorf("container %s not found", ref.ContainerName)
		}
	}
	if c == nil {
		return "", fmt.Errorf("resource %s: no container given", ref.Resource)
	}
	kind, name, ok := strings.Cut(ref.Resource, ".")
	if !ok || (kind != "limits" && kind != "requests") {
		return "", fmt.Errorf("unsupported container resource : %v", ref.Resource)
	}
	r := corev1.ResourceName(name)
	switch {
	case r == corev1.ResourceCPU, r == corev1.ResourceMemory, r == corev1.ResourceEphemeralStorage, strings.HasPrefix(name, corev1.ResourceHugePagesPrefix):
	default:
		return "", fmt.Errorf("unsupported container resource : %v", ref.Resource)
	}
	limit, hasLimit := c.Resources.Limits[r]
	if !hasLimit && pod.Spec.Resources != nil {
		limit, hasLimit = pod.Spec.Resources.Limits[r]
	}
	q, has := limit, hasLimit
	if kind == "requests" {
		q, has = c.Resources.Requests[r]
	}
	if !has && kind == "limits" {
		q = allocatable[r]
	}
	divisor := ref.Divisor
	if divisor.IsZero() {
		divisor = resource.MustParse("1")
	}
	if r == corev1.ResourceCPU {
		return strconv.FormatInt(int64(math.Ceil(float64(q.MilliValue())/float64(divisor.MilliValue()))), 10), nil
	}
	return strconv.FormatInt(int64(math.Ceil(float64(q.Value())/float64(divisor.Value()))), 10), nil
}

func findContainer(pod *corev1.Pod, name string) *corev1.Container {
	for _, list := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return nil
}

// HostnameLimit is the longest hostname Linux takes.
const HostnameLimit = 63

// Hostname returns the pod's hostname and domain.
func Hostname(pod *corev1.Pod, clusterDomain string) (host, domain string, err error) {
	if pod.Spec.HostnameOverride != nil && *pod.Spec.HostnameOverride != "" {
		return *pod.Spec.HostnameOverride, "", nil
	}
	host = pod.Name
	if pod.Spec.Hostname != "" {
		host = pod.Spec.Hostname
	}
	if len(host) > HostnameLimit {
		host = strings.TrimRight(host[:HostnameLimit], "-.")
		if host == "" {
			return "", "", fmt.Errorf("hostname for pod %q was invalid", pod.Name)
		}
	}
	if pod.Spec.Subdomain != "" {
		domain = pod.Spec.Subdomain + "." + pod.Namespace + ".svc." + clusterDomain
	}
	if isTrue(pod.Spec.SetHostnameAsFQDN) && domain != "" {
		fqdn := host + "." + domain
		if len(fqdn) > 64 {
			return "", "", fmt.Errorf("failed to construct FQDN from pod hostname and cluster domain, FQDN %s is too long (%d characters is the max, %d characters requested)", fqdn, 64, len(fqdn))
		}
	}
	return host, domain, nil
}
