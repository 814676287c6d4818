package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	plugincel "k8s.io/apiserver/pkg/admission/plugin/cel"
	"k8s.io/apiserver/pkg/admission/plugin/policy/mutating/patch"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/cel/environment"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver/admission/expression"
	"github.com/proa-dev/proa/internal/apiserver/admission/request"
	"github.com/proa-dev/proa/internal/apiserver/rest"
)

// mutator is a compiled MutatingAdmissionPolicy.
type mutator struct {
	patchers []patch.Patcher
	again    bool // reinvocationPolicy IfNeeded
	compiler *plugincel.CompositedCompiler
}

// Mutating evaluates MutatingAdmissionPolicies.
type Mutating struct{ source *source[*mutator] }

// NewMutating returns the plugin.
func NewMutating(cfg Config) *Mutating {
	p := &Mutating{}
	p.source = newSource(cfg, mutatingGVR, mutatingBindingsGVR, p.compile, func(obj api.Object) *binding {
		b := obj.(*admissionregistrationv1.MutatingAdmissionPolicyBinding)
		return newBinding(b.Name, b.Spec.PolicyName, b.Spec.MatchResources, b.Spec.ParamRef)
	})
	return p
}

func (p *Mutating) compile(obj api.Object) *policy[*mutator] {
	x := obj.(*admissionregistrationv1.MutatingAdmissionPolicy).DeepCopy()
	spec := &x.Spec
	out := &policy[*mutator]{name: x.Name, ignore: spec.FailurePolicy != nil && *spec.FailurePolicy == admissionregistrationv1.Ignore, paramKind: spec.ParamKind}
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
	m := &mutator{again: spec.ReinvocationPolicy == admissionregistrationv1.IfNeededReinvocationPolicy, compiler: c}
	opts.HasPatchTypes = true
	for _, mutation := range spec.Mutations {
		switch {
		case mutation.PatchType == admissionregistrationv1.PatchTypeJSONPatch && mutation.JSONPatch != nil:
			m.patchers = append(m.patchers, patch.NewJSONPatcher(c.CompileMutatingEvaluator(&patch.JSONPatchCondition{Expression: mutation.JSONPatch.Expression}, opts, environment.StoredExpressions)))
		case mutation.PatchType == admissionregistrationv1.PatchTypeApplyConfiguration && mutation.ApplyConfiguration != nil:
			m.patchers = append(m.patchers, patch.NewApplyConfigurationPatcher(c.CompileMutatingEvaluator(&patch.ApplyConfigurationCondition{Expression: mutation.ApplyConfiguration.Expression}, opts, environment.StoredExpressions)))
		}
	}
	out.evaluator = m
	return out
}

// Active reports whether any policy can be in force.
func (p *Mutating) Active() bool { return p.source.active() }

// Mutate evaluates the policies whose turn it is in a round.
func (p *Mutating) Mutate(ctx context.Context, a *rest.Attributes, round *request.Round) error {
	if !p.source.active() || request.Exempt(a.Resource) {
		return nil
	}
	turn := round.Begin(p, a)
	defer turn.End(a)
	r := request.New(a, p.source.cfg.Cluster)
	var refused []refusal
	for _, x := range p.source.policies() {
		t, err := r.Match(x.criteria)
		if err == nil && t == nil {
			continue
		}
		if err == nil {
			err = x.broken
		}
		if err != nil {
			if !x.ignore {
				refused = append(refused, refusal{policy: x.name, message: fmt.Sprintf("failed to configure policy: %v", err)})
			}
			continue
		}
		for _, b := range x.bindings {
			ps, err := bound(p.source.cfg.Cluster, r, x.paramKind, b)
			if err != nil {
				if !x.ignore {
					refused = append(refused, refusal{policy: x.name, binding: b.name, message: fmt.Sprintf("failed to configure binding: %v", err)})
				}
				continue
			}
			for _, param := range ps {
				errs, err := p.invoke(ctx, r, t, x, b, param, turn)
				if err != nil {
					return err
				}
				for _, e := range errs {
					if !x.ignore {
						refused = append(refused, refusal{policy: x.name, binding: b.name, message: e.Error(), reason: metav1.StatusReasonInvalid})
					}
				}
			}
		}
	}
	return refuse(a, refused)
}

// invoke evaluates a policy for one binding and parameter. errs are failures of
// the policy; err ends the request.
func (p *Mutating) invoke(ctx context.Context, r *request.Request, t *request.Target, x *policy[*mutator], b *binding, param runtime.Object, turn *request.Turn) (errs []error, err error) {
	namespace, ok := r.NamespaceObject()
	if !ok {
		return nil, apierrors.NewNotFound(namespaces, r.Namespace)
	}
	v, err := r.As(t)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	values := expression.Bind(v, t, namespace, param, p.source.cfg.Authorizer)
	matches, err := x.conditions.Match(ctx, v, values)
	if err != nil {
		return []error{err}, nil
	}
	id := x.name + "/" + b.name
	if o, isObject := param.(metav1.Object); isObject {
		id += "/" + o.GetNamespace() + "/" + o.GetName()
	}
	if !matches || !turn.Calls(id) {
		return nil, nil
	}
	changed := false
	for _, patcher := range x.evaluator.patchers {
		if v.VersionedObject.Object() == nil {
			break // there is nothing to change in a delete
		}
		did, err := p.patch(ctx, r, t, x.evaluator.compiler.CreateContext(ctx), patcher, namespace, values)
		if status, ok := errors.AsType[*apierrors.StatusError](err); ok {
			return nil, status
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		changed = changed || did
	}
	turn.Called(id, changed, x.evaluator.again)
	return errs, nil
}

// patch applies one mutation.
func (p *Mutating) patch(ctx context.Context, r *request.Request, t *request.Target, evaluation context.Context, patcher patch.Patcher, namespace *corev1.Namespace, values *expression.Bindings) (changed bool, err error) {
	v, err := r.As(t)
	if err != nil {
		return false, apierrors.NewInternalError(err)
	}
	types := p.source.cfg.Cluster.Types(t.Resource)
	if types == nil {
		return false, apierrors.NewServiceUnavailable(fmt.Sprintf("Resource kind %s not found. There can be a delay between when CustomResourceDefinitions are created and when they are available.", t.Kind))
	}
	before := v.VersionedObject.Object()
	out, err := patcher.Patch(evaluation, patch.Request{MatchedResource: t.Resource, VersionedAttributes: v, ObjectInterfaces: objects{r, t},
		OptionalVariables: values.Optional, Namespace: values.Namespace, TypeConverter: types}, celconfig.RuntimeCELCostBudget)
	if err != nil || out == before {
		return false, err
	}
	next := out
	if u, merged := out.(*unstructured.Unstructured); merged {
		next = r.New(t)
		if _, custom := next.(*unstructured.Unstructured); custom {
			next = u
		} else if err := decode(u, next); err != nil {
			return false, apierrors.NewInternalError(err)
		}
	}
	next.GetObjectKind().SetGroupVersionKind(t.Kind)
	if err := r.Complete(t, next); err != nil {
		return false, apierrors.NewInternalError(err)
	}
	changed = !apiequality.Semantic.DeepEqual(before, next)
	if err := r.Replace(t, next); err != nil {
		return false, apierrors.NewInternalError(err)
	}
	return changed, nil
}

// decode turns a merged object into its Go type.
func decode(u *unstructured.Unstructured, into runtime.Object) error {
	b, err := json.Marshal(u.Object)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, into)
}

// refusal is a policy that failed, and thereby refuses the write.
type refusal struct {
	policy, binding, message string
	reason                   metav1.StatusReason
}

func refuse(a *rest.Attributes, list []refusal) error {
	if len(list) == 0 {
		return nil
	}
	err := apierrors.NewForbidden(a.Resource.GVR.GroupResource(), a.Name, errors.New("admission request denied by policy"))
	for i, r := range list {
		text := fmt.Sprintf("policy %q denied request: %s", r.policy, r.message)
		if r.binding != "" {
			text = fmt.Sprintf("policy '%s' with binding '%s' denied request: %s", r.policy, r.binding, r.message)
		}
		if i == 0 {
			err.ErrStatus.Message = text
			if r.reason != "" {
				err.ErrStatus.Reason = r.reason
			}
		}
		err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes, metav1.StatusCause{Message: text})
	}
	return err
}

// objects makes the patchers' objects.
type objects struct {
	r *request.Request
	t *request.Target
}

func (o objects) New(schema.GroupVersionKind) (runtime.Object, error) { return o.r.New(o.t), nil }

func (o objects) GetObjectCreater() runtime.ObjectCreater     { return o }
func (o objects) GetObjectTyper() runtime.ObjectTyper         { return runtime.NewScheme() }
func (o objects) GetObjectDefaulter() runtime.ObjectDefaulter { return runtime.NewScheme() }
func (o objects) GetObjectConvertor() runtime.ObjectConvertor { return runtime.NewScheme() }
func (o objects) GetEquivalentResourceMapper() runtime.EquivalentResourceMapper {
	return runtime.NewEquivalentResourceRegistry()
}

var _ admission.ObjectInterfaces = objects{}
