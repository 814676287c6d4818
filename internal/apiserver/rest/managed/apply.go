package managed

import (
	"fmt"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
	"sigs.k8s.io/structured-merge-diff/v6/typed"
)

// Applier is what merges the applies of a resource, or of one of its
// subresources, and tracks the writes of custom resources.
type Applier struct {
	GVK         schema.GroupVersionKind
	Subresource string
	Reset       Reset
	// Only, when set, names the only fields that the subresource can change.
	Only fieldpath.Filter
	// Versions are the API versions of the same objects that are served.
	Versions []string
	// Types knows how fields are owned (Kinds.Types for built-in kinds).
	Types managedfields.TypeConverter

	// New returns an empty object of a served version, nil of any other.
	New func(gvk schema.GroupVersionKind) runtime.Object
	// Convert returns an object (which it may change) in another served version.
	Convert func(obj runtime.Object, to schema.GroupVersion) (runtime.Object, error)
	// Default fills in what a client left out.
	Default func(obj runtime.Object)
}

// FieldManager returns the field manager of apimachinery for the applier.
func (a *Applier) FieldManager() (*managedfields.FieldManager, error) {
	var reset map[fieldpath.APIVersion]fieldpath.Filter
	if filter := a.filter(); filter != nil {
		reset = map[fieldpath.APIVersion]fieldpath.Filter{}
		for _, v := range a.Versions {
			reset[fieldpath.APIVersion(v)] = filter
		}
	}
	o := objects{a}
	build := managedfields.NewDefaultFieldManager
	if _, custom := a.New(a.GVK).(*unstructured.Unstructured); custom {
		build = managedfields.NewDefaultCRDFieldManager
	}
	m, err := build(a.Types, o, o, o, a.GVK, a.GVK.GroupVersion(), a.Subresource, reset)
	if err != nil {
		return nil, fmt.Errorf("make the field manager of %s: %w", a.GVK, err)
	}
	return m, nil
}

func (a *Applier) filter() fieldpath.Filter {
	if a.Only != nil {
		return a.Only
	}
	if len(a.Reset) == 0 {
		return nil
	}
	set := fieldpath.NewSet()
	for _, path := range a.Reset {
		p := make(fieldpath.Path, len(path))
		for i, name := range path {
			p[i] = fieldpath.FieldNameElement(name)
		}
		set.Insert(p)
	}
	return fieldpath.NewExcludeSetFilter(set)
}

// objects is how the field manager makes, converts and defaults objects.
type objects struct{ a *Applier }

func (o objects) New(gvk schema.GroupVersionKind) (runtime.Object, error) {
	obj := o.a.New(gvk)
	if obj == nil {
		return nil, runtime.NewNotRegisteredErrForKind("the served kinds", gvk)
	}
	obj.GetObjectKind().SetGroupVersionKind(gvk)
	return obj, nil
}

func (o objects) Default(obj runtime.Object) { o.a.Default(obj) }

func (o objects) Convert(_, _, _ any) error {
	return fmt.Errorf("objects are converted to versions only")
}

func (o objects) ConvertFieldLabel(_ schema.GroupVersionKind, label, value string) (string, string, error) {
	return label, value, nil
}

func (o objects) ConvertToVersion(in runtime.Object, target runtime.GroupVersioner) (runtime.Object, error) {
	gvk := in.GetObjectKind().GroupVersionKind()
	to, ok := target.KindForGroupVersionKinds([]schema.GroupVersionKind{gvk})
	if gv, one := target.(schema.GroupVersion); !ok && one {
		to, ok = gv.WithKind(gvk.Kind), true // events have two groups
	}
	if !ok {
		return nil, runtime.NewNotRegisteredGVKErrForTarget("the served kinds", gvk, target)
	}
	if u, merged := in.(*unstructured.Unstructured); merged {
		obj, err := o.New(gvk)
		if err != nil {
			return nil, err
		}
		if _, custom := obj.(*unstructured.Unstructured); !custom {
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, obj); err != nil {
				return nil, fmt.Errorf("convert the merged object to %s: %w", gvk, err)
			}
			obj.GetObjectKind().SetGroupVersionKind(gvk)
			in = obj
		}
	}
	if to.GroupVersion() == gvk.GroupVersion() {
		return in, nil
	}
	if o.a.New(to) == nil {
		return nil, runtime.NewNotRegisteredErrForKind("the served kinds", to)
	}
	out, err := o.a.Convert(in, to.GroupVersion())
	if err != nil {
		return nil, err
	}
	out.GetObjectKind().SetGroupVersionKind(to)
	return out, nil
}

// Types returns how the fields of built-in kinds are owned; newObject gives an
// empty object of a kind (nil: there is none).
func (k *Kinds) Types(newObject func(schema.GroupVersionKind) runtime.Object) managedfields.TypeConverter {
	return types{k, newObject}
}

type types struct {
	kinds     *Kinds
	newObject func(schema.GroupVersionKind) runtime.Object
}

func (t types) ObjectToTyped(obj runtime.Object, opts ...typed.ValidationOptions) (*typed.TypedValue, error) {
	gvk := obj.GetObjectKind().GroupVersionKind()
	sample := obj
	u, merged := obj.(*unstructured.Unstructured)
	if merged {
		if sample = t.newObject(gvk); sample == nil {
			return nil, runtime.NewNotRegisteredErrForKind("the served kinds", gvk)
		}
	}
	kind, err := t.kinds.Of(sample)
	if err != nil {
		return nil, err
	}
	if kind == nil {
		return nil, fmt.Errorf("no schema is known for %s", gvk)
	}
	p, err := kind.parseable()
	if err != nil {
		return nil, err
	}
	if merged {
		return p.FromUnstructured(u.Object, opts...)
	}
	return p.FromStructured(obj, opts...)
}

func (t types) TypedToObject(v *typed.TypedValue) (runtime.Object, error) {
	m, ok := v.AsValue().Unstructured().(map[string]any)
	if !ok {
		return nil, fmt.Errorf("a merged object is no map")
	}
	return &unstructured.Unstructured{Object: m}, nil
}
