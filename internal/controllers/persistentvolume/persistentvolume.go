// Package persistentvolume binds PersistentVolumeClaims to PersistentVolumes, one
// to one (C17), asks provisioners for volumes, gives claims without a class the
// default one, and says what became of volumes whose claim is gone.
//
// It makes and deletes no storage: provisioners do. Claims of classes that wait
// for their first pod are led by the scheduler.
package persistentvolume

import (
	"context"
	"log/slog"
	"sync"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/client/events"
	"github.com/proa-dev/proa/internal/controllers/loop"
)

// key names a claim, or without a namespace a volume.
type key struct{ namespace, name string }

// Controller writes PersistentVolumes and PersistentVolumeClaims; it reads
// StorageClasses and Pods.
type Controller struct {
	client   client.Interface
	loop     *loop.Loop[key]
	recorder *events.Recorder
	claims   client.Typed[*corev1.PersistentVolumeClaim]
	volumes  client.Typed[*corev1.PersistentVolume]
	classes  client.Typed[*storagev1.StorageClass]
	pods     client.Typed[*corev1.Pod]
}

// New returns the controller.
func New(c client.Interface, log *slog.Logger) *Controller {
	x := &Controller{client: c, recorder: events.New(c, "persistentvolume-controller", "", log),
		claims:  client.PersistentVolumeClaims.Informer(c, client.Scope{}),
		volumes: client.PersistentVolumes.Informer(c, client.Scope{}),
		classes: client.StorageClasses.Informer(c, client.Scope{}),
		pods:    client.Pods.Informer(c, client.Scope{})}
	x.loop = loop.New("persistentvolume-binder", log, x.sync)
	return x
}

func (x *Controller) Name() string { return "persistentvolume-binder" }

// Run works until ctx ends.
func (x *Controller) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { _ = x.recorder.Run(ctx) })
	// One worker: two claims must not be given the same volume.
	err := x.loop.Run(ctx, 1,
		loop.Source{Informer: x.claims.Informer, Handle: func(e client.Event) {
			c, ok := e.Object.(*corev1.PersistentVolumeClaim)
			if !ok {
				return
			}
			x.loop.Add(key{c.Namespace, c.Name})
			if c.Spec.VolumeName != "" {
				x.loop.Add(key{"", c.Spec.VolumeName})
			}
			if e.Type == client.Deleted && c.Spec.VolumeName == "" {
				for _, v := range x.volumes.List("", nil) {
					if meantFor(v, c) {
						x.loop.Add(key{"", v.Name})
					}
				}
			}
		}},
		loop.Source{Informer: x.volumes.Informer, Handle: func(e client.Event) {
			v, ok := e.Object.(*corev1.PersistentVolume)
			if !ok {
				return
			}
			x.loop.Add(key{"", v.Name})
			if ref := v.Spec.ClaimRef; ref != nil {
				x.loop.Add(key{ref.Namespace, ref.Name})
			}
			if e.Type == client.Deleted || v.Spec.ClaimRef == nil {
				x.pending(v.Name)
			}
		}},
		loop.Source{Informer: x.classes.Informer, Handle: func(e client.Event) {
			if e.Object != nil && e.Type != client.Deleted {
				x.pending("")
			}
		}},
		loop.Source{Informer: x.pods.Informer, Handle: func(e client.Event) {
			p, ok := e.Object.(*corev1.Pod)
			if !ok || e.Type != client.Added || p.Spec.NodeName != "" {
				return
			}
			for _, name := range claimsOf(p) {
				if c, ok := x.claims.Get(p.Namespace, name); ok && c.Spec.VolumeName == "" {
					x.loop.Add(key{p.Namespace, name})
				}
			}
		}})
	cancel()
	wg.Wait()
	return err
}

// pending looks again at the claims without a volume, and at those that ask for
// the volume of a name.
func (x *Controller) pending(volume string) {
	for _, c := range x.claims.List("", nil) {
		if c.Spec.VolumeName == "" || c.Spec.VolumeName == volume {
			x.loop.Add(key{c.Namespace, c.Name})
		}
	}
}

func (x *Controller) sync(ctx context.Context, k key) (err error) {
	if k.namespace == "" {
		if v, ok := x.volumes.Get("", k.name); ok {
			err = x.volume(ctx, v)
		}
	} else if c, ok := x.claims.Get(k.namespace, k.name); ok {
		err = x.claim(ctx, c)
	}
	if apierrors.IsNotFound(err) {
		return nil // it went in between
	}
	return err
}
