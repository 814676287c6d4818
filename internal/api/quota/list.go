package quota

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Add returns a + b, name by name.
func Add(a, b corev1.ResourceList) corev1.ResourceList {
	out := make(corev1.ResourceList, len(a))
	for name, q := range a {
		out[name] = q.DeepCopy()
	}
	addTo(out, b)
	return out
}

func addTo(sum, more corev1.ResourceList) {
	for name, q := range more {
		have, ok := sum[name]
		if !ok {
			sum[name] = q.DeepCopy()
			continue
		}
		have.Add(q)
		sum[name] = have
	}
}

// Subtract returns a - b for the names of a, never below zero.
func Subtract(a, b corev1.ResourceList) corev1.ResourceList {
	out := make(corev1.ResourceList, len(a))
	for name, q := range a {
		q = q.DeepCopy()
		if other, ok := b[name]; ok {
			q.Sub(other)
		}
		if q.Sign() < 0 {
			q = resource.Quantity{Format: q.Format}
		}
		out[name] = q
	}
	return out
}

// Equal reports whether two lists have the same names and amounts.
func Equal(a, b corev1.ResourceList) bool {
	if len(a) != len(b) {
		return false
	}
	for name, q := range a {
		if other, ok := b[name]; !ok || q.Cmp(other) != 0 {
			return false
		}
	}
	return true
}

// only returns the amounts that have a name in both lists, zeros left out.
func only(list, names corev1.ResourceList) corev1.ResourceList {
	out := corev1.ResourceList{}
	for name, q := range list {
		if _, ok := names[name]; ok && !q.IsZero() {
			out[name] = q
		}
	}
	return out
}

func pick(list corev1.ResourceList, names []corev1.ResourceName) corev1.ResourceList {
	out := make(corev1.ResourceList, len(names))
	for _, name := range names {
		if q, ok := list[name]; ok {
			out[name] = q
		}
	}
	return out
}

func namesOf(list corev1.ResourceList) []corev1.ResourceName {
	out := make([]corev1.ResourceName, 0, len(list))
	for name := range list {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// text writes a list as the errors of quotas show it: sorted, name=amount.
func text(list corev1.ResourceList) string {
	parts := make([]string, 0, len(list))
	for _, name := range namesOf(list) {
		q := list[name]
		parts = append(parts, string(name)+"="+q.String())
	}
	return strings.Join(parts, ",")
}

func joined(names []corev1.ResourceName) string {
	names = slices.Sorted(slices.Values(names))
	parts := make([]string, len(names))
	for i, name := range names {
		parts[i] = string(name)
	}
	return strings.Join(parts, ",")
}

func one() resource.Quantity { return *resource.NewQuantity(1, resource.DecimalSI) }

func zero() resource.Quantity { return resource.Quantity{Format: resource.DecimalSI} }
