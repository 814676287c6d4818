package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// isUpgrade reports whether a request asks for another protocol.
func isUpgrade(r *http.Request) bool {
	if r.Header.Get("Upgrade") == "" {
		return false
	}
	for _, line := range r.Header.Values("Connection") {
		for part := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(strings.TrimSpace(part), "upgrade") {
				return true
			}
		}
	}
	return false
}

// answerTimeout bounds how long the other side may take to agree.
const answerTimeout = 30 * time.Second

// upgrade hands a request for another protocol through to a kubelet.
func (p *Proxy) upgrade(w http.ResponseWriter, r *http.Request, t *Target, location *url.URL) error {
	if !isUpgrade(r) {
		return apierrors.NewBadRequest("Upgrade request required")
	}
	u := *location
	u.Scheme, u.Host = t.Scheme, t.Host
	return p.tunnel(w, r, t, &u)
}

// tunnel sends r to u over a connection of its own and, once the other side
// switches protocols, joins the two connections until either ends.
func (p *Proxy) tunnel(w http.ResponseWriter, r *http.Request, t *Target, u *url.URL) error {
	ctx := r.Context()
	backend, err := connect(ctx, t, u)
	if err != nil {
		return apierrors.NewInternalError(fmt.Errorf("error dialing backend: %w", err))
	}
	defer backend.Close()
	stop := context.AfterFunc(ctx, func() { _ = backend.Close() })
	defer stop()

	req := &http.Request{Method: r.Method, URL: u, Host: u.Host, Header: r.Header.Clone(), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}
	for _, name := range []string{"Authorization", "Proxy-Authorization", "Proxy-Connection", "Keep-Alive", "Te", "Trailer", "Transfer-Encoding", "Audit-Id"} {
		req.Header.Del(name)
	}
	dropTokenProtocol(req.Header)
	if host, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		req.Header.Set("X-Forwarded-For", host)
	}
	req.Header.Set("Connection", "Upgrade")
	_ = backend.SetDeadline(time.Now().Add(answerTimeout))
	if err := req.Write(backend); err != nil {
		return apierrors.NewInternalError(fmt.Errorf("error sending the request to the backend: %w", err))
	}
	reader := bufio.NewReader(backend)
	resp, err := http.ReadResponse(reader, req)
	if err != nil {
		return apierrors.NewInternalError(fmt.Errorf("error reading the backend's answer: %w", err))
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		defer resp.Body.Close()
		h := w.Header()
		for name, values := range resp.Header {
			switch name {
			case "Connection", "Keep-Alive", "Transfer-Encoding", "Upgrade", "Content-Length":
			default:
				h[name] = values
			}
		}
		w.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(w, io.LimitReader(resp.Body, maxErrorBody))
		return nil
	}
	_ = backend.SetDeadline(time.Time{})

	client, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return apierrors.NewInternalError(fmt.Errorf("the connection of the client cannot be upgraded (%s): %w", r.Proto, err))
	}
	defer client.Close()
	_ = client.SetDeadline(time.Time{})
	stopClient := context.AfterFunc(ctx, func() { _ = client.Close() })
	defer stopClient()
	head := make(http.Header, len(resp.Header)+1)
	maps.Copy(head, resp.Header)
	if id := w.Header()["Audit-Id"]; id != nil {
		head["Audit-Id"] = id
	}
	var b strings.Builder
	b.WriteString("HTTP/1.1 101 Switching Protocols\r\n")
	if err := head.Write(&b); err != nil {
		return apierrors.NewInternalError(err)
	}
	b.WriteString("\r\n")
	if _, err := io.WriteString(client, b.String()); err != nil {
		return nil // the client is gone
	}
	join(client, buffered.Reader, backend, reader)
	return nil
}

// connect dials the host of u.
func connect(ctx context.Context, t *Target, u *url.URL) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	dial := t.Dial
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	conn, err := dial(ctx, "tcp", u.Host)
	if err != nil || u.Scheme != "https" {
		return conn, err
	}
	config := &tls.Config{}
	if t.TLS != nil {
		config = t.TLS.Clone()
	}
	config.NextProtos = []string{"http/1.1"} // upgrades are HTTP/1.1's
	if config.ServerName == "" {
		if host, _, err := net.SplitHostPort(u.Host); err == nil {
			config.ServerName = host
		}
	}
	c := tls.Client(conn, config)
	if err := c.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return c, nil
}

// dropTokenProtocol takes the bearer token out of a browser's WebSocket protocols.
func dropTokenProtocol(h http.Header) {
	values := h.Values("Sec-Websocket-Protocol")
	if len(values) == 0 {
		return
	}
	var kept []string
	for _, line := range values {
		for part := range strings.SplitSeq(line, ",") {
			if part = strings.TrimSpace(part); part != "" && !strings.HasPrefix(part, "base64url.bearer.authorization.k8s.io.") {
				kept = append(kept, part)
			}
		}
	}
	h.Del("Sec-Websocket-Protocol")
	if len(kept) > 0 {
		h.Set("Sec-Websocket-Protocol", strings.Join(kept, ", "))
	}
}

// copyBuffers are for joined connections.
var copyBuffers = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}

// join copies both ways until one side ends, and closes both. The readers may
// hold bytes that came along with the headers.
func join(client net.Conn, fromClient io.Reader, backend net.Conn, fromBackend io.Reader) {
	var wg sync.WaitGroup
	pipe := func(to net.Conn, from io.Reader) {
		defer func() {
			_ = client.Close()
			_ = backend.Close()
		}()
		buf := copyBuffers.Get().(*[]byte)
		defer copyBuffers.Put(buf)
		// Hide ReadFrom and WriteTo: the buffered readers' would take buffers of their own.
		_, _ = io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, *buf)
	}
	wg.Go(func() { pipe(backend, fromClient) })
	wg.Go(func() { pipe(client, fromBackend) })
	wg.Wait()
}
