package persistentvolume

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/proa-dev/proa/internal/client"
)

// volume says of a volume what has become of it and its claim.
func (x *Controller) volume(ctx context.Context, v *corev1.PersistentVolume) error {
	ref := v.Spec.ClaimRef
	if ref == nil || ref.UID == "" {
		_, err := x.volumePhase(ctx, v, corev1.VolumeAvailable, "")
		return err
	}
	c, ok := x.claims.Get(ref.Namespace, ref.Name)
	if !ok || c.UID != ref.UID {
		// Never by the view alone: a claim taken for gone would cost its data.
		live, err := client.PersistentVolumeClaims.Get(ctx, x.client, ref.Namespace, ref.Name)
		switch {
		case err == nil && live.UID == ref.UID:
			c = live
		case err != nil && !apierrors.IsNotFound(err):
			return fmt.Errorf("read claim %s/%s of volume %s: %w", ref.Namespace, ref.Name, v.Name, err)
		default:
			return x.release(ctx, v)
		}
	}
	switch {
	case c.Spec.VolumeName == "":
		if !sameMode(v, c) {
			x.recorder.Eventf(v, corev1.EventTypeWarning, "VolumeMismatch", "Cannot bind PersistentVolume to requested PersistentVolumeClaim %q due to incompatible volumeMode.", c.Name)
			x.recorder.Eventf(c, corev1.EventTypeWarning, "VolumeMismatch", "Cannot bind PersistentVolume %q to requested PersistentVolumeClaim due to incompatible volumeMode.", v.Name)
			return nil
		}
		x.loop.Add(key{c.Namespace, c.Name}) // its turn ends the binding
		return nil
	case c.Spec.VolumeName == v.Name:
		_, err := x.volumePhase(ctx, v, corev1.VolumeBound, "")
		return err
	}
	// The claim got another volume. One made for it goes; others are given back.
	if _, made := v.Annotations[provisionedBy]; made && v.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete {
		return x.release(ctx, v)
	}
	return x.unbind(ctx, v)
}

// release does with a volume whose claim is gone what its reclaim policy says.
// Who provisioned it deletes it: that is another program.
func (x *Controller) release(ctx context.Context, v *corev1.PersistentVolume) error {
	if v.Status.Phase != corev1.VolumeReleased && v.Status.Phase != corev1.VolumeFailed {
		out, err := x.volumePhase(ctx, v, corev1.VolumeReleased, "")
		if err != nil {
			return err
		}
		v = out
	}
	switch v.Spec.PersistentVolumeReclaimPolicy {
	case corev1.PersistentVolumeReclaimRetain:
	case corev1.PersistentVolumeReclaimRecycle:
		return x.failed(ctx, v, "VolumeFailedRecycle", "No recycler plugin found for the volume!")
	case corev1.PersistentVolumeReclaimDelete:
		by := v.Annotations[provisionedBy]
		if v.Spec.CSI != nil || by != "" && !strings.HasPrefix(migrated(by), "kubernetes.io/") {
			return nil
		}
		return x.failed(ctx, v, "VolumeFailedDelete", fmt.Sprintf("error getting deleter volume plugin for volume %q: no deletable volume plugin matched", v.Name))
	default:
		return x.failed(ctx, v, "VolumeUnknownReclaimPolicy", "Volume has unrecognized PersistentVolumeReclaimPolicy")
	}
	return nil
}

func (x *Controller) failed(ctx context.Context, v *corev1.PersistentVolume, reason, message string) error {
	if v.Status.Phase == corev1.VolumeFailed {
		return nil
	}
	out, err := x.volumePhase(ctx, v, corev1.VolumeFailed, message)
	if err == nil {
		x.recorder.Eventf(out, corev1.EventTypeWarning, reason, "%s", message)
	}
	return err
}

// unbind takes a volume back from a claim that has another: wholly when the binder
// gave it, else it stays set aside for the claim by name.
func (x *Controller) unbind(ctx context.Context, v *corev1.PersistentVolume) error {
	out := v.DeepCopy()
	if _, ours := v.Annotations[boundByUs]; ours {
		out.Spec.ClaimRef = nil
		delete(out.Annotations, boundByUs)
	} else {
		out.Spec.ClaimRef.UID = ""
	}
	out, err := client.PersistentVolumes.Update(ctx, x.client, out)
	if err != nil {
		return fmt.Errorf("unbind volume %s: %w", v.Name, err)
	}
	_, err = x.volumePhase(ctx, out, corev1.VolumeAvailable, "")
	return err
}

func (x *Controller) volumePhase(ctx context.Context, v *corev1.PersistentVolume, phase corev1.PersistentVolumePhase, message string) (*corev1.PersistentVolume, error) {
	if v.Status.Phase == phase {
		return v, nil
	}
	out := v.DeepCopy()
	out.Status.Phase, out.Status.Message = phase, message
	out, err := client.PersistentVolumes.UpdateStatus(ctx, x.client, out)
	if err != nil {
		return nil, fmt.Errorf("write the status of volume %s: %w", v.Name, err)
	}
	return out, nil
}

// bind writes the binding into both, the volume first: whoever finds it half done
// can end it.
func (x *Controller) bind(ctx context.Context, v *corev1.PersistentVolume, c *corev1.PersistentVolumeClaim) error {
	if ref := v.Spec.ClaimRef; ref == nil || ref.UID != c.UID || ref.Name != c.Name || ref.Namespace != c.Namespace {
		out := v.DeepCopy()
		if !meantFor(v, c) {
			annotate(&out.Annotations, boundByUs)
		}
		out.Spec.ClaimRef = &corev1.ObjectReference{APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: c.Namespace, Name: c.Name, UID: c.UID, ResourceVersion: c.ResourceVersion}
		out, err := client.PersistentVolumes.Update(ctx, x.client, out)
		if err != nil {
			return fmt.Errorf("bind volume %s: %w", v.Name, err)
		}
		v = out
	}
	v, err := x.volumePhase(ctx, v, corev1.VolumeBound, "")
	if err != nil {
		return err
	}
	if _, done := c.Annotations[bindCompleted]; !done || c.Spec.VolumeName != v.Name {
		out := c.DeepCopy()
		if c.Spec.VolumeName != v.Name {
			out.Spec.VolumeName = v.Name
			annotate(&out.Annotations, boundByUs)
		}
		annotate(&out.Annotations, bindCompleted)
		out, err := client.PersistentVolumeClaims.Update(ctx, x.client, out)
		if err != nil {
			return fmt.Errorf("bind claim %s/%s: %w", c.Namespace, c.Name, err)
		}
		c = out
	}
	_, err = x.claimPhase(ctx, c, corev1.ClaimBound, v)
	return err
}

func annotate(m *map[string]string, name string) {
	if *m == nil {
		*m = map[string]string{}
	}
	if _, ok := (*m)[name]; !ok {
		(*m)[name] = "yes"
	}
}
