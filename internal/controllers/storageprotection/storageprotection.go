// Package storageprotection keeps PersistentVolumeClaims that a pod uses and
// PersistentVolumes that are bound to a claim: they wait with a finalizer until
// nobody needs them.
package storageprotection

import (
	"context"
	"fmt"
	"log/slog"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/controllers/loop"
)

const (
	claimFinalizer  = "kubernetes.io/pvc-protection"
	volumeFinalizer = "kubernetes.io/pv-protection"
)

// Claims protects PersistentVolumeClaims.
type Claims struct {
	client client.Interface
	loop   *loop.Loop[types.NamespacedName]
	claims client.Typed[*corev1.PersistentVolumeClaim]
	pods   client.Typed[*corev1.Pod]
}

// NewClaims returns the controller of claims.
func NewClaims(c client.Interface, log *slog.Logger) *Claims {
	x := &Claims{client: c, claims: client.PersistentVolumeClaims.Informer(c, client.Scope{}), pods: client.Pods.Informer(c, client.Scope{})}
	x.loop = loop.New("pvcprotection", log, x.sync)
	return x
}

func (x *Claims) Name() string { return "pvc-protection" }

// Run works until ctx ends.
func (x *Claims) Run(ctx context.Context) error {
	return x.loop.Run(ctx, 2,
		loop.Source{Informer: x.claims.Informer, Handle: func(e client.Event) {
			if e.Object != nil && e.Type != client.Deleted {
				x.loop.Add(types.NamespacedName{Namespace: e.Object.GetNamespace(), Name: e.Object.GetName()})
			}
		}},
		loop.Source{Informer: x.pods.Informer, Handle: func(e client.Event) {
			pod, ok := e.Object.(*corev1.Pod)
			if !ok || e.Type != client.Deleted && uses(pod) {
				return // only who lets go sets a claim free
			}
			for _, name := range claimsOf(pod) {
				if c, ok := x.claims.Get(pod.Namespace, name); ok && c.DeletionTimestamp != nil {
					x.loop.Add(types.NamespacedName{Namespace: pod.Namespace, Name: name})
				}
			}
		}})
}

// uses says whether a pod may still have its volumes mounted.
func uses(p *corev1.Pod) bool {
	return p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed
}

// claimsOf names the claims of a pod, its ephemeral ones too.
func claimsOf(p *corev1.Pod) (out []string) {
	for i := range p.Spec.Volumes {
		switch v := &p.Spec.Volumes[i]; {
		case v.PersistentVolumeClaim != nil:
			out = append(out, v.PersistentVolumeClaim.ClaimName)
		case v.Ephemeral != nil:
			out = append(out, p.Name+"-"+v.Name)
		}
	}
	return out
}

func (x *Claims) sync(ctx context.Context, key types.NamespacedName) error {
	c, ok := x.claims.Get(key.Namespace, key.Name)
	if !ok {
		return nil
	}
	has := slices.Contains(c.Finalizers, claimFinalizer)
	if c.DeletionTimestamp == nil {
		if has {
			return nil
		}
		out := c.DeepCopy()
		out.Finalizers = append(out.Finalizers, claimFinalizer)
		return x.update(ctx, out)
	}
	if !has {
		return nil
	}
	// In process the view shows every pod whose creation has returned.
	for _, p := range x.pods.List(key.Namespace, nil) {
		if uses(p) && slices.Contains(claimsOf(p), key.Name) {
			return nil
		}
	}
	out := c.DeepCopy()
	out.Finalizers = slices.DeleteFunc(out.Finalizers, func(f string) bool { return f == claimFinalizer })
	return x.update(ctx, out)
}

func (x *Claims) update(ctx context.Context, c *corev1.PersistentVolumeClaim) error {
	if _, err := client.PersistentVolumeClaims.Update(ctx, x.client, c); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("set the finalizers of persistentvolumeclaim %s/%s: %w", c.Namespace, c.Name, err)
	}
	return nil
}

// Volumes protects PersistentVolumes.
type Volumes struct {
	client  client.Interface
	loop    *loop.Loop[string]
	volumes client.Typed[*corev1.PersistentVolume]
}

// NewVolumes returns the controller of volumes.
func NewVolumes(c client.Interface, log *slog.Logger) *Volumes {
	x := &Volumes{client: c, volumes: client.PersistentVolumes.Informer(c, client.Scope{})}
	x.loop = loop.New("pvprotection", log, x.sync)
	return x
}

func (x *Volumes) Name() string { return "pv-protection" }

// Run works until ctx ends.
func (x *Volumes) Run(ctx context.Context) error {
	return x.loop.Run(ctx, 1, loop.Source{Informer: x.volumes.Informer, Handle: func(e client.Event) {
		if e.Object != nil && e.Type != client.Deleted {
			x.loop.Add(e.Object.GetName())
		}
	}})
}

func (x *Volumes) sync(ctx context.Context, name string) error {
	v, ok := x.volumes.Get("", name)
	if !ok {
		return nil
	}
	has := slices.Contains(v.Finalizers, volumeFinalizer)
	out := v.DeepCopy()
	switch {
	case v.DeletionTimestamp == nil && !has:
		out.Finalizers = append(out.Finalizers, volumeFinalizer)
	case v.DeletionTimestamp != nil && has && v.Status.Phase != corev1.VolumeBound:
		out.Finalizers = slices.DeleteFunc(out.Finalizers, func(f string) bool { return f == volumeFinalizer })
	default:
		return nil
	}
	if _, err := client.PersistentVolumes.Update(ctx, x.client, out); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("set the finalizers of persistentvolume %s: %w", name, err)
	}
	return nil
}
