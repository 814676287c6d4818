// Command generate makes zz_generated.models.json.zst, the OpenAPI models of the
// built-in types. It runs openapi-gen (pinned by the module's version of
// kube-openapi) in a module of its own in a temporary directory, so that neither
// the generator nor the Go code that it writes becomes a part of this module;
// renders the models to JSON; and adds the kinds that each model stands for. It
// runs from `go generate` in package openapi.
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"sort"
	"strings"

	"github.com/klauspost/compress/zstd"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/proa-dev/proa/internal/api/resources"
)

// shared are packages whose types the groups' types are made of.
var shared = []string{
	"k8s.io/apimachinery/pkg/apis/meta/v1",
	"k8s.io/apimachinery/pkg/runtime",
	"k8s.io/apimachinery/pkg/version",
	"k8s.io/apimachinery/pkg/api/resource",
	"k8s.io/apimachinery/pkg/util/intstr",
}

// owners are modules in which openapi-gen may not write.
var owners = []string{"k8s.io/api", "k8s.io/apimachinery", "k8s.io/apiextensions-apiserver", "k8s.io/kube-aggregator"}

// render is the program that prints the generated models.
const render = `package main

import (
	"encoding/json"
	"os"

	"k8s.io/kube-openapi/pkg/builder3/util"
	"k8s.io/kube-openapi/pkg/common"
	"k8s.io/kube-openapi/pkg/validation/spec"

	models "models.invalid/models"
)

func main() {
	type model struct{ V2, V3 *spec.Schema }
	out := map[string]model{}
	v3 := models.GetOpenAPIDefinitions(func(name string) spec.Ref { return spec.MustCreateRef("#/components/schemas/" + name) })
	for name, d := range models.GetOpenAPIDefinitions(func(name string) spec.Ref { return spec.MustCreateRef("#/definitions/" + name) }) {
		s2 := d.Schema
		if v, ok := s2.Extensions[common.ExtensionV2Schema]; ok {
			s2 = v.(spec.Schema)
		}
		s3 := v3[name].Schema
		delete(s3.Extensions, common.ExtensionV2Schema)
		out[name] = model{V2: &s2, V3: util.WrapRefs(&s3)}
	}
	if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
		panic(err)
	}
}
`

func main() {
	out := flag.String("out", "zz_generated.models.json.zst", "file to write")
	flag.Parse()
	if err := run(*out); err != nil {
		log.Fatal(err)
	}
}

type model struct {
	Name string          `json:"name"`
	Refs []string        `json:"refs,omitempty"`
	V2   json.RawMessage `json:"v2"`
	V3   json.RawMessage `json:"v3"`
}

func run(out string) error {
	scheme := resources.Scheme()
	raw, err := generate(packages(scheme))
	if err != nil {
		return err
	}
	var rendered map[string]struct{ V2, V3 map[string]any }
	if err := json.Unmarshal(raw, &rendered); err != nil {
		return fmt.Errorf("read the rendered models: %w", err)
	}
	kinds := modelKinds(scheme)
	names := make([]string, 0, len(rendered))
	for name := range rendered {
		names = append(names, name)
	}
	sort.Strings(names)
	var lines bytes.Buffer
	for _, name := range names {
		r := rendered[name]
		prune(r.V2)
		if gvks := kinds[name]; len(gvks) > 0 {
			r.V2["x-kubernetes-group-version-kind"] = gvks
			r.V3["x-kubernetes-group-version-kind"] = gvks
		}
		m := model{Name: name}
		if m.V2, err = json.Marshal(r.V2); err != nil {
			return err
		}
		if m.V3, err = json.Marshal(r.V3); err != nil {
			return err
		}
		m.Refs = refs(m.V3)
		for _, ref := range m.Refs {
			if _, ok := rendered[ref]; !ok {
				return fmt.Errorf("%s refers to %s, which has no model", name, ref)
			}
		}
		line, err := json.Marshal(m)
		if err != nil {
			return err
		}
		lines.Write(line)
		lines.WriteByte('\n')
	}
	w, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithWindowSize(8<<20), zstd.WithEncoderCRC(true))
	if err != nil {
		return err
	}
	packed := w.EncodeAll(lines.Bytes(), nil)
	log.Printf("%d models, %d bytes, %d compressed", len(names), lines.Len(), len(packed))
	return os.WriteFile(out, packed, 0o644)
}

// packages returns those of the scheme's types and of the types that they are made
// of: a stable kind may have a field whose type is of an alpha version.
func packages(scheme *runtime.Scheme) []string {
	list := slices.Clone(shared)
	seen := map[reflect.Type]bool{}
	var visit func(t reflect.Type)
	visit = func(t reflect.Type) {
		if seen[t] {
			return
		}
		seen[t] = true
		p := t.PkgPath()
		if strings.HasPrefix(p, "k8s.io/") && !slices.Contains(list, p) && !strings.HasSuffix(p, "/testapigroup/v1") && !strings.Contains(p, "/admission/") {
			list = append(list, p)
		}
		switch t.Kind() {
		case reflect.Pointer, reflect.Slice, reflect.Map, reflect.Array:
			visit(t.Elem())
		case reflect.Struct:
			for f := range t.NumField() {
				if t.Field(f).IsExported() {
					visit(t.Field(f).Type)
				}
			}
		}
	}
	for _, t := range scheme.AllKnownTypes() {
		visit(t)
	}
	sort.Strings(list)
	return list
}

// generate runs openapi-gen and returns the models as JSON.
func generate(packages []string) ([]byte, error) {
	dir, err := os.MkdirTemp("", "openapi")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	gomod, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return nil, fmt.Errorf("find the module: %w", err)
	}
	root := filepath.Dir(strings.TrimSpace(string(gomod)))
	mod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		return nil, err
	}
	mod = regexp.MustCompile(`(?m)^module .*$`).ReplaceAll(mod, []byte("module models.invalid"))
	mod = regexp.MustCompile(`(?m)(=>\s*)\./`).ReplaceAll(mod, []byte("${1}"+root+"/"))
	sum, err := os.ReadFile(filepath.Join(root, "go.sum"))
	if err != nil {
		return nil, err
	}
	version := regexp.MustCompile(`k8s\.io/kube-openapi (v\S+)`).FindSubmatch(mod)
	if version == nil {
		return nil, fmt.Errorf("go.mod does not name k8s.io/kube-openapi")
	}
	for name, data := range map[string][]byte{"go.mod": mod, "go.sum": sum, "render/main.go": []byte(render), "models/doc.go": []byte("package models\n")} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return nil, err
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			return nil, err
		}
	}
	if _, err := command(dir, "get", "-tool", "k8s.io/kube-openapi/cmd/openapi-gen@"+string(version[1])); err != nil {
		return nil, err
	}
	args := []string{"tool", "openapi-gen", "--output-dir", "models", "--output-pkg", "models.invalid/models",
		"--output-file", "zz_generated.openapi.go", "--output-model-name-file", "zz_generated.model_name.go",
		"--report-filename", filepath.Join(dir, "violations")}
	for _, o := range owners {
		args = append(args, "--readonly-pkg", o)
	}
	if _, err := command(dir, append(args, packages...)...); err != nil {
		return nil, err
	}
	return command(dir, "run", "-mod=mod", "./render")
}

func command(dir string, args ...string) ([]byte, error) {
	cmd := exec.Command("go", args...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go %s: %w\n%s", strings.Join(args[:min(3, len(args))], " "), err, stderr.Bytes())
	}
	return out, nil
}

// prune takes out of a model what OpenAPI v2 of Kubernetes does not have.
func prune(v any) {
	switch x := v.(type) {
	case map[string]any:
		// Among properties, "default" is one of them (of JSONSchemaProps).
		_, ref := x["$ref"].(string)
		_, typed := x["type"].(string)
		if ref || typed {
			delete(x, "default")
		}
		for _, c := range x {
			prune(c)
		}
	case []any:
		for _, c := range x {
			prune(c)
		}
	}
}

var refPattern = regexp.MustCompile(`"#/components/schemas/([^"]+)"`)

func refs(v3 []byte) []string {
	var list []string
	for _, m := range refPattern.FindAllSubmatch(v3, -1) {
		if name := string(m[1]); !slices.Contains(list, name) {
			list = append(list, name)
		}
	}
	sort.Strings(list)
	return list
}

// modelKinds returns the kinds of each model.
func modelKinds(scheme *runtime.Scheme) map[string][]map[string]string {
	known := scheme.AllKnownTypes()
	all := make([]schema.GroupVersionKind, 0, len(known))
	for gvk := range known {
		if gvk.Version != runtime.APIVersionInternal {
			all = append(all, gvk)
		}
	}
	slices.SortFunc(all, func(a, b schema.GroupVersionKind) int { return strings.Compare(a.String(), b.String()) })
	out := map[string][]map[string]string{}
	for _, gvk := range all {
		named, ok := reflect.New(known[gvk]).Interface().(interface{ OpenAPIModelName() string })
		if !ok {
			continue
		}
		name := named.OpenAPIModelName()
		// The options of other verbs than delete travel in the URL: they are kinds of no model.
		if strings.HasSuffix(gvk.Kind, "Options") && gvk.Kind != "DeleteOptions" && strings.Contains(name, ".meta.v1.") {
			continue
		}
		out[name] = append(out[name], map[string]string{"group": gvk.Group, "version": gvk.Version, "kind": gvk.Kind})
	}
	return out
}
