package cluster

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/client/remote"
	"github.com/proa-dev/proa/internal/cluster/join"
)

// Invitation is what a machine needs to join the cluster.
type Invitation struct {
	Server string `json:"server"`
	Token  string `json:"token"`
	CAHash string `json:"caHash"`
	// Expires is when the token ends.
	Expires time.Time `json:"expires"`
}

// Invite makes a bootstrap token in the cluster that runs on a data folder.
func Invite(ctx context.Context, data string, life time.Duration) (Invitation, error) {
	if life < time.Minute {
		return Invitation{}, fmt.Errorf("a token for %v: at least a minute is needed", life)
	}
	cfg, err := remote.FromKubeconfig(Kubeconfig(data), "")
	if err != nil {
		return Invitation{}, err
	}
	c, err := remote.New(cfg)
	if err != nil {
		return Invitation{}, err
	}
	defer c.Close()
	b, err := os.ReadFile(filepath.Join(pkiDir(data), "ca.crt"))
	if err != nil {
		return Invitation{}, fmt.Errorf("read the cluster's authority: %w", err)
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return Invitation{}, errors.New("read the cluster's authority: no certificate in it")
	}
	ca, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return Invitation{}, fmt.Errorf("read the cluster's authority: %w", err)
	}
	id, secret := letters(6), letters(16)
	inv := Invitation{Token: id + "." + secret, CAHash: join.Pin(ca), Expires: time.Now().Add(life).UTC().Truncate(time.Second)}
	if inv.Server, err = outside(ctx, c, cfg.Server); err != nil {
		return Invitation{}, err
	}
	_, err = client.Secrets.Create(ctx, c, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: "bootstrap-token-" + id}, Type: "bootstrap.kubernetes.io/token",
		StringData: map[string]string{"token-id": id, "token-secret": secret, "expiration": inv.Expires.Format(time.RFC3339), "usage-bootstrap-authentication": "true",
			"usage-bootstrap-signing": "true", "description": "made by proa token create"}})
	if err != nil {
		return Invitation{}, fmt.Errorf("make the token: %w", err)
	}
	return inv, nil
}

// outside is the server's address as other machines see it: the endpoint of the
// Service kubernetes.
func outside(ctx context.Context, c client.Interface, fallback string) (string, error) {
	slice, err := client.EndpointSlices.Get(ctx, c, metav1.NamespaceDefault, "kubernetes")
	if err != nil {
		return "", fmt.Errorf("find the API server's address: %w", err)
	}
	for _, e := range slice.Endpoints {
		if len(e.Addresses) > 0 && e.Addresses[0] != gateway().String() && len(slice.Ports) > 0 && slice.Ports[0].Port != nil {
			return fmt.Sprintf("https://%s:%d", e.Addresses[0], *slice.Ports[0].Port), nil
		}
	}
	return "", fmt.Errorf("the API server listens for this machine alone (%s): start it with --listen 0.0.0.0:6443 to let others join", fallback)
}

// letters is a random text of lower case letters and digits.
func letters(n int) string {
	const from = "abcdefghijklmnopqrstuvwxyz234567"
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	for i := range b {
		b[i] = from[b[i]&31]
	}
	return string(b)
}
