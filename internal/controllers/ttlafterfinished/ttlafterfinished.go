// Package ttlafterfinished deletes Jobs some time after their end, as
// spec.ttlSecondsAfterFinished says (batch/v1).
package ttlafterfinished

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/controllers/loop"
)

// Controller deletes Jobs.
type Controller struct {
	client client.Interface
	loop   *loop.Loop[types.NamespacedName]
	jobs   client.Typed[*batchv1.Job]
}

// New returns the controller.
func New(c client.Interface, log *slog.Logger) *Controller {
	x := &Controller{client: c, jobs: client.Jobs.Informer(c, client.Scope{})}
	x.loop = loop.New("ttlafterfinished", log, x.sync)
	return x
}

func (x *Controller) Name() string { return "ttlafterfinished" }

// Run works until ctx ends.
func (x *Controller) Run(ctx context.Context) error {
	return x.loop.Run(ctx, 1, loop.Source{Informer: x.jobs.Informer, Handle: func(e client.Event) {
		if e.Object == nil || e.Type == client.Deleted {
			return
		}
		if left, ok := left(e.Object.(*batchv1.Job), time.Now()); ok {
			x.loop.After(types.NamespacedName{Namespace: e.Object.GetNamespace(), Name: e.Object.GetName()}, left)
		}
	}})
}

// left is how long a Job still lives; false when it does not end by itself.
func left(j *batchv1.Job, now time.Time) (time.Duration, bool) {
	if j.Spec.TTLSecondsAfterFinished == nil || j.DeletionTimestamp != nil {
		return 0, false
	}
	for _, c := range j.Status.Conditions {
		if (c.Type == batchv1.JobComplete || c.Type == batchv1.JobFailed) && c.Status == corev1.ConditionTrue {
			end := c.LastTransitionTime.Add(time.Duration(*j.Spec.TTLSecondsAfterFinished) * time.Second)
			return max(0, end.Sub(now)), true
		}
	}
	return 0, false
}

func (x *Controller) sync(ctx context.Context, key types.NamespacedName) error {
	// The newest state: the time to live may have been raised.
	j, err := client.Jobs.Get(ctx, x.client, key.Namespace, key.Name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read job %s: %w", key, err)
	}
	wait, ok := left(j, time.Now())
	if !ok {
		return nil
	}
	if wait > 0 {
		x.loop.After(key, wait)
		return nil
	}
	policy := metav1.DeletePropagationForeground
	err = client.Jobs.Delete(ctx, x.client, key.Namespace, key.Name, metav1.DeleteOptions{PropagationPolicy: &policy,
		Preconditions: &metav1.Preconditions{UID: &j.UID, ResourceVersion: &j.ResourceVersion}})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete job %s after its time to live: %w", key, err)
	}
	return nil
}
