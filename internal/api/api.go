// Package api says what the Kubernetes API is: for each resource its names, its
// Go type (the external type of k8s.io/api is the only one), and the rules of
// its life: defaulting, validation, what an update may change, the columns that
// kubectl prints. It does no I/O. One folder per API group holds the rules;
// package resources collects them.
package api

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Object is a typed API object with metadata.
type Object interface {
	metav1.Object
	runtime.Object
}

// Resource is one resource of the API at one version. Function fields that are
// nil mean that there is nothing to do; obj is always of the resource's type.
// The server itself does what is the same for all: metadata (uid, timestamps,
// generation, managedFields, name generation), ObjectMeta validation, resource
// versions, finalizers.
type Resource struct {
	GVR        schema.GroupVersionResource
	GVK        schema.GroupVersionKind
	Singular   string
	ShortNames []string
	Categories []string
	Namespaced bool

	// New and NewList return empty values of the Go type.
	New     func() runtime.Object
	NewList func() runtime.Object

	// Verbs, when set, restricts the resource (e.g. {"create"} for TokenReview,
	// which is answered and not stored). Empty: the full set.
	Verbs []string
	// Subresources beyond status and scale, e.g. "log", "exec", "binding".
	Subresources []string

	// StoredAs names the resource whose storage this one shares when it is another
	// view of the same objects (autoscaling/v2 and v1, events.k8s.io and core
	// events). ToStored and FromStored convert; both copy.
	StoredAs   schema.GroupVersionResource
	ToStored   func(obj runtime.Object) (runtime.Object, error)
	FromStored func(obj runtime.Object) (runtime.Object, error)

	// ValidateName checks metadata.name (prefix: it is a generateName). Nil: DNS subdomain.
	ValidateName func(name string, prefix bool) []string
	// Default fills in what the client left out. Called on every decoded object.
	Default func(obj Object)
	// PrepareForCreate runs after defaulting and before admission: drop what a client may not set.
	PrepareForCreate func(obj Object)
	Validate         func(obj Object) field.ErrorList
	// PrepareForUpdate runs on a write of the main resource: carry over from old what may not change silently.
	PrepareForUpdate func(obj, old Object)
	// ValidateUpdate runs after Validate's rules for obj have been checked too: it
	// returns every error of the update, Validate's included.
	ValidateUpdate func(obj, old Object) field.ErrorList
	// CopyStatus sets dst's status to a copy of src's. When it is set the resource
	// has a status subresource: the server resets the status on create and on
	// writes of the main resource, and keeps all but the status on writes of /status.
	CopyStatus func(dst, src Object)
	// PrepareForStatusUpdate runs on a write of /status, when obj has the new status and all else of old.
	PrepareForStatusUpdate func(obj, old Object)
	// ValidateStatusUpdate checks a write of /status.
	ValidateStatusUpdate func(obj, old Object) field.ErrorList
	// SpecChanged reports whether generation must grow. Nil: the resource has no generation.
	SpecChanged func(obj, old Object) bool
	// Warnings returns texts for the client's Warning headers.
	Warnings func(obj Object) []string

	// Scale, when set, gives the resource a scale subresource.
	Scale *Scale

	// Fields returns what field selectors can match besides metadata.name and
	// metadata.namespace. FieldLabels lists the supported labels.
	Fields      func(obj Object) fields.Set
	FieldLabels []string

	// GracePeriod, for resources that are deleted in two steps (pods), returns the
	// seconds of grace for a delete with opts. Nil: deletes are immediate.
	GracePeriod func(obj Object, opts *metav1.DeleteOptions) int64
	// DefaultOrphan: deletes without a propagation policy orphan the dependents.
	DefaultOrphan bool
	// CreateOnUpdate: PUT of a name that does not exist creates it.
	CreateOnUpdate bool
	// UnconditionalUpdate: PUT without a resourceVersion is allowed.
	UnconditionalUpdate bool

	// MarkDeleted, when set, changes an object whose deletion begins, which is then
	// kept until its finalizers are gone.
	MarkDeleted func(obj Object)

	// Of custom resources: ListKind is the kind of their lists ("": Kind and "List"),
	// Warning a text for every request (of a deprecated version), Closed says why
	// none can be created just now ("": they can). Coerce makes of a decoded object, which has
	// its kind, what the schema knows; with report it returns the paths of the rest.
	ListKind string
	Warning  string
	Closed   func() string
	Coerce   func(obj Object, report bool) (unknown []string, err error)
	// Model returns the OpenAPI model of a custom resource's kind as JSON, in v3 or
	// in what v2 can say. Nil: anything goes.
	Model func(v3 bool) ([]byte, error)
	// FromStoredAll, where converting costs a call over the network, converts many
	// objects with one. Objects of the resource's own version stay as they are.
	FromStoredAll func(list []Object) ([]Object, error)

	// Columns and Row print the resource as a Table; Row's cells match Columns.
	// Nil: Name and Age.
	Columns []metav1.TableColumnDefinition
	Row     func(obj Object) []any
}

// Scale reads and writes the replica count of a resource.
type Scale struct {
	Get func(obj Object) (spec, status int32, selector string)
	Set func(obj Object, replicas int32)
	// Path is where the count is (nil: spec.replicas). Check, when set, says why an
	// object has no scale.
	Path  []string
	Check func(obj Object) error
}

// Kind is Resource with its rules typed; Resource erases the type. It exists so
// that the rules of a kind are written without type assertions.
type Kind[T Object] struct {
	Resource Resource // names, verbs, flags; the function fields below win

	ValidateName           func(name string, prefix bool) []string
	Default                func(obj T)
	PrepareForCreate       func(obj T)
	Validate               func(obj T) field.ErrorList
	PrepareForUpdate       func(obj, old T)
	ValidateUpdate         func(obj, old T) field.ErrorList
	CopyStatus             func(dst, src T)
	PrepareForStatusUpdate func(obj, old T)
	ValidateStatusUpdate   func(obj, old T) field.ErrorList
	SpecChanged            func(obj, old T) bool
	Warnings               func(obj T) []string
	ScaleGet               func(obj T) (spec, status int32, selector string)
	ScaleSet               func(obj T, replicas int32)
	Fields                 func(obj T) fields.Set
	GracePeriod            func(obj T, opts *metav1.DeleteOptions) int64
	Row                    func(obj T) []any
}

// Erase returns the untyped Resource.
func (k Kind[T]) Erase() *Resource {
	r := k.Resource
	if k.ValidateName != nil {
		r.ValidateName = k.ValidateName
	}
	r.Default = one(k.Default, r.Default)
	r.PrepareForCreate = one(k.PrepareForCreate, r.PrepareForCreate)
	r.PrepareForUpdate = two(k.PrepareForUpdate, r.PrepareForUpdate)
	r.CopyStatus = two(k.CopyStatus, r.CopyStatus)
	r.PrepareForStatusUpdate = two(k.PrepareForStatusUpdate, r.PrepareForStatusUpdate)
	if f := k.Validate; f != nil {
		r.Validate = func(o Object) field.ErrorList { return f(o.(T)) }
	}
	if f := k.ValidateUpdate; f != nil {
		r.ValidateUpdate = func(o, old Object) field.ErrorList { return f(o.(T), old.(T)) }
	}
	if f := k.ValidateStatusUpdate; f != nil {
		r.ValidateStatusUpdate = func(o, old Object) field.ErrorList { return f(o.(T), old.(T)) }
	}
	if f := k.SpecChanged; f != nil {
		r.SpecChanged = func(o, old Object) bool { return f(o.(T), old.(T)) }
	}
	if f := k.Warnings; f != nil {
		r.Warnings = func(o Object) []string { return f(o.(T)) }
	}
	if get, set := k.ScaleGet, k.ScaleSet; get != nil {
		r.Scale = &Scale{
			Get: func(o Object) (int32, int32, string) { return get(o.(T)) },
			Set: func(o Object, n int32) { set(o.(T), n) },
		}
	}
	if f := k.Fields; f != nil {
		r.Fields = func(o Object) fields.Set { return f(o.(T)) }
	}
	if f := k.GracePeriod; f != nil {
		r.GracePeriod = func(o Object, opts *metav1.DeleteOptions) int64 { return f(o.(T), opts) }
	}
	if f := k.Row; f != nil {
		r.Row = func(o Object) []any { return f(o.(T)) }
	}
	return &r
}

func one[T Object](f func(T), otherwise func(Object)) func(Object) {
	if f == nil {
		return otherwise
	}
	return func(o Object) { f(o.(T)) }
}

func two[T Object](f func(T, T), otherwise func(Object, Object)) func(Object, Object) {
	if f == nil {
		return otherwise
	}
	return func(a, b Object) { f(a.(T), b.(T)) }
}
