package policy

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/google/cel-go/cel"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	plugincel "k8s.io/apiserver/pkg/admission/plugin/cel"
	"k8s.io/apiserver/pkg/admission/plugin/policy/mutating/patch"
	apiservercel "k8s.io/apiserver/pkg/cel"
	"k8s.io/apiserver/pkg/cel/environment"

	"github.com/proa-dev/proa/internal/apiserver/admission/expression"
	"github.com/proa-dev/proa/internal/apiserver/rest"
)

// Expressions refuses webhook configurations and policies whose expressions do
// not compile. Those that an object has already may use what older releases knew.
type Expressions struct {
	Environments *expression.Environments
}

func (p Expressions) Validate(_ context.Context, a *rest.Attributes) error {
	if a.Resource.GVR.Group != admissionregistrationv1.GroupName || a.Subresource != "" || a.Verb != rest.Create && a.Verb != rest.Update {
		return nil
	}
	found := expressionsOf(a.Object)
	if len(found) == 0 {
		return nil
	}
	known := map[string]bool{}
	for _, e := range expressionsOf(a.Old) {
		known[e.accessor.GetExpression()] = true
	}
	if o, ok := a.Object.(metav1.Object); ok && a.Old != nil && o.GetGeneration() == a.Old.GetGeneration() {
		return nil // they were compiled when they were written
	}
	var composed *plugincel.CompositedCompiler // keeps a policy's variables
	var errs field.ErrorList
	for _, e := range found {
		env := environment.NewExpressions
		if known[e.accessor.GetExpression()] {
			env = environment.StoredExpressions
		}
		var result plugincel.CompilationResult
		switch {
		case e.alone:
			result = p.Environments.Compiler().CompileCELExpression(e.accessor, e.declared, env)
		default:
			if composed == nil {
				var err error
				if composed, err = plugincel.NewCompositedCompiler(p.Environments.Base()); err != nil {
					return apierrors.NewInternalError(fmt.Errorf("prepare the compiler of expressions: %w", err))
				}
			}
			if v, ok := e.accessor.(*variable); ok {
				result = composed.CompileAndStoreVariable(v, e.declared, env)
			} else {
				result = composed.CompileCELExpression(e.accessor, e.declared, env)
			}
		}
		if result.Error != nil {
			errs = append(errs, asFieldError(e, result.Error))
		}
	}
	if len(errs) == 0 {
		return nil
	}
	return apierrors.NewInvalid(a.Resource.GVK.GroupKind(), a.Name, errs)
}

// found is an expression of an object.
type found struct {
	path     *field.Path
	accessor plugincel.ExpressionAccessor
	declared plugincel.OptionalVariableDeclarations
	alone    bool // compiled without the policy's variables
}

func asFieldError(e found, err *apiservercel.Error) *field.Error {
	switch err.Type {
	case apiservercel.ErrorTypeRequired:
		return field.Required(e.path, err.Detail)
	case apiservercel.ErrorTypeInvalid:
		return field.Invalid(e.path, e.accessor.GetExpression(), err.Detail)
	case apiservercel.ErrorTypeInternal:
		return field.InternalError(e.path, err)
	}
	return field.InternalError(e.path, fmt.Errorf("unsupported error type: %w", errors.Join(err)))
}

// trimmed is a match condition without the space around it, as it is reported.
type trimmed struct{ expression string }

func (t *trimmed) GetExpression() string    { return t.expression }
func (t *trimmed) ReturnTypes() []*cel.Type { return []*cel.Type{cel.BoolType} }

func expressionsOf(obj runtime.Object) (out []found) {
	conditions := func(list []admissionregistrationv1.MatchCondition, at *field.Path, params bool) {
		for i := range list {
			if s := strings.TrimSpace(list[i].Expression); s != "" {
				out = append(out, found{at.Child("matchConditions").Index(i).Child("expression"), &trimmed{s}, plugincel.OptionalVariableDeclarations{HasParams: params, HasAuthorizer: true}, true})
			}
		}
	}
	named := func(list []admissionregistrationv1.Variable, at *field.Path, o plugincel.OptionalVariableDeclarations) {
		for i := range list {
			if strings.TrimSpace(list[i].Expression) != "" && list[i].Name != "" {
				out = append(out, found{at.Child("variables").Index(i).Child("expression"), &variable{&list[i]}, o, false})
			}
		}
	}
	spec := field.NewPath("spec")
	switch x := obj.(type) {
	case *admissionregistrationv1.MutatingWebhookConfiguration:
		for i := range x.Webhooks {
			conditions(x.Webhooks[i].MatchConditions, field.NewPath("webhooks").Index(i), false)
		}
	case *admissionregistrationv1.ValidatingWebhookConfiguration:
		for i := range x.Webhooks {
			conditions(x.Webhooks[i].MatchConditions, field.NewPath("webhooks").Index(i), false)
		}
	case *admissionregistrationv1.ValidatingAdmissionPolicy:
		o := plugincel.OptionalVariableDeclarations{HasParams: x.Spec.ParamKind != nil, HasAuthorizer: true}
		conditions(x.Spec.MatchConditions, spec, o.HasParams)
		named(x.Spec.Variables, spec, o)
		for i := range x.Spec.Validations {
			v, at := &x.Spec.Validations[i], spec.Child("validations").Index(i)
			if strings.TrimSpace(v.Expression) != "" {
				out = append(out, found{at.Child("expression"), &validation{v}, o, false})
			}
			if strings.TrimSpace(v.MessageExpression) != "" {
				out = append(out, found{at.Child("messageExpression"), &message{v}, plugincel.OptionalVariableDeclarations{HasParams: o.HasParams}, false})
			}
		}
		for i := range x.Spec.AuditAnnotations {
			if a := &x.Spec.AuditAnnotations[i]; strings.TrimSpace(a.ValueExpression) != "" {
				out = append(out, found{spec.Child("auditAnnotations").Index(i).Child("valueExpression"), &auditAnnotation{a}, o, false})
			}
		}
	case *admissionregistrationv1.MutatingAdmissionPolicy:
		o := plugincel.OptionalVariableDeclarations{HasParams: x.Spec.ParamKind != nil, HasAuthorizer: true}
		conditions(x.Spec.MatchConditions, spec, o.HasParams)
		named(x.Spec.Variables, spec, o)
		o.HasPatchTypes = true
		for i := range x.Spec.Mutations {
			m, at := &x.Spec.Mutations[i], spec.Child("mutations").Index(i)
			if m.ApplyConfiguration != nil && strings.TrimSpace(m.ApplyConfiguration.Expression) != "" {
				out = append(out, found{at.Child("applyConfiguration", "expression"), &patch.ApplyConfigurationCondition{Expression: strings.TrimSpace(m.ApplyConfiguration.Expression)}, o, false})
			}
			if m.JSONPatch != nil && strings.TrimSpace(m.JSONPatch.Expression) != "" {
				out = append(out, found{at.Child("jsonPatch", "expression"), &patch.JSONPatchCondition{Expression: strings.TrimSpace(m.JSONPatch.Expression)}, o, false})
			}
		}
	}
	return out
}
