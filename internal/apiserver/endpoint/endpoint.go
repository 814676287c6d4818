// Package endpoint is the way of an HTTP request through the API server: who asks
// (authentication, impersonation), may they (authorization), what do they ask for
// (path, options, body), the verb, and the answer in the form the client wants.
// Handler is that way as a list of stages.
//
// It stores nothing: the verbs are package rest's. Objects leave as the bytes
// that their cache.Entry carries, with kind and apiVersion spliced in front.
package endpoint

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apiserver/pkg/authentication/user"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver/auth"
	"github.com/proa-dev/proa/internal/apiserver/rest"
)

// Registry gives the storage of a resource.
type Registry interface {
	Storage(gvr schema.GroupVersionResource) (rest.Storage, bool)
}

// Catalog says which resources are served.
type Catalog interface {
	Resource(gvr schema.GroupVersionResource) (*api.Resource, bool)
}

// TokenIssuer answers the token subresource of service accounts.
type TokenIssuer interface {
	Issue(ctx context.Context, namespace, name string, req *authenticationv1.TokenRequest) (*authenticationv1.TokenRequest, error)
}

// TokenReviewer answers TokenReviews.
type TokenReviewer interface {
	Authenticate(token string, audiences []string) (who user.Info, matched []string, ok bool, err error)
}

// RuleLister is an Authorizer that can list a user's rules (SelfSubjectRulesReview).
type RuleLister interface {
	RulesFor(ctx context.Context, who user.Info, namespace string) ([]rbacv1.PolicyRule, error)
}

// Connecter answers the subresources that are connections and not objects: log,
// exec, attach, portforward and proxy. It writes the whole answer unless it
// returns an error. path is what follows "proxy" in the URL.
type Connecter interface {
	Connect(w http.ResponseWriter, r *http.Request, info *RequestInfo) error
}

// Config is what a Handler is made of. Registry, Catalog, Scheme, Authenticator,
// Authorizer and Logger are needed; what is nil of the others answers 404.
type Config struct {
	Registry      Registry
	Catalog       Catalog
	Scheme        *runtime.Scheme
	Authenticator auth.Authenticator
	Authorizer    auth.Authorizer
	Admission     rest.Admission // asked before a connection (exec, attach, …)
	TokenIssuer   TokenIssuer
	TokenReviewer TokenReviewer
	Connecter     Connecter
	Metrics       prometheus.Registerer
	Logger        *slog.Logger

	// NonResource answers what is not a resource: discovery, health, OpenAPI.
	NonResource http.Handler
	// Delegate returns who answers for a group and version in place of this server
	// (an aggregated API), nil for nobody.
	Delegate func(group, version string) http.Handler

	MaxMutating   int           // requests at once; 0: 200, negative: no limit
	MaxReadOnly   int           // likewise; 0: 400
	Timeout       time.Duration // of requests that are not long-running; 0: 60 s
	MaxBody       int64         // bytes; 0: 3 MiB
	CompressAbove int           // bytes of a body from which on it is compressed; 0: 128 KiB
}

// Handler serves the API.
type Handler struct {
	cfg      Config
	log      *slog.Logger
	decoders decoders
	stages   []stage
	mutating chan struct{}
	reading  chan struct{}
	metrics  *metrics
	draining context.Context
	drain    context.CancelFunc
}

// stage is one step of a request. An error ends the request and is its answer.
type stage func(*request) error

// New returns a Handler.
func New(cfg Config) *Handler {
	if cfg.Timeout == 0 {
		cfg.Timeout = 60 * time.Second
	}
	if cfg.MaxBody == 0 {
		cfg.MaxBody = 3 << 20
	}
	if cfg.CompressAbove == 0 {
		cfg.CompressAbove = 128 << 10
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	h := &Handler{
		cfg: cfg, log: cfg.Logger,
		mutating: slots(cfg.MaxMutating, 200),
		reading:  slots(cfg.MaxReadOnly, 400),
	}
	h.metrics = newMetrics(cfg.Metrics, h)
	h.draining, h.drain = context.WithCancel(context.Background())
	meta := json.DefaultMetaFactory
	h.decoders = decoders{
		lax:    json.NewSerializerWithOptions(meta, cfg.Scheme, cfg.Scheme, json.SerializerOptions{}),
		strict: json.NewSerializerWithOptions(meta, cfg.Scheme, cfg.Scheme, json.SerializerOptions{Strict: true}),
		yaml:   json.NewSerializerWithOptions(meta, cfg.Scheme, cfg.Scheme, json.SerializerOptions{Yaml: true}),
		yamls:  json.NewSerializerWithOptions(meta, cfg.Scheme, cfg.Scheme, json.SerializerOptions{Yaml: true, Strict: true}),
		proto:  protobuf.NewSerializer(cfg.Scheme, cfg.Scheme),
		scheme: cfg.Scheme,
	}
	h.stages = []stage{
		(*request).audit,
		(*request).parse,
		(*request).authenticate,
		(*request).impersonate,
		(*request).limit,
		(*request).authorize,
		(*request).deadline,
		(*request).dispatch,
	}
	return h
}

func slots(n, otherwise int) chan struct{} {
	switch {
	case n < 0:
		return nil
	case n == 0:
		n = otherwise
	}
	return make(chan struct{}, n)
}

// Drain ends the watches and other long-running requests in order; new ones end at once.
func (h *Handler) Drain() { h.drain() }

// ServeHTTP answers one request.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := &request{h: h, r: r, ctx: r.Context()}
	q.w = response{ResponseWriter: w, q: q}
	start := time.Now()
	defer q.end(start)
	for _, s := range h.stages {
		if err := s(q); err != nil {
			q.fail(err)
			return
		}
	}
}
