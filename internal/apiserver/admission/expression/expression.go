// Package expression compiles and evaluates the CEL expressions of admission:
// with the variables object, oldObject, request, namespaceObject, authorizer and
// params, Kubernetes' libraries, and its cost limits (KEP-3488, KEP-3716).
package expression

import (
	"context"
	"fmt"
	"sync"

	"github.com/google/cel-go/cel"
	celtypes "github.com/google/cel-go/common/types"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/apiserver/pkg/admission"
	plugincel "k8s.io/apiserver/pkg/admission/plugin/cel"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/cel/environment"

	"github.com/proa-dev/proa/internal/apiserver/auth"
)

// Environments are CEL's environments. They are made when the first expression
// asks for them, since most clusters have none.
type Environments struct {
	once       sync.Once
	base       *environment.EnvSet
	conditions plugincel.ConditionCompiler
	compiler   plugincel.Compiler
}

func (e *Environments) init() {
	e.once.Do(func() {
		e.base = environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion())
		e.conditions = plugincel.NewConditionCompiler(e.base)
		e.compiler = plugincel.NewCompiler(e.base)
	})
}

// Base is the environment without admission's variables.
func (e *Environments) Base() *environment.EnvSet {
	e.init()
	return e.base
}

// Compiler compiles single expressions.
func (e *Environments) Compiler() plugincel.Compiler {
	e.init()
	return e.compiler
}

// Condition is a matchCondition: a named expression that is a bool.
type Condition admissionregistrationv1.MatchCondition

func (c *Condition) GetExpression() string    { return c.Expression }
func (c *Condition) GetName() string          { return c.Name }
func (c *Condition) ReturnTypes() []*cel.Type { return []*cel.Type{cel.BoolType} }

// Conditions are the match conditions of a webhook or policy.
type Conditions struct {
	evaluator plugincel.ConditionEvaluator
	ignore    bool
}

// Conditions compiles match conditions; ignore says that those that fail leave a
// write out, instead of refusing it. compile compiles with more variables (nil: those of webhooks).
func (e *Environments) Conditions(list []admissionregistrationv1.MatchCondition, ignore bool, compile plugincel.ConditionCompiler, params bool) *Conditions {
	if len(list) == 0 {
		return nil
	}
	e.init()
	if compile == nil {
		compile = e.conditions
	}
	accessors := make([]plugincel.ExpressionAccessor, len(list))
	for i := range list {
		accessors[i] = (*Condition)(&list[i])
	}
	return &Conditions{ignore: ignore, evaluator: compile.CompileCondition(accessors,
		plugincel.OptionalVariableDeclarations{HasParams: params, HasAuthorizer: true}, environment.StoredExpressions)}
}

// Match reports whether all conditions hold for a write. One that is false
// decides, whatever errors the others have.
func (c *Conditions) Match(ctx context.Context, v *admission.VersionedAttributes, request *Bindings) (bool, error) {
	if c == nil {
		return true, nil
	}
	results, _, err := c.evaluator.ForInput(ctx, v, request.Request, request.Optional, request.Namespace, celconfig.RuntimeCELCostBudgetMatchConditions)
	if err != nil {
		if c.ignore {
			return false, nil
		}
		return false, err
	}
	var errs []error
	for _, r := range results {
		if r.Error != nil {
			errs = append(errs, r.Error)
		} else if r.EvalResult == celtypes.False {
			return false, nil
		}
	}
	if len(errs) == 0 {
		return true, nil
	}
	if c.ignore {
		return false, nil
	}
	return false, utilerrors.NewAggregate(errs)
}

// authorize gives expressions the cluster's authorizer.
type authorize struct{ next auth.Authorizer }

// Authorizer returns what expressions ask for rights.
func Authorizer(a auth.Authorizer) authorizer.UnconditionalAuthorizer { return authorize{a} }

func (a authorize) Authorize(ctx context.Context, x authorizer.Attributes) (authorizer.Decision, string, error) {
	if a.next == nil {
		return authorizer.DecisionNoOpinion, "", fmt.Errorf("no authorizer")
	}
	ok, reason, err := a.next.Authorize(ctx, auth.Attributes{User: x.GetUser(), Verb: x.GetVerb(), Namespace: x.GetNamespace(), APIGroup: x.GetAPIGroup(),
		APIVersion: x.GetAPIVersion(), Resource: x.GetResource(), Subresource: x.GetSubresource(), Name: x.GetName(), ResourceRequest: x.IsResourceRequest(), Path: x.GetPath()})
	if ok {
		return authorizer.DecisionAllow, reason, err
	}
	return authorizer.DecisionNoOpinion, reason, err
}
