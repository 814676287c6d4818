package customresource

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/proa-dev/proa/internal/apiserver/cache"
	"github.com/proa-dev/proa/internal/apiserver/rest"
)

// Retries of a definition whose objects cannot be deleted.
const (
	finalizeFirst = time.Second
	finalizeMost  = time.Minute
)

// finalize deletes the objects of a definition that is going away, and lets it go.
func (d *Definitions) finalize(ctx context.Context, name string) {
	for wait := finalizeFirst; ; wait = min(2*wait, finalizeMost) {
		crd := d.get(name)
		if crd == nil || crd.DeletionTimestamp == nil || !apihelpers.CRDHasFinalizer(crd, apiextensionsv1.CustomResourceCleanupFinalizer) {
			return
		}
		err := d.finalizeOnce(ctx, crd.DeepCopy())
		if err == nil {
			// Written against what another writer has changed: once more.
			if now := d.get(name); now == nil || !apihelpers.CRDHasFinalizer(now, apiextensionsv1.CustomResourceCleanupFinalizer) {
				return
			}
		} else if ctx.Err() == nil {
			d.log.Warn("delete the objects of a custom resource definition", "name", name, "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

func terminating(status apiextensionsv1.ConditionStatus, reason, message string) apiextensionsv1.CustomResourceDefinitionCondition {
	return apiextensionsv1.CustomResourceDefinitionCondition{Type: apiextensionsv1.Terminating, Status: status, Reason: reason, Message: message}
}

func (d *Definitions) finalizeOnce(ctx context.Context, crd *apiextensionsv1.CustomResourceDefinition) error {
	if c := apihelpers.FindCRDCondition(crd, apiextensionsv1.Terminating); c == nil || c.Reason == "InstanceDeletionPending" {
		apihelpers.SetCRDCondition(crd, terminating(apiextensionsv1.ConditionTrue, "InstanceDeletionInProgress", "CustomResource deletion is in progress"))
		if _, err := d.write(ctx, crd); err != nil {
			return err
		}
		now := d.get(crd.Name)
		if now == nil {
			return nil
		}
		crd = now.DeepCopy()
	}
	done := terminating(apiextensionsv1.ConditionFalse, "NeverEstablished", "resource was never established")
	if apihelpers.IsCRDConditionTrue(crd, apiextensionsv1.Established) {
		reason, err := d.deleteObjects(ctx, crd.Name)
		if err != nil {
			apihelpers.SetCRDCondition(crd, terminating(apiextensionsv1.ConditionTrue, reason, err.Error()))
			if _, werr := d.write(ctx, crd); werr != nil {
				return werr
			}
			return err
		}
		done = terminating(apiextensionsv1.ConditionFalse, "InstanceDeletionCompleted", "removed all instances")
	}
	apihelpers.SetCRDCondition(crd, done)
	apihelpers.CRDRemoveFinalizer(crd, apiextensionsv1.CustomResourceCleanupFinalizer)
	_, err := d.write(ctx, crd)
	return err
}

// goneWithin is how long objects that are being deleted may keep a definition
// before its condition says so.
const goneWithin = time.Minute

// deleteObjects deletes all objects and waits until they are gone.
func (d *Definitions) deleteObjects(ctx context.Context, name string) (reason string, err error) {
	d.mu.RLock()
	s := d.served[name]
	d.mu.RUnlock()
	if s == nil {
		return "InstanceDeletionFailed", errors.New("could not list instances: they are not served")
	}
	storage, c, ok := d.cfg.Registry.Custom(s.gr)
	if !ok {
		return "InstanceDeletionFailed", fmt.Errorf("could not list instances: %s is not served", s.gr)
	}
	if _, err := storage.DeleteCollection(d.as(ctx), "", metav1.DeleteOptions{}, rest.ListOptions{}); err != nil {
		return "InstanceDeletionFailed", fmt.Errorf("could not issue all deletes: %w", err)
	}
	w, snapshot, _, err := c.Watch(cache.WatchOptions{})
	if err != nil {
		return "InstanceDeletionCheck", fmt.Errorf("could not confirm zero CustomResources remaining: %w", err)
	}
	defer w.Stop()
	late := time.NewTimer(goneWithin)
	defer late.Stop()
	var buf []*cache.Event
	for snapshot.Len() > 0 {
		select {
		case <-w.Wake():
		case <-late.C:
			return "InstanceDeletionCheck", fmt.Errorf("could not confirm zero CustomResources remaining: %w", context.DeadlineExceeded)
		case <-ctx.Done():
			return "InstanceDeletionCheck", fmt.Errorf("could not confirm zero CustomResources remaining: %w", ctx.Err())
		}
		if buf, err = w.Poll(buf[:0]); err != nil {
			return "InstanceDeletionCheck", fmt.Errorf("could not confirm zero CustomResources remaining: %w", err)
		}
		snapshot, _ = c.Read()
	}
	return "", nil
}
