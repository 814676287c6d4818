package openapi

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/proa-dev/proa/internal/api"
)

//go:embed zz_generated.models.json.zst
var packed []byte

// model is one definition, in the forms of both versions of OpenAPI.
type model struct {
	Name string          `json:"name"`
	Refs []string        `json:"refs,omitempty"`
	V2   json.RawMessage `json:"v2"`
	V3   json.RawMessage `json:"v3"`
}

// unpackMu lets one request unpack at a time: the memory is needed only once.
var unpackMu sync.Mutex

// unpack returns the models of the built-in types.
func unpack() (map[string]*model, error) {
	unpackMu.Lock()
	defer unpackMu.Unlock()
	r, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(64<<20))
	if err != nil {
		return nil, fmt.Errorf("unpack the OpenAPI models: %w", err)
	}
	defer r.Close()
	plain, err := r.DecodeAll(packed, nil)
	if err != nil {
		return nil, fmt.Errorf("unpack the OpenAPI models: %w", err)
	}
	models := map[string]*model{}
	for line := range bytes.Lines(plain) {
		m := &model{}
		if err := json.Unmarshal(line, m); err != nil {
			return nil, fmt.Errorf("read an OpenAPI model: %w", err)
		}
		models[m.Name] = m
	}
	return models, nil
}

const (
	metaPrefix = "io.k8s.apimachinery.pkg.apis.meta.v1."
	patchModel = metaPrefix + "Patch"
)

// modelName returns the name of an object's model ("" when it has none).
func modelName(obj runtime.Object) string {
	if named, ok := obj.(interface{ OpenAPIModelName() string }); ok {
		return named.OpenAPIModelName()
	}
	return ""
}

// modelOf returns the model names of a resource's object and list.
func modelOf(res *api.Resource) (object, list string) {
	if _, ok := res.New().(*unstructured.Unstructured); ok {
		name := reversed(res.GVK.Group) + "." + res.GVK.Version + "." + res.GVK.Kind
		return name, name + "List"
	}
	object = modelName(res.New())
	if res.NewList != nil {
		list = modelName(res.NewList())
	}
	return object, list
}

// reversed turns example.com into com.example.
func reversed(group string) string {
	parts := bytes.Split([]byte(group), []byte{'.'})
	for i, j := 0, len(parts)-1; i < j; i, j = i+1, j-1 {
		parts[i], parts[j] = parts[j], parts[i]
	}
	return string(bytes.Join(parts, []byte{'.'}))
}

// addCustom makes the models of a custom resource from its schema (nil: anything goes).
func addCustom(models map[string]*model, res *api.Resource, schema json.RawMessage) error {
	object, list := modelOf(res)
	gvk := []map[string]string{{"group": res.GVK.Group, "version": res.GVK.Version, "kind": res.GVK.Kind}}
	root := map[string]any{}
	if len(schema) > 0 {
		if err := json.Unmarshal(schema, &root); err != nil {
			return fmt.Errorf("schema of %s: %w", res.GVR, err)
		}
	}
	properties, _ := root["properties"].(map[string]any)
	if properties == nil {
		properties = map[string]any{}
		if len(schema) == 0 {
			root["x-kubernetes-preserve-unknown-fields"] = true
		}
	}
	build := func(ref string, v3 bool) (json.RawMessage, error) {
		own := map[string]any{}
		for k, v := range root {
			own[k] = v
		}
		props := map[string]any{}
		for k, v := range properties {
			props[k] = v
		}
		for name, from := range map[string]string{
			"apiVersion": "APIVersion defines the versioned schema of this representation of an object. Servers should convert recognized schemas to the latest internal value, and may reject unrecognized values. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources",
			"kind":       "Kind is a string value representing the REST resource this object represents. Servers may infer this from the endpoint the client submits requests to. Cannot be updated. In CamelCase. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds",
		} {
			props[name] = map[string]any{"type": "string", "description": from}
		}
		props["metadata"] = reference(ref, metaPrefix+"ObjectMeta", "Standard object's metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata", v3)
		own["type"] = "object"
		own["properties"] = props
		own["x-kubernetes-group-version-kind"] = gvk
		if !v3 { // what OpenAPI v2 cannot say is left out, so that its clients do not refuse what is right
			own = map[string]any{
				"type": "object", "description": own["description"], "x-kubernetes-group-version-kind": gvk,
				"x-kubernetes-preserve-unknown-fields": true,
				"properties":                           map[string]any{"apiVersion": props["apiVersion"], "kind": props["kind"], "metadata": props["metadata"]},
			}
			if own["description"] == nil {
				delete(own, "description")
			}
		}
		return json.Marshal(own)
	}
	listOf := func(ref string, v3 bool) (json.RawMessage, error) {
		return json.Marshal(map[string]any{
			"type": "object", "description": res.GVK.Kind + "List is a list of " + res.GVK.Kind, "required": []string{"items"},
			"properties": map[string]any{
				"apiVersion": map[string]any{"type": "string"},
				"kind":       map[string]any{"type": "string"},
				"metadata":   reference(ref, metaPrefix+"ListMeta", "Standard list metadata.", v3),
				"items":      map[string]any{"type": "array", "items": map[string]any{"$ref": ref + object}},
			},
			"x-kubernetes-group-version-kind": []map[string]string{{"group": res.GVK.Group, "version": res.GVK.Version, "kind": res.GVK.Kind + "List"}},
		})
	}
	o := &model{Name: object, Refs: []string{metaPrefix + "ObjectMeta"}}
	l := &model{Name: list, Refs: []string{metaPrefix + "ListMeta", object}}
	var err error
	for _, m := range []struct {
		to   *json.RawMessage
		make func(string, bool) (json.RawMessage, error)
		v3   bool
	}{{&o.V2, build, false}, {&o.V3, build, true}, {&l.V2, listOf, false}, {&l.V3, listOf, true}} {
		ref := refV2
		if m.v3 {
			ref = refV3
		}
		if *m.to, err = m.make(ref, m.v3); err != nil {
			return fmt.Errorf("model of %s: %w", res.GVR, err)
		}
	}
	models[object], models[list] = o, l
	return nil
}

const (
	refV2 = "#/definitions/"
	refV3 = "#/components/schemas/"
)

func reference(prefix, name, description string, v3 bool) map[string]any {
	if v3 {
		return map[string]any{"description": description, "default": map[string]any{}, "allOf": []any{map[string]any{"$ref": prefix + name}}}
	}
	return map[string]any{"description": description, "$ref": prefix + name}
}

// closure returns names and all that they refer to.
func closure(models map[string]*model, names []string) map[string]*model {
	out := map[string]*model{}
	for len(names) > 0 {
		name := names[len(names)-1]
		names = names[:len(names)-1]
		m := models[name]
		if m == nil || out[name] != nil {
			continue
		}
		out[name] = m
		names = append(names, m.Refs...)
	}
	return out
}
