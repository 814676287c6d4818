package webhook

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apiserver/pkg/admission"

	"github.com/proa-dev/proa/internal/apiserver/admission/expression"
	"github.com/proa-dev/proa/internal/apiserver/admission/request"
	"github.com/proa-dev/proa/internal/apiserver/rest"
)

func (s *source) bind(v *admission.VersionedAttributes, t *request.Target) *expression.Bindings {
	return expression.Bind(v, t, nil, nil, s.cfg.Authorizer)
}

// Validating asks the webhooks of ValidatingWebhookConfigurations, all at once.
type Validating struct{ source *source }

// NewValidating returns the plugin.
func NewValidating(cfg Config) *Validating {
	p := &Validating{}
	p.source = newSource(cfg, validatingGVR, func(obj apiObject) []*hook { return p.source.validating(obj) })
	return p
}

func (p *Validating) Validate(ctx context.Context, a *rest.Attributes) error {
	if !p.source.active() || request.Exempt(a.Resource) {
		return nil
	}
	type call struct {
		hook   *hook
		target *request.Target
		v      *admission.VersionedAttributes
		answer *answer
		err    error
		took   time.Duration
	}
	r := request.New(a, p.source.cfg.Cluster)
	var calls []*call
	for _, h := range p.source.hooks() {
		t, err := p.source.concerns(ctx, h, r)
		if err != nil {
			return err
		}
		if t == nil {
			continue
		}
		v, err := r.As(t)
		if err != nil {
			return apierrors.NewInternalError(err)
		}
		calls = append(calls, &call{hook: h, target: t, v: v})
	}
	if len(calls) == 0 {
		return nil
	}
	if ctx.Err() != nil {
		return apierrors.NewTimeoutError("request did not complete within requested timeout", 0)
	}
	var wg sync.WaitGroup
	for _, c := range calls {
		wg.Go(func() {
			began := time.Now()
			c.answer, c.err = p.source.call(ctx, c.hook, c.v, c.target, false)
			c.took = time.Since(began)
		})
	}
	wg.Wait()
	var first error
	for i, c := range calls {
		err := c.err
		if err == nil {
			say(ctx, c.hook, c.answer)
			if !c.answer.allowed {
				err = denied(c.hook.name, c.answer.result)
			}
		}
		p.source.cfg.Metrics.called(c.hook, "validating", a.Verb, c.took, err)
		if err != nil {
			failedOpen := false
			if failedOpen, err = p.source.outcome(ctx, c.hook, err); failedOpen {
				rest.Annotate(ctx, fmt.Sprintf("failed-open.validating.webhook.admission.k8s.io/round_0_index_%d", i), c.hook.name)
			}
		}
		if first == nil {
			first = err
		}
	}
	return first
}

// say hands on what a webhook said beside its decision.
func say(ctx context.Context, h *hook, a *answer) {
	for _, k := range slices.Sorted(maps.Keys(a.annotations)) {
		rest.Annotate(ctx, h.name+"/"+k, a.annotations[k])
	}
	for _, w := range a.warnings {
		rest.Warn(ctx, w)
	}
}
