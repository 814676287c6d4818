// Package noderestriction keeps a kubelet to its own: its Node, the pods that
// are bound to it and their tokens, its Lease and CSINode. It asks only about
// users that are nodes (KEP-279, the documentation's "NodeRestriction").
package noderestriction

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	storagev1 "k8s.io/api/storage/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/user"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver/auth"
	"github.com/proa-dev/proa/internal/apiserver/rest"
)

// Reader looks objects up in the newest known state. They are shared: read only.
type Reader interface {
	Get(gvr schema.GroupVersionResource, namespace, name string) (api.Object, bool)
}

var (
	podsGVR     = corev1.SchemeGroupVersion.WithResource("pods")
	nodesGVR    = corev1.SchemeGroupVersion.WithResource("nodes")
	accountsGVR = corev1.SchemeGroupVersion.WithResource("serviceaccounts")
	claimsGVR   = corev1.SchemeGroupVersion.WithResource("persistentvolumeclaims")
	volumesGVR  = corev1.SchemeGroupVersion.WithResource("persistentvolumes")
	driversGVR  = storagev1.SchemeGroupVersion.WithResource("csidrivers")
)

// Plugin is the NodeRestriction admission plugin.
type Plugin struct {
	Reader     Reader
	Authorizer auth.Authorizer
}

// nodeName returns the name of the node that a user is.
func nodeName(u user.Info) (name string, ok bool) {
	if u == nil {
		return "", false
	}
	name, ok = strings.CutPrefix(u.GetName(), "system:node:")
	return name, ok && slices.Contains(u.GetGroups(), user.NodesGroup)
}

func forbid(a *rest.Attributes, format string, args ...any) error {
	return apierrors.NewForbidden(a.Resource.GVR.GroupResource(), a.Name, fmt.Errorf(format, args...))
}

func (p Plugin) Admit(ctx context.Context, a *rest.Attributes) error {
	name, isNode := nodeName(a.User)
	if !isNode {
		return nil
	}
	if name == "" {
		return forbid(a, "could not determine node from user %q", a.User.GetName())
	}
	switch a.Resource.GVR.GroupResource() {
	case schema.GroupResource{Resource: "pods"}:
		switch a.Subresource {
		case "":
			return p.pod(name, a)
		case "status":
			return podStatus(name, a)
		case "eviction":
			return p.eviction(name, a)
		}
		return forbid(a, "unexpected pod subresource %q, only 'status' and 'eviction' are allowed", a.Subresource)
	case schema.GroupResource{Resource: "nodes"}:
		return ownNode(name, a)
	case schema.GroupResource{Resource: "persistentvolumeclaims"}:
		return claimStatus(name, a)
	case schema.GroupResource{Resource: "serviceaccounts"}:
		return p.token(ctx, name, a)
	case schema.GroupResource{Group: certificatesv1.GroupName, Resource: "podcertificaterequests"}:
		return p.podCertificate(ctx, name, a)
	case schema.GroupResource{Group: coordinationv1.GroupName, Resource: "leases"}:
		if a.Namespace != corev1.NamespaceNodeLease {
			return forbid(a, "can only access leases in the %q system namespace", corev1.NamespaceNodeLease)
		}
		if nameOf(a) != name {
			return forbid(a, "can only access node lease with the same name as the requesting node")
		}
	case schema.GroupResource{Group: storagev1.GroupName, Resource: "csinodes"}:
		return csiNode(name, a)
	case schema.GroupResource{Group: resourcev1.GroupName, Resource: "resourceslices"}:
		return slice(name, a)
	case schema.GroupResource{Group: certificatesv1.GroupName, Resource: "certificatesigningrequests"}:
		return request(name, a)
	}
	return nil
}

// nameOf is the name of the object that a write is about.
func nameOf(a *rest.Attributes) string {
	if a.Verb == rest.Create && a.Object != nil {
		if o, err := meta.Accessor(a.Object); err == nil {
			return o.GetName()
		}
	}
	return a.Name
}

func (p Plugin) getPod(namespace, name string) (*corev1.Pod, error) {
	if obj, ok := p.Reader.Get(podsGVR, namespace, name); ok {
		if pod, ok := obj.(*corev1.Pod); ok {
			return pod, nil
		}
	}
	return nil, apierrors.NewNotFound(podsGVR.GroupResource(), name)
}

func (p Plugin) pod(name string, a *rest.Attributes) error {
	switch a.Verb {
	case rest.Create:
		return p.mirror(name, a)
	case rest.Delete:
		if a.Name == "" {
			return nil // each pod of the collection is asked about
		}
		pod, ok := a.Old.(*corev1.Pod)
		if !ok {
			return forbid(a, "unexpected type %T", a.Old)
		}
		if pod.Spec.NodeName != name {
			return forbid(a, "node %q can only delete pods with spec.nodeName set to itself", name)
		}
		return nil
	}
	return forbid(a, "unexpected operation %q, node %q can only create and delete mirror pods", a.Verb, name)
}

// mirror lets a node create the mirrors of its static pods, and nothing else.
func (p Plugin) mirror(name string, a *rest.Attributes) error {
	pod, ok := a.Object.(*corev1.Pod)
	if !ok {
		return forbid(a, "unexpected type %T", a.Object)
	}
	if _, ok := pod.Annotations[corev1.MirrorPodAnnotationKey]; !ok {
		return forbid(a, "pod does not have %q annotation, node %q can only create mirror pods", corev1.MirrorPodAnnotationKey, name)
	}
	if pod.Spec.NodeName != name {
		return forbid(a, "node %q can only create pods with spec.nodeName set to itself", name)
	}
	switch {
	case len(pod.OwnerReferences) > 1:
		return forbid(a, "node %q can only create pods with a single owner reference set to itself", name)
	case len(pod.OwnerReferences) == 0:
		return forbid(a, "node %q can only create pods with an owner reference set to itself", name)
	}
	switch o := pod.OwnerReferences[0]; {
	case o.APIVersion != "v1" || o.Kind != "Node" || o.Name != name:
		return forbid(a, "node %q can only create pods with an owner reference set to itself", name)
	case o.Controller == nil || !*o.Controller:
		return forbid(a, "node %q can only create pods with a controller owner reference set to itself", name)
	case o.BlockOwnerDeletion != nil && *o.BlockOwnerDeletion:
		return forbid(a, "node %q must not set blockOwnerDeletion on an owner reference", name)
	default:
		n, ok := p.Reader.Get(nodesGVR, "", name)
		if !ok {
			return apierrors.NewNotFound(nodesGVR.GroupResource(), name)
		}
		if o.UID != n.GetUID() {
			return forbid(a, "node %s UID mismatch: expected %s got %s", name, o.UID, n.GetUID())
		}
	}
	if what := refersTo(pod); what != "" {
		return forbid(a, "node %q can not create pods that reference %s", name, what)
	}
	return nil
}

func podStatus(name string, a *rest.Attributes) error {
	if a.Verb != rest.Update {
		return forbid(a, "unexpected operation %q", a.Verb)
	}
	was, ok := a.Old.(*corev1.Pod)
	if !ok {
		return forbid(a, "unexpected type %T", a.Old)
	}
	if was.Spec.NodeName != name {
		return forbid(a, "node %q can only update pod status for pods with spec.nodeName set to itself", name)
	}
	now, ok := a.Object.(*corev1.Pod)
	if !ok {
		return forbid(a, "unexpected type %T", a.Object)
	}
	if !maps.Equal(was.Labels, now.Labels) {
		return forbid(a, "node %q cannot update labels through pod status", name)
	}
	if !apiequality.Semantic.DeepEqual(was.Status.ResourceClaimStatuses, now.Status.ResourceClaimStatuses) {
		return forbid(a, "node %q cannot update resource claim statues", name)
	}
	if !apiequality.Semantic.DeepEqual(was.Status.ExtendedResourceClaimStatus, now.Status.ExtendedResourceClaimStatus) {
		return forbid(a, "node %q cannot update extended resource claim status", name)
	}
	return nil
}

func (p Plugin) eviction(name string, a *rest.Attributes) error {
	if a.Verb != rest.Create {
		return forbid(a, "unexpected operation %s", a.Verb)
	}
	pod, err := p.getPod(a.Namespace, a.Name)
	if err != nil {
		return err
	}
	if pod.Spec.NodeName != name {
		return forbid(a, "node %s can only evict pods with spec.nodeName set to itself", name)
	}
	return nil
}

func claimStatus(name string, a *rest.Attributes) error {
	if a.Subresource != "status" {
		return forbid(a, "may only update PVC status")
	}
	was, ok1 := a.Old.(*corev1.PersistentVolumeClaim)
	now, ok2 := a.Object.(*corev1.PersistentVolumeClaim)
	if a.Verb != rest.Update || !ok1 || !ok2 {
		return forbid(a, "unexpected operation %q", a.Verb)
	}
	was, now = was.DeepCopy(), now.DeepCopy()
	for _, c := range []*corev1.PersistentVolumeClaim{was, now} {
		c.ResourceVersion, c.ManagedFields = "", nil
		c.Status.Capacity, c.Status.Conditions, c.Status.AllocatedResourceStatuses, c.Status.AllocatedResources = nil, nil, nil, nil
	}
	if !apiequality.Semantic.DeepEqual(was, now) {
		return forbid(a, "node %q is not allowed to update fields other than status.quantity and status.conditions", name)
	}
	return nil
}

func csiNode(name string, a *rest.Attributes) error {
	if nameOf(a) != name {
		return forbid(a, "can only access CSINode with the same name as the requesting node")
	}
	if a.Subresource == "status" {
		was, ok1 := a.Old.(*storagev1.CSINode)
		now, ok2 := a.Object.(*storagev1.CSINode)
		if !ok1 || !ok2 || !apiequality.Semantic.DeepEqual(was.Spec, now.Spec) {
			return forbid(a, "node %q is not allowed to modify CSINode spec via status", name)
		}
	}
	return nil
}

func slice(name string, a *rest.Attributes) error {
	own := func(obj any) bool {
		s, ok := obj.(*resourcev1.ResourceSlice)
		return ok && s.Spec.NodeName != nil && *s.Spec.NodeName == name
	}
	switch {
	case a.Verb == rest.Create && !own(a.Object):
		return forbid(a, "can only create ResourceSlice with the same NodeName as the requesting node")
	case a.Verb == rest.Delete && a.Name != "" && !own(a.Old):
		return forbid(a, "can only delete ResourceSlice with the same NodeName as the requesting node")
	}
	return nil
}

func request(name string, a *rest.Attributes) error {
	csr, ok := a.Object.(*certificatesv1.CertificateSigningRequest)
	if a.Verb != rest.Create || !ok || csr.Spec.SignerName != certificatesv1.KubeletServingSignerName && csr.Spec.SignerName != certificatesv1.KubeAPIServerClientKubeletSignerName {
		return nil
	}
	block, _ := pem.Decode(csr.Spec.Request)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return forbid(a, "unable to parse csr: %w", errors.New("PEM block type must be CERTIFICATE REQUEST"))
	}
	parsed, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return forbid(a, "unable to parse csr: %w", err)
	}
	if parsed.Subject.CommonName != "system:node:"+name {
		return forbid(a, "can only create a node CSR with CN=system:node:%s", name)
	}
	return nil
}

// token lets a node ask for tokens of the pods that run on it.
func (p Plugin) token(ctx context.Context, name string, a *rest.Attributes) error {
	if a.Verb != rest.Create || a.Subresource != "token" {
		return nil
	}
	tr, ok := a.Object.(*authenticationv1.TokenRequest)
	if !ok {
		return forbid(a, "unexpected type %T", a.Object)
	}
	ref := tr.Spec.BoundObjectRef
	if ref == nil || ref.APIVersion != "v1" || ref.Kind != "Pod" || ref.Name == "" {
		return forbid(a, "node requested token not bound to a pod")
	}
	if ref.UID == "" {
		return forbid(a, "node requested token with a pod binding without a uid")
	}
	pod, err := p.getPod(a.Namespace, ref.Name)
	if err != nil {
		return err
	}
	if ref.UID != pod.UID {
		return forbid(a, "the UID in the bound object reference (%s) does not match the UID in record. The object might have been deleted and then recreated", ref.UID)
	}
	if pod.Spec.NodeName != name {
		return forbid(a, "node requested token bound to a pod scheduled on a different node")
	}
	return p.audience(ctx, tr, pod, a)
}
