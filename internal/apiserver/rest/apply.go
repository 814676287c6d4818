package rest

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
	"sigs.k8s.io/yaml"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver/cache"
	"github.com/proa-dev/proa/internal/apiserver/rest/managed"
)

// configuration is the body of a server-side apply.
type configuration struct {
	object *unstructured.Unstructured
	strict error // what strict decoding has against it
}

func newConfiguration(data []byte) (*configuration, error) {
	text, err := yaml.YAMLToJSON(data)
	if err == nil {
		c := &configuration{object: &unstructured.Unstructured{}}
		if err = utiljson.Unmarshal(text, &c.object.Object); err == nil {
			_, c.strict = yaml.YAMLToJSONStrict(data)
			if c.object.Object == nil {
				c.object.Object = map[string]any{}
			}
			return c, nil
		}
	}
	return nil, apierrors.NewBadRequest(fmt.Sprintf("error decoding patch: %v", err))
}

// apply merges what the manager wants into the object, or creates the object.
func (s *storage) apply(ctx context.Context, namespace, name, subresource string, data []byte, opts metav1.PatchOptions) (*cache.Entry, bool, error) {
	if err := validApply(&opts); err != nil {
		return nil, false, err
	}
	wanted, err := newConfiguration(data)
	if err != nil {
		return nil, false, err
	}
	fields, err := s.fieldManager(subresource)
	if err != nil {
		return nil, false, apierrors.NewInternalError(err)
	}
	merge := func(ctx context.Context, live api.Object) (api.Object, error) {
		was := live.GetManagedFields()
		live.GetObjectKind().SetGroupVersionKind(s.res.GVK)
		out, err := wanted.merge(ctx, fields, live, &opts)
		if err != nil {
			return nil, err
		}
		obj, err := s.object(out)
		if err != nil {
			return nil, err
		}
		entries := obj.GetManagedFields()
		managed.SetTimes(entries, was, s.now())
		obj.SetManagedFields(entries)
		return obj, nil
	}
	req := updateRequest{namespace: namespace, name: name, subresource: subresource, owners: merged, change: merge, admitOptions: &opts,
		opts: UpdateOptions{UpdateOptions: metav1.UpdateOptions{DryRun: opts.DryRun, FieldManager: opts.FieldManager, FieldValidation: opts.FieldValidation}}}
	if subresource == "" {
		req.create = func() (*cache.Entry, error) {
			obj, err := merge(ctx, s.empty())
			if err != nil {
				return nil, err
			}
			if uid := obj.GetUID(); uid != "" {
				return nil, s.conflict(name, "uid mismatch: the provided object specified uid %s, and no existing object was found", uid)
			}
			if obj.GetName() != name {
				if obj.GetName() == "" {
					return nil, apierrors.NewBadRequest(fmt.Sprintf("the name of the object (%s based on URL) was undeterminable: name must be provided", name))
				}
				return nil, nameMismatch(obj.GetName(), name)
			}
			obj.SetResourceVersion("")
			return s.create(ctx, namespace, obj, metav1.CreateOptions{DryRun: opts.DryRun, FieldManager: opts.FieldManager, FieldValidation: opts.FieldValidation}, merged)
		}
	}
	return s.update(ctx, &req)
}

func validApply(opts *metav1.PatchOptions) error {
	if errs := validation.ValidatePatchOptions(opts, types.ApplyYAMLPatchType); len(errs) > 0 {
		return apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: "PatchOptions"}, "", errs)
	}
	return nil
}

// merge applies the configuration to live (which carries its kind and may be changed).
func (c *configuration) merge(ctx context.Context, fields *managedfields.FieldManager, live runtime.Object, opts *metav1.PatchOptions) (runtime.Object, error) {
	out, err := fields.Apply(live, c.object.DeepCopy(), opts.FieldManager, opts.Force != nil && *opts.Force)
	if err != nil {
		if status, ok := errors.AsType[*apierrors.StatusError](err); ok {
			return nil, status
		}
		// What the schema does not know is answered as Kubernetes does.
		return nil, &apierrors.StatusError{ErrStatus: metav1.Status{Status: metav1.StatusFailure, Code: http.StatusInternalServerError, Message: err.Error()}}
	}
	if c.strict != nil {
		switch opts.FieldValidation {
		case metav1.FieldValidationStrict:
			return nil, apierrors.NewBadRequest(fmt.Sprintf("error strict decoding patch: %v", c.strict))
		case metav1.FieldValidationIgnore:
		default:
			Warn(ctx, c.strict.Error())
		}
	}
	return out, nil
}

// fieldManager returns what merges applies of the resource or a subresource.
func (s *storage) fieldManager(subresource string) (*managedfields.FieldManager, error) {
	o := &s.ownership
	o.mu.Lock()
	defer o.mu.Unlock()
	if m, ok := o.fields[subresource]; ok {
		return m, nil
	}
	a := &managed.Applier{
		GVK: s.res.GVK, Subresource: subresource, Reset: s.reset(subresource), Only: s.only(subresource),
		Types: s.types(), New: s.newOf, Convert: s.convertTo,
		Default: func(obj runtime.Object) {
			if o, ok := obj.(api.Object); ok {
				s.defaults(o)
			}
		},
	}
	for _, other := range s.siblings() {
		a.Versions = append(a.Versions, other.res.GVK.GroupVersion().String())
	}
	m, err := a.FieldManager()
	if err != nil {
		return nil, err
	}
	if o.fields == nil {
		o.fields = map[string]*managedfields.FieldManager{}
	}
	o.fields[subresource] = m
	return m, nil
}

// types returns how the fields of the resource are owned.
func (s *storage) types() managedfields.TypeConverter {
	if !s.custom() {
		return s.reg.kinds.Types(s.newOf)
	}
	if s.reg.cfg.Types != nil {
		if t := s.reg.cfg.Types(s.res); t != nil {
			return t
		}
	}
	return managedfields.NewDeducedTypeConverter()
}

// only returns the fields that a subresource can change when they are few.
func (s *storage) only(subresource string) fieldpath.Filter {
	if s.gr != podsGR {
		return nil
	}
	switch subresource {
	case "ephemeralcontainers":
		return fieldpath.NewIncludeMatcherFilter(fieldpath.MakePrefixMatcherOrDie("spec", "ephemeralContainers"))
	case "resize":
		any := fieldpath.MatchAnyPathElement()
		return fieldpath.NewIncludeMatcherFilter(
			fieldpath.MakePrefixMatcherOrDie("spec", "containers", any, "resources"),
			fieldpath.MakePrefixMatcherOrDie("spec", "containers", any, "resizePolicy"),
			fieldpath.MakePrefixMatcherOrDie("spec", "initContainers", any, "resources"),
			fieldpath.MakePrefixMatcherOrDie("spec", "initContainers", any, "resizePolicy"),
		)
	}
	return nil
}

// convertTo returns obj, of any version of the resource, in another version.
func (s *storage) convertTo(obj runtime.Object, to schema.GroupVersion) (runtime.Object, error) {
	gvk := obj.GetObjectKind().GroupVersionKind()
	from, target := s.sibling(gvk.GroupVersion().String()), s.sibling(to.String())
	o, ok := obj.(api.Object)
	if from == nil || target == nil || !ok {
		return nil, runtime.NewNotRegisteredErrForKind("the served kinds", gvk)
	}
	return from.convert(o.DeepCopyObject().(api.Object), target)
}
