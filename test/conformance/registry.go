package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// mirror is a registry of the images that were made, for the specs that pull in any
// case; an image is put into it when it is first asked for.
type mirror struct {
	next     http.Handler
	host     string
	archives []string
	mu       sync.Mutex
	there    map[string]bool
}

func (m *mirror) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// Who asks a mirror says for which registry; what put asks itself goes through.
	if repository, _, ok := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/manifests/"); ok && r.URL.Query().Has("ns") {
		if err := m.put(r.Context(), repository); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
	}
	m.next.ServeHTTP(w, r)
}

// put adds every archive that has a name in the repository.
func (m *mirror) put(ctx context.Context, repository string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.there[repository] {
		return nil
	}
	for _, archive := range m.archives {
		manifest, err := tarball.LoadManifest(func() (io.ReadCloser, error) { return os.Open(archive) })
		if err != nil {
			return fmt.Errorf("read %s: %w", archive, err)
		}
		for _, image := range manifest {
			for _, tag := range image.RepoTags {
				from, err := name.NewTag(tag)
				if err != nil || from.RepositoryStr() != repository {
					continue
				}
				img, err := tarball.ImageFromPath(archive, &from)
				if err != nil {
					return fmt.Errorf("read %s: %w", archive, err)
				}
				to, err := name.NewTag(m.host+"/"+repository+":"+from.TagStr(), name.Insecure)
				if err != nil {
					return err
				}
				if err := remote.Write(to, img, remote.WithContext(ctx)); err != nil {
					return fmt.Errorf("put %s into the registry: %w", tag, err)
				}
			}
		}
	}
	m.there[repository] = true
	return nil
}

// firstNode is the address of the first of several nodes that are one machine.
const firstNode = "10.245.0.1"

// mirrored serves the archives until stop is called, and returns the folder that
// makes proa pull from there.
func (r *runner) mirrored(archives []string) (folder string, stop func(), err error) {
	// Several nodes reach the registry at the address of the first one.
	at, host := "127.0.0.1:0", "127.0.0.1"
	if r.nodes > 1 {
		at, host = ":0", firstNode
	}
	l, err := net.Listen("tcp4", at)
	if err != nil {
		return "", nil, err
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return "", nil, err
	}
	m := &mirror{next: registry.New(registry.Logger(log.New(os.Stderr, "registry: ", 0))), host: net.JoinHostPort(host, port), archives: archives, there: map[string]bool{}}
	server := &http.Server{Handler: m, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(l) }()
	stop = func() { _ = server.Close(); <-done }
	folder = filepath.Join(r.cache, "registries")
	of := filepath.Join(folder, "registry.k8s.io")
	if err = os.MkdirAll(of, 0o755); err == nil {
		err = os.WriteFile(filepath.Join(of, "hosts.toml"), fmt.Appendf(nil, "[host.\"http://%s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", m.host), 0o644)
	}
	if err != nil {
		stop()
		return "", nil, fmt.Errorf("name the mirror: %w", err)
	}
	return folder, stop, nil
}
