package volume_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/kubelet/source"
	"github.com/proa-dev/proa/internal/kubelet/volume"
	"github.com/proa-dev/proa/test/control"
)

const signerName = "example.com/test"

// authority signs what PodCertificateRequests ask for, or refuses it.
type authority struct {
	t      *testing.T
	c      client.Interface
	key    *ecdsa.PrivateKey
	cert   *x509.Certificate
	issued int
	refuse bool
}

func newAuthority(t *testing.T, c client.Interface) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(48 * time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{t: t, c: c, key: key, cert: cert}
}

func (a *authority) pem() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}))
}

func (a *authority) Run(ctx context.Context) error {
	return client.PodCertificateRequests.Informer(a.c, client.Scope{}).Watch(ctx, func(e client.Event) {
		if e.Type != client.Added {
			return
		}
		r := e.Object.(*certificatesv1.PodCertificateRequest).DeepCopy()
		now := time.Now().Truncate(time.Second)
		condition := metav1.Condition{Type: certificatesv1.PodCertificateRequestConditionTypeIssued, Status: metav1.ConditionTrue, Reason: "Fine", Message: "fine", LastTransitionTime: metav1.NewTime(now)}
		if a.refuse {
			condition.Type, condition.Reason, condition.Message = certificatesv1.PodCertificateRequestConditionTypeDenied, "UnsupportedKeyType", "use another"
		} else {
			a.sign(r, now)
		}
		r.Status.Conditions = []metav1.Condition{condition}
		if _, err := client.PodCertificateRequests.UpdateStatus(ctx, a.c, r); err != nil {
			a.t.Errorf("answer a request: %v", err)
		}
	})
}

func (a *authority) sign(r *certificatesv1.PodCertificateRequest, now time.Time) {
	csr, err := x509.ParseCertificateRequest(r.Spec.StubPKCS10Request)
	if err != nil {
		a.t.Errorf("parse the request: %v", err)
		return
	}
	a.issued++
	life := time.Duration(*r.Spec.MaxExpirationSeconds) * time.Second
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(int64(a.issued + 1)), Subject: pkix.Name{CommonName: r.Spec.PodName}, NotBefore: now, NotAfter: now.Add(life)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, csr.PublicKey, a.key)
	if err != nil {
		a.t.Errorf("sign: %v", err)
		return
	}
	r.Status.CertificateChain = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	at := func(d time.Duration) *metav1.Time { x := metav1.NewTime(now.Add(d)); return &x }
	r.Status.NotBefore, r.Status.BeginRefreshAt, r.Status.NotAfter = at(0), at(life/2), at(life)
}

func TestProjectedCertificates(t *testing.T) {
	c := control.New(t)
	ca, other := newAuthority(t, c), newAuthority(t, c)
	control.Run(t, ca)
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}
	if _, err := client.Nodes.Create(t.Context(), c, node); err != nil {
		t.Fatal(err)
	}
	hour := int32(3600)
	no := false
	trust := func(s corev1.ClusterTrustBundleProjection, path string) corev1.VolumeProjection {
		s.Path = path
		return corev1.VolumeProjection{ClusterTrustBundle: &s}
	}
	signer, name := signerName, "example.com:test:one"
	live := &metav1.LabelSelector{MatchLabels: map[string]string{"live": "yes"}}
	optional := true
	sources := []corev1.VolumeProjection{
		{PodCertificate: &corev1.PodCertificateProjection{SignerName: signerName, KeyType: "ECDSAP256", MaxExpirationSeconds: &hour, CredentialBundlePath: "all.pem", KeyPath: "key.pem", CertificateChainPath: "chain.pem"}},
		trust(corev1.ClusterTrustBundleProjection{SignerName: &signer, LabelSelector: live, Optional: &no}, "live.pem"),
		trust(corev1.ClusterTrustBundleProjection{Name: &name}, "one.pem"),
		trust(corev1.ClusterTrustBundleProjection{SignerName: &signer, Optional: &optional}, "none.pem"),
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p"}, Spec: corev1.PodSpec{NodeName: "n", ServiceAccountName: "default", AutomountServiceAccountToken: &no,
		Containers: []corev1.Container{{Name: "c", Image: "i"}},
		Volumes:    []corev1.Volume{{Name: "tls", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: sources}}}}}}
	pod, err := client.Pods.Create(t.Context(), c, pod)
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	vols := volume.New(volume.Config{RootDir: root, Client: c, Sources: source.New(c), NoMounts: true, Logger: slog.New(slog.DiscardHandler)})

	_, err = vols.Setup(t.Context(), pod)
	if err == nil || !strings.Contains(err.Error(), "combination of signerName and labelSelector matched zero ClusterTrustBundles") {
		t.Fatalf("without a bundle: %v", err)
	}
	for _, b := range []struct{ name, bundle string }{{"one", ca.pem()}, {"two", other.pem() + "between the blocks\n" + ca.pem()}} {
		if _, err := client.ClusterTrustBundles.Create(t.Context(), c, &certificatesv1.ClusterTrustBundle{
			ObjectMeta: metav1.ObjectMeta{Name: "example.com:test:" + b.name, Labels: map[string]string{"live": "yes"}},
			Spec:       certificatesv1.ClusterTrustBundleSpec{SignerName: signerName, TrustBundle: b.bundle}}); err != nil {
			t.Fatal(err)
		}
	}
	mounted, err := vols.Setup(t.Context(), pod)
	if err != nil {
		t.Fatal(err)
	}
	read := func(file string) []byte {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(mounted["tls"].Path, file))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if ca.issued != 1 {
		t.Errorf("%d certificates for one volume that was set up again", ca.issued)
	}
	if _, err := tls.X509KeyPair(read("all.pem"), read("all.pem")); err != nil {
		t.Errorf("the bundle: %v", err)
	}
	if !bytes.Equal(read("all.pem"), append(read("key.pem"), read("chain.pem")...)) {
		t.Error("the bundle is not the key and the chain")
	}
	if string(read("one.pem")) != ca.pem() || len(read("none.pem")) != 0 {
		t.Errorf("by name %q, by a selector that is not there %q", read("one.pem"), read("none.pem"))
	}
	all := string(read("live.pem"))
	if strings.Count(all, "BEGIN") != 2 || !strings.Contains(all, ca.pem()) || !strings.Contains(all, other.pem()) {
		t.Errorf("each root once, of both bundles: %s", all)
	}
	if next := vols.NextRotation(pod); time.Until(next) > 30*time.Minute || time.Until(next) < 25*time.Minute {
		t.Errorf("the next one is due at %s", next)
	}
	if err := vols.ReleaseVolumes(pod.UID); err != nil {
		t.Fatal(err)
	}
	if next := vols.NextRotation(pod); !next.IsZero() {
		t.Errorf("due at %s after the pod's end", next)
	}

	ca.refuse = true
	for range 2 {
		if _, err := vols.Setup(t.Context(), pod); err == nil || !strings.Contains(err.Error(), `PodCertificateRequest was permanently denied: reason="UnsupportedKeyType" message="use another"`) {
			t.Errorf("a refusal: %v", err)
		}
	}
	list, err := client.PodCertificateRequests.List(t.Context(), c, "default", metav1.ListOptions{})
	if err != nil || len(list) != 2 {
		t.Errorf("%d requests, %v", len(list), err)
	}
}
