package persistentvolume

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/utils/ptr"
)

// Annotations that the binder, the scheduler and provisioners talk by.
const (
	bindCompleted    = "pv.kubernetes.io/bind-completed"
	boundByUs        = "pv.kubernetes.io/bound-by-controller"
	provisionedBy    = "pv.kubernetes.io/provisioned-by"
	selectedNode     = "volume.kubernetes.io/selected-node"
	provisioner      = "volume.kubernetes.io/storage-provisioner"
	provisionerBeta  = "volume.beta.kubernetes.io/storage-provisioner"
	defaultClass     = "storageclass.kubernetes.io/is-default-class"
	defaultClassBeta = "storageclass.beta.kubernetes.io/is-default-class"
)

// classOf is the class that a claim names; named is false when it names none,
// not even the empty one.
func classOf(c *corev1.PersistentVolumeClaim) (class string, named bool) {
	if class, ok := c.Annotations[corev1.BetaStorageClassAnnotation]; ok {
		return class, true
	}
	return ptr.Deref(c.Spec.StorageClassName, ""), c.Spec.StorageClassName != nil
}

func volumeClass(v *corev1.PersistentVolume) string {
	if class, ok := v.Annotations[corev1.BetaStorageClassAnnotation]; ok {
		return class
	}
	return v.Spec.StorageClassName
}

// meantFor says that a volume is bound to a claim, or set aside for it by name.
func meantFor(v *corev1.PersistentVolume, c *corev1.PersistentVolumeClaim) bool {
	ref := v.Spec.ClaimRef
	return ref != nil && ref.Name == c.Name && ref.Namespace == c.Namespace && (ref.UID == "" || ref.UID == c.UID)
}

func sameMode(v *corev1.PersistentVolume, c *corev1.PersistentVolumeClaim) bool {
	return ptr.Deref(v.Spec.VolumeMode, corev1.PersistentVolumeFilesystem) == ptr.Deref(c.Spec.VolumeMode, corev1.PersistentVolumeFilesystem)
}

func sameAttributes(v *corev1.PersistentVolume, c *corev1.PersistentVolumeClaim) bool {
	return ptr.Deref(v.Spec.VolumeAttributesClassName, "") == ptr.Deref(c.Spec.VolumeAttributesClassName, "")
}

func allows(v *corev1.PersistentVolume, c *corev1.PersistentVolumeClaim) bool {
	for _, m := range c.Spec.AccessModes {
		if !slices.Contains(v.Spec.AccessModes, m) {
			return false
		}
	}
	return true
}

func bigEnough(v *corev1.PersistentVolume, c *corev1.PersistentVolumeClaim) bool {
	have, want := v.Spec.Capacity[corev1.ResourceStorage], c.Spec.Resources.Requests[corev1.ResourceStorage]
	return have.Cmp(want) >= 0
}

// unfit says why a claim cannot have the volume that it asks for by name.
func unfit(v *corev1.PersistentVolume, c *corev1.PersistentVolumeClaim) error {
	class, _ := classOf(c)
	switch {
	case v.DeletionTimestamp != nil:
		return fmt.Errorf("the volume is marked for deletion %q", v.Name)
	case !bigEnough(v, c):
		return errors.New("requested PV is too small")
	case volumeClass(v) != class:
		return errors.New("storageClassName does not match")
	case !sameAttributes(v, c):
		return errors.New("volumeAttributesClassName does not match")
	case !sameMode(v, c):
		return errors.New("incompatible volumeMode")
	case !allows(v, c):
		return errors.New("incompatible accessMode")
	}
	return nil
}

// Match returns the volume for a claim: the one that is meant for it, else, unless
// the scheduler is to choose (delayed), of those with the fewest access modes the
// smallest. nil: there is none.
func Match(c *corev1.PersistentVolumeClaim, volumes []*corev1.PersistentVolume, delayed bool) (*corev1.PersistentVolume, error) {
	selector := labels.Everything()
	if c.Spec.Selector != nil {
		s, err := metav1.LabelSelectorAsSelector(c.Spec.Selector)
		if err != nil {
			return nil, fmt.Errorf("read the selector of claim %s/%s: %w", c.Namespace, c.Name, err)
		}
		selector = s
	}
	class, _ := classOf(c)
	var best *corev1.PersistentVolume
	for _, v := range volumes {
		if v.DeletionTimestamp != nil || !bigEnough(v, c) || !sameMode(v, c) || !sameAttributes(v, c) || !allows(v, c) {
			continue
		}
		switch {
		case meantFor(v, c):
			return v, nil
		case v.Spec.ClaimRef != nil, delayed, v.Status.Phase != corev1.VolumeAvailable, volumeClass(v) != class, !selector.Matches(labels.Set(v.Labels)):
		case best == nil || smaller(v, best) < 0:
			best = v
		}
	}
	return best, nil
}

func smaller(a, b *corev1.PersistentVolume) int {
	x, y := a.Spec.Capacity[corev1.ResourceStorage], b.Spec.Capacity[corev1.ResourceStorage]
	return cmp.Or(cmp.Compare(len(a.Spec.AccessModes), len(b.Spec.AccessModes)), x.Cmp(y), cmp.Compare(a.Name, b.Name))
}

// newestDefault is the class for claims that name none: of several, the newest.
func newestDefault(classes []*storagev1.StorageClass) *storagev1.StorageClass {
	var best *storagev1.StorageClass
	for _, c := range classes {
		if c.Annotations[defaultClass] != "true" && c.Annotations[defaultClassBeta] != "true" {
			continue
		}
		if best == nil || c.CreationTimestamp.After(best.CreationTimestamp.Time) || (c.CreationTimestamp.Equal(&best.CreationTimestamp) && c.Name < best.Name) {
			best = c
		}
	}
	return best
}
