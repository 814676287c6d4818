package rest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/apimachinery/pkg/util/validation/field"
	sigsjson "sigs.k8s.io/json"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver/cache"
)

// maxPatchOperations bounds a JSON patch.
const maxPatchOperations = 10000

func (s *storage) Patch(ctx context.Context, namespace, name, subresource string, kind types.PatchType, data []byte, opts metav1.PatchOptions) (*cache.Entry, bool, error) {
	if kind == types.ApplyYAMLPatchType {
		return s.apply(ctx, namespace, name, subresource, data, opts)
	}
	patch, err := newPatch(kind, data)
	if err != nil {
		return nil, false, err
	}
	req := updateRequest{namespace: namespace, name: name, subresource: subresource, admitOptions: &opts,
		opts: UpdateOptions{UpdateOptions: metav1.UpdateOptions{DryRun: opts.DryRun, FieldManager: opts.FieldManager, FieldValidation: opts.FieldValidation}}}
	req.change = func(ctx context.Context, old api.Object) (api.Object, error) {
		old.GetObjectKind().SetGroupVersionKind(s.res.GVK)
		if !patch.writesOwners() {
			old.SetManagedFields(nil) // the longest part of many objects; nil means: as they are
		}
		fresh := s.res.New()
		if err := patch.apply(ctx, old, fresh, opts.FieldValidation, s.res.Coerce); err != nil {
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
	default:
		return nil, apierrors.NewBadRequest(fmt.Sprintf("unknown patch type %q", kind))
	}
	return p, nil
}

// writesOwners reports whether the patch may read or write metadata.managedFields.
func (p *patch) writesOwners() bool {
	if bytes.Contains(p.data, []byte("managedFields")) || bytes.Contains(p.data, []byte(`\u`)) {
		return true
	}
	for _, op := range p.ops {
		path, err := op.Path()
		from, _ := op.From()
		for _, pointer := range []string{path, from} {
			if err != nil || pointer == "/metadata" || pointer == "" && (pointer == path || op.Kind() == "move" || op.Kind() == "copy") {
				return true
			}
		}
	}
	return false
}

// apply patches old and decodes the result into fresh, of which coerce (nil:
// nothing) makes what a custom resource's schema knows.
func (p *patch) apply(ctx context.Context, old, fresh runtime.Object, fieldValidation string, coerce func(api.Object, bool) ([]string, error)) error {
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
	invalid := func(err error) error {
		return apierrors.NewInvalid(schema.GroupKind{}, "", field.ErrorList{field.Invalid(field.NewPath("patch"), string(after), err.Error())})
	}
	report := fieldValidation != metav1.FieldValidationIgnore
	var strict []error
	if report {
		strict = p.duplicates()
	}
	found, err := sigsjson.UnmarshalStrict(after, fresh)
	if err != nil {
		return invalid(err)
	}
	strict = append(strict, found...)
	if coerce != nil {
		unknown, err := coerce(fresh.(api.Object), report)
		if err != nil {
			return invalid(err)
		}
		for _, path := range unknown {
			strict = append(strict, fmt.Errorf("unknown field %q", path))
		}
	}
	if len(strict) == 0 || !report {
		return nil
	}
	if fieldValidation == metav1.FieldValidationStrict {
		return invalid(runtime.NewStrictDecodingError(strict))
	}
	for _, e := range strict {
		Warn(ctx, e.Error())
	}
	return nil
}

// duplicates finds what the patch itself says twice.
func (p *patch) duplicates() (found []error) {
	if p.kind != types.JSONPatchType {
		var v map[string]any
		found, _ = sigsjson.UnmarshalStrict(p.data, &v)
		return found
	}
	var ops []struct {
		Op    string `json:"op"`
		Path  string `json:"path"`
		From  string `json:"from"`
		Value any    `json:"value"`
	}
	found, _ = sigsjson.UnmarshalStrict(p.data, &ops)
	for i, err := range found {
		found[i] = fmt.Errorf("json patch %w", err)
	}
	return found
}
