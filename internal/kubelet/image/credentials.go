package image

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path"
	"slices"
	"sort"
	"strings"
	"sync"

	"github.com/distribution/reference"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// credential is a login for a registry; hash names it without revealing it.
type credential struct {
	auth  *runtimeapi.AuthConfig
	hash  string
	match string
}

type dockerEntry struct {
	Username      string `json:"username"`
	Password      string `json:"password"`
	Auth          string `json:"auth"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

// credentials returns the logins that fit an image, the most specific first.
func credentials(image string, secrets []*corev1.Secret) []credential {
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return nil
	}
	repo := named.Name()
	var out []credential
	for _, s := range secrets {
		entries := map[string]dockerEntry{}
		switch s.Type {
		case corev1.SecretTypeDockerConfigJson:
			var file struct {
				Auths map[string]dockerEntry `json:"auths"`
			}
			if json.Unmarshal(s.Data[corev1.DockerConfigJsonKey], &file) != nil {
				continue
			}
			entries = file.Auths
		case corev1.SecretTypeDockercfg:
			if json.Unmarshal(s.Data[corev1.DockerConfigKey], &entries) != nil {
				continue
			}
		}
		for pattern, e := range entries {
			if !matches(pattern, repo) {
				continue
			}
			out = append(out, makeCredential(pattern, e))
		}
	}
	sort.SliceStable(out, func(i, j int) bool {
		if len(out[i].match) != len(out[j].match) {
			return len(out[i].match) > len(out[j].match)
		}
		return out[i].hash < out[j].hash
	})
	return slices.CompactFunc(out, func(a, b credential) bool { return a.hash == b.hash })
}

func makeCredential(pattern string, e dockerEntry) credential {
	user, pass := e.Username, e.Password
	if e.Auth != "" {
		raw, err := base64.StdEncoding.DecodeString(strings.TrimRight(e.Auth, "\x00"))
		if err != nil {
			raw, err = base64.RawStdEncoding.DecodeString(strings.TrimRight(e.Auth, "="))
		}
		if err == nil {
			if u, p, ok := strings.Cut(string(raw), ":"); ok {
				user, pass = u, p
			}
		}
	}
	auth := &runtimeapi.AuthConfig{
		Username: user, Password: pass,
		IdentityToken: e.IdentityToken, RegistryToken: e.RegistryToken,
	}
	sum := sha256.New()
	for _, s := range []string{user, pass, e.IdentityToken, e.RegistryToken} {
		sum.Write([]byte(s))
		sum.Write([]byte{0})
	}
	return credential{auth: auth, hash: hex.EncodeToString(sum.Sum(nil)), match: pattern}
}

// matches reports whether the key of a docker config ("host", "*.host/path",
// "https://host/v1/") names the registry, or a part of it, that holds repo.
func matches(pattern, repo string) bool {
	if !strings.Contains(pattern, "://") {
		pattern = "https://" + pattern
	}
	u, err := url.Parse(pattern)
	if err != nil || u.Host == "" {
		return false
	}
	host, rest, _ := strings.Cut(repo, "/")
	want := u.Host
	if want == "index.docker.io" || want == "registry-1.docker.io" {
		want = "docker.io"
	}
	wantParts, parts := strings.Split(want, "."), strings.Split(host, ".")
	if len(wantParts) != len(parts) {
		return false
	}
	for i := range parts {
		if ok, err := path.Match(wantParts[i], parts[i]); err != nil || !ok {
			return false
		}
	}
	p := strings.Trim(u.Path, "/")
	if p == "v1" || p == "v2" {
		p = ""
	}
	return p == "" || rest == p || strings.HasPrefix(rest, p+"/")
}

// records remembers with which logins an image was pulled (KEP-2535): a private
// image in the cache is not free for every pod. An image without a record was
// brought by other means (preloaded, imported) and is free.
type records struct {
	file string
	log  *slog.Logger

	mu   sync.Mutex
	byID map[string]*record
}

type record struct {
	// Public: a pull without a login succeeded.
	Public bool     `json:"public,omitempty"`
	Logins []string `json:"logins,omitempty"`
}

func openRecords(file string, log *slog.Logger) *records {
	r := &records{file: file, log: log, byID: map[string]*record{}}
	if file == "" {
		return r
	}
	data, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(data, &r.byID)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Warn("reading image pull records", "err", err)
	}
	if r.byID == nil {
		r.byID = map[string]*record{}
	}
	return r
}

func (r *records) allowed(id string, creds []credential) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	rec := r.byID[id]
	if rec == nil || rec.Public {
		return true
	}
	for i := range creds {
		if slices.Contains(rec.Logins, creds[i].hash) {
			return true
		}
	}
	return false
}

func (r *records) add(id string, used *credential) {
	r.mu.Lock()
	defer r.mu.Unlock()
	rec := r.byID[id]
	if rec == nil {
		rec = &record{}
		r.byID[id] = rec
	}
	switch {
	case used == nil:
		if rec.Public {
			return
		}
		rec.Public, rec.Logins = true, nil
	case rec.Public || slices.Contains(rec.Logins, used.hash):
		return
	default:
		rec.Logins = append(rec.Logins, used.hash)
	}
	if r.file == "" {
		return
	}
	data, err := json.Marshal(r.byID)
	if err == nil {
		tmp := r.file + ".tmp"
		if err = os.WriteFile(tmp, data, 0o600); err == nil {
			err = os.Rename(tmp, r.file)
		}
	}
	if err != nil {
		r.log.Warn("writing image pull records", "err", err)
	}
}
