package kubectl

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/proa-dev/proa/internal/cluster/kubeconfig"
)

// Caller is who runs kubectl, and how.
type Caller struct {
	Env  []string // as os.Environ has it
	Home string
	// Admin is the path of the cluster's own kubeconfig, which root can read.
	Admin string
	// AsKubectl: called by the name kubectl, so the user's ~/.kube/config decides as
	// it always does. Otherwise proa's cluster is meant, whatever context is current.
	AsKubectl bool
}

// CacheDirs are where kubectl is unpacked to, the best first. A user takes what
// root has unpacked; root never writes into a user's home.
func CacheDirs() []string {
	dirs := []string{"/var/cache/proa"}
	if os.Geteuid() != 0 {
		if own, err := os.UserCacheDir(); err == nil {
			dirs = append(dirs, filepath.Join(own, "proa"))
		}
	}
	return append(dirs, filepath.Join(os.TempDir(), fmt.Sprintf("proa-%d", os.Geteuid())))
}

// Exec replaces this process by kubectl; it returns only on failure.
func Exec(args []string, c Caller) error {
	packed, err := Embedded()
	if err != nil {
		return err
	}
	path, err := packed.Unpack(CacheDirs()...)
	if err != nil {
		return err
	}
	env, err := c.environment(filepath.Dir(path))
	if err != nil {
		return err
	}
	if err := unix.Exec(path, append([]string{"kubectl"}, args...), env); err != nil {
		return fmt.Errorf("run %s: %w", path, err)
	}
	return nil
}

// environment adds KUBECONFIG to the caller's environment where it has none.
func (c Caller) environment(cache string) ([]string, error) {
	for _, e := range c.Env {
		if v, ok := strings.CutPrefix(e, "KUBECONFIG="); ok && v != "" {
			return c.Env, nil
		}
	}
	own := filepath.Join(c.Home, ".kube", "config")
	_, ownErr := os.Stat(own)
	hasOwn := c.Home != "" && ownErr == nil
	switch readable := unix.Access(c.Admin, unix.R_OK) == nil; {
	case c.AsKubectl && hasOwn:
		return c.Env, nil
	case readable:
		return append(c.Env, "KUBECONFIG="+c.Admin), nil
	case c.AsKubectl:
		return c.Env, nil
	case hasOwn && kubeconfig.HasContext(own):
		overlay, err := currentContext(cache)
		if err != nil {
			return nil, err
		}
		return append(c.Env, "KUBECONFIG="+overlay+string(os.PathListSeparator)+own), nil
	}
	// Nothing of this cluster can be read. Another cluster in ~/.kube/config is not
	// what was asked for, so kubectl is left to say what it could not open.
	return append(c.Env, "KUBECONFIG="+c.Admin), nil
}

// currentContext writes a kubeconfig of one line, that stands before the user's
// own one: the first file to name a current context is believed. (kubectl has
// no environment variable for the context, and a flag would have to be put
// between those of the user.)
func currentContext(cache string) (string, error) {
	if unix.Access(cache, unix.W_OK) != nil {
		dirs := CacheDirs()
		cache = dirs[len(dirs)-1]
		for _, dir := range dirs {
			if os.MkdirAll(dir, 0o755) == nil && trusted(dir) && unix.Access(dir, unix.W_OK) == nil {
				cache = dir
				break
			}
		}
	}
	const text = "apiVersion: v1\nkind: Config\ncurrent-context: " + kubeconfig.Name + "\n"
	path := filepath.Join(cache, "context.kubeconfig")
	if b, err := os.ReadFile(path); err == nil && string(b) == text {
		return path, nil
	}
	f, err := os.CreateTemp(cache, ".context-*")
	if err != nil {
		return "", fmt.Errorf("choose the context: %w", err)
	}
	_, err = f.WriteString(text)
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return "", fmt.Errorf("choose the context: %w", err)
	}
	return path, nil
}
