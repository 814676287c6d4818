package statefulset

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/controllers/owned"
)

// pass is one pass over one StatefulSet.
type pass struct {
	*Controller
	key  key
	set  *appsv1.StatefulSet
	live func(context.Context) (client.Object, error)
	now  time.Time
	pods []*corev1.Pod

	list            []*appsv1.ControllerRevision // the oldest first
	current, update *appsv1.ControllerRevision
	collisions      int32

	members   []*corev1.Pod // by ordinal from the first; nil: there is none
	condemned []*corev1.Pod // beyond the range, the highest ordinal first
	weakest   *corev1.Pod   // that with the lowest ordinal that is not available

	updated int // pods of the current revision that were deleted for the update
}

// divide sorts the pods by what is to become of them.
func (p *pass) divide() {
	p.members = make([]*corev1.Pod, replicas(p.set))
	for _, pod := range p.pods {
		if !member(p.set, pod) {
			continue
		}
		if n := ordinalOf(pod); inRange(p.set, n) {
			p.members[n-first(p.set)] = pod
		} else {
			p.condemned = append(p.condemned, pod)
		}
	}
	slices.SortFunc(p.condemned, func(a, b *corev1.Pod) int { return ordinalOf(b) - ordinalOf(a) })
}

// weak finds the first pod that is not available; a member that is missing is none
// that could be condemned.
func (p *pass) weak() *corev1.Pod {
	for _, pod := range p.members {
		if pod == nil || !p.available(pod) {
			return pod
		}
	}
	for _, pod := range slices.Backward(p.condemned) {
		if !p.available(pod) {
			return pod
		}
	}
	return nil
}

func (p *pass) available(pod *corev1.Pod) bool {
	return pod != nil && pod.DeletionTimestamp == nil && owned.Available(pod, p.set.Spec.MinReadySeconds, p.now)
}

func (p *pass) parallel() bool { return p.set.Spec.PodManagementPolicy == appsv1.ParallelPodManagement }

// act does what comes next: first the members, then what is beyond the range, then
// a step of the update. In order, each waits for the one before.
func (p *pass) act(ctx context.Context) error {
	p.weakest = p.weak()
	for _, step := range []struct {
		n  int
		fn func(context.Context, int) (stop bool, err error)
	}{
		{len(p.members), p.member},
		{len(p.condemned), p.releaseClaims},
		{len(p.condemned), p.condemn},
	} {
		if stop, err := p.each(ctx, step.n, step.fn); stop || err != nil {
			return err
		}
	}
	if p.set.Spec.UpdateStrategy.Type != appsv1.RollingUpdateStatefulSetStrategyType {
		return nil
	}
	return p.roll(ctx)
}

func (p *pass) each(ctx context.Context, n int, fn func(context.Context, int) (bool, error)) (stop bool, err error) {
	if p.parallel() {
		_, err := owned.SlowStart(n, func(i int) error {
			_, err := fn(ctx, i)
			return err
		})
		return false, err
	}
	for i := range n {
		if stop, err := fn(ctx, i); stop || err != nil {
			return true, err
		}
	}
	return false, nil
}

// member brings one member about: there, with its claims and identity, and, in
// order, available before the next.
func (p *pass) member(ctx context.Context, i int) (stop bool, err error) {
	pod := p.members[i]
	switch {
	case pod == nil:
		return p.create(ctx, first(p.set)+i)
	case ended(pod):
		// However its containers ended, the member is wanted: a new one is made when
		// this one has gone.
		if pod.DeletionTimestamp != nil {
			return true, nil
		}
		if wait := pod.CreationTimestamp.Add(refusedFor).Sub(p.now); wait > 0 && owned.Refused(pod) {
			p.loop.After(p.key, wait) // its node would refuse the next one as soon
			return true, nil
		}
		return true, p.delete(ctx, pod)
	case pod.Status.Phase == corev1.PodPending:
		if err := p.makeClaims(ctx, pod); err != nil {
			return true, err
		}
		if err := p.ownClaims(ctx, pod); err != nil {
			p.record("update", pod.Name, err)
			return true, err
		}
	}
	if !p.parallel() && (pod.DeletionTimestamp != nil || !runs(pod) || !p.available(pod)) {
		return true, nil
	}
	return false, p.conform(ctx, pod)
}

func (p *pass) create(ctx context.Context, ordinal int) (stop bool, err error) {
	template, version, err := p.template(ordinal)
	if err != nil {
		return true, err
	}
	pod := newPod(p.set, template, version, ordinal)
	if p.stale(pod) {
		return true, nil // its claim belongs to the pod before, and goes with it
	}
	if err := p.makeClaims(ctx, pod); err != nil {
		p.record("create", pod.Name, err)
		return true, err
	}
	made, err := client.Pods.Create(ctx, p.client, pod)
	switch {
	case apierrors.IsAlreadyExists(err):
		return true, fmt.Errorf("create pod %s/%s: %w", pod.Namespace, pod.Name, err)
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return true, nil
	case err != nil:
		p.record("create", pod.Name, err)
		return true, fmt.Errorf("create pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	p.writes.Created(p.key, made)
	p.record("create", pod.Name, nil)
	if err := p.ownClaims(ctx, made); err != nil {
		p.record("update", pod.Name, err)
		return true, err
	}
	return !p.parallel(), nil
}

// conform brings a pod's identity, volumes and claims to what the set says.
func (p *pass) conform(ctx context.Context, pod *corev1.Pod) error {
	if !identified(pod) || !stored(p.set, pod) {
		out := pod.DeepCopy()
		identify(out)
		store(p.set, out)
		err := p.makeClaims(ctx, out)
		if err == nil {
			_, err = client.Pods.Update(ctx, p.client, out)
		}
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err != nil && apierrors.IsConflict(err) {
			return err
		}
		p.record("update", pod.Name, err)
		if err != nil {
			return fmt.Errorf("update pod %s/%s: %w", pod.Namespace, pod.Name, err)
		}
	}
	return p.ownClaims(ctx, pod)
}

func (p *pass) releaseClaims(ctx context.Context, i int) (stop bool, err error) {
	return false, p.ownClaims(ctx, p.condemned[i])
}

// condemn removes what is beyond the range: in order the highest first, when
// nothing below is unwell.
func (p *pass) condemn(ctx context.Context, i int) (stop bool, err error) {
	pod := p.condemned[i]
	if pod.DeletionTimestamp != nil {
		return !p.parallel(), nil
	}
	if !p.parallel() && pod != p.weakest && (!runs(pod) || !p.available(pod)) {
		return true, nil
	}
	return true, p.delete(ctx, pod)
}

// roll deletes pods of other revisions than the present one, the highest ordinal
// first, as many as may be unavailable.
func (p *pass) roll(ctx context.Context) error {
	budget := p.maxUnavailable()
	for _, pod := range p.members {
		if !p.available(pod) {
			budget--
		}
	}
	old := func(pod *corev1.Pod) bool {
		return pod != nil && pod.DeletionTimestamp == nil && versionOf(pod) != p.update.Name
	}
	lowest := min(p.partition(), len(p.members))
	if p.parallel() {
		// What is not available anyway costs nothing.
		for _, pod := range slices.Backward(p.members[lowest:]) {
			if old(pod) && !p.available(pod) {
				if err := p.renew(ctx, pod); err != nil {
					return err
				}
			}
		}
	}
	for _, pod := range slices.Backward(p.members[lowest:]) {
		if budget <= 0 {
			return nil
		}
		if old(pod) && (p.available(pod) || !p.parallel()) {
			if err := p.renew(ctx, pod); err != nil {
				return err
			}
			budget--
		}
	}
	return nil
}

func (p *pass) maxUnavailable() int {
	r := p.set.Spec.UpdateStrategy.RollingUpdate
	if r == nil || r.MaxUnavailable == nil {
		return 1
	}
	n, err := intstr.GetScaledValueFromIntOrPercent(r.MaxUnavailable, len(p.members), false)
	if err != nil {
		return 1
	}
	return max(1, n)
}

func (p *pass) renew(ctx context.Context, pod *corev1.Pod) error {
	if err := p.delete(ctx, pod); err != nil {
		return err
	}
	if versionOf(pod) == p.current.Name {
		p.updated++
	}
	return nil
}

func (p *pass) delete(ctx context.Context, pod *corev1.Pod) error {
	p.writes.Deleting(p.key, pod)
	uid := pod.UID
	err := client.Pods.Delete(ctx, p.client, pod.Namespace, pod.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	p.record("delete", pod.Name, err)
	if err != nil {
		p.writes.Kept(p.key, pod)
		return fmt.Errorf("delete pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return nil
}

// record says in an event what was done to a pod.
func (p *pass) record(verb, pod string, err error) {
	title := strings.ToUpper(verb[:1]) + verb[1:]
	if err != nil {
		p.events.Eventf(p.set, corev1.EventTypeWarning, "Failed"+title, "%s Pod %s in StatefulSet %s failed error: %s", title, pod, p.set.Name, err)
		return
	}
	p.events.Eventf(p.set, corev1.EventTypeNormal, "Successful"+title, "%s Pod %s in StatefulSet %s successful", title, pod, p.set.Name)
}
