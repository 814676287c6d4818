// Package registries says from where the images of a registry are fetched: from its
// mirrors, and with which certificates. It reads the folders that containerd reads
// (containerd's docs/hosts.md): <folder>/<registry>/hosts.toml, or else
// <folder>/_default/hosts.toml.
package registries

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// Endpoint is one place that images of a registry are fetched from.
type Endpoint struct {
	// Host is what is connected to; Insecure says by plain HTTP.
	Host     string
	Insecure bool
	// Mirror is set unless this is the registry itself: credentials of the registry
	// are not shown to it.
	Mirror bool
	// Transport speaks to it.
	Transport *http.Transport
	// Header is added to each request; Path replaces /v2.
	Header http.Header
	Path   string
	// Namespace is the registry that a mirror is asked to answer for; "": none.
	Namespace string
}

// RoundTrip adds to a request what the endpoint wants.
func (e Endpoint) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Host != e.Host { // a redirect, or the service that gives tokens
		return e.Transport.RoundTrip(r)
	}
	r = r.Clone(r.Context())
	for k, v := range e.Header {
		r.Header[k] = v
	}
	if rest, ok := strings.CutPrefix(r.URL.Path, "/v2"); ok && e.Path != "" {
		r.URL.Path, r.URL.RawPath = strings.TrimSuffix(e.Path, "/")+rest, ""
	}
	if e.Namespace != "" {
		q := r.URL.Query()
		q.Set("ns", e.Namespace)
		r.URL.RawQuery = q.Encode()
	}
	return e.Transport.RoundTrip(r)
}

type file struct {
	Server string `toml:"server"`
	host
	Hosts map[string]host `toml:"host"`
}

type host struct {
	Capabilities []string       `toml:"capabilities"`
	CA           any            `toml:"ca"`     // a path, or several
	Client       any            `toml:"client"` // a path, paths, or pairs of certificate and key
	SkipVerify   *bool          `toml:"skip_verify"`
	Header       map[string]any `toml:"header"` // a string or several
	OverridePath *bool          `toml:"override_path"`
}

// Of lists the places for a registry (host or host:port) in the order in which they
// are to be tried; the last is the registry itself. folder may be missing. The
// caller closes the transports' idle connections.
func Of(folder, registry string) ([]Endpoint, error) {
	var f file
	var order []string
	path := ""
	for _, name := range []string{registry, strings.ReplaceAll(registry, ":", "_") + "_", "_default"} {
		p := filepath.Join(folder, name, "hosts.toml")
		b, err := os.ReadFile(p)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read the mirrors of %s: %w", registry, err)
		}
		if order, err = parse(b, &f); err != nil {
			return nil, fmt.Errorf("%s: %w", p, err)
		}
		path = p
		break
	}
	var out []Endpoint
	for _, at := range order {
		e, err := endpoint(filepath.Dir(path), at, f.Hosts[at])
		if err != nil {
			return nil, fmt.Errorf("%s: host %q: %w", path, at, err)
		}
		if e == nil {
			continue
		}
		e.Mirror, e.Namespace = e.Host != registry, registry
		out = append(out, *e)
	}
	if f.Server == "" {
		f.Server = "https://" + registry
		if registry == "docker.io" || registry == "index.docker.io" {
			f.Server = "https://index.docker.io"
		}
		if path == "" { // as the registry's name says: loopback may be plain HTTP
			return append(out, Endpoint{Host: strings.TrimPrefix(f.Server, "https://"), Transport: transport(nil)}), nil
		}
	}
	e, err := endpoint(filepath.Dir(path), f.Server, f.host)
	if err != nil {
		return nil, fmt.Errorf("%s: server: %w", path, err)
	}
	if e != nil {
		out = append(out, *e)
	}
	return out, nil
}

// parse returns the hosts in the order in which they stand in the file.
func parse(b []byte, to *file) ([]string, error) {
	d := toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields()
	if err := d.Decode(to); err != nil {
		if strict := new(toml.StrictMissingError); errors.As(err, &strict) {
			return nil, fmt.Errorf("unknown settings:\n%s", strict.String())
		}
		if at := new(toml.DecodeError); errors.As(err, &at) {
			row, column := at.Position()
			return nil, fmt.Errorf("line %d, column %d: %w", row, column, err)
		}
		return nil, err
	}
	order := make([]string, 0, len(to.Hosts))
	for h := range to.Hosts {
		order = append(order, h)
	}
	at := func(h string) int {
		if i := bytes.Index(b, []byte(`"`+h+`"`)); i >= 0 {
			return i
		}
		return bytes.Index(b, []byte(`'`+h+`'`))
	}
	slices.SortFunc(order, func(a, c string) int { return at(a) - at(c) })
	return order, nil
}

// endpoint returns nil for a host that is not for pulls.
func endpoint(folder, at string, h host) (*Endpoint, error) {
	if len(h.Capabilities) > 0 && (!slices.Contains(h.Capabilities, "pull") || !slices.Contains(h.Capabilities, "resolve")) {
		return nil, nil
	}
	if !strings.Contains(at, "://") {
		at = "https://" + at
	}
	u, err := url.Parse(at)
	if err != nil {
		return nil, err
	}
	if u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
		return nil, fmt.Errorf("%s is not an http or https address", at)
	}
	e := &Endpoint{Host: u.Host, Insecure: u.Scheme == "http", Header: http.Header{}}
	if p := strings.TrimSuffix(u.Path, "/"); h.OverridePath != nil && *h.OverridePath {
		e.Path = p
	} else if p != "" && p != "/v2" {
		e.Path = p + "/v2"
	}
	for k, v := range h.Header {
		values, err := texts("header "+k, v)
		if err != nil {
			return nil, err
		}
		e.Header[http.CanonicalHeaderKey(k)] = values
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	conf.InsecureSkipVerify = h.SkipVerify != nil && *h.SkipVerify
	if conf.RootCAs, err = authorities(folder, h.CA); err != nil {
		return nil, err
	}
	if conf.Certificates, err = certificates(folder, h.Client); err != nil {
		return nil, err
	}
	e.Transport = transport(conf)
	return e, nil
}

func transport(conf *tls.Config) *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.TLSClientConfig = conf
	return t
}

func authorities(folder string, ca any) (*x509.CertPool, error) {
	if ca == nil {
		return nil, nil
	}
	paths, err := texts("ca", ca)
	if err != nil {
		return nil, err
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	for _, p := range paths {
		b, err := os.ReadFile(absolute(folder, p))
		if err != nil {
			return nil, fmt.Errorf("ca: %w", err)
		}
		if !pool.AppendCertsFromPEM(b) {
			return nil, fmt.Errorf("ca: no certificate in %s", absolute(folder, p))
		}
	}
	return pool, nil
}

func certificates(folder string, client any) (out []tls.Certificate, err error) {
	if client == nil {
		return nil, nil
	}
	list, ok := client.([]any)
	if !ok {
		list = []any{client}
	}
	for _, x := range list {
		pair, err := texts("client", x)
		if err != nil {
			return nil, err
		}
		if len(pair) == 1 { // the key is in the same file
			pair = append(pair, pair[0])
		}
		if len(pair) != 2 {
			return nil, errors.New("client: want a file, or a pair of certificate and key")
		}
		c, err := tls.LoadX509KeyPair(absolute(folder, pair[0]), absolute(folder, pair[1]))
		if err != nil {
			return nil, fmt.Errorf("client: %w", err)
		}
		out = append(out, c)
	}
	return out, nil
}

func absolute(folder, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(folder, path)
}

// texts is a string or a list of strings.
func texts(what string, v any) ([]string, error) {
	switch v := v.(type) {
	case string:
		return []string{v}, nil
	case []any:
		out := make([]string, len(v))
		for i := range v {
			s, ok := v[i].(string)
			if !ok {
				return nil, fmt.Errorf("%s: want a string or a list of strings", what)
			}
			out[i] = s
		}
		return out, nil
	}
	return nil, fmt.Errorf("%s: want a string or a list of strings", what)
}
