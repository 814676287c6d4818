package admission

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"strings"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/utils/ptr"

	"github.com/proa-dev/proa/internal/apiserver/auth"
	"github.com/proa-dev/proa/internal/apiserver/rest"
)

// rights are verb and name pairs that everybody has on signers.
type rights map[string]bool

func (r rights) Authorize(_ context.Context, a auth.Attributes) (bool, string, error) {
	return a.Resource == "signers" && r[a.Verb+" "+a.Name], "", nil
}

func certificateRequest(t *testing.T, organization ...string) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "x", Organization: organization}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func TestCertificates(t *testing.T) {
	requests := certificatesv1.SchemeGroupVersion.WithResource("certificatesigningrequests")
	bundles := certificatesv1.SchemeGroupVersion.WithResource("clustertrustbundles")
	csr := func(signer string, change ...func(*certificatesv1.CertificateSigningRequest)) *certificatesv1.CertificateSigningRequest {
		c := &certificatesv1.CertificateSigningRequest{ObjectMeta: metav1.ObjectMeta{Name: "c"}, Spec: certificatesv1.CertificateSigningRequestSpec{SignerName: signer}}
		for _, f := range change {
			f(c)
		}
		return c
	}
	signed := func(c *certificatesv1.CertificateSigningRequest) { c.Status.Certificate = []byte("x") }
	asking := func(data []byte) func(*certificatesv1.CertificateSigningRequest) {
		return func(c *certificatesv1.CertificateSigningRequest) { c.Spec.Request = data }
	}
	update := func(sub string, now, was *certificatesv1.CertificateSigningRequest) *rest.Attributes {
		a := write(rest.Update, requests, "CertificateSigningRequest", now)
		a.Subresource, a.Old = sub, was
		return a
	}
	for _, x := range []struct {
		name   string
		a      *rest.Attributes
		rights rights
		want   string
	}{
		{"an approval without the right", update("approval", csr("a.com/b"), csr("a.com/b")), rights{"approve a.com/c": true}, `user not permitted to approve requests with signerName "a.com/b"`},
		{"an approval", update("approval", csr("a.com/b"), csr("a.com/b")), rights{"approve a.com/b": true}, ""},
		{"an approval by right on the domain", update("approval", csr("a.com/b"), csr("a.com/b")), rights{"approve a.com/*": true}, ""},
		{"an approval that changes the signer", update("approval", csr("a.com/c"), csr("a.com/b")), rights{"approve a.com/c": true}, "user not permitted"},
		{"a signature without the right", update("status", csr("a.com/b", signed), csr("a.com/b")), rights{}, `user not permitted to sign requests with signerName "a.com/b"`},
		{"a status without a signature", update("status", csr("a.com/b"), csr("a.com/b")), rights{}, ""},
		{"an administrator's certificate", write(rest.Create, requests, "CertificateSigningRequest", csr(certificatesv1.KubeAPIServerClientSignerName, asking(certificateRequest(t, "system:masters")))), rights{}, "use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed"},
		{"a user's certificate", write(rest.Create, requests, "CertificateSigningRequest", csr(certificatesv1.KubeAPIServerClientSignerName, asking(certificateRequest(t, "dev")))), rights{}, ""},
		{"no certificate request", write(rest.Create, requests, "CertificateSigningRequest", csr(certificatesv1.KubeAPIServerClientSignerName, asking([]byte("x")))), rights{}, "failed to parse CSR: PEM block type must be CERTIFICATE REQUEST"},
		{"a bundle without the right", write(rest.Create, bundles, "ClusterTrustBundle", &certificatesv1.ClusterTrustBundle{Spec: certificatesv1.ClusterTrustBundleSpec{SignerName: "a.com/b"}}), rights{}, `user not permitted to attest for signerName "a.com/b"`},
		{"a bundle of no signer", write(rest.Create, bundles, "ClusterTrustBundle", &certificatesv1.ClusterTrustBundle{}), rights{}, ""},
	} {
		t.Run(x.name, func(t *testing.T) {
			x.a.User = &user.DefaultInfo{Name: "u"}
			err := Certificates{x.rights}.Validate(t.Context(), x.a)
			if (x.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), x.want) {
				t.Errorf("got %v, want %q", err, x.want)
			}
			if err := (Certificates{}).Validate(rest.WithTrust(t.Context()), x.a); strings.Contains(x.want, "permitted") && err != nil {
				t.Errorf("a part of the process: %v", err)
			}
		})
	}
}

func TestAnIngressGetsTheNewestDefaultClass(t *testing.T) {
	class := func(name string, age int64, isDefault string) *networkingv1.IngressClass {
		return &networkingv1.IngressClass{ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.NewTime(time.Unix(1000-age, 0)), Annotations: map[string]string{networkingv1.AnnotationIsDefaultIngressClass: isDefault}}}
	}
	p := DefaultIngressClass{state{"ingressclasses//a": class("a", 9, "true"), "ingressclasses//b": class("b", 1, "true"), "ingressclasses//c": class("c", 0, "false")}}
	admit := func(i *networkingv1.Ingress) string {
		if err := p.Admit(t.Context(), write(rest.Create, networkingv1.SchemeGroupVersion.WithResource("ingresses"), "Ingress", i)); err != nil {
			t.Fatal(err)
		}
		return ptr.Deref(i.Spec.IngressClassName, "")
	}
	if got := admit(&networkingv1.Ingress{}); got != "b" {
		t.Errorf("class %q", got)
	}
	if got := admit(&networkingv1.Ingress{Spec: networkingv1.IngressSpec{IngressClassName: ptr.To("x")}}); got != "x" {
		t.Errorf("class %q", got)
	}
	if got := admit(&networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{ingressClassAnnotation: "old"}}}); got != "" {
		t.Errorf("class %q", got)
	}
}

func TestOnlyVolumesThatCanGrowAreResized(t *testing.T) {
	s := state{"storageclasses//grows": &storagev1.StorageClass{AllowVolumeExpansion: ptr.To(true)}, "storageclasses//fixed": &storagev1.StorageClass{}}
	claim := func(class, size string, phase corev1.PersistentVolumeClaimPhase) *corev1.PersistentVolumeClaim {
		return &corev1.PersistentVolumeClaim{ObjectMeta: meta("shop", "c"), Spec: corev1.PersistentVolumeClaimSpec{StorageClassName: &class,
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{"storage": resource.MustParse(size)}}}, Status: corev1.PersistentVolumeClaimStatus{Phase: phase}}
	}
	for _, x := range []struct {
		class, from, to string
		phase           corev1.PersistentVolumeClaimPhase
		want            string
	}{
		{"grows", "1Gi", "2Gi", corev1.ClaimBound, ""},
		{"grows", "2Gi", "1Gi", corev1.ClaimPending, ""},
		{"grows", "1Gi", "2Gi", corev1.ClaimPending, "Only bound persistent volume claims can be expanded"},
		{"fixed", "1Gi", "2Gi", corev1.ClaimBound, "only dynamically provisioned pvc can be resized"},
		{"", "1Gi", "2Gi", corev1.ClaimBound, "only dynamically provisioned pvc can be resized"},
	} {
		a := write(rest.Update, corev1.SchemeGroupVersion.WithResource("persistentvolumeclaims"), "PersistentVolumeClaim", claim(x.class, x.to, x.phase))
		a.Old = claim(x.class, x.from, x.phase)
		if err := (PersistentVolumeClaimResize{s}).Validate(t.Context(), a); (x.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), x.want) {
			t.Errorf("%+v: %v", x, err)
		}
	}
}

func TestSecretsThatAPodMayHave(t *testing.T) {
	s := state{"serviceaccounts/shop/tight": &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "tight", Annotations: map[string]string{mountableAnnotation: "true"}}, Secrets: []corev1.ObjectReference{{Name: "mine"}}},
		"serviceaccounts/shop/loose": &corev1.ServiceAccount{ObjectMeta: meta("shop", "loose")}}
	with := func(account, secret string, annotations map[string]string) *corev1.Pod {
		p := pod(corev1.Container{Name: "c", EnvFrom: []corev1.EnvFromSource{{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: secret}}}}})
		p.Spec.ServiceAccountName, p.Annotations = account, annotations
		return p
	}
	mirror := map[string]string{corev1.MirrorPodAnnotationKey: "x"}
	for _, x := range []struct {
		name, want string
		pod        *corev1.Pod
	}{
		{"the account's", "", with("tight", "mine", nil)},
		{"another", `container c with envFrom referencing secret.secretName="other" is not allowed because service account tight does not reference that secret`, with("tight", "other", nil)},
		{"any", "", with("loose", "other", nil)},
		{"a mirror's account", "a mirror pod may not reference service accounts", with("loose", "other", mirror)},
		{"a mirror's secret", "a mirror pod may not reference secrets", with("", "other", mirror)},
	} {
		t.Run(x.name, func(t *testing.T) {
			err := ServiceAccount{s}.Validate(t.Context(), write(rest.Create, podsGVR, "Pod", x.pod))
			if (x.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), x.want) {
				t.Errorf("got %v, want %q", err, x.want)
			}
		})
	}
}

func TestAPodIsLabelledAndResizedByItsNode(t *testing.T) {
	s := state{"nodes//n": &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{corev1.LabelTopologyZone: "z", "other": "x"}},
		Status: corev1.NodeStatus{Allocatable: corev1.ResourceList{"cpu": resource.MustParse("2"), "memory": resource.MustParse("1Gi")}}}}
	b := &corev1.Binding{ObjectMeta: meta("shop", "web"), Target: corev1.ObjectReference{Kind: "Node", Name: "n"}}
	a := write(rest.Create, podsGVR, "Pod", b)
	a.Subresource = "binding"
	if err := (PodTopologyLabels{s}).Admit(t.Context(), a); err != nil || len(b.Labels) != 1 || b.Labels[corev1.LabelTopologyZone] != "z" {
		t.Errorf("binding: %v, %v", b.Labels, err)
	}
	sized := func(cpu string, generation int64) *corev1.Pod {
		p := pod(corev1.Container{Name: "c", Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse(cpu)}}})
		p.Spec.NodeName, p.Generation = "n", generation
		return p
	}
	resize := func(cpu string) error {
		a := write(rest.Update, podsGVR, "Pod", sized(cpu, 2))
		a.Subresource, a.Old = "resize", sized("1", 1)
		return PodResize{s}.Validate(t.Context(), a)
	}
	if err := resize("2"); err != nil {
		t.Error(err)
	}
	if err := resize("3"); err == nil || !strings.Contains(err.Error(), "node didn't have enough allocatable resources: cpu, requested: 3000, allocatable: 2000") {
		t.Errorf("more than the node has: %v", err)
	}
}
