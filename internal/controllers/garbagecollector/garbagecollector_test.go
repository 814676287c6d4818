package garbagecollector_test

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/controllers/garbagecollector"
	"github.com/proa-dev/proa/test/control"
)

type world struct {
	*testing.T
	c client.Interface
}

func in(t *testing.T, test func(w world)) {
	synctest.Test(t, func(t *testing.T) {
		w := world{t, control.New(t)}
		control.Run(t, garbagecollector.New(w.c, slog.New(slog.DiscardHandler)))
		synctest.Wait()
		test(w)
	})
}

// make creates a ConfigMap with owners, each of which blocks when its name ends in "!".
func (w world) make(name string, owners ...string) *corev1.ConfigMap {
	w.Helper()
	m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
	for _, o := range owners {
		o, block := strings.CutSuffix(o, "!")
		m.OwnerReferences = append(m.OwnerReferences, metav1.OwnerReference{APIVersion: "v1", Kind: "ConfigMap", Name: o, UID: w.get(o).UID, BlockOwnerDeletion: ptr.To(block)})
	}
	m, err := client.ConfigMaps.Create(w.Context(), w.c, m)
	if err != nil {
		w.Fatal(err)
	}
	return m
}

func (w world) get(name string) *corev1.ConfigMap {
	w.Helper()
	m, err := client.ConfigMaps.Get(w.Context(), w.c, "default", name)
	if err != nil {
		w.Fatal(err)
	}
	return m
}

func (w world) delete(name string, policy metav1.DeletionPropagation) {
	w.Helper()
	if err := client.ConfigMaps.Delete(w.Context(), w.c, "default", name, metav1.DeleteOptions{PropagationPolicy: &policy}); err != nil {
		w.Fatal(err)
	}
}

// left lists what there is: name(owners), and ~ before what is being deleted.
func (w world) left() string {
	synctest.Wait()
	var out []string
	for _, m := range client.ConfigMaps.Informer(w.c, client.Scope{}).List("default", nil) {
		s := m.Name
		if m.DeletionTimestamp != nil {
			s = "~" + s
		}
		if n := len(m.OwnerReferences); n > 0 {
			s += fmt.Sprintf("(%d)", n)
		}
		out = append(out, s)
	}
	return strings.Join(out, " ")
}

func (w world) want(what, want string) {
	w.Helper()
	if got := w.left(); got != want {
		w.Errorf("%s: there is %q, want %q", what, got, want)
	}
}

func TestBackground(t *testing.T) {
	in(t, func(w world) {
		w.make("a")
		w.make("b", "a")
		w.make("c", "b")
		w.make("other")
		w.delete("a", metav1.DeletePropagationBackground)
		w.want("after the owner is gone", "other")
	})
}

// C20: an object with a living owner stays, and forgets the dead one.
func TestALivingOwnerHolds(t *testing.T) {
	in(t, func(w world) {
		w.make("a")
		w.make("b")
		w.make("both", "a", "b")
		w.delete("a", metav1.DeletePropagationBackground)
		w.want("one owner is gone", "b both(1)")
		w.delete("b", metav1.DeletePropagationBackground)
		w.want("both are", "")
	})
}

func TestOrphan(t *testing.T) {
	in(t, func(w world) {
		w.make("a")
		w.make("b", "a")
		w.make("c", "b")
		w.delete("a", metav1.DeletePropagationOrphan)
		w.want("orphaned", "b c(1)")
	})
}

func TestForegroundWaitsForThoseThatBlock(t *testing.T) {
	in(t, func(w world) {
		w.make("a")
		held := w.make("b", "a!")
		w.make("free", "a")
		held.Finalizers = []string{"example.com/held"}
		if _, err := client.ConfigMaps.Update(w.Context(), w.c, held); err != nil {
			w.Fatal(err)
		}
		w.delete("a", metav1.DeletePropagationForeground)
		w.want("a dependent that blocks has a finalizer", "~a ~b(1)")
		m := w.get("b")
		m.Finalizers = nil
		if _, err := client.ConfigMaps.Update(w.Context(), w.c, m); err != nil {
			w.Fatal(err)
		}
		w.want("the finalizer is taken", "")
	})
}

func TestForegroundGoesDownTheTree(t *testing.T) {
	in(t, func(w world) {
		w.make("a")
		w.make("b", "a!")
		leaf := w.make("c", "b!")
		leaf.Finalizers = []string{"example.com/held"}
		if _, err := client.ConfigMaps.Update(w.Context(), w.c, leaf); err != nil {
			w.Fatal(err)
		}
		w.delete("a", metav1.DeletePropagationForeground)
		w.want("the leaf is held", "~a ~b(1) ~c(1)")
		m := w.get("c")
		m.Finalizers = nil
		if _, err := client.ConfigMaps.Update(w.Context(), w.c, m); err != nil {
			w.Fatal(err)
		}
		w.want("the leaf goes, and all above", "")
	})
}

func TestACircleIsDeletedInForeground(t *testing.T) {
	in(t, func(w world) {
		a := w.make("a")
		w.make("b", "a!")
		a.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "ConfigMap", Name: "b", UID: w.get("b").UID, BlockOwnerDeletion: ptr.To(true)}}
		if _, err := client.ConfigMaps.Update(w.Context(), w.c, a); err != nil {
			w.Fatal(err)
		}
		w.delete("a", metav1.DeletePropagationForeground)
		time.Sleep(time.Minute)
		w.want("a circle", "")
	})
}

func TestAnOwnerOfTheSameNameIsAnother(t *testing.T) {
	in(t, func(w world) {
		m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "b"}}
		w.make("a")
		m.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "ConfigMap", Name: "a", UID: "another"}}
		if _, err := client.ConfigMaps.Create(w.Context(), w.c, m); err != nil {
			w.Fatal(err)
		}
		w.want("an owner with another UID", "a")
	})
}

func TestAnOwnerOfAnUnknownKindHolds(t *testing.T) {
	in(t, func(w world) {
		m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "b", OwnerReferences: []metav1.OwnerReference{{APIVersion: "example.com/v1", Kind: "Thing", Name: "a", UID: "1"}}}}
		if _, err := client.ConfigMaps.Create(w.Context(), w.c, m); err != nil {
			w.Fatal(err)
		}
		w.want("an owner of a kind that is not served", "b(1)")
	})
}

// A controller that starts late finds what became nobody's before.
func TestWhatWasLeftBeforeTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world{t, control.New(t)}
		w.make("a")
		w.make("b", "a")
		w.delete("a", metav1.DeletePropagationBackground)
		w.want("nobody collects", "b(1)")
		control.Run(t, garbagecollector.New(w.c, slog.New(slog.DiscardHandler)))
		w.want("the collector has begun", "")
	})
}
