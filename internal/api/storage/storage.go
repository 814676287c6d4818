// Package storage holds the rules of the API group storage.k8s.io: classes of
// volumes, their attachment, and what CSI drivers say of themselves.
package storage

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

const (
	maxParameters      = 512
	maxParametersBytes = 256 * 1024

	annotationDefault     = "storageclass.kubernetes.io/is-default-class"
	annotationDefaultBeta = "storageclass.beta.kubernetes.io/is-default-class"
)

// Resources returns the resources of the group.
func Resources() []*api.Resource {
	gv := storagev1.SchemeGroupVersion
	return []*api.Resource{
		drivers(gv), nodes(gv), capacities(gv), storageClasses(gv), attachments(gv), attributesClasses(gv),
	}
}

func storageClasses(gv schema.GroupVersion) *api.Resource {
	r := rules.Cluster[storagev1.StorageClass, storagev1.StorageClassList](gv, "storageclasses", "sc")
	r.UnconditionalUpdate = true
	r.Columns = []metav1.TableColumnDefinition{
		rules.Name(),
		rules.Text("Provisioner", "Provisioner indicates the type of the provisioner."),
		rules.Text("ReclaimPolicy", "What happens to a volume that is released."),
		rules.Text("VolumeBindingMode", "When volumes are provisioned and bound."),
		rules.Text("AllowVolumeExpansion", "Whether volumes may grow."),
		rules.Age(),
	}
	return api.Kind[*storagev1.StorageClass]{
		Resource: r,
		Default: func(c *storagev1.StorageClass) {
			rules.Refer(&c.ReclaimPolicy, corev1.PersistentVolumeReclaimDelete)
			rules.Refer(&c.VolumeBindingMode, storagev1.VolumeBindingImmediate)
		},
		Validate:       validateStorageClass,
		ValidateUpdate: validateStorageClassUpdate,
		Row: func(c *storagev1.StorageClass) []any {
			name := c.Name
			if c.Annotations[annotationDefault] == "true" || c.Annotations[annotationDefaultBeta] == "true" {
				name += " (default)"
			}
			return []any{
				name, c.Provisioner, string(rules.Or(c.ReclaimPolicy, corev1.PersistentVolumeReclaimDelete)),
				string(rules.Or(c.VolumeBindingMode, storagev1.VolumeBindingMode(rules.Unset))),
				rules.Or(c.AllowVolumeExpansion, false), rules.Created(c),
			}
		},
	}.Erase()
}

func validateStorageClass(c *storagev1.StorageClass) field.ErrorList {
	errs := validateProvisioner(c.Provisioner, field.NewPath("provisioner"))
	errs = append(errs, validateParameters(c.Parameters, field.NewPath("parameters"))...)
	policy := rules.Or(c.ReclaimPolicy, "")
	if policy != "" {
		errs = append(errs, rules.OneOf(policy, field.NewPath("reclaimPolicy"), "", corev1.PersistentVolumeReclaimDelete, corev1.PersistentVolumeReclaimRetain)...)
	}
	mode := field.NewPath("volumeBindingMode")
	if c.VolumeBindingMode == nil {
		errs = append(errs, field.Required(mode, ""))
	} else if m := *c.VolumeBindingMode; m != storagev1.VolumeBindingImmediate && m != storagev1.VolumeBindingWaitForFirstConsumer {
		errs = append(errs, field.NotSupported(mode, m, []storagev1.VolumeBindingMode{storagev1.VolumeBindingImmediate, storagev1.VolumeBindingWaitForFirstConsumer}))
	}
	return append(errs, validateTopologies(c.AllowedTopologies, field.NewPath("allowedTopologies"))...)
}

func validateProvisioner(name string, path *field.Path) field.ErrorList {
	if name == "" {
		return field.ErrorList{field.Required(path, name)}
	}
	return rules.Messages(name, path, validation.IsQualifiedName(strings.ToLower(name)))
}

func validateParameters(parameters map[string]string, path *field.Path) (errs field.ErrorList) {
	if len(parameters) > maxParameters {
		return field.ErrorList{field.TooLong(path, "", maxParameters)}
	}
	total := 0
	for key, value := range parameters {
		if key == "" {
			errs = append(errs, field.Invalid(path, key, "field can not be empty."))
		}
		total += len(key) + len(value)
	}
	if total > maxParametersBytes {
		errs = append(errs, field.TooLong(path, "", maxParametersBytes))
	}
	return errs
}

func validateTopologies(terms []corev1.TopologySelectorTerm, path *field.Path) (errs field.ErrorList) {
	for i, term := range terms {
		seen := map[string]bool{}
		for j, e := range term.MatchLabelExpressions {
			at := path.Index(i).Child("matchLabelExpressions").Index(j)
			errs = append(errs, metavalidation.ValidateLabelName(e.Key, at.Child("key"))...)
			if len(e.Values) == 0 {
				errs = append(errs, field.Required(at.Child("values"), ""))
			}
			values := map[string]bool{}
			for k, v := range e.Values {
				if values[v] {
					errs = append(errs, field.Duplicate(at.Child("values").Index(k), v))
				}
				values[v] = true
			}
			if seen[e.Key] {
				errs = append(errs, field.Duplicate(at.Child("key"), e.Key))
			}
			seen[e.Key] = true
		}
	}
	return errs
}

func validateStorageClassUpdate(c, old *storagev1.StorageClass) field.ErrorList {
	errs := validateStorageClass(c)
	if !rules.Same(c.Parameters, old.Parameters) {
		errs = append(errs, field.Forbidden(field.NewPath("parameters"), "updates to parameters are forbidden."))
	}
	if c.Provisioner != old.Provisioner {
		errs = append(errs, field.Forbidden(field.NewPath("provisioner"), "updates to provisioner are forbidden."))
	}
	if !rules.Same(c.ReclaimPolicy, old.ReclaimPolicy) {
		errs = append(errs, field.Forbidden(field.NewPath("reclaimPolicy"), "updates to reclaimPolicy are forbidden."))
	}
	return append(errs, rules.Immutable(c.VolumeBindingMode, old.VolumeBindingMode, field.NewPath("volumeBindingMode"))...)
}

func attributesClasses(gv schema.GroupVersion) *api.Resource {
	r := rules.Cluster[storagev1.VolumeAttributesClass, storagev1.VolumeAttributesClassList](gv, "volumeattributesclasses", "vac")
	r.Columns = []metav1.TableColumnDefinition{
		rules.Name(), rules.Text("DriverName", "The CSI driver that the parameters are for."), rules.Age(),
	}
	return api.Kind[*storagev1.VolumeAttributesClass]{
		Resource: r,
		Validate: validateAttributesClass,
		ValidateUpdate: func(c, old *storagev1.VolumeAttributesClass) field.ErrorList {
			errs := validateAttributesClass(c)
			if c.DriverName != old.DriverName {
				errs = append(errs, field.Forbidden(field.NewPath("driverName"), "updates to driverName are forbidden."))
			}
			if !rules.Same(c.Parameters, old.Parameters) {
				errs = append(errs, field.Forbidden(field.NewPath("parameters"), "updates to parameters are forbidden."))
			}
			return errs
		},
		Row: func(c *storagev1.VolumeAttributesClass) []any {
			name := c.Name
			return []any{name, c.DriverName, rules.Created(c)}
		},
	}.Erase()
}

func validateAttributesClass(c *storagev1.VolumeAttributesClass) field.ErrorList {
	errs := validateProvisioner(c.DriverName, field.NewPath("driverName"))
	if len(c.Parameters) == 0 {
		errs = append(errs, field.Required(field.NewPath("parameters"), "must contain at least one key/value pair"))
	}
	return append(errs, validateParameters(c.Parameters, field.NewPath("parameters"))...)
}

func attachments(gv schema.GroupVersion) *api.Resource {
	r := rules.Cluster[storagev1.VolumeAttachment, storagev1.VolumeAttachmentList](gv, "volumeattachments")
	r.Columns = []metav1.TableColumnDefinition{
		rules.Name(),
		rules.Text("Attacher", "The CSI driver that attaches."),
		rules.Text("PV", "The volume to be attached."),
		rules.Text("Node", "The node to attach it to."),
		rules.Boolean("Attached", "Whether the volume is attached."),
		rules.Age(),
	}
	return api.Kind[*storagev1.VolumeAttachment]{
		Resource:   r,
		Validate:   validateAttachment,
		CopyStatus: func(dst, src *storagev1.VolumeAttachment) { dst.Status = *src.Status.DeepCopy() },
		ValidateUpdate: func(a, old *storagev1.VolumeAttachment) field.ErrorList {
			errs := validateAttachment(a)
			if !rules.Same(a.Spec, old.Spec) {
				errs = append(errs, field.Invalid(field.NewPath("spec"), a.Spec, "field is immutable"))
			}
			return errs
		},
		Row: func(a *storagev1.VolumeAttachment) []any {
			return []any{a.Name, a.Spec.Attacher, rules.Or(a.Spec.Source.PersistentVolumeName, ""), a.Spec.NodeName, a.Status.Attached, rules.Created(a)}
		},
	}.Erase()
}

func validateAttachment(a *storagev1.VolumeAttachment) field.ErrorList {
	spec := field.NewPath("spec")
	errs := validateDriverName(a.Spec.Attacher, spec.Child("attacher"))
	errs = append(errs, rules.Messages(a.Spec.NodeName, spec.Child("nodeName"), validation.IsDNS1123Subdomain(a.Spec.NodeName))...)
	source := spec.Child("source")
	switch s := a.Spec.Source; {
	case s.PersistentVolumeName == nil && s.InlineVolumeSpec == nil:
		errs = append(errs, field.Required(source, "must specify exactly one of inlineVolumeSpec and persistentVolumeName"))
	case s.PersistentVolumeName != nil && s.InlineVolumeSpec != nil:
		errs = append(errs, field.Forbidden(source, "must specify exactly one of inlineVolumeSpec and persistentVolumeName"))
	case s.PersistentVolumeName != nil && *s.PersistentVolumeName == "":
		errs = append(errs, field.Required(source.Child("persistentVolumeName"), "must specify non empty persistentVolumeName"))
	}
	return errs
}
