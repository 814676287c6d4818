package replicaset

import (
	"context"
	"log/slog"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/proa-dev/proa/internal/client"
)

// source is where the sets come from, as ReplicaSets.
type source struct {
	gvk      schema.GroupVersionKind
	informer client.Informer
	of       func(client.Object) *appsv1.ReplicaSet
	live     func(ctx context.Context, namespace, name string) (client.Object, error)
	write    func(ctx context.Context, set *appsv1.ReplicaSet) error
}

// New returns the controller of ReplicaSets.
func New(c client.Interface, log *slog.Logger) *Controller {
	return build(c, log, "replicaset", "replicaset-controller", source{
		gvk: client.ReplicaSets.GVK, informer: client.ReplicaSets.Informer(c, client.Scope{}).Informer,
		of: func(o client.Object) *appsv1.ReplicaSet { return o.(*appsv1.ReplicaSet) },
		live: func(ctx context.Context, ns, name string) (client.Object, error) {
			return client.ReplicaSets.Get(ctx, c, ns, name)
		},
		write: func(ctx context.Context, set *appsv1.ReplicaSet) error {
			_, err := client.ReplicaSets.UpdateStatus(ctx, c, set)
			return err
		},
	})
}

// NewReplicationController returns the controller of ReplicationControllers, which
// are ReplicaSets of an older form.
func NewReplicationController(c client.Interface, log *slog.Logger) *Controller {
	return build(c, log, "replicationcontroller", "replication-controller", source{
		gvk: client.ReplicationControllers.GVK, informer: client.ReplicationControllers.Informer(c, client.Scope{}).Informer,
		of: func(o client.Object) *appsv1.ReplicaSet { return toSet(o.(*corev1.ReplicationController)) },
		live: func(ctx context.Context, ns, name string) (client.Object, error) {
			return client.ReplicationControllers.Get(ctx, c, ns, name)
		},
		write: func(ctx context.Context, set *appsv1.ReplicaSet) error {
			_, err := client.ReplicationControllers.UpdateStatus(ctx, c, fromSet(set))
			return err
		},
	})
}

func toSet(rc *corev1.ReplicationController) *appsv1.ReplicaSet {
	set := &appsv1.ReplicaSet{ObjectMeta: rc.ObjectMeta,
		Spec: appsv1.ReplicaSetSpec{Replicas: rc.Spec.Replicas, MinReadySeconds: rc.Spec.MinReadySeconds, Selector: &metav1.LabelSelector{MatchLabels: rc.Spec.Selector}},
		Status: appsv1.ReplicaSetStatus{Replicas: rc.Status.Replicas, FullyLabeledReplicas: rc.Status.FullyLabeledReplicas, ReadyReplicas: rc.Status.ReadyReplicas,
			AvailableReplicas: rc.Status.AvailableReplicas, ObservedGeneration: rc.Status.ObservedGeneration}}
	if rc.Spec.Template != nil {
		set.Spec.Template = *rc.Spec.Template
	}
	for _, c := range rc.Status.Conditions {
		set.Status.Conditions = append(set.Status.Conditions, appsv1.ReplicaSetCondition{Type: appsv1.ReplicaSetConditionType(c.Type), Status: c.Status,
			LastTransitionTime: c.LastTransitionTime, Reason: c.Reason, Message: c.Message})
	}
	return set
}

// fromSet carries only what a status update reads.
func fromSet(set *appsv1.ReplicaSet) *corev1.ReplicationController {
	s := set.Status
	rc := &corev1.ReplicationController{ObjectMeta: set.ObjectMeta,
		Spec: corev1.ReplicationControllerSpec{Replicas: set.Spec.Replicas, MinReadySeconds: set.Spec.MinReadySeconds, Selector: set.Spec.Selector.MatchLabels, Template: &set.Spec.Template},
		Status: corev1.ReplicationControllerStatus{Replicas: s.Replicas, FullyLabeledReplicas: s.FullyLabeledReplicas, ReadyReplicas: s.ReadyReplicas,
			AvailableReplicas: s.AvailableReplicas, ObservedGeneration: s.ObservedGeneration}}
	for _, c := range s.Conditions {
		rc.Status.Conditions = append(rc.Status.Conditions, corev1.ReplicationControllerCondition{Type: corev1.ReplicationControllerConditionType(c.Type), Status: c.Status,
			LastTransitionTime: c.LastTransitionTime, Reason: c.Reason, Message: c.Message})
	}
	return rc
}
