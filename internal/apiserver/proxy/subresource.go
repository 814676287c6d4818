package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"
	utilproxy "k8s.io/apimachinery/pkg/util/proxy"

	"github.com/proa-dev/proa/internal/apiserver/endpoint"
	"github.com/proa-dev/proa/internal/apiserver/rest"
)

// newTransport reaches pods and services. Their certificates are not checked: no
// authority vouches for pods, and Kubernetes does the same.
func newTransport() *http.Transport {
	return &http.Transport{
		DialContext:         (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:     &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // see above
		TLSHandshakeTimeout: 10 * time.Second, MaxIdleConnsPerHost: 4, IdleConnTimeout: 90 * time.Second,
		DisableCompression: true, // bytes go through as they are
	}
}

// split reads [scheme:]name[:port].
func split(id string) (scheme, name, port string, err error) {
	parts := strings.Split(id, ":")
	switch len(parts) {
	case 1:
		return "", parts[0], "", nil
	case 2:
		return "", parts[0], parts[1], nil
	case 3:
		if parts[0] == "" || parts[0] == "http" || parts[0] == "https" {
			return parts[0], parts[1], parts[2], nil
		}
	}
	return "", "", "", apierrors.NewBadRequest(fmt.Sprintf("invalid request %q", id))
}

// proxy is the proxy subresource of pods, services and nodes.
func (p *Proxy) proxy(w http.ResponseWriter, r *http.Request, info *endpoint.RequestInfo) error {
	scheme, name, port, err := split(info.Name)
	if err != nil {
		return err
	}
	rest, prefix := restOf(r, info)
	if rest == "" {
		if r.Method == http.MethodGet || r.Method == http.MethodHead {
			// Links of the page are relative to the directory.
			to := r.URL.EscapedPath() + "/"
			if r.URL.RawQuery != "" {
				to += "?" + r.URL.RawQuery
			}
			w.Header().Set("Location", to)
			w.WriteHeader(http.StatusMovedPermanently)
			return nil
		}
		rest = "/"
	}
	t := &Target{Scheme: scheme, RoundTripper: p.transport, TLS: &tls.Config{InsecureSkipVerify: true}} //nolint:gosec // as newTransport
	switch info.Resource {
	case "pods":
		t.Host, err = p.podAddress(r.Context(), info.Namespace, name, port)
	case "services":
		t.Host, err = p.serviceAddress(r.Context(), info.Namespace, name, port)
	case "nodes":
		var node *Target
		if node, err = p.nodeTarget(r.Context(), name, port); node != nil {
			if t = node; t.Scheme == "" {
				t.Scheme = scheme
			}
		}
	default:
		err = apierrors.NewNotFound(info.GVR().GroupResource(), info.Name)
	}
	if err != nil {
		return err
	}
	if t.Scheme == "" {
		t.Scheme = "http"
	}
	u := &url.URL{Scheme: t.Scheme, Host: t.Host, RawQuery: r.URL.RawQuery}
	if u.Path, err = url.PathUnescape(rest); err != nil {
		return apierrors.NewBadRequest(err.Error())
	}
	u.RawPath = rest
	if isUpgrade(r) {
		return p.tunnel(w, r, t, u)
	}
	p.forward(w, r, t, u, prefix)
	return nil
}

// restOf returns the path to proxy to as the client wrote it, and what stood before it.
func restOf(r *http.Request, info *endpoint.RequestInfo) (rest, prefix string) {
	escaped := r.URL.EscapedPath()
	if info.Rest == "" {
		return "", escaped
	}
	// The path before is /api/v1[/namespaces/{ns}]/{resource}/{name}/proxy: count its segments.
	n := 5
	if info.Namespace != "" {
		n = 7
	}
	i := 0
	for range n {
		for i < len(escaped) && escaped[i] == '/' {
			i++
		}
		for i < len(escaped) && escaped[i] != '/' {
			i++
		}
	}
	return escaped[i:], escaped[:i]
}

func (p *Proxy) forward(w http.ResponseWriter, r *http.Request, t *Target, u *url.URL, prefix string) {
	rp := &httputil.ReverseProxy{
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.Out.URL = u
			pr.Out.Host = u.Host
			pr.SetXForwarded()
			pr.Out.Header.Del("Authorization")
		},
		// Rewrites links and redirects, so that pages work behind the prefix.
		// They are paths: the client knows better than the server how it reached it.
		Transport:     &utilproxy.Transport{PathPrepend: prefix, RoundTripper: t.RoundTripper},
		FlushInterval: -1,
		ErrorLog:      log.New(discard{}, "", 0),
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			if errors.Is(err, context.Canceled) {
				return
			}
			http.Error(w, fmt.Sprintf("error trying to reach service: %v", err), http.StatusServiceUnavailable)
		},
		ModifyResponse: func(resp *http.Response) error {
			// Another's cookies and CORS rules must not become the API server's.
			for name := range resp.Header {
				if strings.HasPrefix(name, "Access-Control-") {
					resp.Header.Del(name)
				}
			}
			return nil
		},
	}
	w.Header().Del("Cache-Control")
	rp.ServeHTTP(w, r)
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

func (p *Proxy) podAddress(ctx context.Context, namespace, name, port string) (string, error) {
	pod, err := get[*corev1.Pod](ctx, p, podsGVR, namespace, name)
	if err != nil {
		return "", err
	}
	if port == "" {
		for i := range pod.Spec.Containers {
			if ports := pod.Spec.Containers[i].Ports; len(ports) > 0 {
				port = strconv.Itoa(int(ports[0].ContainerPort))
				break
			}
		}
	}
	ip := pod.Status.PodIP
	if err := allowed(ip); err != nil {
		return "", err
	}
	return hostPort(ip, port), nil
}

func hostPort(ip, port string) string {
	if port == "" {
		if strings.Contains(ip, ":") {
			return "[" + ip + "]"
		}
		return ip
	}
	return net.JoinHostPort(ip, port)
}

// allowed refuses addresses that are the server's own: who may proxy to pods must
// not reach what listens on the server's loopback.
func allowed(address string) error {
	ip := net.ParseIP(address)
	if ip == nil || ip.IsLoopback() || ip.IsLinkLocalUnicast() || ip.IsLinkLocalMulticast() || ip.IsInterfaceLocalMulticast() || ip.IsUnspecified() {
		return apierrors.NewBadRequest("address not allowed")
	}
	return nil
}

func (p *Proxy) serviceAddress(ctx context.Context, namespace, name, port string) (string, error) {
	svc, err := get[*corev1.Service](ctx, p, servicesGVR, namespace, name)
	if err != nil {
		return "", err
	}
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		return "", apierrors.NewServiceUnavailable(fmt.Sprintf("no endpoints available for service %q", name))
	}
	portName, err := servicePort(svc, port)
	if err != nil {
		return "", err
	}
	s, ok := p.cfg.Registry.Storage(discoveryv1.SchemeGroupVersion.WithResource("endpointslices"))
	if !ok {
		return "", apierrors.NewServiceUnavailable(fmt.Sprintf("no endpoints available for service %q", name))
	}
	list, err := s.List(ctx, namespace, rest.ListOptions{Labels: labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: name})})
	if err != nil {
		return "", err
	}
	var hosts []string
	for _, e := range list.Entries {
		slice, ok := e.Object().(*discoveryv1.EndpointSlice)
		if !ok || slice.AddressType == discoveryv1.AddressTypeFQDN {
			continue
		}
		for _, sp := range slice.Ports {
			if sp.Port == nil || sp.Name != nil && *sp.Name != portName || sp.Name == nil && portName != "" {
				continue
			}
			for i := range slice.Endpoints {
				ep := &slice.Endpoints[i]
				if ready := ep.Conditions.Ready; ready != nil && !*ready || len(ep.Addresses) == 0 || allowed(ep.Addresses[0]) != nil {
					continue
				}
				hosts = append(hosts, net.JoinHostPort(ep.Addresses[0], strconv.Itoa(int(*sp.Port))))
			}
		}
	}
	if len(hosts) == 0 {
		return "", apierrors.NewServiceUnavailable(fmt.Sprintf("no endpoints available for service %q", name))
	}
	return hosts[rand.N(len(hosts))], nil
}

// servicePort returns the name of the port that a client means by name or number.
func servicePort(svc *corev1.Service, port string) (string, error) {
	ports := svc.Spec.Ports
	if port == "" {
		if len(ports) == 1 {
			return ports[0].Name, nil
		}
		for i := range ports {
			if ports[i].Name == "" {
				return "", nil
			}
		}
	}
	for i := range ports {
		if ports[i].Name == port && port != "" || strconv.Itoa(int(ports[i].Port)) == port {
			return ports[i].Name, nil
		}
	}
	return "", apierrors.NewServiceUnavailable(fmt.Sprintf("no service port %q found for service %q", port, svc.Name))
}

// nodeTarget is the kubelet, or another port of the node.
func (p *Proxy) nodeTarget(ctx context.Context, name, port string) (*Target, error) {
	t, err := p.target(ctx, name)
	if err != nil || port == "" {
		return t, err
	}
	if _, own, err := net.SplitHostPort(t.Host); err == nil && own == port {
		return t, nil
	}
	node, err := get[*corev1.Node](ctx, p, nodesGVR, "", name)
	if err != nil {
		return nil, err
	}
	address, err := nodeAddress(node)
	if err != nil {
		return nil, err
	}
	if err := allowed(address); err != nil {
		return nil, err
	}
	return &Target{Host: net.JoinHostPort(address, port), RoundTripper: p.transport, TLS: &tls.Config{InsecureSkipVerify: true}}, nil //nolint:gosec // as newTransport
}
