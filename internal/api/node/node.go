// Package node holds the rules of the API group node.k8s.io: runtime classes.
package node

import (
	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

// Resources returns the resources of the group.
func Resources() []*api.Resource {
	r := rules.Cluster[nodev1.RuntimeClass, nodev1.RuntimeClassList](nodev1.SchemeGroupVersion, "runtimeclasses")
	r.Columns = []metav1.TableColumnDefinition{
		rules.Name(),
		rules.Text("Handler", "The configuration of the container runtime that runs the pods."),
		rules.Age(),
	}
	return []*api.Resource{api.Kind[*nodev1.RuntimeClass]{
		Resource: r,
		Default: func(c *nodev1.RuntimeClass) {
			if c.Scheduling == nil {
				return
			}
			for i := range c.Scheduling.Tolerations {
				t := &c.Scheduling.Tolerations[i]
				rules.Fill(&t.Operator, corev1.TolerationOpEqual)
			}
		},
		Validate: validateClass,
		ValidateUpdate: func(c, old *nodev1.RuntimeClass) field.ErrorList {
			return append(validateClass(c), rules.Immutable(c.Handler, old.Handler, field.NewPath("handler"))...)
		},
		Row: func(c *nodev1.RuntimeClass) []any { return []any{c.Name, c.Handler, rules.Created(c)} },
	}.Erase()}
}

func validateClass(c *nodev1.RuntimeClass) field.ErrorList {
	errs := rules.Label(c.Handler, field.NewPath("handler"))
	if o := c.Overhead; o != nil {
		for name, quantity := range o.PodFixed {
			if quantity.Sign() < 0 {
				errs = append(errs, field.Invalid(field.NewPath("overhead", "podFixed").Key(string(name)), quantity.String(), "must be greater than or equal to 0"))
			}
		}
	}
	if s := c.Scheduling; s != nil {
		at := field.NewPath("scheduling")
		errs = append(errs, metavalidation.ValidateLabels(s.NodeSelector, at.Child("nodeSelector"))...)
		for i := range s.Tolerations {
			errs = append(errs, validateToleration(&s.Tolerations[i], at.Child("tolerations").Index(i))...)
			for j := range i {
				if rules.Same(s.Tolerations[i], s.Tolerations[j]) {
					errs = append(errs, field.Duplicate(at.Child("tolerations").Index(i), s.Tolerations[i]))
					break
				}
			}
		}
	}
	return errs
}

func validateToleration(t *corev1.Toleration, at *field.Path) (errs field.ErrorList) {
	if t.Key != "" {
		errs = append(errs, metavalidation.ValidateLabelName(t.Key, at.Child("key"))...)
	} else if t.Operator != corev1.TolerationOpExists {
		errs = append(errs, field.Invalid(at.Child("operator"), t.Operator,
			"operator must be Exists when `key` is empty, which means \"match all values and all keys\""))
	}
	if t.TolerationSeconds != nil && t.Effect != corev1.TaintEffectNoExecute {
		errs = append(errs, field.Invalid(at.Child("effect"), t.Effect, "effect must be 'NoExecute' when `tolerationSeconds` is set"))
	}
	switch t.Operator {
	case corev1.TolerationOpEqual, "":
	case corev1.TolerationOpExists:
		if t.Value != "" {
			errs = append(errs, field.Invalid(at.Child("operator"), t, "value must be empty when `operator` is 'Exists'"))
		}
	default:
		errs = append(errs, field.NotSupported(at.Child("operator"), t.Operator, []corev1.TolerationOperator{corev1.TolerationOpEqual, corev1.TolerationOpExists}))
	}
	switch t.Effect {
	case "", corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute:
	default:
		errs = append(errs, field.NotSupported(at.Child("effect"), t.Effect,
			[]corev1.TaintEffect{corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute}))
	}
	return errs
}
