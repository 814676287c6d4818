package garbagecollector

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/proa-dev/proa/internal/client"
)

// sync looks at one object: whether it is to be collected, or waits for others.
func (x *Controller) sync(ctx context.Context, me ref) error {
	obj, ok := x.kinds.get(me.gvr, me.namespace, me.name)
	if !ok || obj.GetUID() != me.uid {
		return nil
	}
	if obj.GetDeletionTimestamp() != nil {
		switch {
		case slices.Contains(obj.GetFinalizers(), metav1.FinalizerOrphanDependents):
			return x.orphan(ctx, me)
		case slices.Contains(obj.GetFinalizers(), metav1.FinalizerDeleteDependents):
			return x.foreground(ctx, me)
		}
		return nil
	}
	return x.collect(ctx, me, obj)
}

// collect deletes an object without an owner that holds it. While one does, the
// references to the others are taken away.
func (x *Controller) collect(ctx context.Context, me ref, obj client.Object) error {
	var holding int
	var absent, waiting []types.UID
	for _, o := range obj.GetOwnerReferences() {
		state, err := x.owner(ctx, obj, o)
		switch {
		case err != nil:
			return err
		case state == holds:
			holding++
		case state == waits:
			waiting = append(waiting, o.UID)
		default:
			absent = append(absent, o.UID)
		}
	}
	if holding > 0 {
		if len(absent)+len(waiting) == 0 {
			return nil
		}
		return x.disown(ctx, me, obj, append(absent, waiting...))
	}
	if len(absent)+len(waiting) == 0 {
		return nil // an object without owners is nobody's to collect
	}
	if len(waiting) > 0 && x.circular(me) && slices.ContainsFunc(obj.GetOwnerReferences(), blocks) {
		return x.unblock(ctx, me, obj) // the change brings it here again
	}
	policy := metav1.DeletePropagationBackground
	switch {
	case slices.Contains(obj.GetFinalizers(), metav1.FinalizerOrphanDependents):
		policy = metav1.DeletePropagationOrphan
	case slices.Contains(obj.GetFinalizers(), metav1.FinalizerDeleteDependents), len(waiting) > 0 && len(x.dependentsOf(me.uid)) > 0:
		policy = metav1.DeletePropagationForeground
	}
	// The revision, so that an owner that has come in between is not overlooked.
	err := x.client.Delete(ctx, me.gvr, me.namespace, me.name, metav1.DeleteOptions{PropagationPolicy: &policy,
		Preconditions: &metav1.Preconditions{UID: &me.uid, ResourceVersion: ptr.To(obj.GetResourceVersion())}})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("collect %s %s/%s: %w", me.gvr.Resource, me.namespace, me.name, err)
	}
	return nil
}

// circular says that an owner in foreground deletion also depends on the object:
// then neither must wait for the other.
func (x *Controller) circular(me ref) bool {
	for _, d := range x.dependentsOf(me.uid) {
		if obj, ok := x.kinds.get(d.gvr, d.namespace, d.name); ok && obj.GetUID() == d.uid && obj.GetDeletionTimestamp() != nil &&
			slices.Contains(obj.GetFinalizers(), metav1.FinalizerDeleteDependents) {
			return true
		}
	}
	return false
}

// unblock lets the owners of an object go before it.
func (x *Controller) unblock(ctx context.Context, me ref, obj client.Object) error {
	refs := slices.Clone(obj.GetOwnerReferences())
	for i := range refs {
		refs[i].BlockOwnerDeletion = ptr.To(false)
	}
	return x.patch(ctx, me, "unblock the owners of", map[string]any{"uid": me.uid, "resourceVersion": obj.GetResourceVersion(), "ownerReferences": refs})
}

type state int

const (
	gone  state = iota // it does not exist
	holds              // it exists
	waits              // it is being deleted, once its dependents are
)

// owner says how an owner stands. Absence is asked of the newest state, since an
// informer may not have seen the owner yet.
func (x *Controller) owner(ctx context.Context, obj client.Object, o metav1.OwnerReference) (state, error) {
	at, ok := x.resolve(obj.GetNamespace(), o)
	if !ok {
		// Nobody can say that it is gone: the object stays.
		if group, err := schema.ParseGroupVersion(o.APIVersion); err == nil {
			if _, served := x.kinds.kind(schema.GroupKind{Group: group.Group, Kind: o.Kind}); served {
				x.warn(obj, o)
			}
		}
		return holds, nil
	}
	found, ok := x.kinds.get(at.gvr, at.namespace, at.name)
	if !ok || found.GetUID() != o.UID {
		live, err := x.client.Get(ctx, at.gvr, at.namespace, at.name)
		switch {
		case apierrors.IsNotFound(err):
			return gone, nil
		case err != nil:
			return gone, fmt.Errorf("look for owner %s %s/%s: %w", at.gvr.Resource, at.namespace, at.name, err)
		case live.GetUID() != o.UID:
			return gone, nil
		}
		found = live
	}
	if found.GetDeletionTimestamp() != nil && slices.Contains(found.GetFinalizers(), metav1.FinalizerDeleteDependents) {
		return waits, nil
	}
	return holds, nil
}

// foreground deletes the dependents of an object, and lets it go when none blocks.
func (x *Controller) foreground(ctx context.Context, me ref) error {
	blocked := false
	for _, d := range x.dependentsOf(me.uid) {
		obj, ok := x.kinds.get(d.gvr, d.namespace, d.name)
		if !ok || obj.GetUID() != d.uid {
			continue
		}
		for _, o := range obj.GetOwnerReferences() {
			if o.UID == me.uid && blocks(o) {
				blocked = true
			}
		}
		if obj.GetDeletionTimestamp() == nil {
			x.loop.Add(d)
		}
	}
	if blocked {
		return nil // the end of a dependent is the next reason to look
	}
	return x.dropFinalizer(ctx, me, metav1.FinalizerDeleteDependents)
}

// orphan takes the references to an object from its dependents and lets it go.
func (x *Controller) orphan(ctx context.Context, me ref) error {
	for _, d := range x.dependentsOf(me.uid) {
		obj, ok := x.kinds.get(d.gvr, d.namespace, d.name)
		if !ok || obj.GetUID() != d.uid {
			continue
		}
		if err := x.disown(ctx, d, obj, []types.UID{me.uid}); err != nil {
			return err
		}
	}
	return x.dropFinalizer(ctx, me, metav1.FinalizerOrphanDependents)
}

// disown takes owner references from an object.
func (x *Controller) disown(ctx context.Context, me ref, obj client.Object, uids []types.UID) error {
	keep := slices.DeleteFunc(slices.Clone(obj.GetOwnerReferences()), func(o metav1.OwnerReference) bool { return slices.Contains(uids, o.UID) })
	return x.patch(ctx, me, "take owners from", map[string]any{"uid": me.uid, "resourceVersion": obj.GetResourceVersion(), "ownerReferences": keep})
}

func (x *Controller) dropFinalizer(ctx context.Context, me ref, finalizer string) error {
	obj, err := x.client.Get(ctx, me.gvr, me.namespace, me.name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read %s %s/%s: %w", me.gvr.Resource, me.namespace, me.name, err)
	}
	if obj.GetUID() != me.uid || !slices.Contains(obj.GetFinalizers(), finalizer) {
		return nil
	}
	keep := slices.DeleteFunc(slices.Clone(obj.GetFinalizers()), func(f string) bool { return f == finalizer })
	return x.patch(ctx, me, "take finalizer "+finalizer+" from", map[string]any{"uid": me.uid, "resourceVersion": obj.GetResourceVersion(), "finalizers": keep})
}

// patch replaces metadata, guarded by the revision that it was worked out from.
func (x *Controller) patch(ctx context.Context, me ref, what string, metadata map[string]any) error {
	data, err := json.Marshal(map[string]any{"metadata": metadata})
	if err != nil {
		return err
	}
	if _, err := x.client.Patch(ctx, me.gvr, me.namespace, me.name, "", types.MergePatchType, data, metav1.PatchOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("%s %s %s/%s: %w", what, me.gvr.Resource, me.namespace, me.name, err)
	}
	return nil
}
