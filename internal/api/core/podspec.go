package core

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
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

// DefaultPodTemplate fills in a pod template.
func DefaultPodTemplate(t *corev1.PodTemplateSpec) { DefaultPodSpec(&t.Spec) }

// DefaultPodSpec fills in what a pod leaves out, as the API reference says.
func DefaultPodSpec(s *corev1.PodSpec) {
	zero(&s.RestartPolicy, corev1.RestartPolicyAlways)
	zero(&s.DNSPolicy, corev1.DNSClusterFirst)
	zero(&s.SchedulerName, corev1.DefaultSchedulerName)
	def(&s.TerminationGracePeriodSeconds, int64(corev1.DefaultTerminationGracePeriodSeconds))
	def(&s.EnableServiceLinks, corev1.DefaultEnableServiceLinks)
	if s.SecurityContext == nil {
		s.SecurityContext = &corev1.PodSecurityContext{}
	}
	for i := range s.InitContainers {
		defaultContainer(&s.InitContainers[i], s.HostNetwork)
	}
	for i := range s.Containers {
		defaultContainer(&s.Containers[i], s.HostNetwork)
	}
	for i := range s.EphemeralContainers {
		c := corev1.Container(s.EphemeralContainers[i].EphemeralContainerCommon)
		defaultContainer(&c, false)
		s.EphemeralContainers[i].EphemeralContainerCommon = corev1.EphemeralContainerCommon(c)
	}
	for i := range s.Volumes {
		defaultVolume(&s.Volumes[i])
	}
}

func defaultContainer(c *corev1.Container, hostNetwork bool) {
	if c.ImagePullPolicy == "" {
		c.ImagePullPolicy = corev1.PullIfNotPresent
		if tag, digest := imageTag(c.Image); digest == "" && (tag == "" || tag == "latest") {
			c.ImagePullPolicy = corev1.PullAlways
		}
	}
	zero(&c.TerminationMessagePath, corev1.TerminationMessagePathDefault)
	zero(&c.TerminationMessagePolicy, corev1.TerminationMessageReadFile)
	for i := range c.Ports {
		p := &c.Ports[i]
		zero(&p.Protocol, corev1.ProtocolTCP)
		if hostNetwork {
			zero(&p.HostPort, p.ContainerPort)
		}
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
	for _, p := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe} {
		defaultProbe(p)
	}
	if c.Lifecycle != nil {
		for _, h := range []*corev1.LifecycleHandler{c.Lifecycle.PostStart, c.Lifecycle.PreStop} {
			if h != nil {
				defaultHTTP(h.HTTPGet)
			}
		}
	}
	// A limit without a request is its request too.
	for name, q := range c.Resources.Limits {
		if _, ok := c.Resources.Requests[name]; !ok {
			if c.Resources.Requests == nil {
				c.Resources.Requests = corev1.ResourceList{}
			}
			c.Resources.Requests[name] = q.DeepCopy()
		}
	}
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
	if s := v.Secret; s != nil {
		def(&s.DefaultMode, corev1.SecretVolumeSourceDefaultMode)
	}
	if s := v.ConfigMap; s != nil {
		def(&s.DefaultMode, corev1.ConfigMapVolumeSourceDefaultMode)
	}
	if s := v.DownwardAPI; s != nil {
		def(&s.DefaultMode, corev1.DownwardAPIVolumeSourceDefaultMode)
		for i := range s.Items {
			defaultDownward(&s.Items[i])
		}
	}
	if s := v.Projected; s != nil {
		def(&s.DefaultMode, corev1.ProjectedVolumeSourceDefaultMode)
		for i := range s.Sources {
			if t := s.Sources[i].ServiceAccountToken; t != nil {
				def(&t.ExpirationSeconds, int64(3600))
			}
			if d := s.Sources[i].DownwardAPI; d != nil {
				for j := range d.Items {
					defaultDownward(&d.Items[j])
				}
			}
		}
	}
	if s := v.HostPath; s != nil {
		def(&s.Type, corev1.HostPathUnset)
	}
	if s := v.ISCSI; s != nil {
		zero(&s.ISCSIInterface, "default")
	}
	if s := v.Image; s != nil && s.PullPolicy == "" {
		s.PullPolicy = corev1.PullIfNotPresent
		if tag, digest := imageTag(s.Reference); digest == "" && (tag == "" || tag == "latest") {
			s.PullPolicy = corev1.PullAlways
		}
	}
	if e := v.Ephemeral; e != nil && e.VolumeClaimTemplate != nil {
		def(&e.VolumeClaimTemplate.Spec.VolumeMode, corev1.PersistentVolumeFilesystem)
	}
}

func defaultDownward(f *corev1.DownwardAPIVolumeFile) {
	if f.FieldRef != nil {
		zero(&f.FieldRef.APIVersion, "v1")
	}
}

// QOSClass is the quality of service class of a pod's requests and limits.
func QOSClass(pod *corev1.Pod) corev1.PodQOSClass {
	any, guaranteed := false, true
	check := func(r *corev1.ResourceRequirements) {
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			req, hasReq := r.Requests[name]
			lim, hasLim := r.Limits[name]
			hasReq, hasLim = hasReq && !req.IsZero(), hasLim && !lim.IsZero()
			any = any || hasReq || hasLim
			if !hasLim || hasReq && req.Cmp(lim) != 0 {
				guaranteed = false
			}
		}
	}
	if pod.Spec.Resources != nil {
		check(pod.Spec.Resources)
	} else {
		for _, list := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
			for i := range list {
				check(&list[i].Resources)
			}
		}
	}
	switch {
	case !any:
		return corev1.PodQOSBestEffort
	case guaranteed:
		return corev1.PodQOSGuaranteed
	}
	return corev1.PodQOSBurstable
}
