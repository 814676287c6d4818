package remote

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

// link is the connection to the server, and the credentials that it shows. When
// the certificate's files change, the next request opens a new connection; what is
// under way on the old one ends there.
type link struct {
	cfg  Config
	pool *x509.CertPool

	mu      sync.Mutex
	current *http.Transport
	cert    *tls.Certificate
	stamp   string // of the certificate's files
	token   string
	looked  time.Time
}

// lookEvery bounds how often credential files are looked at.
const lookEvery = 10 * time.Second

func newLink(cfg Config) (*link, error) {
	l := &link{cfg: cfg}
	if len(cfg.CA) > 0 {
		l.pool = x509.NewCertPool()
		if !l.pool.AppendCertsFromPEM(cfg.CA) {
			return nil, errors.New("the server's authorities: no PEM certificate in them")
		}
	}
	if len(cfg.Cert) > 0 {
		pair, err := tls.X509KeyPair(cfg.Cert, cfg.Key)
		if err != nil {
			return nil, fmt.Errorf("the client's certificate: %w", err)
		}
		l.cert = &pair
	}
	l.token = cfg.Token
	if err := l.look(); err != nil {
		return nil, err
	}
	l.current = l.transport()
	return l, nil
}

// look reads the credential files where they have changed.
func (l *link) look() error {
	l.looked = time.Now()
	if l.cfg.TokenFile != "" {
		b, err := os.ReadFile(l.cfg.TokenFile)
		if err != nil {
			return fmt.Errorf("read the token: %w", err)
		}
		l.token = strings.TrimSpace(string(b))
	}
	if l.cfg.CertFile == "" {
		return nil
	}
	stamp := ""
	for _, path := range []string{l.cfg.CertFile, l.cfg.KeyFile} {
		info, err := os.Stat(path)
		if err != nil {
			return fmt.Errorf("read the client's certificate: %w", err)
		}
		stamp += fmt.Sprint(info.ModTime().UnixNano(), info.Size(), ";")
	}
	if stamp == l.stamp {
		return nil
	}
	pair, err := tls.LoadX509KeyPair(l.cfg.CertFile, l.cfg.KeyFile)
	if err != nil {
		return fmt.Errorf("read the client's certificate: %w", err)
	}
	l.cert, l.stamp = &pair, stamp
	if old := l.current; old != nil {
		l.current = l.transport()
		// Requests that hold old end on it; its connection closes when idle.
		old.CloseIdleConnections()
		time.AfterFunc(drainAfter, old.CloseIdleConnections)
	}
	return nil
}

// drainAfter is longer than the longest watch.
const drainAfter = watchAtMost + time.Minute

// get returns the transport and token for a request.
func (l *link) get() (*http.Transport, string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cfg.CertFile+l.cfg.TokenFile != "" && time.Since(l.looked) >= lookEvery {
		// A pair that is half written is looked at again; the old one serves until then.
		_ = l.look()
	}
	return l.current, l.token
}

func (l *link) transport() *http.Transport {
	cert := l.cert
	t := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		TLSHandshakeTimeout: 10 * time.Second,
		IdleConnTimeout:     90 * time.Second,
		ForceAttemptHTTP2:   true,
		// A server that is gone without a word is found out by pings, so that watches
		// begin again elsewhere.
		HTTP2:           &http.HTTP2Config{SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second},
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: l.pool, ServerName: l.cfg.ServerName, InsecureSkipVerify: l.cfg.Insecure},
	}
	if cert != nil {
		t.TLSClientConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	return t
}

func (l *link) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.current.CloseIdleConnections()
}
