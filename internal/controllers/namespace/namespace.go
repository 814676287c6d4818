// Package namespace empties namespaces that are being deleted, pods before the
// rest, and lets them go once nothing is left (C11).
package namespace

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

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
	found := &content{remaining: map[schema.GroupVersionResource]int{}, finalizers: map[string]int{}}
	resources, err := x.client.Resources(ctx)
	if err != nil {
		found.discovery = err
	}
	// Pods go first, so that what protects them (network policies) outlives them.
	x.empty(ctx, name, client.ResourceInfo{GVR: client.Pods.GVR, Namespaced: true}, found)
	if found.left() == 0 && len(found.failed) == 0 {
		for _, r := range resources {
			if r.Namespaced && r.GVR != client.Pods.GVR {
				x.empty(ctx, name, r, found)
			}
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if left := found.left(); left > 0 || len(found.failed) > 0 || found.discovery != nil {
		if err := x.report(ctx, ns, found); err != nil {
			return err
		}
		if left == 0 || found.discovery != nil {
			return fmt.Errorf("empty namespace %s: %w", name, errors.Join(found.discovery, errors.New(strings.Join(found.failed, ", "))))
		}
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

// report writes why a namespace is not gone yet, if that is news.
func (x *Controller) report(ctx context.Context, ns *corev1.Namespace, found *content) error {
	out := ns.DeepCopy()
	if !setConditions(out, found.conditions(), time.Now()) {
		return nil
	}
	if _, err := client.Namespaces.UpdateStatus(ctx, x.client, out); err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("write the status of namespace %s: %w", ns.Name, err)
	}
	return nil
}

// empty deletes a resource's objects in a namespace and notes what is left.
func (x *Controller) empty(ctx context.Context, namespace string, r client.ResourceInfo, found *content) {
	fail := func(what string, err error) {
		found.failed = append(found.failed, fmt.Sprintf("%s %s: %v", what, r.GVR.GroupResource(), err))
	}
	list, err := x.client.List(ctx, r.GVR, namespace, metav1.ListOptions{})
	if apierrors.IsNotFound(err) {
		return // a custom resource that is served no more
	}
	if err != nil {
		fail("list", err)
		return
	}
	if len(list.Items) == 0 {
		return
	}
	background := metav1.DeletePropagationBackground
	for _, obj := range list.Items {
		if obj.GetDeletionTimestamp() != nil {
			continue
		}
		uid := obj.GetUID()
		err := x.client.Delete(ctx, r.GVR, namespace, obj.GetName(), metav1.DeleteOptions{PropagationPolicy: &background, Preconditions: &metav1.Preconditions{UID: &uid}})
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			fail("delete "+obj.GetName()+" of", err)
		}
	}
	if list, err = x.client.List(ctx, r.GVR, namespace, metav1.ListOptions{}); err != nil {
		fail("list", err)
		return
	}
	for _, obj := range list.Items {
		found.remaining[r.GVR]++
		for _, f := range obj.GetFinalizers() {
			found.finalizers[f]++
		}
	}
}
