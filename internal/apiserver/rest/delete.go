package rest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/validation"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver/cache"
	"github.com/proa-dev/proa/internal/store"
)

func (s *storage) Delete(ctx context.Context, namespace, name string, opts metav1.DeleteOptions) (*cache.Entry, bool, error) {
	if errs := validation.ValidateDeleteOptions(&opts); len(errs) > 0 {
		return nil, false, apierrors.NewInvalid(metav1.SchemeGroupVersion.WithKind("DeleteOptions").GroupKind(), "", errs)
	}
	return s.delete(ctx, namespace, name, opts, deleteRequest{})
}

// deleteRequest is how a delete differs from that of a client.
type deleteRequest struct {
	// check, when set, is asked about each state that is about to be deleted.
	check func(api.Object) error
	// unadmitted says that the delete is part of a write that admission has seen.
	unadmitted bool
}

func (s *storage) delete(ctx context.Context, namespace, name string, opts metav1.DeleteOptions, req deleteRequest) (entry *cache.Entry, gone bool, err error) {
	if !s.res.Namespaced {
		namespace = ""
	}
	dry := dryRun(opts.DryRun)
	err = s.retry(ctx, namespace, name, func(cur *cache.Entry) error {
		if cur == nil {
			return apierrors.NewNotFound(s.gr, name)
		}
		seen, err := s.see(cur)
		if err != nil {
			return err
		}
		old := seen.Object()
		if req.check != nil {
			if err := req.check(old); err != nil {
				return err
			}
		}
		if err := s.checkDeletePreconditions(opts.Preconditions, old); err != nil {
			return err
		}
		o := opts.DeepCopy()
		attrs := &Attributes{Verb: Delete, Resource: s.res, Namespace: namespace, Name: name, Old: old, User: UserFrom(ctx), DryRun: dry, Options: o}
		if !req.unadmitted {
			if err := s.reg.cfg.Admission.Admit(ctx, attrs); err != nil {
				return err
			}
			if err := s.reg.cfg.Admission.Validate(ctx, attrs); err != nil {
				return err
			}
		}
		marked, now := s.markDeleted(old, o)
		switch {
		case now:
			gone = true
			if dry {
				entry = seen
				return nil
			}
			entry, err = s.remove(ctx, cur, nil)
			return err
		case marked == nil: // deletion is already under way and this adds nothing
			entry, gone = seen, false
			return nil
		case dry:
			entry, gone = s.unwritten(marked, cur.Revision), false
			return nil
		}
		stored, value, err := s.encode(marked)
		if err != nil {
			return err
		}
		gone = false
		entry, err = s.write(ctx, cur.Key, value, stored, func() (int64, error) {
			return s.reg.cfg.Store.Update(ctx, cur.Key, value, cur.Revision)
		})
		return err
	})
	if err != nil {
		return nil, false, s.storeError(err, name)
	}
	return entry, gone, nil
}

func (s *storage) checkDeletePreconditions(p *metav1.Preconditions, old api.Object) error {
	if p == nil {
		return nil
	}
	if p.UID != nil && *p.UID != old.GetUID() {
		return s.conflict(old.GetName(), "the UID in the precondition (%s) does not match the UID in record (%s). The object might have been deleted and then recreated", *p.UID, old.GetUID())
	}
	if p.ResourceVersion != nil && *p.ResourceVersion != old.GetResourceVersion() {
		return s.conflict(old.GetName(), "the ResourceVersion in the precondition (%s) does not match the ResourceVersion in record (%s). The object might have been modified", *p.ResourceVersion, old.GetResourceVersion())
	}
	return nil
}

// markDeleted decides what a delete does with the present state: now says that
// it goes at once; else the returned state is written, nil when that is the
// present one.
func (s *storage) markDeleted(old api.Object, opts *metav1.DeleteOptions) (marked api.Object, now bool) {
	finalizers := s.deletionFinalizers(old, opts)
	changed := !slices.Equal(finalizers, old.GetFinalizers())
	deleting := old.GetDeletionTimestamp() != nil
	if s.gr == namespacesGR {
		if ns, ok := old.(*corev1.Namespace); ok {
			return s.markNamespace(ns, finalizers, changed)
		}
	}
	if !deleting && s.res.MarkDeleted != nil {
		m := old.DeepCopyObject().(api.Object)
		at := s.now()
		m.SetDeletionTimestamp(&at)
		bumpGeneration(m)
		s.res.MarkDeleted(m)
		return m, len(m.GetFinalizers()) == 0
	}
	copied := func() api.Object {
		if marked == nil {
			marked = old.DeepCopyObject().(api.Object)
			if changed {
				marked.SetFinalizers(finalizers)
			}
		}
		return marked
	}
	if changed {
		copied()
	}

	if deleting && old.GetDeletionGracePeriodSeconds() != nil && s.res.GracePeriod != nil && *old.GetDeletionGracePeriodSeconds() > 0 {
		// A graceful deletion can only be shortened.
		had := *old.GetDeletionGracePeriodSeconds()
		if opts.GracePeriodSeconds == nil || *opts.GracePeriodSeconds >= had {
			return marked, false
		}
		grace := max(*opts.GracePeriodSeconds, 0)
		if grace == 0 && len(finalizers) == 0 {
			return nil, true
		}
		m := copied()
		started := old.GetDeletionTimestamp().Add(-time.Duration(had) * time.Second)
		at := metav1.NewTime(started.Add(time.Duration(grace) * time.Second))
		m.SetDeletionTimestamp(&at)
		m.SetDeletionGracePeriodSeconds(&grace)
		return m, false
	}
	if !deleting && s.res.GracePeriod != nil {
		if grace := s.res.GracePeriod(old, opts); grace > 0 || len(finalizers) > 0 {
			m := copied()
			at := metav1.NewTime(s.now().Add(time.Duration(grace) * time.Second))
			m.SetDeletionTimestamp(&at)
			m.SetDeletionGracePeriodSeconds(&grace)
			bumpGeneration(m)
			return m, false
		}
		return nil, true
	}
	if len(finalizers) == 0 {
		return nil, true
	}
	if !deleting {
		m := copied()
		at, zero := s.now(), int64(0)
		m.SetDeletionTimestamp(&at)
		m.SetDeletionGracePeriodSeconds(&zero)
		bumpGeneration(m)
	} else if grace := old.GetDeletionGracePeriodSeconds(); grace == nil {
		zero := int64(0)
		copied().SetDeletionGracePeriodSeconds(&zero)
	}
	return marked, false
}

// bumpGeneration marks that controllers have to look again (only where generation is used).
func bumpGeneration(obj api.Object) {
	if g := obj.GetGeneration(); g > 0 {
		obj.SetGeneration(g + 1)
	}
}

// markNamespace: a namespace is Terminating until its content is gone, which the
// namespace controller says by taking "kubernetes" out of spec.finalizers.
func (s *storage) markNamespace(old *corev1.Namespace, finalizers []string, changed bool) (api.Object, bool) {
	if old.DeletionTimestamp != nil && len(old.Spec.Finalizers) == 0 && len(finalizers) == 0 {
		return nil, true
	}
	terminating := old.DeletionTimestamp != nil && old.Status.Phase == corev1.NamespaceTerminating
	if terminating && !changed {
		return nil, false
	}
	if len(old.Spec.Finalizers) == 0 && len(finalizers) == 0 {
		return nil, true
	}
	m := old.DeepCopy()
	m.Finalizers = finalizers
	if m.DeletionTimestamp == nil {
		at := s.now()
		m.DeletionTimestamp = &at
	}
	m.Status.Phase = corev1.NamespaceTerminating
	return m, false
}

// deletionFinalizers returns the finalizers with those that the propagation policy asks for.
func (s *storage) deletionFinalizers(old api.Object, opts *metav1.DeleteOptions) []string {
	have := old.GetFinalizers()
	orphan, foreground := false, false
	switch {
	case opts.OrphanDependents != nil: //nolint:staticcheck // old clients still send it
		orphan = *opts.OrphanDependents //nolint:staticcheck // as above
	case opts.PropagationPolicy != nil:
		orphan = *opts.PropagationPolicy == metav1.DeletePropagationOrphan
		foreground = *opts.PropagationPolicy == metav1.DeletePropagationForeground
	case slices.Contains(have, metav1.FinalizerOrphanDependents):
		orphan = true
	case slices.Contains(have, metav1.FinalizerDeleteDependents):
		foreground = true
	default:
		orphan = s.res.DefaultOrphan
	}
	var want []string
	for _, f := range have {
		if f != metav1.FinalizerOrphanDependents && f != metav1.FinalizerDeleteDependents ||
			f == metav1.FinalizerOrphanDependents && orphan ||
			f == metav1.FinalizerDeleteDependents && foreground {
			want = append(want, f)
		}
	}
	if orphan && !slices.Contains(want, metav1.FinalizerOrphanDependents) {
		want = append(want, metav1.FinalizerOrphanDependents)
	}
	if foreground && !slices.Contains(want, metav1.FinalizerDeleteDependents) {
		want = append(want, metav1.FinalizerDeleteDependents)
	}
	return want
}

// remove deletes cur from the store, if it is still the newest state. The entry
// is the last state (last, in stored form, when the delete is part of an
// update) at the revision of the delete.
func (s *storage) remove(ctx context.Context, cur *cache.Entry, last api.Object) (*cache.Entry, error) {
	revision, err := s.reg.cfg.Store.Delete(ctx, cur.Key, cur.Revision)
	if err != nil {
		if _, lost := errors.AsType[*store.ConflictError](err); lost {
			return nil, err
		}
		return nil, s.storeError(err, cur.Object().GetName())
	}
	s.reg.set.Acknowledge(revision)
	// The delete has happened: a context that ends now changes nothing about that.
	_ = s.reg.set.WaitRevision(ctx, revision)
	if last == nil {
		return s.see(cur.At(revision))
	}
	last.SetResourceVersion(cache.FormatRevision(revision))
	return s.see(cache.NewEntry(cur.Key, revision, last, s.cache.Codec()))
}

// deleteWorkers is how many deletes of one collection run at once: enough to share the store's syncs.
const deleteWorkers = 16

func (s *storage) DeleteCollection(ctx context.Context, namespace string, opts metav1.DeleteOptions, list ListOptions) ([]*cache.Entry, error) {
	if errs := validation.ValidateDeleteOptions(&opts); len(errs) > 0 {
		return nil, apierrors.NewInvalid(metav1.SchemeGroupVersion.WithKind("DeleteOptions").GroupKind(), "", errs)
	}
	if p := opts.Preconditions; p != nil && (p.UID != nil || p.ResourceVersion != nil) {
		return nil, apierrors.NewBadRequest("preconditions cannot be set for a delete of a collection")
	}
	// Admission sees the collection as a delete without a name, then each object.
	if err := s.reg.cfg.Admission.Admit(ctx, &Attributes{Verb: Delete, Resource: s.res, Namespace: namespace, User: UserFrom(ctx),
		DryRun: dryRun(opts.DryRun), Options: opts.DeepCopy()}); err != nil {
		return nil, err
	}
	found, err := s.List(ctx, namespace, list)
	if err != nil {
		return nil, err
	}
	out := make([]*cache.Entry, len(found.Entries))
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		first error
		next  = make(chan int)
	)
	for range min(deleteWorkers, len(found.Entries)) {
		wg.Go(func() {
			for i := range next {
				obj := found.Entries[i].Object()
				e, _, err := s.delete(ctx, obj.GetNamespace(), obj.GetName(), opts, deleteRequest{check: func(now api.Object) error {
					if now.GetUID() != obj.GetUID() {
						return apierrors.NewNotFound(s.gr, obj.GetName()) // another one since the list
					}
					return nil
				}})
				if err != nil && !apierrors.IsNotFound(err) {
					mu.Lock()
					if first == nil {
						first = fmt.Errorf("delete %s %q: %w", s.gr, obj.GetName(), err)
					}
					mu.Unlock()
					continue
				}
				out[i] = e
			}
		})
	}
	for i := range found.Entries {
		next <- i
	}
	close(next)
	wg.Wait()
	if first != nil {
		var status apierrors.APIStatus
		if errors.As(first, &status) {
			return nil, status.(error)
		}
		return nil, first
	}
	for i, e := range out {
		if e == nil {
			out[i] = found.Entries[i]
		}
	}
	return out, nil
}
