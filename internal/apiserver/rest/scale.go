package rest

import (
	"context"
	"fmt"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver/rest/managed"
)

var scaleGVK = autoscalingv1.SchemeGroupVersion.WithKind("Scale")

func (s *storage) GetScale(ctx context.Context, namespace, name string) (*autoscalingv1.Scale, error) {
	if s.res.Scale == nil {
		return nil, apierrors.NewNotFound(s.gr, name)
	}
	e, err := s.Get(ctx, namespace, name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	if check := s.res.Scale.Check; check != nil {
		if err := check(e.Object()); err != nil {
			return nil, apierrors.NewInternalError(err)
		}
	}
	return s.scaleOf(e.Object()), nil
}

func (s *storage) scaleOf(obj api.Object) *autoscalingv1.Scale {
	spec, status, selector := s.res.Scale.Get(obj)
	return &autoscalingv1.Scale{
		TypeMeta: metav1.TypeMeta{APIVersion: autoscalingv1.SchemeGroupVersion.String(), Kind: "Scale"},
		ObjectMeta: metav1.ObjectMeta{Name: obj.GetName(), Namespace: obj.GetNamespace(), UID: obj.GetUID(),
			ResourceVersion: obj.GetResourceVersion(), CreationTimestamp: obj.GetCreationTimestamp()},
		Spec:   autoscalingv1.ScaleSpec{Replicas: spec},
		Status: autoscalingv1.ScaleStatus{Replicas: status, Selector: selector},
	}
}

// scaleChange makes of a scale, which carries the owners of the replica count,
// the one that is wanted, with those who own it then.
type scaleChange func(ctx context.Context, fields *managedfields.FieldManager, live *autoscalingv1.Scale) (*autoscalingv1.Scale, error)

func (s *storage) UpdateScale(ctx context.Context, namespace, name string, change func(old *autoscalingv1.Scale) (*autoscalingv1.Scale, error), opts UpdateOptions) (*autoscalingv1.Scale, error) {
	return s.writeScale(ctx, namespace, name, opts, func(ctx context.Context, fields *managedfields.FieldManager, live *autoscalingv1.Scale) (*autoscalingv1.Scale, error) {
		old := live.DeepCopy()
		old.ManagedFields = nil
		scale, err := change(old)
		if err != nil {
			return nil, err
		}
		scale.SetGroupVersionKind(scaleGVK)
		out, err := fields.Update(live, scale, fieldManager(ctx, opts.FieldManager))
		if err != nil {
			s.untracked(scale, live.ManagedFields, err)
			return scale, nil
		}
		return out.(*autoscalingv1.Scale), nil
	})
}

func (s *storage) PatchScale(ctx context.Context, namespace, name string, kind types.PatchType, data []byte, opts metav1.PatchOptions) (*autoscalingv1.Scale, error) {
	updateOptions := UpdateOptions{UpdateOptions: metav1.UpdateOptions{DryRun: opts.DryRun, FieldManager: opts.FieldManager}}
	if kind == types.ApplyYAMLPatchType {
		if err := validApply(&opts); err != nil {
			return nil, err
		}
		wanted, err := newConfiguration(data)
		if err != nil {
			return nil, err
		}
		return s.writeScale(ctx, namespace, name, updateOptions, func(ctx context.Context, fields *managedfields.FieldManager, live *autoscalingv1.Scale) (*autoscalingv1.Scale, error) {
			out, err := wanted.merge(ctx, fields, live, &opts)
			if err != nil {
				return nil, err
			}
			return out.(*autoscalingv1.Scale), nil
		})
	}
	p, err := newPatch(kind, data)
	if err != nil {
		return nil, err
	}
	return s.UpdateScale(ctx, namespace, name, func(old *autoscalingv1.Scale) (*autoscalingv1.Scale, error) {
		fresh := &autoscalingv1.Scale{}
		return fresh, p.apply(ctx, old, fresh, opts.FieldValidation, nil)
	}, updateOptions)
}

func (s *storage) writeScale(ctx context.Context, namespace, name string, opts UpdateOptions, change scaleChange) (*autoscalingv1.Scale, error) {
	if s.res.Scale == nil {
		return nil, apierrors.NewNotFound(s.gr, name)
	}
	fields, err := s.scaleFields()
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	e, _, err := s.update(ctx, &updateRequest{namespace: namespace, name: name, subresource: "scale", owners: merged, opts: opts,
		show: func(obj api.Object) api.Object {
			scale := s.scaleOf(obj)
			scale.TypeMeta = metav1.TypeMeta{}
			return scale
		},
		take: func(obj, shown api.Object) (api.Object, error) {
			scale, ok := shown.(*autoscalingv1.Scale)
			if !ok {
				return nil, apierrors.NewInternalError(fmt.Errorf("admission made %T of a scale", shown))
			}
			if scale.Spec.Replicas < 0 {
				return nil, apierrors.NewInvalid(scaleGVK.GroupKind(), name, negative(scale.Spec.Replicas))
			}
			s.res.Scale.Set(obj, scale.Spec.Replicas)
			return obj, nil
		},
		change: func(ctx context.Context, old api.Object) (api.Object, error) {
			return s.scale(ctx, fields, name, old, change)
		}})
	if err != nil {
		return nil, err
	}
	return s.scaleOf(e.Object()), nil
}

// scale sets the replica count of old, and who owns it.
func (s *storage) scale(ctx context.Context, fields *managedfields.FieldManager, name string, old api.Object, change scaleChange) (api.Object, error) {
	was := old.GetManagedFields()
	handler := managedfields.NewScaleHandler(was, s.res.GVK.GroupVersion(), s.replicaPaths())
	live := s.scaleOf(old)
	var err error
	if live.ManagedFields, err = handler.ToSubresource(); err != nil {
		// Owners that cannot be understood are forgotten, as on any other write.
		was = nil
		handler = managedfields.NewScaleHandler(nil, s.res.GVK.GroupVersion(), s.replicaPaths())
	}
	scale, err := change(ctx, fields, live)
	if err != nil {
		return nil, err
	}
	if scale.Spec.Replicas < 0 {
		return nil, apierrors.NewInvalid(scaleGVK.GroupKind(), name, negative(scale.Spec.Replicas))
	}
	if scale.UID != "" && scale.UID != old.GetUID() {
		return nil, s.uidConflict(name, string(scale.UID), string(old.GetUID()))
	}
	if rv := scale.ResourceVersion; rv != "" && rv != old.GetResourceVersion() {
		return nil, s.conflict(name, staleMessage)
	}
	entries, err := handler.ToParent(scale.ManagedFields)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	if replicas, _, _ := s.res.Scale.Get(old); len(was) > 0 || replicas != scale.Spec.Replicas {
		managed.SetTimes(entries, was, s.now())
		old.SetManagedFields(entries)
	}
	s.res.Scale.Set(old, scale.Spec.Replicas)
	return old, nil
}

// replicaPaths is where the versions of the resource have the replica count.
func (s *storage) replicaPaths() managedfields.ResourcePathMappings {
	paths := managedfields.ResourcePathMappings{}
	for _, other := range s.siblings() {
		path := fieldpath.MakePathOrDie("spec", "replicas")
		if scale := other.res.Scale; scale == nil {
			path = nil
		} else if scale.Path != nil {
			path = nil
			for _, name := range scale.Path {
				path = append(path, fieldpath.FieldNameElement(name))
			}
		}
		paths[other.res.GVK.GroupVersion().String()] = path
	}
	return paths
}

// scaleFields returns the field manager of scales.
func (s *storage) scaleFields() (*managedfields.FieldManager, error) {
	o := &s.ownership
	o.mu.Lock()
	defer o.mu.Unlock()
	if m, ok := o.fields["scale"]; ok {
		return m, nil
	}
	newScale := func(gvk schema.GroupVersionKind) runtime.Object {
		if gvk != scaleGVK {
			return nil
		}
		return &autoscalingv1.Scale{}
	}
	a := &managed.Applier{
		GVK: scaleGVK, Subresource: "scale", Reset: managed.Reset{{"status"}}, Versions: []string{scaleGVK.GroupVersion().String()},
		Types: s.reg.kinds.Types(newScale), New: newScale, Default: func(runtime.Object) {},
		Convert: func(_ runtime.Object, to schema.GroupVersion) (runtime.Object, error) {
			return nil, runtime.NewNotRegisteredErrForKind("the served kinds", to.WithKind("Scale"))
		},
	}
	m, err := a.FieldManager()
	if err != nil {
		return nil, err
	}
	if o.fields == nil {
		o.fields = map[string]*managedfields.FieldManager{}
	}
	o.fields["scale"] = m
	return m, nil
}
