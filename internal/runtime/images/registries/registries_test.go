package registries

import (
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func write(t testing.TB, folder, registry, text string) {
	t.Helper()
	dir := filepath.Join(folder, registry)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestOf(t *testing.T) {
	folder := t.TempDir()
	write(t, folder, "docker.io", `
server = "https://registry-1.docker.io"
[host."http://z.example:5000"]
  capabilities = ["pull", "resolve"]
[host."https://push.example"]
  capabilities = ["push"]
[host."a.example/cache"]
  capabilities = ["pull", "resolve", "push"]
  [host."a.example/cache".header]
    Authorization = "Basic x"
    x-several = ["1", "2"]
`)
	write(t, folder, "_default", "[host.\"http://127.0.0.1:1\"]\n")
	for _, c := range []struct{ registry, want string }{
		{"docker.io", "http z.example:5000 mirror, https a.example mirror /cache/v2, https registry-1.docker.io"},
		{"other.example", "http 127.0.0.1:1 mirror, https other.example"},
	} {
		list, err := Of(folder, c.registry)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, e := range list {
			s := "https " + e.Host
			if e.Insecure {
				s = "http " + e.Host
			}
			if e.Mirror {
				s += " mirror"
			}
			if e.Path != "" {
				s += " " + e.Path
			}
			got = append(got, s)
		}
		if s := strings.Join(got, ", "); s != c.want {
			t.Errorf("%s: %s, want %s", c.registry, s, c.want)
		}
	}
	list, err := Of(t.TempDir(), "docker.io")
	if err != nil || len(list) != 1 || list[0].Host != "index.docker.io" || list[0].Mirror {
		t.Errorf("without a folder: %+v, %v", list, err)
	}
}

func TestMistakesAreNamed(t *testing.T) {
	for text, says := range map[string]string{
		"server = ":                            "line 1",
		"srever = 'x'":                         "srever",
		"[host.'ftp://x']":                     "not an http or https address",
		"[host.'x']\nca = 3":                   "ca: want a string",
		"[host.'x']\nca = 'none.pem'":          "none.pem",
		"[host.'x']\nclient = ['a','b','c']":   "a.pem",
		"[host.'x']\nclient = [['a','b','c']]": "certificate and key",
		"[host.'x'.header]\nA = 1":             "header A",
	} {
		folder := t.TempDir()
		write(t, folder, "r.example", text)
		_, err := Of(folder, "r.example")
		if err == nil || !strings.Contains(err.Error(), "r.example") || !strings.Contains(err.Error(), strings.TrimSuffix(says, ".pem")) {
			t.Errorf("%s: %v, want %q in it", text, err, says)
		}
	}
}

// What a host wants is added to its own requests, and not to those of others.
func TestRequestsOfAHost(t *testing.T) {
	var got []string
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = append(got, r.URL.String()+" "+r.Header.Get("X-Key"))
	})
	server := httptest.NewTLSServer(handler)
	defer server.Close()
	folder := t.TempDir()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.MkdirAll(filepath.Join(folder, "r.example"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, "r.example", "ca.crt"), ca, 0o600); err != nil {
		t.Fatal(err)
	}
	write(t, folder, "r.example", `[host."`+server.URL+`/v2/cache"]`+"\nca = 'ca.crt'\noverride_path = true\n[host.\""+server.URL+"/v2/cache\".header]\nx-key = 'k'\n")
	list, err := Of(folder, "r.example")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/v2/team/app/manifests/1?x=y", "/token"} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := list[0].RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
	if want := "/v2/cache/team/app/manifests/1?ns=r.example&x=y k, /token?ns=r.example k"; strings.Join(got, ", ") != want {
		t.Errorf("got %s, want %s", strings.Join(got, ", "), want)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("server = 'https://x'\n[host.'http://y']\nca = ['a']\n")
	f.Add("[host.\"a\".header]\nk = 'v'")
	f.Fuzz(func(t *testing.T, text string) {
		folder := t.TempDir()
		write(t, folder, "r.example", text)
		list, err := Of(folder, "r.example")
		if err == nil && len(list) == 0 && !strings.Contains(text, "capabilities") {
			t.Error("neither a place nor an error")
		}
	})
}
