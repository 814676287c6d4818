// Package hook performs the actions that a pod asks of its kubelet: HTTP requests,
// TCP connections, gRPC health checks and commands, for probes and for lifecycle
// handlers alike. It decides nothing; package probe and package pod do.
package hook

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/proa-dev/proa/internal/kubelet/cri"
)

// BodyLimit is how much of an answer is read, and how much output is shown.
const BodyLimit = 10 << 10

// Target is the container that an action is for.
type Target struct {
	Runtime     cri.Runtime
	ContainerID string
	PodIP       string
	Container   *corev1.Container
	UserAgent   string
}

// Outcome of an action.
type Outcome int

const (
	Success Outcome = iota
	Warning         // counts as success
	Failure
)

// Exec runs a command in the container.
func Exec(ctx context.Context, t Target, cmd []string, timeout time.Duration) (Outcome, string, error) {
	secs := int64((timeout + time.Second - 1) / time.Second)
	r, err := t.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: t.ContainerID, Cmd: cmd, Timeout: secs})
	if err != nil {
		if status.Code(err) == codes.DeadlineExceeded || errors.Is(err, context.DeadlineExceeded) {
			return Failure, fmt.Sprintf("command timed out: %q timed out after %v", strings.Join(cmd, " "), timeout), nil
		}
		return Failure, "", err
	}
	out := append(r.Stdout, r.Stderr...)
	if len(out) > BodyLimit {
		out = out[:BodyLimit]
	}
	if r.ExitCode != 0 {
		return Failure, string(out), nil
	}
	return Success, string(out), nil
}

// Port resolves a number or the name of a container port.
func Port(p intstr.IntOrString, c *corev1.Container) (int, error) {
	n := p.IntValue()
	if p.Type == intstr.String {
		n = 0
		for i := range c.Ports {
			if c.Ports[i].Name == p.StrVal {
				n = int(c.Ports[i].ContainerPort)
				break
			}
		}
		if n == 0 {
			var err error
			if n, err = strconv.Atoi(p.StrVal); err != nil {
				return 0, fmt.Errorf("couldn't find port: %q in container: %q", p.StrVal, c.Name)
			}
		}
	}
	if n <= 0 || n > 65535 {
		return 0, fmt.Errorf("invalid port number: %v", n)
	}
	return n, nil
}

// HTTP performs a GET. A redirect to another host is a warning, not followed.
func HTTP(ctx context.Context, t Target, a *corev1.HTTPGetAction, timeout time.Duration) (Outcome, string, error) {
	port, err := Port(a.Port, t.Container)
	if err != nil {
		return Failure, "", err
	}
	host := a.Host
	if host == "" {
		host = t.PodIP
	}
	scheme := strings.ToLower(string(a.Scheme))
	if scheme == "" {
		scheme = "http"
	}
	u, err := url.Parse(a.Path)
	if err != nil {
		u = &url.URL{Path: a.Path}
	}
	u.Scheme, u.Host = scheme, net.JoinHostPort(host, strconv.Itoa(port))
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return Failure, err.Error(), nil
	}
	for _, h := range a.HTTPHeaders {
		if strings.EqualFold(h.Name, "Host") {
			req.Host = h.Value
			continue
		}
		req.Header.Add(h.Name, h.Value)
	}
	if _, ok := req.Header["User-Agent"]; !ok {
		req.Header.Set("User-Agent", t.UserAgent)
	}
	if _, ok := req.Header["Accept"]; !ok {
		req.Header.Set("Accept", "*/*")
	} else if req.Header.Get("Accept") == "" {
		req.Header.Del("Accept")
	}
	// A connection of its own for each request: a probe must see whether the
	// container accepts new ones. The serving certificate of a pod is nobody's promise.
	tr := &http.Transport{
		TLSClientConfig:    &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // as documented for HTTPS probes
		DisableKeepAlives:  true,
		DisableCompression: true,
		DialContext:        (&net.Dialer{Control: lingerZero}).DialContext,
	}
	defer tr.CloseIdleConnections()
	errRedirect := errors.New("redirect")
	client := &http.Client{Transport: tr, CheckRedirect: func(r *http.Request, via []*http.Request) error {
		if r.URL.Hostname() != via[0].URL.Hostname() {
			return http.ErrUseLastResponse
		}
		if len(via) >= 10 {
			return errRedirect
		}
		return nil
	}}
	resp, err := client.Do(req)
	if err != nil {
		return Failure, err.Error(), nil
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, BodyLimit))
	if err != nil {
		return Failure, err.Error(), nil
	}
	if c := resp.StatusCode; c >= 200 && c < 400 {
		if c >= 300 {
			return Warning, fmt.Sprintf("Probe terminated redirects, Response body: %v", string(body)), nil
		}
		return Success, string(body), nil
	}
	return Failure, fmt.Sprintf("HTTP probe failed with statuscode: %d", resp.StatusCode), nil
}

// TCP opens and closes a connection.
func TCP(ctx context.Context, t Target, a *corev1.TCPSocketAction, timeout time.Duration) (Outcome, string, error) {
	port, err := Port(a.Port, t.Container)
	if err != nil {
		return Failure, "", err
	}
	host := a.Host
	if host == "" {
		host = t.PodIP
	}
	d := net.Dialer{Timeout: timeout, Control: lingerZero}
	c, err := d.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return Failure, err.Error(), nil
	}
	c.Close()
	return Success, "", nil
}

// GRPC asks the gRPC health service.
func GRPC(ctx context.Context, t Target, a *corev1.GRPCAction, timeout time.Duration) (Outcome, string, error) {
	addr := net.JoinHostPort(t.PodIP, strconv.Itoa(int(a.Port)))
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUserAgent(t.UserAgent), grpc.WithNoProxy(), grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return (&net.Dialer{Control: lingerZero}).DialContext(ctx, "tcp", addr)
		}))
	if err != nil {
		return Failure, err.Error(), nil
	}
	defer conn.Close()
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	service := ""
	if a.Service != nil {
		service = *a.Service
	}
	r, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{Service: service}, grpc.WaitForReady(true))
	if err != nil {
		switch status.Code(err) {
		case codes.Unimplemented:
			return Failure, fmt.Sprintf("error: this server does not implement the grpc health protocol (grpc.health.v1.Health): %s", status.Convert(err).Message()), nil
		case codes.DeadlineExceeded:
			return Failure, fmt.Sprintf("timeout: failed to connect service %q within %v: context deadline exceeded", addr, timeout), nil
		}
		return Failure, fmt.Sprintf("error: health rpc probe failed: %v", err), nil
	}
	if r.Status != healthpb.HealthCheckResponse_SERVING {
		return Failure, fmt.Sprintf("service unhealthy (responded with %q)", r.Status), nil
	}
	return Success, "service healthy", nil
}

// Lifecycle performs a postStart or preStop handler.
func Lifecycle(ctx context.Context, t Target, h *corev1.LifecycleHandler) error {
	switch {
	case h.Exec != nil:
		res, out, err := Exec(ctx, t, h.Exec.Command, 0)
		if err != nil {
			return fmt.Errorf("Exec lifecycle hook (%v) failed: %s", h.Exec.Command, cri.Message(err)) //nolint:staticcheck // Kubernetes' wording
		}
		if res == Failure {
			return fmt.Errorf("Exec lifecycle hook (%v) failed: exited with an error, message: %q", h.Exec.Command, out) //nolint:staticcheck // Kubernetes' wording
		}
		return nil
	case h.HTTPGet != nil:
		res, out, err := HTTP(ctx, t, h.HTTPGet, 0)
		if err == nil && res == Failure {
			err = errors.New(out)
		}
		if err != nil {
			return fmt.Errorf("HTTP lifecycle hook (%s) failed: %w", h.HTTPGet.Path, err) //nolint:staticcheck // Kubernetes' wording
		}
		return nil
	case h.TCPSocket != nil:
		res, out, err := TCP(ctx, t, h.TCPSocket, 30*time.Second)
		if err == nil && res == Failure {
			err = errors.New(out)
		}
		return err
	case h.Sleep != nil:
		timer := time.NewTimer(time.Duration(h.Sleep.Seconds) * time.Second)
		defer timer.Stop()
		select {
		case <-timer.C:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("Sleep lifecycle hook interrupted: %w", ctx.Err()) //nolint:staticcheck // Kubernetes' wording
		}
	}
	return errors.New("invalid handler: no action")
}
