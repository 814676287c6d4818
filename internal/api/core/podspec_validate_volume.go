package core

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func (v *specValidator) validateVolumes() (errs field.ErrorList) {
	v.volumes = make(map[string]*corev1.Volume, len(v.spec.Volumes))
	for i := range v.spec.Volumes {
		volume, p := &v.spec.Volumes[i], v.path.Child("volumes").Index(i)
		switch {
		case volume.Name == "":
			errs = append(errs, field.Required(p.Child("name"), ""))
		default:
			errs = append(errs, label(p.Child("name"), volume.Name)...)
			if v.volumes[volume.Name] != nil {
				errs = append(errs, field.Duplicate(p.Child("name"), volume.Name))
			}
		}
		bad := validateVolumeSource(&volume.VolumeSource, p)
		// What names a volume that is wrong does not find it.
		if errs = append(errs, bad...); len(bad) == 0 && v.volumes[volume.Name] == nil {
			v.volumes[volume.Name] = volume
		}
	}
	return errs
}

// sources checks that exactly one source of a volume is given, and collects
// what is wrong with it. Pods' volumes and PersistentVolumes share it.
type sources struct {
	path *field.Path
	n    int
	errs field.ErrorList
}

// first returns the source's path, or nil if it is not set or not the first one.
func (s *sources) first(set bool, name string) *field.Path {
	if !set {
		return nil
	}
	p := s.path.Child(name)
	if s.n++; s.n > 1 {
		s.errs = append(s.errs, field.Forbidden(p, "may not specify more than 1 volume type"))
		return nil
	}
	return p
}

func (s *sources) add(errs field.ErrorList) { s.errs = append(s.errs, errs...) }

// required takes pairs of field name and value.
func (s *sources) required(p *field.Path, pairs ...string) {
	for i := 0; i < len(pairs); i += 2 {
		s.add(required(p.Child(pairs[i]), pairs[i+1]))
	}
}

func (s *sources) reference(p *field.Path, ref *corev1.SecretReference) {
	if ref != nil {
		s.required(p.Child("secretRef"), "name", ref.Name, "namespace", ref.Namespace)
	}
}

func (s *sources) done() field.ErrorList {
	if s.n == 0 {
		s.errs = append(s.errs, field.Required(s.path, "must specify a volume type"))
	}
	return s.errs
}

func validateVolumeSource(v *corev1.VolumeSource, path *field.Path) field.ErrorList {
	s := &sources{path: path}
	if p := s.first(v.EmptyDir != nil, "emptyDir"); p != nil && v.EmptyDir.SizeLimit != nil && v.EmptyDir.SizeLimit.Sign() < 0 {
		s.add(field.ErrorList{field.Forbidden(p.Child("sizeLimit"), "SizeLimit field must be a valid resource quantity")})
	}
	if p := s.first(v.HostPath != nil, "hostPath"); p != nil {
		s.add(validateHostPath(v.HostPath, p))
	}
	if p := s.first(v.GitRepo != nil, "gitRepo"); p != nil {
		s.required(p, "repository", v.GitRepo.Repository)
		s.add(descending(p.Child("directory"), v.GitRepo.Directory))
	}
	if p := s.first(v.GCEPersistentDisk != nil, "gcePersistentDisk"); p != nil {
		s.add(validateGCE(v.GCEPersistentDisk, p))
	}
	if p := s.first(v.AWSElasticBlockStore != nil, "awsElasticBlockStore"); p != nil {
		s.add(validateEBS(v.AWSElasticBlockStore, p))
	}
	if p := s.first(v.Secret != nil, "secret"); p != nil {
		s.required(p, "secretName", v.Secret.SecretName)
		s.add(mode(p.Child("defaultMode"), v.Secret.DefaultMode))
		s.add(validateItems(v.Secret.Items, p.Child("items")))
	}
	if p := s.first(v.NFS != nil, "nfs"); p != nil {
		s.add(validateNFS(v.NFS, p))
	}
	if p := s.first(v.ISCSI != nil, "iscsi"); p != nil {
		i := v.ISCSI
		s.add(validateISCSI(i.TargetPortal, i.IQN, i.Lun, i.DiscoveryCHAPAuth || i.SessionCHAPAuth, i.SecretRef != nil, i.InitiatorName, p))
	}
	if p := s.first(v.Glusterfs != nil, "glusterfs"); p != nil {
		s.required(p, "endpoints", v.Glusterfs.EndpointsName, "path", v.Glusterfs.Path)
	}
	if p := s.first(v.Flocker != nil, "flocker"); p != nil {
		s.add(validateFlocker(v.Flocker, p))
	}
	if p := s.first(v.PersistentVolumeClaim != nil, "persistentVolumeClaim"); p != nil {
		s.required(p, "claimName", v.PersistentVolumeClaim.ClaimName)
	}
	if p := s.first(v.RBD != nil, "rbd"); p != nil {
		s.add(validateMonitors(v.RBD.CephMonitors, p))
		s.required(p, "image", v.RBD.RBDImage)
	}
	if p := s.first(v.Cinder != nil, "cinder"); p != nil {
		s.required(p, "volumeID", v.Cinder.VolumeID)
		if ref := v.Cinder.SecretRef; ref != nil {
			s.required(p.Child("secretRef"), "name", ref.Name)
		}
	}
	if p := s.first(v.CephFS != nil, "cephfs"); p != nil {
		s.add(validateMonitors(v.CephFS.Monitors, p))
	}
	if p := s.first(v.Quobyte != nil, "quobyte"); p != nil {
		s.required(p, "registry", v.Quobyte.Registry, "volume", v.Quobyte.Volume)
	}
	if p := s.first(v.DownwardAPI != nil, "downwardAPI"); p != nil {
		s.add(mode(p.Child("defaultMode"), v.DownwardAPI.DefaultMode))
		s.add(validateDownward(v.DownwardAPI.Items, p))
	}
	if p := s.first(v.FC != nil, "fc"); p != nil {
		s.add(validateFC(v.FC, p))
	}
	if p := s.first(v.FlexVolume != nil, "flexVolume"); p != nil {
		s.add(validateFlex(v.FlexVolume.Driver, v.FlexVolume.Options, p))
	}
	if p := s.first(v.ConfigMap != nil, "configMap"); p != nil {
		s.required(p, "name", v.ConfigMap.Name)
		s.add(mode(p.Child("defaultMode"), v.ConfigMap.DefaultMode))
		s.add(validateItems(v.ConfigMap.Items, p.Child("items")))
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
		s.add(validateAzureDisk(v.AzureDisk, p))
	}
	if p := s.first(v.StorageOS != nil, "storageos"); p != nil {
		s.add(validateStorageOS(v.StorageOS.VolumeName, v.StorageOS.VolumeNamespace, p))
		if ref := v.StorageOS.SecretRef; ref != nil {
			s.required(p.Child("secretRef"), "name", ref.Name)
		}
	}
	if p := s.first(v.Projected != nil, "projected"); p != nil {
		s.add(validateProjected(v.Projected, p))
	}
	if p := s.first(v.ScaleIO != nil, "scaleIO"); p != nil {
		s.required(p, "gateway", v.ScaleIO.Gateway, "system", v.ScaleIO.System, "volumeName", v.ScaleIO.VolumeName)
	}
	if p := s.first(v.CSI != nil, "csi"); p != nil {
		s.add(csiDriver(v.CSI.Driver, p.Child("driver")))
		if ref := v.CSI.NodePublishSecretRef; ref != nil {
			if ref.Name == "" {
				s.add(field.ErrorList{field.Required(p.Child("nodePublishSecretRef", "name"), "")})
			} else {
				s.add(subdomain(p.Child("name"), ref.Name))
			}
		}
	}
	if p := s.first(v.Ephemeral != nil, "ephemeral"); p != nil {
		s.add(validateEphemeralVolume(v.Ephemeral, p))
	}
	if p := s.first(v.Image != nil, "image"); p != nil {
		s.required(p, "reference", v.Image.Reference)
		s.add(oneOf(p.Child("pullPolicy"), v.Image.PullPolicy, corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever))
	}
	return s.done()
}

func validateHostPath(h *corev1.HostPathVolumeSource, p *field.Path) field.ErrorList {
	if h.Path == "" {
		return field.ErrorList{field.Required(p.Child("path"), "")}
	}
	errs := noBacksteps(p.Child("path"), h.Path)
	return append(errs, amongPointer(p.Child("type"), h.Type, corev1.HostPathUnset, corev1.HostPathBlockDev, corev1.HostPathCharDev, corev1.HostPathDirectory,
		corev1.HostPathDirectoryOrCreate, corev1.HostPathFile, corev1.HostPathFileOrCreate, corev1.HostPathSocket)...)
}

func partition(n int32, p *field.Path) field.ErrorList {
	if n < 0 || n > 255 {
		return field.ErrorList{field.Invalid(p.Child("partition"), n, utilvalidation.InclusiveRangeError(0, 255))}
	}
	return nil
}

func validateGCE(v *corev1.GCEPersistentDiskVolumeSource, p *field.Path) field.ErrorList {
	return append(required(p.Child("pdName"), v.PDName), partition(v.Partition, p)...)
}

func validateEBS(v *corev1.AWSElasticBlockStoreVolumeSource, p *field.Path) field.ErrorList {
	return append(required(p.Child("volumeID"), v.VolumeID), partition(v.Partition, p)...)
}

func validateNFS(n *corev1.NFSVolumeSource, p *field.Path) field.ErrorList {
	errs := append(required(p.Child("server"), n.Server), required(p.Child("path"), n.Path)...)
	return append(errs, absolute(p.Child("path"), n.Path)...)
}

func validateMonitors(list []string, p *field.Path) field.ErrorList {
	if len(list) == 0 {
		return field.ErrorList{field.Required(p.Child("monitors"), "")}
	}
	return nil
}

func validateISCSI(portal, iqn string, lun int32, chap, secret bool, initiator *string, p *field.Path) (errs field.ErrorList) {
	errs = append(errs, required(p.Child("targetPortal"), portal)...)
	qualifiedName := func(p *field.Path, name string) {
		if !strings.HasPrefix(name, "iqn.") && !strings.HasPrefix(name, "eui.") && !strings.HasPrefix(name, "naa.") {
			errs = append(errs, field.Invalid(p, name, "must be valid format starting with iqn, eui, or naa"))
		}
	}
	if iqn == "" {
		errs = append(errs, field.Required(p.Child("iqn"), ""))
	} else {
		qualifiedName(p.Child("iqn"), iqn)
	}
	if lun < 0 || lun > 255 {
		errs = append(errs, field.Invalid(p.Child("lun"), lun, utilvalidation.InclusiveRangeError(0, 255)))
	}
	if chap && !secret {
		errs = append(errs, field.Required(p.Child("secretRef"), ""))
	}
	if initiator != nil {
		qualifiedName(p.Child("initiatorname"), *initiator)
	}
	return errs
}

func validateFC(f *corev1.FCVolumeSource, p *field.Path) (errs field.ErrorList) {
	switch {
	case len(f.TargetWWNs) == 0 && len(f.WWIDs) == 0:
		errs = append(errs, field.Required(p.Child("targetWWNs"), "must specify either targetWWNs or wwids, but not both"))
	case len(f.TargetWWNs) > 0 && len(f.WWIDs) > 0:
		errs = append(errs, field.Invalid(p.Child("targetWWNs"), f.TargetWWNs, "targetWWNs and wwids can not be specified simultaneously"))
	}
	if len(f.TargetWWNs) == 0 {
		return errs
	}
	if f.Lun == nil {
		return append(errs, field.Required(p.Child("lun"), "lun is required if targetWWNs is specified"))
	}
	if *f.Lun < 0 || *f.Lun > 255 {
		errs = append(errs, field.Invalid(p.Child("lun"), f.Lun, utilvalidation.InclusiveRangeError(0, 255)))
	}
	return errs
}

func validateFlocker(f *corev1.FlockerVolumeSource, p *field.Path) (errs field.ErrorList) {
	switch {
	case f.DatasetName == "" && f.DatasetUUID == "":
		errs = append(errs, field.Required(p, "one of datasetName and datasetUUID is required"))
	case f.DatasetName != "" && f.DatasetUUID != "":
		errs = append(errs, field.Invalid(p, "resource", "datasetName and datasetUUID can not be specified simultaneously"))
	}
	if strings.Contains(f.DatasetName, "/") {
		errs = append(errs, field.Invalid(p.Child("datasetName"), f.DatasetName, "must not contain '/'"))
	}
	return errs
}

func validateFlex(driver string, options map[string]string, p *field.Path) (errs field.ErrorList) {
	errs = required(p.Child("driver"), driver)
	for k := range options {
		if domain, _, _ := strings.Cut(k, "/"); domain == "kubernetes.io" || strings.HasSuffix(domain, ".kubernetes.io") || domain == "k8s.io" || strings.HasSuffix(domain, ".k8s.io") {
			errs = append(errs, field.Invalid(p.Child("options").Key(k), k, "kubernetes.io and k8s.io namespaces are reserved"))
		}
	}
	return errs
}

func validateAzureDisk(a *corev1.AzureDiskVolumeSource, p *field.Path) (errs field.ErrorList) {
	errs = append(required(p.Child("diskName"), a.DiskName), required(p.Child("diskURI"), a.DataDiskURI)...)
	errs = append(errs, amongPointer(p.Child("cachingMode"), a.CachingMode, corev1.AzureDataDiskCachingNone, corev1.AzureDataDiskCachingReadOnly, corev1.AzureDataDiskCachingReadWrite)...)
	errs = append(errs, amongPointer(p.Child("kind"), a.Kind, corev1.AzureDedicatedBlobDisk, corev1.AzureManagedDisk, corev1.AzureSharedBlobDisk)...)
	if a.Kind == nil {
		return errs
	}
	prefix, form := "https://", "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd"
	if *a.Kind == corev1.AzureManagedDisk {
		prefix, form = "/subscriptions/", "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}"
	}
	if !strings.HasPrefix(a.DataDiskURI, prefix) {
		errs = append(errs, field.NotSupported(p.Child("diskURI"), a.DataDiskURI, []string{form}))
	}
	return errs
}

func validateStorageOS(name, namespace string, p *field.Path) (errs field.ErrorList) {
	if name == "" {
		errs = append(errs, field.Required(p.Child("volumeName"), ""))
	} else {
		errs = append(errs, label(p.Child("volumeName"), name)...)
	}
	if namespace != "" {
		errs = append(errs, label(p.Child("volumeNamespace"), namespace)...)
	}
	return errs
}

func csiDriver(driver string, p *field.Path) (errs field.ErrorList) {
	if driver == "" {
		return field.ErrorList{field.Required(p, "")}
	}
	if len(driver) > 63 {
		errs = append(errs, field.TooLong(p, driver, 63))
	}
	return append(errs, invalid(p, driver, utilvalidation.IsDNS1123Subdomain(strings.ToLower(driver)))...)
}

func validateEphemeralVolume(e *corev1.EphemeralVolumeSource, p *field.Path) (errs field.ErrorList) {
	t, tp := e.VolumeClaimTemplate, p.Child("volumeClaimTemplate")
	if t == nil {
		return field.ErrorList{field.Required(tp, "")}
	}
	mp := tp.Child("metadata")
	errs = append(errs, metav1validation.ValidateLabels(t.Labels, mp.Child("labels"))...)
	errs = append(errs, validation.ValidateAnnotations(t.Annotations, mp.Child("annotations"))...)
	for _, f := range []struct {
		name string
		set  bool
	}{{"name", t.Name != ""}, {"generateName", t.GenerateName != ""}, {"namespace", t.Namespace != ""}, {"finalizers", len(t.Finalizers) > 0}, {"ownerReferences", len(t.OwnerReferences) > 0}} {
		if f.set {
			errs = append(errs, field.Forbidden(mp.Child(f.name), "cannot be set"))
		}
	}
	return append(errs, validateClaimSpec(&t.Spec, tp.Child("spec"))...)
}

func validateItems(items []corev1.KeyToPath, p *field.Path) (errs field.ErrorList) {
	for i, item := range items {
		errs = append(errs, required(p.Index(i).Child("key"), item.Key)...)
		errs = append(errs, volumePath(item.Path, p.Index(i).Child("path"))...)
		errs = append(errs, mode(p.Index(i).Child("mode"), item.Mode)...)
	}
	return errs
}

func volumePath(v string, p *field.Path) field.ErrorList {
	if v == "" {
		return field.ErrorList{field.Required(p, "")}
	}
	return nonReserved(p, v)
}

func validateDownward(items []corev1.DownwardAPIVolumeFile, p *field.Path) (errs field.ErrorList) {
	for _, f := range items {
		errs = append(errs, volumePath(f.Path, p.Child("path"))...)
		switch {
		case f.FieldRef != nil:
			errs = append(errs, validateFieldRef(f.FieldRef, p.Child("fieldRef"), volumeFields)...)
			if f.ResourceFieldRef != nil {
				errs = append(errs, field.Invalid(p, "resource", "fieldRef and resourceFieldRef can not be specified simultaneously"))
			}
		case f.ResourceFieldRef != nil:
			errs = append(errs, validateResourceFieldRef(f.ResourceFieldRef, p.Child("resourceFieldRef"), true)...)
		default:
			errs = append(errs, field.Required(p, "one of fieldRef and resourceFieldRef is required"))
		}
		errs = append(errs, mode(p.Child("mode"), f.Mode)...)
	}
	return errs
}

// Lifetimes that may be asked for tokens and certificates.
const (
	minTokenSeconds       = 10 * 60
	maxTokenSeconds       = 1 << 32
	minCertificateSeconds = 60 * 60
	maxCertificateSeconds = 91 * 24 * 60 * 60
	// maxOwnCertificateSeconds bounds those of the signers of Kubernetes itself.
	maxOwnCertificateSeconds = 24 * 60 * 60
)

func validateProjected(v *corev1.ProjectedVolumeSource, p *field.Path) (errs field.ErrorList) {
	errs = mode(p.Child("defaultMode"), v.DefaultMode)
	paths := map[string]bool{}
	// claim notes a path that a source writes; two sources may not write the same.
	claim := func(path, source string) {
		if path == "" {
			return
		}
		if paths[path] {
			errs = append(errs, field.Invalid(p, source, "conflicting duplicate paths"))
		}
		paths[path] = true
	}
	for i := range v.Sources {
		src, sp := &v.Sources[i], p.Child("sources").Index(i)
		n := 0
		source := func(set bool, name string) *field.Path {
			if !set {
				return nil
			}
			n++
			return sp.Child(name)
		}
		if fp := source(src.Secret != nil, "secret"); fp != nil {
			errs = append(errs, required(fp.Child("name"), src.Secret.Name)...)
			errs = append(errs, validateItems(src.Secret.Items, fp.Child("items"))...)
			for _, item := range src.Secret.Items {
				claim(item.Path, src.Secret.Name)
			}
		}
		if fp := source(src.ConfigMap != nil, "configMap"); fp != nil {
			errs = append(errs, required(fp.Child("name"), src.ConfigMap.Name)...)
			errs = append(errs, validateItems(src.ConfigMap.Items, fp.Child("items"))...)
			for _, item := range src.ConfigMap.Items {
				claim(item.Path, src.ConfigMap.Name)
			}
		}
		if fp := source(src.DownwardAPI != nil, "downwardAPI"); fp != nil {
			errs = append(errs, validateDownward(src.DownwardAPI.Items, fp)...)
			for _, item := range src.DownwardAPI.Items {
				claim(item.Path, item.Path)
			}
		}
		if fp := source(src.ServiceAccountToken != nil, "serviceAccountToken"); fp != nil {
			t := src.ServiceAccountToken
			ep := fp.Child("expirationSeconds")
			switch {
			case t.ExpirationSeconds == nil:
				errs = append(errs, field.Required(ep, ""))
			case *t.ExpirationSeconds < minTokenSeconds:
				errs = append(errs, field.Invalid(ep, *t.ExpirationSeconds, "may not specify a duration less than 10 minutes"))
			case *t.ExpirationSeconds > maxTokenSeconds:
				errs = append(errs, field.Invalid(ep, *t.ExpirationSeconds, "may not specify a duration larger than 2^32 seconds"))
			}
			errs = append(errs, volumePath(t.Path, p.Child("path"))...)
		}
		if fp := source(src.ClusterTrustBundle != nil, "clusterTrustBundle"); fp != nil {
			c := src.ClusterTrustBundle
			switch byName, bySigner := c.Name != nil, c.SignerName != nil; {
			case byName && bySigner:
				errs = append(errs, field.Invalid(fp, c, "only one of name and signerName may be used"))
			case !byName && !bySigner:
				errs = append(errs, field.Required(fp, "either name or signerName must be specified"))
			case byName && c.LabelSelector != nil:
				errs = append(errs, field.Invalid(fp.Child("labelSelector"), c.LabelSelector, "labelSelector must be unset if name is specified"))
			case byName:
				errs = append(errs, trustBundleName(*c.Name, fp.Child("name"))...)
			default:
				if *c.SignerName == "" {
					errs = append(errs, field.Required(fp.Child("signerName"), "must be a valid signer name"))
				}
				errs = append(errs, signerName(*c.SignerName, fp.Child("signerName"))...)
				errs = append(errs, metav1validation.ValidateLabelSelector(c.LabelSelector, metav1validation.LabelSelectorValidationOptions{}, fp.Child("labelSelector"))...)
			}
			errs = append(errs, volumePath(c.Path, fp.Child("path"))...)
			claim(c.Path, c.Path)
		}
		if fp := source(src.PodCertificate != nil, "podCertificate"); fp != nil {
			c := src.PodCertificate
			errs = append(errs, validatePodCertificate(c, fp)...)
			for _, path := range []string{c.CredentialBundlePath, c.KeyPath, c.CertificateChainPath} {
				claim(path, path)
			}
		}
		if n > 1 {
			errs = append(errs, field.Forbidden(sp, "may not specify more than 1 volume type per source"))
		}
	}
	return errs
}

// trustBundleName checks the name of a ClusterTrustBundle; that of a signer's
// begins with the signer, with colons for slashes.
func trustBundleName(name string, p *field.Path) (errs field.ErrorList) {
	if name == "" {
		errs = append(errs, field.Required(p, "must be a valid object name"))
	}
	if i := strings.LastIndexByte(name, ':'); i >= 0 {
		name = name[i+1:]
	}
	for _, msg := range utilvalidation.IsDNS1123Subdomain(name) {
		errs = append(errs, field.Invalid(p, name, "not a valid clustertrustbundlename: "+msg))
	}
	return errs
}

func signerName(name string, p *field.Path) (errs field.ErrorList) {
	if name == "" {
		return field.ErrorList{field.Required(p, "")}
	}
	domain, path, ok := strings.Cut(name, "/")
	if !ok || path == "" && domain != "" || strings.Contains(path, "/") {
		return field.ErrorList{field.Invalid(p, name, "must be a fully qualified domain and path of the form 'example.com/signer-name'")}
	}
	segments := strings.Split(domain, ".")
	if len(segments) < 2 {
		errs = append(errs, field.Invalid(p, domain, "should be a domain with at least two segments separated by dots"))
	}
	for _, segment := range segments {
		for _, msg := range utilvalidation.IsDNS1123Label(segment) {
			errs = append(errs, field.Invalid(p, domain, fmt.Sprintf("validating label %q: %s", segment, msg)))
		}
	}
	for segment := range strings.SplitSeq(path, ".") {
		for _, msg := range utilvalidation.IsDNS1123Subdomain(segment) {
			errs = append(errs, field.Invalid(p, path, fmt.Sprintf("validating label %q: %s", segment, msg)))
		}
	}
	return errs
}

func validatePodCertificate(c *corev1.PodCertificateProjection, p *field.Path) (errs field.ErrorList) {
	errs = signerName(c.SignerName, p.Child("signerName"))
	errs = append(errs, among(p.Child("keyType"), c.KeyType, "RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519")...)
	if s := c.MaxExpirationSeconds; s != nil {
		most := int32(maxCertificateSeconds)
		if domain, _, _ := strings.Cut(c.SignerName, "/"); domain == "kubernetes.io" || strings.HasSuffix(domain, ".kubernetes.io") {
			most = maxOwnCertificateSeconds
		}
		if *s < minCertificateSeconds {
			errs = append(errs, field.Invalid(p.Child("maxExpirationSeconds"), *s, fmt.Sprintf("if provided, maxExpirationSeconds must be >= %d", minCertificateSeconds)))
		}
		if *s > most {
			errs = append(errs, field.Invalid(p.Child("maxExpirationSeconds"), *s, fmt.Sprintf("if provided, maxExpirationSeconds must be <= %d", most)))
		}
	}
	if c.CredentialBundlePath == "" && c.KeyPath == "" && c.CertificateChainPath == "" {
		errs = append(errs, field.Required(p, "specify at least one of credentialBundlePath, keyPath, and certificateChainPath"))
	}
	for name, path := range map[string]string{"credentialBundlePath": c.CredentialBundlePath, "keyPath": c.KeyPath, "certificateChainPath": c.CertificateChainPath} {
		if path != "" {
			errs = append(errs, nonReserved(p.Child(name), path)...)
		}
	}
	return errs
}
