package apiserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
)

// Check is one thing that health depends on.
type Check struct {
	Name string
	// Check returns nil when all is well. It must honour its context.
	Check func(ctx context.Context) error
	// ReadyOnly: it says when requests can be served, and nothing of whether the
	// process lives.
	ReadyOnly bool
}

// health answers /healthz, /livez and /readyz, and their sub-paths by check.
type health struct {
	checks []Check
	log    *slog.Logger
}

func newHealth(checks []Check, log *slog.Logger) *health {
	all := []Check{{Name: "ping", Check: func(context.Context) error { return nil }}}
	return &health{checks: append(all, checks...), log: log}
}

// serve answers path, whose first segment is endpoint.
func (h *health) serve(w http.ResponseWriter, r *http.Request, endpoint, name string) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "405 method not allowed", http.StatusMethodNotAllowed)
		return
	}
	header := w.Header()
	header.Set("Content-Type", "text/plain; charset=utf-8")
	header.Set("X-Content-Type-Options", "nosniff")
	var checks []Check
	for _, c := range h.checks {
		if c.ReadyOnly && endpoint != "readyz" {
			continue
		}
		if name != "" && c.Name != name {
			continue
		}
		checks = append(checks, c)
	}
	if name != "" {
		if len(checks) == 0 {
			http.NotFound(w, r)
			return
		}
		if err := checks[0].Check(r.Context()); err != nil {
			h.log.Warn("health check failed", "endpoint", endpoint, "check", name, "err", err)
			http.Error(w, fmt.Sprintf("internal server error: %v", withheld), http.StatusInternalServerError)
			return
		}
		_, _ = w.Write([]byte("ok"))
		return
	}
	query := r.URL.Query()
	excluded := query["exclude"]
	var out bytes.Buffer
	var failed []string
	for _, c := range checks {
		if slices.Contains(excluded, c.Name) {
			fmt.Fprintf(&out, "[+]%s excluded: ok\n", c.Name)
			continue
		}
		if err := c.Check(r.Context()); err != nil {
			h.log.Warn("health check failed", "endpoint", endpoint, "check", c.Name, "err", err)
			fmt.Fprintf(&out, "[-]%s failed: %v\n", c.Name, withheld)
			failed = append(failed, c.Name)
			continue
		}
		fmt.Fprintf(&out, "[+]%s ok\n", c.Name)
	}
	for _, name := range excluded {
		if !slices.ContainsFunc(checks, func(c Check) bool { return c.Name == name }) {
			fmt.Fprintf(&out, "warn: some health checks cannot be excluded: no matches for %q\n", name)
		}
	}
	if len(failed) > 0 {
		fmt.Fprintf(&out, "%s check failed\n", endpoint)
		w.WriteHeader(http.StatusInternalServerError)
		_, _ = w.Write(out.Bytes())
		return
	}
	if _, verbose := query["verbose"]; !verbose {
		_, _ = w.Write([]byte("ok"))
		return
	}
	fmt.Fprintf(&out, "%s check passed\n", endpoint)
	_, _ = w.Write(out.Bytes())
}

// withheld: health is readable without credentials, reasons are in the log.
var withheld = errors.New("reason withheld")

// healthPath splits /readyz/etcd.
func healthPath(path string) (endpoint, name string, ok bool) {
	endpoint, name, _ = strings.Cut(strings.Trim(path, "/"), "/")
	switch endpoint {
	case "healthz", "livez", "readyz":
		return endpoint, name, true
	}
	return "", "", false
}
