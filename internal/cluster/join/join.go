// Package join makes a machine a member of a cluster that runs elsewhere: it finds
// the cluster's authority by its pin, gets a certificate for the node with a bootstrap
// token, one to serve with, and renews both. The keys never leave the machine.
package join

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/client/remote"
)

// Config says which cluster to join, and as what.
type Config struct {
	Dir    string // where the certificates are kept
	Server string // https://host:port
	// Token and Pin are needed the first time: a bootstrap token, and "sha256:" with the
	// hash of the authority's public key.
	Token, Pin string
	Node       string
	IPs        []net.IP // that the node serves at
	Logger     *slog.Logger
}

// Identity is what a node shows that it is.
type Identity struct {
	cfg     Config
	ca      []byte
	serving atomic.Pointer[tls.Certificate]
}

const (
	patience  = 2 * time.Minute // for a request to be decided on
	tryAgain  = time.Minute     // after a renewal that failed
	pinPrefix = "sha256:"
)

// Pin is the hash of an authority's public key, by which it is recognised.
func Pin(ca *x509.Certificate) string {
	sum := sha256.Sum256(ca.RawSubjectPublicKeyInfo)
	return pinPrefix + hex.EncodeToString(sum[:])
}

func (i *Identity) file(name string) string { return filepath.Join(i.cfg.Dir, name) }

// Open returns the identity that is kept, or joins the cluster.
func Open(ctx context.Context, cfg Config) (*Identity, error) {
	i := &Identity{cfg: cfg}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the certificate folder: %w", err)
	}
	var err error
	if i.ca, err = os.ReadFile(i.file("ca.crt")); errors.Is(err, fs.ErrNotExist) {
		if cfg.Token == "" || cfg.Pin == "" {
			return nil, errors.New("this machine has not joined a cluster: --token and --ca-hash are needed (the server's `proa token create` prints them)")
		}
		if i.ca, err = discover(ctx, cfg.Server, cfg.Pin); err == nil {
			err = replace(i.file("ca.crt"), i.ca, 0o644)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("find the cluster's authority: %w", err)
	}
	have, err := load(i.file(clientFile))
	if err == nil && have.Leaf.Subject.CommonName != "system:node:"+cfg.Node {
		return nil, fmt.Errorf("this machine is %s in its cluster: use that --node-name, or remove the data folder", have.Leaf.Subject.CommonName)
	}
	if err == nil && time.Now().Before(have.Leaf.NotAfter) {
		return i, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if cfg.Token == "" {
		return nil, errors.New("this machine's certificate is missing or has expired: a --token is needed to join again")
	}
	c, err := remote.New(remote.Config{Server: cfg.Server, CA: i.ca, Token: cfg.Token, Logger: cfg.Logger})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err := i.renewClient(ctx, c); err != nil {
		return nil, fmt.Errorf("join the cluster at %s: %w", cfg.Server, err)
	}
	return i, nil
}

// Client is how the node speaks to the API server.
func (i *Identity) Client() remote.Config {
	return remote.Config{Server: i.cfg.Server, CA: i.ca, CertFile: i.file(clientFile), KeyFile: i.file(clientFile), Logger: i.cfg.Logger}
}

// Serve gets the certificate that the node serves with, unless it has one.
func (i *Identity) Serve(ctx context.Context, c client.Interface) error {
	have, err := load(i.file(servingFile))
	if err == nil && time.Now().Before(have.Leaf.NotAfter) && covers(have.Leaf, i.cfg.IPs) {
		i.serving.Store(have)
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return i.renewServing(ctx, c)
}

func covers(c *x509.Certificate, ips []net.IP) bool {
	for _, ip := range ips {
		if c.VerifyHostname(ip.String()) != nil {
			return false
		}
	}
	return true
}

// TLS is for the node's server; who calls it must come from the same cluster.
func (i *Identity) TLS() *tls.Config {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(i.ca)
	return &tls.Config{ClientCAs: pool, ClientAuth: tls.VerifyClientCertIfGiven, MinVersion: tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			if c := i.serving.Load(); c != nil {
				return c, nil
			}
			return nil, errors.New("the node has no certificate yet")
		}}
}

// Run renews the certificates until ctx ends, each when a third of its life is left.
func (i *Identity) Run(ctx context.Context, c client.Interface) error {
	for {
		own, err := load(i.file(clientFile))
		if err != nil {
			return err
		}
		serving := i.serving.Load()
		wait := time.Until(renewAt(own.Leaf))
		if serving != nil {
			wait = min(wait, time.Until(renewAt(serving.Leaf)))
		}
		timer := time.NewTimer(max(wait, 0))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
		var errs []error
		if !time.Now().Before(renewAt(own.Leaf)) {
			errs = append(errs, i.renewClient(ctx, c))
		}
		if serving != nil && !time.Now().Before(renewAt(serving.Leaf)) {
			errs = append(errs, i.renewServing(ctx, c))
		}
		if err := errors.Join(errs...); err != nil && ctx.Err() == nil {
			i.cfg.Logger.Warn("renew the node's certificates", "kind", "Node", "name", i.cfg.Node, "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(tryAgain):
			}
		}
	}
}

func renewAt(c *x509.Certificate) time.Time {
	return c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) * 2 / 3)
}

const clientFile, servingFile = "node-client.pem", "node-serving.pem"

func (i *Identity) renewClient(ctx context.Context, c client.Interface) error {
	_, err := i.request(ctx, c, clientFile, certificatesv1.KubeAPIServerClientKubeletSignerName, certificatesv1.UsageClientAuth, &x509.CertificateRequest{})
	return err
}

func (i *Identity) renewServing(ctx context.Context, c client.Interface) error {
	cert, err := i.request(ctx, c, servingFile, certificatesv1.KubeletServingSignerName, certificatesv1.UsageServerAuth,
		&x509.CertificateRequest{DNSNames: []string{i.cfg.Node}, IPAddresses: i.cfg.IPs})
	if err == nil {
		i.serving.Store(cert)
	}
	return err
}

// request has a new key signed and keeps both in one file, which is replaced whole.
func (i *Identity) request(ctx context.Context, c client.Interface, file, signer string, usage certificatesv1.KeyUsage, template *x509.CertificateRequest) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	template.Subject = pkix.Name{CommonName: "system:node:" + i.cfg.Node, Organization: []string{"system:nodes"}}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		return nil, fmt.Errorf("make a certificate request: %w", err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode the key: %w", err)
	}
	csr, err := client.CertificateSigningRequests.Create(ctx, c, &certificatesv1.CertificateSigningRequest{ObjectMeta: metav1.ObjectMeta{GenerateName: "node-csr-"},
		Spec: certificatesv1.CertificateSigningRequestSpec{SignerName: signer, Usages: []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, usage},
			Request: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})}})
	if err != nil {
		return nil, fmt.Errorf("ask for a certificate: %w", err)
	}
	signed, err := await(ctx, c, csr.Name)
	if err != nil {
		return nil, fmt.Errorf("wait for the certificate of %s: %w", csr.Name, err)
	}
	both := append(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), signed...)
	cert, err := tls.X509KeyPair(both, both)
	if err != nil {
		return nil, fmt.Errorf("read the certificate that came: %w", err)
	}
	return &cert, replace(i.file(file), both, 0o600)
}

// await returns the certificate once it is there.
func await(ctx context.Context, c client.Interface, name string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var signed []byte
	var refused error
	err := client.CertificateSigningRequests.Informer(c, client.Scope{Name: name}).Watch(ctx, func(e client.Event) {
		r, ok := e.Object.(*certificatesv1.CertificateSigningRequest)
		if !ok || signed != nil || refused != nil {
			return
		}
		for _, x := range r.Status.Conditions {
			if x.Type == certificatesv1.CertificateDenied || x.Type == certificatesv1.CertificateFailed {
				refused = fmt.Errorf("it was refused: %s", x.Message)
			}
		}
		if e.Type == client.Deleted {
			refused = errors.New("the request was removed")
		}
		if refused == nil {
			signed = r.Status.Certificate
		}
		if refused != nil || len(signed) > 0 {
			cancel()
		} else {
			signed = nil
		}
	})
	switch {
	case refused != nil:
		return nil, refused
	case signed != nil:
		return signed, nil
	case err == nil || errors.Is(err, context.DeadlineExceeded):
		return nil, fmt.Errorf("nobody approved it within %v", patience)
	}
	return nil, err
}

func load(path string) (*tls.Certificate, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the node's certificate: %w", err)
	}
	c, err := tls.X509KeyPair(b, b)
	if err != nil {
		return nil, fmt.Errorf("read the node's certificate %s: %w", path, err)
	}
	return &c, nil
}

// replace writes a file whole, so that a crash leaves the old or the new one.
func replace(path string, data []byte, mode os.FileMode) error {
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, data, mode); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
