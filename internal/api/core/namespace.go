package core

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

func namespace() *api.Resource {
	k := api.Kind[*corev1.Namespace]{Resource: rules.Cluster[corev1.Namespace, corev1.NamespaceList](gv, "namespaces", "ns")}
	k.Resource.UnconditionalUpdate = true
	k.Resource.Subresources = []string{"finalize"}
	// A namespace is emptied before it goes, and has no collection to delete.
	k.Resource.Verbs = []string{"create", "delete", "get", "list", "patch", "update", "watch"}
	k.ValidateName = validation.ValidateNamespaceName
	k.Default = func(o *corev1.Namespace) {
		zero(&o.Status.Phase, corev1.NamespaceActive)
		if o.Name == "" || o.Labels[corev1.LabelMetadataName] == o.Name {
			return
		}
		if o.Labels == nil {
			o.Labels = map[string]string{}
		}
		o.Labels[corev1.LabelMetadataName] = o.Name
	}
	k.PrepareForCreate = func(o *corev1.Namespace) {
		o.Status = corev1.NamespaceStatus{Phase: corev1.NamespaceActive}
		if !slices.Contains(o.Spec.Finalizers, corev1.FinalizerKubernetes) {
			o.Spec.Finalizers = append(o.Spec.Finalizers, corev1.FinalizerKubernetes)
		}
	}
	// Finalizers are changed through /finalize only.
	k.PrepareForUpdate = func(o, old *corev1.Namespace) { o.Spec.Finalizers = slices.Clone(old.Spec.Finalizers) }
	k.Validate = validateNamespace
	k.CopyStatus = func(dst, src *corev1.Namespace) { src.Status.DeepCopyInto(&dst.Status) }
	k.ValidateStatusUpdate = func(o, _ *corev1.Namespace) field.ErrorList {
		phase := field.NewPath("status", "Phase") // so spelled in Kubernetes' messages
		switch {
		case o.Status.Phase == "":
		case o.DeletionTimestamp == nil && o.Status.Phase != corev1.NamespaceActive:
			return field.ErrorList{field.Invalid(phase, o.Status.Phase, "may only be 'Active' if `deletionTimestamp` is empty")}
		case o.DeletionTimestamp != nil && o.Status.Phase != corev1.NamespaceTerminating:
			return field.ErrorList{field.Invalid(phase, o.Status.Phase, "may only be 'Terminating' if `deletionTimestamp` is not empty")}
		}
		return nil
	}
	k.Fields = func(o *corev1.Namespace) fields.Set { return fields.Set{"status.phase": string(o.Status.Phase)} }
	k.Resource.FieldLabels = []string{"status.phase"}
	k.Resource.Columns = []metav1.TableColumnDefinition{rules.Name(), rules.Text("Status", "The status of the namespace"), rules.Age()}
	k.Row = func(o *corev1.Namespace) []any {
		return []any{o.Name, string(o.Status.Phase), rules.Created(o)}
	}
	return k.Erase()
}

func validateNamespace(o *corev1.Namespace) (errs field.ErrorList) {
	p := field.NewPath("spec", "finalizers")
	for _, f := range o.Spec.Finalizers {
		errs = append(errs, qualified(p, string(f))...)
		if !strings.Contains(string(f), "/") && f != corev1.FinalizerKubernetes {
			errs = append(errs, field.Invalid(p, f, "name is neither a standard finalizer name nor is it fully qualified"))
		}
	}
	return errs
}
