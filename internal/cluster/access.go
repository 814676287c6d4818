package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/proa-dev/proa/internal/cluster/kubeconfig"
)

// serverURL is how this machine's programs reach an API server that listens so.
func serverURL(listen string) string {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return "https://" + listen
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return "https://" + net.JoinHostPort(host, port)
}

// merged lists the kubeconfigs of users that the cluster was written into.
func merged(data string) string { return filepath.Join(data, "merged-kubeconfigs") }

// writeKubeconfigs writes the administrator's kubeconfig, and the cluster into the
// user's.
func (c *cluster) writeKubeconfigs() error {
	entry := kubeconfig.Entry{Server: serverURL(c.Listen), CA: c.ca.CertPEM, Cert: c.admin.CertPEM, Key: c.admin.KeyPEM}
	b, err := kubeconfig.New(entry)
	if err == nil {
		err = kubeconfig.Write(Kubeconfig(c.DataDir), b, os.Geteuid(), os.Getegid())
	}
	if err != nil {
		return fmt.Errorf("write the administrator's kubeconfig: %w", err)
	}
	if c.Config.Kubeconfig == "" {
		return nil
	}
	// Noted first: a reset must find what a crash left.
	if err := note(c.DataDir, c.Config.Kubeconfig); err != nil {
		return err
	}
	if _, err := kubeconfig.Merge(c.Config.Kubeconfig, entry, c.Owner); err != nil {
		// The cluster is of use without it, and the file is the user's to mend.
		c.log.Warn("the user's kubeconfig was left as it is", "err", err)
		c.Progress(err.Error())
	}
	return nil
}

func note(data, path string) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return fmt.Errorf("note the kubeconfig: %w", err)
	}
	b, err := os.ReadFile(merged(data))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("note the kubeconfig: %w", err)
	}
	if slices.Contains(strings.Split(string(b), "\n"), path) {
		return nil
	}
	if err := os.WriteFile(merged(data), append(b, path+"\n"...), 0o600); err != nil {
		return fmt.Errorf("note the kubeconfig: %w", err)
	}
	return nil
}

// forgetKubeconfigs takes the cluster out of the kubeconfigs of users.
func forgetKubeconfigs(data string) error {
	b, err := os.ReadFile(merged(data))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("take the cluster out of kubeconfigs: %w", err)
	}
	ca, err := os.ReadFile(filepath.Join(pkiDir(data), "ca.crt"))
	if err != nil {
		return fmt.Errorf("take the cluster out of kubeconfigs: %w", err)
	}
	var errs []error
	for path := range strings.FieldsFuncSeq(string(b), func(r rune) bool { return r == '\n' }) {
		owner := kubeconfig.User{UID: os.Geteuid(), GID: os.Getegid()}
		var st unix.Stat_t
		if unix.Stat(path, &st) == nil {
			owner = kubeconfig.User{UID: int(st.Uid), GID: int(st.Gid)}
		}
		errs = append(errs, kubeconfig.Remove(path, ca, owner))
	}
	return errors.Join(errs...)
}
