package deployment

import (
	"context"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// fenceposts resolves the strategy's bounds to numbers: surge is rounded up,
// unavailability down, and when both are nothing one pod may be unavailable, since
// otherwise nothing could ever move.
func fenceposts(d *appsv1.Deployment) (surge, unavailable int32) {
	ru := d.Spec.Strategy.RollingUpdate
	if d.Spec.Strategy.Type != appsv1.RollingUpdateDeploymentStrategyType || ru == nil {
		return 0, 0
	}
	value := func(v *intstr.IntOrString, up bool) int32 {
		n, err := intstr.GetScaledValueFromIntOrPercent(intstr.ValueOrDefault(v, intstr.FromInt32(0)), int(*d.Spec.Replicas), up)
		if err != nil {
			return 0
		}
		return int32(n)
	}
	surge, unavailable = value(ru.MaxSurge, true), value(ru.MaxUnavailable, false)
	if surge == 0 && unavailable == 0 {
		unavailable = 1
	}
	return surge, unavailable
}

func (r *rollout) maxSurge() int32 {
	surge, _ := fenceposts(r.d)
	return surge
}

func (r *rollout) maxUnavailable() int32 {
	if *r.d.Spec.Replicas == 0 {
		return 0
	}
	_, unavailable := fenceposts(r.d)
	return min(unavailable, *r.d.Spec.Replicas)
}

func total(sets []*appsv1.ReplicaSet) (n int32) {
	for _, s := range sets {
		n += *s.Spec.Replicas
	}
	return n
}

// availablePods counts those that will be available when the sets have their size:
// the status of a set that has just been scaled down still counts what goes.
func availablePods(sets []*appsv1.ReplicaSet) (n int32) {
	for _, s := range sets {
		n += min(*s.Spec.Replicas, s.Status.AvailableReplicas)
	}
	return n
}

// newReplicas is to how many pods the new set, which has some, may grow now.
func (r *rollout) newReplicas(have int32) int32 {
	want := *r.d.Spec.Replicas
	if r.d.Spec.Strategy.Type != appsv1.RollingUpdateDeploymentStrategyType {
		return want
	}
	// Pods that an old set has still to delete count, or there were too many for a moment.
	room := want + r.maxSurge() - have
	for _, set := range r.old {
		room -= max(*set.Spec.Replicas, set.Status.Replicas)
	}
	return have + min(max(0, room), want-have)
}

// growNew scales the new set; done says that something was done.
func (r *rollout) growNew(ctx context.Context) (done bool, err error) {
	have, want := *r.new.Spec.Replicas, *r.d.Spec.Replicas
	switch {
	case have == want:
		return false, nil
	case have > want:
		return true, r.scale(ctx, r.new, want)
	}
	if to := r.newReplicas(have); to != have {
		return true, r.scale(ctx, r.new, to)
	}
	return false, nil
}

// shrinkOld scales old sets down as far as availability allows: first pods that
// are not available anyway, then others while enough are available.
func (r *rollout) shrinkOld(ctx context.Context) (done bool, err error) {
	if total(r.old) == 0 {
		return false, nil
	}
	least := *r.d.Spec.Replicas - r.maxUnavailable()
	newUnavailable := *r.new.Spec.Replicas - r.new.Status.AvailableReplicas
	spare := total(r.all()) - least - newUnavailable
	if spare <= 0 {
		return false, nil
	}
	for i := range r.old {
		set := r.old[i]
		// A set whose size is not settled would be counted by what it no longer is.
		sick := min(spare, *set.Spec.Replicas-set.Status.AvailableReplicas)
		if *set.Spec.Replicas == 0 || sick <= 0 {
			continue
		}
		if err := r.scale(ctx, set, *set.Spec.Replicas-sick); err != nil {
			return done, err
		}
		spare -= sick
		done = true
	}
	healthy := availablePods(r.all()) - least
	for i := range r.old {
		set := r.old[i]
		n := min(healthy, *set.Spec.Replicas)
		if n <= 0 {
			continue
		}
		if err := r.scale(ctx, set, *set.Spec.Replicas-n); err != nil {
			return done, err
		}
		healthy -= n
		done = true
	}
	return done, nil
}

// scaleAll brings the sets to a changed number of pods, without a rollout going on:
// the only active set gets all; of several, each its share.
func (r *rollout) scaleAll(ctx context.Context) error {
	active := slices.DeleteFunc(r.all(), func(s *appsv1.ReplicaSet) bool { return *s.Spec.Replicas == 0 })
	want := *r.d.Spec.Replicas
	if len(active) <= 1 {
		only := r.new
		if len(active) == 1 {
			only = active[0]
		} else if only == nil && len(r.old) > 0 {
			only = slices.MaxFunc(r.old, older)
		}
		if only == nil || *only.Spec.Replicas == want {
			if only != nil {
				return r.scale(ctx, only, want) // notes the size
			}
			return nil
		}
		return r.scale(ctx, only, want)
	}
	// The new one does it all already: what is left of the old ones goes.
	if r.new != nil && *r.new.Spec.Replicas == want && r.new.Status.AvailableReplicas == want {
		if n, ok := number(r.new, desiredAnnotation); ok && n == want {
			for _, set := range r.old {
				if *set.Spec.Replicas > 0 {
					if err := r.scale(ctx, set, 0); err != nil {
						return err
					}
				}
			}
			return nil
		}
	}
	if r.d.Spec.Strategy.Type != appsv1.RollingUpdateDeploymentStrategyType {
		return nil
	}
	return r.proportional(ctx, active)
}

// proportional shares the pods to add or take among the active sets by their size.
func (r *rollout) proportional(ctx context.Context, active []*appsv1.ReplicaSet) error {
	allowed := int32(0)
	if *r.d.Spec.Replicas > 0 {
		allowed = *r.d.Spec.Replicas + r.maxSurge()
	}
	toAdd := allowed - total(active)
	// The largest first; of equals, growing takes the newest first, shrinking the oldest.
	slices.SortFunc(active, func(a, b *appsv1.ReplicaSet) int {
		if c := *b.Spec.Replicas - *a.Spec.Replicas; c != 0 {
			return int(c)
		}
		if toAdd > 0 {
			return older(b, a)
		}
		return older(a, b)
	})
	sizes, added := make([]int32, len(active)), int32(0)
	for i, set := range active {
		sizes[i] = *set.Spec.Replicas
		if toAdd == 0 {
			continue
		}
		share := r.share(set, toAdd, added)
		sizes[i] += share
		added += share
	}
	for i, set := range active {
		if i == 0 {
			sizes[0] = max(0, sizes[0]+toAdd-added) // what rounding left over
		}
		if err := r.scale(ctx, set, sizes[i]); err != nil {
			return err
		}
	}
	return nil
}

// share is what a set gets of the pods to add (or, when negative, to take).
func (r *rollout) share(set *appsv1.ReplicaSet, toAdd, added int32) int32 {
	left := toAdd - added
	if left == 0 {
		return 0
	}
	was, ok := number(set, maxAnnotation)
	if !ok || was == 0 {
		was = r.shared.Status.Replicas
	}
	if *r.d.Spec.Replicas == 0 {
		return -*set.Spec.Replicas
	}
	if was == 0 {
		return 0
	}
	// The set's part of the size before, of the size now, rounded to the nearest.
	size := float64(*set.Spec.Replicas) * float64(*r.d.Spec.Replicas+r.maxSurge()) / float64(was)
	part := int32(size+0.5) - *set.Spec.Replicas
	if toAdd > 0 {
		return min(part, left)
	}
	return max(part, left)
}
