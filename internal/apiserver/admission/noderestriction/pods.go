package noderestriction

import (
	"context"
	"fmt"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"

	"github.com/proa-dev/proa/internal/apiserver/auth"
	"github.com/proa-dev/proa/internal/apiserver/rest"
)

// kubeletLabels are those that a kubelet may set on its Node; of the other labels
// of Kubernetes' own domains it may set none.
var kubeletLabels = []string{
	corev1.LabelHostname, corev1.LabelTopologyZone, corev1.LabelTopologyRegion, corev1.LabelFailureDomainBetaZone, corev1.LabelFailureDomainBetaRegion,
	corev1.LabelInstanceType, corev1.LabelInstanceTypeStable, corev1.LabelOSStable, corev1.LabelArchStable, "beta.kubernetes.io/os", "beta.kubernetes.io/arch",
}

func within(domain, parent string) bool {
	return domain == parent || strings.HasSuffix(domain, "."+parent)
}

// forbidden returns the labels that differ and that a node may not set.
func forbidden(now, was map[string]string) (out []string) {
	check := func(key string) {
		domain, _, ok := strings.Cut(key, "/")
		if !ok {
			return
		}
		own := within(domain, "kubernetes.io") || within(domain, "k8s.io")
		allowed := slices.Contains(kubeletLabels, key) || within(domain, corev1.LabelNamespaceSuffixKubelet) || within(domain, corev1.LabelNamespaceSuffixNode)
		if within(domain, corev1.LabelNamespaceNodeRestriction) || own && !allowed {
			out = append(out, key)
		}
	}
	for k, v := range now {
		if before, ok := was[k]; !ok || before != v {
			check(k)
		}
	}
	for k := range was {
		if _, ok := now[k]; !ok {
			check(k)
		}
	}
	slices.Sort(out)
	return out
}

func ownNode(name string, a *rest.Attributes) error {
	if n := nameOf(a); n != name {
		return forbid(a, "node %q is not allowed to modify node %q", name, n)
	}
	n, ok := a.Object.(*corev1.Node)
	switch a.Verb {
	case rest.Create:
		if !ok {
			return forbid(a, "unexpected type %T", a.Object)
		}
		if n.Spec.ConfigSource != nil {
			return forbid(a, "node %q is not allowed to create pods with a non-nil configSource", name)
		}
		if bad := forbidden(n.Labels, nil); len(bad) > 0 {
			return forbid(a, "node %q is not allowed to set the following labels: %s", name, strings.Join(bad, ", "))
		}
	case rest.Update:
		old, isNode := a.Old.(*corev1.Node)
		switch {
		case !ok || !isNode:
			return forbid(a, "unexpected type %T", a.Object)
		case n.Spec.ConfigSource != nil && !apiequality.Semantic.DeepEqual(n.Spec.ConfigSource, old.Spec.ConfigSource):
			return forbid(a, "node %q is not allowed to update configSource to a new non-nil configSource", name)
		case !apiequality.Semantic.DeepEqual(n.Spec.Taints, old.Spec.Taints):
			return forbid(a, "node %q is not allowed to modify taints", name)
		case !apiequality.Semantic.DeepEqual(n.OwnerReferences, old.OwnerReferences):
			return forbid(a, "node %q is not allowed to modify ownerReferences", name)
		}
		if bad := forbidden(n.Labels, old.Labels); len(bad) > 0 {
			return forbid(a, "is not allowed to modify labels: %s", strings.Join(bad, ", "))
		}
	}
	return nil
}

// allowed asks for a right that a node may have beside what its pods need.
func (p Plugin) allowed(ctx context.Context, a *rest.Attributes, verb, resource, name string) bool {
	if p.Authorizer == nil {
		return false
	}
	ok, _, err := p.Authorizer.Authorize(ctx, auth.Attributes{User: a.User, Verb: verb, APIGroup: a.Resource.GVR.Group, APIVersion: a.Resource.GVR.Version,
		Resource: resource, Namespace: a.Namespace, Name: name, ResourceRequest: true})
	return err == nil && ok
}

// audience refuses tokens for an audience that the pod does not ask for (KEP-4935).
func (p Plugin) audience(ctx context.Context, tr *authenticationv1.TokenRequest, pod *corev1.Pod, a *rest.Attributes) error {
	wanted := ""
	switch len(tr.Spec.Audiences) {
	case 0:
	case 1:
		wanted = tr.Spec.Audiences[0]
	default:
		return forbid(a, "node may only request 0 or 1 audiences")
	}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if v.Projected != nil {
			for _, s := range v.Projected.Sources {
				if s.ServiceAccountToken != nil && s.ServiceAccountToken.Audience == wanted {
					return nil
				}
			}
		}
		driver := ""
		switch {
		case v.Ephemeral != nil:
			driver = p.driverOf(pod.Namespace, pod.Name+"-"+v.Name)
		case v.PersistentVolumeClaim != nil:
			driver = p.driverOf(pod.Namespace, v.PersistentVolumeClaim.ClaimName)
		case v.CSI != nil:
			driver = v.CSI.Driver
		}
		if driver == "" {
			continue
		}
		if obj, ok := p.Reader.Get(driversGVR, "", driver); ok {
			for _, t := range obj.(*storagev1.CSIDriver).Spec.TokenRequests {
				if t.Audience == wanted {
					return nil
				}
			}
		}
	}
	if p.allowed(ctx, a, "request-serviceaccounts-token-audience", wanted, a.Name) {
		return nil
	}
	return forbid(a, "%s is not authorized to request tokens for audience %q", a.User.GetName(), wanted)
}

// driverOf is the CSI driver of a claim's volume; "": none.
func (p Plugin) driverOf(namespace, claim string) string {
	obj, ok := p.Reader.Get(claimsGVR, namespace, claim)
	if !ok {
		return ""
	}
	if obj, ok = p.Reader.Get(volumesGVR, "", obj.(*corev1.PersistentVolumeClaim).Spec.VolumeName); !ok {
		return ""
	}
	if csi := obj.(*corev1.PersistentVolume).Spec.CSI; csi != nil {
		return csi.Driver
	}
	return ""
}

// podCertificate lets a node ask for the certificates of the pods that run on it (KEP-4317).
func (p Plugin) podCertificate(ctx context.Context, name string, a *rest.Attributes) error {
	if a.Verb != rest.Create {
		return forbid(a, "unexpected operation %v", a.Verb)
	}
	if a.Subresource != "" {
		return forbid(a, "unexpected subresource %v", a.Subresource)
	}
	req, ok := a.Object.(*certificatesv1.PodCertificateRequest)
	if !ok {
		return forbid(a, "unexpected type %T", a.Object)
	}
	s := &req.Spec
	if string(s.NodeName) != name {
		return forbid(a, "PodCertificateRequest.Spec.NodeName=%q, which is not the requesting node %q", s.NodeName, name)
	}
	where := types.NamespacedName{Namespace: a.Namespace, Name: s.PodName}.String()
	n, ok := p.Reader.Get(nodesGVR, "", name)
	if !ok || n.GetUID() != s.NodeUID {
		return forbid(a, "PodCertificateRequest for pod %q names node UID %q, which is not that of node %q", where, s.NodeUID, name)
	}
	pod, err := p.getPod(a.Namespace, s.PodName)
	if err != nil {
		return fmt.Errorf("while retrieving pod %q named in the PodCertificateRequest: %w", where, err)
	}
	if s.PodUID != pod.UID {
		return forbid(a, "PodCertificateRequest for pod %q contains pod UID (%q) which differs from running pod %q", where, s.PodUID, pod.UID)
	}
	if pod.Spec.NodeName != name {
		return forbid(a, "pod %q is not running on node %q named in the PodCertificateRequest", where, name)
	}
	if _, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]; mirror {
		return forbid(a, "pod %q is a mirror pod", where)
	}
	if s.ServiceAccountName != pod.Spec.ServiceAccountName {
		return forbid(a, "PodCertificateRequest for pod %q contains serviceAccountName (%q) that differs from running pod (%q)", where, s.ServiceAccountName, pod.Spec.ServiceAccountName)
	}
	account, ok := p.Reader.Get(accountsGVR, a.Namespace, s.ServiceAccountName)
	if !ok || account.GetUID() != s.ServiceAccountUID {
		return forbid(a, "PodCertificateRequest for pod %q names service account UID %q, which differs from the running service account", where, s.ServiceAccountUID)
	}
	for _, v := range pod.Spec.Volumes {
		if v.Projected == nil {
			continue
		}
		for _, src := range v.Projected.Sources {
			if src.PodCertificate != nil && src.PodCertificate.SignerName == s.SignerName {
				return nil
			}
		}
	}
	if p.allowed(ctx, a, "request-serviceaccounts-podcertificate-signer", strings.ReplaceAll(s.SignerName, "/", ":"), s.ServiceAccountName) {
		return nil
	}
	return forbid(a, "pod %q does not mount a podCertificate projected volume for signer %q", where, s.SignerName)
}

// refersTo names the kind of objects that a pod refers to; "": none. A mirror
// pod would give its node access to them.
func refersTo(pod *corev1.Pod) string {
	if pod.Spec.ServiceAccountName != "" {
		return "serviceaccounts"
	}
	if len(pod.Spec.ImagePullSecrets) > 0 {
		return "secrets"
	}
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			for _, e := range list[i].EnvFrom {
				switch {
				case e.SecretRef != nil:
					return "secrets"
				case e.ConfigMapRef != nil:
					return "configmaps"
				}
			}
			for _, e := range list[i].Env {
				switch {
				case e.ValueFrom == nil:
				case e.ValueFrom.SecretKeyRef != nil:
					return "secrets"
				case e.ValueFrom.ConfigMapKeyRef != nil:
					return "configmaps"
				}
			}
		}
	}
	if len(pod.Spec.ResourceClaims) > 0 {
		return "resourceclaims"
	}
	for i := range pod.Spec.Volumes {
		if what := volumeRefersTo(&pod.Spec.Volumes[i]); what != "" {
			return what
		}
	}
	return ""
}

func volumeRefersTo(v *corev1.Volume) string {
	switch {
	case v.ConfigMap != nil:
		return "configmaps (via configmap volumes)"
	case v.Secret != nil:
		return "secrets (via secret volumes)"
	case v.CSI != nil:
		return "csidrivers (via CSI volumes)"
	case v.Glusterfs != nil:
		return "endpoints (via glusterFS volumes)"
	case v.PersistentVolumeClaim != nil:
		return "persistentvolumeclaims"
	case v.Ephemeral != nil:
		return "persistentvolumeclaims (via ephemeral volumes)"
	case v.AzureFile != nil:
		return "secrets (via azureFile volumes)"
	case v.ISCSI != nil && v.ISCSI.SecretRef != nil, v.RBD != nil && v.RBD.SecretRef != nil, v.CephFS != nil && v.CephFS.SecretRef != nil,
		v.Cinder != nil && v.Cinder.SecretRef != nil, v.ScaleIO != nil && v.ScaleIO.SecretRef != nil, v.StorageOS != nil && v.StorageOS.SecretRef != nil,
		v.FlexVolume != nil && v.FlexVolume.SecretRef != nil:
		return "secrets"
	case v.Projected != nil:
		for _, s := range v.Projected.Sources {
			switch {
			case s.ConfigMap != nil:
				return "configmaps (via projected volumes)"
			case s.Secret != nil:
				return "secrets (via projected volumes)"
			case s.ServiceAccountToken != nil:
				return "serviceaccounts (via projected volumes)"
			case s.ClusterTrustBundle != nil:
				return "clustertrustbundles"
			case s.PodCertificate != nil:
				return "podcertificates"
			}
		}
	}
	return ""
}
