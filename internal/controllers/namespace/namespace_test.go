package namespace_test

import (
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/controllers/namespace"
	"github.com/proa-dev/proa/test/control"
)

// C11: a namespace goes when all that was in it is gone, and not before.
func TestANamespaceGoesLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := control.New(t)
		control.Run(t, namespace.New(c, slog.New(slog.DiscardHandler)), control.Kubelet{Client: c, Stop: 10 * time.Second})
		control.Namespace(t, c, "shop")
		if _, err := client.Pods.Create(t.Context(), c, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "p"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}); err != nil {
			t.Fatal(err)
		}
		held := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "held", Finalizers: []string{"example.com/held"}}}
		if _, err := client.ConfigMaps.Create(t.Context(), c, held); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if err := client.Namespaces.Delete(t.Context(), c, "", "shop", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		there := func() bool {
			t.Helper()
			synctest.Wait()
			_, err := client.Namespaces.Get(t.Context(), c, "", "shop")
			if err != nil && !apierrors.IsNotFound(err) {
				t.Fatal(err)
			}
			return err == nil
		}
		time.Sleep(5 * time.Second)
		if !there() {
			t.Fatal("the namespace is gone while its pod is ending")
		}
		if _, err := client.ConfigMaps.Create(t.Context(), c, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "late"}}); !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			t.Errorf("a create in it: %v", err)
		}
		time.Sleep(time.Minute)
		if !there() {
			t.Fatal("the namespace is gone while a finalizer holds an object")
		}
		ns, err := client.Namespaces.Get(t.Context(), c, "", "shop")
		if err != nil {
			t.Fatal(err)
		}
		conditions := map[corev1.NamespaceConditionType]string{}
		for _, c := range ns.Status.Conditions {
			conditions[c.Type] = string(c.Status) + " " + c.Reason + ": " + c.Message
		}
		for kind, want := range map[corev1.NamespaceConditionType]string{
			corev1.NamespaceDeletionDiscoveryFailure: "False ResourcesDiscovered: All resources successfully discovered",
			corev1.NamespaceDeletionContentFailure:   "False ContentDeleted: All content successfully deleted, may be waiting on finalization",
			corev1.NamespaceContentRemaining:         "True SomeResourcesRemain: Some resources are remaining: configmaps. has 1 resource instances",
			corev1.NamespaceFinalizersRemaining:      "True SomeFinalizersRemain: Some content in the namespace has finalizers remaining: example.com/held in 1 resource instances",
		} {
			if conditions[kind] != want {
				t.Errorf("%s is %q, want %q", kind, conditions[kind], want)
			}
		}
		m, err := client.ConfigMaps.Get(t.Context(), c, "shop", "held")
		if err != nil {
			t.Fatal(err)
		}
		if m.DeletionTimestamp == nil {
			t.Error("the object is not being deleted")
		}
		m.Finalizers = nil
		if _, err := client.ConfigMaps.Update(t.Context(), c, m); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if there() {
			t.Error("the namespace is left")
		}
	})
}
