package pod

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/proa-dev/proa/internal/kubelet/env"
	"github.com/proa-dev/proa/internal/kubelet/volume"
)

// PodLogDir is where the logs of a pod's containers are.
func (d *Deps) PodLogDir(namespace, name, uid string) string {
	return filepath.Join(d.LogDir, namespace+"_"+name+"_"+uid)
}

// The files in a pod's directory that the kubelet itself makes.
func (d *Deps) hostsFile(uid types.UID) string {
	return filepath.Join(d.Volumes.PodDir(uid), "etc-hosts")
}

func (d *Deps) messageFile(uid types.UID, container string, attempt uint32) string {
	return filepath.Join(d.Volumes.PodDir(uid), "containers", container, strconv.FormatUint(uint64(attempt), 10))
}

// The limits of resolv.conf that the C libraries have.
const (
	maxNameservers = 3
	maxSearches    = 32
	maxSearchChars = 2048
)

// dns is the content of the pod's resolv.conf.
func (d *Deps) dns(pod *corev1.Pod) (*runtimeapi.DNSConfig, error) {
	policy := pod.Spec.DNSPolicy
	if policy == "" || (policy == corev1.DNSClusterFirst && pod.Spec.HostNetwork) {
		if policy = corev1.DNSClusterFirst; pod.Spec.HostNetwork {
			policy = corev1.DNSDefault
		}
	}
	if policy == corev1.DNSClusterFirstWithHostNet {
		policy = corev1.DNSClusterFirst
	}
	if policy == corev1.DNSClusterFirst && len(d.ClusterDNS) == 0 {
		policy = corev1.DNSDefault
	}
	var out runtimeapi.DNSConfig
	switch policy {
	case corev1.DNSClusterFirst:
		host, err := d.hostDNS()
		if err != nil {
			return nil, err
		}
		out.Servers = slices.Clone(d.ClusterDNS)
		if d.ClusterDomain != "" {
			out.Searches = []string{pod.Namespace + ".svc." + d.ClusterDomain, "svc." + d.ClusterDomain, d.ClusterDomain}
		}
		out.Searches = append(out.Searches, host.Searches...)
		out.Options = []string{"ndots:5"}
	case corev1.DNSDefault:
		host, err := d.hostDNS()
		if err != nil {
			return nil, err
		}
		out.Servers, out.Searches, out.Options = host.Servers, host.Searches, host.Options
	case corev1.DNSNone:
	default:
		return nil, fmt.Errorf("invalid DNSPolicy=%v", policy)
	}
	if c := pod.Spec.DNSConfig; c != nil {
		out.Servers = append(out.Servers, c.Nameservers...)
		out.Searches = append(out.Searches, c.Searches...)
		for _, o := range c.Options {
			text := o.Name
			if o.Value != nil && *o.Value != "" {
				text += ":" + *o.Value
			}
			out.Options = slices.DeleteFunc(out.Options, func(have string) bool {
				name, _, _ := strings.Cut(have, ":")
				return name == o.Name
			})
			out.Options = append(out.Options, text)
		}
	}
	out.Servers, out.Searches = unique(out.Servers), unique(out.Searches)
	if len(out.Servers) > maxNameservers {
		out.Servers = out.Servers[:maxNameservers]
	}
	if len(out.Searches) > maxSearches {
		out.Searches = out.Searches[:maxSearches]
	}
	for len(strings.Join(out.Searches, " ")) > maxSearchChars {
		out.Searches = out.Searches[:len(out.Searches)-1]
	}
	return &out, nil
}

func unique(in []string) []string {
	var out []string
	for _, s := range in {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// hostDNS reads the node's resolv.conf; behind systemd-resolved the file that has
// the real servers, because its stub on 127.0.0.53 cannot be reached from pods.
func (d *Deps) hostDNS() (*runtimeapi.DNSConfig, error) {
	path := d.ResolvConf
	data, err := os.ReadFile(path)
	if err == nil && path == "/etc/resolv.conf" && bytes.Contains(data, []byte("127.0.0.53")) {
		if real, rerr := os.ReadFile("/run/systemd/resolve/resolv.conf"); rerr == nil {
			data = real
		}
	}
	if errors.Is(err, fs.ErrNotExist) || path == "" {
		return &runtimeapi.DNSConfig{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the node's resolv.conf: %w", err)
	}
	return parseResolvConf(data), nil
}

func parseResolvConf(data []byte) *runtimeapi.DNSConfig {
	var out runtimeapi.DNSConfig
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0][0] == '#' || f[0][0] == ';' {
			continue
		}
		switch f[0] {
		case "nameserver":
			out.Servers = append(out.Servers, f[1])
		case "search", "domain":
			out.Searches = nil
			for _, s := range f[1:] {
				if s != "." {
					s = strings.TrimSuffix(s, ".")
				}
				out.Searches = append(out.Searches, s)
			}
		case "options":
			out.Options = append(out.Options, f[1:]...)
		}
	}
	return &out
}

// writeHosts makes the pod's /etc/hosts.
func (d *Deps) writeHosts(pod *corev1.Pod, ips []string) error {
	var b bytes.Buffer
	if pod.Spec.HostNetwork {
		host, err := os.ReadFile("/etc/hosts")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("reading the node's /etc/hosts: %w", err)
		}
		b.WriteString("# Kubernetes-managed hosts file (host network).\n")
		b.Write(host)
	} else {
		b.WriteString("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n")
		host, domain, err := env.Hostname(pod, d.ClusterDomain)
		if err != nil {
			return err
		}
		for _, ip := range ips {
			if domain != "" {
				fmt.Fprintf(&b, "%s\t%s.%s\t%s\n", ip, host, domain, host)
			} else {
				fmt.Fprintf(&b, "%s\t%s\n", ip, host)
			}
		}
	}
	if len(pod.Spec.HostAliases) > 0 {
		b.WriteString("\n# Entries added by HostAliases.\n")
		for _, a := range pod.Spec.HostAliases {
			if _, err := netip.ParseAddr(a.IP); err != nil {
				return fmt.Errorf("host alias: %w", err)
			}
			fmt.Fprintf(&b, "%s\t%s\n", a.IP, strings.Join(a.Hostnames, "\t"))
		}
	}
	path := d.hostsFile(pod.UID)
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return err
	}
	// Written in place: a container that already mounts it sees the new content.
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
		return err
	}
	return os.Chmod(path, 0o644)
}

// mounts lists what is mounted into a container; images says what an image volume
// was resolved to.
func (d *Deps) mounts(pod *corev1.Pod, c *corev1.Container, attempt uint32, vars []env.Var, vols map[string]volume.Mounted, images map[string]string) ([]*runtimeapi.Mount, error) {
	var out []*runtimeapi.Mount
	hosts := pod.Spec.OS == nil || pod.Spec.OS.Name != corev1.Windows
	idmap := d.Users.mappings(pod)
	for i := range c.VolumeMounts {
		m := &c.VolumeMounts[i]
		v, ok := vols[m.Name]
		if !ok {
			return nil, fmt.Errorf("cannot find volume %q to mount into container %q", m.Name, c.Name)
		}
		hosts = hosts && m.MountPath != "/etc/hosts"
		path := m.MountPath
		if !filepath.IsAbs(path) {
			path = filepath.Join("/", path)
		}
		sub := m.SubPath
		if m.SubPathExpr != "" {
			var err error
			if sub, err = env.ExpandStrict(m.SubPathExpr, vars); err != nil {
				return nil, err
			}
		}
		if v.Image != "" {
			out = append(out, &runtimeapi.Mount{ContainerPath: path, Readonly: true, Image: &runtimeapi.ImageSpec{Image: images[m.Name], UserSpecifiedImage: v.Image}, ImageSubPath: sub})
			continue
		}
		mount := &runtimeapi.Mount{ContainerPath: path, HostPath: v.Path, Readonly: m.ReadOnly || v.ReadOnly, UidMappings: idmap, GidMappings: idmap}
		if sub != "" {
			if filepath.IsAbs(sub) || slices.Contains(strings.Split(sub, "/"), "..") {
				return nil, fmt.Errorf("subPath %q of volume %q must be relative and must not contain \"..\"", sub, m.Name)
			}
			var err error
			if mount.HostPath, err = d.Volumes.SubPath(pod, c.Name, i, m.Name, v.Path, sub, m.ReadOnly && !v.ReadOnly); err != nil {
				return nil, err
			}
		} else if err := makeHostPath(pod, m.Name, v.Path); err != nil {
			return nil, err
		}
		if m.MountPropagation != nil {
			switch *m.MountPropagation {
			case corev1.MountPropagationHostToContainer:
				mount.Propagation = runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
			case corev1.MountPropagationBidirectional:
				mount.Propagation = runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
			}
		}
		if r := m.RecursiveReadOnly; r != nil && mount.Readonly {
			mount.RecursiveReadOnly = *r == corev1.RecursiveReadOnlyEnabled || *r == corev1.RecursiveReadOnlyIfPossible && d.RecursiveReadOnly()
		}
		out = append(out, mount)
	}
	if hosts {
		out = append(out, &runtimeapi.Mount{ContainerPath: "/etc/hosts", HostPath: d.hostsFile(pod.UID), Readonly: false, UidMappings: idmap, GidMappings: idmap})
	}
	if p := c.TerminationMessagePath; p != "" {
		file := d.messageFile(pod.UID, c.Name, attempt)
		if err := os.MkdirAll(filepath.Dir(file), 0o750); err != nil {
			return nil, err
		}
		f, err := os.OpenFile(file, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o666)
		if err != nil {
			return nil, fmt.Errorf("making the termination message file: %w", err)
		}
		f.Close()
		if err := os.Chmod(file, 0o666); err != nil {
			return nil, err
		}
		out = append(out, &runtimeapi.Mount{ContainerPath: p, HostPath: file, UidMappings: idmap, GidMappings: idmap})
	}
	return out, nil
}

// makeHostPath creates a host path without a type that does not exist yet.
func makeHostPath(pod *corev1.Pod, name, path string) error {
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if v.Name != name || v.HostPath == nil || (v.HostPath.Type != nil && *v.HostPath.Type != corev1.HostPathUnset) {
			continue
		}
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return os.MkdirAll(path, 0o755)
		}
	}
	return nil
}

// Limits of termination messages.
const (
	maxMessage      = 4096
	maxMessageLines = 80
	maxMessageLog   = 2048
	maxMessages     = 12 << 10 // of all containers of a pod
)

// terminationMessage reads what an ended container left as its last words.
func (d *Deps) terminationMessage(pod *corev1.Pod, c *corev1.Container, i *instance, share int) string {
	limit := min(maxMessage, max(maxMessages/max(share, 1), 1))
	text := ""
	if c.TerminationMessagePath != "" {
		f, err := os.Open(d.messageFile(pod.UID, c.Name, i.attempt))
		if err == nil {
			buf := make([]byte, limit)
			n, _ := f.ReadAt(buf, 0)
			f.Close()
			text = strings.ToValidUTF8(string(buf[:n]), "")
		}
	}
	if text == "" && c.TerminationMessagePolicy == corev1.TerminationMessageFallbackToLogsOnError && i.exitCode != 0 {
		text = d.TailLog(filepath.Join(d.PodLogDir(pod.Namespace, pod.Name, string(pod.UID)), c.Name, strconv.FormatUint(uint64(i.attempt), 10)+".log"), maxMessageLines, min(maxMessageLog, limit))
	}
	return text
}

// userRange is how many ids a pod with a user namespace of its own gets.
const userRange = 65536

// Users gives pods with hostUsers: false a range of ids of their own. The range is
// kept in the pod's directory: containers of a pod share it across restarts.
type Users struct {
	dir func(types.UID) string

	mu   sync.Mutex
	used map[types.UID]uint32
}

func NewUsers(dir func(types.UID) string) *Users {
	return &Users{dir: dir, used: map[types.UID]uint32{}}
}

// Adopt reads the ranges of the pods that were here before.
func (u *Users) Adopt(uids []types.UID) {
	for _, uid := range uids {
		data, err := os.ReadFile(filepath.Join(u.dir(uid), "userns"))
		if err != nil {
			continue
		}
		if n, err := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 32); err == nil {
			u.mu.Lock()
			u.used[uid] = uint32(n)
			u.mu.Unlock()
		}
	}
}

// Assign gives the pod a range if it asks for one.
func (u *Users) Assign(pod *corev1.Pod) error {
	if pod.Spec.HostUsers == nil || *pod.Spec.HostUsers {
		return nil
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if _, ok := u.used[pod.UID]; ok {
		return nil
	}
	taken := map[uint32]bool{}
	for _, n := range u.used {
		taken[n] = true
	}
	for n := uint32(1); n < 1<<15; n++ {
		if taken[n] {
			continue
		}
		dir := u.dir(pod.UID)
		if err := os.MkdirAll(dir, 0o750); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, "userns"), []byte(strconv.FormatUint(uint64(n), 10)), 0o600); err != nil {
			return fmt.Errorf("recording the user namespace: %w", err)
		}
		u.used[pod.UID] = n
		return nil
	}
	return errors.New("no range of user ids is free for a user namespace")
}

// Release frees the range of a pod that is gone.
func (u *Users) Release(uid types.UID) {
	u.mu.Lock()
	delete(u.used, uid)
	u.mu.Unlock()
}

func (u *Users) mappings(pod *corev1.Pod) []*runtimeapi.IDMapping {
	u.mu.Lock()
	n, ok := u.used[pod.UID]
	u.mu.Unlock()
	if !ok {
		return nil
	}
	return []*runtimeapi.IDMapping{{HostId: n * userRange, ContainerId: 0, Length: userRange}}
}

func (u *Users) options(pod *corev1.Pod) *runtimeapi.UserNamespace {
	m := u.mappings(pod)
	if m == nil {
		return &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_NODE}
	}
	return &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: m, Gids: m}
}

// environment collects a container's variables.
func (d *Deps) environment(ctx context.Context, pod *corev1.Pod, c *corev1.Container, podIPs []string, vols map[string]volume.Mounted) ([]env.Var, error) {
	own, all := d.Services(pod.Namespace)
	return env.Make(pod, c, env.Sources{
		ConfigMap: func(name string) (*corev1.ConfigMap, error) { return d.Sources.ConfigMap(ctx, pod.Namespace, name) },
		Secret:    func(name string) (*corev1.Secret, error) { return d.Sources.Secret(ctx, pod.Namespace, name) },
		File: func(name, path string) ([]byte, error) {
			return volume.ReadFileIn(vols[name].Path, path, 1<<20)
		},
		NotFound: isNotFound,
		Services: own, API: all,
		HostIPs: d.HostIPs, PodIPs: podIPs, Allocatable: d.Allocatable(),
		Skipped: func(kind, name string, keys []string) {
			d.Event(pod, c.Name, corev1.EventTypeWarning, "InvalidEnvironmentVariableNames", "Keys [%s] from the EnvFrom %s %s were skipped since they are considered invalid environment variable names.", strings.Join(keys, ", "), kind, name)
		},
	})
}
