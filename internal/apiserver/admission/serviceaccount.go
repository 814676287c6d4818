package admission

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/rand"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver/rest"
)

const (
	tokenVolumePrefix = "kube-api-access-"
	tokenMountPath    = "/var/run/secrets/kubernetes.io/serviceaccount"
	rootCAConfigMap   = "kube-root-ca.crt"
	tokenSeconds      = 3607
)

var serviceAccountsGVR = corev1.SchemeGroupVersion.WithResource("serviceaccounts")

// ServiceAccount gives every pod a service account, and mounts its token, the
// cluster's root certificate and the namespace's name into each container.
type ServiceAccount struct{ Reader Reader }

func (p ServiceAccount) Admit(ctx context.Context, a *rest.Attributes) error {
	if !is(a, "", "pods", rest.Create) {
		return nil
	}
	pod, ok := a.Object.(*corev1.Pod)
	if !ok || pod.Annotations[corev1.MirrorPodAnnotationKey] != "" {
		return nil
	}
	if pod.Spec.ServiceAccountName == "" {
		pod.Spec.ServiceAccountName = "default"
	}
	pod.Spec.DeprecatedServiceAccount = pod.Spec.ServiceAccountName
	obj, ok := p.account(ctx, a.Namespace, pod.Spec.ServiceAccountName)
	if !ok {
		return apierrors.NewForbidden(a.Resource.GVR.GroupResource(), pod.Name,
			fmt.Errorf("error looking up service account %s/%s: serviceaccount %q not found", a.Namespace, pod.Spec.ServiceAccountName, pod.Spec.ServiceAccountName))
	}
	account := obj.(*corev1.ServiceAccount)
	if automount(account, pod) {
		mountToken(pod)
	}
	if len(pod.Spec.ImagePullSecrets) == 0 {
		pod.Spec.ImagePullSecrets = slices.Clone(account.ImagePullSecrets)
	}
	return nil
}

// A controller makes the service account "default" of a new namespace: pods that
// come at once wait for it.
const (
	accountAttempts = 10
	accountPause    = 100 * time.Millisecond
)

func (p ServiceAccount) account(ctx context.Context, namespace, name string) (api.Object, bool) {
	for attempt := 1; ; attempt++ {
		obj, ok := p.Reader.Get(serviceAccountsGVR, namespace, name)
		if ok || name != "default" || attempt == accountAttempts {
			return obj, ok
		}
		select {
		case <-ctx.Done():
			return nil, false
		case <-time.After(accountPause):
		}
	}
}

func automount(account *corev1.ServiceAccount, pod *corev1.Pod) bool {
	if v := pod.Spec.AutomountServiceAccountToken; v != nil {
		return *v
	}
	if v := account.AutomountServiceAccountToken; v != nil {
		return *v
	}
	return true
}

func mountToken(pod *corev1.Pod) {
	name := ""
	for _, v := range pod.Spec.Volumes {
		if strings.HasPrefix(v.Name, tokenVolumePrefix) && v.Projected != nil {
			name = v.Name
		}
	}
	needed := false
	mount := func(list []corev1.Container) {
		for i := range list {
			if slices.ContainsFunc(list[i].VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == tokenMountPath }) {
				continue
			}
			if name == "" {
				name, needed = tokenVolumePrefix+rand.String(5), true
			}
			list[i].VolumeMounts = append(list[i].VolumeMounts, corev1.VolumeMount{Name: name, ReadOnly: true, MountPath: tokenMountPath})
		}
	}
	mount(pod.Spec.InitContainers)
	mount(pod.Spec.Containers)
	if !needed {
		return
	}
	seconds, mode := int64(tokenSeconds), int32(0o644)
	pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
		Projected: &corev1.ProjectedVolumeSource{DefaultMode: &mode, Sources: []corev1.VolumeProjection{
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{ExpirationSeconds: &seconds, Path: "token"}},
			{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: rootCAConfigMap},
				Items: []corev1.KeyToPath{{Key: "ca.crt", Path: "ca.crt"}}}},
			{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{{Path: "namespace",
				FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.namespace"}}}}},
		}},
	}})
}
