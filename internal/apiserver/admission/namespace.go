package admission

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/proa-dev/proa/internal/apiserver/rest"
)

var namespacesGVR = corev1.SchemeGroupVersion.WithResource("namespaces")

// NamespaceLifecycle refuses objects in a namespace that does not exist or is being
// deleted, and the deletion of the namespaces that Kubernetes itself needs.
type NamespaceLifecycle struct{ Reader Reader }

func (p NamespaceLifecycle) Admit(_ context.Context, a *rest.Attributes) error {
	if is(a, "", "namespaces", rest.Delete) {
		switch a.Name {
		case metav1.NamespaceDefault, metav1.NamespaceSystem, metav1.NamespacePublic:
			return apierrors.NewForbidden(a.Resource.GVR.GroupResource(), a.Name, fmt.Errorf("this namespace may not be deleted"))
		}
		return nil
	}
	if !a.Resource.Namespaced || a.Verb != rest.Create || (a.Subresource != "" && !createsObject(a.Subresource)) {
		return nil
	}
	if a.Resource.GVR.Group == "authorization.k8s.io" {
		return nil // reviews may ask about any namespace
	}
	obj, ok := p.Reader.Get(namespacesGVR, "", a.Namespace)
	if !ok {
		return apierrors.NewNotFound(namespacesGVR.GroupResource(), a.Namespace)
	}
	if obj.GetDeletionTimestamp() == nil {
		return nil
	}
	err := apierrors.NewForbidden(a.Resource.GVR.GroupResource(), a.Name,
		fmt.Errorf("unable to create new content in namespace %s because it is being terminated", a.Namespace))
	err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes, metav1.StatusCause{
		Type:    corev1.NamespaceTerminatingCause,
		Message: fmt.Sprintf("namespace %s is being terminated", a.Namespace),
		Field:   "metadata.namespace",
	})
	return err
}

func createsObject(subresource string) bool {
	switch subresource {
	case "binding", "eviction", "token", "exec", "attach", "portforward", "proxy":
		return false
	}
	return true
}
