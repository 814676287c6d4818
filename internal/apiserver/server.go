// Package apiserver is the API server: the verbs of package rest over HTTPS.
// Server ties together the way of a request (endpoint), what is served
// (discovery, openapi), the connections to nodes (proxy), health and metrics,
// and owns the listener. Storage, authentication, authorization and admission
// are handed in.
package apiserver

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver/auth"
	"github.com/proa-dev/proa/internal/apiserver/discovery"
	"github.com/proa-dev/proa/internal/apiserver/endpoint"
	"github.com/proa-dev/proa/internal/apiserver/h2"
	"github.com/proa-dev/proa/internal/apiserver/openapi"
	"github.com/proa-dev/proa/internal/apiserver/proxy"
	"github.com/proa-dev/proa/internal/apiserver/rest"
)

// Config is what a Server is made of. Registry, Resources, Scheme, Authenticator
// and Authorizer are needed.
type Config struct {
	Registry      endpoint.Registry
	Resources     []*api.Resource
	Scheme        *runtime.Scheme
	Authenticator auth.Authenticator
	Authorizer    auth.Authorizer
	Admission     rest.Admission
	TokenIssuer   endpoint.TokenIssuer
	TokenReviewer endpoint.TokenReviewer
	// Nodes reaches kubelets; nil: log, exec and the like are unavailable.
	Nodes proxy.NodeTransport

	// TLS holds the server's certificate, and the authorities of clients where
	// the handshake shall check them. Nil: plain HTTP (tests).
	TLS     *tls.Config
	Version version.Info
	// Metrics is what /metrics shows; the server adds its own. Nil: no /metrics.
	Metrics *prometheus.Registry
	Checks  []Check
	// Paths are more paths that are no resources, e.g. the issuer's documents.
	Paths map[string]http.Handler
	// Delegate returns who serves a group and version in place of the server, nil
	// for nobody.
	Delegate func(group, version string) http.Handler
	// Address is how in-cluster clients reach the server (host:port).
	Address string
	Logger  *slog.Logger

	MaxMutating int           // see endpoint.Config
	MaxReadOnly int           // likewise
	Timeout     time.Duration // likewise
	// ShutdownTimeout bounds how long Serve waits for requests that are under way. 0: 10 s.
	ShutdownTimeout time.Duration
}

// Server serves the API.
type Server struct {
	cfg      Config
	log      *slog.Logger
	catalog  *discovery.Catalog
	endpoint *endpoint.Handler
	openapi  *openapi.Handler
	proxy    *proxy.Proxy
	root     *nonResource
	active   atomic.Int64  // requests under way
	idle     chan struct{} // told when there are none and the server stops
	stopping atomic.Bool
}

// New returns a Server.
func New(cfg Config) (*Server, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.ShutdownTimeout == 0 {
		cfg.ShutdownTimeout = 10 * time.Second
	}
	catalog, err := discovery.NewCatalog(cfg.Resources)
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, log: cfg.Logger, catalog: catalog, idle: make(chan struct{}, 1)}
	s.openapi = &openapi.Handler{Catalog: catalog, Version: cfg.Version.GitVersion, Logger: cfg.Logger}
	s.proxy = proxy.New(proxy.Config{Registry: cfg.Registry, Nodes: cfg.Nodes, Logger: cfg.Logger})
	checks := append(slices.Clone(cfg.Checks), Check{Name: "shutdown", ReadyOnly: true, Check: func(context.Context) error {
		if s.stopping.Load() {
			return errors.New("the server is shutting down")
		}
		return nil
	}})
	s.root = &nonResource{
		discovery: &discovery.Handler{Catalog: catalog, ServerAddress: cfg.Address},
		openapi:   s.openapi, health: newHealth(checks, cfg.Logger), paths: cfg.Paths, delegate: cfg.Delegate,
	}
	if s.root.version, err = json.MarshalIndent(cfg.Version, "", "  "); err != nil {
		return nil, fmt.Errorf("encode the version: %w", err)
	}
	ec := endpoint.Config{
		Registry: cfg.Registry, Catalog: catalog, Scheme: cfg.Scheme, Authenticator: cfg.Authenticator, Authorizer: cfg.Authorizer,
		Admission: cfg.Admission, TokenIssuer: cfg.TokenIssuer, TokenReviewer: cfg.TokenReviewer, Connecter: s.proxy,
		Logger: cfg.Logger, NonResource: s.root, Delegate: cfg.Delegate,
		MaxMutating: cfg.MaxMutating, MaxReadOnly: cfg.MaxReadOnly, Timeout: cfg.Timeout,
	}
	if cfg.Metrics != nil {
		ec.Metrics = cfg.Metrics
		s.root.metrics = promhttp.HandlerFor(cfg.Metrics, promhttp.HandlerOpts{})
	}
	s.endpoint = endpoint.New(ec)
	return s, nil
}

// Catalog is what is served: custom resources are added to it, after their
// storage was added to the registry.
func (s *Server) Catalog() *discovery.Catalog { return s.catalog }

// SchemaOf returns the schema of a kind, without references; nil when it is not served.
func (s *Server) SchemaOf(gvk schema.GroupVersionKind) (*spec.Schema, error) {
	return s.openapi.SchemaOf(gvk)
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.active.Add(1)
	defer func() {
		if s.active.Add(-1) == 0 && s.stopping.Load() {
			select {
			case s.idle <- struct{}{}:
			default:
			}
		}
	}()
	s.endpoint.ServeHTTP(w, r)
}

// Serve answers requests on l until ctx ends, then ends the watches and waits,
// for a bounded time, for what is under way. It closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: 32 * time.Second,
		IdleTimeout:       90 * time.Second,
		MaxHeaderBytes:    1 << 20,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	failed := make(chan error, 1)
	go func() { // ends when srv is shut down below
		if s.cfg.TLS == nil {
			failed <- srv.Serve(l)
			return
		}
		srv.TLSConfig = s.cfg.TLS.Clone()
		if srv.TLSConfig.ClientAuth == tls.NoClientCert {
			srv.TLSConfig.ClientAuth = tls.RequestClientCert // the authenticator checks it
		}
		if srv.TLSConfig.MinVersion == 0 {
			srv.TLSConfig.MinVersion = tls.VersionTLS12
		}
		// Watches are streams that stay: clients of many kinds on one connection need
		// many. Clients ping every 30 s, so that the server itself hardly ever has to.
		(&h2.Server{MaxStreams: 1000, PingAfter: 45 * time.Second, PingTimeout: 15 * time.Second, Logger: s.log}).Attach(srv)
		failed <- srv.ServeTLS(h2.Listener(l), "", "")
	}()
	select {
	case err := <-failed:
		s.endpoint.Drain()
		return fmt.Errorf("serve the API on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	s.stopping.Store(true)
	s.endpoint.Drain()
	bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.ShutdownTimeout)
	defer cancel()
	// Shutdown leaves HTTP/2 connections a second to notice; when nothing is
	// under way any more, closing them hurts nobody.
	waited := make(chan bool, 1)
	go func() { // ends with bound
		ok := s.wait(bound)
		if ok {
			time.Sleep(lastFlush)
		}
		_ = srv.Close() // cuts what did not end in time
		waited <- ok
	}()
	_ = srv.Shutdown(bound) // stops the listener; Close makes it return
	<-failed
	ended := <-waited
	s.proxy.Close()
	if !ended {
		return fmt.Errorf("shut down the API server: requests were cut off: %w", context.Cause(bound))
	}
	return nil
}

// lastFlush is how long the last bytes of the last answers may take to leave.
const lastFlush = 20 * time.Millisecond

// wait waits until no request is under way, those included that took their
// connection over (they end by Drain). It reports whether that happened in time.
func (s *Server) wait(ctx context.Context) bool {
	for s.active.Load() > 0 {
		select {
		case <-s.idle:
		case <-ctx.Done():
			return s.active.Load() == 0
		}
	}
	return true
}

// nonResource answers everything that is not a resource.
type nonResource struct {
	discovery *discovery.Handler
	openapi   http.Handler
	health    *health
	metrics   http.Handler
	version   []byte
	paths     map[string]http.Handler
	delegate  func(group, version string) http.Handler
}

func (n *nonResource) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := r.URL.Path
	if h, ok := n.paths[path]; ok {
		h.ServeHTTP(w, r)
		return
	}
	if endpoint, name, ok := healthPath(path); ok {
		n.health.serve(w, r, endpoint, name)
		return
	}
	switch {
	case path == "/version" || path == "/version/":
		writeJSON(w, n.version)
	case path == "/metrics" && n.metrics != nil:
		n.metrics.ServeHTTP(w, r)
	case strings.HasPrefix(path, "/openapi/"):
		n.openapi.ServeHTTP(w, r)
	case path == "/" || path == "":
		n.index(w)
	default:
		if h := n.delegated(path); h != nil {
			h.ServeHTTP(w, r)
		} else if !n.discovery.Serve(w, r) {
			http.NotFound(w, r)
		}
	}
}

// delegated returns who answers for /apis/{group}/{version} in place of this server.
func (n *nonResource) delegated(path string) http.Handler {
	if n.delegate == nil {
		return nil
	}
	rest, ok := strings.CutPrefix(path, "/apis/")
	if !ok {
		return nil
	}
	group, version, ok := strings.Cut(strings.TrimSuffix(rest, "/"), "/")
	if !ok || strings.Contains(version, "/") {
		return nil
	}
	return n.delegate(group, version)
}

func writeJSON(w http.ResponseWriter, b []byte) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(b)
}

// index lists the paths.
func (n *nonResource) index(w http.ResponseWriter) {
	paths := []string{"/api", "/apis", "/healthz", "/livez", "/readyz", "/openapi/v2", "/openapi/v3", "/version"}
	if n.metrics != nil {
		paths = append(paths, "/metrics")
	}
	for p := range n.paths {
		paths = append(paths, p)
	}
	for _, r := range n.discovery.Catalog.Resources() {
		gv := "/apis/" + r.GVR.Group + "/" + r.GVR.Version
		if r.GVR.Group == "" {
			gv = "/api/" + r.GVR.Version
		} else if g := "/apis/" + r.GVR.Group; !slices.Contains(paths, g) {
			paths = append(paths, g)
		}
		if !slices.Contains(paths, gv) {
			paths = append(paths, gv)
		}
	}
	slices.Sort(paths)
	b, err := json.MarshalIndent(map[string][]string{"paths": paths}, "", "  ")
	if err != nil {
		http.Error(w, "cannot list the paths", http.StatusInternalServerError)
		return
	}
	writeJSON(w, b)
}
