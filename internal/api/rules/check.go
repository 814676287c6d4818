package rules

import (
	"slices"
	"strconv"
	"strings"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func itoa(n int) string { return strconv.Itoa(n) }

// Same reports whether two values mean the same.
func Same(a, b any) bool { return apiequality.Semantic.DeepEqual(a, b) }

// Immutable refuses a field that changed.
func Immutable(now, was any, path *field.Path) field.ErrorList {
	return apivalidation.ValidateImmutableField(now, was, path)
}

// Nonnegative refuses numbers below zero.
func Nonnegative[N ~int | ~int32 | ~int64](n N, path *field.Path) field.ErrorList {
	return apivalidation.ValidateNonnegativeField(int64(n), path)
}

// NonnegativePointer is Nonnegative for an optional number.
func NonnegativePointer[N ~int32 | ~int64](n *N, path *field.Path) field.ErrorList {
	if n == nil {
		return nil
	}
	return Nonnegative(*n, path)
}

// Required refuses an empty string.
func Required(value string, path *field.Path, detail string) field.ErrorList {
	if value == "" {
		return field.ErrorList{field.Required(path, detail)}
	}
	return nil
}

// OneOf refuses a value that is not among the supported ones; an empty one is required.
func OneOf[S ~string](value S, path *field.Path, detail string, supported ...S) field.ErrorList {
	switch {
	case value == "":
		return field.ErrorList{field.Required(path, detail)}
	case !slices.Contains(supported, value):
		return field.ErrorList{field.NotSupported(path, value, supported)}
	}
	return nil
}

// Messages makes an Invalid error of each message.
func Messages(value any, path *field.Path, messages []string) (errs field.ErrorList) {
	for _, m := range messages {
		errs = append(errs, field.Invalid(path, value, m))
	}
	return errs
}

// Subdomain and Label check names by DNS's rules.
func Subdomain(value string, path *field.Path) field.ErrorList {
	return Messages(value, path, validation.IsDNS1123Subdomain(value))
}

func Label(value string, path *field.Path) field.ErrorList {
	return Messages(value, path, validation.IsDNS1123Label(value))
}

// Selector checks a label selector.
func Selector(s *metav1.LabelSelector, path *field.Path) field.ErrorList {
	return metavalidation.ValidateLabelSelector(s, metavalidation.LabelSelectorValidationOptions{}, path)
}

// Conditions checks a list of conditions.
func Conditions(c []metav1.Condition, path *field.Path) field.ErrorList {
	return metavalidation.ValidateConditions(c, path)
}

// IntOrPercent checks a number of pods or a percentage of them.
func IntOrPercent(v intstr.IntOrString, path *field.Path) field.ErrorList {
	switch v.Type {
	case intstr.String:
		return Messages(v, path, validation.IsValidPercent(v.StrVal))
	case intstr.Int:
		return Nonnegative(v.IntVal, path)
	}
	return field.ErrorList{field.Invalid(path, v, "must be an integer or percentage (e.g '5%%')")}
}

// AtMostAll refuses percentages above 100.
func AtMostAll(v intstr.IntOrString, path *field.Path) field.ErrorList {
	if percent, ok := Percent(v); ok && percent > 100 {
		return field.ErrorList{field.Invalid(path, v, "must not be greater than 100%")}
	}
	return nil
}

// Percent returns the percentage that v is, if it is one.
func Percent(v intstr.IntOrString) (int, bool) {
	if v.Type != intstr.String || len(validation.IsValidPercent(v.StrVal)) > 0 {
		return 0, false
	}
	n, err := strconv.Atoi(strings.TrimSuffix(v.StrVal, "%"))
	return n, err == nil
}

// IsZero reports whether v is a number or percentage of nothing.
func IsZero(v *intstr.IntOrString) bool {
	if v == nil {
		return true
	}
	if percent, ok := Percent(*v); ok {
		return percent == 0
	}
	return v.Type == intstr.Int && v.IntVal == 0
}

// Refer sets p to a pointer to value when it is nil: how a default is given to an optional field.
func Refer[T any](p **T, value T) {
	if *p == nil {
		*p = &value
	}
}

// Fill sets an empty string to its default.
func Fill[S ~string](s *S, value S) {
	if *s == "" {
		*s = value
	}
}
