package resourcequota_test

import (
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/cluster/local"
	"github.com/proa-dev/proa/internal/controllers/resourcequota"
	"github.com/proa-dev/proa/test/control"
)

func list(pairs ...string) corev1.ResourceList {
	out := corev1.ResourceList{}
	for i := 0; i < len(pairs); i += 2 {
		out[corev1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
	}
	return out
}

// with runs a test against an API with the controller.
func with(t *testing.T, test func(t *testing.T, c *local.Client)) {
	synctest.Test(t, func(t *testing.T) {
		c := control.New(t)
		control.Run(t, resourcequota.New(c, slog.New(slog.DiscardHandler)))
		test(t, c)
	})
}

func limit(t *testing.T, c *local.Client, spec corev1.ResourceQuotaSpec) {
	t.Helper()
	if _, err := client.ResourceQuotas.Create(t.Context(), c, &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "q"}, Spec: spec}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second)
}

func used(t *testing.T, c *local.Client, want ...string) {
	t.Helper()
	q, err := client.ResourceQuotas.Get(t.Context(), c, "default", "q")
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(want); i += 2 {
		have, ok := q.Status.Used[corev1.ResourceName(want[i])]
		if !ok || have.Cmp(resource.MustParse(want[i+1])) != 0 {
			t.Errorf("used %s: %s, want %s", want[i], have.String(), want[i+1])
		}
	}
}

func pod(name string, requests corev1.ResourceList, change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i", Resources: corev1.ResourceRequirements{Requests: requests, Limits: requests}}}}}
	for _, f := range change {
		f(p)
	}
	return p
}

func TestPodsAreChargedRefusedAndGivenBack(t *testing.T) {
	with(t, func(t *testing.T, c *local.Client) {
		limit(t, c, corev1.ResourceQuotaSpec{Hard: list("pods", "2", "requests.cpu", "1", "count/configmaps", "1")})
		used(t, c, "pods", "0", "requests.cpu", "0", "count/configmaps", "0")
		if _, err := client.Pods.Create(t.Context(), c, pod("a", list("cpu", "600m"))); err != nil {
			t.Fatal(err)
		}
		used(t, c, "pods", "1", "requests.cpu", "600m")
		_, err := client.Pods.Create(t.Context(), c, pod("b", list("cpu", "500m")))
		if want := `pods "b" is forbidden: exceeded quota: q, requested: requests.cpu=500m, used: requests.cpu=600m, limited: requests.cpu=1`; !apierrors.IsForbidden(err) || err.Error() != want {
			t.Errorf("over the limit: %v, want %s", err, want)
		}
		_, err = client.Pods.Create(t.Context(), c, pod("b", nil))
		if want := "failed quota: q: must specify requests.cpu for: c"; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("without a request: %v, want %s", err, want)
		}
		// A create that fails after it was charged.
		if _, err := client.Pods.Create(t.Context(), c, pod("a", list("cpu", "100m"))); !apierrors.IsAlreadyExists(err) {
			t.Errorf("the same name again: %v", err)
		}
		used(t, c, "pods", "1", "requests.cpu", "600m")
		p, _ := client.Pods.Get(t.Context(), c, "default", "a")
		p.Status.Phase = corev1.PodSucceeded
		if _, err := client.Pods.UpdateStatus(t.Context(), c, p); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		used(t, c, "pods", "0", "requests.cpu", "0")
		if _, err := client.ConfigMaps.Create(t.Context(), c, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "m"}}); err != nil {
			t.Fatal(err)
		}
		used(t, c, "count/configmaps", "1")
		if err := client.ConfigMaps.Delete(t.Context(), c, "default", "m", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		used(t, c, "count/configmaps", "0")
	})
}

func TestConcurrentWritesNeverExceedAQuota(t *testing.T) {
	with(t, func(t *testing.T, c *local.Client) {
		limit(t, c, corev1.ResourceQuotaSpec{Hard: list("pods", "20", "count/pods", "20")})
		var wg sync.WaitGroup
		for i := range 60 {
			wg.Go(func() {
				if _, err := client.Pods.Create(t.Context(), c, pod(fmt.Sprintf("p%d", i), nil)); err != nil && !apierrors.IsForbidden(err) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := len(client.Pods.Informer(c, client.Scope{}).List("default", nil)); n != 20 {
			t.Errorf("%d pods", n)
		}
		used(t, c, "pods", "20")
		time.Sleep(time.Minute)
		used(t, c, "pods", "20", "count/pods", "20")
	})
}

func TestScopes(t *testing.T) {
	exists := func(s corev1.ResourceQuotaScope) corev1.ResourceQuotaSpec {
		return corev1.ResourceQuotaSpec{Hard: list("pods", "5"), Scopes: []corev1.ResourceQuotaScope{s}}
	}
	deadline := func(p *corev1.Pod) { p.Spec.ActiveDeadlineSeconds = ptr.To[int64](60) }
	critical := func(p *corev1.Pod) { p.Spec.PriorityClassName = "high" }
	across := func(p *corev1.Pod) {
		p.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{
			{TopologyKey: "zone", Namespaces: []string{"other"}, LabelSelector: &metav1.LabelSelector{}}}}}
	}
	for _, x := range []struct {
		name    string
		spec    corev1.ResourceQuotaSpec
		in, out *corev1.Pod
	}{
		{"terminating", exists("Terminating"), pod("in", nil, deadline), pod("out", nil)},
		{"not terminating", exists("NotTerminating"), pod("in", nil), pod("out", nil, deadline)},
		{"best effort", exists("BestEffort"), pod("in", nil), pod("out", list("cpu", "1"))},
		{"not best effort", exists("NotBestEffort"), pod("in", list("cpu", "1")), pod("out", nil)},
		{"affinity across namespaces", exists("CrossNamespacePodAffinity"), pod("in", nil, across), pod("out", nil)},
		{"a priority class", exists("PriorityClass"), pod("in", nil, critical), pod("out", nil)},
		{"one priority class of several", corev1.ResourceQuotaSpec{Hard: list("pods", "5"), ScopeSelector: &corev1.ScopeSelector{MatchExpressions: []corev1.ScopedResourceSelectorRequirement{
			{ScopeName: "PriorityClass", Operator: corev1.ScopeSelectorOpIn, Values: []string{"high"}}}}}, pod("in", nil, critical), pod("out", nil)},
		{"not a priority class", corev1.ResourceQuotaSpec{Hard: list("pods", "5"), ScopeSelector: &corev1.ScopeSelector{MatchExpressions: []corev1.ScopedResourceSelectorRequirement{
			{ScopeName: "PriorityClass", Operator: corev1.ScopeSelectorOpNotIn, Values: []string{"high"}}}}}, pod("in", nil), pod("out", nil, critical)},
	} {
		t.Run(x.name, func(t *testing.T) {
			with(t, func(t *testing.T, c *local.Client) {
				if _, err := client.PriorityClasses.Create(t.Context(), c, highClass()); err != nil {
					t.Fatal(err)
				}
				limit(t, c, x.spec)
				for _, p := range []*corev1.Pod{x.in, x.out} {
					if _, err := client.Pods.Create(t.Context(), c, p); err != nil {
						t.Fatal(err)
					}
				}
				used(t, c, "pods", "1")
				if err := client.Pods.Delete(t.Context(), c, "default", "out", metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0)}); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				used(t, c, "pods", "1")
			})
		})
	}
}
