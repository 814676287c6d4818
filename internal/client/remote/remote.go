// Package remote is the network form of client.Interface: protobuf over one HTTP/2
// connection to an API server, and informers that list once and then watch. It
// gives components on another machine what package cluster/local gives those in
// the server's process; client/clienttest holds both to the same behaviour.
package remote

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"sync"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/proa-dev/proa/internal/api/resources"
	"github.com/proa-dev/proa/internal/client"
)

// Config says which server to speak to, and as whom. Server is needed.
type Config struct {
	Server string // https://host:port, with a path where the server is behind one
	// CA is the PEM of the authorities that may sign for the server; nil: the machine's.
	CA         []byte
	ServerName string // that the server's certificate must have, when it is not Server's
	Insecure   bool   // do not verify the server

	// CertFile and KeyFile are the client's certificate; they are read again when
	// they change. Cert and Key (PEM) are for those who have no files.
	CertFile, KeyFile string
	Cert, Key         []byte
	// TokenFile holds a bearer token, and is read again; Token is one that stays.
	TokenFile, Token string

	UserAgent string // "": proa
	// Scheme knows the typed objects; nil: all that the project has.
	Scheme *runtime.Scheme
	Logger *slog.Logger // nil: silent
}

// Client speaks to an API server. Close ends it.
type Client struct {
	base      *url.URL
	userAgent string
	codec     *codec
	link      *link
	log       *slog.Logger

	ctx    context.Context // of the informers
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu        sync.Mutex
	informers map[view]*informer
}

var _ client.Interface = (*Client)(nil)

// view is what an informer shows.
type view struct {
	gvr   schema.GroupVersionResource
	scope client.Scope
}

// New returns a client. It does not speak to the server yet.
func New(cfg Config) (*Client, error) {
	base, err := url.Parse(cfg.Server)
	if err != nil {
		return nil, fmt.Errorf("the server's address: %w", err)
	}
	if base.Host == "" || base.Scheme != "https" && base.Scheme != "http" {
		return nil, fmt.Errorf("the server's address %q: https://host:port is wanted", cfg.Server)
	}
	l, err := newLink(cfg)
	if err != nil {
		return nil, err
	}
	if cfg.Scheme == nil {
		cfg.Scheme = resources.Scheme()
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.UserAgent == "" {
		cfg.UserAgent = "proa"
	}
	c := &Client{base: base, userAgent: cfg.UserAgent, codec: newCodec(cfg.Scheme), link: l, log: cfg.Logger, informers: map[view]*informer{}}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c, nil
}

// Close ends the informers, waits for them, and closes the connection.
func (c *Client) Close() {
	c.cancel()
	c.wg.Wait()
	c.link.close()
}

// ErrClosed is returned by informers of a closed client.
var ErrClosed = errors.New("the client is closed")

// Informer returns the live view of a resource; views of equal arguments are one.
func (c *Client) Informer(gvr schema.GroupVersionResource, scope client.Scope) client.Informer {
	c.mu.Lock()
	defer c.mu.Unlock()
	v := view{gvr, scope}
	if i, ok := c.informers[v]; ok && !i.failed() {
		return i
	}
	i := newInformer(c, v)
	c.informers[v] = i
	if c.ctx.Err() != nil {
		i.fail(ErrClosed)
		return i
	}
	c.wg.Go(func() { i.run(c.ctx) })
	return i
}

// Do sends a plain GET, for what is no resource ("/version"), and returns the body.
func (c *Client) Do(ctx context.Context, path string) ([]byte, error) {
	r, err := c.send(ctx, http.MethodGet, path, nil, nil, "", "application/json, */*")
	if err != nil {
		return nil, err
	}
	return r.body, nil
}
