package storage

import (
	"strconv"
	"strings"

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
	maxDriverName = 63
	maxNodeID     = 192
	// A token lives at least ten minutes, and at most what fits 32 bits.
	minTokenSeconds = 10 * 60
	maxTokenSeconds = 1 << 32
)

func validateDriverName(name string, path *field.Path) (errs field.ErrorList) {
	if name == "" {
		return field.ErrorList{field.Required(path, "")}
	}
	if len(name) > maxDriverName {
		errs = append(errs, field.TooLong(path, name, maxDriverName))
	}
	return append(errs, rules.Messages(name, path, validation.IsDNS1123Subdomain(strings.ToLower(name)))...)
}

func drivers(gv schema.GroupVersion) *api.Resource {
	r := rules.Cluster[storagev1.CSIDriver, storagev1.CSIDriverList](gv, "csidrivers")
	r.Columns = []metav1.TableColumnDefinition{
		rules.Name(),
		rules.Boolean("AttachRequired", "Whether volumes must be attached to a node before they are mounted."),
		rules.Boolean("PodInfoOnMount", "Whether the driver is told of the pod when it mounts."),
		rules.Boolean("StorageCapacity", "Whether the scheduler considers the driver's reported capacity."),
		rules.Text("TokenRequests", "The audiences of the pod's tokens that the driver gets."),
		rules.Boolean("RequiresRepublish", "Whether volumes are published again and again."),
		rules.Text("Modes", "The life cycles of volumes that the driver supports."),
		rules.Age(),
	}
	return api.Kind[*storagev1.CSIDriver]{
		Resource: r,
		Default: func(d *storagev1.CSIDriver) {
			s := &d.Spec
			rules.Refer(&s.AttachRequired, true)
			rules.Refer(&s.PodInfoOnMount, false)
			rules.Refer(&s.StorageCapacity, false)
			rules.Refer(&s.FSGroupPolicy, storagev1.ReadWriteOnceWithFSTypeFSGroupPolicy)
			rules.Refer(&s.RequiresRepublish, false)
			rules.Refer(&s.SELinuxMount, false)
			if len(s.VolumeLifecycleModes) == 0 {
				s.VolumeLifecycleModes = []storagev1.VolumeLifecycleMode{storagev1.VolumeLifecyclePersistent}
			}
		},
		Validate: validateDriver,
		ValidateUpdate: func(d, old *storagev1.CSIDriver) field.ErrorList {
			spec := field.NewPath("spec")
			errs := validateDriver(d)
			errs = append(errs, rules.Immutable(d.Spec.AttachRequired, old.Spec.AttachRequired, spec.Child("attachedRequired"))...)
			return append(errs, rules.Immutable(d.Spec.VolumeLifecycleModes, old.Spec.VolumeLifecycleModes, spec.Child("volumeLifecycleModes"))...)
		},
		SpecChanged: func(d, old *storagev1.CSIDriver) bool { return !rules.Same(d.Spec, old.Spec) },
		Row: func(d *storagev1.CSIDriver) []any {
			var modes, audiences []string
			for _, m := range d.Spec.VolumeLifecycleModes {
				modes = append(modes, string(m))
			}
			for _, t := range d.Spec.TokenRequests {
				audiences = append(audiences, t.Audience)
			}
			tokens := rules.Unset
			if len(audiences) > 0 {
				tokens = strings.Join(audiences, ",")
			}
			if len(modes) == 0 {
				modes = []string{rules.None}
			}
			return []any{
				d.Name, rules.Or(d.Spec.AttachRequired, true), rules.Or(d.Spec.PodInfoOnMount, false), rules.Or(d.Spec.StorageCapacity, false),
				tokens, rules.Or(d.Spec.RequiresRepublish, false), strings.Join(modes, ","), rules.Created(d),
			}
		},
	}.Erase()
}

func validateDriver(d *storagev1.CSIDriver) field.ErrorList {
	spec := field.NewPath("spec")
	s := &d.Spec
	errs := validateDriverName(d.Name, field.NewPath("name"))
	if s.AttachRequired == nil {
		errs = append(errs, field.Required(spec.Child("attachedRequired"), ""))
	}
	if s.PodInfoOnMount == nil {
		errs = append(errs, field.Required(spec.Child("podInfoOnMount"), ""))
	}
	if s.StorageCapacity == nil {
		errs = append(errs, field.Required(spec.Child("storageCapacity"), ""))
	}
	if p := s.FSGroupPolicy; p != nil {
		errs = append(errs, rules.OneOf(*p, spec.Child("fsGroupPolicy"), "",
			storagev1.FileFSGroupPolicy, storagev1.NoneFSGroupPolicy, storagev1.ReadWriteOnceWithFSTypeFSGroupPolicy)...)
	}
	audiences := map[string]bool{}
	for i, t := range s.TokenRequests {
		at := spec.Child("tokenRequests").Index(i)
		if audiences[t.Audience] {
			errs = append(errs, field.Duplicate(at.Child("audience"), t.Audience))
		}
		audiences[t.Audience] = true
		if n := t.ExpirationSeconds; n != nil {
			if *n < minTokenSeconds {
				errs = append(errs, field.Invalid(at.Child("expirationSeconds"), *n, "may not specify a duration less than 10 minutes"))
			}
			if *n > maxTokenSeconds {
				errs = append(errs, field.Invalid(at.Child("expirationSeconds"), *n, "may not specify a duration larger than 2^32 seconds"))
			}
		}
	}
	for i, m := range s.VolumeLifecycleModes {
		if m != storagev1.VolumeLifecyclePersistent && m != storagev1.VolumeLifecycleEphemeral {
			errs = append(errs, field.NotSupported(spec.Child("volumeLifecycleModes").Index(i), m,
				[]storagev1.VolumeLifecycleMode{storagev1.VolumeLifecyclePersistent, storagev1.VolumeLifecycleEphemeral}))
		}
	}
	if n := s.NodeAllocatableUpdatePeriodSeconds; n != nil && *n < 10 {
		errs = append(errs, field.Invalid(spec.Child("nodeAllocatableUpdatePeriodSeconds"), *n, "must be greater than or equal to 10 seconds"))
	}
	return errs
}

func nodes(gv schema.GroupVersion) *api.Resource {
	r := rules.Cluster[storagev1.CSINode, storagev1.CSINodeList](gv, "csinodes")
	r.Columns = []metav1.TableColumnDefinition{
		rules.Name(), rules.Integer("Drivers", "The number of CSI drivers on the node."), rules.Age(),
	}
	return api.Kind[*storagev1.CSINode]{
		Resource: r,
		Validate: validateNode,
		ValidateUpdate: func(n, old *storagev1.CSINode) field.ErrorList {
			errs := validateNode(n)
			was := make(map[string]*storagev1.CSINodeDriver, len(old.Spec.Drivers))
			for i := range old.Spec.Drivers {
				was[old.Spec.Drivers[i].Name] = &old.Spec.Drivers[i]
			}
			for i := range n.Spec.Drivers {
				d := n.Spec.Drivers[i]
				o := was[d.Name]
				if o == nil {
					continue
				}
				d.Allocatable = o.Allocatable // what a node can hold is reported anew from time to time
				if !rules.Same(d, *o) {
					errs = append(errs, field.Invalid(field.NewPath("CSINodeDriver"), d, "field is immutable"))
				}
			}
			return errs
		},
		Row: func(n *storagev1.CSINode) []any { return []any{n.Name, int64(len(n.Spec.Drivers)), rules.Created(n)} },
	}.Erase()
}

func validateNode(n *storagev1.CSINode) (errs field.ErrorList) {
	names := map[string]bool{}
	for i, d := range n.Spec.Drivers {
		at := field.NewPath("spec", "drivers").Index(i)
		errs = append(errs, validateDriverName(d.Name, at.Child("name"))...)
		if names[d.Name] {
			errs = append(errs, field.Duplicate(at.Child("name"), d.Name))
		}
		names[d.Name] = true
		switch {
		case d.NodeID == "":
			errs = append(errs, field.Required(at.Child("nodeID"), d.NodeID))
		case len(d.NodeID) > maxNodeID:
			errs = append(errs, field.Invalid(at.Child("nodeID"), d.NodeID, "must be "+strconv.Itoa(maxNodeID)+" characters or less"))
		}
		if d.Allocatable != nil {
			errs = append(errs, rules.NonnegativePointer(d.Allocatable.Count, at.Child("allocatable", "count"))...)
		}
		keys := map[string]bool{}
		for _, key := range d.TopologyKeys {
			if key == "" || keys[key] {
				errs = append(errs, field.Required(at.Child("topologyKeys"), key))
			}
			keys[key] = true
			errs = append(errs, metavalidation.ValidateLabelName(key, at.Child("topologyKeys"))...)
		}
	}
	return errs
}

func capacities(gv schema.GroupVersion) *api.Resource {
	r := rules.Namespaced[storagev1.CSIStorageCapacity, storagev1.CSIStorageCapacityList](gv, "csistoragecapacities")
	r.Columns = []metav1.TableColumnDefinition{
		rules.Name(),
		rules.Text("StorageClassName", "The class that the capacity is of."),
		rules.Text("Capacity", "How much can be provisioned."),
		rules.Age(),
	}
	return api.Kind[*storagev1.CSIStorageCapacity]{
		Resource: r,
		Validate: validateCapacity,
		ValidateUpdate: func(c, old *storagev1.CSIStorageCapacity) field.ErrorList {
			errs := validateCapacity(c)
			errs = append(errs, rules.Immutable(c.NodeTopology, old.NodeTopology, field.NewPath("nodeTopology"))...)
			return append(errs, rules.Immutable(c.StorageClassName, old.StorageClassName, field.NewPath("storageClassName"))...)
		},
		Row: func(c *storagev1.CSIStorageCapacity) []any {
			capacity := rules.Unset
			if c.Capacity != nil {
				capacity = c.Capacity.String()
			}
			return []any{c.Name, c.StorageClassName, capacity, rules.Created(c)}
		},
	}.Erase()
}

func validateCapacity(c *storagev1.CSIStorageCapacity) field.ErrorList {
	errs := rules.Selector(c.NodeTopology, field.NewPath("nodeTopology"))
	errs = append(errs, rules.Messages(c.StorageClassName, field.NewPath("storageClassName"), validation.IsDNS1123Subdomain(c.StorageClassName))...)
	if c.Capacity != nil && c.Capacity.Sign() < 0 {
		errs = append(errs, field.Invalid(field.NewPath("capacity"), c.Capacity.String(), "must be greater than or equal to 0"))
	}
	if c.MaximumVolumeSize != nil && c.MaximumVolumeSize.Sign() < 0 {
		errs = append(errs, field.Invalid(field.NewPath("maximumVolumeSize"), c.MaximumVolumeSize.String(), "must be greater than or equal to 0"))
	}
	return errs
}
