// Package resource holds the rules of the API group resource.k8s.io: devices
// (dynamic resource allocation). It allocates nothing.
package resource

import (
	"strings"
	"time"

	resourcev1 "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

// Resources returns the resources of the group.
func Resources() []*api.Resource {
	gv := resourcev1.SchemeGroupVersion
	return []*api.Resource{deviceClasses(gv), taintRules(gv), claims(gv), claimTemplates(gv), slices(gv)}
}

func deviceClasses(gv schema.GroupVersion) *api.Resource {
	r := rules.Cluster[resourcev1.DeviceClass, resourcev1.DeviceClassList](gv, "deviceclasses")
	r.UnconditionalUpdate = true
	r.Columns = []metav1.TableColumnDefinition{rules.Name(), rules.Age()}
	return api.Kind[*resourcev1.DeviceClass]{
		Resource: r,
		Validate: func(c *resourcev1.DeviceClass) field.ErrorList {
			spec := field.NewPath("spec")
			errs := validateSelectors(c.Spec.Selectors, spec.Child("selectors"))
			for i := range c.Spec.Config {
				errs = append(errs, validateConfig(&c.Spec.Config[i].DeviceConfiguration, spec.Child("config").Index(i))...)
			}
			return errs
		},
		SpecChanged: func(c, old *resourcev1.DeviceClass) bool { return !rules.Same(c.Spec, old.Spec) },
		Row:         func(c *resourcev1.DeviceClass) []any { return []any{c.Name, rules.Created(c)} },
	}.Erase()
}

func taintRules(gv schema.GroupVersion) *api.Resource {
	r := rules.Cluster[resourcev1.DeviceTaintRule, resourcev1.DeviceTaintRuleList](gv, "devicetaintrules")
	r.UnconditionalUpdate = true
	r.Columns = []metav1.TableColumnDefinition{rules.Name(), rules.Age()}
	return api.Kind[*resourcev1.DeviceTaintRule]{
		Resource: r,
		Default:  func(t *resourcev1.DeviceTaintRule) { defaultTaint(&t.Spec.Taint) },
		Validate: func(t *resourcev1.DeviceTaintRule) field.ErrorList {
			spec := field.NewPath("spec")
			var errs field.ErrorList
			if s := t.Spec.DeviceSelector; s != nil {
				at := spec.Child("deviceSelector")
				if s.Driver != nil {
					errs = append(errs, validateDriver(*s.Driver, at.Child("driver"))...)
				}
				if s.Pool != nil {
					errs = append(errs, validatePool(*s.Pool, at.Child("pool"))...)
				}
				if s.Device != nil {
					errs = append(errs, rules.Label(*s.Device, at.Child("device"))...)
				}
			}
			return append(errs, validateTaint(&t.Spec.Taint, spec.Child("taint"))...)
		},
		CopyStatus: func(dst, src *resourcev1.DeviceTaintRule) { dst.Status = *src.Status.DeepCopy() },
		ValidateStatusUpdate: func(t, _ *resourcev1.DeviceTaintRule) field.ErrorList {
			path := field.NewPath("status", "conditions")
			errs := rules.Conditions(t.Status.Conditions, path)
			if n := len(t.Status.Conditions); n > resourcev1.DeviceTaintRuleStatusMaxConditions {
				errs = append(errs, field.TooMany(path, n, resourcev1.DeviceTaintRuleStatusMaxConditions))
			}
			return errs
		},
		SpecChanged: func(t, old *resourcev1.DeviceTaintRule) bool { return !rules.Same(t.Spec, old.Spec) },
		Row:         func(t *resourcev1.DeviceTaintRule) []any { return []any{t.Name, rules.Created(t)} },
	}.Erase()
}

func claims(gv schema.GroupVersion) *api.Resource {
	r := rules.Namespaced[resourcev1.ResourceClaim, resourcev1.ResourceClaimList](gv, "resourceclaims")
	r.UnconditionalUpdate = true
	r.Columns = []metav1.TableColumnDefinition{
		rules.Name(), rules.Text("State", "What has become of the claim."), rules.Age(),
	}
	return api.Kind[*resourcev1.ResourceClaim]{
		Resource: r,
		Default:  func(c *resourcev1.ResourceClaim) { defaultClaim(&c.Spec) },
		Validate: func(c *resourcev1.ResourceClaim) field.ErrorList {
			return validateClaim(&c.Spec, field.NewPath("spec"))
		},
		ValidateUpdate: func(c, old *resourcev1.ResourceClaim) field.ErrorList {
			return rules.Immutable(c.Spec, old.Spec, field.NewPath("spec"))
		},
		CopyStatus:           func(dst, src *resourcev1.ResourceClaim) { dst.Status = *src.Status.DeepCopy() },
		ValidateStatusUpdate: validateClaimStatus,
		Row: func(c *resourcev1.ResourceClaim) []any {
			var states []string
			if c.DeletionTimestamp != nil {
				states = append(states, "deleted")
			}
			if c.Status.Allocation != nil {
				states = append(states, "allocated")
			} else if c.DeletionTimestamp == nil {
				states = append(states, "pending")
			}
			if len(c.Status.ReservedFor) > 0 {
				states = append(states, "reserved")
			}
			return []any{c.Name, strings.Join(states, ","), rules.Created(c)}
		},
	}.Erase()
}

func claimTemplates(gv schema.GroupVersion) *api.Resource {
	r := rules.Namespaced[resourcev1.ResourceClaimTemplate, resourcev1.ResourceClaimTemplateList](gv, "resourceclaimtemplates")
	r.UnconditionalUpdate = true
	r.Columns = []metav1.TableColumnDefinition{rules.Name(), rules.Age()}
	return api.Kind[*resourcev1.ResourceClaimTemplate]{
		Resource: r,
		Default:  func(t *resourcev1.ResourceClaimTemplate) { defaultClaim(&t.Spec.Spec) },
		Validate: func(t *resourcev1.ResourceClaimTemplate) field.ErrorList {
			return validateClaim(&t.Spec.Spec, field.NewPath("spec", "spec"))
		},
		ValidateUpdate: func(t, old *resourcev1.ResourceClaimTemplate) field.ErrorList {
			return rules.Immutable(t.Spec, old.Spec, field.NewPath("spec"))
		},
		Row: func(t *resourcev1.ResourceClaimTemplate) []any { return []any{t.Name, rules.Created(t)} },
	}.Erase()
}

func slices(gv schema.GroupVersion) *api.Resource {
	r := rules.Cluster[resourcev1.ResourceSlice, resourcev1.ResourceSliceList](gv, "resourceslices")
	r.UnconditionalUpdate = true
	r.FieldLabels = []string{resourcev1.ResourceSliceSelectorNodeName, resourcev1.ResourceSliceSelectorDriver, resourcev1.ResourceSliceSelectorPoolName}
	r.Columns = []metav1.TableColumnDefinition{
		rules.Name(),
		rules.Text("Node", "The node that has the devices."),
		rules.Text("Driver", "The driver of the devices."),
		rules.Text("Pool", "The pool of the devices."),
		rules.Age(),
	}
	return api.Kind[*resourcev1.ResourceSlice]{
		Resource: r,
		Default: func(s *resourcev1.ResourceSlice) {
			for i := range s.Spec.Devices {
				for j := range s.Spec.Devices[i].Taints {
					defaultTaint(&s.Spec.Devices[i].Taints[j])
				}
			}
		},
		Validate: validateSlice,
		ValidateUpdate: func(s, old *resourcev1.ResourceSlice) field.ErrorList {
			spec := field.NewPath("spec")
			errs := validateSlice(s)
			errs = append(errs, rules.Immutable(s.Spec.Driver, old.Spec.Driver, spec.Child("driver"))...)
			errs = append(errs, rules.Immutable(s.Spec.Pool.Name, old.Spec.Pool.Name, spec.Child("pool", "name"))...)
			return append(errs, rules.Immutable(s.Spec.NodeName, old.Spec.NodeName, spec.Child("nodeName"))...)
		},
		SpecChanged: func(s, old *resourcev1.ResourceSlice) bool { return !rules.Same(s.Spec, old.Spec) },
		Fields: func(s *resourcev1.ResourceSlice) fields.Set {
			return fields.Set{
				resourcev1.ResourceSliceSelectorNodeName: rules.Or(s.Spec.NodeName, ""),
				resourcev1.ResourceSliceSelectorDriver:   s.Spec.Driver,
				resourcev1.ResourceSliceSelectorPoolName: s.Spec.Pool.Name,
			}
		},
		Row: func(s *resourcev1.ResourceSlice) []any {
			return []any{s.Name, rules.Or(s.Spec.NodeName, rules.Unset), s.Spec.Driver, s.Spec.Pool.Name, rules.Created(s)}
		},
	}.Erase()
}

// defaultTaint says since when a taint holds: from then on its tolerations' time counts.
func defaultTaint(t *resourcev1.DeviceTaint) {
	if t.TimeAdded == nil {
		now := metav1.NewTime(time.Now().Truncate(time.Second))
		t.TimeAdded = &now
	}
}

func defaultClaim(s *resourcev1.ResourceClaimSpec) {
	amount := func(mode *resourcev1.DeviceAllocationMode, count *int64, tolerations []resourcev1.DeviceToleration) {
		rules.Fill(mode, resourcev1.DeviceAllocationModeExactCount)
		if *mode == resourcev1.DeviceAllocationModeExactCount && *count == 0 {
			*count = 1
		}
		for i := range tolerations {
			rules.Fill(&tolerations[i].Operator, resourcev1.DeviceTolerationOpEqual)
		}
	}
	for i := range s.Devices.Requests {
		r := &s.Devices.Requests[i]
		if e := r.Exactly; e != nil {
			amount(&e.AllocationMode, &e.Count, e.Tolerations)
		}
		for j := range r.FirstAvailable {
			sub := &r.FirstAvailable[j]
			amount(&sub.AllocationMode, &sub.Count, sub.Tolerations)
		}
	}
}
