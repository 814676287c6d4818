package rest

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver/cache"
	"github.com/proa-dev/proa/internal/store"
)

// storage is the Storage of one resource at one version.
type storage struct {
	reg   *Registry
	res   *api.Resource
	gr    schema.GroupResource
	codec cache.Codec
	cache *cache.Cache
	dir   string

	// A resource that is another view of stored objects.
	base *storage
	view *cache.View

	indexField string // field label that the cache's index answers

	ownership ownership // see managed.go
}

var (
	_ Storage      = (*storage)(nil)
	_ Subresources = (*storage)(nil)
)

func (s *storage) Resource() *api.Resource { return s.res }

func (s *storage) fromStored(obj api.Object) (api.Object, error) {
	converted, err := s.res.FromStored(obj)
	if err != nil {
		return nil, fmt.Errorf("convert to %s: %w", s.res.GVK, err)
	}
	if !s.custom() {
		cache.ClearKind(converted)
	}
	return converted.(api.Object), nil
}

// see returns a stored entry as this resource sees it.
func (s *storage) see(e *cache.Entry) (*cache.Entry, error) {
	if s.view == nil {
		return e, nil
	}
	v, err := e.As(s.view)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	return v, nil
}

// seeAll is see for many.
func (s *storage) seeAll(entries []*cache.Entry) ([]*cache.Entry, error) {
	out, err := s.view.All(entries)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	return out, nil
}

// toStored returns obj as it is stored.
func (s *storage) toStored(obj api.Object) (api.Object, cache.Codec, error) {
	if s.view == nil {
		return obj, s.codec, nil
	}
	converted, err := s.res.ToStored(obj)
	if err != nil {
		if s.custom() {
			return nil, nil, s.storeError(err, obj.GetName())
		}
		return nil, nil, apierrors.NewInternalError(fmt.Errorf("convert %s for the store: %w", s.res.GVK, err))
	}
	if !s.custom() { // those keep their version
		cache.ClearKind(converted)
	}
	return converted.(api.Object), s.base.codec, nil
}

func (s *storage) Get(ctx context.Context, namespace, name string, opts metav1.GetOptions) (*cache.Entry, error) {
	if err := s.waitFor(ctx, opts.ResourceVersion); err != nil {
		return nil, err
	}
	e, err := s.current(namespace, name)
	if err != nil {
		return nil, err
	}
	return s.see(e)
}

// current returns the stored entry that the cache has.
func (s *storage) current(namespace, name string) (*cache.Entry, error) {
	if !s.res.Namespaced {
		namespace = "" // the path of a Namespace has its name as that of a namespace, too
	}
	key := s.cache.Key(namespace, name)
	if e, ok := s.cache.Get(key); ok {
		return e, nil
	}
	if err := s.cache.Broken(key); err != nil {
		return nil, apierrors.NewInternalError(fmt.Errorf("%s %q cannot be read from the store: %w", s.gr, name, err))
	}
	return nil, apierrors.NewNotFound(s.gr, name)
}

// futureWait is how long a read waits for a resourceVersion that is not there yet.
const futureWait = 3 * time.Second

// waitFor waits until the cache may answer a read at resourceVersion: "" wants
// everything that was acknowledged, "0" takes what is there, else at least that.
func (s *storage) waitFor(ctx context.Context, resourceVersion string) error {
	switch resourceVersion {
	case "0":
		return nil
	case "":
		if err := s.reg.set.WaitConsistent(ctx); err != nil {
			return s.storeError(err, "")
		}
		return nil
	}
	revision, err := parseRevision(resourceVersion)
	if err != nil {
		return err
	}
	return s.waitRevision(ctx, revision)
}

func (s *storage) waitRevision(ctx context.Context, revision int64) error {
	set := s.reg.set
	if set.Revision() >= revision {
		return nil
	}
	waitCtx, cancel := context.WithTimeout(ctx, futureWait)
	defer cancel()
	if set.WaitRevision(waitCtx, revision) == nil {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return s.storeError(err, "")
	}
	return tooLarge(revision, set.Revision())
}

func tooLarge(wanted, have int64) error {
	err := apierrors.NewTimeoutError(fmt.Sprintf("Too large resource version: %d, current: %d", wanted, have), 1)
	err.ErrStatus.Details.Causes = []metav1.StatusCause{{Type: metav1.CauseTypeResourceVersionTooLarge, Message: "Too large resource version"}}
	return err
}

// parseRevision reads a resourceVersion ("" is 0).
func parseRevision(s string) (int64, error) {
	if s == "" || s == "0" {
		return 0, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 {
		return 0, apierrors.NewBadRequest(fmt.Sprintf("Invalid value for resourceVersion: %q", s))
	}
	return n, nil
}

// expired turns the cache's error into 410 Expired.
func expired(err error) error {
	if e, ok := errors.AsType[*cache.ExpiredError](err); ok {
		return apierrors.NewResourceExpired(e.Error())
	}
	return err
}

// storeError turns an error of the store or of waiting into the API's.
func (s *storage) storeError(err error, name string) error {
	var status *apierrors.StatusError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &status):
		return status
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, store.ErrUnknown):
		return apierrors.NewTimeoutError(fmt.Sprintf("%s %q: %v", s.gr, name, err), 1)
	case errors.Is(err, context.Canceled):
		return apierrors.NewTimeoutError("request was canceled", 1)
	case errors.Is(err, store.ErrTooLarge):
		return apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("%s %q: %v", s.gr, name, err))
	case errors.Is(err, store.ErrClosed):
		return apierrors.NewServiceUnavailable("the server is shutting down")
	}
	return apierrors.NewInternalError(err)
}

const staleMessage = "the object has been modified; please apply your changes to the latest version and try again"

func (s *storage) conflict(name, format string, args ...any) error {
	return apierrors.NewConflict(s.gr, name, fmt.Errorf(format, args...))
}

func (s *storage) invalid(name string, errs field.ErrorList) error {
	if len(errs) == 0 {
		return nil
	}
	return apierrors.NewInvalid(s.res.GVK.GroupKind(), name, errs)
}

func (s *storage) validateName(name string, prefix bool) []string {
	if s.res.ValidateName != nil {
		return s.res.ValidateName(name, prefix)
	}
	return validation.NameIsDNSSubdomain(name, prefix)
}

// now is the time that goes into metadata: whole seconds, as it is stored.
func (s *storage) now() metav1.Time {
	return metav1.NewTime(s.reg.cfg.Now().Truncate(time.Second))
}

// object checks that a decoded body is of the resource's kind of type.
func (s *storage) object(obj runtime.Object) (api.Object, error) {
	o, ok := obj.(api.Object)
	if !ok {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("unexpected object of type %T for %s", obj, s.gr))
	}
	cache.ClearKind(o)
	return o, nil
}

func dryRun(options []string) bool { return len(options) > 0 }

// unwritten is the answer to a dry run.
func (s *storage) unwritten(obj api.Object, revision int64) *cache.Entry {
	obj.SetResourceVersion(cache.FormatRevision(revision))
	return cache.NewEntry(s.cache.Key(obj.GetNamespace(), obj.GetName()), revision, obj, s.codec)
}

// put stores obj, encoded as stored and value, with write (which gets the bytes).
// What is too large because of its owners is stored without them, unless an
// apply asks to become one.
func (s *storage) put(ctx context.Context, key string, obj, stored api.Object, value []byte, own owners, write func(value []byte) (int64, error)) (*cache.Entry, error) {
	e, err := s.write(ctx, key, value, stored, func() (int64, error) { return write(value) })
	if own == merged || !errors.Is(err, store.ErrTooLarge) || len(obj.GetManagedFields()) == 0 {
		return e, err
	}
	obj.SetManagedFields(nil)
	if stored, value, err = s.encode(obj); err != nil {
		return nil, err
	}
	return s.write(ctx, key, value, stored, func() (int64, error) { return write(value) })
}

// write stores obj with put (which gets the bytes) and returns its entry when the
// cache has it.
func (s *storage) write(ctx context.Context, key string, value []byte, object api.Object, put func() (int64, error)) (*cache.Entry, error) {
	pending := s.cache.Expect(key, value, object)
	revision, err := put()
	if err != nil {
		pending.Cancel()
		return nil, err
	}
	e, err := pending.Done(ctx, revision)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	return s.see(e)
}

// encode returns obj as it is stored, and its bytes.
func (s *storage) encode(obj api.Object) (api.Object, []byte, error) {
	obj, codec, err := s.toStored(obj)
	if err != nil {
		return nil, nil, err
	}
	obj.SetResourceVersion("")
	value, err := codec.Encode(obj)
	if err != nil {
		return nil, nil, apierrors.NewInternalError(err)
	}
	return obj, value, nil
}
