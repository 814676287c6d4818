package persistentvolume_test

import (
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/controllers/persistentvolume"
	"github.com/proa-dev/proa/internal/controllers/storageprotection"
	"github.com/proa-dev/proa/test/control"
)

func volume(t *testing.T, c client.Interface, name, size, class string, change func(*corev1.PersistentVolume)) {
	t.Helper()
	v := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PersistentVolumeSpec{StorageClassName: class,
		AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, Capacity: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)},
		PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
		PersistentVolumeSource:        corev1.PersistentVolumeSource{NFS: &corev1.NFSVolumeSource{Server: "nfs.example", Path: "/" + name}}}}
	if change != nil {
		change(v)
	}
	if _, err := client.PersistentVolumes.Create(t.Context(), c, v); err != nil {
		t.Fatal(err)
	}
}

func claim(t *testing.T, c client.Interface, name, size string, class *string, change func(*corev1.PersistentVolumeClaim)) {
	t.Helper()
	p := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: corev1.PersistentVolumeClaimSpec{StorageClassName: class,
		AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
		Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}}}}
	if change != nil {
		change(p)
	}
	if _, err := client.PersistentVolumeClaims.Create(t.Context(), c, p); err != nil {
		t.Fatal(err)
	}
}

func state(t *testing.T, c client.Interface, name string) (string, *corev1.PersistentVolumeClaim) {
	t.Helper()
	p, err := client.PersistentVolumeClaims.Get(t.Context(), c, "default", name)
	if err != nil {
		t.Fatal(err)
	}
	return string(p.Status.Phase) + " " + p.Spec.VolumeName, p
}

func phase(t *testing.T, c client.Interface, name string) corev1.PersistentVolumePhase {
	t.Helper()
	v, err := client.PersistentVolumes.Get(t.Context(), c, "", name)
	if err != nil {
		t.Fatal(err)
	}
	return v.Status.Phase
}

func said(t *testing.T, c client.Interface, want string) {
	t.Helper()
	list, err := client.Events.List(t.Context(), c, "default", metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range list {
		all = append(all, e.Reason+": "+e.Message)
	}
	if !slices.Contains(all, want) {
		t.Errorf("no event %q in %q", want, all)
	}
}

func run(t *testing.T, test func(t *testing.T, c client.Interface)) {
	synctest.Test(t, func(t *testing.T) {
		c, quiet := control.New(t), slog.New(slog.DiscardHandler)
		control.Run(t, persistentvolume.New(c, quiet), storageprotection.NewClaims(c, quiet), storageprotection.NewVolumes(c, quiet))
		test(t, c)
	})
}

// C17: one to one, the smallest that does; the volume is released, not freed, with the claim.
func TestAClaimGetsTheSmallestVolumeThatDoes(t *testing.T) {
	run(t, func(t *testing.T, c client.Interface) {
		claim(t, c, "a", "2Gi", ptr.To(""), nil)
		time.Sleep(time.Second)
		if got, _ := state(t, c, "a"); got != "Pending " {
			t.Fatalf("a claim without volumes is %q", got)
		}
		said(t, c, "FailedBinding: no persistent volumes available for this claim and no storage class is set")
		volume(t, c, "other-class", "3Gi", "fast", nil)
		volume(t, c, "small", "1Gi", "", nil)
		synctest.Wait()
		volume(t, c, "fits", "4Gi", "", nil)
		volume(t, c, "huge", "40Gi", "", nil)
		time.Sleep(time.Second)
		got, p := state(t, c, "a")
		if size := p.Status.Capacity[corev1.ResourceStorage]; got != "Bound fits" || size.String() != "4Gi" || p.Annotations["pv.kubernetes.io/bind-completed"] != "yes" {
			t.Fatalf("the claim is %q with %v and %v", got, p.Status.Capacity, p.Annotations)
		}
		if got := phase(t, c, "fits"); got != corev1.VolumeBound {
			t.Errorf("its volume is %s", got)
		}
		claim(t, c, "b", "4Gi", ptr.To(""), nil)
		time.Sleep(time.Second)
		if got, _ := state(t, c, "b"); got != "Bound huge" {
			t.Errorf("the second claim is %q", got)
		}
		if err := client.PersistentVolumeClaims.Delete(t.Context(), c, "default", "a", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if got := phase(t, c, "fits"); got != corev1.VolumeReleased {
			t.Errorf("the volume of a claim that is gone is %s", got)
		}
		if err := client.PersistentVolumes.Delete(t.Context(), c, "", "huge", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if got := phase(t, c, "huge"); got != corev1.VolumeBound {
			t.Errorf("a bound volume that is to go is %s", got)
		}
	})
}

func TestVolumesAndClaimsMeantForEachOther(t *testing.T) {
	run(t, func(t *testing.T, c client.Interface) {
		volume(t, c, "reserved", "9Gi", "", func(v *corev1.PersistentVolume) {
			v.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "default", Name: "mine"}
		})
		volume(t, c, "tight", "1Gi", "", nil)
		claim(t, c, "mine", "1Gi", ptr.To(""), nil)
		claim(t, c, "wants", "1Gi", ptr.To(""), func(p *corev1.PersistentVolumeClaim) { p.Spec.VolumeName = "reserved" })
		claim(t, c, "big", "5Gi", ptr.To(""), func(p *corev1.PersistentVolumeClaim) { p.Spec.VolumeName = "tight" })
		time.Sleep(time.Second)
		for name, want := range map[string]string{"mine": "Bound reserved", "wants": "Pending reserved", "big": "Pending tight"} {
			if got, _ := state(t, c, name); got != want {
				t.Errorf("claim %s is %q, want %q", name, got, want)
			}
		}
		said(t, c, `FailedBinding: volume "reserved" already bound to a different claim.`)
		said(t, c, `VolumeMismatch: Cannot bind to requested volume "tight": requested PV is too small`)
	})
}

func TestClaimsOfClasses(t *testing.T) {
	run(t, func(t *testing.T, c client.Interface) {
		claim(t, c, "none", "1Gi", nil, nil)
		claim(t, c, "unknown", "1Gi", ptr.To("nowhere"), nil)
		class := func(name string, mode storagev1.VolumeBindingMode, annotations map[string]string) {
			if _, err := client.StorageClasses.Create(t.Context(), c, &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: annotations},
				Provisioner: "disks.example.com", VolumeBindingMode: &mode}); err != nil {
				t.Fatal(err)
			}
		}
		class("late", storagev1.VolumeBindingWaitForFirstConsumer, nil)
		class("now", storagev1.VolumeBindingImmediate, map[string]string{"storageclass.kubernetes.io/is-default-class": "true"})
		claim(t, c, "waits", "1Gi", ptr.To("late"), nil)
		time.Sleep(time.Second)
		_, p := state(t, c, "none")
		if ptr.Deref(p.Spec.StorageClassName, "") != "now" || p.Annotations["volume.kubernetes.io/storage-provisioner"] != "disks.example.com" {
			t.Errorf("a claim without a class has class %v, annotations %v", ptr.Deref(p.Spec.StorageClassName, "-"), p.Annotations)
		}
		said(t, c, `ProvisioningFailed: storageclass.storage.k8s.io "nowhere" not found`)
		said(t, c, "WaitForFirstConsumer: waiting for first consumer to be created before binding")
		volume(t, c, "v", "1Gi", "late", nil)
		time.Sleep(time.Second)
		got, p := state(t, c, "waits")
		if got != "Pending " || p.Annotations["volume.kubernetes.io/storage-provisioner"] != "" {
			t.Fatalf("a claim that waits for its pod is %q, %v", got, p.Annotations)
		}
		p.Annotations = map[string]string{"volume.kubernetes.io/selected-node": "n"}
		p, err := client.PersistentVolumeClaims.Update(t.Context(), c, p)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		// What a provisioner does: a volume that is the claim's.
		volume(t, c, "pvc-1", "1Gi", "late", func(v *corev1.PersistentVolume) {
			v.Annotations = map[string]string{"pv.kubernetes.io/provisioned-by": "disks.example.com"}
			v.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimDelete
			v.Spec.ClaimRef = &corev1.ObjectReference{Kind: "PersistentVolumeClaim", APIVersion: "v1", Namespace: "default", Name: "waits", UID: p.UID}
		})
		time.Sleep(time.Second)
		got, p = state(t, c, "waits")
		if got != "Bound pvc-1" || p.Annotations["volume.kubernetes.io/storage-provisioner"] != "disks.example.com" {
			t.Errorf("the claim whose pod has a node is %q, %v", got, p.Annotations)
		}
	})
}
