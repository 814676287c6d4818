package core

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	resourcehelper "k8s.io/component-helpers/resource"
)

func def[T any](p **T, v T) {
	if *p == nil {
		*p = &v
	}
}

func zero[T comparable](p *T, v T) {
	var none T
	if *p == none {
		*p = v
	}
}

func defaultPodSpec(s *corev1.PodSpec) {
	zero(&s.RestartPolicy, corev1.RestartPolicyAlways)
	zero(&s.DNSPolicy, corev1.DNSClusterFirst)
	zero(&s.SchedulerName, corev1.DefaultSchedulerName)
	def(&s.TerminationGracePeriodSeconds, int64(corev1.DefaultTerminationGracePeriodSeconds))
	if s.SecurityContext == nil {
		s.SecurityContext = &corev1.PodSecurityContext{}
	}
	// serviceAccount is the old name of serviceAccountName: clients that write either find both.
	zero(&s.ServiceAccountName, s.DeprecatedServiceAccount)
	s.DeprecatedServiceAccount = s.ServiceAccountName
	for i := range s.InitContainers {
		defaultContainer(&s.InitContainers[i])
	}
	for i := range s.Containers {
		defaultContainer(&s.Containers[i])
	}
	for i := range s.EphemeralContainers {
		// Both types have the same fields in the same order, so the one is a view of the other.
		defaultContainer((*corev1.Container)(&s.EphemeralContainers[i].EphemeralContainerCommon))
	}
	for i := range s.Volumes {
		defaultVolume(&s.Volumes[i])
	}
}

// defaultPod adds what pods get and templates do not.
func defaultPod(pod *corev1.Pod) {
	s := &pod.Spec
	defaultPodSpec(s)
	def(&s.EnableServiceLinks, corev1.DefaultEnableServiceLinks)
	if g := s.TerminationGracePeriodSeconds; *g < 0 { // templates keep what they have for historical reasons
		*g = 1
	}
	for _, list := range [][]corev1.Container{s.Containers, s.InitContainers} {
		for i := range list {
			c := &list[i]
			fillList(&c.Resources.Requests, c.Resources.Limits)
			if !s.HostNetwork {
				continue
			}
			for j := range c.Ports {
				zero(&c.Ports[j].HostPort, c.Ports[j].ContainerPort)
			}
		}
	}
	if podLevelResources(s) {
		defaultPodResources(pod)
	}
	// podIP is the first of podIPs; a writer may send either form.
	st := &pod.Status
	if st.PodIP != "" && (len(st.PodIPs) == 0 || st.PodIPs[0].IP != st.PodIP) {
		st.PodIPs = []corev1.PodIP{{IP: st.PodIP}}
	} else if st.PodIP == "" && len(st.PodIPs) > 0 {
		st.PodIP = st.PodIPs[0].IP
	}
}

// defaultPodResources (KEP-2837): what the pod as a whole does not request is
// what its containers request together, and else its limit.
func defaultPodResources(pod *corev1.Pod) {
	r := pod.Spec.Resources
	var sum corev1.ResourceList
	for name, q := range resourcehelper.AggregateContainerRequests(pod, resourcehelper.PodResourcesOptions{}) {
		if name != corev1.ResourceCPU && name != corev1.ResourceMemory {
			continue // huge pages cannot be overcommitted: their request is their limit
		}
		if sum == nil {
			sum = corev1.ResourceList{}
		}
		sum[name] = q
	}
	fillList(&r.Requests, sum)
	var limits corev1.ResourceList
	for name, q := range r.Limits {
		if isPodLevelResource(name) {
			if limits == nil {
				limits = corev1.ResourceList{}
			}
			limits[name] = q
		}
	}
	fillList(&r.Requests, limits)
}

// fillList adds to a list what it lacks of another.
func fillList(to *corev1.ResourceList, from corev1.ResourceList) {
	for name, q := range from {
		if _, ok := (*to)[name]; !ok {
			if *to == nil {
				*to = make(corev1.ResourceList, len(from))
			}
			(*to)[name] = q.DeepCopy()
		}
	}
}

func defaultContainer(c *corev1.Container) {
	zero(&c.ImagePullPolicy, pullPolicy(c.Image))
	zero(&c.TerminationMessagePath, corev1.TerminationMessagePathDefault)
	zero(&c.TerminationMessagePolicy, corev1.TerminationMessageReadFile)
	for i := range c.Ports {
		zero(&c.Ports[i].Protocol, corev1.ProtocolTCP)
	}
	for i := range c.Env {
		if from := c.Env[i].ValueFrom; from != nil {
			if from.FieldRef != nil {
				zero(&from.FieldRef.APIVersion, "v1")
			}
			if from.FileKeyRef != nil {
				def(&from.FileKeyRef.Optional, false)
			}
		}
	}
	for i := range c.VolumeMounts {
		c.VolumeMounts[i].BindMountOptions = nil // alpha, off
	}
	defaultProbe(c.LivenessProbe)
	defaultProbe(c.ReadinessProbe)
	defaultProbe(c.StartupProbe)
	if c.Lifecycle != nil {
		if h := c.Lifecycle.PostStart; h != nil {
			defaultHTTP(h.HTTPGet)
		}
		if h := c.Lifecycle.PreStop; h != nil {
			defaultHTTP(h.HTTPGet)
		}
	}
}

// pullPolicy is Always for images that move: those with the tag latest, or none.
func pullPolicy(image string) corev1.PullPolicy {
	if tag, digest := imageTag(image); validImage(image) && digest == "" && (tag == "" || tag == "latest") {
		return corev1.PullAlways
	}
	return corev1.PullIfNotPresent
}

// validImage reports whether an image can have that name: what cannot be parsed has no tag to go by.
func validImage(image string) bool {
	name, _, _ := strings.Cut(image, "@")
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		name = name[:i]
	}
	parts := strings.Split(name, "/")
	if first := parts[0]; len(parts) > 1 && (strings.ContainsAny(first, ".:") || first == "localhost" || strings.ToLower(first) != first) {
		if strings.Trim(first, ".-") != first {
			return false
		}
		parts = parts[1:] // the registry
	}
	for _, part := range parts {
		if part == "" || strings.Trim(part, "._-") != part || strings.ContainsFunc(part, func(r rune) bool {
			return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '.' && r != '_' && r != '-'
		}) {
			return false
		}
	}
	return true
}

// imageTag splits the tag and digest off an image name.
func imageTag(image string) (tag, digest string) {
	image, digest, _ = strings.Cut(image, "@")
	if i := strings.LastIndexByte(image, ':'); i > strings.LastIndexByte(image, '/') {
		tag = image[i+1:]
	}
	return tag, digest
}

func defaultProbe(p *corev1.Probe) {
	if p == nil {
		return
	}
	zero(&p.TimeoutSeconds, 1)
	zero(&p.PeriodSeconds, 10)
	zero(&p.SuccessThreshold, 1)
	zero(&p.FailureThreshold, 3)
	defaultHTTP(p.HTTPGet)
	if p.GRPC != nil {
		def(&p.GRPC.Service, "")
	}
}

func defaultHTTP(h *corev1.HTTPGetAction) {
	if h == nil {
		return
	}
	zero(&h.Path, "/")
	zero(&h.Scheme, corev1.URISchemeHTTP)
}

func defaultVolume(v *corev1.Volume) {
	if v.VolumeSource == (corev1.VolumeSource{}) {
		v.EmptyDir = &corev1.EmptyDirVolumeSource{}
	}
	switch s := &v.VolumeSource; {
	case s.Secret != nil:
		def(&s.Secret.DefaultMode, corev1.SecretVolumeSourceDefaultMode)
	case s.ConfigMap != nil:
		def(&s.ConfigMap.DefaultMode, corev1.ConfigMapVolumeSourceDefaultMode)
	case s.DownwardAPI != nil:
		def(&s.DownwardAPI.DefaultMode, corev1.DownwardAPIVolumeSourceDefaultMode)
		defaultDownward(s.DownwardAPI.Items)
	case s.Projected != nil:
		defaultProjected(s.Projected)
	case s.HostPath != nil:
		def(&s.HostPath.Type, corev1.HostPathUnset)
	case s.ISCSI != nil:
		zero(&s.ISCSI.ISCSIInterface, "default")
	case s.RBD != nil:
		zero(&s.RBD.RBDPool, "rbd")
		zero(&s.RBD.RadosUser, "admin")
		zero(&s.RBD.Keyring, "/etc/ceph/keyring")
	case s.AzureDisk != nil:
		defaultAzureDisk(s.AzureDisk)
	case s.ScaleIO != nil:
		zero(&s.ScaleIO.StorageMode, "ThinProvisioned")
		zero(&s.ScaleIO.FSType, "xfs")
	case s.Image != nil:
		zero(&s.Image.PullPolicy, pullPolicy(s.Image.Reference))
	case s.Ephemeral != nil && s.Ephemeral.VolumeClaimTemplate != nil:
		defaultClaimSpec(&s.Ephemeral.VolumeClaimTemplate.Spec)
	}
}

func defaultAzureDisk(s *corev1.AzureDiskVolumeSource) {
	def(&s.CachingMode, corev1.AzureDataDiskCachingReadWrite)
	def(&s.Kind, corev1.AzureSharedBlobDisk)
	def(&s.FSType, "ext4")
	def(&s.ReadOnly, false)
}

func defaultProjected(s *corev1.ProjectedVolumeSource) {
	def(&s.DefaultMode, corev1.ProjectedVolumeSourceDefaultMode)
	for i := range s.Sources {
		src := &s.Sources[i]
		if t := src.ServiceAccountToken; t != nil {
			def(&t.ExpirationSeconds, int64(60*60))
		}
		if d := src.DownwardAPI; d != nil {
			defaultDownward(d.Items)
		}
	}
}

func defaultDownward(items []corev1.DownwardAPIVolumeFile) {
	for i := range items {
		if ref := items[i].FieldRef; ref != nil {
			zero(&ref.APIVersion, "v1")
		}
	}
}
