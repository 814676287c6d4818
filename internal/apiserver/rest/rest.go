// Package rest is the verbs of the API on stored objects: what happens between a
// decoded request and the store. It knows nothing of HTTP. Reads come from the
// watch cache; writes go through defaulting, admission, validation and a
// revision-guarded store write.
package rest

import (
	"context"
	"strings"
	"unicode"
	"unicode/utf8"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/authentication/user"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver/cache"
)

// Storage serves the verbs of one resource. Errors are *apierrors.StatusError.
// Every object returned through an Entry is shared: read only. Objects handed in
// belong to the Storage afterwards.
type Storage interface {
	Resource() *api.Resource

	// Get returns the newest state (linearizable unless resourceVersion is "0").
	Get(ctx context.Context, namespace, name string, opts metav1.GetOptions) (*cache.Entry, error)
	// List returns one page of a consistent snapshot.
	List(ctx context.Context, namespace string, opts ListOptions) (*ListResult, error)
	// Watch delivers changes of matching objects after opts.ResourceVersion.
	Watch(ctx context.Context, namespace string, opts ListOptions) (Watch, error)
	// Create stores a new object.
	Create(ctx context.Context, namespace string, obj runtime.Object, opts metav1.CreateOptions) (*cache.Entry, error)
	// Update reads, calls change on a private copy (nil obj when it does not exist and the
	// resource may be created so, or opts.Create is set), and writes what it returns; on a lost
	// race it starts again unless change's result carries a resourceVersion that is old: then Conflict.
	Update(ctx context.Context, namespace, name, subresource string, change Change, opts UpdateOptions) (entry *cache.Entry, created bool, err error)
	// Patch applies a patch, server-side apply included.
	Patch(ctx context.Context, namespace, name, subresource string, kind types.PatchType, data []byte, opts metav1.PatchOptions) (entry *cache.Entry, created bool, err error)
	// Delete removes or marks an object. The entry is the last (or the marked) state; gone says which.
	Delete(ctx context.Context, namespace, name string, opts metav1.DeleteOptions) (entry *cache.Entry, gone bool, err error)
	// DeleteCollection deletes what matches and returns what it met.
	DeleteCollection(ctx context.Context, namespace string, opts metav1.DeleteOptions, list ListOptions) ([]*cache.Entry, error)
}

// Change computes the new object from a private copy of the old one.
type Change func(ctx context.Context, old api.Object) (api.Object, error)

// UpdateOptions is metav1.UpdateOptions and what the server adds.
type UpdateOptions struct {
	metav1.UpdateOptions
	// Create allows to create the object when it does not exist.
	Create bool
	// Preconditions on the present object (nil: none).
	Preconditions *metav1.Preconditions
}

// ListOptions is metav1.ListOptions with its selectors parsed (nil: everything).
type ListOptions struct {
	metav1.ListOptions
	Labels labels.Selector
	Fields fields.Selector
}

// ListResult is a page of a snapshot at Revision.
type ListResult struct {
	Entries            []*cache.Entry
	Revision           int64
	Continue           string
	RemainingItemCount *int64
}

// Watch is a running watch. Next returns one or more events, blocking until
// there are some; it fails with ctx's error, io.EOF when the watch ended in
// order (timeoutSeconds), or a StatusError to send as the last ERROR event.
type Watch interface {
	Next(ctx context.Context) ([]Event, error)
	Stop()
}

// Subresources serves the subresources whose type is not the parent's. Every
// Storage of a Registry implements it; what a resource does not have is NotFound.
type Subresources interface {
	// CreateSubresource serves POST of a pod's binding (*corev1.Binding) and
	// eviction (*policyv1.Eviction). Both return a *metav1.Status.
	CreateSubresource(ctx context.Context, namespace, name, subresource string, obj runtime.Object, opts metav1.CreateOptions) (runtime.Object, error)
	// The scale subresource: autoscaling/v1 Scale made of the parent.
	GetScale(ctx context.Context, namespace, name string) (*autoscalingv1.Scale, error)
	UpdateScale(ctx context.Context, namespace, name string, change func(old *autoscalingv1.Scale) (*autoscalingv1.Scale, error), opts UpdateOptions) (*autoscalingv1.Scale, error)
	PatchScale(ctx context.Context, namespace, name string, kind types.PatchType, data []byte, opts metav1.PatchOptions) (*autoscalingv1.Scale, error)
}

// Event is ADDED, MODIFIED, DELETED or BOOKMARK. A bookmark has no entry;
// InitialEventsEnd marks the one that ends the initial events of a watch list.
// A DELETED entry carries the last state at the revision of the delete.
type Event struct {
	Type             string
	Entry            *cache.Entry
	Revision         int64
	InitialEventsEnd bool
}

// Verb is what admission tells apart.
type Verb string

const (
	Create  Verb = "CREATE"
	Update  Verb = "UPDATE"
	Delete  Verb = "DELETE"
	Connect Verb = "CONNECT"
)

// Attributes describe a write to admission. Object may be changed by Admit only.
type Attributes struct {
	Verb        Verb
	Resource    *api.Resource
	Subresource string
	Namespace   string
	Name        string
	Object      runtime.Object // nil for Delete
	Old         api.Object     // nil for Create
	User        user.Info
	DryRun      bool
	Options     runtime.Object

	onFailure []func(ctx context.Context)
}

// OnFailure has f called if the write that was admitted does not happen: a
// plugin takes back what it recorded for it.
func (a *Attributes) OnFailure(f func(ctx context.Context)) { a.onFailure = append(a.onFailure, f) }

// Failed is called when the write did not happen.
func (a *Attributes) Failed(ctx context.Context) {
	for _, f := range a.onFailure {
		f(ctx)
	}
	a.onFailure = nil
}

// Admission is asked before each write: Admit may change the object, Validate may only refuse.
type Admission interface {
	Admit(ctx context.Context, a *Attributes) error
	Validate(ctx context.Context, a *Attributes) error
}

type contextKey int

const (
	userKey contextKey = iota
	warningsKey
	fieldManagerKey
	annotationsKey
	trustedKey
)

// WithUser returns a context that carries who makes the request.
func WithUser(ctx context.Context, u user.Info) context.Context {
	return context.WithValue(ctx, userKey, u)
}

// UserFrom returns who makes the request (nil: nobody was set).
func UserFrom(ctx context.Context) user.Info {
	u, _ := ctx.Value(userKey).(user.Info)
	return u
}

// WithWarnings returns a context whose warnings go to add (one call for each text).
func WithWarnings(ctx context.Context, add func(text string)) context.Context {
	return context.WithValue(ctx, warningsKey, add)
}

// Warn hands a warning to the client, if the context can carry it.
func Warn(ctx context.Context, text string) {
	if add, ok := ctx.Value(warningsKey).(func(string)); ok {
		add(text)
	}
}

// WithAnnotations returns a context whose audit annotations go to add.
func WithAnnotations(ctx context.Context, add func(key, value string)) context.Context {
	return context.WithValue(ctx, annotationsKey, add)
}

// Annotates reports whether audit annotations of a context go anywhere.
func Annotates(ctx context.Context) bool { return ctx.Value(annotationsKey) != nil }

// Annotate adds an audit annotation to the request, if it is audited.
func Annotate(ctx context.Context, key, value string) {
	if add, ok := ctx.Value(annotationsKey).(func(key, value string)); ok {
		add(key, value)
	}
}

// WithTrust returns a context of a part of this process, that is not asked for
// its rights.
func WithTrust(ctx context.Context) context.Context {
	return context.WithValue(ctx, trustedKey, true)
}

// Trusted reports whether a request comes from a part of this process.
func Trusted(ctx context.Context) bool { return ctx.Value(trustedKey) != nil }

// WithFieldManager returns a context whose writes are recorded in managedFields
// under name when their options name no field manager.
func WithFieldManager(ctx context.Context, name string) context.Context {
	return context.WithValue(ctx, fieldManagerKey, name)
}

// maxManagerLength is what metadata.managedFields[].manager may hold.
const maxManagerLength = 128

// FieldManagerOf returns the manager that a User-Agent header stands for: the
// program's name, printable characters only.
func FieldManagerOf(userAgent string) string {
	name, _, _ := strings.Cut(userAgent, "/")
	var b strings.Builder
	for _, r := range name {
		if !unicode.IsPrint(r) {
			continue
		}
		if b.Len()+utf8.RuneLen(r) > maxManagerLength {
			break
		}
		b.WriteRune(r)
	}
	return b.String()
}

func fieldManager(ctx context.Context, option string) string {
	if option != "" {
		return option
	}
	if name, ok := ctx.Value(fieldManagerKey).(string); ok && name != "" {
		return name
	}
	return "unknown"
}
