// Package owned finds the objects that a controller's object owns: those with its
// controller reference, after it has adopted orphans that its selector matches and
// let go of those that it no longer matches.
package owned

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/proa-dev/proa/internal/client"
)

// Claim says who claims what.
type Claim[T client.Object] struct {
	Client   client.Interface
	Kind     client.Kind[T] // of what is claimed
	Owner    client.Object
	OwnerGVK schema.GroupVersionKind
	Selector labels.Selector
	// Live reads the owner anew: adoption trusts no cache, since an owner of the
	// same name may have come, or be on its way out.
	Live func(context.Context) (client.Object, error)
	// Adoptable says which orphans may be adopted (nil: all that match).
	Adoptable func(T) bool
}

// Of returns those of the candidates that the owner owns in the end. An error is
// that of an adoption or release; what is owned is right all the same.
func (c Claim[T]) Of(ctx context.Context, candidates []T) ([]T, error) {
	var out []T
	var errs []error
	checked, refused := false, error(nil)
	for _, obj := range candidates {
		ref := metav1.GetControllerOfNoCopy(obj)
		matches := c.Selector.Matches(labels.Set(obj.GetLabels()))
		switch {
		case ref != nil && ref.UID != c.Owner.GetUID():
		case ref != nil && matches:
			out = append(out, obj)
		case ref != nil && c.Owner.GetDeletionTimestamp() == nil:
			if err := c.release(ctx, obj); err != nil {
				errs = append(errs, err)
			}
		case ref != nil, !matches, c.Owner.GetDeletionTimestamp() != nil, obj.GetDeletionTimestamp() != nil, c.Adoptable != nil && !c.Adoptable(obj):
		default:
			if !checked {
				checked, refused = true, c.alive(ctx)
			}
			if refused != nil {
				errs = append(errs, fmt.Errorf("adopt %s %s/%s: %w", c.Kind.GVK.Kind, obj.GetNamespace(), obj.GetName(), refused))
				continue
			}
			adopted, err := c.adopt(ctx, obj)
			if err != nil {
				errs = append(errs, err)
			} else if adopted {
				out = append(out, obj)
			}
		}
	}
	return out, errors.Join(errs...)
}

func (c Claim[T]) alive(ctx context.Context) error {
	live, err := c.Live(ctx)
	if err != nil {
		return err
	}
	if live.GetUID() != c.Owner.GetUID() {
		return fmt.Errorf("original %s %s/%s is gone: got uid %s, wanted %s", c.OwnerGVK.Kind, c.Owner.GetNamespace(), c.Owner.GetName(), live.GetUID(), c.Owner.GetUID())
	}
	if live.GetDeletionTimestamp() != nil {
		return fmt.Errorf("%s %s/%s has just been deleted at %s", c.OwnerGVK.Kind, c.Owner.GetNamespace(), c.Owner.GetName(), live.GetDeletionTimestamp())
	}
	return nil
}

func (c Claim[T]) adopt(ctx context.Context, obj T) (bool, error) {
	refs := append(append([]metav1.OwnerReference{}, obj.GetOwnerReferences()...), *metav1.NewControllerRef(c.Owner, c.OwnerGVK))
	err := c.patch(ctx, obj, map[string]any{"ownerReferences": refs, "uid": obj.GetUID()})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

func (c Claim[T]) release(ctx context.Context, obj T) error {
	err := c.patch(ctx, obj, map[string]any{"ownerReferences": []map[string]any{{"$patch": "delete", "uid": c.Owner.GetUID()}}, "uid": obj.GetUID()})
	// Gone, or another one of that name: then there is nothing to let go.
	if apierrors.IsNotFound(err) || apierrors.IsInvalid(err) || apierrors.IsConflict(err) {
		return nil
	}
	return err
}

func (c Claim[T]) patch(ctx context.Context, obj T, metadata map[string]any) error {
	data, err := json.Marshal(map[string]any{"metadata": metadata})
	if err != nil {
		return err
	}
	if _, err := c.Kind.Patch(ctx, c.Client, obj.GetNamespace(), obj.GetName(), "", types.StrategicMergePatchType, data); err != nil {
		return fmt.Errorf("change the owner of %s %s/%s: %w", c.Kind.GVK.Kind, obj.GetNamespace(), obj.GetName(), err)
	}
	return nil
}

// Pod makes a pod of a template for an owner. Its name is made from the prefix
// unless the caller sets one.
func Pod(t *corev1.PodTemplateSpec, owner client.Object, gvk schema.GroupVersionKind, prefix string) *corev1.Pod {
	t = t.DeepCopy()
	pod := &corev1.Pod{Spec: t.Spec, ObjectMeta: metav1.ObjectMeta{Namespace: owner.GetNamespace(), GenerateName: prefix, Labels: t.Labels, Annotations: t.Annotations,
		Finalizers: t.Finalizers, OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(owner, gvk)}}}
	return pod
}

// Active says that a pod runs, or may still.
func Active(pod *corev1.Pod) bool {
	return pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed && pod.DeletionTimestamp == nil
}

// ReadySince returns since when a pod is ready.
func ReadySince(pod *corev1.Pod) (metav1.Time, bool) {
	for i := range pod.Status.Conditions {
		if c := &pod.Status.Conditions[i]; c.Type == corev1.PodReady {
			return c.LastTransitionTime, c.Status == corev1.ConditionTrue
		}
	}
	return metav1.Time{}, false
}
