// Package volume puts the volumes of pods in place and takes them away: emptyDir,
// hostPath, configMap, secret, downwardAPI, projected, persistentVolumeClaim and
// ephemeral (host path, local and NFS volumes), image. Content that comes from the
// API is written atomically and kept on tmpfs. It starts no containers and watches
// nothing: package pod calls Refresh when a source has changed.
package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/kubelet/source"
)

// Config of New.
type Config struct {
	// RootDir holds pods/<uid>/volumes.
	RootDir     string
	Client      client.Interface
	Sources     *source.Sources
	HostIPs     []string
	Allocatable func() corev1.ResourceList
	Logger      *slog.Logger
	// NoMounts keeps memory-backed volumes on disk (tests without privileges).
	NoMounts bool
}

// Volumes is shared by all pods of the node.
type Volumes struct {
	cfg Config

	mu           sync.Mutex
	tokens       map[tokenKey]*token
	certificates map[tokenKey]*certificate
}

func New(cfg Config) *Volumes {
	return &Volumes{cfg: cfg, tokens: map[tokenKey]*token{}, certificates: map[tokenKey]*certificate{}}
}

// Mounted is a volume that is in place.
type Mounted struct {
	// Path on the host; empty for an image volume.
	Path string
	// Image and PullPolicy of an image volume.
	Image      string
	PullPolicy corev1.PullPolicy
	ReadOnly   bool
}

// Error says which volume could not be set up.
type Error struct {
	Volume string
	Err    error
}

func (e *Error) Error() string {
	return fmt.Sprintf("MountVolume.SetUp failed for volume %q : %v", e.Volume, e.Err)
}
func (e *Error) Unwrap() error { return e.Err }

// PodDir is the directory of a pod.
func (v *Volumes) PodDir(uid types.UID) string {
	return filepath.Join(v.cfg.RootDir, "pods", string(uid))
}

func (v *Volumes) dir(pod *corev1.Pod, plugin, name string) string {
	return filepath.Join(v.PodDir(pod.UID), "volumes", "kubernetes.io~"+plugin, name)
}

// Setup puts every volume of the pod in place. It may be repeated.
func (v *Volumes) Setup(ctx context.Context, pod *corev1.Pod) (map[string]Mounted, error) {
	if len(pod.Spec.Volumes) == 0 {
		return nil, nil
	}
	out := make(map[string]Mounted, len(pod.Spec.Volumes))
	var errs []error
	for i := range pod.Spec.Volumes {
		vol := &pod.Spec.Volumes[i]
		m, err := v.setup(ctx, pod, vol)
		if err != nil {
			errs = append(errs, &Error{Volume: vol.Name, Err: err})
			continue
		}
		out[vol.Name] = m
	}
	return out, errors.Join(errs...)
}

// Refresh writes the volumes whose content comes from the API anew, and returns
// when the next token has to be fetched (zero: never).
func (v *Volumes) Refresh(ctx context.Context, pod *corev1.Pod) (time.Time, error) {
	var errs []error
	for i := range pod.Spec.Volumes {
		vol := &pod.Spec.Volumes[i]
		if plugin := apiPlugin(vol); plugin != "" {
			if err := v.writeAPI(ctx, pod, vol, plugin); err != nil {
				errs = append(errs, &Error{Volume: vol.Name, Err: err})
			}
		}
	}
	return v.NextRotation(pod), errors.Join(errs...)
}

// apiPlugin names the plugin of a volume whose content comes from the API.
func apiPlugin(vol *corev1.Volume) string {
	switch {
	case vol.ConfigMap != nil:
		return "configmap"
	case vol.Secret != nil:
		return "secret"
	case vol.DownwardAPI != nil:
		return "downward-api"
	case vol.Projected != nil:
		return "projected"
	}
	return ""
}

func (v *Volumes) setup(ctx context.Context, pod *corev1.Pod, vol *corev1.Volume) (Mounted, error) {
	if plugin := apiPlugin(vol); plugin != "" {
		if err := v.writeAPI(ctx, pod, vol, plugin); err != nil {
			return Mounted{}, err
		}
		return Mounted{Path: v.dir(pod, plugin, vol.Name), ReadOnly: true}, nil
	}
	switch {
	case vol.EmptyDir != nil:
		return v.emptyDir(pod, vol)
	case vol.HostPath != nil:
		t := corev1.HostPathUnset
		if vol.HostPath.Type != nil {
			t = *vol.HostPath.Type
		}
		return Mounted{Path: vol.HostPath.Path}, checkHostPath(vol.HostPath.Path, t)
	case vol.PersistentVolumeClaim != nil:
		m, err := v.claim(ctx, pod, vol, vol.PersistentVolumeClaim.ClaimName)
		m.ReadOnly = m.ReadOnly || vol.PersistentVolumeClaim.ReadOnly
		return m, err
	case vol.Ephemeral != nil:
		return v.claim(ctx, pod, vol, pod.Name+"-"+vol.Name)
	case vol.NFS != nil:
		return v.nfs(ctx, pod, vol.Name, vol.NFS, nil)
	case vol.Image != nil:
		return Mounted{Image: vol.Image.Reference, PullPolicy: vol.Image.PullPolicy, ReadOnly: true}, nil
	case vol.GitRepo != nil:
		return Mounted{}, errors.New("gitRepo volumes are disabled: use an init container and an emptyDir")
	case vol.CSI != nil:
		return Mounted{}, fmt.Errorf("CSI driver %q is not registered on this node", vol.CSI.Driver)
	}
	return Mounted{}, errors.New("no volume plugin matched")
}

func (v *Volumes) emptyDir(pod *corev1.Pod, vol *corev1.Volume) (Mounted, error) {
	dir := v.dir(pod, "empty-dir", vol.Name)
	ready := filepath.Join(v.PodDir(pod.UID), "plugins", "kubernetes.io~empty-dir", vol.Name, "ready")
	if _, err := os.Stat(ready); err == nil {
		if vol.EmptyDir.Medium == corev1.StorageMediumDefault || v.cfg.NoMounts {
			return Mounted{Path: dir}, nil
		}
		if ok, _ := isMount(dir); ok {
			return Mounted{Path: dir}, nil
		}
	}
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return Mounted{}, err
	}
	switch m := vol.EmptyDir.Medium; {
	case v.cfg.NoMounts || m == corev1.StorageMediumDefault:
	case m == corev1.StorageMediumMemory:
		opts := "mode=0777"
		if size := v.memorySize(pod, vol); size > 0 {
			opts += fmt.Sprintf(",size=%d", size)
		}
		if err := mountTmpfs(dir, opts); err != nil {
			return Mounted{}, err
		}
	case strings.HasPrefix(string(m), "HugePages"):
		opts := "mode=0777"
		if size, ok := strings.CutPrefix(string(m), "HugePages-"); ok {
			opts += ",pagesize=" + strings.TrimSuffix(size, "i")
		}
		if err := unix.Mount("nodev", dir, "hugetlbfs", 0, opts); err != nil {
			return Mounted{}, fmt.Errorf("mounting huge pages: %w", err)
		}
	default:
		return Mounted{}, fmt.Errorf("unknown storage medium %q", m)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		return Mounted{}, err
	}
	if gid := fsGroup(pod); gid != nil {
		if err := os.Chown(dir, -1, int(*gid)); err != nil {
			return Mounted{}, err
		}
		if err := os.Chmod(dir, 0o777|fs.ModeSetgid); err != nil {
			return Mounted{}, err
		}
	}
	if err := os.MkdirAll(filepath.Dir(ready), 0o750); err != nil {
		return Mounted{}, err
	}
	return Mounted{Path: dir}, os.WriteFile(ready, nil, 0o640)
}

// memorySize is the smallest of the size limit, the pod's memory limit and what
// the node has.
func (v *Volumes) memorySize(pod *corev1.Pod, vol *corev1.Volume) int64 {
	var size int64
	least := func(n int64) {
		if n > 0 && (size == 0 || n < size) {
			size = n
		}
	}
	if v.cfg.Allocatable != nil {
		alloc := v.cfg.Allocatable()
		least(alloc.Memory().Value())
	}
	var sum int64
	for i := range pod.Spec.Containers {
		l := pod.Spec.Containers[i].Resources.Limits.Memory().Value()
		if l == 0 {
			sum = 0
			break
		}
		sum += l
	}
	least(sum)
	if l := vol.EmptyDir.SizeLimit; l != nil {
		least(l.Value())
	}
	return size
}

func mountTmpfs(dir, opts string) error {
	if ok, err := isMount(dir); err != nil || ok {
		return err
	}
	// noswap keeps secrets off the disk; kernels before 6.4 do not know it.
	err := unix.Mount("tmpfs", dir, "tmpfs", 0, opts+",noswap")
	if errors.Is(err, unix.EINVAL) {
		err = unix.Mount("tmpfs", dir, "tmpfs", 0, opts)
	}
	if err != nil {
		return fmt.Errorf("mounting tmpfs on %s: %w", dir, err)
	}
	return nil
}

func checkHostPath(path string, t corev1.HostPathType) error {
	st, err := os.Stat(path)
	missing := errors.Is(err, fs.ErrNotExist)
	switch t {
	case corev1.HostPathUnset:
		return nil
	case corev1.HostPathDirectoryOrCreate:
		if missing {
			return os.MkdirAll(path, 0o755)
		}
	case corev1.HostPathFileOrCreate:
		if missing {
			f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o644)
			if err != nil {
				return err
			}
			return f.Close()
		}
	}
	var want func(fs.FileMode) bool
	var what string
	switch t {
	case corev1.HostPathDirectory, corev1.HostPathDirectoryOrCreate:
		want, what = fs.FileMode.IsDir, "a directory"
	case corev1.HostPathFile, corev1.HostPathFileOrCreate:
		want, what = fs.FileMode.IsRegular, "a file"
	case corev1.HostPathSocket:
		want, what = func(m fs.FileMode) bool { return m&fs.ModeSocket != 0 }, "a socket file"
	case corev1.HostPathCharDev:
		want, what = func(m fs.FileMode) bool { return m&fs.ModeCharDevice != 0 }, "a character device"
	case corev1.HostPathBlockDev:
		want, what = func(m fs.FileMode) bool { return m&fs.ModeDevice != 0 && m&fs.ModeCharDevice == 0 }, "a block device"
	default:
		return fmt.Errorf("%s is an invalid volume type", t)
	}
	if err != nil || !want(st.Mode()) {
		return fmt.Errorf("hostPath type check failed: %s is not %s", path, what)
	}
	return nil
}

// claim finds the volume behind a claim.
func (v *Volumes) claim(ctx context.Context, pod *corev1.Pod, vol *corev1.Volume, name string) (Mounted, error) {
	pvc, err := client.PersistentVolumeClaims.Get(ctx, v.cfg.Client, pod.Namespace, name)
	if err != nil {
		return Mounted{}, fmt.Errorf("failed to fetch PVC from API server: %w", err)
	}
	if pvc.Status.Phase != corev1.ClaimBound || pvc.Spec.VolumeName == "" {
		return Mounted{}, fmt.Errorf("PVC %s/%s is not bound", pod.Namespace, name)
	}
	if pvc.DeletionTimestamp != nil && len(pvc.Finalizers) == 0 {
		return Mounted{}, errors.New("PVC is being deleted")
	}
	if vol.Ephemeral != nil {
		owned := false
		for _, o := range pvc.OwnerReferences {
			owned = owned || (o.UID == pod.UID && o.Controller != nil && *o.Controller)
		}
		if !owned {
			return Mounted{}, fmt.Errorf("PVC %s/%s was not created for pod %s/%s (pod is not owner)", pod.Namespace, name, pod.Namespace, pod.Name)
		}
	}
	if m := pvc.Spec.VolumeMode; m != nil && *m == corev1.PersistentVolumeBlock {
		return Mounted{}, errors.New("block volumes are not supported by this node")
	}
	pv, err := client.PersistentVolumes.Get(ctx, v.cfg.Client, "", pvc.Spec.VolumeName)
	if err != nil {
		return Mounted{}, fmt.Errorf("failed to get PV %s from API server: %w", pvc.Spec.VolumeName, err)
	}
	if ref := pv.Spec.ClaimRef; ref == nil || ref.UID != pvc.UID {
		return Mounted{}, fmt.Errorf("PV %s is not bound to PVC %s/%s", pv.Name, pod.Namespace, name)
	}
	switch s := pv.Spec.PersistentVolumeSource; {
	case s.HostPath != nil:
		t := corev1.HostPathUnset
		if s.HostPath.Type != nil {
			t = *s.HostPath.Type
		}
		if t == corev1.HostPathUnset {
			if err := os.MkdirAll(s.HostPath.Path, 0o777); err != nil {
				return Mounted{}, err
			}
		}
		return Mounted{Path: s.HostPath.Path}, checkHostPath(s.HostPath.Path, t)
	case s.Local != nil:
		if _, err := os.Stat(s.Local.Path); err != nil {
			return Mounted{}, fmt.Errorf("path %q does not exist", s.Local.Path)
		}
		return Mounted{Path: s.Local.Path}, v.own(pod, s.Local.Path)
	case s.NFS != nil:
		return v.nfs(ctx, pod, pv.Name, s.NFS, pv.Spec.MountOptions)
	case s.CSI != nil:
		return Mounted{}, fmt.Errorf("CSI driver %q is not registered on this node", s.CSI.Driver)
	}
	return Mounted{}, fmt.Errorf("PV %s: no volume plugin matched", pv.Name)
}

func (v *Volumes) nfs(ctx context.Context, pod *corev1.Pod, name string, s *corev1.NFSVolumeSource, options []string) (Mounted, error) {
	dir := v.dir(pod, "nfs", name)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return Mounted{}, err
	}
	m := Mounted{Path: dir, ReadOnly: s.ReadOnly}
	if ok, err := isMount(dir); err != nil || ok {
		return m, err
	}
	if s.ReadOnly {
		options = append([]string{"ro"}, options...)
	}
	args := []string{"-t", "nfs"}
	if len(options) > 0 {
		args = append(args, "-o", strings.Join(options, ","))
	}
	server := s.Server
	if strings.Contains(server, ":") {
		server = "[" + server + "]"
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "mount", append(args, "--", server+":"+s.Path, dir)...).CombinedOutput()
	if err != nil {
		return Mounted{}, fmt.Errorf("mounting NFS %s:%s: %w: %s", s.Server, s.Path, err, strings.TrimSpace(string(out)))
	}
	return m, nil
}

func fsGroup(pod *corev1.Pod) *int64 {
	if sc := pod.Spec.SecurityContext; sc != nil {
		return sc.FSGroup
	}
	return nil
}

// own gives a volume to the pod's fsGroup.
func (v *Volumes) own(pod *corev1.Pod, root string) error {
	gid := fsGroup(pod)
	if gid == nil {
		return nil
	}
	if p := pod.Spec.SecurityContext.FSGroupChangePolicy; p != nil && *p == corev1.FSGroupChangeOnRootMismatch {
		var st unix.Stat_t
		if unix.Lstat(root, &st) == nil && int64(st.Gid) == *gid && st.Mode&unix.S_ISGID != 0 {
			return nil
		}
	}
	return filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := os.Lchown(p, -1, int(*gid)); err != nil {
			return err
		}
		if d.Type()&fs.ModeSymlink != 0 {
			return nil
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		mode := st.Mode() | 0o660
		if d.IsDir() {
			mode |= 0o110 | fs.ModeSetgid
		}
		return os.Chmod(p, mode)
	})
}

// SubPath binds a path of a volume where the container's mount can use it.
func (v *Volumes) SubPath(pod *corev1.Pod, container string, index int, volume, root, path string, readOnly bool) (string, error) {
	target := filepath.Join(v.PodDir(pod.UID), "volume-subpaths", volume, container, fmt.Sprint(index))
	if err := bindSubPath(root, path, target, readOnly); err != nil {
		return "", fmt.Errorf("failed to prepare subPath for volumeMount %q of container %q: %w", volume, container, err)
	}
	return target, nil
}

// ReleaseVolumes unmounts and removes the volumes of a pod whose containers are
// gone. What the rest of the kubelet keeps in the pod's directory stays.
func (v *Volumes) ReleaseVolumes(uid types.UID) error {
	v.mu.Lock()
	for k := range v.tokens {
		if k.uid == uid {
			delete(v.tokens, k)
		}
	}
	for k := range v.certificates {
		if k.uid == uid {
			delete(v.certificates, k)
		}
	}
	v.mu.Unlock()
	dir := v.PodDir(uid)
	if err := unmountBelow(dir); err != nil {
		return err
	}
	for _, sub := range []string{"volume-subpaths", "volumes", "plugins"} {
		if err := RemoveTree(filepath.Join(dir, sub)); err != nil {
			return err
		}
	}
	return nil
}

// Remove takes away everything of a pod.
func (v *Volumes) Remove(uid types.UID) error {
	if err := v.ReleaseVolumes(uid); err != nil {
		return err
	}
	return RemoveTree(v.PodDir(uid))
}

// Pods returns the pods that have a directory.
func (v *Volumes) Pods() ([]types.UID, error) {
	entries, err := os.ReadDir(filepath.Join(v.cfg.RootDir, "pods"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var out []types.UID
	for _, e := range entries {
		out = append(out, types.UID(e.Name()))
	}
	return out, err
}

// Usage returns the disk space of an emptyDir in bytes.
func (v *Volumes) Usage(pod *corev1.Pod, name string) (int64, error) {
	return DiskUsage(v.dir(pod, "empty-dir", name))
}

// DiskUsage sums the blocks of a tree, of one file system.
func DiskUsage(root string) (int64, error) {
	var sum int64
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		var st unix.Stat_t
		if unix.Lstat(p, &st) == nil {
			sum += st.Blocks * 512
		}
		return nil
	})
	return sum, err
}
