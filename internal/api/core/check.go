package core

import (
	"path"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/intstr"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

const (
	notNegative = "must be greater than or equal to 0"
	notPositive = "must be greater than zero"
	fileMode    = "must be a number between 0 and 0777 (octal), both inclusive"
)

// invalid makes an error of each message.
func invalid(p *field.Path, v any, messages []string) (errs field.ErrorList) {
	for _, m := range messages {
		errs = append(errs, field.Invalid(p, v, m))
	}
	return errs
}

func label(p *field.Path, v string) field.ErrorList {
	return invalid(p, v, utilvalidation.IsDNS1123Label(v))
}

func subdomain(p *field.Path, v string) field.ErrorList {
	return invalid(p, v, utilvalidation.IsDNS1123Subdomain(v))
}

func qualified(p *field.Path, v string) field.ErrorList {
	return invalid(p, v, utilvalidation.IsQualifiedName(v))
}

func dataKey(p *field.Path, key string) field.ErrorList {
	return invalid(p, key, utilvalidation.IsConfigMapKey(key))
}

func required(p *field.Path, v string) field.ErrorList {
	if v == "" {
		return field.ErrorList{field.Required(p, "")}
	}
	return nil
}

// oneOf refuses a value that is not allowed; an empty one is missing.
func oneOf[T ~string](p *field.Path, v T, allowed ...T) field.ErrorList {
	if v == "" && !slices.Contains(allowed, v) {
		return field.ErrorList{field.Required(p, "")}
	}
	return among(p, v, allowed...)
}

// among refuses a value that is not allowed.
func among[T ~string](p *field.Path, v T, allowed ...T) field.ErrorList {
	if slices.Contains(allowed, v) {
		return nil
	}
	return field.ErrorList{field.NotSupported(p, v, allowed)}
}

func amongPointer[T ~string](p *field.Path, v *T, allowed ...T) field.ErrorList {
	if v == nil {
		return nil
	}
	return among(p, *v, allowed...)
}

func nonnegative[N int32 | int64](p *field.Path, n N) field.ErrorList {
	if n < 0 {
		return field.ErrorList{field.Invalid(p, n, notNegative)}
	}
	return nil
}

func mode(p *field.Path, m *int32) field.ErrorList {
	if m != nil && (*m < 0 || *m > 0o777) {
		return field.ErrorList{field.Invalid(p, *m, fileMode)}
	}
	return nil
}

func port(p *field.Path, n int32) field.ErrorList {
	return invalid(p, n, utilvalidation.IsValidPortNum(int(n)))
}

func portNumberOrName(p *field.Path, v intstr.IntOrString) field.ErrorList {
	if v.Type == intstr.Int {
		return invalid(p, v.IntValue(), utilvalidation.IsValidPortNum(v.IntValue()))
	}
	return invalid(p, v.StrVal, utilvalidation.IsValidPortName(v.StrVal))
}

// noBacksteps refuses paths that climb: they could leave the volume they are in.
func noBacksteps(p *field.Path, v string) field.ErrorList {
	if slices.Contains(strings.Split(v, "/"), "..") {
		return field.ErrorList{field.Invalid(p, v, "must not contain '..'")}
	}
	return nil
}

// descending accepts relative paths that stay below where they start.
func descending(p *field.Path, v string) (errs field.ErrorList) {
	if path.IsAbs(v) {
		errs = append(errs, field.Invalid(p, v, "must be a relative path"))
	}
	return append(errs, noBacksteps(p, v)...)
}

// nonReserved is descending, and keeps clear of the names that the kubelet's
// atomic writer uses in a volume.
func nonReserved(p *field.Path, v string) (errs field.ErrorList) {
	errs = descending(p, v)
	if strings.HasPrefix(v, "..") && !strings.HasPrefix(v, "../") && v != ".." {
		errs = append(errs, field.Invalid(p, v, "must not start with '..'"))
	}
	return errs
}
