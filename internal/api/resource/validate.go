package resource

import (
	"fmt"
	"strings"

	resourcev1 "k8s.io/api/resource/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api/rules"
)

func validateDriver(name string, at *field.Path) (errs field.ErrorList) {
	if name == "" {
		return field.ErrorList{field.Required(at, "")}
	}
	if len(name) > resourcev1.DriverNameMaxLength {
		errs = append(errs, field.TooLong(at, "", resourcev1.DriverNameMaxLength))
	}
	return append(errs, rules.Subdomain(name, at)...)
}

func validatePool(name string, at *field.Path) (errs field.ErrorList) {
	if name == "" {
		return field.ErrorList{field.Required(at, "")}
	}
	if len(name) > resourcev1.PoolNameMaxLength {
		errs = append(errs, field.TooLong(at, "", resourcev1.PoolNameMaxLength))
	}
	for part := range strings.SplitSeq(name, "/") {
		errs = append(errs, rules.Subdomain(part, at)...)
	}
	return errs
}

func validateTaint(t *resourcev1.DeviceTaint, at *field.Path) field.ErrorList {
	errs := metavalidation.ValidateLabelName(t.Key, at.Child("key"))
	if t.Value != "" {
		errs = append(errs, metavalidation.ValidateLabels(map[string]string{"value": t.Value}, at.Child("value"))...)
	}
	return append(errs, rules.OneOf(t.Effect, at.Child("effect"), "",
		resourcev1.DeviceTaintEffectNoExecute, resourcev1.DeviceTaintEffectNoSchedule, resourcev1.DeviceTaintEffectNone)...)
}

func validateSelectors(list []resourcev1.DeviceSelector, at *field.Path) (errs field.ErrorList) {
	if len(list) > resourcev1.DeviceSelectorsMaxSize {
		errs = append(errs, field.TooMany(at, len(list), resourcev1.DeviceSelectorsMaxSize))
	}
	for i := range list {
		cel := at.Index(i).Child("cel")
		switch c := list[i].CEL; {
		case c == nil:
			errs = append(errs, field.Required(cel, ""))
		case c.Expression == "":
			errs = append(errs, field.Required(cel.Child("expression"), ""))
		case len(c.Expression) > resourcev1.CELSelectorExpressionMaxLength:
			errs = append(errs, field.TooLong(cel.Child("expression"), "", resourcev1.CELSelectorExpressionMaxLength))
		}
	}
	return errs
}

func validateConfig(c *resourcev1.DeviceConfiguration, at *field.Path) field.ErrorList {
	if c.Opaque == nil {
		return field.ErrorList{field.Required(at.Child("opaque"), "")}
	}
	errs := validateDriver(c.Opaque.Driver, at.Child("opaque", "driver"))
	parameters := at.Child("opaque", "parameters")
	switch raw := c.Opaque.Parameters.Raw; {
	case len(raw) == 0 && c.Opaque.Parameters.Object == nil:
		errs = append(errs, field.Required(parameters, ""))
	case len(raw) > resourcev1.OpaqueParametersMaxLength:
		errs = append(errs, field.TooLong(parameters, "", resourcev1.OpaqueParametersMaxLength))
	}
	return errs
}

func validateClaim(s *resourcev1.ResourceClaimSpec, spec *field.Path) (errs field.ErrorList) {
	devices := spec.Child("devices")
	requests := devices.Child("requests")
	if n := len(s.Devices.Requests); n > resourcev1.DeviceRequestsMaxSize {
		errs = append(errs, field.TooMany(requests, n, resourcev1.DeviceRequestsMaxSize))
	}
	names := map[string]bool{}
	for i := range s.Devices.Requests {
		r, at := &s.Devices.Requests[i], requests.Index(i)
		errs = append(errs, rules.Label(r.Name, at.Child("name"))...)
		if names[r.Name] {
			errs = append(errs, field.Duplicate(at, r.Name))
		}
		names[r.Name] = true
		for j := range r.FirstAvailable {
			names[r.Name+"/"+r.FirstAvailable[j].Name] = true
		}
		errs = append(errs, validateDeviceRequest(r, at)...)
	}
	known := func(list []string, at *field.Path) {
		for i, name := range list {
			if !names[name] {
				errs = append(errs, field.Invalid(at.Index(i), name, "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'"))
			}
		}
	}
	if n := len(s.Devices.Constraints); n > resourcev1.DeviceConstraintsMaxSize {
		errs = append(errs, field.TooMany(devices.Child("constraints"), n, resourcev1.DeviceConstraintsMaxSize))
	}
	for i, c := range s.Devices.Constraints {
		at := devices.Child("constraints").Index(i)
		known(c.Requests, at.Child("requests"))
		if (c.MatchAttribute == nil) == (c.DistinctAttribute == nil) {
			errs = append(errs, field.Invalid(at, "", "exactly one of `matchAttribute` and `distinctAttribute` is required"))
		}
	}
	if n := len(s.Devices.Config); n > resourcev1.DeviceConfigMaxSize {
		errs = append(errs, field.TooMany(devices.Child("config"), n, resourcev1.DeviceConfigMaxSize))
	}
	for i := range s.Devices.Config {
		at := devices.Child("config").Index(i)
		known(s.Devices.Config[i].Requests, at.Child("requests"))
		errs = append(errs, validateConfig(&s.Devices.Config[i].DeviceConfiguration, at)...)
	}
	return errs
}

func validateDeviceRequest(r *resourcev1.DeviceRequest, at *field.Path) (errs field.ErrorList) {
	switch {
	case r.Exactly == nil && len(r.FirstAvailable) == 0:
		return field.ErrorList{field.Required(at, "exactly one of `exactly` or `firstAvailable` is required")}
	case r.Exactly != nil && len(r.FirstAvailable) > 0:
		return field.ErrorList{field.Invalid(at, nil, "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set")}
	case r.Exactly != nil:
		e, at := r.Exactly, at.Child("exactly")
		return validateAmount(e.DeviceClassName, e.Selectors, e.AllocationMode, e.Count, at)
	}
	list := at.Child("firstAvailable")
	if n := len(r.FirstAvailable); n > resourcev1.FirstAvailableDeviceRequestMaxSize {
		errs = append(errs, field.TooMany(list, n, resourcev1.FirstAvailableDeviceRequestMaxSize))
	}
	names := map[string]bool{}
	for i := range r.FirstAvailable {
		sub, at := &r.FirstAvailable[i], list.Index(i)
		errs = append(errs, rules.Label(sub.Name, at.Child("name"))...)
		if names[sub.Name] {
			errs = append(errs, field.Duplicate(at, sub.Name))
		}
		names[sub.Name] = true
		errs = append(errs, validateAmount(sub.DeviceClassName, sub.Selectors, sub.AllocationMode, sub.Count, at)...)
	}
	return errs
}

func validateAmount(class string, selectors []resourcev1.DeviceSelector, mode resourcev1.DeviceAllocationMode, count int64, at *field.Path) (errs field.ErrorList) {
	if class == "" {
		errs = append(errs, field.Required(at.Child("deviceClassName"), ""))
	} else {
		errs = append(errs, rules.Subdomain(class, at.Child("deviceClassName"))...)
	}
	errs = append(errs, validateSelectors(selectors, at.Child("selectors"))...)
	switch mode {
	case resourcev1.DeviceAllocationModeAll:
		if count != 0 {
			errs = append(errs, field.Invalid(at.Child("count"), count, fmt.Sprintf("must not be specified when allocationMode is '%s'", mode)))
		}
	case resourcev1.DeviceAllocationModeExactCount:
		if count <= 0 {
			errs = append(errs, field.Invalid(at.Child("count"), count, "must be greater than zero"))
		}
	default:
		errs = append(errs, field.NotSupported(at.Child("allocationMode"), mode,
			[]resourcev1.DeviceAllocationMode{resourcev1.DeviceAllocationModeAll, resourcev1.DeviceAllocationModeExactCount}))
	}
	return errs
}

func validateClaimStatus(c, old *resourcev1.ResourceClaim) (errs field.ErrorList) {
	status := field.NewPath("status")
	reserved := status.Child("reservedFor")
	if n := len(c.Status.ReservedFor); n > resourcev1.ResourceClaimReservedForMaxSize {
		errs = append(errs, field.TooMany(reserved, n, resourcev1.ResourceClaimReservedForMaxSize))
	}
	seen := map[string]bool{}
	for i, r := range c.Status.ReservedFor {
		at := reserved.Index(i)
		errs = append(errs, rules.Required(r.Resource, at.Child("resource"), "")...)
		errs = append(errs, rules.Required(r.Name, at.Child("name"), "")...)
		errs = append(errs, rules.Required(string(r.UID), at.Child("uid"), "")...)
		if seen[string(r.UID)] {
			errs = append(errs, field.Duplicate(at.Child("uid"), r.UID))
		}
		seen[string(r.UID)] = true
	}
	if len(c.Status.ReservedFor) > 0 {
		switch {
		case c.Status.Allocation == nil:
			errs = append(errs, field.Forbidden(reserved, "may not be specified when `allocated` is not set"))
		case c.DeletionTimestamp != nil && len(c.Status.ReservedFor) > len(old.Status.ReservedFor):
			errs = append(errs, field.Forbidden(reserved, "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set"))
		}
	}
	// An allocation is made or taken back; to change it would be to move what runs.
	if old.Status.Allocation != nil && c.Status.Allocation != nil {
		errs = append(errs, rules.Immutable(c.Status.Allocation, old.Status.Allocation, status.Child("allocation"))...)
	}
	return errs
}

func validateSlice(s *resourcev1.ResourceSlice) field.ErrorList {
	spec := field.NewPath("spec")
	errs := validateDriver(s.Spec.Driver, spec.Child("driver"))
	errs = append(errs, validatePool(s.Spec.Pool.Name, spec.Child("pool", "name"))...)
	if n := s.Spec.Pool.ResourceSliceCount; n <= 0 {
		errs = append(errs, field.Invalid(spec.Child("pool", "resourceSliceCount"), n, "must be greater than zero"))
	}
	errs = append(errs, rules.Nonnegative(s.Spec.Pool.Generation, spec.Child("pool", "generation"))...)
	var where []string
	if s.Spec.NodeName != nil {
		where = append(where, "`nodeName`")
		if *s.Spec.NodeName == "" {
			errs = append(errs, field.Invalid(spec.Child("nodeName"), *s.Spec.NodeName, "must be either unset or set to a non-empty string"))
		} else {
			errs = append(errs, rules.Subdomain(*s.Spec.NodeName, spec.Child("nodeName"))...)
		}
	}
	if s.Spec.NodeSelector != nil {
		where = append(where, "`nodeSelector`")
		if n := len(s.Spec.NodeSelector.NodeSelectorTerms); n != 1 {
			errs = append(errs, field.Invalid(spec.Child("nodeSelector", "nodeSelectorTerms"), n, "must have exactly one node selector term"))
		}
	}
	if rules.Or(s.Spec.AllNodes, false) {
		where = append(where, "`allNodes`")
	}
	if rules.Or(s.Spec.PerDeviceNodeSelection, false) {
		where = append(where, "`perDeviceNodeSelection`")
	}
	const one = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required"
	switch {
	case len(where) == 0 && len(s.Spec.SharedCounters) == 0:
		errs = append(errs, field.Required(spec, one))
	case len(where) > 1:
		errs = append(errs, field.Invalid(spec, "{"+strings.Join(where, ", ")+"}", one))
	}
	devices := spec.Child("devices")
	if n := len(s.Spec.Devices); n > resourcev1.ResourceSliceMaxDevices {
		errs = append(errs, field.TooMany(devices, n, resourcev1.ResourceSliceMaxDevices))
	}
	names := map[string]bool{}
	for i := range s.Spec.Devices {
		d, at := &s.Spec.Devices[i], devices.Index(i)
		errs = append(errs, rules.Label(d.Name, at.Child("name"))...)
		if names[d.Name] {
			errs = append(errs, field.Duplicate(at, d.Name))
		}
		names[d.Name] = true
		if n := len(d.Attributes) + len(d.Capacity); n > resourcev1.ResourceSliceMaxAttributesAndCapacitiesPerDevice {
			errs = append(errs, field.Invalid(at, n, fmt.Sprintf("the total number of attributes and capacities must not exceed %d", resourcev1.ResourceSliceMaxAttributesAndCapacitiesPerDevice)))
		}
		for name, a := range d.Attributes {
			errs = append(errs, validateAttribute(a, at.Child("attributes").Key(string(name)))...)
		}
		for j := range d.Taints {
			errs = append(errs, validateTaint(&d.Taints[j], at.Child("taints").Index(j))...)
		}
	}
	return errs
}

func validateAttribute(a resourcev1.DeviceAttribute, at *field.Path) field.ErrorList {
	set := 0
	for _, is := range []bool{
		a.IntValue != nil, a.BoolValue != nil, a.StringValue != nil, a.VersionValue != nil,
		len(a.IntValues) > 0, len(a.BoolValues) > 0, len(a.StringValues) > 0, len(a.VersionValues) > 0,
	} {
		if is {
			set++
		}
	}
	switch {
	case set == 0:
		return field.ErrorList{field.Required(at, "exactly one value must be specified")}
	case set > 1:
		return field.ErrorList{field.Invalid(at, a, "exactly one value must be specified")}
	}
	for _, text := range []*string{a.StringValue, a.VersionValue} {
		if text != nil && len(*text) > resourcev1.DeviceAttributeMaxValueLength {
			return field.ErrorList{field.TooLong(at, "", resourcev1.DeviceAttributeMaxValueLength)}
		}
	}
	return nil
}
