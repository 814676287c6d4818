// Package namespace empties namespaces that are being deleted, pods before the
// rest, and lets them go once nothing is left (C11).
package namespace

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/controllers/loop"
)

// Controller deletes what is in a Namespace; it reads every namespaced resource.
type Controller struct {
	client     client.Interface
	loop       *loop.Loop[string]
	namespaces client.Typed[*corev1.Namespace]
}

// New returns the controller.
func New(c client.Interface, log *slog.Logger) *Controller {
	x := &Controller{client: c, namespaces: client.Namespaces.Informer(c, client.Scope{})}
	x.loop = loop.New("namespace", log, x.sync)
	return x
}

func (x *Controller) Name() string { return "namespace" }

// Run works until ctx ends.
func (x *Controller) Run(ctx context.Context) error {
	return x.loop.Run(ctx, 2, loop.Source{Informer: x.namespaces.Informer, Handle: func(e client.Event) {
		if e.Object != nil && e.Type != client.Deleted && e.Object.GetDeletionTimestamp() != nil {
			x.loop.Add(e.Object.GetName())
		}
	}})
}

// again is when a namespace is looked at that still has objects: their owners
// (kubelets, finalizers) end them in their own time.
const again = 500 * time.Millisecond

func (x *Controller) sync(ctx context.Context, name string) error {
	ns, ok := x.namespaces.Get("", name)
	if !ok || ns.DeletionTimestamp == nil || !slices.Contains(ns.Spec.Finalizers, corev1.FinalizerKubernetes) {
		return nil
	}
	resources, err := x.client.Resources(ctx)
	if err != nil {
		return fmt.Errorf("namespace %s: list the resources: %w", name, err)
	}
	// Pods go first, so that what protects them (network policies) outlives them.
	left, err := x.empty(ctx, name, client.ResourceInfo{GVR: client.Pods.GVR, Namespaced: true})
	if err != nil {
		return err
	}
	if left == 0 {
		for _, r := range resources {
			if !r.Namespaced || r.GVR == client.Pods.GVR {
				continue
			}
			n, err := x.empty(ctx, name, r)
			if err != nil {
				return err
			}
			left += n
		}
	}
	if left > 0 {
		x.loop.After(name, again)
		return nil
	}
	out := ns.DeepCopy()
	out.Spec.Finalizers = slices.DeleteFunc(out.Spec.Finalizers, func(f corev1.FinalizerName) bool { return f == corev1.FinalizerKubernetes })
	if _, err := x.client.Update(ctx, client.Namespaces.GVR, "", "finalize", out, metav1.UpdateOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("finalize namespace %s: %w", name, err)
	}
	return nil
}

// empty deletes a resource's objects in a namespace and returns how many are left.
func (x *Controller) empty(ctx context.Context, namespace string, r client.ResourceInfo) (int, error) {
	list, err := x.client.List(ctx, r.GVR, namespace, metav1.ListOptions{})
	if err != nil {
		return 0, fmt.Errorf("namespace %s: list %s: %w", namespace, r.GVR.Resource, err)
	}
	background := metav1.DeletePropagationBackground
	left := 0
	for _, obj := range list.Items {
		if obj.GetDeletionTimestamp() == nil {
			uid := obj.GetUID()
			err := x.client.Delete(ctx, r.GVR, namespace, obj.GetName(), metav1.DeleteOptions{PropagationPolicy: &background, Preconditions: &metav1.Preconditions{UID: &uid}})
			if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
				return 0, fmt.Errorf("namespace %s: delete %s %s: %w", namespace, r.GVR.Resource, obj.GetName(), err)
			}
		}
	}
	list, err = x.client.List(ctx, r.GVR, namespace, metav1.ListOptions{})
	if err != nil {
		return 0, fmt.Errorf("namespace %s: list %s: %w", namespace, r.GVR.Resource, err)
	}
	left = len(list.Items)
	return left, nil
}
