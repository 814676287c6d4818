package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/kubelet/env"
)

type tokenKey struct {
	uid    types.UID
	volume string
	source int
}

type token struct {
	value  string
	rotate time.Time
}

// writeAPI fills a volume from the API.
func (v *Volumes) writeAPI(ctx context.Context, pod *corev1.Pod, vol *corev1.Volume, plugin string) error {
	files, err := v.content(ctx, pod, vol)
	if err != nil {
		return err
	}
	dir := v.dir(pod, plugin, vol.Name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if plugin != "configmap" && !v.cfg.NoMounts {
		if err := mountTmpfs(dir, "mode=0755"); err != nil {
			return err
		}
	}
	gid := fsGroup(pod)
	mode := fs.FileMode(0o777)
	if gid != nil {
		if err := os.Chown(dir, -1, int(*gid)); err != nil {
			return err
		}
		mode |= fs.ModeSetgid
	}
	if err := os.Chmod(dir, mode); err != nil {
		return err
	}
	_, err = WriteAtomic(dir, files, gid)
	return err
}

func (v *Volumes) content(ctx context.Context, pod *corev1.Pod, vol *corev1.Volume) (map[string]File, error) {
	out := map[string]File{}
	switch {
	case vol.ConfigMap != nil:
		s := vol.ConfigMap
		return out, v.configMap(ctx, pod, s.Name, s.Items, modeOf(s.DefaultMode), s.Optional, out)
	case vol.Secret != nil:
		s := vol.Secret
		return out, v.secret(ctx, pod, s.SecretName, s.Items, modeOf(s.DefaultMode), s.Optional, out)
	case vol.DownwardAPI != nil:
		return out, v.downward(pod, vol.DownwardAPI.Items, modeOf(vol.DownwardAPI.DefaultMode), out)
	case vol.Projected != nil:
		mode := modeOf(vol.Projected.DefaultMode)
		for i := range vol.Projected.Sources {
			if err := v.projected(ctx, pod, vol.Name, i, &vol.Projected.Sources[i], mode, out); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

func modeOf(m *int32) fs.FileMode {
	if m == nil {
		return 0o644
	}
	return fs.FileMode(*m) & 0o777
}

func (v *Volumes) projected(ctx context.Context, pod *corev1.Pod, volume string, index int, s *corev1.VolumeProjection, mode fs.FileMode, out map[string]File) error {
	switch {
	case s.ConfigMap != nil:
		return v.configMap(ctx, pod, s.ConfigMap.Name, s.ConfigMap.Items, mode, s.ConfigMap.Optional, out)
	case s.Secret != nil:
		return v.secret(ctx, pod, s.Secret.Name, s.Secret.Items, mode, s.Secret.Optional, out)
	case s.DownwardAPI != nil:
		return v.downward(pod, s.DownwardAPI.Items, mode, out)
	case s.ServiceAccountToken != nil:
		t, err := v.token(ctx, pod, tokenKey{pod.UID, volume, index}, s.ServiceAccountToken)
		if err != nil {
			return err
		}
		out[s.ServiceAccountToken.Path] = privateFile(pod, []byte(t), mode)
		return nil
	case s.ClusterTrustBundle != nil:
		b, err := v.trustBundle(ctx, s.ClusterTrustBundle)
		if err != nil {
			return err
		}
		out[s.ClusterTrustBundle.Path] = File{Data: b, Mode: mode}
		return nil
	case s.PodCertificate != nil:
		c, err := v.certificate(ctx, pod, tokenKey{pod.UID, volume, index}, s.PodCertificate)
		if err != nil {
			return err
		}
		private := func(path string, parts ...[]byte) {
			if path != "" {
				out[path] = privateFile(pod, slices.Concat(parts...), mode)
			}
		}
		private(s.PodCertificate.CredentialBundlePath, c.key, c.chain)
		private(s.PodCertificate.KeyPath, c.key)
		private(s.PodCertificate.CertificateChainPath, c.chain)
		return nil
	}
	return errors.New("projection without a source")
}

// privateFile is one that only the pod's user, where it has one, shall read.
func privateFile(pod *corev1.Pod, data []byte, mode fs.FileMode) File {
	f := File{Data: data, Mode: mode, UID: commonUser(pod)}
	if f.UID != nil || fsGroup(pod) != nil {
		f.Mode = 0o600
	}
	return f
}

// commonUser is the user of all containers, if they have one in common: a token
// file then belongs to it.
func commonUser(pod *corev1.Pod) *int64 {
	var podUser, common *int64
	if pod.Spec.SecurityContext != nil {
		podUser = pod.Spec.SecurityContext.RunAsUser
	}
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			u := podUser
			if sc := list[i].SecurityContext; sc != nil && sc.RunAsUser != nil {
				u = sc.RunAsUser
			}
			if u == nil || (common != nil && *common != *u) {
				return nil
			}
			common = u
		}
	}
	return common
}

func (v *Volumes) configMap(ctx context.Context, pod *corev1.Pod, name string, items []corev1.KeyToPath, mode fs.FileMode, optional *bool, out map[string]File) error {
	opt := optional != nil && *optional
	cm, err := v.cfg.Sources.ConfigMap(ctx, pod.Namespace, name)
	if err != nil {
		if opt && apierrors.IsNotFound(err) {
			return nil
		}
		return err
	}
	data := make(map[string][]byte, len(cm.Data)+len(cm.BinaryData))
	for k, s := range cm.Data {
		data[k] = []byte(s)
	}
	for k, b := range cm.BinaryData {
		data[k] = b
	}
	return pick(data, items, mode, opt, out, "configmap")
}

func (v *Volumes) secret(ctx context.Context, pod *corev1.Pod, name string, items []corev1.KeyToPath, mode fs.FileMode, optional *bool, out map[string]File) error {
	opt := optional != nil && *optional
	s, err := v.cfg.Sources.Secret(ctx, pod.Namespace, name)
	if err != nil {
		if opt && apierrors.IsNotFound(err) {
			return nil
		}
		return err
	}
	return pick(s.Data, items, mode, opt, out, "secret")
}

func pick(data map[string][]byte, items []corev1.KeyToPath, mode fs.FileMode, optional bool, out map[string]File, kind string) error {
	if len(items) == 0 {
		for k, d := range data {
			out[k] = File{Data: d, Mode: mode}
		}
		return nil
	}
	for _, it := range items {
		d, ok := data[it.Key]
		if !ok {
			if optional {
				continue
			}
			return fmt.Errorf("references non-existent %s key: %s", kind, it.Key)
		}
		m := mode
		if it.Mode != nil {
			m = modeOf(it.Mode)
		}
		out[it.Path] = File{Data: d, Mode: m}
	}
	return nil
}

func (v *Volumes) downward(pod *corev1.Pod, items []corev1.DownwardAPIVolumeFile, mode fs.FileMode, out map[string]File) error {
	for i := range items {
		it := &items[i]
		m := mode
		if it.Mode != nil {
			m = modeOf(it.Mode)
		}
		var text string
		var err error
		switch {
		case it.FieldRef != nil:
			text, err = env.Field(pod, it.FieldRef.FieldPath, v.cfg.HostIPs, nil)
		case it.ResourceFieldRef != nil:
			var alloc corev1.ResourceList
			if v.cfg.Allocatable != nil {
				alloc = v.cfg.Allocatable()
			}
			text, err = env.Resource(pod, nil, it.ResourceFieldRef, alloc)
		default:
			err = errors.New("no fieldRef and no resourceFieldRef")
		}
		if err != nil {
			return err
		}
		out[it.Path] = File{Data: []byte(text), Mode: m}
	}
	return nil
}

// token returns a service account token that is bound to the pod, fetching one
// when there is none or it is due for rotation: after 80% of its life, or a day.
func (v *Volumes) token(ctx context.Context, pod *corev1.Pod, key tokenKey, s *corev1.ServiceAccountTokenProjection) (string, error) {
	v.mu.Lock()
	have := v.tokens[key]
	v.mu.Unlock()
	if have != nil && time.Now().Before(have.rotate) {
		return have.value, nil
	}
	req := &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{
			ExpirationSeconds: s.ExpirationSeconds,
			BoundObjectRef:    &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID},
		},
	}
	if s.Audience != "" {
		req.Spec.Audiences = []string{s.Audience}
	}
	account := pod.Spec.ServiceAccountName
	if account == "" {
		account = "default"
	}
	now := time.Now()
	o, err := v.cfg.Client.Create(ctx, client.ServiceAccounts.GVR, pod.Namespace, account, "token", req, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("failed to fetch token: %w", err)
	}
	answer, ok := o.(*authenticationv1.TokenRequest)
	if !ok {
		return "", fmt.Errorf("failed to fetch token: the answer is a %T", o)
	}
	life := answer.Status.ExpirationTimestamp.Sub(now)
	if s.ExpirationSeconds != nil {
		life = min(life, time.Duration(*s.ExpirationSeconds)*time.Second)
	}
	t := &token{value: answer.Status.Token, rotate: now.Add(min(life*8/10, 24*time.Hour))}
	v.mu.Lock()
	v.tokens[key] = t
	v.mu.Unlock()
	return t.value, nil
}

// NextRotation is when the next token or certificate of the pod is due (zero: it has none).
func (v *Volumes) NextRotation(pod *corev1.Pod) time.Time {
	v.mu.Lock()
	defer v.mu.Unlock()
	var next time.Time
	soonest := func(t time.Time) {
		if next.IsZero() || t.Before(next) {
			next = t
		}
	}
	for k, t := range v.tokens {
		if k.uid == pod.UID {
			soonest(t.rotate)
		}
	}
	for k, c := range v.certificates {
		if k.uid == pod.UID && c.issued() {
			soonest(c.rotate)
		}
	}
	return next
}

// ErrorsOf splits what Setup and Refresh return into the errors of single volumes.
func ErrorsOf(err error) []error {
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		return j.Unwrap()
	}
	if err == nil {
		return nil
	}
	return []error{err}
}

// AbsentSource reports whether a volume waits for an object that does not exist.
func AbsentSource(err error) bool {
	return apierrors.IsNotFound(err) || strings.Contains(err.Error(), "references non-existent")
}
