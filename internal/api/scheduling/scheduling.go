// Package scheduling holds the rules of the API group scheduling.k8s.io:
// priority classes. It does not schedule.
package scheduling

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

const (
	// HighestUserPriority is the highest value of classes that users make.
	HighestUserPriority = int32(1000000000)
	systemPrefix        = "system-"
)

// system holds the values of the classes that every cluster has.
func system(name string) (int32, bool) {
	switch name {
	case "system-cluster-critical":
		return 2 * HighestUserPriority, true
	case "system-node-critical":
		return 2*HighestUserPriority + 1000, true
	}
	return 0, false
}

// Resources returns the resources of the group.
func Resources() []*api.Resource {
	r := rules.Cluster[schedulingv1.PriorityClass, schedulingv1.PriorityClassList](schedulingv1.SchemeGroupVersion, "priorityclasses", "pc")
	r.UnconditionalUpdate = true
	r.Columns = []metav1.TableColumnDefinition{
		rules.Name(),
		rules.Integer("Value", "Represents the integer value of this priority class."),
		rules.Boolean("Global-Default", "Whether this class is the default for pods without one."),
		rules.Age(),
		rules.Text("PreemptionPolicy", "Whether pods of the class may evict pods of lower priority."),
	}
	return []*api.Resource{api.Kind[*schedulingv1.PriorityClass]{
		Resource: r,
		Default: func(c *schedulingv1.PriorityClass) {
			rules.Refer(&c.PreemptionPolicy, corev1.PreemptLowerPriority)
		},
		Validate: validateClass,
		ValidateUpdate: func(c, old *schedulingv1.PriorityClass) field.ErrorList {
			errs := validateClass(c)
			if c.Value != old.Value {
				errs = append(errs, field.Forbidden(field.NewPath("value"), "may not be changed in an update."))
			}
			return append(errs, rules.Immutable(c.PreemptionPolicy, old.PreemptionPolicy, field.NewPath("preemptionPolicy"))...)
		},
		// A class has the generation 1 for all its life.
		SpecChanged: func(_, _ *schedulingv1.PriorityClass) bool { return false },
		Row: func(c *schedulingv1.PriorityClass) []any {
			return []any{c.Name, int64(c.Value), c.GlobalDefault, rules.Created(c), string(rules.Or(c.PreemptionPolicy, corev1.PreemptLowerPriority))}
		},
	}.Erase()}
}

func validateClass(c *schedulingv1.PriorityClass) (errs field.ErrorList) {
	if strings.HasPrefix(c.Name, systemPrefix) {
		value, known := system(c.Name)
		switch {
		case !known:
			errs = append(errs, field.Forbidden(field.NewPath("metadata", "name"),
				"priority class names with '"+systemPrefix+"' prefix are reserved for system use only. error: "+c.Name+" is not a known system priority class"))
		case c.Value != value || c.GlobalDefault:
			errs = append(errs, field.Forbidden(field.NewPath("metadata", "name"),
				fmt.Sprintf("priority class names with '%s' prefix are reserved for system use only. error: value of %s PriorityClass must be %d", systemPrefix, c.Name, value)))
		}
	} else if c.Value > HighestUserPriority {
		errs = append(errs, field.Forbidden(field.NewPath("value"), fmt.Sprintf("maximum allowed value of a user defined priority is %v", HighestUserPriority)))
	}
	if c.PreemptionPolicy != nil {
		errs = append(errs, rules.OneOf(*c.PreemptionPolicy, field.NewPath("preemptionPolicy"), "", corev1.PreemptLowerPriority, corev1.PreemptNever)...)
	}
	return errs
}
