package apiserver_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	restclient "k8s.io/client-go/rest"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/resources"
	"github.com/proa-dev/proa/internal/apiserver"
	"github.com/proa-dev/proa/internal/apiserver/admission/callout"
	"github.com/proa-dev/proa/internal/apiserver/auth"
	"github.com/proa-dev/proa/internal/apiserver/customresource"
	"github.com/proa-dev/proa/internal/apiserver/proxy"
	"github.com/proa-dev/proa/internal/apiserver/rest"
	"github.com/proa-dev/proa/internal/store/memory"
)

// tokens is an authenticator whose tokens are user names.
type tokens struct{}

func (tokens) Authenticate(r *http.Request) (user.Info, bool, error) {
	name, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return nil, false, nil
	}
	if name == "broken" {
		return nil, false, errors.New("token is broken")
	}
	who := &user.DefaultInfo{Name: name, Groups: []string{user.AllAuthenticated}}
	if name == "admin" {
		who.Groups = append(who.Groups, user.SystemPrivilegedGroup)
	}
	return who, true, nil
}

// masters lets administrators do everything, viewers read pods, and others nothing.
type masters struct{}

func (masters) Authorize(_ context.Context, a auth.Attributes) (bool, string, error) {
	for _, g := range a.User.GetGroups() {
		if g == user.SystemPrivilegedGroup {
			return true, "", nil
		}
	}
	return a.User.GetName() == "viewer" && a.Resource == "pods" && (a.Verb == "get" || a.Verb == "list"), "", nil
}

type server struct {
	url      string
	config   *restclient.Config
	registry *rest.Registry
	api      *apiserver.Server
	stop     func() error // ends the server and waits for it
}

func start(t testing.TB, change ...func(*apiserver.Config)) *server {
	t.Helper()
	store := memory.New()
	all := resources.All()
	scheme := resources.Scheme()
	var definitions *customresource.Definitions
	registry, err := rest.New(rest.Config{Store: store, Resources: all, Scheme: scheme,
		Types: func(res *api.Resource) managedfields.TypeConverter { return definitions.Types(res) }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	if err := registry.Start(ctx); err != nil {
		t.Fatal(err)
	}
	cert, ca := certificate(t)
	cfg := apiserver.Config{
		Registry: registry, Resources: all, Scheme: scheme, Authenticator: tokens{}, Authorizer: masters{},
		TLS:             &tls.Config{Certificates: []tls.Certificate{cert}},
		Version:         version.Info{Major: "1", Minor: "37", GitVersion: "v1.37.2", Platform: "linux/amd64"},
		Metrics:         prometheus.NewRegistry(),
		Checks:          []apiserver.Check{{Name: "etcd", Check: func(context.Context) error { return nil }}},
		ShutdownTimeout: 5 * time.Second,
	}
	for _, c := range change {
		c(&cfg)
	}
	s, err := apiserver.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	calls := callout.New(nil)
	definitions, err = customresource.New(customresource.Config{Registry: cfg.Registry.(*rest.Registry), Catalog: s.Catalog(), Webhooks: customresource.Callout{Client: calls},
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	following := make(chan error, 1)
	go func() { following <- definitions.Run(ctx) }()
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	stopped := false
	stop := func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		err := errors.Join(<-done, <-following)
		calls.Close()
		registry.Close()
		_ = store.Close()
		return err
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	config := &restclient.Config{
		Host: "https://" + l.Addr().String(), BearerToken: "admin", QPS: -1,
		TLSClientConfig: restclient.TLSClientConfig{CAData: ca},
	}
	return &server{url: config.Host, config: config, registry: registry, api: s, stop: stop}
}

// certificate returns a certificate of its own authority for 127.0.0.1.
func certificate(t testing.TB) (tls.Certificate, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pemOf(der)
}

func (s *server) clientset(t testing.TB) *kubernetes.Clientset {
	t.Helper()
	c, err := kubernetes.NewForConfig(s.config)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (s *server) protobuf(t testing.TB) *kubernetes.Clientset {
	t.Helper()
	config := restclient.CopyConfig(s.config)
	config.ContentType = "application/vnd.kubernetes.protobuf"
	config.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	c, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (s *server) dynamic(t testing.TB) dynamic.Interface {
	t.Helper()
	c, err := dynamic.NewForConfig(s.config)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

type answer struct {
	code   int
	header http.Header
	body   string
}

// do makes a request that no client library would make.
func (s *server) do(t testing.TB, method, path, body string, header ...string) answer {
	t.Helper()
	client, err := restclient.HTTPClientFor(&restclient.Config{Host: s.url, TLSClientConfig: s.config.TLSClientConfig})
	if err != nil {
		t.Fatal(err)
	}
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	req, err := http.NewRequest(method, s.url+path, r)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer admin")
	for i := 0; i < len(header); i += 2 {
		if header[i+1] == "" {
			req.Header.Del(header[i])
			continue
		}
		req.Header.Add(header[i], header[i+1])
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, string(b)}
}

func (a answer) status(t testing.TB) *metav1.Status {
	t.Helper()
	s := &metav1.Status{}
	if err := json.Unmarshal([]byte(a.body), s); err != nil || s.Kind != "Status" {
		t.Fatalf("%d %q is no Status: %v", a.code, a.body, err)
	}
	return s
}

func pod(name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", Labels: map[string]string{"app": "web"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "nginx"}}},
	}
}

func configMap(name string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"}, Data: map[string]string{"k": "v"}}
}

// kubelet is a node's server that only the test knows.
type kubelet struct {
	srv *httptest.Server
}

func (k *kubelet) Target(context.Context, string) (*proxy.Target, error) {
	tr := k.srv.Client().Transport.(*http.Transport)
	return &proxy.Target{Scheme: "https", Host: strings.TrimPrefix(k.srv.URL, "https://"), RoundTripper: tr, TLS: tr.TLSClientConfig}, nil
}

func newKubelet(t testing.TB, h http.HandlerFunc) *kubelet {
	srv := httptest.NewTLSServer(h)
	t.Cleanup(srv.Close)
	return &kubelet{srv: srv}
}

func pemOf(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

type everyone struct{}

func (everyone) Authorize(context.Context, auth.Attributes) (bool, string, error) {
	return true, "", nil
}
