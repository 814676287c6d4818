package rest

import (
	"context"
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver/cache"
	"github.com/proa-dev/proa/internal/apiserver/rest/managed"
	"github.com/proa-dev/proa/internal/store"
)

const (
	suffixLength  = 5
	maxNamePrefix = 63 - suffixLength
	// nameAttempts bounds the tries to find a free generated name (KEP-4420).
	nameAttempts = 8
)

// generateName returns a name that begins with prefix.
func generateName(prefix string) string {
	if len(prefix) > maxNamePrefix {
		prefix = prefix[:maxNamePrefix]
	}
	return prefix + rand.String(suffixLength)
}

func (s *storage) Create(ctx context.Context, namespace string, body runtime.Object, opts metav1.CreateOptions) (*cache.Entry, error) {
	return s.create(ctx, namespace, body, opts, track)
}

// create is Create with what becomes of the owners.
func (s *storage) create(ctx context.Context, namespace string, body runtime.Object, opts metav1.CreateOptions, own owners) (*cache.Entry, error) {
	obj, err := s.object(body)
	if err != nil {
		return nil, err
	}
	if !s.res.Namespaced {
		namespace = ""
	}
	switch have := obj.GetNamespace(); {
	case have == namespace:
	case have == "":
		obj.SetNamespace(namespace)
	default:
		return nil, apierrors.NewBadRequest("the namespace of the provided object does not match the namespace sent on the request")
	}
	if obj.GetResourceVersion() != "" {
		return nil, apierrors.NewBadRequest("resourceVersion should not be set on objects to be created")
	}
	if obj.GetName() != "" || obj.GetGenerateName() == "" {
		return s.createNamed(ctx, obj, opts, own)
	}
	for attempt := 1; ; attempt++ {
		o := obj.DeepCopyObject().(api.Object)
		o.SetName(generateName(obj.GetGenerateName()))
		e, err := s.createNamed(ctx, o, opts, own)
		if attempt == nameAttempts || !apierrors.IsAlreadyExists(err) {
			return e, err
		}
	}
}

func (s *storage) createNamed(ctx context.Context, obj api.Object, opts metav1.CreateOptions, own owners) (e *cache.Entry, err error) {
	res := s.res
	if err := s.closed(obj.GetName()); err != nil {
		return nil, err
	}
	dry := dryRun(opts.DryRun)
	obj.SetUID(s.reg.cfg.NewUID())
	obj.SetCreationTimestamp(s.now())
	obj.SetDeletionTimestamp(nil)
	obj.SetDeletionGracePeriodSeconds(nil)
	obj.SetSelfLink("")
	obj.SetGeneration(0)
	if res.SpecChanged != nil {
		obj.SetGeneration(1)
	}
	s.defaults(obj)
	if own == track {
		s.track(ctx, nil, obj, opts.FieldManager, "")
	}
	s.prepareCreate(obj)
	attrs := &Attributes{
		Verb: Create, Resource: res, Namespace: obj.GetNamespace(), Name: obj.GetName(),
		Object: obj, User: UserFrom(ctx), DryRun: dry, Options: &opts,
	}
	defer func() {
		if err != nil {
			attrs.Failed(ctx)
		}
	}()
	obj, err = s.admit(ctx, attrs, obj)
	if err != nil {
		return nil, err
	}
	s.defaults(obj)
	s.prepareCreate(obj) // what admission put in is defaulted, and what follows from it is computed again

	errs := validation.ValidateObjectMetaAccessor(obj, res.Namespaced, s.validateName, field.NewPath("metadata"))
	if res.Validate != nil {
		errs = append(errs, res.Validate(obj)...)
	}
	if err := s.invalid(obj.GetName(), dedupe(errs)); err != nil {
		return nil, err
	}
	s.warn(ctx, obj)
	attrs.Object = obj
	if err := s.reg.cfg.Admission.Validate(ctx, attrs); err != nil {
		return nil, err
	}
	name := obj.GetName()
	key := s.cache.Key(obj.GetNamespace(), name)
	if dry {
		if _, exists := s.cache.Get(key); exists {
			return nil, apierrors.NewAlreadyExists(s.gr, name)
		}
		return s.unwritten(obj, 0), nil
	}
	stored, value, err := s.encode(obj)
	if err != nil {
		return nil, err
	}
	e, err = s.put(ctx, key, obj, stored, value, own, func(value []byte) (int64, error) {
		return s.reg.cfg.Store.Create(ctx, key, value)
	})
	if _, conflict := errors.AsType[*store.ConflictError](err); conflict {
		return nil, apierrors.NewAlreadyExists(s.gr, name)
	}
	if err != nil {
		return nil, s.storeError(err, name)
	}
	return e, nil
}

func (s *storage) defaults(obj api.Object) {
	if s.res.Default != nil {
		s.res.Default(obj)
	}
}

// admit asks admission, which may change obj, and returns what it became.
func (s *storage) admit(ctx context.Context, attrs *Attributes, obj api.Object) (api.Object, error) {
	before := obj.GetManagedFields()
	if err := s.reg.cfg.Admission.Admit(ctx, attrs); err != nil {
		return nil, err
	}
	obj, err := s.object(attrs.Object)
	if err != nil {
		return nil, err
	}
	if s.res.Coerce != nil { // admission knows no schemas
		if _, err := s.res.Coerce(obj, false); err != nil {
			return nil, apierrors.NewInternalError(err)
		}
	}
	after := obj.GetManagedFields()
	if len(after) == len(before) && (len(after) == 0 || &after[0] == &before[0]) {
		return obj, nil // as nearly always
	}
	if _, err := managed.Clean(after); err != nil {
		obj.SetManagedFields(before)
		Warn(ctx, fmt.Sprintf(".metadata.managedFields was in an invalid state after admission; this could be caused by an outdated mutating admission controller; please fix your requests: %v", err))
	}
	return obj, nil
}

// prepareCreate takes out of a new object what its client may not say.
func (s *storage) prepareCreate(obj api.Object) {
	// A node is registered with its status (capacity, addresses) in one request.
	if s.res.CopyStatus != nil && s.gr != nodesGR {
		s.res.CopyStatus(obj, s.empty())
	}
	if s.res.PrepareForCreate != nil {
		s.res.PrepareForCreate(obj)
	}
}

func (s *storage) empty() api.Object { return s.res.New().(api.Object) }

func (s *storage) warn(ctx context.Context, obj api.Object) {
	if s.res.Warnings == nil || ctx.Value(warningsKey) == nil {
		return
	}
	for _, w := range s.res.Warnings(obj) {
		Warn(ctx, w)
	}
}
