package rules

import (
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// SelectorText is a selector as the scale subresource shows it. A selector that
// cannot be parsed, which validation keeps out, shows as none.
func SelectorText(s *metav1.LabelSelector) string {
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return ""
	}
	return selector.String()
}

// SelectsTemplate refuses a pod template whose labels its owner's selector does not match.
func SelectsTemplate(s labels.Selector, templateLabels map[string]string, template *field.Path) field.ErrorList {
	if s.Matches(labels.Set(templateLabels)) {
		return nil
	}
	return field.ErrorList{field.Invalid(template.Child("metadata", "labels"), templateLabels, "`selector` does not match template `labels`")}
}

// Empty reports whether a selector selects everything because it has no terms.
func Empty(s *metav1.LabelSelector) bool { return len(s.MatchLabels)+len(s.MatchExpressions) == 0 }

// PodNameWarnings warns of an object name that becomes part of host names and is no DNS label.
func PodNameWarnings(obj metav1.Object) []string {
	if msgs := validation.IsDNS1123Label(obj.GetName()); len(msgs) > 0 {
		return []string{fmt.Sprintf("metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended: %v", msgs)}
	}
	return nil
}

// Count is a number of a status with its field name.
type Count struct {
	Name  string
	Value int32
}

// Counts refuses negative numbers in a status.
func Counts(status *field.Path, counts ...Count) (errs field.ErrorList) {
	for _, c := range counts {
		errs = append(errs, Nonnegative(c.Value, status.Child(c.Name))...)
	}
	return errs
}

// AtMost refuses a count of a status that is greater than another one.
func AtMost(status *field.Path, c Count, limit int32, message string) field.ErrorList {
	if c.Value > limit {
		return field.ErrorList{field.Invalid(status.Child(c.Name), c.Value, message)}
	}
	return nil
}

// CollisionCount refuses a collision count that goes back: names would be tried again.
func CollisionCount(now, was *int32, status *field.Path) field.ErrorList {
	if was == nil {
		return nil
	}
	if n := Or(now, 0); now == nil || n < *was {
		return field.ErrorList{field.Invalid(status.Child("collisionCount"), n, "cannot be decremented")}
	}
	return nil
}
