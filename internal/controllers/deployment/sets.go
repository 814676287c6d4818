package deployment

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/utils/ptr"

	"github.com/proa-dev/proa/internal/client"
)

// The annotations with which kubectl and this controller keep history.
const (
	revisionAnnotation = "deployment.kubernetes.io/revision"
	historyAnnotation  = "deployment.kubernetes.io/revision-history"
	desiredAnnotation  = "deployment.kubernetes.io/desired-replicas"
	maxAnnotation      = "deployment.kubernetes.io/max-replicas"
)

// own are annotations that a set does not take over from its Deployment.
var own = []string{corev1.LastAppliedConfigAnnotation, revisionAnnotation, historyAnnotation, desiredAnnotation, maxAnnotation, appsv1.DeprecatedRollbackTo}

// divide finds the set of the present template: the oldest, should there be more.
func (r *rollout) divide(sets []*appsv1.ReplicaSet) {
	sets = slices.Clone(sets)
	slices.SortFunc(sets, older)
	for _, set := range sets {
		if r.new == nil && sameTemplate(&set.Spec.Template, &r.d.Spec.Template) {
			r.new = set
			continue
		}
		r.old = append(r.old, set)
	}
}

func older(a, b *appsv1.ReplicaSet) int {
	if c := a.CreationTimestamp.Compare(b.CreationTimestamp.Time); c != 0 {
		return c
	}
	return strings.Compare(a.Name, b.Name)
}

// sameTemplate compares templates but for the label that tells versions apart.
func sameTemplate(a, b *corev1.PodTemplateSpec) bool {
	return apiequality.Semantic.DeepEqual(a.Spec, b.Spec) && apiequality.Semantic.DeepEqual(plain(a), plain(b))
}

func plain(t *corev1.PodTemplateSpec) metav1.ObjectMeta {
	m := t.ObjectMeta
	if _, ok := m.Labels[appsv1.DefaultDeploymentUniqueLabelKey]; ok {
		m.Labels = maps.Clone(m.Labels)
		delete(m.Labels, appsv1.DefaultDeploymentUniqueLabelKey)
	}
	return m
}

// templateHash names a version. The collision count makes another name of it.
func templateHash(t *corev1.PodTemplateSpec, collisions *int32) (string, error) {
	data, err := t.Marshal()
	if err != nil {
		return "", fmt.Errorf("hash the pod template: %w", err)
	}
	h := fnv.New32a()
	_, _ = h.Write(data)
	if collisions != nil {
		_, _ = h.Write(strconv.AppendInt(nil, int64(*collisions), 10))
	}
	return rand.SafeEncodeString(strconv.FormatUint(uint64(h.Sum32()), 10)), nil
}

func number(o client.Object, annotation string) (int32, bool) {
	n, err := strconv.ParseInt(o.GetAnnotations()[annotation], 10, 32)
	return int32(n), err == nil
}

func revision(o client.Object) int64 {
	n, _ := strconv.ParseInt(o.GetAnnotations()[revisionAnnotation], 10, 64)
	return n
}

// ensureNew makes the set of the present template, or brings its annotations up to
// date.
func (r *rollout) ensureNew(ctx context.Context) error {
	if r.new != nil {
		return r.annotate(ctx)
	}
	hash, err := templateHash(&r.d.Spec.Template, r.d.Status.CollisionCount)
	if err != nil {
		return err
	}
	t := r.d.Spec.Template.DeepCopy()
	t.Labels = withHash(t.Labels, hash)
	selector := r.d.Spec.Selector.DeepCopy()
	selector.MatchLabels = withHash(selector.MatchLabels, hash)
	set := &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: r.key.Namespace, Name: r.d.Name + "-" + hash, Labels: t.Labels,
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(r.d, client.Deployments.GVK)}},
		Spec: appsv1.ReplicaSetSpec{Replicas: ptr.To(r.newReplicas(0)), MinReadySeconds: r.d.Spec.MinReadySeconds, Selector: selector, Template: *t},
	}
	set.Annotations = r.annotations(set, true)
	made, err := client.ReplicaSets.Create(ctx, r.client, set)
	switch {
	case apierrors.IsAlreadyExists(err):
		return r.taken(ctx, set.Name)
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return nil
	case err != nil:
		message := fmt.Sprintf("Failed to create new replica set %q: %v", set.Name, err)
		if r.hasDeadline() {
			r.setCondition(appsv1.DeploymentProgressing, corev1.ConditionFalse, "ReplicaSetCreateError", message)
		}
		r.events.Eventf(r.d, corev1.EventTypeWarning, "ReplicaSetCreateError", "%s", message)
		return fmt.Errorf("create replica set %s/%s: %w", set.Namespace, set.Name, err)
	}
	r.writes.Created(r.key, made)
	r.new = made
	if n := *made.Spec.Replicas; n > 0 {
		r.events.Eventf(r.d, corev1.EventTypeNormal, "ScalingReplicaSet", "Scaled up replica set %s from 0 to %d", made.Name, n)
	}
	if r.hasDeadline() {
		r.setCondition(appsv1.DeploymentProgressing, corev1.ConditionTrue, "NewReplicaSetCreated", fmt.Sprintf("Created new replica set %q", made.Name))
	}
	return r.writeRevision(ctx)
}

func withHash(labels map[string]string, hash string) map[string]string {
	out := maps.Clone(labels)
	if out == nil {
		out = map[string]string{}
	}
	out[appsv1.DefaultDeploymentUniqueLabelKey] = hash
	return out
}

// taken is called when the name of the new set is in use: by this version, which
// the view does not show yet, or by another, and then the next try takes another
// name.
func (r *rollout) taken(ctx context.Context, name string) error {
	have, err := client.ReplicaSets.Get(ctx, r.client, r.key.Namespace, name)
	if err != nil {
		return fmt.Errorf("read replica set %s/%s: %w", r.key.Namespace, name, err)
	}
	if metav1.IsControlledBy(have, r.d) && sameTemplate(&have.Spec.Template, &r.d.Spec.Template) {
		r.new = have
		return nil
	}
	r.d.Status.CollisionCount = ptr.To(ptr.Deref(r.d.Status.CollisionCount, 0) + 1)
	return fmt.Errorf("the name of replica set %s/%s is taken by another version", r.key.Namespace, name)
}

// annotations returns those that a set should have; as the newest it gets the
// newest revision.
func (r *rollout) annotations(set *appsv1.ReplicaSet, newest bool) map[string]string {
	out := maps.Clone(set.Annotations)
	if out == nil {
		out = map[string]string{}
	}
	for k, v := range r.d.Annotations {
		if !slices.Contains(own, k) {
			out[k] = v
		}
	}
	if newest {
		last := int64(0)
		for _, s := range r.old {
			last = max(last, revision(s))
		}
		if have := revision(set); have < last+1 {
			if have > 0 {
				history := strconv.FormatInt(have, 10)
				if was := out[historyAnnotation]; was != "" {
					history = was + "," + history
				}
				out[historyAnnotation] = history
			}
			out[revisionAnnotation] = strconv.FormatInt(last+1, 10)
		}
	}
	r.sizes(out)
	return out
}

// sizes notes for what number of pods a set was scaled.
func (r *rollout) sizes(annotations map[string]string) {
	annotations[desiredAnnotation] = strconv.Itoa(int(*r.d.Spec.Replicas))
	annotations[maxAnnotation] = strconv.Itoa(int(*r.d.Spec.Replicas + r.maxSurge()))
}

// annotate brings the new set's annotations and minReadySeconds up to date.
func (r *rollout) annotate(ctx context.Context) error {
	if r.new == nil {
		return nil
	}
	want := r.annotations(r.new, true)
	// The wanted size is noted together with the scaling to it.
	for _, k := range []string{desiredAnnotation, maxAnnotation} {
		if v, ok := r.new.Annotations[k]; ok {
			want[k] = v
		} else {
			delete(want, k)
		}
	}
	if !maps.Equal(want, r.new.Annotations) || r.new.Spec.MinReadySeconds != r.d.Spec.MinReadySeconds {
		set := r.new.DeepCopy()
		set.Annotations, set.Spec.MinReadySeconds = want, r.d.Spec.MinReadySeconds
		updated, err := client.ReplicaSets.Update(ctx, r.client, set)
		if err != nil {
			return fmt.Errorf("update replica set %s/%s: %w", set.Namespace, set.Name, err)
		}
		r.new = updated
	}
	if r.hasDeadline() && r.condition(appsv1.DeploymentProgressing) == nil {
		r.setCondition(appsv1.DeploymentProgressing, corev1.ConditionTrue, "FoundNewReplicaSet", fmt.Sprintf("Found new replica set %q", r.new.Name))
	}
	return r.writeRevision(ctx)
}

// writeRevision copies the newest revision to the Deployment.
func (r *rollout) writeRevision(ctx context.Context) error {
	want := r.new.Annotations[revisionAnnotation]
	if r.d.Annotations[revisionAnnotation] == want {
		return nil
	}
	data, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": r.d.UID, "annotations": map[string]string{revisionAnnotation: want}}})
	if err != nil {
		return err
	}
	updated, err := client.Deployments.Patch(ctx, r.client, r.key.Namespace, r.key.Name, "", types.MergePatchType, data)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("write the revision of deployment %s: %w", r.key, err)
	}
	r.d.Annotations, r.d.ResourceVersion = updated.Annotations, updated.ResourceVersion
	return nil
}

// scale brings a set to a number of pods and says so.
func (r *rollout) scale(ctx context.Context, set *appsv1.ReplicaSet, replicas int32) error {
	from := *set.Spec.Replicas
	annotations := maps.Clone(set.Annotations)
	if annotations == nil {
		annotations = map[string]string{}
	}
	r.sizes(annotations)
	if from == replicas && maps.Equal(annotations, set.Annotations) {
		return nil
	}
	out := set.DeepCopy()
	out.Spec.Replicas, out.Annotations = &replicas, annotations
	updated, err := client.ReplicaSets.Update(ctx, r.client, out)
	if err != nil {
		return fmt.Errorf("scale replica set %s/%s to %d: %w", set.Namespace, set.Name, replicas, err)
	}
	r.replace(updated)
	if from != replicas {
		word := "up"
		if replicas < from {
			word = "down"
		}
		r.events.Eventf(r.d, corev1.EventTypeNormal, "ScalingReplicaSet", "Scaled %s replica set %s from %d to %d", word, set.Name, from, replicas)
	}
	return nil
}

// replace puts the written state of a set in place of the read one.
func (r *rollout) replace(set *appsv1.ReplicaSet) {
	if r.new != nil && r.new.UID == set.UID {
		r.new = set
	}
	for i, s := range r.old {
		if s.UID == set.UID {
			r.old[i] = set
		}
	}
}

// forget deletes old sets beyond the history that is kept.
func (r *rollout) forget(ctx context.Context) error {
	if r.d.Spec.RevisionHistoryLimit == nil {
		return nil
	}
	kept := slices.DeleteFunc(slices.Clone(r.old), func(s *appsv1.ReplicaSet) bool { return s.DeletionTimestamp != nil })
	surplus := len(kept) - int(*r.d.Spec.RevisionHistoryLimit)
	if surplus <= 0 {
		return nil
	}
	slices.SortFunc(kept, func(a, b *appsv1.ReplicaSet) int {
		if c := revision(a) - revision(b); c != 0 {
			return int(c)
		}
		return older(a, b)
	})
	for _, set := range kept[:surplus] {
		if set.Status.Replicas != 0 || *set.Spec.Replicas != 0 || set.Generation > set.Status.ObservedGeneration {
			continue
		}
		uid := set.UID
		if err := client.ReplicaSets.Delete(ctx, r.client, set.Namespace, set.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}}); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("delete old replica set %s/%s: %w", set.Namespace, set.Name, err)
		}
	}
	return nil
}
