package control

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/proa-dev/proa/internal/client"
)

// Kubelet stands for a scheduler and a node: it assigns every pod, reports it
// running and ready, and takes deleted pods away. Nothing runs.
type Kubelet struct {
	Client client.Interface
	// Ready is how long a pod takes to be ready; Stop how long to end.
	Ready, Stop time.Duration
	// Status, when set, says what a pod's state is once it has started: Running and
	// ready, or anything else (a phase and no Ready condition).
	Status func(*corev1.Pod) corev1.PodStatus
}

// Run works until ctx ends.
func (k Kubelet) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	var mu sync.Mutex
	busy := map[string]bool{}
	return client.Pods.Informer(k.Client, client.Scope{}).Watch(ctx, func(e client.Event) {
		if e.Object == nil || e.Type == client.Deleted {
			return
		}
		pod := e.Object.(*corev1.Pod)
		work, delay := k.start, k.Ready
		id := "start " + string(pod.UID)
		switch {
		case pod.DeletionTimestamp != nil:
			work, delay, id = k.stop, k.Stop, "stop "+string(pod.UID)
		case pod.Spec.NodeName != "":
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if busy[id] {
			return
		}
		busy[id] = true
		wg.Go(func() {
			select {
			case <-ctx.Done():
			case <-time.After(delay):
				if err := work(ctx, pod); err != nil && ctx.Err() == nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
					panic(fmt.Sprintf("kubelet of the test: pod %s: %v", pod.Name, err))
				}
			}
		})
	})
}

func (k Kubelet) start(ctx context.Context, pod *corev1.Pod) error {
	if _, err := k.Client.Create(ctx, client.Pods.GVR, pod.Namespace, pod.Name, "binding", &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID},
		Target: corev1.ObjectReference{Kind: "Node", Name: nodeFor(pod)}}, metav1.CreateOptions{}); err != nil {
		return err
	}
	p, err := client.Pods.Get(ctx, k.Client, pod.Namespace, pod.Name)
	if err != nil {
		return err
	}
	now := metav1.Now()
	p.Status.Phase, p.Status.StartTime = corev1.PodRunning, &now
	p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: now})
	if k.Status != nil {
		p.Status = k.Status(p)
	}
	_, err = client.Pods.UpdateStatus(ctx, k.Client, p)
	return err
}

// nodeFor is the node that a pod asks for by name, as those of DaemonSets do.
func nodeFor(pod *corev1.Pod) string {
	if a := pod.Spec.Affinity; a != nil && a.NodeAffinity != nil && a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution != nil {
		for _, term := range a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
			for _, f := range term.MatchFields {
				if f.Key == metav1.ObjectNameField && len(f.Values) == 1 {
					return f.Values[0]
				}
			}
		}
	}
	return "node"
}

func (k Kubelet) stop(ctx context.Context, pod *corev1.Pod) error {
	return client.Pods.Delete(ctx, k.Client, pod.Namespace, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0), Preconditions: &metav1.Preconditions{UID: &pod.UID}})
}
