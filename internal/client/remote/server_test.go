package remote_test

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/proa-dev/proa/internal/api/resources"
	"github.com/proa-dev/proa/internal/apiserver"
	"github.com/proa-dev/proa/internal/apiserver/admission"
	"github.com/proa-dev/proa/internal/apiserver/auth"
	"github.com/proa-dev/proa/internal/apiserver/authn"
	"github.com/proa-dev/proa/internal/apiserver/rest"
	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/client/remote"
	"github.com/proa-dev/proa/internal/cluster/local"
	"github.com/proa-dev/proa/internal/cluster/pki"
	"github.com/proa-dev/proa/internal/store/memory"
)

// server is a real API server on the memory store, behind a filter of the test.
type server struct {
	url    string
	pki    *pki.Dir
	folder string
	ca     *pki.Pair
	l      net.Listener
}

type anyone struct{}

func (anyone) Authorize(_ context.Context, a auth.Attributes) (bool, string, error) {
	return a.User.GetName() != "nobody", "", nil
}

// start runs a server; filter may answer a request itself, by returning true.
func start(t *testing.T, filter func(http.ResponseWriter, *http.Request) bool) *server {
	t.Helper()
	s := &server{folder: t.TempDir()}
	var err error
	if s.pki, err = pki.Open(s.folder, time.Now); err != nil {
		t.Fatal(err)
	}
	if s.ca, err = s.pki.Authority("ca"); err != nil {
		t.Fatal(err)
	}
	serving, err := s.pki.Leaf(s.ca, pki.Leaf{Name: "server", CommonName: "server", IPs: []net.IP{net.IPv4(127, 0, 0, 1)}, Server: true})
	if err != nil {
		t.Fatal(err)
	}
	var registry *rest.Registry
	state := local.State{Registry: func() *rest.Registry { return registry }}
	st, list, scheme := memory.New(), resources.All(), resources.Scheme()
	chain := admission.Default(state, admission.NewAddresses(state, netip.MustParsePrefix("10.96.0.0/16"), 30000, 32767, time.Now))
	if registry, err = rest.New(rest.Config{Store: st, Resources: list, Scheme: scheme, Admission: chain}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	if err := registry.Start(ctx); err != nil {
		t.Fatal(err)
	}
	api, err := apiserver.New(apiserver.Config{Registry: registry, Resources: list, Scheme: scheme, Admission: chain,
		Authenticator: authn.New(s.ca.Pool(), nil, func(string) bool { return false }), Authorizer: anyone{}})
	if err != nil {
		t.Fatal(err)
	}
	if s.l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	web := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if filter == nil || !filter(w, r) {
			api.ServeHTTP(w, r)
		}
	}), TLSConfig: &tls.Config{Certificates: []tls.Certificate{serving.TLS()}, ClientCAs: s.ca.Pool(), ClientAuth: tls.VerifyClientCertIfGiven, NextProtos: []string{"h2", "http/1.1"}}}
	done := make(chan struct{})
	go func() { defer close(done); _ = web.ServeTLS(s.l, "", "") }()
	s.url = "https://" + s.l.Addr().String()
	t.Cleanup(func() { _ = web.Close(); <-done; cancel(); registry.Close(); st.Close() })
	return s
}

// leaf makes a client's certificate, and returns its files.
func (s *server) leaf(t *testing.T, file, name string) (cert, key string) {
	t.Helper()
	if _, err := s.pki.Leaf(s.ca, pki.Leaf{Name: file, CommonName: name, Organization: []string{"system:masters"}, Client: true}); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(s.folder, file+".crt"), filepath.Join(s.folder, file+".key")
}

func (s *server) client(t *testing.T) *remote.Client {
	t.Helper()
	cert, key := s.leaf(t, "admin", "kubernetes-admin")
	return newClient(t, remote.Config{Server: s.url, CA: s.ca.CertPEM, CertFile: cert, KeyFile: key})
}

func newClient(t *testing.T, cfg remote.Config) *remote.Client {
	t.Helper()
	c, err := remote.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// furnish makes what every cluster has.
func furnish(t *testing.T, c client.Interface) {
	t.Helper()
	if _, err := client.Namespaces.Create(t.Context(), c, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := client.ServiceAccounts.Create(t.Context(), c, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "default"}}); err != nil {
		t.Fatal(err)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}
