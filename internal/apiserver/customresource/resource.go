package customresource

import (
	"encoding/json"
	"fmt"
	"slices"
	"sync/atomic"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	apiversion "k8s.io/apimachinery/pkg/version"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver/rest"
)

// closedMessage answers who creates an object of a definition that is going away.
const closedMessage = "create not allowed while custom resource definition is terminating"

// custom returns what a definition defines: its resource in all served versions.
// The definition is kept, and not written to.
func custom(crd *apiextensionsv1.CustomResourceDefinition, names apiextensionsv1.CustomResourceDefinitionNames, hooks Webhooks) (*rest.Custom, *kind) {
	k := &kind{name: crd.Name, versions: map[string]*version{}, conversion: crd.Spec.Conversion, hooks: hooks}
	out := &rest.Custom{
		Resource:   schema.GroupResource{Group: crd.Spec.Group, Resource: names.Plural},
		Namespaced: crd.Spec.Scope == apiextensionsv1.NamespaceScoped,
	}
	var stored *version
	for i := range crd.Spec.Versions {
		spec := &crd.Spec.Versions[i]
		v := &version{
			gvk:        schema.GroupVersionKind{Group: crd.Spec.Group, Version: spec.Name, Kind: names.Kind},
			namespaced: out.Namespaced, preserve: crd.Spec.PreserveUnknownFields,
		}
		v.spec.Store(spec)
		k.versions[v.gvk.GroupVersion().String()] = v
		if spec.Storage {
			stored = v
		}
	}
	if stored == nil {
		stored = k.versions[crd.Spec.Group+"/"+crd.Spec.Versions[0].Name] // validation does not let it come to this
	}
	k.stored, out.Stored, out.Prepare = stored, stored.gvk, stored.prepare
	out.Main = k.resource(stored, crd, names, out.Resource.Resource)
	for i := range crd.Spec.Versions {
		switch spec := &crd.Spec.Versions[i]; {
		case !spec.Served:
		case spec.Name == stored.gvk.Version:
			out.Versions = append(out.Versions, out.Main)
		default:
			v := k.versions[crd.Spec.Group+"/"+spec.Name]
			out.Versions = append(out.Versions, k.resource(v, crd, names, out.Resource.Resource))
		}
	}
	return out, k
}

// kind is a definition that is served.
type kind struct {
	name       string
	versions   map[string]*version // by apiVersion
	stored     *version
	conversion *apiextensionsv1.CustomResourceConversion
	hooks      Webhooks
	closed     atomic.Bool // its definition is going away
}

// rebase lets go of an older definition, whose versions crd has unchanged.
func (k *kind) rebase(crd *apiextensionsv1.CustomResourceDefinition) {
	for i := range crd.Spec.Versions {
		k.versions[crd.Spec.Group+"/"+crd.Spec.Versions[i].Name].spec.Store(&crd.Spec.Versions[i])
	}
}

func (k *kind) resource(v *version, crd *apiextensionsv1.CustomResourceDefinition, names apiextensionsv1.CustomResourceDefinitionNames, plural string) *api.Resource {
	gv, spec := v.gvk.GroupVersion(), v.spec.Load()
	r := &api.Resource{
		GVR: gv.WithResource(plural), GVK: v.gvk, Singular: names.Singular, ShortNames: names.ShortNames, Categories: names.Categories,
		Namespaced: v.namespaced, ListKind: names.ListKind,
		New:      func() runtime.Object { return &unstructured.Unstructured{Object: map[string]any{}} },
		NewList:  func() runtime.Object { return &unstructured.UnstructuredList{Object: map[string]any{}} },
		StoredAs: k.stored.gvk.GroupVersion().WithResource(plural),
		ToStored: func(obj runtime.Object) (runtime.Object, error) { return k.toStored(v, obj) },
		FromStored: func(obj runtime.Object) (runtime.Object, error) {
			return k.convert(obj.(*unstructured.Unstructured), v)
		},
		Default: func(obj api.Object) { v.fill(obj.(*unstructured.Unstructured).Object) },
		Coerce: func(obj api.Object, report bool) ([]string, error) {
			return v.coerce(obj.(*unstructured.Unstructured).Object, false, report)
		},
		Validate: v.validate, ValidateUpdate: v.validateUpdate, Warnings: warnings,
		SpecChanged: changed,
		Model: func(v3 bool) ([]byte, error) {
			m, err := v.model(v3)
			if err != nil {
				return nil, err
			}
			return json.Marshal(m)
		},
	}
	if k.conversion != nil && k.conversion.Strategy == apiextensionsv1.WebhookConverter {
		r.FromStoredAll = func(list []api.Object) ([]api.Object, error) { return k.fromStoredAll(list, v) }
	}
	if spec.Deprecated {
		r.Warning = deprecation(spec, &crd.Spec)
	}
	r.Closed = func() string {
		if k.closed.Load() {
			return closedMessage
		}
		return ""
	}
	if sub := spec.Subresources; sub != nil {
		if sub.Status != nil {
			r.CopyStatus, r.ValidateStatusUpdate = copyStatus, v.validateStatus
		}
		if sub.Scale != nil {
			r.Scale = scaleOf(sub.Scale)
		}
	}
	r.Columns, r.Row = columns(spec)
	r.Fields, r.FieldLabels = selectable(spec.SelectableFields)
	return r
}

// changed reports whether anything but the metadata is different.
func changed(obj, old api.Object) bool {
	a, b := obj.(*unstructured.Unstructured).Object, old.(*unstructured.Unstructured).Object
	for name, value := range a {
		if had, ok := b[name]; !typeOrMeta(name) && (!ok || !equality.Semantic.DeepEqual(value, had)) {
			return true
		}
	}
	for name := range b {
		if _, ok := a[name]; !ok && !typeOrMeta(name) {
			return true
		}
	}
	return false
}

func typeOrMeta(name string) bool {
	return name == "metadata" || name == "apiVersion" || name == "kind"
}

func copyStatus(dst, src api.Object) {
	to, from := dst.(*unstructured.Unstructured).Object, src.(*unstructured.Unstructured).Object
	if status, ok := from["status"]; ok {
		to["status"] = runtime.DeepCopyJSONValue(status)
	} else {
		delete(to, "status")
	}
}

// deprecation is the warning that users of a deprecated version get.
func deprecation(v *apiextensionsv1.CustomResourceDefinitionVersion, spec *apiextensionsv1.CustomResourceDefinitionSpec) string {
	if v.DeprecationWarning != nil {
		return *v.DeprecationWarning
	}
	text := fmt.Sprintf("%s/%s %s is deprecated", spec.Group, v.Name, spec.Names.Kind)
	var better []string
	for i := range spec.Versions {
		if o := &spec.Versions[i]; o.Served && !o.Deprecated && apiversion.CompareKubeAwareVersionStrings(v.Name, o.Name) < 0 {
			better = append(better, o.Name)
		}
	}
	if len(better) > 0 {
		text += fmt.Sprintf("; use %s/%s %s", spec.Group, slices.MaxFunc(better, apiversion.CompareKubeAwareVersionStrings), spec.Names.Kind)
	}
	return text
}

func scaleOf(s *apiextensionsv1.CustomResourceSubresourceScale) *api.Scale {
	spec, status := pathOf(s.SpecReplicasPath), pathOf(s.StatusReplicasPath)
	var selector []string
	if p := s.LabelSelectorPath; p != nil && *p != "" {
		selector = pathOf(*p)
	}
	return &api.Scale{
		Path: spec,
		Get: func(obj api.Object) (int32, int32, string) {
			content := obj.(*unstructured.Unstructured).Object
			wanted, _, _ := unstructured.NestedInt64(content, spec...)
			have, _, _ := unstructured.NestedInt64(content, status...)
			labels := ""
			if selector != nil {
				labels, _, _ = unstructured.NestedString(content, selector...)
			}
			return int32(wanted), int32(have), labels
		},
		Set: func(obj api.Object, n int32) {
			// Fails only for a parent that is no object, which the schema does not allow.
			_ = unstructured.SetNestedField(obj.(*unstructured.Unstructured).Object, int64(n), spec...)
		},
		Check: func(obj api.Object) error {
			_, found, err := unstructured.NestedInt64(obj.(*unstructured.Unstructured).Object, spec...)
			if err == nil && !found {
				err = fmt.Errorf("the spec replicas field %q does not exist", s.SpecReplicasPath)
			}
			return err
		},
	}
}
