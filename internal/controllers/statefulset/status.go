package statefulset

import (
	"context"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/controllers/owned"
)

// status counts the pods, as they were when the pass began.
func (p *pass) status() appsv1.StatefulSetStatus {
	s := appsv1.StatefulSetStatus{ObservedGeneration: p.set.Generation, CurrentRevision: p.current.Name, UpdateRevision: p.update.Name,
		CollisionCount: &p.collisions, Conditions: p.set.Status.Conditions}
	for _, pod := range p.pods {
		if !member(p.set, pod) {
			continue
		}
		s.Replicas++
		if runs(pod) {
			s.ReadyReplicas++
			if owned.Available(pod, p.set.Spec.MinReadySeconds, p.now) {
				s.AvailableReplicas++
			}
		}
		if pod.DeletionTimestamp != nil {
			continue
		}
		if versionOf(pod) == p.current.Name {
			s.CurrentReplicas++
		}
		if versionOf(pod) == p.update.Name {
			s.UpdatedReplicas++
		}
	}
	s.CurrentReplicas -= int32(p.updated)
	if want := int32(replicas(p.set)); s.UpdatedReplicas == want && s.ReadyReplicas == want && s.Replicas == want {
		s.CurrentReplicas, s.CurrentRevision = s.UpdatedReplicas, s.UpdateRevision
	}
	return s
}

func (p *pass) writeStatus(ctx context.Context) error {
	want := p.status()
	for try := 0; ; try++ {
		if apiequality.Semantic.DeepEqual(p.set.Status, want) {
			return nil
		}
		_, err := client.StatefulSets.UpdateStatus(ctx, p.client, &appsv1.StatefulSet{ObjectMeta: p.set.ObjectMeta, Spec: p.set.Spec, Status: want})
		switch {
		case err == nil || apierrors.IsNotFound(err):
			return nil
		case !apierrors.IsConflict(err) || try == 1:
			return fmt.Errorf("write the status of stateful set %s: %w", p.key, err)
		}
		// Somebody wrote in between, mostly the spec: what was counted still holds.
		fresh, err := client.StatefulSets.Get(ctx, p.client, p.key.Namespace, p.key.Name)
		if apierrors.IsNotFound(err) || err == nil && fresh.UID != p.set.UID {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read stateful set %s: %w", p.key, err)
		}
		p.set = fresh
	}
}
