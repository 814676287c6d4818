// Package certificates approves and signs CertificateSigningRequests for the signers
// of Kubernetes: those of nodes that join or renew are approved here, others by
// whoever may; what is approved is signed by the cluster's authority. Old requests
// are removed.
package certificates

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"slices"
	"strings"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/controllers/loop"
)

const (
	// maxLife is that of a certificate; shorter ones may be asked for.
	maxLife = 365 * 24 * time.Hour
	// backdate lets clocks differ.
	backdate = 5 * time.Minute
)

// Signer signs what is approved.
type Signer struct {
	client client.Interface
	loop   *loop.Loop[string]
	all    client.Typed[*certificatesv1.CertificateSigningRequest]
	ca     *x509.Certificate
	key    crypto.Signer
}

// NewSigner returns the controller; ca and key are the cluster's authority.
func NewSigner(c client.Interface, ca *x509.Certificate, key crypto.Signer, log *slog.Logger) *Signer {
	s := &Signer{client: c, ca: ca, key: key, all: client.CertificateSigningRequests.Informer(c, client.Scope{})}
	s.loop = loop.New("csrsigning", log, s.sync)
	return s
}

func (s *Signer) Name() string { return "csrsigning" }

// Run works until ctx ends.
func (s *Signer) Run(ctx context.Context) error {
	return s.loop.Run(ctx, 1, loop.Source{Informer: s.all.Informer, Handle: func(e client.Event) {
		if e.Object != nil && e.Type != client.Deleted {
			s.loop.Add(e.Object.GetName())
		}
	}})
}

func has(c *certificatesv1.CertificateSigningRequest, kind certificatesv1.RequestConditionType) bool {
	return slices.ContainsFunc(c.Status.Conditions, func(x certificatesv1.CertificateSigningRequestCondition) bool { return x.Type == kind })
}

func (s *Signer) sync(ctx context.Context, name string) error {
	c, ok := s.all.Get("", name)
	if !ok || len(c.Status.Certificate) > 0 || !has(c, certificatesv1.CertificateApproved) || has(c, certificatesv1.CertificateDenied) || has(c, certificatesv1.CertificateFailed) {
		return nil
	}
	check, ours := signers[c.Spec.SignerName]
	if !ours {
		return nil
	}
	c = c.DeepCopy()
	request, err := parse(c)
	if err == nil {
		err = check(request, c.Spec.Usages)
	}
	if err != nil {
		c.Status.Conditions = append(c.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{Type: certificatesv1.CertificateFailed, Status: corev1.ConditionTrue,
			Reason: "SignerValidationFailure", Message: err.Error(), LastUpdateTime: metav1.Now(), LastTransitionTime: metav1.Now()})
	} else if c.Status.Certificate, err = s.sign(request, c); err != nil {
		return fmt.Errorf("sign CertificateSigningRequest %s: %w", name, err)
	}
	if _, err := client.CertificateSigningRequests.UpdateStatus(ctx, s.client, c); err != nil {
		return fmt.Errorf("write the certificate of CertificateSigningRequest %s: %w", name, err)
	}
	return nil
}

func parse(c *certificatesv1.CertificateSigningRequest) (*x509.CertificateRequest, error) {
	block, _ := pem.Decode(c.Spec.Request)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, errors.New("PEM block type must be CERTIFICATE REQUEST")
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("unable to parse csr: %w", err)
	}
	if err := request.CheckSignature(); err != nil {
		return nil, fmt.Errorf("the request is not signed by its key: %w", err)
	}
	return request, nil
}

var keyUsages = map[certificatesv1.KeyUsage]x509.KeyUsage{
	certificatesv1.UsageSigning: x509.KeyUsageDigitalSignature, certificatesv1.UsageDigitalSignature: x509.KeyUsageDigitalSignature,
	certificatesv1.UsageContentCommitment: x509.KeyUsageContentCommitment, certificatesv1.UsageKeyEncipherment: x509.KeyUsageKeyEncipherment,
	certificatesv1.UsageKeyAgreement: x509.KeyUsageKeyAgreement, certificatesv1.UsageDataEncipherment: x509.KeyUsageDataEncipherment,
	certificatesv1.UsageEncipherOnly: x509.KeyUsageEncipherOnly, certificatesv1.UsageDecipherOnly: x509.KeyUsageDecipherOnly,
}

var extendedUsages = map[certificatesv1.KeyUsage]x509.ExtKeyUsage{
	certificatesv1.UsageAny: x509.ExtKeyUsageAny, certificatesv1.UsageServerAuth: x509.ExtKeyUsageServerAuth, certificatesv1.UsageClientAuth: x509.ExtKeyUsageClientAuth,
	certificatesv1.UsageCodeSigning: x509.ExtKeyUsageCodeSigning, certificatesv1.UsageEmailProtection: x509.ExtKeyUsageEmailProtection, certificatesv1.UsageSMIME: x509.ExtKeyUsageEmailProtection,
	certificatesv1.UsageIPsecEndSystem: x509.ExtKeyUsageIPSECEndSystem, certificatesv1.UsageIPsecTunnel: x509.ExtKeyUsageIPSECTunnel, certificatesv1.UsageIPsecUser: x509.ExtKeyUsageIPSECUser,
	certificatesv1.UsageTimestamping: x509.ExtKeyUsageTimeStamping, certificatesv1.UsageOCSPSigning: x509.ExtKeyUsageOCSPSigning,
	certificatesv1.UsageMicrosoftSGC: x509.ExtKeyUsageMicrosoftServerGatedCrypto, certificatesv1.UsageNetscapeSGC: x509.ExtKeyUsageNetscapeServerGatedCrypto,
}

// sign makes the certificate, never an authority's.
func (s *Signer) sign(request *x509.CertificateRequest, c *certificatesv1.CertificateSigningRequest) ([]byte, error) {
	life := maxLife
	if e := c.Spec.ExpirationSeconds; e != nil {
		life = min(life, max(10*time.Minute, time.Duration(*e)*time.Second))
	}
	now := time.Now()
	end := now.Add(life)
	if end.After(s.ca.NotAfter) {
		end = s.ca.NotAfter
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: request.Subject.CommonName, Organization: request.Subject.Organization}, RawSubject: request.RawSubject,
		DNSNames: request.DNSNames, IPAddresses: request.IPAddresses, EmailAddresses: request.EmailAddresses, URIs: request.URIs,
		NotBefore: now.Add(-backdate), NotAfter: end, BasicConstraintsValid: true}
	for _, u := range c.Spec.Usages {
		if k, ok := keyUsages[u]; ok {
			t.KeyUsage |= k
		} else if x, ok := extendedUsages[u]; ok {
			if !slices.Contains(t.ExtKeyUsage, x) {
				t.ExtKeyUsage = append(t.ExtKeyUsage, x)
			}
		} else {
			return nil, fmt.Errorf("usage %q is not signed", u)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, s.ca, request.PublicKey, s.key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

// signers are those that we sign for, with what each one asks of a request.
var signers = map[string]func(*x509.CertificateRequest, []certificatesv1.KeyUsage) error{
	certificatesv1.KubeAPIServerClientSignerName: func(_ *x509.CertificateRequest, usages []certificatesv1.KeyUsage) error {
		return usagesOf(usages, certificatesv1.UsageClientAuth)
	},
	certificatesv1.KubeAPIServerClientKubeletSignerName: nodeClient,
	certificatesv1.KubeletServingSignerName: func(r *x509.CertificateRequest, usages []certificatesv1.KeyUsage) error {
		if err := ofNode(r); err != nil {
			return err
		}
		switch {
		case len(r.DNSNames) == 0 && len(r.IPAddresses) == 0:
			return errors.New("DNS or IP subjectAltName is required")
		case len(r.EmailAddresses) > 0:
			return errors.New("email subjectAltNames are not allowed")
		case len(r.URIs) > 0:
			return errors.New("URI subjectAltNames are not allowed")
		}
		return usagesOf(usages, certificatesv1.UsageServerAuth)
	},
	"kubernetes.io/legacy-unknown": func(*x509.CertificateRequest, []certificatesv1.KeyUsage) error { return nil },
}

func nodeClient(r *x509.CertificateRequest, usages []certificatesv1.KeyUsage) error {
	if err := ofNode(r); err != nil {
		return err
	}
	switch {
	case len(r.DNSNames) > 0:
		return errors.New("DNS subjectAltNames are not allowed")
	case len(r.EmailAddresses) > 0:
		return errors.New("email subjectAltNames are not allowed")
	case len(r.IPAddresses) > 0:
		return errors.New("IP subjectAltNames are not allowed")
	case len(r.URIs) > 0:
		return errors.New("URI subjectAltNames are not allowed")
	}
	return usagesOf(usages, certificatesv1.UsageClientAuth)
}

const nodeUser = "system:node:"

func ofNode(r *x509.CertificateRequest) error {
	if !slices.Equal(r.Subject.Organization, []string{"system:nodes"}) {
		return errors.New("subject organization is not system:nodes")
	}
	if name, ok := strings.CutPrefix(r.Subject.CommonName, nodeUser); !ok || name == "" {
		return errors.New("subject common name does not begin with " + nodeUser)
	}
	return nil
}

// usagesOf wants one extended usage, with those of the key that belong to it.
func usagesOf(have []certificatesv1.KeyUsage, want certificatesv1.KeyUsage) error {
	if !slices.Contains(have, want) {
		return fmt.Errorf("usages did not match: %q is missing", want)
	}
	for _, u := range have {
		if u != want && u != certificatesv1.UsageDigitalSignature && u != certificatesv1.UsageKeyEncipherment {
			return fmt.Errorf("usages did not match: %q is not allowed", u)
		}
	}
	return nil
}
