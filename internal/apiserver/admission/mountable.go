package admission

import (
	"context"
	"fmt"
	"strconv"

	corev1 "k8s.io/api/core/v1"

	"github.com/proa-dev/proa/internal/apiserver/rest"
)

// mountableAnnotation holds the pods of a service account to its secrets.
const mountableAnnotation = "kubernetes.io/enforce-mountable-secrets"

// Validate keeps pods that mirror a node's own from what they cannot have, and
// others, if their service account says so, to its secrets.
func (p ServiceAccount) Validate(_ context.Context, a *rest.Attributes) error {
	pod, ok := a.Object.(*corev1.Pod)
	if !ok || a.Resource.GVR.Resource != "pods" || a.Resource.GVR.Group != "" {
		return nil
	}
	switch {
	case a.Verb == rest.Create && a.Subresource == "":
		if _, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]; mirror {
			return mirrored(a, pod)
		}
	case a.Verb == rest.Update && a.Subresource == "ephemeralcontainers":
	default:
		return nil
	}
	obj, ok := p.Reader.Get(serviceAccountsGVR, a.Namespace, pod.Spec.ServiceAccountName)
	if !ok {
		return nil // Admit has refused what needs it
	}
	account := obj.(*corev1.ServiceAccount)
	if enforce, _ := strconv.ParseBool(account.Annotations[mountableAnnotation]); !enforce {
		return nil
	}
	if err := mountable(account, pod, a.Subresource != ""); err != nil {
		return forbid(a, "%w", err)
	}
	return nil
}

func mirrored(a *rest.Attributes, pod *corev1.Pod) error {
	if pod.Spec.ServiceAccountName != "" {
		return forbid(a, "a mirror pod may not reference service accounts")
	}
	secrets := len(pod.Spec.ImagePullSecrets) > 0
	for _, v := range pod.Spec.Volumes {
		secrets = secrets || v.Secret != nil
		if v.Projected == nil {
			continue
		}
		for _, s := range v.Projected.Sources {
			if s.ServiceAccountToken != nil {
				return forbid(a, "a mirror pod may not use ServiceAccountToken volume projections")
			}
			secrets = secrets || s.Secret != nil
		}
	}
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			_ = referred(&list[i], func(string, string) error { secrets = true; return nil })
		}
	}
	if secrets {
		return forbid(a, "a mirror pod may not reference secrets")
	}
	return nil
}

// referred calls fn for each secret that a container refers to, with how it does.
func referred(c *corev1.Container, fn func(how, secret string) error) error {
	for _, e := range c.Env {
		if e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil {
			if err := fn("envVar "+e.Name, e.ValueFrom.SecretKeyRef.Name); err != nil {
				return err
			}
		}
	}
	for _, e := range c.EnvFrom {
		if e.SecretRef != nil {
			if err := fn("envFrom", e.SecretRef.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

// mountable returns why a pod may not have the secrets that it refers to.
func mountable(account *corev1.ServiceAccount, pod *corev1.Pod, ephemeralOnly bool) error {
	allowed := map[string]bool{}
	for _, s := range account.Secrets {
		allowed[s.Name] = true
	}
	check := func(kind string, c *corev1.Container) error {
		return referred(c, func(how, secret string) error {
			if allowed[secret] {
				return nil
			}
			return fmt.Errorf("%s %s with %s referencing secret.secretName=\"%s\" is not allowed because service account %s does not reference that secret", kind, c.Name, how, secret, account.Name)
		})
	}
	if ephemeralOnly {
		for i := range pod.Spec.EphemeralContainers {
			c := corev1.Container(pod.Spec.EphemeralContainers[i].EphemeralContainerCommon)
			if err := check("ephemeral container", &c); err != nil {
				return err
			}
		}
		return nil
	}
	for _, v := range pod.Spec.Volumes {
		if v.Secret != nil && !allowed[v.Secret.SecretName] {
			return fmt.Errorf("volume with secret.secretName=\"%s\" is not allowed because service account %s does not reference that secret", v.Secret.SecretName, account.Name)
		}
	}
	for i := range pod.Spec.InitContainers {
		if err := check("init container", &pod.Spec.InitContainers[i]); err != nil {
			return err
		}
	}
	for i := range pod.Spec.Containers {
		if err := check("container", &pod.Spec.Containers[i]); err != nil {
			return err
		}
	}
	pulls := map[string]bool{}
	for _, s := range account.ImagePullSecrets {
		pulls[s.Name] = true
	}
	for i, s := range pod.Spec.ImagePullSecrets {
		if !pulls[s.Name] {
			return fmt.Errorf("imagePullSecrets[%d].name=\"%s\" is not allowed because service account %s does not reference that imagePullSecret", i, s.Name, account.Name)
		}
	}
	return nil
}
