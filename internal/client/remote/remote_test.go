package remote_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/client/clienttest"
	"github.com/proa-dev/proa/internal/client/remote"
)

func TestContract(t *testing.T) {
	clienttest.Run(t, func(t *testing.T) client.Interface {
		c := start(t, nil).client(t)
		furnish(t, c)
		return c
	})
}

func put(t *testing.T, c client.Interface, name string) {
	t.Helper()
	if _, err := client.ConfigMaps.Create(t.Context(), c, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}); err != nil {
		t.Fatal(err)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 1500 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("not in 15 s: %s", what)
}

func TestEverythingGoesOverOneConnection(t *testing.T) {
	var mu sync.Mutex
	from, protocols := map[string]bool{}, map[string]bool{}
	s := start(t, func(_ http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		from[r.RemoteAddr], protocols[r.Proto] = true, true
		mu.Unlock()
		return false
	})
	c := s.client(t)
	furnish(t, c)
	var wg sync.WaitGroup
	for n := range 20 {
		i := c.Informer(client.ConfigMaps.GVR, client.Scope{Name: fmt.Sprint("m", n)})
		wg.Go(func() {
			if err := i.WaitSynced(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	mu.Lock()
	defer mu.Unlock()
	if len(from) != 1 || !protocols["HTTP/2.0"] || len(protocols) != 1 {
		t.Errorf("connections %v, protocols %v", from, protocols)
	}
}

// A view that a server cut off goes on from where it was, and lists again only when
// the server has forgotten that revision.
func TestAViewResumesAndListsAgainOnlyWhenItMust(t *testing.T) {
	var lists, watches atomic.Int32
	var expired, down atomic.Bool
	var mu sync.Mutex
	var cuts []context.CancelFunc
	s := start(t, func(w http.ResponseWriter, r *http.Request) bool {
		if down.Load() {
			w.WriteHeader(http.StatusBadGateway)
			return true
		}
		if r.URL.Path != "/api/v1/configmaps" {
			return false
		}
		if r.URL.Query().Get("watch") == "" {
			lists.Add(1)
			return false
		}
		watches.Add(1)
		if r.URL.Query().Get("allowWatchBookmarks") != "true" || r.URL.Query().Get("timeoutSeconds") == "" {
			t.Errorf("watch without bookmarks or an end: %s", r.URL.RawQuery)
		}
		if expired.Swap(false) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusGone)
			fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Expired","code":410,"message":"too old"}`)
			return true
		}
		ctx, cancel := context.WithCancel(r.Context())
		mu.Lock()
		cuts = append(cuts, cancel)
		mu.Unlock()
		*r = *r.WithContext(ctx)
		return false
	})
	c := s.client(t)
	furnish(t, c)
	put(t, c, "a")
	i := c.Informer(client.ConfigMaps.GVR, client.Scope{})
	if err := i.WaitSynced(t.Context()); err != nil {
		t.Fatal(err)
	}
	var told []string
	var tolds sync.Mutex
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		_ = i.Watch(ctx, func(e client.Event) {
			tolds.Lock()
			defer tolds.Unlock()
			if e.Object != nil {
				told = append(told, string(e.Type)+" "+e.Object.GetName())
			}
		})
	}()
	cut := func() {
		mu.Lock()
		defer mu.Unlock()
		for _, f := range cuts {
			f()
		}
		cuts = nil
	}
	eventually(t, "the first watch", func() bool { return watches.Load() == 1 })
	cut()
	put(t, c, "b")
	eventually(t, "b after a cut", func() bool { _, ok := i.Get("default", "b"); return ok })
	if lists.Load() != 1 {
		t.Errorf("%d lists after a cut, want 1", lists.Load())
	}
	expired.Store(true)
	cut()
	put(t, c, "c")
	if err := client.ConfigMaps.Delete(t.Context(), c, "default", "a", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "c after the revision was forgotten", func() bool {
		_, c := i.Get("default", "c")
		_, a := i.Get("default", "a")
		return c && !a
	})
	if lists.Load() != 2 {
		t.Errorf("%d lists after an expiry, want 2", lists.Load())
	}
	down.Store(true)
	cut()
	time.Sleep(300 * time.Millisecond)
	down.Store(false)
	put(t, c, "d")
	eventually(t, "d after the server was down", func() bool { _, ok := i.Get("default", "d"); return ok })
	eventually(t, "the follower", func() bool { tolds.Lock(); defer tolds.Unlock(); return len(told) >= 5 })
	tolds.Lock()
	defer tolds.Unlock()
	if got := strings.Join(told, "; "); !strings.HasPrefix(got, "ADDED a; ADDED b; ") || strings.Count(got, "ADDED c") != 1 || strings.Count(got, "DELETED a") != 1 || !strings.HasSuffix(got, "ADDED d") {
		t.Errorf("told %s", got)
	}
}

func TestABusyServerIsAskedAgain(t *testing.T) {
	var n atomic.Int32
	s := start(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPost || n.Add(1) > 2 {
			return false
		}
		w.Header().Set("Retry-After", "0")
		w.WriteHeader(http.StatusTooManyRequests)
		return true
	})
	furnish(t, s.client(t))
	if n.Load() < 3 {
		t.Errorf("%d requests", n.Load())
	}
}

func TestARenewedCertificateIsShownOnANewConnection(t *testing.T) {
	var last atomic.Value
	s := start(t, func(_ http.ResponseWriter, r *http.Request) bool {
		last.Store(r.TLS.PeerCertificates[0].Subject.CommonName)
		return false
	})
	oldCert, oldKey := s.leaf(t, "old", "old-name")
	newCert, newKey := s.leaf(t, "new", "new-name")
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "crt"), filepath.Join(dir, "key")
	copyFile(t, oldCert, cert)
	copyFile(t, oldKey, key)
	c := newClient(t, remote.Config{Server: s.url, CA: s.ca.CertPEM, CertFile: cert, KeyFile: key})
	remote.LookAtOnce(c)
	furnish(t, c)
	if last.Load() != "old-name" {
		t.Fatalf("shown %v", last.Load())
	}
	copyFile(t, newCert, cert) // half a renewal: the old pair serves on
	remote.LookAtOnce(c)
	put(t, c, "a")
	if last.Load() != "old-name" {
		t.Fatalf("shown %v", last.Load())
	}
	copyFile(t, newKey, key)
	remote.LookAtOnce(c)
	put(t, c, "b")
	if last.Load() != "new-name" {
		t.Errorf("shown %v after the renewal", last.Load())
	}
}

func TestErrorsOfTheConnection(t *testing.T) {
	s := start(t, nil)
	cert, key := s.leaf(t, "nobody", "nobody")
	c := newClient(t, remote.Config{Server: s.url, CA: s.ca.CertPEM, CertFile: cert, KeyFile: key})
	if _, err := client.ConfigMaps.Get(t.Context(), c, "default", "a"); !apierrors.IsForbidden(err) {
		t.Errorf("without rights: %v", err)
	}
	c = newClient(t, remote.Config{Server: s.url, CA: s.ca.CertPEM})
	if _, err := client.ConfigMaps.Get(t.Context(), c, "default", "a"); !apierrors.IsUnauthorized(err) {
		t.Errorf("without credentials: %v", err)
	}
	c = newClient(t, remote.Config{Server: s.url})
	if _, err := client.ConfigMaps.Get(t.Context(), c, "default", "a"); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("without the authority: %v", err)
	}
	for _, cfg := range []remote.Config{{}, {Server: "127.0.0.1:1"}, {Server: s.url, CA: []byte("x")}, {Server: s.url, CertFile: "/nowhere"}, {Server: s.url, TokenFile: "/nowhere"}} {
		if c, err := remote.New(cfg); err == nil {
			c.Close()
			t.Errorf("%+v is taken", cfg)
		}
	}
}

func TestCloseEndsTheViews(t *testing.T) {
	s := start(t, nil)
	cert, key := s.leaf(t, "admin", "kubernetes-admin")
	c, err := remote.New(remote.Config{Server: s.url, CA: s.ca.CertPEM, CertFile: cert, KeyFile: key})
	if err != nil {
		t.Fatal(err)
	}
	i := c.Informer(client.ConfigMaps.GVR, client.Scope{})
	done := make(chan error, 1)
	go func() { done <- i.Watch(t.Context(), func(client.Event) {}) }()
	if err := i.WaitSynced(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.Close()
	select {
	case err := <-done:
		if err == nil {
			t.Error("a view that ended with its client says nothing of it")
		}
	case <-time.After(5 * time.Second):
		t.Fatal("Watch goes on after Close")
	}
}

func TestKubeconfig(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "ca.crt"), []byte("CA"), 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "config")
	text := `
current-context: one
clusters:
- {name: c, cluster: {server: "https://x:1", certificate-authority: ca.crt, tls-server-name: name}}
users:
- {name: u, user: {client-certificate: a.crt, client-key-data: ` + base64.StdEncoding.EncodeToString([]byte("KEY")) + `}}
- {name: e, user: {exec: {command: x}}}
contexts:
- {name: one, context: {cluster: c, user: u}}
- {name: run, context: {cluster: c, user: e}}
- {name: lost, context: {cluster: none, user: u}}
`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := remote.FromKubeconfig(path, "")
	if err != nil || cfg.Server != "https://x:1" || string(cfg.CA) != "CA" || cfg.ServerName != "name" || cfg.CertFile != filepath.Join(dir, "a.crt") || string(cfg.Key) != "KEY" {
		t.Errorf("%+v, %v", cfg, err)
	}
	for context, want := range map[string]string{"run": "program", "lost": `"none"`, "two": `"two"`} {
		if _, err := remote.FromKubeconfig(path, context); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", context, err)
		}
	}
}
