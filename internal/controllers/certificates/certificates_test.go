package certificates_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/cluster/local"
	"github.com/proa-dev/proa/internal/controllers/certificates"
	"github.com/proa-dev/proa/test/control"
)

func key(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func authority(t *testing.T) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	k := key(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(10 * 365 * 24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c, k
}

func ask(t *testing.T, c client.Interface, signer string, r x509.CertificateRequest, usages ...certificatesv1.KeyUsage) *certificatesv1.CertificateSigningRequest {
	t.Helper()
	csr, err := try(t, c, signer, r, usages...)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

func try(t *testing.T, c client.Interface, signer string, r x509.CertificateRequest, usages ...certificatesv1.KeyUsage) (*certificatesv1.CertificateSigningRequest, error) {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &r, key(t))
	if err != nil {
		t.Fatal(err)
	}
	return client.CertificateSigningRequests.Create(t.Context(), c, &certificatesv1.CertificateSigningRequest{ObjectMeta: metav1.ObjectMeta{GenerateName: "csr-"},
		Spec: certificatesv1.CertificateSigningRequestSpec{SignerName: signer, Usages: usages, ExpirationSeconds: ptr.To(int32(3600)),
			Request: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), Username: "system:node:liar", Groups: []string{"system:masters"}}})
}

func start(t *testing.T) (*local.Client, *x509.Certificate) {
	t.Helper()
	c := control.New(t)
	ca, k := authority(t)
	control.Run(t, certificates.NewApprover(c, []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}, slog.New(slog.DiscardHandler)), certificates.NewSigner(c, ca, k, slog.New(slog.DiscardHandler)))
	return c, ca
}

func TestRequestsOfNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, ca := start(t)
		for name, ip := range map[string]string{"here": "192.0.2.1", "other": "192.0.2.2"} {
			n, err := client.Nodes.Create(t.Context(), c, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}})
			if err != nil {
				t.Fatal(err)
			}
			n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: ip}}
			if _, err := client.Nodes.UpdateStatus(t.Context(), c, n); err != nil {
				t.Fatal(err)
			}
		}
		subject := func(name string) x509.CertificateRequest {
			return x509.CertificateRequest{Subject: pkix.Name{CommonName: "system:node:" + name, Organization: []string{"system:nodes"}}}
		}
		serving := func(ip string, names ...string) x509.CertificateRequest {
			r := subject("here")
			r.IPAddresses, r.DNSNames = []net.IP{net.ParseIP(ip)}, names
			return r
		}
		joining, self, someone := c.As("system:bootstrap:abcdef", "system:bootstrappers"), c.As("system:node:here", "system:nodes"), c.As("jane")
		const node, server = certificatesv1.KubeAPIServerClientKubeletSignerName, certificatesv1.KubeletServingSignerName
		login, serve := certificatesv1.UsageClientAuth, certificatesv1.UsageServerAuth
		if _, err := try(t, self, node, subject("new"), certificatesv1.UsageDigitalSignature, login); !apierrors.IsForbidden(err) {
			t.Errorf("a node wants to be another: %v", err)
		}
		for _, tc := range []struct {
			name    string
			by      client.Interface
			signer  string
			request x509.CertificateRequest
			usage   certificatesv1.KeyUsage
			want    string
		}{
			{"a machine joins", joining, node, subject("new"), login, "Approved,signed"},
			{"a machine joins under the name of a node", joining, node, subject("here"), login, "Denied:NodeExists"},
			{"a node renews", self, node, subject("here"), login, "Approved,signed"},
			{"a user wants to be a node", someone, node, subject("new"), login, ""},
			{"a machine wants more than a node's", joining, node, x509.CertificateRequest{Subject: pkix.Name{CommonName: "system:node:new", Organization: []string{"system:masters"}}}, login, ""},
			{"a machine wants a server's", joining, node, subject("new"), serve, ""},
			{"a node serves", self, server, serving("192.0.2.1", "here"), serve, "Approved,signed"},
			{"a node serves as the API server", self, server, serving("192.0.2.1", "kubernetes.default"), serve, "Denied:NotItsName"},
			{"a node serves at a Service's address", self, server, serving("10.96.0.1"), serve, "Denied:NotItsAddress"},
			{"a node serves at another's address", self, server, serving("192.0.2.2"), serve, "Denied:NotItsAddress"},
			{"a machine that joins serves", joining, server, serving("192.0.2.1", "here"), serve, ""},
		} {
			csr := ask(t, tc.by, tc.signer, tc.request, certificatesv1.UsageDigitalSignature, tc.usage)
			synctest.Wait()
			csr, err := client.CertificateSigningRequests.Get(t.Context(), c, "", csr.Name)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, x := range csr.Status.Conditions {
				if s := string(x.Type); x.Type == certificatesv1.CertificateApproved {
					got = append(got, s)
				} else {
					got = append(got, s+":"+x.Reason)
				}
			}
			if block, _ := pem.Decode(csr.Status.Certificate); block != nil {
				got = append(got, "signed")
				signed, err := x509.ParseCertificate(block.Bytes)
				if err != nil || signed.CheckSignatureFrom(ca) != nil || signed.IsCA || signed.Subject.CommonName != tc.request.Subject.CommonName {
					t.Errorf("%s: %+v %v", tc.name, signed, err)
				} else if life := time.Until(signed.NotAfter); life > time.Hour || life < 59*time.Minute {
					t.Errorf("%s: valid for %v", tc.name, life)
				}
			}
			if s := strings.Join(got, ","); s != tc.want {
				t.Errorf("%s: %q, want %q", tc.name, s, tc.want)
			}
			if csr.Spec.Username == "system:node:liar" {
				t.Errorf("%s: who asks is what the request says", tc.name)
			}
		}
	})
}

func TestWhatSomeoneApprovesIsSigned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := start(t)
		jane := x509.CertificateRequest{Subject: pkix.Name{CommonName: "jane"}}
		approve := func(csr *certificatesv1.CertificateSigningRequest) *certificatesv1.CertificateSigningRequest {
			t.Helper()
			csr = csr.DeepCopy()
			csr.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "ByHand"}}
			if _, err := c.Update(t.Context(), client.CertificateSigningRequests.GVR, "", "approval", csr, metav1.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			csr, err := client.CertificateSigningRequests.Get(t.Context(), c, "", csr.Name)
			if err != nil {
				t.Fatal(err)
			}
			return csr
		}
		csr := ask(t, c.As("jane"), certificatesv1.KubeAPIServerClientSignerName, jane, certificatesv1.UsageClientAuth)
		synctest.Wait()
		if csr = approve(csr); len(csr.Status.Certificate) == 0 {
			t.Errorf("not signed: %+v", csr.Status)
		}
		bad := approve(ask(t, c, certificatesv1.KubeAPIServerClientSignerName, jane, certificatesv1.UsageServerAuth))
		if len(bad.Status.Certificate) > 0 || len(bad.Status.Conditions) != 2 || bad.Status.Conditions[1].Type != certificatesv1.CertificateFailed {
			t.Errorf("%+v", bad.Status)
		}
		if other := approve(ask(t, c, "example.com/signer", jane, certificatesv1.UsageClientAuth)); len(other.Status.Certificate) > 0 || len(other.Status.Conditions) != 1 {
			t.Errorf("another's signer: %+v", other.Status)
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if _, err := client.CertificateSigningRequests.Get(t.Context(), c, "", csr.Name); !apierrors.IsNotFound(err) {
			t.Errorf("an old request stays: %v", err)
		}
	})
}
