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

// PersistentVolumeClaimResize lets only those claims grow whose volume can.
type PersistentVolumeClaimResize struct{ Reader Reader }

func (p PersistentVolumeClaimResize) Validate(_ context.Context, a *rest.Attributes) error {
	if !is(a, "", "persistentvolumeclaims", rest.Update) {
		return nil
	}
	now, ok1 := a.Object.(*corev1.PersistentVolumeClaim)
	was, ok2 := a.Old.(*corev1.PersistentVolumeClaim)
	if !ok1 || !ok2 {
		return nil
	}
	size, had := now.Spec.Resources.Requests[corev1.ResourceStorage], was.Spec.Resources.Requests[corev1.ResourceStorage]
	if size.Cmp(had) <= 0 {
		return nil
	}
	if was.Status.Phase != corev1.ClaimBound {
		return forbid(a, "Only bound persistent volume claims can be expanded") //nolint:staticcheck // Kubernetes' words
	}
	class := classOf(now)
	if class != "" && class == classOf(was) {
		if obj, ok := p.Reader.Get(storageClassesGVR, "", class); ok {
			if c := obj.(*storagev1.StorageClass); c.AllowVolumeExpansion != nil && *c.AllowVolumeExpansion {
				return nil
			}
		}
	}
	return forbid(a, "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize")
}

func classOf(c *corev1.PersistentVolumeClaim) string {
	if s := c.Annotations[corev1.BetaStorageClassAnnotation]; s != "" {
		return s
	}
	if c.Spec.StorageClassName != nil {
		return *c.Spec.StorageClassName
	}
	return ""
}
