package pod

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/proa-dev/proa/internal/kubelet/cri"
	"github.com/proa-dev/proa/internal/kubelet/env"
	"github.com/proa-dev/proa/internal/kubelet/image"
)

// sandboxConfig is what the runtime gets to make the pod's sandbox.
func (d *Deps) sandboxConfig(pod *corev1.Pod, attempt uint32) (*runtimeapi.PodSandboxConfig, error) {
	host, domain, err := env.Hostname(pod, d.ClusterDomain)
	if err != nil {
		return nil, err
	}
	if f := pod.Spec.SetHostnameAsFQDN; f != nil && *f && domain != "" {
		host += "." + domain
	}
	if pod.Spec.HostNetwork && pod.Spec.HostnameOverride == nil {
		host = ""
		if h, err := os.Hostname(); err == nil {
			host = h
		}
	}
	dns, err := d.dns(pod)
	if err != nil {
		return nil, err
	}
	cfg := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: pod.Name, Namespace: pod.Namespace, Uid: string(pod.UID), Attempt: attempt},
		Hostname:     host,
		LogDirectory: d.PodLogDir(pod.Namespace, pod.Name, string(pod.UID)),
		DnsConfig:    dns,
		Labels:       map[string]string{},
		Annotations:  map[string]string{},
	}
	for k, v := range pod.Labels {
		cfg.Labels[k] = v
	}
	cfg.Labels[cri.LabelPodName], cfg.Labels[cri.LabelPodNamespace], cfg.Labels[cri.LabelPodUID] = pod.Name, pod.Namespace, string(pod.UID)
	for k, v := range pod.Annotations {
		cfg.Annotations[k] = v
	}
	cfg.Annotations[cri.AnnotationSource] = "api"
	for l, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			if l == 0 && list[i].RestartPolicy == nil {
				continue
			}
			for k := range list[i].Ports {
				cfg.PortMappings = append(cfg.PortMappings, portMapping(&list[i].Ports[k]))
			}
		}
	}
	cfg.Linux = d.linuxSandbox(pod)
	return cfg, nil
}

func portMapping(p *corev1.ContainerPort) *runtimeapi.PortMapping {
	proto := runtimeapi.Protocol_TCP
	switch p.Protocol {
	case corev1.ProtocolUDP:
		proto = runtimeapi.Protocol_UDP
	case corev1.ProtocolSCTP:
		proto = runtimeapi.Protocol_SCTP
	}
	return &runtimeapi.PortMapping{Protocol: proto, ContainerPort: p.ContainerPort, HostPort: p.HostPort, HostIp: p.HostIP}
}

func (d *Deps) linuxSandbox(pod *corev1.Pod) *runtimeapi.LinuxPodSandboxConfig {
	sc := &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: d.namespaces(pod, nil, ""), Seccomp: d.seccomp(pod, nil)}
	l := &runtimeapi.LinuxPodSandboxConfig{CgroupParent: d.cgroupParent(pod), SecurityContext: sc}
	for _, c := range pod.Spec.Containers {
		if c.SecurityContext != nil && c.SecurityContext.Privileged != nil && *c.SecurityContext.Privileged {
			sc.Privileged = true
		}
	}
	if p := pod.Spec.SecurityContext; p != nil {
		sc.RunAsUser, sc.RunAsGroup = int64Value(p.RunAsUser), int64Value(p.RunAsGroup)
		sc.SupplementalGroups = podGroups(p)
		sc.SupplementalGroupsPolicy = groupsPolicy(p)
		sc.SelinuxOptions = selinux(p.SELinuxOptions)
		sc.Apparmor = apparmor(p.AppArmorProfile)
		for _, s := range p.Sysctls {
			if l.Sysctls == nil {
				l.Sysctls = map[string]string{}
			}
			l.Sysctls[strings.ReplaceAll(s.Name, "/", ".")] = s.Value
		}
	}
	requests := resource.PodRequests(pod, resource.PodResourcesOptions{ExcludeOverhead: true})
	limits := resource.PodLimits(pod, resource.PodResourcesOptions{ExcludeOverhead: true})
	l.Resources = linuxResources(requests, podLimits(pod, limits), 0)
	l.Overhead = linuxResources(pod.Spec.Overhead, pod.Spec.Overhead, 0)
	if len(pod.Spec.Overhead) == 0 {
		l.Overhead = &runtimeapi.LinuxContainerResources{}
	}
	return l
}

// podLimits keeps a limit only when every container has one: the pod as a whole is
// otherwise not limited.
func podLimits(pod *corev1.Pod, sum corev1.ResourceList) corev1.ResourceList {
	out := corev1.ResourceList{}
	for _, n := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		all := true
		for i := range pod.Spec.Containers {
			all = all && positive(pod.Spec.Containers[i].Resources.Limits, n) != nil
		}
		if pod.Spec.Resources != nil && positive(pod.Spec.Resources.Limits, n) != nil {
			all = true
		}
		if q, ok := sum[n]; ok && all {
			out[n] = q
		}
	}
	return out
}

// cgroupParent is where the pod's cgroup is.
func (d *Deps) cgroupParent(pod *corev1.Pod) string {
	base := d.CgroupRoot + "/kubepods/"
	switch q := QOS(pod); q {
	case corev1.PodQOSBurstable:
		base += "burstable/"
	case corev1.PodQOSBestEffort:
		base += "besteffort/"
	}
	return base + "pod" + string(pod.UID)
}

func (d *Deps) namespaces(pod *corev1.Pod, c *corev1.Container, target string) *runtimeapi.NamespaceOption {
	n := &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_POD, Ipc: runtimeapi.NamespaceMode_POD, Pid: runtimeapi.NamespaceMode_CONTAINER}
	if pod.Spec.HostNetwork {
		n.Network = runtimeapi.NamespaceMode_NODE
	}
	if pod.Spec.HostIPC {
		n.Ipc = runtimeapi.NamespaceMode_NODE
	}
	switch {
	case pod.Spec.HostPID:
		n.Pid = runtimeapi.NamespaceMode_NODE
	case pod.Spec.ShareProcessNamespace != nil && *pod.Spec.ShareProcessNamespace:
		n.Pid = runtimeapi.NamespaceMode_POD
	case target != "":
		n.Pid, n.TargetId = runtimeapi.NamespaceMode_TARGET, target
	}
	n.UsernsOptions = d.Users.options(pod)
	return n
}

func (d *Deps) seccomp(pod *corev1.Pod, c *corev1.Container) *runtimeapi.SecurityProfile {
	if c != nil && c.SecurityContext != nil {
		if p := c.SecurityContext.Privileged; p != nil && *p {
			return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
		}
	}
	var prof *corev1.SeccompProfile
	if pod.Spec.SecurityContext != nil {
		prof = pod.Spec.SecurityContext.SeccompProfile
	}
	if c != nil && c.SecurityContext != nil && c.SecurityContext.SeccompProfile != nil {
		prof = c.SecurityContext.SeccompProfile
	}
	if prof != nil {
		switch prof.Type {
		case corev1.SeccompProfileTypeUnconfined:
			return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
		case corev1.SeccompProfileTypeLocalhost:
			ref := ""
			if prof.LocalhostProfile != nil && *prof.LocalhostProfile != "" {
				ref = filepath.Join(d.RootDir, "seccomp", filepath.Clean("/"+*prof.LocalhostProfile))
			}
			return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: ref}
		}
	}
	return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
}

func apparmor(p *corev1.AppArmorProfile) *runtimeapi.SecurityProfile {
	if p == nil {
		return nil
	}
	switch p.Type {
	case corev1.AppArmorProfileTypeUnconfined:
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
	case corev1.AppArmorProfileTypeLocalhost:
		ref := ""
		if p.LocalhostProfile != nil {
			ref = *p.LocalhostProfile
		}
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: ref}
	}
	return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
}

func selinux(o *corev1.SELinuxOptions) *runtimeapi.SELinuxOption {
	if o == nil {
		return nil
	}
	return &runtimeapi.SELinuxOption{User: o.User, Role: o.Role, Type: o.Type, Level: o.Level}
}

func int64Value(p *int64) *runtimeapi.Int64Value {
	if p == nil {
		return nil
	}
	return &runtimeapi.Int64Value{Value: *p}
}

func podGroups(p *corev1.PodSecurityContext) []int64 {
	var out []int64
	if p.FSGroup != nil {
		out = append(out, *p.FSGroup)
	}
	return append(out, p.SupplementalGroups...)
}

func groupsPolicy(p *corev1.PodSecurityContext) runtimeapi.SupplementalGroupsPolicy {
	if p.SupplementalGroupsPolicy != nil && *p.SupplementalGroupsPolicy == corev1.SupplementalGroupsPolicyStrict {
		return runtimeapi.SupplementalGroupsPolicy_Strict
	}
	return runtimeapi.SupplementalGroupsPolicy_Merge
}

// What a container may not see or write in /proc and /sys unless procMount says so.
var (
	maskedPaths = []string{
		"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
	}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// securityContext merges what pod and container ask for, and refuses to run as
// root against runAsNonRoot.
func (d *Deps) securityContext(pod *corev1.Pod, c *corev1.Container, img *image.Image, target string) (*runtimeapi.LinuxContainerSecurityContext, error) {
	out := &runtimeapi.LinuxContainerSecurityContext{
		NamespaceOptions: d.namespaces(pod, c, target),
		Seccomp:          d.seccomp(pod, c),
	}
	var nonRoot *bool
	var user, group *int64
	if p := pod.Spec.SecurityContext; p != nil {
		nonRoot, user, group = p.RunAsNonRoot, p.RunAsUser, p.RunAsGroup
		out.SupplementalGroups, out.SupplementalGroupsPolicy = podGroups(p), groupsPolicy(p)
		out.SelinuxOptions, out.Apparmor = selinux(p.SELinuxOptions), apparmor(p.AppArmorProfile)
	}
	if sc := c.SecurityContext; sc != nil {
		if sc.RunAsNonRoot != nil {
			nonRoot = sc.RunAsNonRoot
		}
		if sc.RunAsUser != nil {
			user = sc.RunAsUser
		}
		if sc.RunAsGroup != nil {
			group = sc.RunAsGroup
		}
		if sc.SELinuxOptions != nil {
			out.SelinuxOptions = selinux(sc.SELinuxOptions)
		}
		if sc.AppArmorProfile != nil {
			out.Apparmor = apparmor(sc.AppArmorProfile)
		}
		out.Privileged = sc.Privileged != nil && *sc.Privileged
		out.ReadonlyRootfs = sc.ReadOnlyRootFilesystem != nil && *sc.ReadOnlyRootFilesystem
		out.NoNewPrivs = sc.AllowPrivilegeEscalation != nil && !*sc.AllowPrivilegeEscalation
		if cp := sc.Capabilities; cp != nil {
			out.Capabilities = &runtimeapi.Capability{AddCapabilities: capabilities(cp.Add), DropCapabilities: capabilities(cp.Drop)}
		}
	}
	if out.Seccomp.ProfileType == runtimeapi.SecurityProfile_Localhost && out.Seccomp.LocalhostRef == "" {
		return nil, errors.New("localhostProfile must be set if seccompProfile type is Localhost")
	}
	unmasked := c.SecurityContext != nil && c.SecurityContext.ProcMount != nil && *c.SecurityContext.ProcMount == corev1.UnmaskedProcMount
	if !unmasked && !out.Privileged {
		out.MaskedPaths, out.ReadonlyPaths = maskedPaths, readonlyPaths
	}
	switch {
	case user != nil:
		out.RunAsUser = int64Value(user)
	case img.UID != nil:
		out.RunAsUser = int64Value(img.UID)
	case img.Username == "":
		out.RunAsUser = int64Value(new(int64))
	default:
		out.RunAsUsername = img.Username
	}
	out.RunAsGroup = int64Value(group)
	if nonRoot == nil || !*nonRoot {
		return out, nil
	}
	name := fmt.Sprintf("(pod: %q, container: %s)", pod.Name+"_"+pod.Namespace+"("+string(pod.UID)+")", c.Name)
	switch {
	case user != nil && *user == 0:
		return nil, fmt.Errorf("container's runAsUser breaks non-root policy %s", name)
	case user == nil && img.UID != nil && *img.UID == 0, user == nil && img.UID == nil && img.Username == "":
		return nil, fmt.Errorf("container has runAsNonRoot and image will run as root %s", name)
	case user == nil && img.UID == nil && img.Username != "":
		return nil, fmt.Errorf("container has runAsNonRoot and image has non-numeric user (%s), cannot verify user is non-root %s", img.Username, name)
	}
	return out, nil
}

func capabilities(list []corev1.Capability) []string {
	out := make([]string, len(list))
	for i, c := range list {
		out[i] = string(c)
	}
	return out
}

// linuxResources turns requests and limits into cgroup values.
func linuxResources(requests, limits corev1.ResourceList, oomScore int64) *runtimeapi.LinuxContainerResources {
	r := &runtimeapi.LinuxContainerResources{OomScoreAdj: oomScore}
	cpu, has := requests[corev1.ResourceCPU]
	if !has {
		cpu = limits[corev1.ResourceCPU]
	}
	r.CpuShares = min(max(cpu.MilliValue()*1024/1000, 2), 262144)
	if q := positive(limits, corev1.ResourceCPU); q != nil {
		r.CpuPeriod = 100000
		r.CpuQuota = max(q.MilliValue()*100000/1000, 1000)
	}
	if q := positive(limits, corev1.ResourceMemory); q != nil {
		r.MemoryLimitInBytes = q.Value()
	}
	for name, q := range limits {
		if size, ok := strings.CutPrefix(string(name), corev1.ResourceHugePagesPrefix); ok {
			r.HugepageLimits = append(r.HugepageLimits, &runtimeapi.HugepageLimit{PageSize: strings.TrimSuffix(size, "i") + "B", Limit: uint64(q.Value())})
		}
	}
	return r
}

// containerResources adds to linuxResources what depends on the pod and the node.
func (d *Deps) containerResources(pod *corev1.Pod, c *corev1.Container) *runtimeapi.LinuxContainerResources {
	r := linuxResources(c.Resources.Requests, c.Resources.Limits, d.oomScore(pod, c))
	if d.CgroupV2 {
		// All processes of a container die together: half a container helps nobody.
		r.Unified = map[string]string{"memory.oom.group": "1"}
	}
	return r
}

func (d *Deps) oomScore(pod *corev1.Pod, c *corev1.Container) int64 {
	if pod.Spec.Priority != nil && *pod.Spec.Priority >= 2000000000 {
		return -997
	}
	switch QOS(pod) {
	case corev1.PodQOSGuaranteed:
		return -997
	case corev1.PodQOSBestEffort:
		return 1000
	}
	var request int64
	if q, ok := c.Resources.Requests[corev1.ResourceMemory]; ok {
		request = q.Value()
	} else if q, ok := c.Resources.Limits[corev1.ResourceMemory]; ok {
		request = q.Value()
	}
	if d.MemoryCapacity <= 0 {
		return 999
	}
	return min(max(1000-1000*request/d.MemoryCapacity, 3), 999)
}

// IsCgroupV2 reports whether the node has the unified hierarchy.
func IsCgroupV2() bool {
	var st unix.Statfs_t
	return unix.Statfs("/sys/fs/cgroup", &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

// containerConfig is what the runtime gets to make a container.
func (d *Deps) containerConfig(pod *corev1.Pod, c *corev1.Container, attempt uint32, img *image.Image, vars []env.Var, mounts []*runtimeapi.Mount, target string) (*runtimeapi.ContainerConfig, error) {
	sc, err := d.securityContext(pod, c, img, target)
	if err != nil {
		return nil, err
	}
	cfg := &runtimeapi.ContainerConfig{
		Metadata:   &runtimeapi.ContainerMetadata{Name: c.Name, Attempt: attempt},
		Image:      &runtimeapi.ImageSpec{Image: img.Ref, UserSpecifiedImage: c.Image},
		Command:    env.ExpandAll(c.Command, vars),
		Args:       env.ExpandAll(c.Args, vars),
		WorkingDir: c.WorkingDir,
		Mounts:     mounts,
		LogPath:    filepath.Join(c.Name, strconv.FormatUint(uint64(attempt), 10)+".log"),
		Stdin:      c.Stdin, StdinOnce: c.StdinOnce, Tty: c.TTY,
		Labels: map[string]string{
			cri.LabelPodName: pod.Name, cri.LabelPodNamespace: pod.Namespace,
			cri.LabelPodUID: string(pod.UID), cri.LabelContainerName: c.Name,
		},
		Annotations: map[string]string{
			cri.AnnotationHash:          specHash(c),
			cri.AnnotationRestartCount:  strconv.FormatUint(uint64(attempt), 10),
			cri.AnnotationMessagePath:   c.TerminationMessagePath,
			cri.AnnotationMessagePolicy: string(c.TerminationMessagePolicy),
			cri.AnnotationGracePeriod:   strconv.Itoa(int(podGrace(pod).Seconds())),
		},
		Linux: &runtimeapi.LinuxContainerConfig{Resources: d.containerResources(pod, c), SecurityContext: sc},
	}
	for _, v := range vars {
		cfg.Envs = append(cfg.Envs, &runtimeapi.KeyValue{Key: v.Name, Value: []byte(v.Value)})
	}
	if l := c.Lifecycle; l != nil && l.StopSignal != nil {
		name := strings.ReplaceAll(strings.ReplaceAll(string(*l.StopSignal), "+", "PLUS"), "-", "MINUS")
		cfg.StopSignal = runtimeapi.Signal(runtimeapi.Signal_value[name])
	}
	return cfg, nil
}
