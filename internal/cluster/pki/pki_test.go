package pki

import (
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestCertificatesAreKeptAndRenewed(t *testing.T) {
	now := time.Now()
	dir := filepath.Join(t.TempDir(), "pki")
	d, err := Open(dir, func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	ca, err := d.Authority("ca")
	if err != nil {
		t.Fatal(err)
	}
	want := Leaf{Name: "apiserver", CommonName: "kube-apiserver", DNS: []string{"localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}, Server: true}
	first, err := d.Leaf(ca, want)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := first.Cert.Verify(x509.VerifyOptions{Roots: ca.Pool(), DNSName: "localhost"}); err != nil {
		t.Fatalf("the leaf does not verify: %v", err)
	}
	same, err := d.Leaf(ca, want)
	if err != nil || !same.Cert.Equal(first.Cert) {
		t.Fatalf("a valid certificate was not kept (err %v)", err)
	}
	want.IPs = append(want.IPs, net.IPv4(192, 0, 2, 9))
	wider, err := d.Leaf(ca, want)
	if err != nil || wider.Cert.Equal(first.Cert) {
		t.Fatalf("a certificate without a wanted address was kept (err %v)", err)
	}
	now = now.Add(leafLife - renewBefore + time.Hour)
	renewed, err := d.Leaf(ca, want)
	if err != nil || renewed.Cert.Equal(wider.Cert) {
		t.Fatalf("a certificate near its end was kept (err %v)", err)
	}
	info, err := os.Stat(filepath.Join(dir, "ca.key"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("ca.key: mode %v, err %v, want 0600", info.Mode(), err)
	}
	now = now.Add(caLife)
	if _, err := d.Authority("ca"); err == nil {
		t.Fatal("an expired authority was accepted")
	}
}

func TestAKeyWithoutItsCertificateIsReplaced(t *testing.T) {
	d, err := Open(t.TempDir(), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := d.Authority("ca")
	if err != nil {
		t.Fatal(err)
	}
	a, err := d.Leaf(ca, Leaf{Name: "a", CommonName: "a", Client: true})
	if err != nil {
		t.Fatal(err)
	}
	_, keyPEM, _ := newKey()
	if err := d.write("a.key", keyPEM, 0o600); err != nil {
		t.Fatal(err)
	}
	again, err := d.Leaf(ca, Leaf{Name: "a", CommonName: "a", Client: true})
	if err != nil || again.Cert.Equal(a.Cert) {
		t.Fatalf("a certificate whose key was replaced was kept (err %v)", err)
	}
}
