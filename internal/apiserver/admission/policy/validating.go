package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	celtypes "github.com/google/cel-go/common/types"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/admission"
	plugincel "k8s.io/apiserver/pkg/admission/plugin/cel"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	apiservercel "k8s.io/apiserver/pkg/cel"
	"k8s.io/apiserver/pkg/cel/environment"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver/admission/expression"
	"github.com/proa-dev/proa/internal/apiserver/admission/request"
	"github.com/proa-dev/proa/internal/apiserver/rest"
)

// validator is a compiled ValidatingAdmissionPolicy.
type validator struct {
	validations, messages, annotations plugincel.ConditionEvaluator
}

// Validating evaluates ValidatingAdmissionPolicies.
type Validating struct{ source *source[*validator] }

// NewValidating returns the plugin.
func NewValidating(cfg Config) *Validating {
	p := &Validating{}
	p.source = newSource(cfg, validatingGVR, validatingBindingsGVR, p.compile, func(obj api.Object) *binding {
		b := obj.(*admissionregistrationv1.ValidatingAdmissionPolicyBinding)
		out := newBinding(b.Name, b.Spec.PolicyName, b.Spec.MatchResources, b.Spec.ParamRef)
		out.actions = b.Spec.ValidationActions
		return out
	})
	return p
}

func (p *Validating) compile(obj api.Object) *policy[*validator] {
	x := obj.(*admissionregistrationv1.ValidatingAdmissionPolicy).DeepCopy()
	spec := &x.Spec
	out := &policy[*validator]{name: x.Name, ignore: spec.FailurePolicy != nil && *spec.FailurePolicy == admissionregistrationv1.Ignore, paramKind: spec.ParamKind}
	if spec.MatchConstraints == nil {
		out.criteria, out.broken = &request.Criteria{}, errors.New("policy contained no match constraints, a required field")
		return out
	}
	if out.criteria, out.broken = criteria(spec.MatchConstraints); out.broken != nil {
		return out
	}
	opts := plugincel.OptionalVariableDeclarations{HasParams: spec.ParamKind != nil, HasAuthorizer: true}
	c, err := compiler(p.source.cfg.Environments.Base(), spec.Variables, opts)
	if err != nil {
		out.broken = err
		return out
	}
	out.conditions = p.source.cfg.Environments.Conditions(spec.MatchConditions, out.ignore, c, opts.HasParams)
	validations, messages := make([]plugincel.ExpressionAccessor, len(spec.Validations)), make([]plugincel.ExpressionAccessor, len(spec.Validations))
	for i := range spec.Validations {
		validations[i] = &validation{&spec.Validations[i]}
		if spec.Validations[i].MessageExpression != "" {
			messages[i] = &message{&spec.Validations[i]}
		}
	}
	annotations := make([]plugincel.ExpressionAccessor, len(spec.AuditAnnotations))
	for i := range spec.AuditAnnotations {
		annotations[i] = &auditAnnotation{&spec.AuditAnnotations[i]}
	}
	out.evaluator = &validator{
		validations: c.CompileCondition(validations, opts, environment.StoredExpressions),
		messages:    c.CompileCondition(messages, plugincel.OptionalVariableDeclarations{HasParams: opts.HasParams}, environment.StoredExpressions),
		annotations: c.CompileCondition(annotations, opts, environment.StoredExpressions),
	}
	return out
}

// decision is what one validation says of a write, when that is no.
type decision struct {
	index   int
	message string
	reason  metav1.StatusReason
}

// denial is the first decision that refuses a write.
type denial struct {
	policy, binding string
	decision
}

// failure is an entry of the audit annotation of failed validations.
type failure struct {
	Message           string                                     `json:"message"`
	Policy            string                                     `json:"policy"`
	Binding           string                                     `json:"binding"`
	ExpressionIndex   int                                        `json:"expressionIndex"`
	ValidationActions []admissionregistrationv1.ValidationAction `json:"validationActions"`
}

const (
	mostFailures     = 50        // in the audit annotation
	longestAnnotated = 10 * 1024 // bytes of a value of an audit annotation
)

func (p *Validating) Validate(ctx context.Context, a *rest.Attributes) error {
	if !p.source.active() || request.Exempt(a.Resource) {
		return nil
	}
	r := request.New(a, p.source.cfg.Cluster)
	w := &verdict{a: a}
	for _, x := range p.source.policies() {
		t, err := r.Match(x.criteria)
		if err == nil && t == nil {
			continue
		}
		if err == nil {
			err = x.broken
		}
		if err != nil {
			w.failed(x.ignore, x.name, "", fmt.Sprintf("failed to configure policy: %v", err))
			continue
		}
		if err := p.evaluate(ctx, r, t, x, w); err != nil {
			return err
		}
	}
	return w.publish(ctx)
}

// evaluate evaluates a policy for each of its bindings and their parameters.
func (p *Validating) evaluate(ctx context.Context, r *request.Request, t *request.Target, x *policy[*validator], w *verdict) error {
	annotated := map[string][]string{}
	for _, b := range x.bindings {
		ps, err := bound(p.source.cfg.Cluster, r, x.paramKind, b)
		if err == nil && len(ps) > 0 {
			namespace, ok := r.NamespaceObject()
			if !ok {
				return apierrors.NewNotFound(namespaces, r.Namespace)
			}
			var v *admission.VersionedAttributes
			if v, err = r.As(t); err != nil {
				err = fmt.Errorf("failed to convert object version: %w", err)
			} else {
				for _, param := range ps {
					p.decide(ctx, x, b, v, expression.Bind(v, t, namespace, param, p.source.cfg.Authorizer), w, annotated)
				}
			}
		}
		if err != nil {
			w.failed(x.ignore, x.name, b.name, fmt.Sprintf("failed to configure binding: %v", err))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(annotated)) {
		rest.Annotate(ctx, x.name+"/"+key, strings.Join(annotated[key], ", "))
	}
	return nil
}

// decide evaluates a policy for one binding and parameter.
func (p *Validating) decide(ctx context.Context, x *policy[*validator], b *binding, v *admission.VersionedAttributes, values *expression.Bindings, w *verdict, annotated map[string][]string) {
	decisions, err := x.evaluator.validate(ctx, x, v, values)
	if err != nil {
		if x.ignore {
			return
		}
		decisions = []decision{{message: err.Error()}}
	}
	for _, d := range decisions {
		for _, action := range b.actions {
			switch action {
			case admissionregistrationv1.Deny:
				w.deny(denial{x.name, b.name, d})
			case admissionregistrationv1.Audit:
				w.failures = append(w.failures, failure{Message: d.message, Policy: x.name, Binding: b.name, ExpressionIndex: d.index, ValidationActions: b.actions})
			case admissionregistrationv1.Warn:
				rest.Warn(ctx, fmt.Sprintf("Validation failed for ValidatingAdmissionPolicy '%s' with binding '%s': %s", x.name, b.name, d.message))
			}
		}
	}
	if err != nil || decisions == nil {
		return
	}
	results, _, err := x.evaluator.annotations.ForInput(ctx, v, values.Request, values.Optional, values.Namespace, celconfig.RuntimeCELCostBudget)
	if err != nil {
		w.failed(x.ignore, x.name, b.name, err.Error())
		return
	}
	for _, res := range results {
		note, ok := res.ExpressionAccessor.(*auditAnnotation)
		if !ok {
			continue
		}
		switch {
		case res.Error != nil:
			w.failed(x.ignore, x.name, b.name, res.Error.Error())
		case res.EvalResult.Type() == celtypes.StringType:
			value := strings.TrimSpace(res.EvalResult.Value().(string))
			value = value[:min(len(value), longestAnnotated)]
			if value != "" && !slices.Contains(annotated[note.Key], value) {
				annotated[note.Key] = append(annotated[note.Key], value)
			}
		case res.EvalResult.Type() != celtypes.NullType:
			w.failed(false, x.name, b.name, fmt.Sprintf("valueExpression '%v' resulted in unsupported return type: %v. Return type must be either string or null.", note.ValueExpression, res.EvalResult.Type()))
		}
	}
}

// validate returns the decisions against a write; nil when the policy's
// conditions leave it out, else not nil.
func (e *validator) validate(ctx context.Context, x *policy[*validator], v *admission.VersionedAttributes, values *expression.Bindings) ([]decision, error) {
	ok, err := x.conditions.Match(ctx, v, values)
	if err != nil || !ok {
		return nil, err
	}
	results, left, err := e.validations.ForInput(ctx, v, values.Request, values.Optional, values.Namespace, celconfig.RuntimeCELCostBudget)
	if err != nil {
		return nil, err
	}
	messages, _, messageErr := e.messages.ForInput(ctx, v, values.Request, plugincel.OptionalVariableBindings{VersionedParams: values.Optional.VersionedParams}, values.Namespace, left)
	out := []decision{}
	for i, res := range results {
		rule := res.ExpressionAccessor.(*validation)
		switch {
		case res.Error != nil:
			if !x.ignore {
				out = append(out, decision{index: i, message: res.Error.Error()})
			}
		case errors.Is(messageErr, apiservercel.ErrInternal), errors.Is(messageErr, apiservercel.ErrOutOfBudget):
			if !x.ignore {
				out = append(out, decision{index: i, message: fmt.Sprintf("failed messageExpression: %s", messageErr)})
			}
		case res.EvalResult != celtypes.True:
			d := decision{index: i, reason: metav1.StatusReasonInvalid}
			if rule.Reason != nil {
				d.reason = *rule.Reason
			}
			if i < len(messages) {
				d.message = said(messages[i])
			}
			if d.message == "" {
				d.message = strings.TrimSpace(rule.Message)
			}
			if d.message == "" {
				d.message = "failed expression: " + strings.TrimSpace(rule.Expression)
			}
			out = append(out, d)
		}
	}
	return out, nil
}

// said is the message that an expression made; "": none that can be shown.
func said(r plugincel.EvaluationResult) string {
	if r.Error != nil || r.EvalResult == nil {
		return ""
	}
	s, ok := r.EvalResult.Value().(string)
	s = strings.TrimSpace(s)
	if !ok || len(s) > celconfig.MaxEvaluatedMessageExpressionSizeBytes || strings.Contains(s, "\n") {
		return ""
	}
	return s
}

// verdict gathers what all policies say of a write.
type verdict struct {
	a        *rest.Attributes
	denied   *denial
	failures []failure
}

func (w *verdict) deny(d denial) {
	if w.denied == nil {
		w.denied = &d
	}
}

// failed is a policy that could not be evaluated.
func (w *verdict) failed(ignore bool, policy, binding, message string) {
	if !ignore {
		w.deny(denial{policy, binding, decision{message: message}})
	}
}

func (w *verdict) publish(ctx context.Context) error {
	if len(w.failures) > 0 && rest.Annotates(ctx) {
		if b, err := json.Marshal(w.failures[:min(len(w.failures), mostFailures)]); err == nil {
			rest.Annotate(ctx, "validation.policy.admission.k8s.io/validation_failure", string(b))
		}
	}
	d := w.denied
	if d == nil {
		return nil
	}
	by := fmt.Sprintf("ValidatingAdmissionPolicy '%s'", d.policy)
	if d.binding != "" {
		by += fmt.Sprintf(" with binding '%s'", d.binding)
	}
	text := by + " denied request: " + d.message
	err := apierrors.NewForbidden(w.a.Resource.GVR.GroupResource(), w.a.Name, errors.New(text))
	reason := d.reason
	if reason == "" {
		reason = metav1.StatusReasonInvalid
	}
	err.ErrStatus.Reason = reason
	err.ErrStatus.Code = code(reason)
	err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes, metav1.StatusCause{Message: text})
	return err
}

func code(reason metav1.StatusReason) int32 {
	switch reason {
	case metav1.StatusReasonForbidden:
		return http.StatusForbidden
	case metav1.StatusReasonUnauthorized:
		return http.StatusUnauthorized
	case metav1.StatusReasonRequestEntityTooLarge:
		return http.StatusRequestEntityTooLarge
	}
	return http.StatusUnprocessableEntity
}
