package core

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/fields"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

// The labels that say which roles a node has.
const (
	rolePrefix = "node-role.kubernetes.io/"
	roleLabel  = "kubernetes.io/role"
)

func node() *api.Resource {
	k := api.Kind[*corev1.Node]{Resource: rules.Cluster[corev1.Node, corev1.NodeList](gv, "nodes", "no")}
	k.Resource.UnconditionalUpdate = true
	k.Resource.Subresources = []string{"proxy"}
	// Allocatable is what is left of capacity for pods; whoever reserves nothing leaves it out.
	k.Default = func(o *corev1.Node) {
		// podCIDR is the first of podCIDRs; a writer may send either.
		switch s := &o.Spec; {
		case s.PodCIDR != "" && (len(s.PodCIDRs) == 0 || s.PodCIDRs[0] != s.PodCIDR):
			s.PodCIDRs = []string{s.PodCIDR}
		case s.PodCIDR == "" && len(s.PodCIDRs) > 0:
			s.PodCIDR = s.PodCIDRs[0]
		}
		if o.Status.Allocatable == nil {
			fillList(&o.Status.Allocatable, o.Status.Capacity)
		}
	}
	// Configuration through ConfigMaps is gone from Kubernetes; its fields stay empty.
	k.PrepareForCreate = func(o *corev1.Node) { o.Spec.ConfigSource, o.Status.Config = nil, nil }
	k.PrepareForUpdate = func(o, old *corev1.Node) {
		if old.Spec.ConfigSource == nil {
			o.Spec.ConfigSource = nil
		}
	}
	k.Validate = validateNode
	k.ValidateUpdate = func(o, old *corev1.Node) field.ErrorList {
		return append(validateNode(o), validateNodeUpdate(o, old)...)
	}
	k.CopyStatus = func(dst, src *corev1.Node) { src.Status.DeepCopyInto(&dst.Status) }
	k.ValidateStatusUpdate = func(o, old *corev1.Node) field.ErrorList {
		errs := validateNodeTaints(o)
		errs = append(errs, validateNodeStatus(o)...)
		return append(errs, validateNodeUpdate(o, old)...)
	}
	k.Warnings = func(o *corev1.Node) (warnings []string) {
		if o.Spec.ConfigSource != nil {
			warnings = append(warnings, "spec.configSource: the feature is removed")
		}
		if o.Spec.DoNotUseExternalID != "" {
			warnings = append(warnings, "spec.externalID: this field is deprecated, and is unused by Kubernetes")
		}
		for i, cidr := range o.Spec.PodCIDRs {
			warnings = append(warnings, utilvalidation.GetWarningsForCIDR(field.NewPath("spec", "podCIDRs").Index(i), cidr)...)
		}
		return warnings
	}
	k.Fields = func(o *corev1.Node) fields.Set {
		return fields.Set{"spec.unschedulable": strconv.FormatBool(o.Spec.Unschedulable)}
	}
	k.Resource.FieldLabels = []string{"spec.unschedulable"}
	info, status := corev1.NodeSystemInfo{}.SwaggerDoc(), corev1.NodeStatus{}.SwaggerDoc()
	k.Resource.Columns = []metav1.TableColumnDefinition{
		rules.Name(), rules.Text("Status", "The status of the node"), rules.Text("Roles", "The roles of the node"), rules.Age(),
		rules.Text("Version", info["kubeletVersion"]), rules.Wide("Internal-IP", status["addresses"]), rules.Wide("External-IP", status["addresses"]),
		rules.Wide("OS-Image", info["osImage"]), rules.Wide("Kernel-Version", info["kernelVersion"]), rules.Wide("Container-Runtime", info["containerRuntimeVersion"]),
	}
	k.Row = nodeRow
	return k.Erase()
}

func validateNode(o *corev1.Node) field.ErrorList {
	errs := validateNodeTaints(o)
	errs = append(errs, validateNodeStatus(o)...)
	if swap := o.Status.NodeInfo.Swap; swap != nil && swap.Capacity != nil && *swap.Capacity <= 0 {
		errs = append(errs, field.Invalid(field.NewPath("metadata", "nodeSwapStatus", "capacity"), *swap.Capacity, notPositive))
	}
	p := field.NewPath("spec", "podCIDRs")
	six := map[bool]bool{}
	for i, cidr := range o.Spec.PodCIDRs {
		errs = append(errs, utilvalidation.IsValidCIDRForLegacyField(p.Index(i), cidr, true, nil)...)
		if prefix, err := netip.ParsePrefix(cidr); err == nil {
			six[prefix.Addr().Is6()] = true
		}
	}
	if n := len(o.Spec.PodCIDRs); n > 2 || n == 2 && len(six) < 2 {
		errs = append(errs, field.Invalid(p, o.Spec.PodCIDRs, "may specify no more than one CIDR for each IP family"))
	}
	return errs
}

// validateNodeTaints names the taints below metadata, where Kubernetes' messages have them.
func validateNodeTaints(o *corev1.Node) (errs field.ErrorList) {
	for i, t := range o.Spec.Taints {
		p := field.NewPath("metadata", "taints").Index(i)
		errs = append(errs, metav1validation.ValidateLabelName(t.Key, p.Child("key"))...)
		if msgs := utilvalidation.IsValidLabelValue(t.Value); len(msgs) > 0 {
			errs = append(errs, field.Invalid(p.Child("value"), t.Value, strings.Join(msgs, ";")))
		}
		errs = append(errs, taintEffect(t.Effect, p.Child("effect"))...)
		if slices.ContainsFunc(o.Spec.Taints[:i], func(b corev1.Taint) bool { return b.Key == t.Key && b.Effect == t.Effect }) {
			twice := field.Duplicate(p, t)
			twice.Detail = "taints must be unique by key and effect pair"
			errs = append(errs, twice)
		}
	}
	return errs
}

func validateNodeStatus(o *corev1.Node) (errs field.ErrorList) {
	p := field.NewPath("status")
	for _, list := range []struct {
		name string
		list corev1.ResourceList
	}{{"capacity", o.Status.Capacity}, {"allocatable", o.Status.Allocatable}} {
		for _, name := range sorted(list.list) {
			errs = append(errs, quantity(name, list.list[name], p.Child(list.name, string(name)))...)
		}
	}
	for i, name := range o.Status.DeclaredFeatures {
		fp := p.Child("declaredFeatures").Index(i)
		if !validFeature(name) {
			errs = append(errs, field.Invalid(fp, name, fmt.Sprintf("invalid feature name %q: must start with an UpperCamelCase segment, with subsequent segments separated by '/' (e.g., MyFeature or MyFeature/mySubFeature), and contain only alphanumeric characters and slashes", name)))
		}
		if i == 0 {
			continue
		}
		if before := o.Status.DeclaredFeatures[i-1]; name == before {
			errs = append(errs, field.Duplicate(fp, name))
		} else if name < before {
			errs = append(errs, field.Invalid(fp, name, "list must be sorted alphabetically"))
		}
	}
	return errs
}

// validFeature accepts names as MyFeature/mySubFeature.
func validFeature(name string) bool {
	for i, segment := range strings.Split(name, "/") {
		if segment == "" || i == 0 && (segment[0] < 'A' || segment[0] > 'Z') || strings.Trim(segment[:1], "0123456789") == "" {
			return false
		}
		for _, r := range segment {
			if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') {
				return false
			}
		}
	}
	return true
}

// validateNodeUpdate: what a node was given by its cloud or by the controllers stays.
func validateNodeUpdate(o, old *corev1.Node) (errs field.ErrorList) {
	spec := field.NewPath("spec")
	for i, a := range o.Status.Addresses {
		if slices.Contains(o.Status.Addresses[:i], a) {
			errs = append(errs, field.Duplicate(field.NewPath("status", "addresses").Index(i), a))
		}
	}
	if len(old.Spec.PodCIDRs) > 0 && !slices.Equal(o.Spec.PodCIDRs, old.Spec.PodCIDRs) {
		errs = append(errs, field.Forbidden(spec.Child("podCIDRs"), `node updates may not change podCIDR except from "" to valid`))
	}
	switch was, now := old.Spec.ProviderID, o.Spec.ProviderID; {
	case was == "" || was == now:
	case now == "":
		errs = append(errs, field.Invalid(spec.Child("providerID"), nil, "field cannot be cleared once set"))
	default:
		errs = append(errs, field.Invalid(spec.Child("providerID"), nil, "field cannot be modified once set"))
	}
	if o.Spec.DoNotUseExternalID != old.Spec.DoNotUseExternalID {
		errs = append(errs, field.Forbidden(spec.Child("externalID"), "may not be updated"))
	}
	return errs
}

func nodeRow(o *corev1.Node) []any {
	status := "Unknown"
	for i := range o.Status.Conditions {
		if c := &o.Status.Conditions[i]; c.Type == corev1.NodeReady {
			status = "NotReady"
			if c.Status == corev1.ConditionTrue {
				status = "Ready"
			}
		}
	}
	if o.Spec.Unschedulable {
		status += ",SchedulingDisabled"
	}
	var roles []string
	for key, value := range o.Labels {
		if role, ok := strings.CutPrefix(key, rolePrefix); ok && role != "" {
			roles = append(roles, role)
		} else if key == roleLabel && value != "" {
			roles = append(roles, value)
		}
	}
	slices.Sort(roles)
	address := func(kind corev1.NodeAddressType) string {
		for _, a := range o.Status.Addresses {
			if a.Type == kind {
				return a.Address
			}
		}
		return rules.None
	}
	known := func(s string) string {
		if s == "" {
			return rules.Unknown
		}
		return s
	}
	i := &o.Status.NodeInfo
	kernel := known(i.KernelVersion)
	if i.Architecture != "" {
		kernel += " (" + i.Architecture + ")"
	}
	return []any{o.Name, status, orNone(strings.Join(slices.Compact(roles), ",")), rules.Created(o), i.KubeletVersion,
		address(corev1.NodeInternalIP), address(corev1.NodeExternalIP), known(i.OSImage), kernel, known(i.ContainerRuntimeVersion)}
}
