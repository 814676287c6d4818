package core

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// PodTemplateWarnings tells of what is valid in a pod template and yet is most
// likely not meant, or will not be understood much longer.
func PodTemplateWarnings(t *corev1.PodTemplateSpec, p *field.Path) []string {
	return podSpecWarnings(&t.Spec, t.Annotations, p)
}

// warnings collects texts of the form "path: text".
type warnings []string

func (w *warnings) add(p *field.Path, format string, args ...any) {
	*w = append(*w, p.String()+": "+fmt.Sprintf(format, args...))
}

// staleLabels are labels of nodes that have got other names.
var staleLabels = map[string]string{
	"beta.kubernetes.io/arch":                       `deprecated since v1.14; use "kubernetes.io/arch" instead`,
	"beta.kubernetes.io/os":                         `deprecated since v1.14; use "kubernetes.io/os" instead`,
	"failure-domain.beta.kubernetes.io/region":      `deprecated since v1.17; use "topology.kubernetes.io/region" instead`,
	"failure-domain.beta.kubernetes.io/zone":        `deprecated since v1.17; use "topology.kubernetes.io/zone" instead`,
	"beta.kubernetes.io/instance-type":              `deprecated since v1.17; use "node.kubernetes.io/instance-type" instead`,
	"app.kubernetes.io/created-by":                  `deprecated since v1.9`,
	"scheduler.alpha.kubernetes.io/preferAvoidPods": `deprecated since v1.22; use Taints and Tolerations instead`,
	"node-role.kubernetes.io/master":                `use "node-role.kubernetes.io/control-plane" instead`,
}

var staleAnnotations = []struct{ key, message string }{
	{"scheduler.alpha.kubernetes.io/critical-pod", `non-functional in v1.16+; use the "priorityClassName" field instead`},
	{"security.alpha.kubernetes.io/sysctls", `non-functional in v1.11+; use the "sysctls" field instead`},
	{"security.alpha.kubernetes.io/unsafe-sysctls", `non-functional in v1.11+; use the "sysctls" field instead`},
}

const (
	seccompPodAnnotation       = "seccomp.security.alpha.kubernetes.io/pod"
	seccompContainerAnnotation = "container.seccomp.security.alpha.kubernetes.io/"
	matchesNothing             = "a null labelSelector results in matching no pod"
	fractional                 = "fractional byte value %q is invalid, must be an integer"
)

func podSpecWarnings(s *corev1.PodSpec, annotations map[string]string, root *field.Path) []string {
	var w warnings
	p := root.Child("spec")
	w.scheduling(s, p)
	for _, old := range staleAnnotations {
		if _, ok := annotations[old.key]; ok {
			w.add(root.Child("metadata", "annotations").Key(old.key), "%s", old.message)
		}
	}
	for i := range s.Volumes {
		w.volume(&s.Volumes[i], p.Child("volumes").Index(i))
	}
	hosts, secrets := map[string]bool{}, map[string]bool{}
	for i, a := range s.HostAliases {
		if hosts[a.IP] {
			w.add(p.Child("hostAliases").Index(i).Child("ip"), "duplicate ip %q", a.IP)
		}
		hosts[a.IP] = true
	}
	for i, secret := range s.ImagePullSecrets {
		if secrets[secret.Name] {
			w.add(p.Child("imagePullSecrets").Index(i).Child("name"), "duplicate name %q", secret.Name)
		}
		secrets[secret.Name] = true
	}
	for i, secret := range s.ImagePullSecrets {
		if secret.Name == "" {
			w.add(p.Child("imagePullSecrets").Index(i).Child("name"), "invalid empty name %q", "")
		}
	}
	w.fractions(s.Overhead, p.Child("overhead"))
	if _, ok := annotations[seccompPodAnnotation]; ok && (s.SecurityContext == nil || s.SecurityContext.SeccompProfile == nil) {
		w.add(root.Child("metadata", "annotations").Key(seccompPodAnnotation), `non-functional in v1.27+; use the "seccompProfile" field instead`)
	}
	v := specValidator{spec: s, path: p}
	v.eachContainer(func(c *corev1.Container, cp *field.Path) {
		w.container(c, cp, annotations, root)
	})
	w.ports(&v)
	if g := s.TerminationGracePeriodSeconds; g != nil && *g < 0 {
		w.add(p.Child("terminationGracePeriodSeconds"), "must be >= 0; negative values are invalid and will be treated as 1")
	}
	w.affinity(s, p.Child("affinity"))
	if s.DNSConfig != nil {
		for i, ns := range s.DNSConfig.Nameservers {
			w = append(w, utilvalidation.GetWarningsForIP(p.Child("dnsConfig", "nameservers").Index(i), ns)...)
		}
	}
	for i, a := range s.HostAliases {
		w = append(w, utilvalidation.GetWarningsForIP(p.Child("hostAliases").Index(i).Child("ip"), a.IP)...)
	}
	return w
}

func (w *warnings) scheduling(s *corev1.PodSpec, p *field.Path) {
	for _, key := range slices.Sorted(maps.Keys(s.NodeSelector)) {
		if message, ok := staleLabels[key]; ok {
			w.add(p.Child("nodeSelector").Key(key), "%s", message)
		}
	}
	if s.Affinity != nil && s.Affinity.NodeAffinity != nil {
		n, np := s.Affinity.NodeAffinity, p.Child("affinity", "nodeAffinity")
		if r := n.RequiredDuringSchedulingIgnoredDuringExecution; r != nil {
			*w = append(*w, nodeSelectorWarnings(r, np.Child("requiredDuringSchedulingIgnoredDuringExecution"))...)
		}
		for i := range n.PreferredDuringSchedulingIgnoredDuringExecution {
			t := &n.PreferredDuringSchedulingIgnoredDuringExecution[i].Preference
			tp := np.Child("preferredDuringSchedulingIgnoredDuringExecution").Index(i).Child("preference")
			w.term(t, tp)
			for j, r := range t.MatchExpressions {
				for k, value := range r.Values {
					for _, msg := range utilvalidation.IsValidLabelValue(value) {
						w.add(tp.Child("matchExpressions").Index(j).Child("values").Index(k), "%s is invalid, %s", value, msg)
					}
				}
			}
		}
	}
	for i := range s.TopologySpreadConstraints {
		c, cp := &s.TopologySpreadConstraints[i], p.Child("topologySpreadConstraints").Index(i)
		if message, ok := staleLabels[c.TopologyKey]; ok {
			w.add(cp.Child("topologyKey"), "%s is %s", c.TopologyKey, message)
		}
		if c.LabelSelector == nil {
			w.add(cp.Child("labelSelector"), matchesNothing)
		}
	}
}

func (w *warnings) term(t *corev1.NodeSelectorTerm, p *field.Path) {
	for i, r := range t.MatchExpressions {
		if message, ok := staleLabels[r.Key]; ok {
			w.add(p.Child("matchExpressions").Index(i).Child("key"), "%s is %s", r.Key, message)
		}
	}
}

func nodeSelectorWarnings(s *corev1.NodeSelector, p *field.Path) []string {
	var w warnings
	for i := range s.NodeSelectorTerms {
		w.term(&s.NodeSelectorTerms[i], p.Child("nodeSelectorTerms").Index(i))
	}
	return w
}

func (w *warnings) affinity(s *corev1.PodSpec, p *field.Path) {
	terms := func(required []corev1.PodAffinityTerm, preferred []corev1.WeightedPodAffinityTerm, ap *field.Path) {
		for i := range required {
			if required[i].LabelSelector == nil {
				w.add(ap.Child("requiredDuringSchedulingIgnoredDuringExecution").Index(i).Child("labelSelector"), matchesNothing)
			}
		}
		for i := range preferred {
			if preferred[i].PodAffinityTerm.LabelSelector == nil {
				w.add(ap.Child("preferredDuringSchedulingIgnoredDuringExecution").Index(i).Child("podAffinityTerm", "labelSelector"), matchesNothing)
			}
		}
	}
	if s.Affinity == nil {
		return
	}
	if a := s.Affinity.PodAffinity; a != nil {
		terms(a.RequiredDuringSchedulingIgnoredDuringExecution, a.PreferredDuringSchedulingIgnoredDuringExecution, p.Child("podAffinity"))
	}
	if a := s.Affinity.PodAntiAffinity; a != nil {
		terms(a.RequiredDuringSchedulingIgnoredDuringExecution, a.PreferredDuringSchedulingIgnoredDuringExecution, p.Child("podAntiAffinity"))
	}
}

// goneVolumes names the drivers that Kubernetes has no more.
func goneVolumes(cephfs, glusterfs, photon, quobyte, rbd, scaleIO, storageOS, flocker bool) (gone []struct{ name, message string }) {
	for _, v := range []struct {
		set             bool
		name, from, end string
	}{{photon, "photonPersistentDisk", "1.11", "1.16"}, {scaleIO, "scaleIO", "1.16", "1.22"}, {flocker, "flocker", "1.22", "1.25"}, {storageOS, "storageOS", "1.22", "1.25"},
		{quobyte, "quobyte", "1.22", "1.25"}, {glusterfs, "glusterfs", "1.25", "1.26"}, {cephfs, "cephfs", "1.28", "1.31"}, {rbd, "rbd", "1.28", "1.31"}} {
		if v.set {
			gone = append(gone, struct{ name, message string }{v.name, fmt.Sprintf("deprecated in v%s, non-functional in v%s+", v.from, v.end)})
		}
	}
	return gone
}

func (w *warnings) volume(v *corev1.Volume, p *field.Path) {
	if v.GitRepo != nil {
		w.add(p.Child("gitRepo"), "deprecated in v1.11, and disabled by default in v1.33+")
	}
	for _, gone := range goneVolumes(v.CephFS != nil, v.Glusterfs != nil, v.PhotonPersistentDisk != nil, v.Quobyte != nil, v.RBD != nil, v.ScaleIO != nil, v.StorageOS != nil, v.Flocker != nil) {
		w.add(p.Child(gone.name), "%s", gone.message)
	}
	if v.Ephemeral != nil && v.Ephemeral.VolumeClaimTemplate != nil {
		w.claim(&v.Ephemeral.VolumeClaimTemplate.Spec, p.Child("ephemeral", "volumeClaimTemplate", "spec"))
	}
}

// claim warns of parts of a byte.
func (w *warnings) claim(s *corev1.PersistentVolumeClaimSpec, p *field.Path) {
	for _, list := range []struct {
		name string
		list corev1.ResourceList
	}{{"requests", s.Resources.Requests}, {"limits", s.Resources.Limits}} {
		if q, ok := list.list[corev1.ResourceStorage]; ok && q.MilliValue()%1000 != 0 {
			w.add(p.Child("resources", list.name).Key(string(corev1.ResourceStorage)), fractional, q.String())
		}
	}
}

func (w *warnings) fractions(list corev1.ResourceList, p *field.Path) {
	for _, name := range []corev1.ResourceName{corev1.ResourceMemory, corev1.ResourceEphemeralStorage} {
		if q, ok := list[name]; ok && q.MilliValue()%1000 != 0 {
			w.add(p.Key(string(name)), fractional, q.String())
		}
	}
}

func (w *warnings) container(c *corev1.Container, p *field.Path, annotations map[string]string, root *field.Path) {
	key := seccompContainerAnnotation + c.Name
	if _, ok := annotations[key]; ok && (c.SecurityContext == nil || c.SecurityContext.SeccompProfile == nil) {
		w.add(root.Child("metadata", "annotations").Key(key), `non-functional in v1.27+; use the "seccompProfile" field instead`)
	}
	key = corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix + c.Name
	// A pod's own annotation is still heeded; a template's shall be replaced.
	if _, ok := annotations[key]; ok && root != nil && (c.SecurityContext == nil || c.SecurityContext.AppArmorProfile == nil) {
		w.add(root.Child("metadata", "annotations").Key(key), `deprecated since v1.30; use the "appArmorProfile" field instead`)
	}
	for _, name := range []corev1.ResourceName{corev1.ResourceMemory, corev1.ResourceEphemeralStorage} {
		for _, list := range []struct {
			name string
			list corev1.ResourceList
		}{{"limits", c.Resources.Limits}, {"requests", c.Resources.Requests}} {
			if q, ok := list.list[name]; ok && q.MilliValue()%1000 != 0 {
				w.add(p.Child("resources", list.name).Key(string(name)), fractional, q.String())
			}
		}
	}
	seen := make(map[string]bool, len(c.Env))
	for i := range c.Env {
		e := &c.Env[i]
		// What builds on the earlier value does not hide it.
		if own := "$(" + e.Name + ")"; seen[e.Name] && (e.ValueFrom != nil || e.Value == own || !strings.Contains(e.Value, own)) {
			w.add(p.Child("env").Index(i), "hides previous definition of %q, which may be dropped when using apply", e.Name)
		}
		seen[e.Name] = true
	}
}

// ports warns of ports that several containers say they listen on, or share the name of.
func (w *warnings) ports(v *specValidator) {
	type numbered struct {
		path *field.Path
		port *corev1.ContainerPort
	}
	type key struct {
		protocol corev1.Protocol
		number   int32
	}
	all := map[key][]numbered{}
	v.eachContainer(func(c *corev1.Container, p *field.Path) {
		for i := range c.Ports {
			port, pp := &c.Ports[i], p.Child("ports").Index(i)
			if port.HostIP != "" && port.HostPort == 0 {
				w.add(pp, "hostIP set without hostPort: %+v", *port)
			}
			k := key{port.Protocol, port.ContainerPort}
			for _, other := range all[k] {
				switch o := other.port; {
				case port.HostIP == o.HostIP && port.HostPort == o.HostPort:
					w.add(pp, "duplicate port definition with %s", other.path)
				case port.HostPort == 0 || o.HostPort == 0:
					w.add(pp, "overlapping port definition with %s", other.path)
				case port.HostPort == o.HostPort && (port.HostIP == "") != (o.HostIP == ""):
					w.add(pp, "dangerously ambiguous port definition with %s", other.path)
				}
			}
			all[k] = append(all[k], numbered{pp, port})
		}
	})
	names := map[string]*field.Path{}
	v.eachContainer(func(c *corev1.Container, p *field.Path) {
		for i := range c.Ports {
			name, pp := c.Ports[i].Name, p.Child("ports").Index(i)
			if name == "" {
				continue
			}
			if other, ok := names[name]; ok {
				w.add(pp, "duplicate port name %q with %s, services and probes that select ports by name will use %s", name, other, other)
			} else {
				names[name] = pp
			}
		}
	})
}
