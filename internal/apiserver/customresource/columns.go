package customresource

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/client-go/util/jsonpath"

	"github.com/proa-dev/proa/internal/api"
)

// age is the column of definitions that name none.
var age = apiextensionsv1.CustomResourceColumnDefinition{Name: "Age", Type: "date", JSONPath: ".metadata.creationTimestamp",
	Description: metav1.ObjectMeta{}.SwaggerDoc()["creationTimestamp"]}

// columns returns how a version is printed. A path that cannot be read leaves
// the names alone, as in Kubernetes.
func columns(v *apiextensionsv1.CustomResourceDefinitionVersion) ([]metav1.TableColumnDefinition, func(api.Object) []any) {
	list := v.AdditionalPrinterColumns
	if len(list) == 0 {
		list = []apiextensionsv1.CustomResourceColumnDefinition{age}
	}
	heads := []metav1.TableColumnDefinition{{Name: "Name", Type: "string", Format: "name", Description: metav1.ObjectMeta{}.SwaggerDoc()["name"]}}
	paths := make([]*path, 0, len(list))
	for i := range list {
		c := &list[i]
		p, err := parsePath(c.JSONPath)
		if err != nil {
			break
		}
		description := c.Description
		if description == "" {
			description = "Custom resource definition column (in JSONPath format): " + c.JSONPath
		}
		heads = append(heads, metav1.TableColumnDefinition{Name: c.Name, Type: c.Type, Format: c.Format, Description: description, Priority: c.Priority})
		paths = append(paths, p)
	}
	row := func(obj api.Object) []any {
		cells := make([]any, 1, 1+len(paths))
		cells[0] = obj.GetName()
		content := obj.(*unstructured.Unstructured).Object
		for i, p := range paths {
			value, found := p.find(content)
			switch {
			case !found:
				cells = append(cells, nil)
			case heads[i+1].Type == "string":
				cells = append(cells, p.text(value))
			default:
				cells = append(cells, cell(heads[i+1].Type, value))
			}
		}
		return cells
	}
	return heads, row
}

// cell is a value as a column of a type shows it; nil when it is of another.
func cell(kind string, value any) any {
	switch kind {
	case "integer":
		switch n := value.(type) {
		case int64:
			return n
		case float64:
			return int64(n)
		}
	case "number":
		switch n := value.(type) {
		case int64:
			return float64(n)
		case float64:
			return n
		}
	case "boolean":
		if b, ok := value.(bool); ok {
			return b
		}
	case "date":
		if s, ok := value.(string); ok {
			t, err := time.Parse(time.RFC3339, s)
			if err != nil {
				return "<invalid>"
			}
			if t.IsZero() {
				return "<unknown>"
			}
			return duration.HumanDuration(time.Since(t))
		}
	}
	return nil
}

// path finds a value: most paths are plain names, for which a walk is enough.
type path struct {
	plain []string
	full  string
}

func parsePath(s string) (*path, error) {
	p := &path{full: "{" + s + "}"}
	if err := jsonpath.New("").Parse(p.full); err != nil {
		return nil, fmt.Errorf("read the path %s: %w", s, err)
	}
	if rest, ok := strings.CutPrefix(s, "."); ok && !strings.ContainsAny(rest, `[]()*?@\'"{}$ `) && !strings.Contains(rest, "..") && rest != "" {
		p.plain = strings.Split(rest, ".")
	}
	return p, nil
}

// find returns the first value that the path leads to.
func (p *path) find(content map[string]any) (any, bool) {
	if p.plain != nil {
		var at any = content
		for _, name := range p.plain {
			m, ok := at.(map[string]any)
			if !ok {
				return nil, false
			}
			if at, ok = m[name]; !ok {
				return nil, false
			}
		}
		return at, true
	}
	// A parsed path cannot be shared: it keeps what it found.
	j := jsonpath.New("").AllowMissingKeys(true)
	if j.Parse(p.full) != nil {
		return nil, false
	}
	results, err := j.FindResults(content)
	if err != nil || len(results) == 0 || len(results[0]) == 0 || !results[0][0].IsValid() || !results[0][0].CanInterface() {
		return nil, false
	}
	return results[0][0].Interface(), true
}

// text prints a value as kubectl's JSON path does.
func (p *path) text(value any) any {
	switch v := value.(type) {
	case nil:
		return "<no value>"
	case string:
		return v
	case map[string]any, []any:
		b, err := jsonText(v)
		if err != nil {
			return nil
		}
		return b
	}
	return fmt.Sprint(value)
}

// selectable returns the field selectors of a version.
func selectable(list []apiextensionsv1.SelectableField) (func(api.Object) fields.Set, []string) {
	if len(list) == 0 {
		return nil, nil
	}
	labels := make([]string, len(list))
	paths := make([]*path, len(list))
	for i, f := range list {
		labels[i] = strings.TrimPrefix(f.JSONPath, ".")
		paths[i], _ = parsePath(f.JSONPath) // validation has read it
	}
	return func(obj api.Object) fields.Set {
		content := obj.(*unstructured.Unstructured).Object
		set := make(fields.Set, len(paths))
		for i, p := range paths {
			set[labels[i]] = ""
			if p == nil {
				continue
			}
			if value, found := p.find(content); found && value != nil {
				set[labels[i]] = fmt.Sprint(value)
			}
		}
		return set
	}, labels
}

func jsonText(v any) (string, error) {
	b, err := json.Marshal(v)
	return string(b), err
}
