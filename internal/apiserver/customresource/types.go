package customresource

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"sync"

	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"github.com/proa-dev/proa/internal/api"
)

// metaModels are the models of metadata, as far as they say how its fields are owned.
//
//go:embed meta.json
var metaModels []byte

// readMeta returns the models of metadata. They are read only.
var readMeta = sync.OnceValues(func() (map[string]*spec.Schema, error) {
	models := map[string]*spec.Schema{}
	if err := json.Unmarshal(metaModels, &models); err != nil {
		return nil, fmt.Errorf("read the models of metadata: %w", err)
	}
	return models, nil
})

// types returns how the fields of the kind are owned, in all its versions.
func (k *kind) types() (managedfields.TypeConverter, error) {
	meta, err := readMeta()
	if err != nil {
		return nil, err
	}
	models := make(map[string]*spec.Schema, len(meta)+len(k.versions))
	for name, m := range meta {
		models[name] = m
	}
	preserve := false
	for name, v := range k.versions {
		m, err := v.model(true)
		if err != nil {
			return nil, err
		}
		models[name+"."+v.gvk.Kind] = m
		preserve = preserve || v.preserve
	}
	return managedfields.NewTypeConverter(models, preserve)
}

// Types returns how the fields of a custom resource are owned (rest.Config.Types);
// nil when that is not known.
func (d *Definitions) Types(res *api.Resource) managedfields.TypeConverter {
	k := d.kindOf(res)
	if k == nil {
		return nil
	}
	t, err := k.types()
	if err != nil {
		d.log.Warn("how fields are owned is guessed", "kind", res.GVK.Kind, "group", res.GVK.Group, "err", err)
		return nil
	}
	return t
}

func (d *Definitions) kindOf(res *api.Resource) *kind {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if s := d.served[res.GVR.Resource+"."+res.GVR.Group]; s != nil {
		return s.kind
	}
	return nil
}
