package disruption

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/proa-dev/proa/internal/client"
)

// expected adds up the scale of the controllers that own pods, each once. A pod
// without a controller that scales is an error: nobody knows how many there
// should be.
func (x *Controller) expected(ctx context.Context, pods []*corev1.Pod) (int32, error) {
	seen := map[types.UID]int32{}
	var total int32
	for _, pod := range pods {
		ref := metav1.GetControllerOf(pod)
		if ref == nil {
			return 0, fmt.Errorf("found no controller ref for pod %q", pod.Name)
		}
		if _, ok := seen[ref.UID]; ok {
			continue
		}
		uid, replicas, err := x.replicas(ctx, pod.Namespace, ref)
		if err != nil {
			return 0, err
		}
		if _, ok := seen[uid]; ok {
			seen[ref.UID] = 0
			continue
		}
		seen[ref.UID], seen[uid] = 0, 0
		total += replicas
	}
	return total, nil
}

// replicas is what a controller scales to, and the controller that says so: a
// ReplicaSet of a Deployment counts as the Deployment.
func (x *Controller) replicas(ctx context.Context, namespace string, ref *metav1.OwnerReference) (types.UID, int32, error) {
	group, err := schema.ParseGroupVersion(ref.APIVersion)
	if err != nil {
		return "", 0, fmt.Errorf("owner %s %s: %w", ref.Kind, ref.Name, err)
	}
	missing := fmt.Errorf("found no controllers for owner %s/%s %s", ref.APIVersion, ref.Kind, ref.Name)
	value := func(obj client.Object, ok bool, n *int32) (types.UID, int32, error) {
		if !ok || obj.GetUID() != ref.UID {
			return "", 0, missing
		}
		if n == nil {
			return obj.GetUID(), 1, nil
		}
		return obj.GetUID(), *n, nil
	}
	switch group.Group + "/" + ref.Kind {
	case "apps/ReplicaSet":
		rs, ok := client.ReplicaSets.Informer(x.client, client.Scope{}).Get(namespace, ref.Name)
		if !ok || rs.UID != ref.UID {
			return "", 0, missing
		}
		if up := metav1.GetControllerOf(rs); up != nil && up.Kind == "Deployment" {
			return x.replicas(ctx, namespace, up)
		}
		return value(rs, true, rs.Spec.Replicas)
	case "apps/Deployment":
		d, ok := client.Deployments.Informer(x.client, client.Scope{}).Get(namespace, ref.Name)
		if !ok {
			return "", 0, missing
		}
		return value(d, ok, d.Spec.Replicas)
	case "apps/StatefulSet":
		s, ok := client.StatefulSets.Informer(x.client, client.Scope{}).Get(namespace, ref.Name)
		if !ok {
			return "", 0, missing
		}
		return value(s, ok, s.Spec.Replicas)
	case "/ReplicationController":
		r, ok := client.ReplicationControllers.Informer(x.client, client.Scope{}).Get(namespace, ref.Name)
		if !ok {
			return "", 0, missing
		}
		return value(r, ok, r.Spec.Replicas)
	}
	return "", 0, fmt.Errorf("%s does not implement the scale subresource", ref.Kind)
}

// targetWaits says how long until a pod's DisruptionTarget is stale.
func targetWaits(pod *corev1.Pod) (time.Duration, bool) {
	if pod.DeletionTimestamp != nil || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
		return 0, false
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.DisruptionTarget && c.Status == corev1.ConditionTrue {
			return max(0, time.Until(c.LastTransitionTime.Add(staleTarget))), true
		}
	}
	return 0, false
}

func (x *Controller) dropStaleTarget(ctx context.Context, key types.NamespacedName) error {
	pod, ok := x.pods.Get(key.Namespace, key.Name)
	if !ok {
		return nil
	}
	wait, ok := targetWaits(pod)
	if !ok {
		return nil
	}
	if wait > 0 {
		x.targets.After(key, wait)
		return nil
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": pod.UID}, "status": map[string]any{
		"conditions": []corev1.PodCondition{{Type: corev1.DisruptionTarget, Status: corev1.ConditionFalse, LastTransitionTime: metav1.Now()}}}})
	if err != nil {
		return err
	}
	if _, err := client.Pods.Patch(ctx, x.client, key.Namespace, key.Name, "status", types.StrategicMergePatchType, patch); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("take the condition DisruptionTarget from pod %s: %w", key, err)
	}
	return nil
}
