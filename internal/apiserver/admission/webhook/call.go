package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	admissionv1 "k8s.io/api/admission/v1"
	admissionv1beta1 "k8s.io/api/admission/v1beta1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apiserver/pkg/admission"
	plugincel "k8s.io/apiserver/pkg/admission/plugin/cel"

	"github.com/proa-dev/proa/internal/apiserver/admission/request"
)

// answer is what a webhook said.
type answer struct {
	allowed     bool
	result      *metav1.Status
	patch       []byte
	patchType   admissionv1.PatchType
	annotations map[string]string
	warnings    []string
}

// callError is a failure to get an answer: the failure policy decides what it means.
type callError struct {
	name string
	err  error
}

func (e *callError) Error() string {
	return fmt.Sprintf("failed calling webhook %q: %v", e.name, e.err)
}
func (e *callError) Unwrap() error { return e.err }

// concerns returns the target as which a hook is to be asked about a write; nil: it is not.
func (s *source) concerns(ctx context.Context, h *hook, r *request.Request) (*request.Target, error) {
	if h.broken != nil {
		return nil, apierrors.NewInternalError(h.broken)
	}
	t, err := r.Match(h.criteria)
	if t == nil || err != nil {
		return nil, err
	}
	if h.conditions == nil {
		return t, nil
	}
	v, err := r.As(t)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	ok, err := h.conditions.Match(ctx, v, s.bind(v, t))
	if err != nil {
		return nil, apierrors.NewForbidden(r.Resource.GVR.GroupResource(), r.Name, err)
	}
	if !ok {
		return nil, nil
	}
	return t, nil
}

// call asks a hook. Errors are *callError, or those of the server itself.
func (s *source) call(ctx context.Context, h *hook, v *admission.VersionedAttributes, t *request.Target, mutating bool) (*answer, error) {
	failed := func(format string, args ...any) error { return &callError{h.name, fmt.Errorf(format, args...)} }
	if v.IsDryRun() {
		switch {
		case h.sideEffects == nil:
			return nil, failed("Webhook SideEffects is nil")
		case *h.sideEffects != admissionregistrationv1.SideEffectClassNone && *h.sideEffects != admissionregistrationv1.SideEffectClassNoneOnDryRun:
			return nil, apierrors.NewBadRequest(fmt.Sprintf("admission webhook %q does not support dry run", h.name))
		}
	}
	version := ""
	for _, have := range h.versions {
		if have == "v1" || have == "v1beta1" {
			version = have
			break
		}
	}
	if version == "" {
		return nil, failed("could not create admission objects: webhook does not accept known AdmissionReview versions (v1, v1beta1)")
	}
	req := plugincel.CreateAdmissionRequest(v.Attributes, metav1.GroupVersionResource(t.Resource), metav1.GroupVersionKind(t.Kind))
	req.UID = uuid.NewUUID()
	req.Object.Object, req.OldObject.Object = v.VersionedObject.Object(), v.VersionedOldObject.Object()
	body, err := encode(version, req)
	if err != nil {
		return nil, failed("could not create admission objects: %w", err)
	}
	if h.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, h.timeout)
		defer cancel()
	}
	got, err := s.cfg.Client.Post(ctx, h.target, body)
	if err != nil {
		return nil, failed("failed to call webhook: %w", err)
	}
	a, err := decode(version, got, req.UID, mutating)
	if err != nil {
		return nil, failed("%w", err)
	}
	return a, nil
}

func encode(version string, req *admissionv1.AdmissionRequest) ([]byte, error) {
	if version == "v1" {
		return json.Marshal(&admissionv1.AdmissionReview{TypeMeta: metav1.TypeMeta{APIVersion: admissionv1.SchemeGroupVersion.String(), Kind: "AdmissionReview"}, Request: req})
	}
	return json.Marshal(&admissionv1beta1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: admissionv1beta1.SchemeGroupVersion.String(), Kind: "AdmissionReview"},
		Request: &admissionv1beta1.AdmissionRequest{UID: req.UID, Kind: req.Kind, Resource: req.Resource, SubResource: req.SubResource,
			RequestKind: req.RequestKind, RequestResource: req.RequestResource, RequestSubResource: req.RequestSubResource, Name: req.Name, Namespace: req.Namespace,
			Operation: admissionv1beta1.Operation(req.Operation), UserInfo: req.UserInfo, Object: req.Object, OldObject: req.OldObject, DryRun: req.DryRun, Options: req.Options}})
}

// decode reads an AdmissionReview and checks that it is an answer to the request.
func decode(version string, body []byte, uid types.UID, mutating bool) (*answer, error) {
	invalid := func(format string, args ...any) error {
		return fmt.Errorf("received invalid webhook response: %w", fmt.Errorf(format, args...))
	}
	if version == "v1beta1" {
		var review admissionv1beta1.AdmissionReview
		if err := json.Unmarshal(body, &review); err != nil {
			return nil, fmt.Errorf("failed to call webhook: %w", err)
		}
		r := review.Response
		if r == nil {
			return nil, invalid("webhook response was absent")
		}
		a := &answer{allowed: r.Allowed, result: r.Result, annotations: r.AuditAnnotations, warnings: r.Warnings}
		if mutating && len(r.Patch) > 0 {
			a.patch, a.patchType = r.Patch, admissionv1.PatchTypeJSONPatch
		}
		return a, nil
	}
	var review admissionv1.AdmissionReview
	if err := json.Unmarshal(body, &review); err != nil {
		return nil, fmt.Errorf("failed to call webhook: %w", err)
	}
	r := review.Response
	switch {
	case r == nil:
		return nil, invalid("webhook response was absent")
	case r.UID != uid:
		return nil, invalid("expected response.uid=%q, got %q", uid, r.UID)
	}
	if want, have := admissionv1.SchemeGroupVersion.WithKind("AdmissionReview"), review.GroupVersionKind(); have != want {
		return nil, invalid("expected webhook response of %v, got %v", want.String(), have.String())
	}
	a := &answer{allowed: r.Allowed, result: r.Result, annotations: r.AuditAnnotations, warnings: r.Warnings, patch: r.Patch}
	if r.PatchType != nil {
		a.patchType = *r.PatchType
	}
	switch {
	case !mutating && len(r.Patch) > 0:
		return nil, invalid("validating webhook may not return response.patch")
	case !mutating && r.PatchType != nil:
		return nil, invalid("validating webhook may not return response.patchType")
	case len(r.Patch) > 0 && r.PatchType == nil:
		return nil, invalid("webhook returned response.patch but not response.patchType")
	case len(r.Patch) == 0 && r.PatchType != nil:
		return nil, invalid("webhook returned response.patchType but not response.patch")
	case r.PatchType != nil && *r.PatchType == "":
		return nil, invalid("webhook returned invalid response.patchType of %q", *r.PatchType)
	}
	return a, nil
}

// denied is the error of a request that a webhook did not allow.
func denied(name string, result *metav1.Status) error {
	var s metav1.Status
	if result != nil {
		s = *result
	}
	if s.Code < http.StatusBadRequest {
		s.Code = http.StatusBadRequest
	}
	if s.Status == "" || s.Status == metav1.StatusSuccess {
		s.Status = metav1.StatusFailure
	}
	by := fmt.Sprintf("admission webhook %q denied the request", name)
	switch {
	case s.Message != "":
		s.Message = by + ": " + s.Message
	case s.Reason != "":
		s.Message = by + ": " + string(s.Reason)
	default:
		s.Message = by + " without explanation"
	}
	return &apierrors.StatusError{ErrStatus: s}
}

// outcome turns the error of a call into that of the request; failedOpen says
// that the hook's failure is to be ignored.
func (s *source) outcome(ctx context.Context, h *hook, err error) (failedOpen bool, _ error) {
	var failure *callError
	if !errors.As(err, &failure) {
		return false, err
	}
	if !h.ignore {
		return false, apierrors.NewInternalError(failure)
	}
	if ctx.Err() != nil {
		return true, apierrors.NewTimeoutError("request did not complete within requested timeout", 0)
	}
	s.cfg.Logger.Warn("An admission webhook failed, which is ignored as it says", "webhook", h.name, "configuration", h.configuration, "err", err)
	return true, nil
}

var _ runtime.Object = (*admissionv1.AdmissionReview)(nil)
