package rest

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver/cache"
	"github.com/proa-dev/proa/internal/apiserver/rest/managed"
	"github.com/proa-dev/proa/internal/store"
)

// writeAttempts bounds how often a write starts again after a lost race. Each
// lost race is another writer's success, so this is only reached in a storm.
const writeAttempts = 256

// updateRequest is one update of an object or of one of its subresources.
type updateRequest struct {
	namespace, name, subresource string
	change                       Change
	opts                         UpdateOptions
	admitOptions                 runtime.Object // what admission is shown; nil: opts
	owners                       owners
	// unadmitted says that this is part of a write that admission has seen.
	unadmitted bool
	// show returns an object as admission is shown it, and take puts what admission
	// made of that back; nil: the object itself.
	show func(obj api.Object) api.Object
	take func(obj, shown api.Object) (api.Object, error)
	// create creates an object that does not exist; nil: NotFound.
	create func() (*cache.Entry, error)
	// project makes of what change returned the object to write; nil: by subresource.
	project func(obj, old api.Object) (api.Object, error)
	// validate replaces the resource's validation of the update.
	validate func(obj, old api.Object) field.ErrorList
}

func (s *storage) Update(ctx context.Context, namespace, name, subresource string, change Change, opts UpdateOptions) (*cache.Entry, bool, error) {
	req := updateRequest{namespace: namespace, name: name, subresource: subresource, change: change, opts: opts}
	if subresource == "" && (opts.Create || s.res.CreateOnUpdate) {
		req.create = func() (*cache.Entry, error) {
			obj, err := change(ctx, nil)
			if err != nil {
				return nil, err
			}
			if p := opts.Preconditions; p != nil && p.UID != nil {
				return nil, s.uidConflict(name, string(*p.UID), "")
			}
			if obj.GetUID() != "" {
				return nil, s.uidConflict(name, string(obj.GetUID()), "")
			}
			if obj.GetResourceVersion() != "" && obj.GetResourceVersion() != "0" {
				return nil, apierrors.NewNotFound(s.gr, name)
			}
			obj.SetResourceVersion("")
			if obj.GetName() != name {
				return nil, nameMismatch(obj.GetName(), name)
			}
			return s.Create(ctx, namespace, obj, metav1.CreateOptions{DryRun: opts.DryRun, FieldManager: opts.FieldManager, FieldValidation: opts.FieldValidation})
		}
	}
	return s.update(ctx, &req)
}

func nameMismatch(have, want string) error {
	return apierrors.NewBadRequest(fmt.Sprintf("the name of the object (%s) does not match the name on the URL (%s)", have, want))
}

func (s *storage) uidConflict(name, precondition, have string) error {
	return s.conflict(name, "Precondition failed: UID in precondition: %v, UID in object meta: %v", precondition, have)
}

// checkPreconditions compares the preconditions of an update with the object.
func (s *storage) checkPreconditions(p *metav1.Preconditions, old api.Object) error {
	if p == nil {
		return nil
	}
	if p.UID != nil && *p.UID != old.GetUID() {
		return s.uidConflict(old.GetName(), string(*p.UID), string(old.GetUID()))
	}
	if p.ResourceVersion != nil && *p.ResourceVersion != old.GetResourceVersion() {
		return s.conflict(old.GetName(), "Precondition failed: ResourceVersion in precondition: %v, ResourceVersion in object meta: %v", *p.ResourceVersion, old.GetResourceVersion())
	}
	return nil
}

// retry runs attempt until it does not lose a race; attempt is given the stored
// entry that the cache has (nil: none). After a lost race the cache is waited for.
func (s *storage) retry(ctx context.Context, namespace, name string, attempt func(cur *cache.Entry) error) error {
	if s.reg.cfg.Shared {
		if err := s.reg.set.WaitConsistent(ctx); err != nil {
			return s.storeError(err, name)
		}
	}
	for range writeAttempts {
		cur, err := s.current(namespace, name)
		if err != nil && !apierrors.IsNotFound(err) {
			return err
		}
		err = attempt(cur)
		lost, ok := errors.AsType[*store.ConflictError](err)
		if !ok {
			return err
		}
		if err := s.catchUp(ctx, lost); err != nil {
			return s.storeError(err, name)
		}
	}
	return s.conflict(name, staleMessage)
}

// catchUp waits until the cache has seen the state that a write lost against.
func (s *storage) catchUp(ctx context.Context, lost *store.ConflictError) error {
	if lost.Current != nil {
		return s.reg.set.WaitRevision(ctx, lost.Current.ModRevision)
	}
	// The key is gone; the delete's revision is at most the store's.
	revision, err := s.reg.cfg.Store.Revision(ctx)
	if err != nil {
		return err
	}
	return s.reg.set.WaitRevision(ctx, revision)
}

func (s *storage) update(ctx context.Context, req *updateRequest) (entry *cache.Entry, created bool, err error) {
	if !s.res.Namespaced {
		req.namespace = ""
	}
	err = s.retry(ctx, req.namespace, req.name, func(cur *cache.Entry) error {
		entry, created = nil, false
		if cur == nil {
			if req.create == nil {
				return apierrors.NewNotFound(s.gr, req.name)
			}
			e, err := req.create()
			if apierrors.IsAlreadyExists(err) && !dryRun(req.opts.DryRun) {
				return &store.ConflictError{} // created in between: update it, once the cache has seen it
			}
			entry, created = e, err == nil
			return err
		}
		e, err := s.updateOnce(ctx, req, cur)
		entry = e
		return err
	})
	return entry, created, err
}

// updateOnce makes one attempt; a lost race is a *store.ConflictError.
func (s *storage) updateOnce(ctx context.Context, req *updateRequest, cur *cache.Entry) (e *cache.Entry, err error) {
	seen, err := s.see(cur)
	if err != nil {
		return nil, err
	}
	old := seen.Object()
	if err := s.checkPreconditions(req.opts.Preconditions, old); err != nil {
		return nil, err
	}
	obj, err := req.change(ctx, old.DeepCopyObject().(api.Object))
	if err != nil {
		return nil, err
	}
	if obj, err = s.object(obj); err != nil {
		return nil, err
	}
	if err := s.checkIdentity(obj, old, req); err != nil {
		return nil, err
	}
	attrs := &Attributes{Verb: Update, Resource: s.res, Subresource: req.subresource, Namespace: req.namespace, Name: req.name,
		Old: old, User: UserFrom(ctx), DryRun: dryRun(req.opts.DryRun), Options: req.admitOptions}
	defer func() {
		if err != nil {
			attrs.Failed(ctx)
		}
	}()
	if obj, err = s.admitUpdate(ctx, req, attrs, obj); err != nil {
		return nil, err
	}

	dry := dryRun(req.opts.DryRun)
	key := cur.Key
	deletes := deletedByUpdate(obj, old)
	if deletes {
		if dry {
			return s.unwritten(obj, cur.Revision), nil
		}
		stored, _, err := s.encode(obj)
		if err != nil {
			return nil, err
		}
		return s.remove(ctx, cur, stored)
	}
	stored, value, err := s.encode(obj)
	if err != nil {
		return nil, err
	}
	if s.same(obj, old, value, cur.Stored()) {
		return seen, nil
	}
	if dry {
		return s.unwritten(obj, cur.Revision), nil
	}
	e, err = s.put(ctx, key, obj, stored, value, req.owners, func(value []byte) (int64, error) {
		return s.reg.cfg.Store.Update(ctx, key, value, cur.Revision)
	})
	if err != nil {
		if _, lost := errors.AsType[*store.ConflictError](err); lost {
			return nil, err
		}
		return nil, s.storeError(err, req.name)
	}
	return e, nil
}

// same reports whether writing obj, which is value when it is encoded, would
// write nothing new. Who did what was done before is not given a new time for it.
func (s *storage) same(obj, old api.Object, value, before []byte) bool {
	now, was := obj.GetManagedFields(), old.GetManagedFields()
	switch {
	case bytes.Equal(value, before):
		return true
	case !managed.SameButTimes(now, was), managed.Same(now, was):
		return false
	case len(value) != len(before) && managed.AllTimed(was):
		return false // times alone are equally long
	}
	obj.SetManagedFields(was)
	_, value, err := s.encode(obj)
	obj.SetManagedFields(now)
	return err == nil && bytes.Equal(value, before)
}

// checkIdentity refuses an update of another object, or of another state, than the client saw.
func (s *storage) checkIdentity(obj, old api.Object, req *updateRequest) error {
	if obj.GetName() != req.name {
		if obj.GetName() != "" {
			return nameMismatch(obj.GetName(), req.name)
		}
		obj.SetName(req.name)
	}
	if obj.GetNamespace() != req.namespace {
		if obj.GetNamespace() != "" {
			return apierrors.NewBadRequest("the namespace of the provided object does not match the namespace sent on the request")
		}
		obj.SetNamespace(req.namespace)
	}
	if uid := obj.GetUID(); uid == "" {
		obj.SetUID(old.GetUID())
	} else if uid != old.GetUID() {
		return s.uidConflict(req.name, string(uid), string(old.GetUID()))
	}
	switch rv := obj.GetResourceVersion(); {
	case rv == old.GetResourceVersion():
	case rv == "" || rv == "0":
		if !s.res.UnconditionalUpdate {
			return s.invalid(req.name, field.ErrorList{field.Invalid(field.NewPath("metadata", "resourceVersion"), uint64(0), "must be specified for an update")})
		}
	default:
		if _, err := parseRevision(rv); err != nil {
			return s.invalid(req.name, field.ErrorList{field.Invalid(field.NewPath("metadata", "resourceVersion"), rv, "must be a positive integer")})
		}
		return s.conflict(req.name, staleMessage)
	}
	obj.SetResourceVersion(old.GetResourceVersion())
	return nil
}

// admitUpdate takes the client's object through projection, defaulting, admission and validation.
func (s *storage) admitUpdate(ctx context.Context, req *updateRequest, attrs *Attributes, obj api.Object) (api.Object, error) {
	old := attrs.Old
	own := func(obj api.Object) {
		switch req.owners {
		case track:
			s.track(ctx, old, obj, req.opts.FieldManager, req.subresource)
		case keep:
			obj.SetManagedFields(old.GetManagedFields())
		}
	}
	obj, err := s.prepareUpdate(req, obj, old, own)
	if err != nil {
		return nil, err
	}
	if attrs.Options == nil {
		attrs.Options = &req.opts.UpdateOptions
	}
	if obj, err = s.admitShown(ctx, req, attrs, obj); err != nil {
		return nil, err
	}
	if obj, err = s.prepareUpdate(req, obj, old, nil); err != nil { // admission may not do more than a client
		return nil, err
	}
	if err := s.invalid(req.name, s.validateUpdate(req, obj, old)); err != nil {
		return nil, err
	}
	s.warn(ctx, obj)
	if req.unadmitted {
		return obj, nil
	}
	attrs.Object = obj
	if req.show != nil {
		attrs.Object = req.show(obj)
	}
	if err := s.reg.cfg.Admission.Validate(ctx, attrs); err != nil {
		return nil, err
	}
	return obj, nil
}

// admitShown asks admission, which may change obj, in the form that it is shown.
func (s *storage) admitShown(ctx context.Context, req *updateRequest, attrs *Attributes, obj api.Object) (api.Object, error) {
	if req.unadmitted {
		return obj, nil
	}
	if req.show == nil {
		attrs.Object = obj
		return s.admit(ctx, attrs, obj)
	}
	attrs.Object, attrs.Old = req.show(obj), req.show(attrs.Old)
	if err := s.reg.cfg.Admission.Admit(ctx, attrs); err != nil {
		return nil, err
	}
	shown, ok := attrs.Object.(api.Object)
	if !ok {
		return nil, apierrors.NewInternalError(fmt.Errorf("admission made %T of a %s", attrs.Object, req.subresource))
	}
	return req.take(obj, shown)
}

// prepareUpdate returns obj with everything from old that this update may not
// change. own (nil: nothing) is called to record who owns what the client wants.
func (s *storage) prepareUpdate(req *updateRequest, obj, old api.Object, own func(api.Object)) (api.Object, error) {
	obj.SetGeneration(old.GetGeneration())
	obj.SetSelfLink("")
	if obj.GetCreationTimestamp().Time.IsZero() {
		obj.SetCreationTimestamp(old.GetCreationTimestamp())
	}
	if t := old.GetDeletionTimestamp(); t != nil || obj.GetDeletionTimestamp() != nil {
		obj.SetDeletionTimestamp(t)
		obj.SetDeletionGracePeriodSeconds(old.GetDeletionGracePeriodSeconds())
	}
	if obj.GetGenerateName() == "" {
		obj.SetGenerateName(old.GetGenerateName())
	}
	s.defaults(obj)
	// Of the object and its status it is known what a write cannot change; of the
	// other subresources the projection shows it.
	if own != nil && (req.subresource == "" || req.subresource == "status" || req.owners != track) {
		own(obj)
		own = nil
	}
	project := req.project
	if project == nil {
		switch req.subresource {
		case "":
			if s.res.CopyStatus != nil {
				s.res.CopyStatus(obj, old)
			}
			if s.res.PrepareForUpdate != nil {
				s.res.PrepareForUpdate(obj, old)
			}
		case "status":
			if s.res.CopyStatus == nil {
				return nil, apierrors.NewNotFound(s.gr, req.name)
			}
			return s.projectStatus(obj, old), nil
		default:
			project = s.projection(req.subresource)
			if project == nil {
				return nil, apierrors.NewNotFound(s.gr, req.name)
			}
		}
	}
	if project != nil {
		projected, err := project(obj, old)
		if err != nil {
			return nil, err
		}
		projected.SetManagedFields(obj.GetManagedFields())
		obj = projected
	}
	if own != nil {
		own(obj)
	}
	// A binding says where a pod runs, not what: its generation stays.
	if req.subresource != "binding" && s.res.SpecChanged != nil && s.res.SpecChanged(obj, old) {
		obj.SetGeneration(old.GetGeneration() + 1)
	}
	return obj, nil
}

// projectStatus returns old with the status, and those parts of the metadata
// that may be written along with it, of obj.
func (s *storage) projectStatus(obj, old api.Object) api.Object {
	out := old.DeepCopyObject().(api.Object)
	s.res.CopyStatus(out, obj)
	s.copyMeta(out, obj)
	if s.res.PrepareForStatusUpdate != nil {
		s.res.PrepareForStatusUpdate(out, old)
	}
	return out
}

// copyMeta copies the metadata that a client may change through /status.
func (s *storage) copyMeta(out, obj api.Object) {
	out.SetManagedFields(obj.GetManagedFields())
	reset := s.reset("status")
	if whole, _ := reset.Skips("metadata"); whole {
		return
	}
	if !reset.SkipsIn("metadata", "labels") {
		out.SetLabels(obj.GetLabels())
	}
	out.SetAnnotations(obj.GetAnnotations())
	out.SetFinalizers(obj.GetFinalizers())
}

func (s *storage) validateUpdate(req *updateRequest, obj, old api.Object) field.ErrorList {
	errs := validation.ValidateObjectMetaAccessorUpdate(obj, old, field.NewPath("metadata"))
	switch {
	case req.validate != nil:
		errs = append(errs, req.validate(obj, old)...)
	case req.subresource == "status":
		if s.res.ValidateStatusUpdate != nil {
			errs = append(errs, s.res.ValidateStatusUpdate(obj, old)...)
		}
	case req.subresource != "":
		errs = append(errs, s.validateSubresource(req.subresource, obj, old)...)
	case s.res.ValidateUpdate != nil:
		errs = append(errs, s.res.ValidateUpdate(obj, old)...)
	case s.res.Validate != nil:
		errs = append(errs, s.res.Validate(obj)...)
	}
	if req.subresource == "" {
		// ObjectMeta's own rules hold for labels, annotations, owners and finalizers that an update brings.
		errs = append(errs, validation.ValidateFinalizers(obj.GetFinalizers(), field.NewPath("metadata", "finalizers"))...)
		errs = append(errs, validation.ValidateOwnerReferences(obj.GetOwnerReferences(), field.NewPath("metadata", "ownerReferences"))...)
	}
	return dedupe(errs)
}

// dedupe drops errors that two rules have both found.
func dedupe(errs field.ErrorList) field.ErrorList {
	if len(errs) < 2 {
		return errs
	}
	seen := make(map[string]bool, len(errs))
	kept := errs[:0]
	for _, e := range errs {
		if text := e.Error(); !seen[text] {
			seen[text] = true
			kept = append(kept, e)
		}
	}
	return kept
}

// deletedByUpdate reports whether this update takes away the last thing that
// kept a deleted object.
func deletedByUpdate(obj, old api.Object) bool {
	if old.GetDeletionTimestamp() == nil || len(obj.GetFinalizers()) > 0 {
		return false
	}
	if grace := old.GetDeletionGracePeriodSeconds(); grace != nil && *grace != 0 {
		return false // the kubelet, or whoever ends it, deletes it
	}
	if ns, ok := obj.(*corev1.Namespace); ok {
		return len(ns.Spec.Finalizers) == 0
	}
	return true
}
