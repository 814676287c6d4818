package persistentvolume

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/utils/ptr"

	"github.com/proa-dev/proa/internal/client"
)

// claim brings a claim on its way: to a volume, to a provisioner, or to say what
// it waits for.
func (x *Controller) claim(ctx context.Context, c *corev1.PersistentVolumeClaim) error {
	if _, done := c.Annotations[bindCompleted]; done {
		return x.boundClaim(ctx, c)
	}
	if c.Spec.VolumeName != "" {
		return x.namedClaim(ctx, c)
	}
	className, named := classOf(c)
	class, found := x.classes.Get("", className)
	delayed := found && ptr.Deref(class.VolumeBindingMode, storagev1.VolumeBindingImmediate) == storagev1.VolumeBindingWaitForFirstConsumer
	v, err := Match(c, x.volumes.List("", nil), delayed)
	if err != nil {
		return err
	}
	if v != nil {
		return x.bind(ctx, v, c)
	}
	if d := newestDefault(x.classes.List("", nil)); d != nil && !named {
		out := c.DeepCopy()
		out.Spec.StorageClassName = &d.Name
		if _, err := client.PersistentVolumeClaims.Update(ctx, x.client, out); err != nil {
			return fmt.Errorf("give claim %s/%s the default class: %w", c.Namespace, c.Name, err)
		}
		return nil // the change brings it back here
	}
	_, chosen := c.Annotations[selectedNode]
	switch {
	case delayed && !chosen:
		reason, message := "WaitForFirstConsumer", "waiting for first consumer to be created before binding"
		switch pods := x.unscheduled(c); len(pods) {
		case 0:
		case 1:
			reason, message = "WaitForPodScheduled", "waiting for pod "+pods[0]+" to be scheduled"
		default:
			reason, message = "WaitForPodScheduled", "waiting for pods "+strings.Join(pods, ",")+" to be scheduled"
		}
		x.recorder.Eventf(c, corev1.EventTypeNormal, reason, "%s", message)
	case className == "":
		x.recorder.Eventf(c, corev1.EventTypeNormal, "FailedBinding", "no persistent volumes available for this claim and no storage class is set")
	case !found:
		x.recorder.Eventf(c, corev1.EventTypeWarning, "ProvisioningFailed", "storageclass.storage.k8s.io %q not found", className)
		return nil
	default:
		return x.provision(ctx, c, class)
	}
	_, err = x.claimPhase(ctx, c, corev1.ClaimPending, nil)
	return err
}

// migrated are the CSI drivers that stand for provisioners Kubernetes once had itself.
func migrated(name string) string {
	switch name {
	case "kubernetes.io/aws-ebs":
		return "ebs.csi.aws.com"
	case "kubernetes.io/azure-disk":
		return "disk.csi.azure.com"
	case "kubernetes.io/azure-file":
		return "file.csi.azure.com"
	case "kubernetes.io/cinder":
		return "cinder.csi.openstack.org"
	case "kubernetes.io/gce-pd":
		return "pd.csi.storage.gke.io"
	case "kubernetes.io/portworx-volume":
		return "pxd.portworx.com"
	case "kubernetes.io/vsphere-volume":
		return "csi.vsphere.vmware.com"
	}
	return name
}

// provision asks the provisioner of a class, which is another program, for a volume.
func (x *Controller) provision(ctx context.Context, c *corev1.PersistentVolumeClaim, class *storagev1.StorageClass) error {
	name := migrated(class.Provisioner)
	if strings.HasPrefix(name, "kubernetes.io/") {
		x.recorder.Eventf(c, corev1.EventTypeWarning, "ProvisioningFailed", "no volume plugin matched name: %s", name)
		return nil
	}
	if c.Annotations[provisioner] != name {
		out := c.DeepCopy()
		if out.Annotations == nil {
			out.Annotations = map[string]string{}
		}
		out.Annotations[provisioner], out.Annotations[provisionerBeta] = name, name
		if _, err := client.PersistentVolumeClaims.Update(ctx, x.client, out); err != nil {
			return fmt.Errorf("name the provisioner of claim %s/%s: %w", c.Namespace, c.Name, err)
		}
		return nil // the change brings it back here
	}
	x.recorder.Eventf(c, corev1.EventTypeNormal, "ExternalProvisioning",
		"Waiting for a volume to be created either by the external provisioner '%s' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered.", name)
	return nil
}

// namedClaim is one that asks for a volume by name.
func (x *Controller) namedClaim(ctx context.Context, c *corev1.PersistentVolumeClaim) error {
	v, ok := x.volumes.Get("", c.Spec.VolumeName)
	switch {
	case !ok:
	case v.Spec.ClaimRef == nil:
		err := unfit(v, c)
		if err == nil {
			return x.bind(ctx, v, c)
		}
		x.recorder.Eventf(c, corev1.EventTypeWarning, "VolumeMismatch", "Cannot bind to requested volume %q: %s", v.Name, err)
	case meantFor(v, c):
		return x.bind(ctx, v, c)
	default:
		x.recorder.Eventf(c, corev1.EventTypeWarning, "FailedBinding", "volume %q already bound to a different claim.", v.Name)
	}
	_, err := x.claimPhase(ctx, c, corev1.ClaimPending, nil)
	return err
}

// boundClaim is one that has had its volume.
func (x *Controller) boundClaim(ctx context.Context, c *corev1.PersistentVolumeClaim) error {
	lost := func(reason, message string) error {
		if c.Status.Phase == corev1.ClaimLost {
			return nil
		}
		out, err := x.claimPhase(ctx, c, corev1.ClaimLost, nil)
		if err == nil {
			x.recorder.Eventf(out, corev1.EventTypeWarning, reason, "%s", message)
		}
		return err
	}
	if c.Spec.VolumeName == "" {
		return lost("ClaimLost", "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!")
	}
	v, ok := x.volumes.Get("", c.Spec.VolumeName)
	switch {
	case !ok:
		return lost("ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!")
	case v.Spec.ClaimRef == nil || v.Spec.ClaimRef.UID == c.UID:
		return x.bind(ctx, v, c)
	}
	return lost("ClaimMisbound", "Two claims are bound to the same volume, this one is bound incorrectly")
}

// unscheduled are the pods that use a claim and wait for a node.
func (x *Controller) unscheduled(c *corev1.PersistentVolumeClaim) (names []string) {
	for _, p := range x.pods.List(c.Namespace, nil) {
		if p.Spec.NodeName == "" && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed && slices.Contains(claimsOf(p), c.Name) {
			names = append(names, p.Name)
		}
	}
	return names
}

// claimsOf names the claims that a pod uses.
func claimsOf(p *corev1.Pod) (names []string) {
	for i := range p.Spec.Volumes {
		switch v := &p.Spec.Volumes[i]; {
		case v.PersistentVolumeClaim != nil:
			names = append(names, v.PersistentVolumeClaim.ClaimName)
		case v.Ephemeral != nil:
			names = append(names, p.Name+"-"+v.Name)
		}
	}
	return names
}

// claimPhase writes a claim's phase and what it has of its volume (nil: nothing).
func (x *Controller) claimPhase(ctx context.Context, c *corev1.PersistentVolumeClaim, phase corev1.PersistentVolumeClaimPhase, v *corev1.PersistentVolume) (*corev1.PersistentVolumeClaim, error) {
	out := c.DeepCopy()
	s := &out.Status
	entered := s.Phase != phase
	s.Phase = phase
	if v == nil {
		s.AccessModes, s.Capacity, s.CurrentVolumeAttributesClassName = nil, nil, nil
	} else {
		s.AccessModes = slices.Clone(v.Spec.AccessModes)
		// Once bound, the capacity is that of the file system, which a resize sets.
		if entered {
			s.Capacity = maps.Clone(v.Spec.Capacity)
			s.CurrentVolumeAttributesClassName = v.Spec.VolumeAttributesClassName
		}
	}
	if !entered && slices.Equal(s.AccessModes, c.Status.AccessModes) && len(s.Capacity) == len(c.Status.Capacity) {
		return c, nil
	}
	written, err := client.PersistentVolumeClaims.UpdateStatus(ctx, x.client, out)
	if err != nil {
		return nil, fmt.Errorf("write the status of claim %s/%s: %w", c.Namespace, c.Name, err)
	}
	return written, nil
}
