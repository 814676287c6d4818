package remote

import (
	"fmt"
	"os"
	"path/filepath"

	"sigs.k8s.io/yaml"
)

// FromKubeconfig reads a context of a kubeconfig file ("": the current one).
// Credentials that a program is to be run for are refused.
func FromKubeconfig(path, context string) (Config, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return Config{}, fmt.Errorf("read the kubeconfig: %w", err)
	}
	var f struct {
		Current  string `json:"current-context"`
		Clusters []struct {
			Name    string `json:"name"`
			Cluster struct {
				Server   string `json:"server"`
				CAData   []byte `json:"certificate-authority-data"`
				CA       string `json:"certificate-authority"`
				Insecure bool   `json:"insecure-skip-tls-verify"`
				Name     string `json:"tls-server-name"`
			} `json:"cluster"`
		} `json:"clusters"`
		Users []struct {
			Name string `json:"name"`
			User struct {
				CertData  []byte `json:"client-certificate-data"`
				KeyData   []byte `json:"client-key-data"`
				Cert      string `json:"client-certificate"`
				Key       string `json:"client-key"`
				Token     string `json:"token"`
				TokenFile string `json:"tokenFile"`
				Exec      any    `json:"exec"`
			} `json:"user"`
		} `json:"users"`
		Contexts []struct {
			Name    string `json:"name"`
			Context struct {
				Cluster string `json:"cluster"`
				User    string `json:"user"`
			} `json:"context"`
		} `json:"contexts"`
	}
	if err := yaml.Unmarshal(b, &f); err != nil {
		return Config{}, fmt.Errorf("read the kubeconfig %s: %w", path, err)
	}
	if context == "" {
		context = f.Current
	}
	beside := func(name string) string { // paths are relative to the file
		if name == "" || filepath.IsAbs(name) {
			return name
		}
		return filepath.Join(filepath.Dir(path), name)
	}
	for _, c := range f.Contexts {
		if c.Name != context {
			continue
		}
		var out Config
		for _, x := range f.Clusters {
			if x.Name != c.Context.Cluster {
				continue
			}
			out.Server, out.CA, out.ServerName, out.Insecure = x.Cluster.Server, x.Cluster.CAData, x.Cluster.Name, x.Cluster.Insecure
			if len(out.CA) == 0 && x.Cluster.CA != "" {
				if out.CA, err = os.ReadFile(beside(x.Cluster.CA)); err != nil {
					return Config{}, fmt.Errorf("read the server's authorities: %w", err)
				}
			}
		}
		if out.Server == "" {
			return Config{}, fmt.Errorf("the kubeconfig %s has no server of cluster %q", path, c.Context.Cluster)
		}
		for _, x := range f.Users {
			if x.Name != c.Context.User {
				continue
			}
			if x.User.Exec != nil {
				return Config{}, fmt.Errorf("the kubeconfig %s: user %q gets credentials from a program, which is not supported", path, x.Name)
			}
			out.Cert, out.Key, out.CertFile, out.KeyFile = x.User.CertData, x.User.KeyData, beside(x.User.Cert), beside(x.User.Key)
			out.Token, out.TokenFile = x.User.Token, beside(x.User.TokenFile)
		}
		return out, nil
	}
	return Config{}, fmt.Errorf("the kubeconfig %s has no context %q", path, context)
}
