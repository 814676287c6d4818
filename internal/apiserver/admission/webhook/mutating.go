package webhook

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	admissionv1 "k8s.io/api/admission/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/admission"
	kjson "sigs.k8s.io/json"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver/admission/request"
	"github.com/proa-dev/proa/internal/apiserver/rest"
)

type apiObject = api.Object

// Mutating asks the webhooks of MutatingWebhookConfigurations, one after the
// other in the order of the configurations' names, and applies their patches.
type Mutating struct{ source *source }

// NewMutating returns the plugin.
func NewMutating(cfg Config) *Mutating {
	p := &Mutating{}
	p.source = newSource(cfg, mutatingGVR, func(obj apiObject) []*hook { return p.source.mutating(obj) })
	return p
}

// Active reports whether there is any configuration.
func (p *Mutating) Active() bool { return p.source.active() }

// Mutate asks the webhooks whose turn it is in a round.
func (p *Mutating) Mutate(ctx context.Context, a *rest.Attributes, round *request.Round) error {
	if request.Exempt(a.Resource) {
		return nil
	}
	turn := round.Begin(p, a)
	defer turn.End(a)
	r := request.New(a, p.source.cfg.Cluster)
	for _, h := range p.source.hooks() {
		if !turn.Calls(h.id) {
			continue
		}
		t, err := p.source.concerns(ctx, h, r)
		if err != nil {
			return err
		}
		if t == nil {
			continue
		}
		if err := p.ask(ctx, h, r, t, turn, round.Second); err != nil {
			return err
		}
	}
	return nil
}

func (p *Mutating) ask(ctx context.Context, h *hook, r *request.Request, t *request.Target, turn *request.Turn, second bool) error {
	v, err := r.As(t)
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	where := fmt.Sprintf("round_%d_index_%d", map[bool]int{true: 1}[second], h.index)
	began := time.Now()
	got, err := p.source.call(ctx, h, v, t, true)
	changed := false
	if err == nil {
		say(ctx, h, got)
		if !got.allowed {
			err = denied(h.name, got.result)
		} else {
			changed, err = p.apply(ctx, h, r, t, v, got, where)
		}
	}
	p.source.cfg.Metrics.called(h, "admit", r.Verb, time.Since(began), err)
	annotate(ctx, "mutation.webhook.admission.k8s.io/"+where, map[string]any{"configuration": h.configuration, "webhook": h.name, "mutated": changed})
	turn.Called(h.id, changed, h.reinvoke)
	if err == nil {
		return nil
	}
	failedOpen, err := p.source.outcome(ctx, h, err)
	if failedOpen {
		rest.Annotate(ctx, "failed-open.mutation.webhook.admission.k8s.io/"+where, h.name)
	}
	return err
}

// apply patches the object of a write.
func (p *Mutating) apply(ctx context.Context, h *hook, r *request.Request, t *request.Target, v *admission.VersionedAttributes, got *answer, where string) (bool, error) {
	if len(got.patch) == 0 {
		return false, nil
	}
	patch, err := jsonpatch.DecodePatch(got.patch)
	if err != nil {
		return false, &callError{h.name, fmt.Errorf("received undecodable patch in webhook response: %w", err)}
	}
	if len(patch) == 0 {
		return false, nil
	}
	obj := v.VersionedObject.Object()
	if obj == nil {
		return false, apierrors.NewInternalError(fmt.Errorf("admission webhook %q attempted to modify the object, which is not supported for this operation", h.name))
	}
	if got.patchType != admissionv1.PatchTypeJSONPatch {
		return false, &callError{h.name, fmt.Errorf("unsupported patch type %q", got.patchType)}
	}
	before, err := json.Marshal(obj)
	if err != nil {
		return false, apierrors.NewInternalError(err)
	}
	after, err := patch.Apply(before)
	if err != nil {
		return false, apierrors.NewInternalError(err)
	}
	next := r.New(t)
	if err := decodeObject(after, next); err != nil {
		return false, apierrors.NewInternalError(err)
	}
	annotate(ctx, "patch.webhook.admission.k8s.io/"+where, map[string]any{"configuration": h.configuration, "webhook": h.name, "patch": patch, "patchType": string(got.patchType)})
	changed := !apiequality.Semantic.DeepEqual(obj, next)
	if err := r.Complete(t, next); err != nil {
		return false, apierrors.NewInternalError(err)
	}
	if err := r.Replace(t, next); err != nil {
		return false, apierrors.NewInternalError(err)
	}
	return changed, nil
}

func decodeObject(data []byte, into runtime.Object) error {
	if u, ok := into.(*unstructured.Unstructured); ok {
		u.Object = nil
		return u.UnmarshalJSON(data)
	}
	return kjson.UnmarshalCaseSensitivePreserveInts(data, into)
}

func annotate(ctx context.Context, key string, value map[string]any) {
	if !rest.Annotates(ctx) {
		return
	}
	if b, err := json.Marshal(value); err == nil {
		rest.Annotate(ctx, key, string(b))
	}
}
