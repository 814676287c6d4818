// Package rules holds what the rules of many API groups have in common: how a
// resource is described, the printed columns that return everywhere, and the
// checks that apply to many kinds. It knows nothing of any single group.
package rules

import (
	"reflect"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/proa-dev/proa/internal/api"
)

// pointer is the constraint by which a Go struct is tied to its pointer, the API object.
type pointer[T any] interface {
	*T
	runtime.Object
}

// Namespaced describes a resource of namespaces whose Go type is T and whose list type is L.
func Namespaced[T, L any, PT pointer[T], PL pointer[L]](gv schema.GroupVersion, plural string, shortNames ...string) api.Resource {
	r := Cluster[T, L, PT, PL](gv, plural, shortNames...)
	r.Namespaced = true
	return r
}

// Cluster describes a resource of the cluster whose Go type is T and whose list type is L.
func Cluster[T, L any, PT pointer[T], PL pointer[L]](gv schema.GroupVersion, plural string, shortNames ...string) api.Resource {
	kind := reflect.TypeFor[T]().Name()
	return api.Resource{
		GVR:        gv.WithResource(plural),
		GVK:        gv.WithKind(kind),
		Singular:   strings.ToLower(kind),
		ShortNames: shortNames,
		New:        func() runtime.Object { return PT(new(T)) },
		NewList:    func() runtime.Object { return PL(new(L)) },
	}
}

// Review describes a resource that is answered when it is created and never stored.
func Review[T any, PT pointer[T]](gv schema.GroupVersion, plural string) api.Resource {
	r := Cluster[T, metav1.List, PT, *metav1.List](gv, plural)
	r.Verbs = []string{"create"}
	return r
}

// With changes a description and returns it: for the few resources that need more than names.
func With(r api.Resource, change func(*api.Resource)) api.Resource {
	change(&r)
	return r
}
