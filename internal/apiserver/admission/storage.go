package admission

import (
	"context"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"

	"github.com/proa-dev/proa/internal/apiserver/rest"
)

// StorageInUse puts the finalizers on volumes and claims that keep them while a
// pod or a claim uses them.
type StorageInUse struct{}

func (StorageInUse) Admit(_ context.Context, a *rest.Attributes) error {
	switch {
	case is(a, "", "persistentvolumeclaims", rest.Create):
		if o, ok := a.Object.(*corev1.PersistentVolumeClaim); ok && !slices.Contains(o.Finalizers, "kubernetes.io/pvc-protection") {
			o.Finalizers = append(o.Finalizers, "kubernetes.io/pvc-protection")
		}
	case is(a, "", "persistentvolumes", rest.Create):
		if o, ok := a.Object.(*corev1.PersistentVolume); ok && !slices.Contains(o.Finalizers, "kubernetes.io/pv-protection") {
			o.Finalizers = append(o.Finalizers, "kubernetes.io/pv-protection")
		}
	}
	return nil
}

var storageClassesGVR = storagev1.SchemeGroupVersion.WithResource("storageclasses")

// defaultClassAnnotation marks the class of claims that name none.
const defaultClassAnnotation = "storageclass.kubernetes.io/is-default-class"

// DefaultStorageClass gives a claim without a class the default one: of several,
// the newest (ties by name).
type DefaultStorageClass struct{ Reader Reader }

func (p DefaultStorageClass) Admit(_ context.Context, a *rest.Attributes) error {
	if !is(a, "", "persistentvolumeclaims", rest.Create) {
		return nil
	}
	claim, ok := a.Object.(*corev1.PersistentVolumeClaim)
	if !ok || claim.Spec.StorageClassName != nil || claim.Annotations[corev1.BetaStorageClassAnnotation] != "" {
		return nil
	}
	var best *storagev1.StorageClass
	for _, obj := range p.Reader.List(storageClassesGVR, "") {
		c := obj.(*storagev1.StorageClass)
		if c.Annotations[defaultClassAnnotation] != "true" {
			continue
		}
		if best == nil || c.CreationTimestamp.After(best.CreationTimestamp.Time) ||
			(c.CreationTimestamp.Equal(&best.CreationTimestamp) && c.Name < best.Name) {
			best = c
		}
	}
	if best != nil {
		name := best.Name
		claim.Spec.StorageClassName = &name
	}
	return nil
}
