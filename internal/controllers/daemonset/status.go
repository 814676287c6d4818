package daemonset

import (
	"context"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/controllers/owned"
)

// status counts what is on the nodes. acted says that this generation was acted on.
func (p *pass) status(acted bool, now time.Time) (s appsv1.DaemonSetStatus) {
	s = appsv1.DaemonSetStatus{ObservedGeneration: p.set.Status.ObservedGeneration, CollisionCount: p.set.Status.CollisionCount, Conditions: p.set.Status.Conditions}
	if acted {
		s.ObservedGeneration = p.set.Generation
	}
	for i := range p.place {
		at := &p.place[i]
		switch {
		case !at.there:
		case !at.run && len(at.pods) > 0:
			s.NumberMisscheduled++
		case at.run:
			s.DesiredNumberScheduled++
			if len(at.pods) == 0 {
				continue
			}
			s.CurrentNumberScheduled++
			pod := at.pods[0]
			if owned.Ready(pod) {
				s.NumberReady++
				if p.available(pod, now) {
					s.NumberAvailable++
				}
			}
			if p.updated(pod) {
				s.UpdatedNumberScheduled++
			}
		}
	}
	s.NumberUnavailable = s.DesiredNumberScheduled - s.NumberAvailable
	return s
}

func (p *pass) writeStatus(ctx context.Context, acted bool) error {
	now := time.Now()
	want := p.status(acted, now)
	// The next one to be available is counted then.
	if wait, some := owned.NextAvailable(p.pods, p.set.Spec.MinReadySeconds, now); some {
		p.loop.After(p.key, wait)
	}
	if apiequality.Semantic.DeepEqual(p.set.Status, want) {
		return nil
	}
	_, err := client.DaemonSets.UpdateStatus(ctx, p.client, &appsv1.DaemonSet{ObjectMeta: p.set.ObjectMeta, Spec: p.set.Spec, Status: want})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("write the status of daemon set %s: %w", p.key, err)
	}
	return nil
}
