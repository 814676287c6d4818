// Package request is one write as webhooks and admission policies see it: which
// rules and selectors it matches, as which resource and version, and its objects
// in that version, with their kind. It decides nothing about the write.
package request

import (
	"fmt"

	authenticationv1 "k8s.io/api/authentication/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver/rest"
)

// Cluster is what has to be known of the cluster. Objects are shared: read only.
type Cluster interface {
	Get(gvr schema.GroupVersionResource, namespace, name string) (api.Object, bool)
	// Equivalents returns the other resources that show the same stored objects.
	Equivalents(gvr schema.GroupVersionResource) []*api.Resource
}

var namespacesGVR = corev1.SchemeGroupVersion.WithResource("namespaces")

// Target is the resource and kind as which a write is shown.
type Target struct {
	Resource schema.GroupVersionResource
	Kind     schema.GroupVersionKind

	served *api.Resource // nil: the kind of the request
}

// Request is a write.
type Request struct {
	*rest.Attributes
	cluster Cluster
	kind    schema.GroupVersionKind
	// equivalents are found when they are first needed.
	equivalents []*api.Resource
	searched    bool
	shown       map[schema.GroupVersionKind]*admission.VersionedAttributes
}

// New returns the write that a describes.
func New(a *rest.Attributes, cluster Cluster) *Request {
	return &Request{Attributes: a, cluster: cluster, kind: kindOf(a)}
}

// kindOf is the kind of a write's object: that of the resource, or what its
// subresource takes.
func kindOf(a *rest.Attributes) schema.GroupVersionKind {
	switch a.Object.(type) {
	case *corev1.Binding:
		return corev1.SchemeGroupVersion.WithKind("Binding")
	case *policyv1.Eviction:
		return policyv1.SchemeGroupVersion.WithKind("Eviction")
	case *autoscalingv1.Scale:
		return autoscalingv1.SchemeGroupVersion.WithKind("Scale")
	case *authenticationv1.TokenRequest:
		return authenticationv1.SchemeGroupVersion.WithKind("TokenRequest")
	case *corev1.PodExecOptions:
		return corev1.SchemeGroupVersion.WithKind("PodExecOptions")
	case *corev1.PodAttachOptions:
		return corev1.SchemeGroupVersion.WithKind("PodAttachOptions")
	case *corev1.PodPortForwardOptions:
		return corev1.SchemeGroupVersion.WithKind("PodPortForwardOptions")
	case *corev1.PodProxyOptions:
		return corev1.SchemeGroupVersion.WithKind("PodProxyOptions")
	case *corev1.ServiceProxyOptions:
		return corev1.SchemeGroupVersion.WithKind("ServiceProxyOptions")
	case *corev1.NodeProxyOptions:
		return corev1.SchemeGroupVersion.WithKind("NodeProxyOptions")
	}
	return a.Resource.GVK
}

// Kind is the kind of the write's object.
func (r *Request) Kind() schema.GroupVersionKind { return r.kind }

// Scope is the namespace of the write: a Namespace is in itself.
func (r *Request) Scope() string {
	if r.Resource.GVR == namespacesGVR {
		return r.Name
	}
	return r.Namespace
}

// NamespaceObject is the namespace of the write; nil when it is of the cluster.
func (r *Request) NamespaceObject() (*corev1.Namespace, bool) {
	if r.Resource.GVR == namespacesGVR || r.Namespace == "" {
		return nil, true
	}
	obj, ok := r.cluster.Get(namespacesGVR, "", r.Namespace)
	if !ok {
		return nil, false
	}
	ns, ok := obj.(*corev1.Namespace)
	return ns, ok
}

// WithKind returns obj with its kind. What is below its metadata is shared with obj.
func WithKind(obj runtime.Object, gvk schema.GroupVersionKind) runtime.Object {
	return withKind(obj, gvk)
}

// As returns the write's objects as a target shows them. They are read only,
// and the same for each call until Replace.
func (r *Request) As(t *Target) (*admission.VersionedAttributes, error) {
	if v, ok := r.shown[t.Kind]; ok {
		return v, nil
	}
	v := &admission.VersionedAttributes{VersionedKind: t.Kind}
	var obj, old runtime.Object
	var err error
	if r.Object != nil {
		if obj, err = r.show(r.Object, t); err != nil {
			return nil, err
		}
		v.VersionedObject.Set(obj)
	}
	if r.Old != nil {
		if old, err = r.show(r.Old, t); err != nil {
			return nil, err
		}
		v.VersionedOldObject.Set(old)
	}
	v.Attributes = admission.NewAttributesRecord(obj, old, r.kind, r.Scope(), r.Name, r.Resource.GVR, r.Subresource,
		admission.Operation(r.Verb), optionsOf(r.Options), r.DryRun, r.User)
	if r.shown == nil {
		r.shown = map[schema.GroupVersionKind]*admission.VersionedAttributes{}
	}
	r.shown[t.Kind] = v
	return v, nil
}

func (r *Request) show(obj runtime.Object, t *Target) (runtime.Object, error) {
	if t.served == nil || !sameKind(obj, r) {
		return withKind(obj, t.Kind), nil
	}
	out := obj
	var err error
	if from := r.Resource; !from.StoredAs.Empty() && from.ToStored != nil {
		if out, err = from.ToStored(out); err != nil {
			return nil, fmt.Errorf("convert %s to %s: %w", r.kind, t.Kind, err)
		}
	}
	if to := t.served; !to.StoredAs.Empty() && to.FromStored != nil {
		if out, err = to.FromStored(out); err != nil {
			return nil, fmt.Errorf("convert %s to %s: %w", r.kind, t.Kind, err)
		}
	}
	return withKind(out, t.Kind), nil
}

// sameKind reports whether obj is of the resource's kind, not of a subresource's.
func sameKind(_ runtime.Object, r *Request) bool { return r.kind == r.Resource.GVK }

// Replace makes obj, as a target shows it, the object of the write.
func (r *Request) Replace(t *Target, obj runtime.Object) error {
	out := obj
	var err error
	if t.served != nil && r.kind == r.Resource.GVK {
		if from := t.served; !from.StoredAs.Empty() && from.ToStored != nil {
			if out, err = from.ToStored(out); err != nil {
				return fmt.Errorf("convert %s to %s: %w", t.Kind, r.kind, err)
			}
		}
		if to := r.Resource; !to.StoredAs.Empty() && to.FromStored != nil {
			if out, err = to.FromStored(out); err != nil {
				return fmt.Errorf("convert %s to %s: %w", t.Kind, r.kind, err)
			}
		}
	}
	clearKind(out)
	r.Object = out
	r.shown = nil
	return nil
}

// New returns an empty object of a target's kind.
func (r *Request) New(t *Target) runtime.Object {
	if t.served != nil {
		return t.served.New()
	}
	if r.kind == r.Resource.GVK {
		return r.Resource.New()
	}
	return newLike(r.Object)
}

// Complete makes of an object that was changed one of a target's kind: what a
// custom resource's schema does not know goes, and what is lacking is filled in.
func (r *Request) Complete(t *Target, obj runtime.Object) error {
	res := t.served
	if res == nil && r.kind == r.Resource.GVK {
		res = r.Resource
	}
	o, ok := obj.(api.Object)
	if !ok || res == nil {
		return nil
	}
	if res.Coerce != nil {
		if _, err := res.Coerce(o, false); err != nil {
			return err
		}
	}
	if res.Default != nil {
		res.Default(o)
	}
	return nil
}

// optionsOf gives the options of a write their kind, as their JSON has it.
func optionsOf(o runtime.Object) runtime.Object {
	kind := ""
	switch o.(type) {
	case *metav1.CreateOptions:
		kind = "CreateOptions"
	case *metav1.UpdateOptions:
		kind = "UpdateOptions"
	case *metav1.PatchOptions:
		kind = "PatchOptions"
	case *metav1.DeleteOptions:
		kind = "DeleteOptions"
	default:
		return o
	}
	return withKind(o, schema.GroupVersionKind{Group: "meta.k8s.io", Version: "v1", Kind: kind})
}
