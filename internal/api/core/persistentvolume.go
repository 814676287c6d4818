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
		if now.CSI != nil && was.CSI != nil && was.CSI.ControllerExpandSecretRef == nil { // the secret of a later operation may be added
			now.CSI.ControllerExpandSecretRef = nil
		}
		if !apiequality.Semantic.DeepEqual(now, was) {
			errs = append(errs, field.Forbidden(p.Child("persistentvolumesource"), "spec.persistentvolumesource is immutable after creation"+changedFields("spec", *now, *was)))
		}
		errs = append(errs, validation.ValidateImmutableField(o.Spec.VolumeMode, old.Spec.VolumeMode, field.NewPath("volumeMode"))...)
		if old.Spec.NodeAffinity != nil {
			errs = append(errs, affinityStays(o.Spec.NodeAffinity, old.Spec.NodeAffinity)...)
		}
		if old.Spec.VolumeAttributesClassName != nil && o.Spec.VolumeAttributesClassName == nil {
			errs = append(errs, field.Forbidden(p.Child("volumeAttributesClassName"), "update from non-nil value to nil is forbidden"))
		}
		return errs
	}
	k.CopyStatus = func(dst, src *corev1.PersistentVolume) { src.Status.DeepCopyInto(&dst.Status) }
	k.PrepareForStatusUpdate = func(o, old *corev1.PersistentVolume) {
		t := o.Status.LastPhaseTransitionTime
		if o.Status.Phase != old.Status.Phase && (t == nil || t.Equal(old.Status.LastPhaseTransitionTime)) {
			now := metav1.Now()
			o.Status.LastPhaseTransitionTime = &now
		}
	}
	k.Warnings = persistentVolumeWarnings
	spec, status := corev1.PersistentVolumeSpec{}.SwaggerDoc(), corev1.PersistentVolumeStatus{}.SwaggerDoc()
	k.Resource.Columns = []metav1.TableColumnDefinition{
		rules.Name(), rules.Text("Capacity", spec["capacity"]), rules.Text("Access Modes", spec["accessModes"]), rules.Text("Reclaim Policy", spec["persistentVolumeReclaimPolicy"]),
		rules.Text("Status", status["phase"]), rules.Text("Claim", spec["claimRef"]), rules.Text("StorageClass", "StorageClass of the pv"),
		rules.Text("VolumeAttributesClass", "VolumeAttributesClass of the pv"), rules.Text("Reason", status["reason"]), rules.Age(), rules.Wide("VolumeMode", spec["volumeMode"]),
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

// affinityStays: where a volume is stays, except that the labels of zones and
// instance types may get the names that replaced their beta ones.
func affinityStays(now, was *corev1.VolumeNodeAffinity) field.ErrorList {
	if apiequality.Semantic.DeepEqual(renamedLabels(now), renamedLabels(was)) {
		return nil
	}
	return field.ErrorList{field.Invalid(field.NewPath("nodeAffinity"), now, validation.FieldImmutableErrorMsg+", except for updating from beta label to GA")}
}

func renamedLabels(a *corev1.VolumeNodeAffinity) *corev1.VolumeNodeAffinity {
	if a == nil || a.Required == nil {
		return a
	}
	a = a.DeepCopy()
	for i := range a.Required.NodeSelectorTerms {
		list := a.Required.NodeSelectorTerms[i].MatchExpressions
		for j := range list {
			if name, ok := successors[list[j].Key]; ok {
				list[j].Key = name
			}
		}
	}
	return a
}

// successors are the names of node labels that left beta.
var successors = map[string]string{
	"beta.kubernetes.io/arch":           corev1.LabelArchStable,
	"beta.kubernetes.io/os":             corev1.LabelOSStable,
	corev1.LabelFailureDomainBetaRegion: corev1.LabelTopologyRegion,
	corev1.LabelFailureDomainBetaZone:   corev1.LabelTopologyZone,
	corev1.LabelInstanceType:            corev1.LabelInstanceTypeStable,
}

func persistentVolumeWarnings(o *corev1.PersistentVolume) (warnings []string) {
	for _, old := range []struct{ key, message string }{
		{corev1.BetaStorageClassAnnotation, `deprecated since v1.8; use "storageClassName" attribute instead`},
		{corev1.MountOptionAnnotation, `deprecated since v1.31; use "mountOptions" attribute instead`},
	} {
		if _, ok := o.Annotations[old.key]; ok {
			warnings = append(warnings, field.NewPath("metadata", "annotations").Key(old.key).String()+": "+old.message)
		}
	}
	p := field.NewPath("spec")
	if o.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimRecycle {
		warnings = append(warnings, p.Child("persistentVolumeReclaimPolicy").String()+": The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning.")
	}
	if a := o.Spec.NodeAffinity; a != nil && a.Required != nil {
		warnings = append(warnings, nodeSelectorWarnings(a.Required, p.Child("nodeAffinity", "required"))...)
	}
	s := &o.Spec
	for _, gone := range goneVolumes(s.CephFS != nil, s.Glusterfs != nil, s.PhotonPersistentDisk != nil, s.Quobyte != nil, s.RBD != nil, s.ScaleIO != nil, s.StorageOS != nil, s.Flocker != nil) {
		warnings = append(warnings, p.Child(gone.name).String()+": "+gone.message)
	}
	return warnings
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
		if q.Sign() < 0 {
			errs = append(errs, field.Invalid(kp, q.Value(), "must be a valid resource quantity"))
		}
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
		if ns := v.Glusterfs.EndpointsNamespace; ns != nil && *ns == "" {
			s.add(field.ErrorList{field.Invalid(p.Child("endpointsNamespace"), "", "if the endpointnamespace is set, it must be a valid namespace name")})
		} else if ns != nil {
			s.add(label(p.Child("endpointsNamespace"), *ns))
		}
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
		s.reference(p, v.Cinder.SecretRef)
	}
	if p := s.first(v.FC != nil, "fc"); p != nil {
		s.add(validateFC(v.FC, p))
	}
	if p := s.first(v.FlexVolume != nil, "flexVolume"); p != nil {
		s.add(validateFlex(v.FlexVolume.Driver, v.FlexVolume.Options, p))
	}
	if p := s.first(v.AzureFile != nil, "azureFile"); p != nil {
		s.required(p, "secretName", v.AzureFile.SecretName, "shareName", v.AzureFile.ShareName)
		if ns := v.AzureFile.SecretNamespace; ns != nil {
			s.required(p, "secretNamespace", *ns)
		}
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
		s.add(validateAzureDisk(v.AzureDisk, p))
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
		s.add(validateStorageOS(v.StorageOS.VolumeName, v.StorageOS.VolumeNamespace, p))
		if ref := v.StorageOS.SecretRef; ref != nil {
			s.required(p.Child("secretRef"), "name", ref.Name, "namespace", ref.Namespace)
		}
	}
	if p := s.first(v.CSI != nil, "csi"); p != nil {
		s.add(csiDriver(v.CSI.Driver, p.Child("driver")))
		s.required(p, "volumeHandle", v.CSI.VolumeHandle)
		for _, ref := range []struct {
			name string
			ref  *corev1.SecretReference
		}{{"controllerPublishSecretRef", v.CSI.ControllerPublishSecretRef}, {"controllerExpandSecretRef", v.CSI.ControllerExpandSecretRef},
			{"nodePublishSecretRef", v.CSI.NodePublishSecretRef}, {"nodeExpandSecretRef", v.CSI.NodeExpandSecretRef}} {
			if ref.ref == nil {
				continue
			}
			rp := p.Child(ref.name)
			s.required(rp, "name", ref.ref.Name, "namespace", ref.ref.Namespace)
			if ref.ref.Name != "" {
				s.add(subdomain(rp.Child("name"), ref.ref.Name))
			}
			if ref.ref.Namespace != "" {
				s.add(label(rp.Child("namespace"), ref.ref.Namespace))
			}
		}
	}
	return s.done()
}
