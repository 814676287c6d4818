// Package pki makes and keeps the certificates and keys of a cluster: the
// authorities, the serving and client certificates they sign, and the key that
// signs service account tokens. Keys are ECDSA P-256, which costs a tenth of RSA
// at start and at each handshake. Files follow kubeadm's names.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Lifetimes. Leaf certificates are signed anew at start once less than
// renewBefore is left.
const (
	caLife      = 10 * 365 * 24 * time.Hour
	leafLife    = 365 * 24 * time.Hour
	renewBefore = 120 * 24 * time.Hour
)

// Dir is a folder of certificates and keys.
type Dir struct {
	path string
	now  func() time.Time
}

// Open returns the folder, made with mode 0700 when it does not exist.
func Open(path string, now func() time.Time) (*Dir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("make the certificate folder: %w", err)
	}
	return &Dir{path: path, now: now}, nil
}

// Pair is a certificate with its key, parsed and as PEM.
type Pair struct {
	Cert    *x509.Certificate
	Key     crypto.Signer
	CertPEM []byte
	KeyPEM  []byte
}

// TLS returns the pair for crypto/tls.
func (p *Pair) TLS() tls.Certificate {
	return tls.Certificate{Certificate: [][]byte{p.Cert.Raw}, PrivateKey: p.Key, Leaf: p.Cert}
}

// Pool returns a pool that trusts this certificate.
func (p *Pair) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(p.Cert)
	return pool
}

// Authority returns the named certificate authority, made at first need.
func (d *Dir) Authority(name string) (*Pair, error) {
	if p, err := d.load(name); err == nil {
		if d.now().After(p.Cert.NotAfter) {
			return nil, fmt.Errorf("certificate authority %s expired on %s: remove %s to make a new one (every client needs the new certificate then)",
				name, p.Cert.NotAfter.Format(time.DateOnly), d.file(name, ".crt"))
		}
		return p, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	now := d.now()
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "proa-" + name},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(caLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
	}
	return d.sign(name, template, nil)
}

// Leaf says what a certificate is for.
type Leaf struct {
	Name         string // file name without extension
	CommonName   string
	Organization []string
	DNS          []string
	IPs          []net.IP
	Server       bool
	Client       bool
}

// Leaf returns a certificate signed by ca, made at first need and again when it
// nears its end, was signed by another authority, or lacks a wanted name.
func (d *Dir) Leaf(ca *Pair, want Leaf) (*Pair, error) {
	p, err := d.load(want.Name)
	if err == nil && d.fits(p, ca, want) {
		return p, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	now := d.now()
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: want.CommonName, Organization: want.Organization},
		NotBefore:   now.Add(-time.Hour),
		NotAfter:    now.Add(leafLife),
		DNSNames:    want.DNS,
		IPAddresses: want.IPs,
		KeyUsage:    x509.KeyUsageDigitalSignature,
	}
	if want.Server {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	if want.Client {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	}
	return d.sign(want.Name, template, ca)
}

func (d *Dir) fits(p, ca *Pair, want Leaf) bool {
	c := p.Cert
	if c.CheckSignatureFrom(ca.Cert) != nil || d.now().Add(renewBefore).After(c.NotAfter) || c.Subject.CommonName != want.CommonName {
		return false
	}
	for _, n := range want.DNS {
		if !slices.Contains(c.DNSNames, n) {
			return false
		}
	}
	for _, ip := range want.IPs {
		if !slices.ContainsFunc(c.IPAddresses, ip.Equal) {
			return false
		}
	}
	return true
}

// SigningKey returns the named key without a certificate (service account tokens).
func (d *Dir) SigningKey(name string) (*ecdsa.PrivateKey, error) {
	b, err := os.ReadFile(d.file(name, ".key"))
	if err == nil {
		key, err := parseKey(b)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", d.file(name, ".key"), err)
		}
		return key, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	key, keyPEM, err := newKey()
	if err != nil {
		return nil, err
	}
	return key, d.write(name+".key", keyPEM, 0o600)
}

func (d *Dir) sign(name string, template *x509.Certificate, ca *Pair) (*Pair, error) {
	key, keyPEM, err := newKey()
	if err != nil {
		return nil, err
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120)); err != nil {
		return nil, err
	}
	parent, signer := template, crypto.Signer(key)
	if ca != nil {
		parent, signer = ca.Cert, ca.Key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		return nil, fmt.Errorf("sign certificate %s: %w", name, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := d.write(name+".key", keyPEM, 0o600); err != nil {
		return nil, err
	}
	if err := d.write(name+".crt", certPEM, 0o644); err != nil {
		return nil, err
	}
	return &Pair{Cert: cert, Key: key, CertPEM: certPEM, KeyPEM: keyPEM}, nil
}

func (d *Dir) load(name string) (*Pair, error) {
	certPEM, err := os.ReadFile(d.file(name, ".crt"))
	if err != nil {
		return nil, err
	}
	keyPEM, err := os.ReadFile(d.file(name, ".key"))
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(certPEM)
	if block == nil {
		return nil, fmt.Errorf("read %s: no PEM certificate in it: remove it to make a new one", d.file(name, ".crt"))
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", d.file(name, ".crt"), err)
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", d.file(name, ".key"), err)
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		// A kill between the two writes left a key without its certificate: make both anew.
		return nil, fs.ErrNotExist
	}
	return &Pair{Cert: cert, Key: key, CertPEM: certPEM, KeyPEM: keyPEM}, nil
}

func (d *Dir) file(name, ext string) string { return filepath.Join(d.path, name+ext) }

// write replaces a file whole, so that a crash leaves the old or the new one.
func (d *Dir) write(name string, data []byte, mode os.FileMode) error {
	path := filepath.Join(d.path, name)
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, data, mode); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func newKey() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("encode a key: %w", err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil
}

func parseKey(data []byte) (*ecdsa.PrivateKey, error) {
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, errors.New("no PEM key in it")
	}
	return x509.ParseECPrivateKey(block.Bytes)
}
