package aggregator

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/authentication/user"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"github.com/proa-dev/proa/internal/apiserver/rest"
)

// service is the server of one group and version.
type service struct {
	a    *Aggregator
	name string // of the APIService
	uid  types.UID
	spec apiregistrationv1.APIServiceSpec
	gv   schema.GroupVersion
	base url.URL // https://<name>.<namespace>.svc:<port>

	// Requests that switch protocols need HTTP/1.1.
	transport, upgrades *http.Transport
	proxy               *httputil.ReverseProxy
	broken              error // of the CA bundle

	available atomic.Bool
	resources atomic.Pointer[[]apidiscoveryv2.APIResourceDiscovery]
	described atomic.Pointer[described]
	wanted    chan struct{} // a check is
	ctx       context.Context
	end       context.CancelFunc
}

const (
	httpsPort   = 443
	dialTimeout = 10 * time.Second
)

func (a *Aggregator) newService(o *apiregistrationv1.APIService) *service {
	s := &service{a: a, name: o.Name, uid: o.UID, spec: *o.Spec.DeepCopy(), gv: schema.GroupVersion{Group: o.Spec.Group, Version: o.Spec.Version}, wanted: make(chan struct{}, 1)}
	s.ctx, s.end = context.WithCancel(context.Background())
	ref := s.spec.Service
	host := ref.Name + "." + ref.Namespace + ".svc"
	s.base = url.URL{Scheme: "https", Host: net.JoinHostPort(host, strconv.Itoa(int(s.port())))}
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host, InsecureSkipVerify: s.spec.InsecureSkipTLSVerify}
	if len(s.spec.CABundle) > 0 {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(s.spec.CABundle) {
			s.broken = errors.New("unable to load root certificates: unable to parse bytes as PEM block")
		}
	}
	if c := a.cfg.Certificate; c != nil {
		config.Certificates = []tls.Certificate{*c}
	}
	transport := func() *http.Transport {
		return &http.Transport{TLSClientConfig: config.Clone(), TLSHandshakeTimeout: dialTimeout, MaxIdleConnsPerHost: 25, IdleConnTimeout: 90 * time.Second, DialContext: (&net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}).DialContext}
	}
	s.transport, s.upgrades = transport(), transport()
	s.transport.ForceAttemptHTTP2 = true
	s.transport.HTTP2 = &http.HTTP2Config{SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second}
	s.upgrades.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	s.proxy = &httputil.ReverseProxy{
		Transport: roundTripper(s.roundTrip),
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetXForwarded()
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = s.base.Scheme, s.base.Host, s.base.Host
			identify(r.Out.Header, rest.UserFrom(r.In.Context()))
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if r.Context().Err() == nil {
				a.log.Info("a request to the server of an API failed", "kind", "APIService", "name", s.name, "err", err)
			}
			http.Error(w, "error trying to reach service: "+err.Error(), http.StatusServiceUnavailable)
			s.check()
		},
	}
	return s
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func (s *service) roundTrip(r *http.Request) (*http.Response, error) {
	if s.broken != nil {
		return nil, s.broken
	}
	// Each request goes to an endpoint that is ready now; the Host header and what
	// the certificate is checked for keep the Service's name.
	address, err := s.a.cfg.Resolver.Resolve(s.spec.Service.Namespace, s.spec.Service.Name, s.port())
	if err != nil {
		return nil, err
	}
	r = r.Clone(r.Context())
	r.Host, r.URL.Host = s.base.Host, address
	if r.Header.Get("Upgrade") != "" {
		return s.upgrades.RoundTrip(r)
	}
	return s.transport.RoundTrip(r)
}

func (s *service) port() int32 {
	if p := s.spec.Service.Port; p != nil {
		return *p
	}
	return httpsPort
}

// Headers that say who asks. What the client sent of them itself is never passed on.
const (
	headerUser  = "X-Remote-User"
	headerUID   = "X-Remote-Uid"
	headerGroup = "X-Remote-Group"
	headerExtra = "X-Remote-Extra-"
)

// identify says in headers who asks, in place of what the client proved it with.
func identify(h http.Header, who user.Info) {
	for name := range h {
		if strings.HasPrefix(name, "X-Remote-") || strings.HasPrefix(name, "Impersonate-") {
			delete(h, name)
		}
	}
	h.Del("Authorization")
	if who == nil {
		return
	}
	h.Set(headerUser, who.GetName())
	if uid := who.GetUID(); uid != "" {
		h.Set(headerUID, uid)
	}
	for _, g := range who.GetGroups() {
		h.Add(headerGroup, g)
	}
	for key, values := range who.GetExtra() {
		for _, v := range values {
			h.Add(headerExtra+escape(key), v)
		}
	}
}

// escape writes a key so that it can be a part of a header's name: what a token
// (RFC 9110) may not hold, and "%", is percent-encoded.
func escape(key string) string {
	const others = "!#$&'*+-.^_`|~"
	var b strings.Builder
	for i := range len(key) {
		c := key[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte(others, c) >= 0 {
			b.WriteByte(c)
			continue
		}
		fmt.Fprintf(&b, "%%%02X", c)
	}
	return b.String()
}

// ServeHTTP passes a request on.
func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !s.available.Load() {
		http.Error(w, "service unavailable", http.StatusServiceUnavailable)
		return
	}
	// A request ends with what serves it: when the APIService is deleted, watches do, too.
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	s.proxy.ServeHTTP(w, r.WithContext(ctx))
}

// get asks the server on behalf of this one. At most most bytes are read.
func (s *service) get(ctx context.Context, path, accept string, most int64) (status int, contentType string, body []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	u := s.base
	at, query, _ := strings.Cut(path, "?")
	u.Path, u.RawQuery = at, query
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return 0, "", nil, err
	}
	req.Header.Set("Accept", accept)
	identify(req.Header, &user.DefaultInfo{Name: "system:kube-aggregator", Groups: []string{user.SystemPrivilegedGroup}})
	resp, err := s.roundTrip(req)
	if err != nil {
		return 0, "", nil, err
	}
	defer resp.Body.Close()
	body, err = readAtMost(resp.Body, most)
	return resp.StatusCode, resp.Header.Get("Content-Type"), body, err
}
