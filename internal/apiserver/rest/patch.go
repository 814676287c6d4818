package rest

import (
	"context"
	"encoding/json"
	"fmt"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	sigsjson "sigs.k8s.io/json"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver/cache"
)

// maxPatchOperations bounds a JSON patch.
const maxPatchOperations = 10000

func (s *storage) Patch(ctx context.Context, namespace, name, subresource string, kind types.PatchType, data []byte, opts metav1.PatchOptions) (*cache.Entry, bool, error) {
	patch, err := newPatch(kind, data)
	if err != nil {
		return nil, false, err
	}
	req := updateRequest{namespace: namespace, name: name, subresource: subresource, admitOptions: &opts,
		opts: UpdateOptions{UpdateOptions: metav1.UpdateOptions{DryRun: opts.DryRun, FieldManager: opts.FieldManager, FieldValidation: opts.FieldValidation}}}
	req.change = func(ctx context.Context, old api.Object) (api.Object, error) {
		old.GetObjectKind().SetGroupVersionKind(s.res.GVK)
		fresh := s.res.New()
		if err := patch.apply(ctx, old, fresh, opts.FieldValidation); err != nil {
			return nil, err
		}
		return s.object(fresh)
	}
	return s.update(ctx, &req)
}

// patch is a parsed patch body.
type patch struct {
	kind types.PatchType
	data []byte
	ops  jsonpatch.Patch
}

func newPatch(kind types.PatchType, data []byte) (*patch, error) {
	p := &patch{kind: kind, data: data}
	switch kind {
	case types.JSONPatchType:
		ops, err := jsonpatch.DecodePatch(data)
		if err != nil {
			return nil, apierrors.NewBadRequest(fmt.Sprintf("error decoding patch: %v", err))
		}
		if len(ops) > maxPatchOperations {
			return nil, apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("The allowed maximum operations in a JSON patch is %d, got %d", maxPatchOperations, len(ops)))
		}
		p.ops = ops
	case types.MergePatchType, types.StrategicMergePatchType:
		if !json.Valid(data) {
			return nil, apierrors.NewBadRequest("error decoding patch: invalid JSON")
		}
	case types.ApplyYAMLPatchType, types.ApplyCBORPatchType:
		return nil, &apierrors.StatusError{ErrStatus: metav1.Status{Status: metav1.StatusFailure, Code: 415, Reason: metav1.StatusReasonUnsupportedMediaType,
			Message: "server-side apply is not supported by this server: use client-side apply"}}
	default:
		return nil, apierrors.NewBadRequest(fmt.Sprintf("unknown patch type %q", kind))
	}
	return p, nil
}

// apply patches old and decodes the result into fresh.
func (p *patch) apply(ctx context.Context, old, fresh runtime.Object, fieldValidation string) error {
	before, err := json.Marshal(old)
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	var after []byte
	switch p.kind {
	case types.JSONPatchType:
		after, err = p.ops.Apply(before)
	case types.MergePatchType:
		after, err = jsonpatch.MergePatch(before, p.data)
	case types.StrategicMergePatchType:
		after, err = strategicpatch.StrategicMergePatch(before, p.data, old)
	}
	if err != nil {
		return &apierrors.StatusError{ErrStatus: metav1.Status{Status: metav1.StatusFailure, Code: 422, Reason: metav1.StatusReasonInvalid,
			Message: fmt.Sprintf("the server rejected our request due to an error in our request: %v", err)}}
	}
	strict, err := sigsjson.UnmarshalStrict(after, fresh)
	if err != nil {
		return apierrors.NewBadRequest(fmt.Sprintf("patch: %v", err))
	}
	if len(strict) == 0 {
		return nil
	}
	switch fieldValidation {
	case metav1.FieldValidationStrict:
		return apierrors.NewBadRequest(runtime.NewStrictDecodingError(strict).Error())
	case metav1.FieldValidationIgnore:
	default:
		for _, e := range strict {
			Warn(ctx, e.Error())
		}
	}
	return nil
}

func (s *storage) GetScale(ctx context.Context, namespace, name string) (*autoscalingv1.Scale, error) {
	if s.res.Scale == nil {
		return nil, apierrors.NewNotFound(s.gr, name)
	}
	e, err := s.Get(ctx, namespace, name, metav1.GetOptions{})
	if err != nil {
		return nil, err
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

func (s *storage) UpdateScale(ctx context.Context, namespace, name string, change func(old *autoscalingv1.Scale) (*autoscalingv1.Scale, error), opts UpdateOptions) (*autoscalingv1.Scale, error) {
	if s.res.Scale == nil {
		return nil, apierrors.NewNotFound(s.gr, name)
	}
	e, _, err := s.update(ctx, &updateRequest{namespace: namespace, name: name, subresource: "scale", opts: opts,
		change: func(_ context.Context, old api.Object) (api.Object, error) {
			scale, err := change(s.scaleOf(old))
			if err != nil {
				return nil, err
			}
			if scale.Spec.Replicas < 0 {
				return nil, apierrors.NewInvalid(autoscalingv1.SchemeGroupVersion.WithKind("Scale").GroupKind(), name, negative(scale.Spec.Replicas))
			}
			if scale.UID != "" && scale.UID != old.GetUID() {
				return nil, s.uidConflict(name, string(scale.UID), string(old.GetUID()))
			}
			if rv := scale.ResourceVersion; rv != "" && rv != old.GetResourceVersion() {
				return nil, s.conflict(name, staleMessage)
			}
			s.res.Scale.Set(old, scale.Spec.Replicas)
			return old, nil
		}})
	if err != nil {
		return nil, err
	}
	return s.scaleOf(e.Object()), nil
}

func (s *storage) PatchScale(ctx context.Context, namespace, name string, kind types.PatchType, data []byte, opts metav1.PatchOptions) (*autoscalingv1.Scale, error) {
	p, err := newPatch(kind, data)
	if err != nil {
		return nil, err
	}
	return s.UpdateScale(ctx, namespace, name, func(old *autoscalingv1.Scale) (*autoscalingv1.Scale, error) {
		fresh := &autoscalingv1.Scale{}
		return fresh, p.apply(ctx, old, fresh, opts.FieldValidation)
	}, UpdateOptions{UpdateOptions: metav1.UpdateOptions{DryRun: opts.DryRun, FieldManager: opts.FieldManager}})
}
