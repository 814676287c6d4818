package openapi

import (
	"encoding/json"
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"github.com/proa-dev/proa/internal/api"
)

// SchemaOf returns the schema of a kind with all that it refers to put in (what
// refers to itself is an object there), nil when the kind is not served.
func (h *Handler) SchemaOf(gvk schema.GroupVersionKind) (*spec.Schema, error) {
	var res *api.Resource
	for _, r := range h.Catalog.Resources() {
		if r.GVK == gvk {
			res = r
			break
		}
	}
	if res == nil {
		return nil, nil
	}
	models, err := unpack()
	if err != nil {
		return nil, err
	}
	name, _ := modelOf(res)
	if models[name] == nil {
		if err := addCustom(models, res); err != nil {
			return nil, err
		}
	}
	if models[name] == nil {
		return nil, nil
	}
	r := &resolver{models: models, read: map[string]*spec.Schema{}, within: map[string]bool{}}
	s, err := r.named(name)
	if err != nil {
		return nil, fmt.Errorf("schema of %s: %w", gvk, err)
	}
	return s, nil
}

// resolver puts referred models in the place of references.
type resolver struct {
	models map[string]*model
	read   map[string]*spec.Schema
	within map[string]bool
}

func (r *resolver) named(name string) (*spec.Schema, error) {
	if r.within[name] {
		return &spec.Schema{SchemaProps: spec.SchemaProps{Type: spec.StringOrArray{"object"}}}, nil
	}
	s := r.read[name]
	if s == nil {
		m := r.models[name]
		if m == nil {
			return nil, fmt.Errorf("there is no model %s", name)
		}
		s = &spec.Schema{}
		if err := json.Unmarshal(m.V3, s); err != nil {
			return nil, fmt.Errorf("model %s: %w", name, err)
		}
		r.read[name] = s
	}
	r.within[name] = true
	defer delete(r.within, name)
	out := *s
	return &out, r.fill(&out)
}

// fill replaces the references in s, which is a copy.
func (r *resolver) fill(s *spec.Schema) error {
	if name := referred(s); name != "" {
		got, err := r.named(name)
		if err != nil {
			return err
		}
		*s = *got
		return nil
	}
	if len(s.Properties) > 0 {
		properties := make(map[string]spec.Schema, len(s.Properties))
		for name, p := range s.Properties {
			if err := r.fill(&p); err != nil {
				return err
			}
			properties[name] = p
		}
		s.Properties = properties
	}
	if a := s.AdditionalProperties; a != nil && a.Schema != nil {
		inner := *a.Schema
		if err := r.fill(&inner); err != nil {
			return err
		}
		s.AdditionalProperties = &spec.SchemaOrBool{Allows: a.Allows, Schema: &inner}
	}
	if i := s.Items; i != nil && i.Schema != nil {
		inner := *i.Schema
		if err := r.fill(&inner); err != nil {
			return err
		}
		s.Items = &spec.SchemaOrArray{Schema: &inner}
	}
	return nil
}

// referred is the model that a schema refers to: itself or, so that it can have
// a description, in allOf.
func referred(s *spec.Schema) string {
	if ref := s.Ref.String(); ref != "" {
		return strings.TrimPrefix(ref, refV3)
	}
	for i := range s.AllOf {
		if name := referred(&s.AllOf[i]); name != "" {
			return name
		}
	}
	return ""
}
