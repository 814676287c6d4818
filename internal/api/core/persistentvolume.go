package core

import (
	"path"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

func persistentVolume() *api.Resource {
	k := api.Kind[*corev1.PersistentVolume]{Resource: rules.Cluster[corev1.PersistentVolume, corev1.PersistentVolumeList](gv, "persistentvolumes", "pv")}
	k.Resource.UnconditionalUpdate = true
	k.Default = func(o *corev1.PersistentVolume) {
		zero(&o.Status.Phase, corev1.VolumePending)
		zero(&o.Spec.PersistentVolumeReclaimPolicy, corev1.PersistentVolumeReclaimRetain)
		def(&o.Spec.VolumeMode, corev1.PersistentVolumeFilesystem)
		switch s := &o.Spec.PersistentVolumeSource; {
		case s.HostPath != nil:
			def(&s.HostPath.Type, corev1.HostPathUnset)
		case s.ISCSI != nil:
			zero(&s.ISCSI.ISCSIInterface, "default")
		case s.RBD != nil:
			zero(&s.RBD.RBDPool, "rbd")
			zero(&s.RBD.RadosUser, "admin")
			zero(&s.RBD.Keyring, "/etc/ceph/keyring")
		case s.AzureDisk != nil:
			defaultAzureDisk(s.AzureDisk)
		case s.ScaleIO != nil:
			zero(&s.ScaleIO.StorageMode, "ThinProvisioned")
			zero(&s.ScaleIO.FSType, "xfs")
		}
	}
	k.PrepareForCreate = func(o *corev1.PersistentVolume) {
		o.Status = corev1.PersistentVolumeStatus{Phase: corev1.VolumePending}
		now := metav1.Now()
		o.Status.LastPhaseTransitionTime = &now
	}
	k.Validate = validateVolume
	k.ValidateUpdate = func(o, old *corev1.PersistentVolume) field.ErrorList {
		errs := validateVolume(o)
		p := field.NewPath("spec")
		now, was := o.Spec.PersistentVolumeSource.DeepCopy(), old.Spec.PersistentVolumeSource.DeepCopy()
		if now.CSI != nil && was.CSI != nil { // secrets of later operations may be replaced
			was.CSI.ControllerExpandSecretRef, was.CSI.NodeExpandSecretRef = now.CSI.ControllerExpandSecretRef, now.CSI.NodeExpandSecretRef
		}
		if !apiequality.Semantic.DeepEqual(now, was) {
			errs = append(errs, field.Forbidden(p.Child("persistentvolumesource"), "spec.persistentvolumesource is immutable after creation"+changedFields("spec", *now, *was)))
		}
		errs = append(errs, validation.ValidateImmutableField(o.Spec.VolumeMode, old.Spec.VolumeMode, p.Child("volumeMode"))...)
		if old.Spec.NodeAffinity != nil {
			errs = append(errs, validation.ValidateImmutableField(o.Spec.NodeAffinity, old.Spec.NodeAffinity, p.Child("nodeAffinity"))...)
		}
		if old.Spec.VolumeAttributesClassName != nil && o.Spec.VolumeAttributesClassName == nil {
			errs = append(errs, field.Forbidden(p.Child("volumeAttributesClassName"), "update from non-nil value to nil is forbidden"))
		}
		return errs
	}
	k.CopyStatus = func(dst, src *corev1.PersistentVolume) { src.Status.DeepCopyInto(&dst.Status) }
	spec, status := corev1.PersistentVolumeSpec{}.SwaggerDoc(), corev1.PersistentVolumeStatus{}.SwaggerDoc()
	k.Resource.Columns = []metav1.TableColumnDefinition{
		rules.Name(), rules.Text("Capacity", spec["capacity"]), rules.Text("Access Modes", spec["accessModes"]), rules.Text("Reclaim Policy", spec["persistentVolumeReclaimPolicy"]),
		rules.Text("Status", status["phase"]), rules.Text("Claim", spec["claimRef"]), rules.Text("StorageClass", spec["storageClassName"]),
		rules.Text("VolumeAttributesClass", spec["volumeAttributesClassName"]), rules.Text("Reason", status["reason"]), rules.Age(), rules.Wide("VolumeMode", spec["volumeMode"]),
	}
	k.Row = func(o *corev1.PersistentVolume) []any {
		claim, phase := "", string(o.Status.Phase)
		if r := o.Spec.ClaimRef; r != nil {
			claim = r.Namespace + "/" + r.Name
		}
		if o.DeletionTimestamp != nil {
			phase = "Terminating"
		}
		class, old := o.Annotations[corev1.BetaStorageClassAnnotation]
		if !old {
			class = o.Spec.StorageClassName
		}
		q := o.Spec.Capacity[corev1.ResourceStorage]
		return []any{o.Name, q.String(), accessModes(o.Spec.AccessModes), string(o.Spec.PersistentVolumeReclaimPolicy), phase, claim, class,
			rules.Or(o.Spec.VolumeAttributesClassName, rules.Unset), o.Status.Reason, rules.Created(o), string(rules.Or(o.Spec.VolumeMode, rules.Unset))}
	}
	return k.Erase()
}

func validateVolume(o *corev1.PersistentVolume) (errs field.ErrorList) {
	s, p := &o.Spec, field.NewPath("spec")
	if len(s.AccessModes) == 0 {
		errs = append(errs, field.Required(p.Child("accessModes"), ""))
	}
	errs = append(errs, validateAccessModes(s.AccessModes, p.Child("accessModes"))...)
	if len(s.Capacity) == 0 {
		errs = append(errs, field.Required(p.Child("capacity"), ""))
	}
	if _, ok := s.Capacity[corev1.ResourceStorage]; !ok || len(s.Capacity) > 1 {
		errs = append(errs, field.NotSupported(p.Child("capacity"), s.Capacity, []corev1.ResourceName{corev1.ResourceStorage}))
	}
	for _, name := range sorted(s.Capacity) {
		q, kp := s.Capacity[name], p.Child("capacity").Key(string(name))
		errs = append(errs, quantity(name, q, kp)...)
		errs = append(errs, positive(q, kp)...)
	}
	errs = append(errs, oneOf(p.Child("persistentVolumeReclaimPolicy"), s.PersistentVolumeReclaimPolicy, corev1.PersistentVolumeReclaimDelete, corev1.PersistentVolumeReclaimRecycle, corev1.PersistentVolumeReclaimRetain)...)
	if a := s.NodeAffinity; a != nil {
		if a.Required == nil {
			errs = append(errs, field.Required(p.Child("nodeAffinity", "required"), "must specify required node constraints"))
		} else {
			errs = append(errs, validateNodeSelector(a.Required, p.Child("nodeAffinity", "required"))...)
		}
	}
	errs = append(errs, validatePersistentSource(s, p)...)
	if s.HostPath != nil && path.Clean(s.HostPath.Path) == "/" && s.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimRecycle {
		errs = append(errs, field.Forbidden(p.Child("persistentVolumeReclaimPolicy"), "may not be 'recycle' for a hostPath mount of '/'"))
	}
	if s.StorageClassName != "" {
		errs = append(errs, subdomain(p.Child("storageClassName"), s.StorageClassName)...)
	}
	errs = append(errs, amongPointer(p.Child("volumeMode"), s.VolumeMode, corev1.PersistentVolumeBlock, corev1.PersistentVolumeFilesystem)...)
	if c := s.VolumeAttributesClassName; c != nil {
		if *c == "" {
			errs = append(errs, field.Required(p.Child("volumeAttributesClassName"), "an empty string is disallowed"))
		} else {
			errs = append(errs, subdomain(p.Child("volumeAttributesClassName"), *c)...)
		}
		if s.CSI == nil {
			errs = append(errs, field.Required(p.Child("csi"), "has to be specified when using volumeAttributesClassName"))
		}
	}
	return errs
}

func validatePersistentSource(v *corev1.PersistentVolumeSpec, path *field.Path) field.ErrorList {
	s := &sources{path: path}
	if p := s.first(v.HostPath != nil, "hostPath"); p != nil {
		s.add(validateHostPath(v.HostPath, p))
	}
	if p := s.first(v.GCEPersistentDisk != nil, "gcePersistentDisk"); p != nil {
		s.add(validateGCE(v.GCEPersistentDisk, p))
	}
	if p := s.first(v.AWSElasticBlockStore != nil, "awsElasticBlockStore"); p != nil {
		s.add(validateEBS(v.AWSElasticBlockStore, p))
	}
	if p := s.first(v.Glusterfs != nil, "glusterfs"); p != nil {
		s.required(p, "endpoints", v.Glusterfs.EndpointsName, "path", v.Glusterfs.Path)
	}
	if p := s.first(v.Flocker != nil, "flocker"); p != nil {
		s.add(validateFlocker(v.Flocker, p))
	}
	if p := s.first(v.NFS != nil, "nfs"); p != nil {
		s.add(validateNFS(v.NFS, p))
	}
	if p := s.first(v.RBD != nil, "rbd"); p != nil {
		s.add(validateMonitors(v.RBD.CephMonitors, p))
		s.required(p, "image", v.RBD.RBDImage)
	}
	if p := s.first(v.Quobyte != nil, "quobyte"); p != nil {
		s.required(p, "registry", v.Quobyte.Registry, "volume", v.Quobyte.Volume)
	}
	if p := s.first(v.CephFS != nil, "cephfs"); p != nil {
		s.add(validateMonitors(v.CephFS.Monitors, p))
	}
	if p := s.first(v.ISCSI != nil, "iscsi"); p != nil {
		i := v.ISCSI
		s.add(validateISCSI(i.TargetPortal, i.IQN, i.Lun, i.DiscoveryCHAPAuth || i.SessionCHAPAuth, i.SecretRef != nil, i.InitiatorName, p))
	}
	if p := s.first(v.Cinder != nil, "cinder"); p != nil {
		s.required(p, "volumeID", v.Cinder.VolumeID)
	}
	if p := s.first(v.FC != nil, "fc"); p != nil {
		s.add(validateFC(v.FC, p))
	}
	if p := s.first(v.FlexVolume != nil, "flexVolume"); p != nil {
		s.add(validateFlex(v.FlexVolume.Driver, v.FlexVolume.Options, p))
	}
	if p := s.first(v.AzureFile != nil, "azureFile"); p != nil {
		s.required(p, "secretName", v.AzureFile.SecretName, "shareName", v.AzureFile.ShareName)
	}
	if p := s.first(v.VsphereVolume != nil, "vsphereVolume"); p != nil {
		s.required(p, "volumePath", v.VsphereVolume.VolumePath)
	}
	if p := s.first(v.PhotonPersistentDisk != nil, "photonPersistentDisk"); p != nil {
		s.required(p, "pdID", v.PhotonPersistentDisk.PdID)
	}
	if p := s.first(v.PortworxVolume != nil, "portworxVolume"); p != nil {
		s.required(p, "volumeID", v.PortworxVolume.VolumeID)
	}
	if p := s.first(v.AzureDisk != nil, "azureDisk"); p != nil {
		s.required(p, "diskName", v.AzureDisk.DiskName, "diskURI", v.AzureDisk.DataDiskURI)
	}
	if p := s.first(v.ScaleIO != nil, "scaleIO"); p != nil {
		s.required(p, "gateway", v.ScaleIO.Gateway, "system", v.ScaleIO.System, "volumeName", v.ScaleIO.VolumeName)
	}
	if p := s.first(v.Local != nil, "local"); p != nil {
		s.required(p, "path", v.Local.Path)
		s.add(noBacksteps(p.Child("path"), v.Local.Path))
		if v.NodeAffinity == nil {
			s.add(field.ErrorList{field.Required(path.Child("nodeAffinity"), "Local volume requires node affinity")})
		}
	}
	if p := s.first(v.StorageOS != nil, "storageos"); p != nil {
		s.required(p, "volumeName", v.StorageOS.VolumeName)
	}
	if p := s.first(v.CSI != nil, "csi"); p != nil {
		s.add(csiDriver(v.CSI.Driver, p.Child("driver")))
		s.required(p, "volumeHandle", v.CSI.VolumeHandle)
		for _, ref := range []struct {
			name string
			ref  *corev1.SecretReference
		}{{"controllerPublishSecretRef", v.CSI.ControllerPublishSecretRef}, {"controllerExpandSecretRef", v.CSI.ControllerExpandSecretRef},
			{"nodePublishSecretRef", v.CSI.NodePublishSecretRef}, {"nodeStageSecretRef", v.CSI.NodeStageSecretRef}, {"nodeExpandSecretRef", v.CSI.NodeExpandSecretRef}} {
			if ref.ref != nil {
				s.required(p.Child(ref.name), "name", ref.ref.Name, "namespace", ref.ref.Namespace)
			}
		}
	}
	return s.done()
}
