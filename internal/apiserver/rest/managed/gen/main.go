// Command gen writes the schema of the built-in types, as the apply
// configurations of client-go and apiextensions-apiserver hold it, in the short
// form that package managed reads.
package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"sigs.k8s.io/structured-merge-diff/v6/schema"
	"sigs.k8s.io/structured-merge-diff/v6/typed"

	"github.com/proa-dev/proa/internal/apiserver/rest/managed"
)

const output = "zz_generated.schema.gz"

// sources are the files that hold a schema as text, by module.
var sources = map[string]string{
	"k8s.io/client-go":               "applyconfigurations/internal/internal.go",
	"k8s.io/apiextensions-apiserver": "pkg/client/applyconfiguration/internal/internal.go",
}

// others are the types of which no apply configurations are published: their
// markers read by hand from kube-aggregator and k8s.io/api.
const others = `types:
- name: io.k8s.kube-aggregator.pkg.apis.apiregistration.v1.APIService
  map:
    fields:
    - {name: apiVersion, type: {scalar: string}}
    - {name: kind, type: {scalar: string}}
    - {name: metadata, type: {namedType: io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta}, default: {}}
    - {name: spec, type: {namedType: io.k8s.kube-aggregator.pkg.apis.apiregistration.v1.APIServiceSpec}, default: {}}
    - {name: status, type: {namedType: io.k8s.kube-aggregator.pkg.apis.apiregistration.v1.APIServiceStatus}, default: {}}
- name: io.k8s.kube-aggregator.pkg.apis.apiregistration.v1.APIServiceSpec
  map:
    fields:
    - {name: caBundle, type: {scalar: string}}
    - {name: group, type: {scalar: string}}
    - {name: groupPriorityMinimum, type: {scalar: numeric}, default: 0}
    - {name: insecureSkipTLSVerify, type: {scalar: boolean}}
    - {name: service, type: {namedType: io.k8s.kube-aggregator.pkg.apis.apiregistration.v1.ServiceReference}}
    - {name: version, type: {scalar: string}}
    - {name: versionPriority, type: {scalar: numeric}, default: 0}
- name: io.k8s.kube-aggregator.pkg.apis.apiregistration.v1.ServiceReference
  map:
    fields:
    - {name: name, type: {scalar: string}}
    - {name: namespace, type: {scalar: string}}
    - {name: port, type: {scalar: numeric}}
- name: io.k8s.kube-aggregator.pkg.apis.apiregistration.v1.APIServiceStatus
  map:
    fields:
    - name: conditions
      type:
        list:
          elementType: {namedType: io.k8s.kube-aggregator.pkg.apis.apiregistration.v1.APIServiceCondition}
          elementRelationship: associative
          keys: [type]
- name: io.k8s.kube-aggregator.pkg.apis.apiregistration.v1.APIServiceCondition
  map:
    fields:
    - {name: lastTransitionTime, type: {namedType: io.k8s.apimachinery.pkg.apis.meta.v1.Time}}
    - {name: message, type: {scalar: string}}
    - {name: reason, type: {scalar: string}}
    - {name: status, type: {scalar: string}, default: ""}
    - {name: type, type: {scalar: string}, default: ""}
- name: io.k8s.api.autoscaling.v1.Scale
  map:
    fields:
    - {name: apiVersion, type: {scalar: string}}
    - {name: kind, type: {scalar: string}}
    - {name: metadata, type: {namedType: io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta}, default: {}}
    - {name: spec, type: {namedType: io.k8s.api.autoscaling.v1.ScaleSpec}, default: {}}
    - {name: status, type: {namedType: io.k8s.api.autoscaling.v1.ScaleStatus}, default: {}}
- name: io.k8s.api.autoscaling.v1.ScaleSpec
  map:
    fields:
    - {name: replicas, type: {scalar: numeric}}
- name: io.k8s.api.autoscaling.v1.ScaleStatus
  map:
    fields:
    - {name: replicas, type: {scalar: numeric}, default: 0}
    - {name: selector, type: {scalar: string}}
`

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

func run() error {
	types := map[string]managed.Type{}
	for _, module := range slices.Sorted(maps.Keys(sources)) {
		text, err := read(module, sources[module])
		if err != nil {
			return err
		}
		if err := add(types, text); err != nil {
			return fmt.Errorf("%s: %w", module, err)
		}
	}
	if err := add(types, others); err != nil {
		return err
	}
	var out bytes.Buffer
	z, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(types)) {
		b, err := json.Marshal(types[name])
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(z, "%s %s\n", name, b); err != nil {
			return err
		}
	}
	if err := z.Close(); err != nil {
		return err
	}
	return os.WriteFile(output, out.Bytes(), 0o644)
}

// read returns the schema in a file of a module.
func read(module, file string) (string, error) {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	if err != nil {
		return "", fmt.Errorf("find %s: %w", module, err)
	}
	source, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), filepath.FromSlash(file)))
	if err != nil {
		return "", err
	}
	_, text, ok := strings.Cut(string(source), "typed.YAMLObject(`")
	if !ok {
		return "", fmt.Errorf("%s does not hold its schema where it did", module)
	}
	text, _, _ = strings.Cut(text, "`)")
	return text, nil
}

func add(types map[string]managed.Type, text string) error {
	parser, err := typed.NewParser(typed.YAMLObject(text))
	if err != nil {
		return fmt.Errorf("parse the schema: %w", err)
	}
	for _, t := range parser.Schema.Types {
		if _, ok := types[t.Name]; !ok {
			types[t.Name] = atom(t.Atom)
		}
	}
	return nil
}

func atom(a schema.Atom) managed.Type {
	var t managed.Type
	if a.Scalar != nil {
		t.Scalar = string(*a.Scalar)
	}
	if a.List != nil {
		t.List = &managed.List{Element: ref(a.List.ElementType), Relationship: string(a.List.ElementRelationship), Keys: a.List.Keys}
	}
	if a.Map != nil {
		t.Map = &managed.Map{Element: ref(a.Map.ElementType), Relationship: string(a.Map.ElementRelationship)}
		for _, f := range a.Map.Fields {
			t.Map.Fields = append(t.Map.Fields, managed.Field{Name: f.Name, Type: ref(f.Type), Default: scalar(f.Default)})
		}
	}
	return t
}

func ref(r schema.TypeRef) managed.Ref {
	out := managed.Ref{Type: atom(r.Inlined)}
	if r.NamedType != nil {
		out.Name = *r.NamedType
	}
	if r.ElementRelationship != nil {
		out.Relationship = string(*r.ElementRelationship)
	}
	return out
}

// scalar drops defaults that are no scalars: only list keys have use for one.
func scalar(v any) any {
	switch v.(type) {
	case string, bool, int, int64, float64:
		return v
	}
	return nil
}
