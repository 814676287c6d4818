package statefulset

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/proa-dev/proa/internal/client"
)

// makeClaims makes the claims of a pod that are missing. One that is on its way out
// is an error: the pod would lose it.
func (p *pass) makeClaims(ctx context.Context, pod *corev1.Pod) error {
	var errs []error
	for i := range p.set.Spec.VolumeClaimTemplates {
		t := &p.set.Spec.VolumeClaimTemplates[i]
		name := claimName(p.set, t, ordinalOf(pod))
		if have, ok := p.claims.Get(p.set.Namespace, name); ok {
			if have.DeletionTimestamp != nil {
				errs = append(errs, fmt.Errorf("pvc %s is being deleted", name))
			}
			continue
		}
		claim := t.DeepCopy()
		claim.Name, claim.Namespace = name, p.set.Namespace
		if claim.Labels == nil {
			claim.Labels = map[string]string{}
		}
		maps.Copy(claim.Labels, p.set.Spec.Selector.MatchLabels)
		_, err := client.PersistentVolumeClaims.Create(ctx, p.client, claim)
		switch {
		case err == nil:
			p.events.Eventf(p.set, corev1.EventTypeNormal, "SuccessfulCreate", "Create Claim %s Pod %s in StatefulSet %s success", name, pod.Name, p.set.Name)
		case apierrors.IsAlreadyExists(err): // the view lags
		default:
			p.events.Eventf(p.set, corev1.EventTypeWarning, "FailedCreate", "Create Claim %s for Pod %s in StatefulSet %s failed error: %s", name, pod.Name, p.set.Name, err)
			errs = append(errs, fmt.Errorf("failed to create PVC %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// keeps says whether claims outlive a scale-down, and the set.
func keeps(set *appsv1.StatefulSet) (scaled, deleted bool) {
	policy := set.Spec.PersistentVolumeClaimRetentionPolicy
	if policy == nil {
		return true, true
	}
	return policy.WhenScaled != appsv1.DeletePersistentVolumeClaimRetentionPolicyType, policy.WhenDeleted != appsv1.DeletePersistentVolumeClaimRetentionPolicyType
}

// stale says that a claim of a pod that is about to be made is owned by the pod of
// that name before: it goes with that one, and the new pod gets another.
func (p *pass) stale(pod *corev1.Pod) bool {
	if scaled, _ := keeps(p.set); scaled {
		return false
	}
	for i := range p.set.Spec.VolumeClaimTemplates {
		claim, ok := p.claims.Get(p.set.Namespace, claimName(p.set, &p.set.Spec.VolumeClaimTemplates[i], ordinalOf(pod)))
		if ok && slices.ContainsFunc(claim.OwnerReferences, func(r metav1.OwnerReference) bool { return names(r, pod, client.Pods.GVK) }) {
			return true
		}
	}
	return false
}

func names(r metav1.OwnerReference, o client.Object, gvk schema.GroupVersionKind) bool {
	return r.Kind == gvk.Kind && r.APIVersion == gvk.GroupVersion().String() && r.Name == o.GetName()
}

// ownClaims makes the owners of a pod's claims those of the retention policy.
func (p *pass) ownClaims(ctx context.Context, pod *corev1.Pod) error {
	for i := range p.set.Spec.VolumeClaimTemplates {
		claim, ok := p.claims.Get(p.set.Namespace, claimName(p.set, &p.set.Spec.VolumeClaimTemplates[i], ordinalOf(pod)))
		if !ok {
			continue
		}
		refs, conflict := owners(p.set, pod, claim.OwnerReferences)
		if conflict {
			p.events.Eventf(p.set, corev1.EventTypeWarning, "ConflictingController",
				"PersistentVolumeClaim %s has a conflicting OwnerReference that acts as a managing controller, the retention policy is ignored for this claim", claim.Name)
		}
		if slices.EqualFunc(refs, claim.OwnerReferences, func(a, b metav1.OwnerReference) bool {
			return a.UID == b.UID && isController(a) == isController(b)
		}) {
			continue
		}
		out := claim.DeepCopy()
		out.OwnerReferences = refs
		if _, err := client.PersistentVolumeClaims.Update(ctx, p.client, out); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("could not update claim %s for delete policy ownerRefs: %w", claim.Name, err)
		}
	}
	return nil
}

func isController(r metav1.OwnerReference) bool { return r.Controller != nil && *r.Controller }

// owners works out the owners of a claim: the set, when claims go with it; a pod
// beyond the range, when they go with that; nobody, when they stay. Claims of an
// earlier set or pod of the name, and those that another controller has, are left
// to them. conflict says that the latter keeps a policy from working.
func owners(set *appsv1.StatefulSet, pod *corev1.Pod, have []metav1.OwnerReference) (want []metav1.OwnerReference, conflict bool) {
	keepScaled, keepDeleted := keeps(set)
	if len(have) == 0 && keepScaled && keepDeleted {
		return nil, false
	}
	foreign := false
	for _, r := range have {
		switch {
		case names(r, set, client.StatefulSets.GVK):
			if r.UID != set.UID {
				return have, false
			}
		case names(r, pod, client.Pods.GVK):
			if r.UID != pod.UID {
				return have, false
			}
		default:
			want = append(want, r)
			foreign = foreign || isController(r)
		}
	}
	if keepScaled && keepDeleted {
		return want, false
	}
	if foreign {
		return want, len(want) != len(have)
	}
	wanted := inRange(set, ordinalOf(pod))
	var owner client.Object
	gvk := client.StatefulSets.GVK
	switch {
	case !keepScaled && !wanted:
		owner, gvk = pod, client.Pods.GVK
	case !keepDeleted:
		owner = set
	default:
		return want, false
	}
	// A right reference stays where it is, so that nothing is written.
	for _, r := range have {
		if r.UID == owner.GetUID() && isController(r) && len(have) == len(want)+1 {
			return have, false
		}
	}
	return append(want, *metav1.NewControllerRef(owner, gvk)), false
}
