package volume

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/proa-dev/proa/internal/client"
)

// certificate is a key of a pod with the chain that a signer gave for it
// (KEP-4317), and the request that is under way for the next one.
type certificate struct {
	key, chain []byte // PEM
	rotate     time.Time
	notAfter   time.Time
	refused    error // the signer's last word

	request string // name of the PodCertificateRequest that is waited for
	nextKey []byte // its key, PEM
}

func (c *certificate) issued() bool { return len(c.chain) > 0 }

const (
	// issueWait is how long a pod's start, or its refresh, waits at once for a signer.
	issueWait = 20 * time.Second
	// refreshPause is between attempts to replace a certificate that is still good.
	refreshPause = time.Minute
)

// certificate returns a key with its chain, asking for a new one when there is
// none or the signer said that it is time.
func (v *Volumes) certificate(ctx context.Context, pod *corev1.Pod, key tokenKey, s *corev1.PodCertificateProjection) (certificate, error) {
	v.mu.Lock()
	c := v.certificates[key]
	if c == nil {
		c = &certificate{}
		v.certificates[key] = c
	}
	have := *c
	v.mu.Unlock()
	if have.refused != nil && !have.issued() {
		return have, have.refused
	}
	now := time.Now()
	if have.issued() && now.Before(have.rotate) {
		return have, nil
	}
	next, err := v.issue(ctx, pod, have, s)
	if err != nil && have.issued() && now.Before(have.notAfter) {
		v.cfg.Logger.Warn("renewing a pod's certificate", "kind", "Pod", "namespace", pod.Namespace, "name", pod.Name, "signer", s.SignerName, "err", err)
		next.rotate, err = now.Add(refreshPause), nil
	}
	v.mu.Lock()
	if v.certificates[key] != nil { // not released meanwhile
		v.certificates[key] = &next
	}
	v.mu.Unlock()
	return next, err
}

// issue makes a request, if none is under way, and waits for what becomes of it.
func (v *Volumes) issue(ctx context.Context, pod *corev1.Pod, c certificate, s *corev1.PodCertificateProjection) (certificate, error) {
	if c.request == "" {
		var err error
		if c.request, c.nextKey, err = v.requestCertificate(ctx, pod, s); err != nil {
			return c, err
		}
	}
	r, err := v.outcome(ctx, pod.Namespace, c.request)
	if err != nil {
		return c, err
	}
	if r == nil {
		err := fmt.Errorf("PodCertificateRequest %s was deleted", c.request)
		c.request, c.nextKey = "", nil
		return c, err
	}
	for _, cond := range r.Status.Conditions {
		switch cond.Type {
		case certificatesv1.PodCertificateRequestConditionTypeIssued:
			c.key, c.chain, c.refused = c.nextKey, certificates(r.Status.CertificateChain), nil
			if r.Status.BeginRefreshAt == nil || r.Status.NotAfter == nil {
				return c, fmt.Errorf("PodCertificateRequest %s was issued without its times", r.Name)
			}
			c.rotate, c.notAfter = r.Status.BeginRefreshAt.Time, r.Status.NotAfter.Time
			c.request, c.nextKey = "", nil
			return c, nil
		case certificatesv1.PodCertificateRequestConditionTypeDenied, certificatesv1.PodCertificateRequestConditionTypeFailed:
			verb := "denied"
			if cond.Type == certificatesv1.PodCertificateRequestConditionTypeFailed {
				verb = "failed"
			}
			c.request, c.nextKey = "", nil
			c.refused = fmt.Errorf("PodCertificateRequest was permanently %s: reason=%q message=%q", verb, cond.Reason, cond.Message)
			return c, c.refused
		}
	}
	return c, errors.New("credential bundle is not issued yet")
}

// requestCertificate makes a key and asks for a certificate for it.
func (v *Volumes) requestCertificate(ctx context.Context, pod *corev1.Pod, s *corev1.PodCertificateProjection) (name string, key []byte, err error) {
	account := pod.Spec.ServiceAccountName
	if account == "" {
		account = "default"
	}
	sa, err := client.ServiceAccounts.Get(ctx, v.cfg.Client, pod.Namespace, account)
	if err != nil {
		return "", nil, fmt.Errorf("get service account %s: %w", account, err)
	}
	node, err := client.Nodes.Get(ctx, v.cfg.Client, "", pod.Spec.NodeName)
	if err != nil {
		return "", nil, fmt.Errorf("get node %s: %w", pod.Spec.NodeName, err)
	}
	signer, err := newKey(s.KeyType)
	if err != nil {
		return "", nil, err
	}
	stub, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, signer)
	if err != nil {
		return "", nil, fmt.Errorf("make a certificate request: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(signer)
	if err != nil {
		return "", nil, fmt.Errorf("encode the key: %w", err)
	}
	r, err := client.PodCertificateRequests.Create(ctx, v.cfg.Client, &certificatesv1.PodCertificateRequest{
		ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, GenerateName: "req-" + pod.Name + "-",
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID}}},
		Spec: certificatesv1.PodCertificateRequestSpec{
			SignerName: s.SignerName, PodName: pod.Name, PodUID: pod.UID, ServiceAccountName: sa.Name, ServiceAccountUID: sa.UID,
			NodeName: types.NodeName(node.Name), NodeUID: node.UID, MaxExpirationSeconds: s.MaxExpirationSeconds,
			StubPKCS10Request: stub, UnverifiedUserAnnotations: s.UserAnnotations,
		}})
	if err != nil {
		return "", nil, fmt.Errorf("create a PodCertificateRequest: %w", err)
	}
	return r.Name, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// outcome waits a while until a request has one of the conditions that end it,
// and returns its newest state (nil: it is gone).
func (v *Volumes) outcome(ctx context.Context, namespace, name string) (*certificatesv1.PodCertificateRequest, error) {
	wait, cancel := context.WithTimeout(ctx, issueWait)
	defer cancel()
	requests := client.PodCertificateRequests.Informer(v.cfg.Client, client.Scope{Namespace: namespace, Name: name})
	var last *certificatesv1.PodCertificateRequest
	err := requests.Watch(wait, func(e client.Event) {
		switch e.Type {
		case client.Synced:
			if last == nil {
				cancel()
			}
		case client.Deleted:
			last = nil
			cancel()
		default:
			if last = e.Object.(*certificatesv1.PodCertificateRequest); len(last.Status.Conditions) > 0 {
				cancel()
			}
		}
	})
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil && wait.Err() == nil {
		return nil, fmt.Errorf("watch PodCertificateRequest %s: %w", name, err)
	}
	return last, nil
}

// newKey makes a key of one of the types that the API names.
func newKey(kind string) (crypto.Signer, error) {
	switch kind {
	case "RSA3072":
		return rsa.GenerateKey(rand.Reader, 3072)
	case "RSA4096":
		return rsa.GenerateKey(rand.Reader, 4096)
	case "ECDSAP256":
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ECDSAP384":
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "ECDSAP521":
		return ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case "ED25519":
		_, k, err := ed25519.GenerateKey(rand.Reader)
		return k, err
	}
	return nil, fmt.Errorf("unknown key type %q", kind)
}

// certificates drops from a chain what is not a certificate.
func certificates(chain string) []byte {
	var out bytes.Buffer
	rest := []byte(chain)
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return out.Bytes()
		}
		if block.Type == "CERTIFICATE" {
			_ = pem.Encode(&out, &pem.Block{Type: block.Type, Bytes: block.Bytes}) // a Buffer takes everything
		}
	}
}
