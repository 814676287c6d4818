package core

import (
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

func persistentVolumeClaim() *api.Resource {
	k := api.Kind[*corev1.PersistentVolumeClaim]{Resource: rules.Namespaced[corev1.PersistentVolumeClaim, corev1.PersistentVolumeClaimList](gv, "persistentvolumeclaims", "pvc")}
	k.Resource.UnconditionalUpdate = true
	k.Default = func(o *corev1.PersistentVolumeClaim) {
		zero(&o.Status.Phase, corev1.ClaimPending)
		defaultClaimSpec(&o.Spec)
	}
	k.PrepareForCreate = func(o *corev1.PersistentVolumeClaim) {
		o.Status = corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimPending}
		dropOldDataSource(&o.Spec)
		alignDataSources(&o.Spec)
	}
	k.PrepareForUpdate = func(o, old *corev1.PersistentVolumeClaim) {
		if old.Spec.DataSource == nil && old.Spec.DataSourceRef == nil {
			dropOldDataSource(&o.Spec)
		}
		alignDataSources(&o.Spec)
	}
	k.Validate = func(o *corev1.PersistentVolumeClaim) field.ErrorList {
		return validateClaimSpec(&o.Spec, field.NewPath("spec"))
	}
	k.ValidateUpdate = validateClaimUpdate
	k.CopyStatus = func(dst, src *corev1.PersistentVolumeClaim) { src.Status.DeepCopyInto(&dst.Status) }
	k.ValidateStatusUpdate = func(o, _ *corev1.PersistentVolumeClaim) (errs field.ErrorList) {
		if len(o.Spec.AccessModes) == 0 {
			errs = append(errs, field.Required(field.NewPath("Spec", "accessModes"), ""))
		}
		p := field.NewPath("status")
		for _, list := range []struct {
			name string
			list corev1.ResourceList
		}{{"capacity", o.Status.Capacity}, {"allocatedResources", o.Status.AllocatedResources}} {
			for _, name := range sorted(list.list) {
				if q := list.list[name]; q.Sign() < 0 {
					errs = append(errs, field.Invalid(p.Child(list.name).Key(string(name)), q.Value(), "must be a valid resource quantity"))
				}
			}
		}
		for _, name := range slices.Sorted(maps.Keys(o.Status.AllocatedResourceStatuses)) {
			if !slices.Contains(resizeStatuses, o.Status.AllocatedResourceStatuses[name]) {
				errs = append(errs, field.NotSupported(p.Child("allocatedResourceStatuses"), name, resizeStatuses))
			}
		}
		return errs
	}
	k.Warnings = func(o *corev1.PersistentVolumeClaim) []string {
		var w warnings
		if _, ok := o.Annotations[corev1.BetaStorageClassAnnotation]; ok {
			w.add(field.NewPath("metadata", "annotations").Key(corev1.BetaStorageClassAnnotation), `deprecated since v1.8; use "storageClassName" attribute instead`)
		}
		w.claim(&o.Spec, field.NewPath("spec"))
		return w
	}
	doc := corev1.PersistentVolumeClaimStatus{}.SwaggerDoc()
	spec := corev1.PersistentVolumeClaimSpec{}.SwaggerDoc()
	k.Resource.Columns = []metav1.TableColumnDefinition{
		rules.Name(), rules.Text("Status", doc["phase"]), rules.Text("Volume", spec["volumeName"]), rules.Text("Capacity", doc["capacity"]),
		rules.Text("Access Modes", doc["accessModes"]), rules.Text("StorageClass", "StorageClass of the pvc"), rules.Text("VolumeAttributesClass", "VolumeAttributesClass of the pvc"),
		rules.Age(), rules.Wide("VolumeMode", spec["volumeMode"]),
	}
	k.Row = func(o *corev1.PersistentVolumeClaim) []any {
		phase, capacity, modes := string(o.Status.Phase), "", ""
		if o.DeletionTimestamp != nil {
			phase = "Terminating"
		}
		if o.Spec.VolumeName != "" {
			q := o.Status.Capacity[corev1.ResourceStorage]
			capacity, modes = q.String(), accessModes(o.Status.AccessModes)
		}
		class, old := o.Annotations[corev1.BetaStorageClassAnnotation]
		if !old {
			class = rules.Or(o.Spec.StorageClassName, "")
		}
		return []any{o.Name, phase, o.Spec.VolumeName, capacity, modes, class, rules.Or(o.Spec.VolumeAttributesClassName, rules.Unset),
			rules.Created(o), string(rules.Or(o.Spec.VolumeMode, rules.Unset))}
	}
	return k.Erase()
}

var resizeStatuses = []corev1.ClaimResourceStatus{corev1.PersistentVolumeClaimControllerResizeInProgress, corev1.PersistentVolumeClaimControllerResizeInfeasible,
	corev1.PersistentVolumeClaimNodeResizeInProgress, corev1.PersistentVolumeClaimNodeResizeInfeasible, corev1.PersistentVolumeClaimNodeResizePending}

func defaultClaimSpec(s *corev1.PersistentVolumeClaimSpec) {
	def(&s.VolumeMode, corev1.PersistentVolumeFilesystem)
}

// dropOldDataSource: dataSource has ever been silent about kinds that it does not
// know; dataSourceRef is for those.
func dropOldDataSource(s *corev1.PersistentVolumeClaimSpec) {
	if s.DataSource == nil || s.DataSourceRef != nil {
		return
	}
	group := rules.Or(s.DataSource.APIGroup, "")
	claim := group == "" && s.DataSource.Kind == "PersistentVolumeClaim"
	snapshot := group == "snapshot.storage.k8s.io" && s.DataSource.Kind == "VolumeSnapshot"
	if !claim && !snapshot {
		s.DataSource = nil
	}
}

// alignDataSources keeps the old field dataSource and the general dataSourceRef
// the same when only one is given (KEP-1495).
func alignDataSources(s *corev1.PersistentVolumeClaimSpec) {
	switch {
	case s.DataSource != nil && s.DataSourceRef == nil:
		s.DataSourceRef = &corev1.TypedObjectReference{APIGroup: s.DataSource.APIGroup, Kind: s.DataSource.Kind, Name: s.DataSource.Name}
	case s.DataSourceRef != nil && s.DataSource == nil && rules.Or(s.DataSourceRef.Namespace, "") == "":
		s.DataSource = &corev1.TypedLocalObjectReference{APIGroup: s.DataSourceRef.APIGroup, Kind: s.DataSourceRef.Kind, Name: s.DataSourceRef.Name}
	}
}

func validateAccessModes(list []corev1.PersistentVolumeAccessMode, p *field.Path) (errs field.ErrorList) {
	for _, m := range list {
		errs = append(errs, among(p, m, corev1.ReadOnlyMany, corev1.ReadWriteMany, corev1.ReadWriteOnce, corev1.ReadWriteOncePod)...)
	}
	if slices.Contains(list, corev1.ReadWriteOncePod) && slices.ContainsFunc(list, func(m corev1.PersistentVolumeAccessMode) bool { return m != corev1.ReadWriteOncePod }) {
		errs = append(errs, field.Forbidden(p, "may not use ReadWriteOncePod with other access modes"))
	}
	return errs
}

func positive(q resource.Quantity, p *field.Path) field.ErrorList {
	if q.Sign() <= 0 {
		return field.ErrorList{field.Invalid(p, q.String(), notPositive)}
	}
	return nil
}

func validateClaimSpec(s *corev1.PersistentVolumeClaimSpec, p *field.Path) (errs field.ErrorList) {
	if len(s.AccessModes) == 0 {
		errs = append(errs, field.Required(p.Child("accessModes"), "at least 1 access mode is required"))
	}
	errs = append(errs, metav1validation.ValidateLabelSelector(s.Selector, metav1validation.LabelSelectorValidationOptions{}, p.Child("selector"))...)
	errs = append(errs, validateAccessModes(s.AccessModes, p.Child("accessModes"))...)
	storage := p.Child("resources").Key(string(corev1.ResourceStorage))
	if q, ok := s.Resources.Requests[corev1.ResourceStorage]; !ok {
		errs = append(errs, field.Required(storage, ""))
	} else {
		errs = append(errs, positive(q, storage)...)
	}
	if c := s.StorageClassName; c != nil && *c != "" {
		errs = append(errs, subdomain(p.Child("storageClassName"), *c)...)
	}
	errs = append(errs, amongPointer(p.Child("volumeMode"), s.VolumeMode, corev1.PersistentVolumeBlock, corev1.PersistentVolumeFilesystem)...)
	if d := s.DataSource; d != nil {
		errs = append(errs, validateDataSource(d.APIGroup, d.Kind, d.Name, p.Child("dataSource"))...)
	}
	if d := s.DataSourceRef; d != nil {
		errs = append(errs, validateDataSource(d.APIGroup, d.Kind, d.Name, p.Child("dataSourceRef"))...)
		if rules.Or(d.Namespace, "") != "" && s.DataSource != nil {
			errs = append(errs, field.Invalid(p, p.Child("dataSource"), "may not be specified when dataSourceRef.namespace is specified"))
		}
	}
	if d, r := s.DataSource, s.DataSourceRef; d != nil && r != nil && rules.Or(r.Namespace, "") == "" &&
		(rules.Or(d.APIGroup, "") != rules.Or(r.APIGroup, "") || d.Kind != r.Kind || d.Name != r.Name) {
		errs = append(errs, field.Invalid(p, p.Child("dataSource"), "must match dataSourceRef"))
	}
	if c := s.VolumeAttributesClassName; c != nil && *c != "" {
		errs = append(errs, subdomain(p.Child("volumeAttributesClassName"), *c)...)
	}
	return errs
}

func validateDataSource(group *string, kind, name string, p *field.Path) (errs field.ErrorList) {
	errs = append(errs, required(p.Child("name"), name)...)
	errs = append(errs, required(p.Child("kind"), kind)...)
	if g := rules.Or(group, ""); g != "" {
		errs = append(errs, subdomain(p.Child("apiGroup"), g)...)
	} else if kind != "PersistentVolumeClaim" {
		errs = append(errs, field.Invalid(p, kind, "must be 'PersistentVolumeClaim' when referencing the default apiGroup"))
	}
	return errs
}

func validateClaimUpdate(o, old *corev1.PersistentVolumeClaim) field.ErrorList {
	errs := validateClaimSpec(&o.Spec, field.NewPath("spec"))
	now, was := o.Spec.DeepCopy(), old.Spec.DeepCopy()
	alignDataSources(was)
	bound := o.Status.Phase == corev1.ClaimBound
	// The binder names the volume once; the default class is filled in later (KEP-3333).
	if was.VolumeName == "" {
		was.VolumeName = now.VolumeName
	}
	errs = append(errs, keepClass(o, old)...)
	if class, named := old.Annotations[corev1.BetaStorageClassAnnotation]; was.StorageClassName == nil && now.StorageClassName != nil && (!named || *now.StorageClassName == class) {
		was.StorageClassName = now.StorageClassName
	}
	asked, had := now.Resources.Requests[corev1.ResourceStorage], was.Resources.Requests[corev1.ResourceStorage]
	if bound && was.Resources.Requests != nil && now.Resources.Requests != nil {
		now.Resources.Requests[corev1.ResourceStorage] = had
	}
	if bound {
		was.VolumeAttributesClassName = now.VolumeAttributesClassName
	}
	if !apiequality.Semantic.DeepEqual(now, was) {
		errs = append(errs, field.Forbidden(field.NewPath("spec"), "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims"+changedFields("spec", *now, *was)))
	}
	// A request that could not be fulfilled may be taken back, but no volume shrinks (KEP-1790).
	if capacity := old.Status.Capacity[corev1.ResourceStorage]; asked.Cmp(had) < 0 && asked.Cmp(capacity) <= 0 {
		errs = append(errs, field.Forbidden(field.NewPath("spec", "resources", "requests", "storage"), "field can not be less than status.capacity"))
	}
	errs = append(errs, validation.ValidateImmutableField(o.Spec.VolumeMode, old.Spec.VolumeMode, field.NewPath("volumeMode"))...)
	if class := o.Spec.VolumeAttributesClassName; old.Status.CurrentVolumeAttributesClassName != nil && !rules.Same(class, old.Spec.VolumeAttributesClassName) && rules.Or(class, "") == "" {
		to := "nil"
		if class != nil {
			to = "empty string"
		}
		errs = append(errs, field.Forbidden(field.NewPath("spec", "volumeAttributesClassName"), "update to "+to+" is forbidden when status.currentVolumeAttributesClassName is not nil"))
	}
	return errs
}

// keepClass: the old annotation of the storage class stays, or moves to the field.
func keepClass(o, old *corev1.PersistentVolumeClaim) field.ErrorList {
	now, still := o.Annotations[corev1.BetaStorageClassAnnotation]
	was, had := old.Annotations[corev1.BetaStorageClassAnnotation]
	moved := had && old.Spec.StorageClassName == nil && o.Spec.StorageClassName != nil && *o.Spec.StorageClassName == was && (!still || now == was)
	if moved || now == was {
		return nil
	}
	return field.ErrorList{field.Invalid(field.NewPath("metadata", "annotations", corev1.BetaStorageClassAnnotation), now, validation.FieldImmutableErrorMsg)}
}

func accessModes(list []corev1.PersistentVolumeAccessMode) string {
	short := []struct {
		mode corev1.PersistentVolumeAccessMode
		text string
	}{{corev1.ReadWriteOnce, "RWO"}, {corev1.ReadOnlyMany, "ROX"}, {corev1.ReadWriteMany, "RWX"}, {corev1.ReadWriteOncePod, "RWOP"}}
	var out []string
	for _, s := range short {
		if slices.Contains(list, s.mode) {
			out = append(out, s.text)
		}
	}
	return strings.Join(out, ",")
}
