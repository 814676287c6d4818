// Package proxy connects clients with nodes, pods and services through the API
// server: the log, exec, attach, portforward and proxy subresources.
//
// Plain requests are answered with what the other side answers. Requests that
// upgrade their connection (WebSocket, SPDY) are handed through byte for byte
// after the other side has agreed; what it answers instead of agreeing goes
// back unchanged, so that clients can fall back to another protocol.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/apiserver/endpoint"
)

// Config is what a Proxy is made of.
type Config struct {
	Registry endpoint.Registry
	Nodes    NodeTransport
	// Transport reaches pods and services; nil: plain connections.
	Transport http.RoundTripper
	Logger    *slog.Logger
}

// Proxy answers the subresources that are connections.
type Proxy struct {
	cfg       Config
	log       *slog.Logger
	transport http.RoundTripper
	own       *http.Transport
}

var _ endpoint.Connecter = (*Proxy)(nil)

// New returns a Proxy.
func New(cfg Config) *Proxy {
	p := &Proxy{cfg: cfg, log: cfg.Logger, transport: cfg.Transport}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	if p.transport == nil {
		p.own = newTransport()
		p.transport = p.own
	}
	return p
}

// Close ends the connections that are idle.
func (p *Proxy) Close() {
	if p.own != nil {
		p.own.CloseIdleConnections()
	}
}

var (
	podsGVR     = corev1.SchemeGroupVersion.WithResource("pods")
	nodesGVR    = corev1.SchemeGroupVersion.WithResource("nodes")
	servicesGVR = corev1.SchemeGroupVersion.WithResource("services")
)

// Connect answers a request for a connection.
func (p *Proxy) Connect(w http.ResponseWriter, r *http.Request, info *endpoint.RequestInfo) error {
	switch info.Subresource {
	case "log":
		return p.logs(w, r, info)
	case "exec", "attach":
		return p.stream(w, r, info)
	case "portforward":
		return p.portForward(w, r, info)
	case "proxy":
		return p.proxy(w, r, info)
	}
	return apierrors.NewNotFound(info.GVR().GroupResource(), info.Name+"/"+info.Subresource)
}

func get[T any](ctx context.Context, p *Proxy, gvr schema.GroupVersionResource, namespace, name string) (T, error) {
	var none T
	s, ok := p.cfg.Registry.Storage(gvr)
	if !ok {
		return none, apierrors.NewNotFound(gvr.GroupResource(), name)
	}
	e, err := s.Get(ctx, namespace, name, metav1.GetOptions{})
	if err != nil {
		return none, err
	}
	o, ok := e.Object().(T)
	if !ok {
		return none, apierrors.NewInternalError(fmt.Errorf("unexpected %T for %s %q", e.Object(), gvr.Resource, name))
	}
	return o, nil
}

func (p *Proxy) target(ctx context.Context, node string) (*Target, error) {
	if p.cfg.Nodes == nil {
		return nil, apierrors.NewServiceUnavailable("this server has no connection to nodes")
	}
	return p.cfg.Nodes.Target(ctx, node)
}

// container returns the container that a request means.
func container(pod *corev1.Pod, name string) (string, error) {
	if name != "" {
		for i := range pod.Spec.Containers {
			if pod.Spec.Containers[i].Name == name {
				return name, nil
			}
		}
		for i := range pod.Spec.InitContainers {
			if pod.Spec.InitContainers[i].Name == name {
				return name, nil
			}
		}
		for i := range pod.Spec.EphemeralContainers {
			if pod.Spec.EphemeralContainers[i].Name == name {
				return name, nil
			}
		}
		return "", apierrors.NewBadRequest(fmt.Sprintf("container %s is not valid for pod %s", name, pod.Name))
	}
	names := func(list []corev1.Container) string {
		var all []string
		for i := range list {
			all = append(all, list[i].Name)
		}
		return strings.Join(all, " ")
	}
	switch len(pod.Spec.Containers) {
	case 1:
		return pod.Spec.Containers[0].Name, nil
	case 0:
		return "", apierrors.NewBadRequest("a container name must be specified for pod " + pod.Name)
	}
	text := fmt.Sprintf("a container name must be specified for pod %s, choose one of: [%s]", pod.Name, names(pod.Spec.Containers))
	if len(pod.Spec.InitContainers) > 0 {
		text += fmt.Sprintf(" or one of the init containers: [%s]", names(pod.Spec.InitContainers))
	}
	return "", apierrors.NewBadRequest(text)
}

// flag reads a boolean option of the URL as Kubernetes does.
func flag(v url.Values, name string) bool {
	s, ok := v[name]
	return ok && (len(s) == 0 || s[0] != "0" && !strings.EqualFold(s[0], "false"))
}

// stream is exec and attach.
func (p *Proxy) stream(w http.ResponseWriter, r *http.Request, info *endpoint.RequestInfo) error {
	asked := r.URL.Query()
	pod, err := get[*corev1.Pod](r.Context(), p, podsGVR, info.Namespace, info.Name)
	if err != nil {
		return err
	}
	name, err := container(pod, asked.Get("container"))
	if err != nil {
		return err
	}
	if pod.Spec.NodeName == "" {
		return apierrors.NewBadRequest(fmt.Sprintf("pod %s does not have a host assigned", pod.Name))
	}
	query := url.Values{}
	for option, parameter := range map[string]string{"stdin": "input", "stdout": "output", "stderr": "error", "tty": "tty"} {
		if flag(asked, option) {
			query.Set(parameter, "1")
		}
	}
	if query.Get("input") == "" && query.Get("output") == "" && query.Get("error") == "" {
		return apierrors.NewBadRequest("you must specify at least 1 of stdin, stdout, stderr")
	}
	if info.Subresource == "exec" {
		query["command"] = asked["command"]
	}
	t, err := p.target(r.Context(), pod.Spec.NodeName)
	if err != nil {
		return err
	}
	return p.upgrade(w, r, t, &url.URL{Path: "/" + info.Subresource + "/" + pod.Namespace + "/" + pod.Name + "/" + name, RawQuery: query.Encode()})
}

func (p *Proxy) portForward(w http.ResponseWriter, r *http.Request, info *endpoint.RequestInfo) error {
	pod, err := get[*corev1.Pod](r.Context(), p, podsGVR, info.Namespace, info.Name)
	if err != nil {
		return err
	}
	if pod.Spec.NodeName == "" {
		return apierrors.NewBadRequest(fmt.Sprintf("pod %s does not have a host assigned", pod.Name))
	}
	query := url.Values{}
	for _, list := range r.URL.Query()["ports"] {
		for port := range strings.SplitSeq(list, ",") {
			n, err := strconv.ParseUint(port, 10, 16)
			if err != nil || n == 0 {
				return apierrors.NewBadRequest(fmt.Sprintf("invalid port %q", port))
			}
			query.Add("port", port)
		}
	}
	t, err := p.target(r.Context(), pod.Spec.NodeName)
	if err != nil {
		return err
	}
	return p.upgrade(w, r, t, &url.URL{Path: "/portForward/" + pod.Namespace + "/" + pod.Name, RawQuery: query.Encode()})
}

// logs streams what a container wrote.
func (p *Proxy) logs(w http.ResponseWriter, r *http.Request, info *endpoint.RequestInfo) error {
	asked := r.URL.Query()
	query, err := logOptions(asked)
	if err != nil {
		return err
	}
	pod, err := get[*corev1.Pod](r.Context(), p, podsGVR, info.Namespace, info.Name)
	if err != nil {
		return err
	}
	name, err := container(pod, asked.Get("container"))
	if err != nil {
		return err
	}
	h := w.Header()
	h.Set("Content-Type", "text/plain")
	if pod.Spec.NodeName == "" { // nothing runs, nothing was written
		if isWebSocket(r) {
			logSocket(w, r, http.NoBody)
			return nil
		}
		w.WriteHeader(http.StatusOK)
		return nil
	}
	t, err := p.target(r.Context(), pod.Spec.NodeName)
	if err != nil {
		return err
	}
	location := url.URL{Scheme: t.Scheme, Host: t.Host, Path: "/containerLogs/" + pod.Namespace + "/" + pod.Name + "/" + name, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, location.String(), nil)
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	resp, err := t.RoundTripper.RoundTrip(req)
	if err != nil {
		return unreachable(location.String(), err)
	}
	defer resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode > http.StatusPartialContent {
		return kubeletError(resp, info)
	}
	if isWebSocket(r) {
		logSocket(w, r, resp.Body)
		return nil
	}
	if t := resp.Header.Get("Content-Type"); t != "" {
		h.Set("Content-Type", t)
	}
	w.WriteHeader(http.StatusOK)
	flush := http.NewResponseController(w)
	if flag(asked, "follow") {
		_ = flush.Flush()
	}
	buf := make([]byte, 32<<10)
	for {
		n, err := resp.Body.Read(buf)
		if n > 0 {
			if _, werr := w.Write(buf[:n]); werr != nil {
				return nil // the client is gone
			}
			if flush.Flush() != nil {
				return nil
			}
		}
		if err != nil {
			if !errors.Is(err, io.EOF) && r.Context().Err() == nil {
				p.log.Info("log stream broke off", "namespace", info.Namespace, "name", info.Name, "err", err)
			}
			return nil
		}
	}
}

// unreachable is the answer when the other side of a connection is.
func unreachable(where string, err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	u := where
	if i := strings.IndexByte(u, '?'); i >= 0 {
		u = u[:i]
	}
	return apierrors.NewInternalError(fmt.Errorf("Get %q: %w", u, unwrapURL(err)))
}

func unwrapURL(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	return err
}

// maxErrorBody bounds what is read of an answer that is an error.
const maxErrorBody = 50000

// kubeletError is the Status of a kubelet's answer in plain text.
func kubeletError(resp *http.Response, info *endpoint.RequestInfo) error {
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	if err != nil {
		return apierrors.NewInternalError(fmt.Errorf("read the kubelet's answer: %w", err))
	}
	text := strings.TrimSpace(string(body))
	if resp.StatusCode == http.StatusBadRequest {
		return apierrors.NewBadRequest(text)
	}
	retry, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
	return apierrors.NewGenericServerResponse(resp.StatusCode, "get", schema.GroupResource{Group: info.Group, Resource: info.Resource + "/" + info.Subresource}, info.Name, text, retry, true)
}

// logOptions checks the options of a log and returns them as the kubelet takes them.
func logOptions(v url.Values) (url.Values, error) {
	out := url.Values{}
	var errs field.ErrorList
	number := func(name string, least int64, message string) {
		s := v.Get(name)
		if s == "" {
			return
		}
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			errs = append(errs, field.Invalid(field.NewPath(name), s, "must be an integer"))
			return
		}
		if n < least {
			errs = append(errs, field.Invalid(field.NewPath(name), n, message))
			return
		}
		out.Set(name, s)
	}
	number("tailLines", 0, "must be greater than or equal to 0")
	number("limitBytes", 1, "must be greater than 0")
	number("sinceSeconds", 1, "must be greater than 0")
	if s := v.Get("sinceTime"); s != "" {
		if _, err := time.Parse(time.RFC3339Nano, s); err != nil {
			errs = append(errs, field.Invalid(field.NewPath("sinceTime"), s, "must be a time of RFC 3339"))
		} else if v.Get("sinceSeconds") != "" {
			errs = append(errs, field.Forbidden(field.NewPath(""), "at most one of `sinceTime` or `sinceSeconds` may be specified"))
		}
		out.Set("sinceTime", s)
	}
	for _, name := range []string{"follow", "previous", "timestamps"} {
		if flag(v, name) {
			out.Set(name, "true")
		}
	}
	switch s := v.Get("stream"); s {
	case "":
	case "All":
	case "Stdout", "Stderr":
		if v.Get("tailLines") != "" {
			errs = append(errs, field.Forbidden(field.NewPath(""), "`tailLines` and specific `stream` are mutually exclusive"))
		}
		out.Set("stream", s)
	default:
		errs = append(errs, field.NotSupported(field.NewPath("stream"), s, []string{"All", "Stderr", "Stdout"}))
	}
	if len(errs) > 0 {
		return nil, apierrors.NewInvalid(schema.GroupKind{Kind: "PodLogOptions"}, "", errs)
	}
	return out, nil
}
