package statefulset_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/test/control"
)

func policy(scaled, deleted appsv1.PersistentVolumeClaimRetentionPolicyType) change {
	return func(s *appsv1.StatefulSet) {
		s.Spec.PersistentVolumeClaimRetentionPolicy = &appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{WhenScaled: scaled, WhenDeleted: deleted}
	}
}

func TestClaims(t *testing.T) {
	in(t, func(w world) {
		w.run(control.Kubelet{})
		w.create(2, withClaim)
		time.Sleep(time.Second)
		if got, want := w.claims(), "data-db-0 data-db-1"; got != want {
			w.Fatalf("claims %q, want %q", got, want)
		}
		p := w.pod("db-1")
		if v := p.Spec.Volumes[0]; v.Name != "data" || v.PersistentVolumeClaim == nil || v.PersistentVolumeClaim.ClaimName != "data-db-1" {
			w.Errorf("volumes %+v", p.Spec.Volumes)
		}
		c, err := client.PersistentVolumeClaims.Get(w.Context(), w.c, "default", "data-db-0")
		if err != nil || c.Labels["app"] != "db" {
			w.Errorf("claim %+v, %v", c, err)
		}
		if want := "Normal SuccessfulCreate Create Claim data-db-0 Pod db-0 in StatefulSet db success"; !slices.Contains(w.events(), want) {
			w.Errorf("no event %q in %q", want, w.events())
		}
		w.scale(0)
		time.Sleep(time.Second)
		if got, want := w.claims(), "data-db-0 data-db-1"; got != want {
			w.Errorf("claims after scaling down %q, want %q", got, want)
		}
	})
}

// The garbage collector deletes what these owners leave.
func TestRetentionPolicy(t *testing.T) {
	const keep, drop = appsv1.RetainPersistentVolumeClaimRetentionPolicyType, appsv1.DeletePersistentVolumeClaimRetentionPolicyType
	for name, test := range map[string]struct {
		scaled, deleted     appsv1.PersistentVolumeClaimRetentionPolicyType
		running, scaledDown string
	}{
		"kept":                         {keep, keep, "data-db-0 data-db-1", "data-db-0 data-db-1"},
		"go with the set":              {keep, drop, "data-db-0<StatefulSet data-db-1<StatefulSet", "data-db-0<StatefulSet data-db-1<StatefulSet"},
		"go with a pod too many":       {drop, keep, "data-db-0 data-db-1", "data-db-0 data-db-1<Pod"},
		"go with either of set or pod": {drop, drop, "data-db-0<StatefulSet data-db-1<StatefulSet", "data-db-0<StatefulSet data-db-1<Pod"},
	} {
		t.Run(name, func(t *testing.T) {
			in(t, func(w world) {
				w.run(control.Kubelet{})
				w.create(2, withClaim)
				time.Sleep(time.Second)
				w.change(policy(test.scaled, test.deleted)) // also for claims that are there
				time.Sleep(time.Second)
				if got := w.claims(); got != test.running {
					w.Errorf("claims %q, want %q", got, test.running)
				}
				w.scale(1)
				time.Sleep(time.Second)
				w.want("0=v1")
				if got := w.claims(); got != test.scaledDown {
					w.Errorf("scaled down: claims %q, want %q", got, test.scaledDown)
				}
				w.change(policy(keep, keep))
				time.Sleep(time.Second)
				if got, want := w.claims()[:len("data-db-0 ")], "data-db-0 "; got != want {
					w.Errorf("kept again: claims %q", w.claims())
				}
			})
		})
	}
}

// A pod that is made again waits until the claim of the one before has gone.
func TestAPodWaitsForTheClaimOfTheOneBefore(t *testing.T) {
	in(t, func(w world) {
		w.run(control.Kubelet{})
		w.create(2, withClaim, policy(appsv1.DeletePersistentVolumeClaimRetentionPolicyType, appsv1.RetainPersistentVolumeClaimRetentionPolicyType))
		time.Sleep(time.Second)
		w.scale(1)
		time.Sleep(time.Second)
		w.scale(2)
		time.Sleep(time.Minute)
		w.want("0=v1") // no garbage collector runs here
		old, err := client.PersistentVolumeClaims.Get(w.Context(), w.c, "default", "data-db-1")
		if err != nil {
			w.Fatal(err)
		}
		old.Finalizers = nil
		if old, err = client.PersistentVolumeClaims.Update(w.Context(), w.c, old); err != nil {
			w.Fatal(err)
		}
		if err := client.PersistentVolumeClaims.Delete(w.Context(), w.c, "default", "data-db-1", metav1.DeleteOptions{}); err != nil {
			w.Fatal(err)
		}
		time.Sleep(time.Second)
		w.want("0=v1 1=v1")
		again, err := client.PersistentVolumeClaims.Get(w.Context(), w.c, "default", "data-db-1")
		if err != nil || again.UID == old.UID || len(again.OwnerReferences) != 0 {
			w.Errorf("claim %+v, %v", again.ObjectMeta, err)
		}
	})
}

func TestAClaimOfAnotherControllerIsLeftAlone(t *testing.T) {
	in(t, func(w world) {
		w.run(control.Kubelet{})
		w.create(1, withClaim)
		time.Sleep(time.Second)
		c, err := client.PersistentVolumeClaims.Get(w.Context(), w.c, "default", "data-db-0")
		if err != nil {
			w.Fatal(err)
		}
		yes := true
		c.OwnerReferences = []metav1.OwnerReference{{APIVersion: "example.org/v1", Kind: "Backup", Name: "b", UID: "1", Controller: &yes}}
		if _, err := client.PersistentVolumeClaims.Update(w.Context(), w.c, c); err != nil {
			w.Fatal(err)
		}
		w.change(policy(appsv1.DeletePersistentVolumeClaimRetentionPolicyType, appsv1.DeletePersistentVolumeClaimRetentionPolicyType))
		time.Sleep(time.Second)
		if got, want := w.claims(), "data-db-0<Backup"; got != want {
			w.Errorf("claims %q, want %q", got, want)
		}
		for _, e := range w.events() {
			if strings.HasPrefix(e, "Warning") {
				w.Errorf("event %q", e)
			}
		}
	})
}
