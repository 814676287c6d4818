package disruption_test

import (
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/controllers/disruption"
	"github.com/proa-dev/proa/test/control"
)

var appLabels = map[string]string{"app": "web"}

func template() corev1.PodSpec {
	return corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}
}

// pods makes n ready pods that a controller owns (nil: nobody).
func pods(t *testing.T, c client.Interface, n int, owner *metav1.OwnerReference) {
	t.Helper()
	for i := range n {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("p%d", i), Labels: appLabels}, Spec: template()}
		if owner != nil {
			p.OwnerReferences = []metav1.OwnerReference{*owner}
		}
		p, err := client.Pods.Create(t.Context(), c, p)
		if err != nil {
			t.Fatal(err)
		}
		p.Status.Phase, p.Status.Conditions = corev1.PodRunning, []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		if _, err := client.Pods.UpdateStatus(t.Context(), c, p); err != nil {
			t.Fatal(err)
		}
	}
}

func budget(t *testing.T, c client.Interface, spec policyv1.PodDisruptionBudgetSpec) func() policyv1.PodDisruptionBudgetStatus {
	t.Helper()
	spec.Selector = &metav1.LabelSelector{MatchLabels: appLabels}
	if _, err := client.PodDisruptionBudgets.Create(t.Context(), c, &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "b"}, Spec: spec}); err != nil {
		t.Fatal(err)
	}
	return func() policyv1.PodDisruptionBudgetStatus {
		t.Helper()
		synctest.Wait()
		b, err := client.PodDisruptionBudgets.Get(t.Context(), c, "default", "b")
		if err != nil {
			t.Fatal(err)
		}
		return b.Status
	}
}

func TestStatus(t *testing.T) {
	for name, test := range map[string]struct {
		spec                                policyv1.PodDisruptionBudgetSpec
		pods                                int
		owned                               bool
		expected, desired, healthy, allowed int32
		reason                              string
	}{
		"a number that must be available":      {policyv1.PodDisruptionBudgetSpec{MinAvailable: ptr.To(intstr.FromInt32(2))}, 3, false, 3, 2, 3, 1, "SufficientPods"},
		"more than there are":                  {policyv1.PodDisruptionBudgetSpec{MinAvailable: ptr.To(intstr.FromInt32(5))}, 3, false, 3, 5, 3, 0, "InsufficientPods"},
		"no pods":                              {policyv1.PodDisruptionBudgetSpec{MinAvailable: ptr.To(intstr.FromInt32(0))}, 0, false, 0, 0, 0, 0, "InsufficientPods"},
		"a share of what the controller wants": {policyv1.PodDisruptionBudgetSpec{MinAvailable: ptr.To(intstr.FromString("50%"))}, 5, true, 5, 3, 5, 2, "SufficientPods"},
		"a number that may be unavailable":     {policyv1.PodDisruptionBudgetSpec{MaxUnavailable: ptr.To(intstr.FromInt32(1))}, 4, true, 5, 4, 4, 0, "InsufficientPods"},
		"a share that may be unavailable":      {policyv1.PodDisruptionBudgetSpec{MaxUnavailable: ptr.To(intstr.FromString("30%"))}, 5, true, 5, 3, 5, 2, "SufficientPods"},
		"pods of nobody":                       {policyv1.PodDisruptionBudgetSpec{MaxUnavailable: ptr.To(intstr.FromInt32(1))}, 2, false, 0, 0, 0, 0, "SyncFailed"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := control.New(t)
				control.Run(t, disruption.New(c, slog.New(slog.DiscardHandler)))
				var owner *metav1.OwnerReference
				if test.owned {
					rs, err := client.ReplicaSets.Create(t.Context(), c, &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
						Spec: appsv1.ReplicaSetSpec{Replicas: ptr.To[int32](5), Selector: &metav1.LabelSelector{MatchLabels: appLabels},
							Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: appLabels}, Spec: template()}}})
					if err != nil {
						t.Fatal(err)
					}
					owner = metav1.NewControllerRef(rs, appsv1.SchemeGroupVersion.WithKind("ReplicaSet"))
				}
				pods(t, c, test.pods, owner)
				s := budget(t, c, test.spec)()
				if s.ExpectedPods != test.expected || s.DesiredHealthy != test.desired || s.CurrentHealthy != test.healthy || s.DisruptionsAllowed != test.allowed {
					t.Errorf("status %+v, want %+v", s, test)
				}
				if cond := meta.FindStatusCondition(s.Conditions, policyv1.DisruptionAllowedCondition); cond == nil || cond.Reason != test.reason {
					t.Errorf("condition %+v, want reason %s", cond, test.reason)
				}
			})
		})
	}
}

// C12: evictions never take more than the budget, whatever their number at once.
func TestEvictionsKeepTheBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := control.New(t)
		control.Run(t, disruption.New(c, slog.New(slog.DiscardHandler)))
		pods(t, c, 5, nil)
		status := budget(t, c, policyv1.PodDisruptionBudgetSpec{MinAvailable: ptr.To(intstr.FromInt32(3))})
		if s := status(); s.DisruptionsAllowed != 2 {
			t.Fatalf("allowed %d, want 2", s.DisruptionsAllowed)
		}
		done := 0
		for i := range 5 {
			name := fmt.Sprintf("p%d", i)
			_, err := c.Create(t.Context(), client.Pods.GVR, "default", name, "eviction", &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}, metav1.CreateOptions{})
			switch {
			case err == nil:
				done++
			case !apierrors.IsTooManyRequests(err):
				t.Errorf("eviction %d: %v", i, err)
			}
		}
		if s := status(); done != 2 || s.DisruptionsAllowed != 0 {
			t.Errorf("%d evictions of 2 allowed; then %d are", done, s.DisruptionsAllowed)
		}
	})
}

func TestAStaleDisruptionTargetIsTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := control.New(t)
		control.Run(t, disruption.New(c, slog.New(slog.DiscardHandler)))
		pods(t, c, 1, nil)
		p, err := client.Pods.Get(t.Context(), c, "default", "p0")
		if err != nil {
			t.Fatal(err)
		}
		p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "EvictionByEvictionAPI", LastTransitionTime: metav1.Now()})
		if _, err := client.Pods.UpdateStatus(t.Context(), c, p); err != nil {
			t.Fatal(err)
		}
		state := func() corev1.ConditionStatus {
			synctest.Wait()
			p, _ := client.Pods.Informer(c, client.Scope{}).Get("default", "p0")
			for _, cond := range p.Status.Conditions {
				if cond.Type == corev1.DisruptionTarget {
					return cond.Status
				}
			}
			return ""
		}
		time.Sleep(time.Minute)
		if s := state(); s != corev1.ConditionTrue {
			t.Errorf("after a minute: %s", s)
		}
		time.Sleep(2 * time.Minute)
		if s := state(); s != corev1.ConditionFalse {
			t.Errorf("after three minutes: %s", s)
		}
	})
}
