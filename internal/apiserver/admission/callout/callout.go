// Package callout sends JSON to the HTTPS servers that objects of the cluster
// name: by URL, or by a Service, which is resolved in the process, without the
// cluster's DNS. It knows nothing of what is sent.
package callout

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// maxAnswer bounds what is read of an answer.
const maxAnswer = 16 << 20

// Resolver says at which address a Service's port can be reached.
type Resolver interface {
	Resolve(namespace, name string, port int32) (address string, err error)
}

// Target is who is called: a URL, or a Service.
type Target struct {
	URL                      string
	Namespace, Service, Path string
	Port                     int32 // 0: 443
	CABundle                 []byte
}

// Client calls. It keeps connections of the targets that it was asked about last.
type Client struct {
	resolver Resolver

	mu      sync.Mutex
	clients map[string]*kept
	tick    uint64
}

type kept struct {
	client *http.Client
	used   uint64
}

// keepMost is how many targets keep their connections.
const keepMost = 64

// New returns a client.
func New(resolver Resolver) *Client {
	return &Client{resolver: resolver, clients: map[string]*kept{}}
}

// Close closes idle connections.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, x := range c.clients {
		x.client.CloseIdleConnections()
		delete(c.clients, k)
	}
}

// Post sends body and returns the answer of a successful call. ctx's deadline is
// told to the server, rounded up to seconds, as ?timeout=. Answers that are no
// success are *apierrors.StatusError.
func (c *Client) Post(ctx context.Context, t Target, body []byte) ([]byte, error) {
	u, err := t.url()
	if err != nil {
		return nil, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		if left := time.Until(deadline); left > 0 {
			q := u.Query()
			q.Set("timeout", (time.Duration((left+time.Second-1)/time.Second) * time.Second).String())
			u.RawQuery = q.Encode()
		}
	}
	client, err := c.client(t, u)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, */*")
	req.Header.Set("User-Agent", "kube-apiserver-admission")
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	if len(answer) > maxAnswer {
		return nil, fmt.Errorf("the answer is larger than %d bytes", maxAnswer)
	}
	if resp.StatusCode < 200 || resp.StatusCode > 206 {
		message := "unknown"
		if strings.HasPrefix(resp.Header.Get("Content-Type"), "text/") || len(answer) > 0 {
			message = strings.TrimSpace(string(answer[:min(len(answer), 2048)]))
		}
		retry, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
		return nil, apierrors.NewGenericServerResponse(resp.StatusCode, http.MethodPost, schema.GroupResource{}, "", message, retry, true)
	}
	return answer, nil
}

func (t Target) url() (*url.URL, error) {
	if t.Service == "" {
		if t.URL == "" {
			return nil, errors.New("webhook configuration must have either service or URL")
		}
		u, err := url.Parse(t.URL)
		if err != nil {
			return nil, fmt.Errorf("Unparsable URL: %w", err) //nolint:staticcheck // Kubernetes' words
		}
		return u, nil
	}
	path, query, _ := strings.Cut(t.Path, "?")
	if path != "" && path[0] != '/' {
		path = "/" + path
	}
	return &url.URL{Scheme: "https", Host: net.JoinHostPort(t.serverName(), strconv.Itoa(int(t.port()))), Path: path, RawQuery: query}, nil
}

func (t Target) serverName() string { return t.Service + "." + t.Namespace + ".svc" }

func (t Target) port() int32 {
	if t.Port == 0 {
		return 443
	}
	return t.Port
}

func (c *Client) client(t Target, u *url.URL) (*http.Client, error) {
	key := u.Scheme + "://" + u.Host + "\x00" + t.Namespace + "\x00" + t.Service + "\x00" + string(t.CABundle)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tick++
	if k := c.clients[key]; k != nil {
		k.used = c.tick
		return k.client, nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if len(t.CABundle) > 0 {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(t.CABundle) {
			return nil, errors.New("unable to load root certificates: unable to parse bytes as PEM block")
		}
	}
	transport := &http.Transport{
		TLSClientConfig: config, TLSHandshakeTimeout: 10 * time.Second, MaxIdleConnsPerHost: 25, IdleConnTimeout: 90 * time.Second,
		DialContext: (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		// HTTP/1.1: calls at once go to several connections, and so to several endpoints.
		TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{},
	}
	var rt http.RoundTripper = transport
	if t.Service != "" {
		config.ServerName = t.serverName()
		rt = &resolving{next: transport, resolver: c.resolver, namespace: t.Namespace, name: t.Service, port: t.port()}
	}
	for len(c.clients) >= keepMost {
		oldest := ""
		for k, x := range c.clients {
			if oldest == "" || x.used < c.clients[oldest].used {
				oldest = k
			}
		}
		c.clients[oldest].client.CloseIdleConnections()
		delete(c.clients, oldest)
	}
	client := &http.Client{Transport: rt, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	c.clients[key] = &kept{client: client, used: c.tick}
	return client, nil
}

// resolving sends each request to an endpoint of a Service; errors and the Host
// header keep the Service's name.
type resolving struct {
	next            *http.Transport
	resolver        Resolver
	namespace, name string
	port            int32
}

func (r *resolving) RoundTrip(req *http.Request) (*http.Response, error) {
	if r.resolver == nil {
		return nil, fmt.Errorf("service %q cannot be resolved", r.namespace+"/"+r.name)
	}
	address, err := r.resolver.Resolve(r.namespace, r.name, r.port)
	if err != nil {
		return nil, err
	}
	out := req.Clone(req.Context())
	out.Host = req.URL.Host
	out.URL.Host = address
	return r.next.RoundTrip(out)
}

func (r *resolving) CloseIdleConnections() { r.next.CloseIdleConnections() }

// ready reports whether an endpoint may be called.
func ready(b *bool) bool { return b == nil || *b }

var protocols = []string{"TCP", ""}

func isTCP(p string) bool { return slices.Contains(protocols, p) }
