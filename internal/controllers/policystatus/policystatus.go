// Package policystatus checks the expressions of ValidatingAdmissionPolicies
// against the schemas of the kinds that they match, and writes what it finds
// into their status: warnings, that change nothing about what a policy does.
package policystatus

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/kube-openapi/pkg/validation/spec"
	"k8s.io/utils/ptr"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/controllers/loop"
)

const (
	name    = "validatingadmissionpolicy-status"
	manager = "validatingadmissionpolicy-status-controller"
)

var policies = client.Kind[*admissionregistrationv1.ValidatingAdmissionPolicy]{
	GVR: admissionregistrationv1.SchemeGroupVersion.WithResource("validatingadmissionpolicies"),
	GVK: admissionregistrationv1.SchemeGroupVersion.WithKind("ValidatingAdmissionPolicy"),
}

// Schemas returns the schema of a kind, without references; nil when the kind is not served.
type Schemas func(gvk schema.GroupVersionKind) (*spec.Schema, error)

// Controller checks policies.
type Controller struct {
	client  client.Interface
	schemas Schemas
	log     *slog.Logger
	loop    *loop.Loop[string]
	view    client.Typed[*admissionregistrationv1.ValidatingAdmissionPolicy]
}

// New returns the controller.
func New(c client.Interface, schemas Schemas, log *slog.Logger) *Controller {
	x := &Controller{client: c, schemas: schemas, log: log, view: policies.Informer(c, client.Scope{})}
	x.loop = loop.New(name, log, x.sync)
	return x
}

func (x *Controller) Name() string { return name }

// Run works until ctx ends.
func (x *Controller) Run(ctx context.Context) error {
	return x.loop.Run(ctx, 1, loop.Source{Informer: x.view.Informer, Handle: func(e client.Event) {
		if e.Object != nil && e.Type != client.Deleted {
			x.loop.Add(e.Object.GetName())
		}
	}})
}

func (x *Controller) sync(ctx context.Context, name string) error {
	p, ok := x.view.Get("", name)
	if !ok || p.Generation <= p.Status.ObservedGeneration {
		return nil
	}
	warnings, err := x.check(ctx, p)
	if err != nil {
		return fmt.Errorf("check policy %s: %w", name, err)
	}
	type status struct {
		ObservedGeneration int64                                 `json:"observedGeneration"`
		TypeChecking       *admissionregistrationv1.TypeChecking `json:"typeChecking"`
	}
	patch, err := json.Marshal(map[string]any{
		"apiVersion": policies.GVK.GroupVersion().String(), "kind": policies.GVK.Kind, "metadata": map[string]any{"name": name},
		"status": status{p.Generation, &admissionregistrationv1.TypeChecking{ExpressionWarnings: warnings}},
	})
	if err != nil {
		return fmt.Errorf("encode the status of policy %s: %w", name, err)
	}
	_, err = x.client.Patch(ctx, policies.GVR, "", name, "status", types.ApplyPatchType, patch, metav1.PatchOptions{FieldManager: manager, Force: ptr.To(true)})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("write the status of policy %s: %w", name, err)
	}
	return nil
}
