// Package architecture checks the direction of imports that docs/architecture.md
// draws.
package architecture

import (
	"encoding/json"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/proa-dev/proa"

type pkg struct {
	ImportPath string
	Imports    []string
}

// room is the folder of the picture that a package belongs to.
func room(path string) string {
	p := strings.TrimPrefix(strings.TrimPrefix(path, module), "/")
	parts := strings.Split(p, "/")
	switch {
	case parts[0] == "internal" && len(parts) > 2 && parts[1] == "network":
		return "network/" + parts[2]
	case parts[0] == "internal" && len(parts) > 1:
		return parts[1]
	}
	return parts[0]
}

// may lists what each room imports of the project, besides itself.
var may = map[string][]string{
	"cmd":                  {"cluster", "runtime", "client"},
	"proatest":             {"cluster", "client", "api"},
	"cluster":              {"*"},
	"apiserver":            {"api", "store"},
	"controllers":          {"client", "api"},
	"scheduler":            {"client", "api"},
	"kubelet":              {"client", "api"},
	"dashboard":            {"client", "api"},
	"network/podnet":       {"client", "api", "network/nft"},
	"network/kubeproxy":    {"client", "api", "network/nft"},
	"network/policy":       {"client", "api", "network/nft"},
	"network/routes":       {"client", "api"},
	"network/nft":          {}, // the rules that the network parts build from
	"network/dns":          {"client", "api"},
	"network/loadbalancer": {"client", "api"},
	"runtime":              {},
	"client":               {"api"},
	"store":                {},
	"api":                  {},
	"test":                 {"*"},
	"examples":             {},
	"third_party":          {},
}

func TestImportsFollowTheArchitecture(t *testing.T) {
	for _, p := range list(t) {
		from := room(p.ImportPath)
		allowed, known := may[from]
		if !known {
			t.Errorf("%s: package is in no room of docs/architecture.md", p.ImportPath)
			continue
		}
		for _, i := range p.Imports {
			if strings.HasPrefix(i, "k8s.io/kubernetes") {
				t.Errorf("%s imports %s: only test/conformance may", p.ImportPath, i)
			}
			if i != module && !strings.HasPrefix(i, module+"/") {
				continue
			}
			if to := room(i); to != from && !slices.Contains(allowed, "*") && !slices.Contains(allowed, to) {
				t.Errorf("%s imports %s: %s may import only %v of the project", p.ImportPath, i, from, allowed)
			}
		}
	}
}

// One reachable call of these keeps every exported method in the binary
// (docs/dependencies.md), so product code does not import them.
var banned = []string{"text/template", "html/template", "golang.org/x/net/trace", "github.com/google/go-cmp/cmp",
	"k8s.io/client-go/kubernetes", "k8s.io/client-go/informers", "k8s.io/client-go/kubernetes/scheme"}

func TestProductCodeKeepsTheBinarySmall(t *testing.T) {
	for _, p := range list(t) {
		if r := room(p.ImportPath); r == "test" || r == "third_party" || p.ImportPath == module+"/cmd/kubectl" {
			continue
		}
		for _, i := range p.Imports {
			if slices.Contains(banned, i) {
				t.Errorf("%s imports %s", p.ImportPath, i)
			}
		}
	}
}

func list(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", "./...")
	cmd.Dir = filepath.Join("..", "..")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
	if len(pkgs) < 10 {
		t.Fatalf("go list found only %d packages", len(pkgs))
	}
	return pkgs
}
