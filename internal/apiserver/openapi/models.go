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
	"k8s.io/apimachinery/pkg/runtime/schema"

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
		prefix := reversed(res.GVK.Group) + "." + res.GVK.Version + "."
		return prefix + res.GVK.Kind, prefix + listKind(res)
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

// addCustom makes the models of a custom resource.
func addCustom(models map[string]*model, res *api.Resource) error {
	object, list := modelOf(res)
	if models[object] != nil && models[list] != nil {
		return nil
	}
	o := &model{Name: object, Refs: []string{metaPrefix + "ObjectMeta"}}
	l := &model{Name: list, Refs: []string{metaPrefix + "ListMeta", object}}
	for _, v3 := range []bool{false, true} {
		own, err := customModel(res, v3)
		if err != nil {
			return fmt.Errorf("model of %s: %w", res.GVR, err)
		}
		many, err := customList(res, object, v3)
		if err != nil {
			return fmt.Errorf("model of %s: %w", res.GVR, err)
		}
		if v3 {
			o.V3, l.V3 = own, many
		} else {
			o.V2, l.V2 = own, many
		}
	}
	models[object], models[list] = o, l
	return nil
}

func customModel(res *api.Resource, v3 bool) (json.RawMessage, error) {
	if res.Model != nil {
		return res.Model(v3)
	}
	return json.Marshal(map[string]any{"type": "object", "x-kubernetes-group-version-kind": kindOf(res.GVK)})
}

func kindOf(gvk schema.GroupVersionKind) []map[string]string {
	return []map[string]string{{"group": gvk.Group, "version": gvk.Version, "kind": gvk.Kind}}
}

const (
	aboutVersion = "APIVersion defines the versioned schema of this representation of an object. Servers should convert recognized schemas to the latest internal value, and may reject unrecognized values. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources"
	aboutKind    = "Kind is a string value representing the REST resource this object represents. Servers may infer this from the endpoint the client submits requests to. Cannot be updated. In CamelCase. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds"
)

func customList(res *api.Resource, object string, v3 bool) (json.RawMessage, error) {
	ref, gvk := refV2, res.GVK
	if v3 {
		ref = refV3
	}
	gvk.Kind = listKind(res)
	return json.Marshal(map[string]any{
		"type": "object", "description": gvk.Kind + " is a list of " + res.GVK.Kind, "required": []string{"items"},
		"properties": map[string]any{
			"apiVersion": map[string]any{"type": "string", "description": aboutVersion},
			"kind":       map[string]any{"type": "string", "description": aboutKind},
			"metadata":   reference(ref, metaPrefix+"ListMeta", "Standard list metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds", v3),
			"items": map[string]any{"type": "array", "items": map[string]any{"$ref": ref + object},
				"description": "List of " + res.GVR.Resource + ". More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md"},
		},
		"x-kubernetes-group-version-kind": kindOf(gvk),
	})
}

func listKind(res *api.Resource) string {
	if res.ListKind != "" {
		return res.ListKind
	}
	return res.GVK.Kind + "List"
}

const (
	refV2 = "#/definitions/"
	refV3 = "#/components/schemas/"
)

func reference(prefix, name, description string, v3 bool) map[string]any {
	if v3 {
		return map[string]any{"description": description, "allOf": []any{map[string]any{"$ref": prefix + name}}}
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
