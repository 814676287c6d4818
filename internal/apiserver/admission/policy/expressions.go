package policy

import (
	"github.com/google/cel-go/cel"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	plugincel "k8s.io/apiserver/pkg/admission/plugin/cel"
	"k8s.io/apiserver/pkg/cel/environment"
)

// The expressions of a policy, with the types that they may have.
type (
	validation struct {
		*admissionregistrationv1.Validation
	}
	message struct {
		*admissionregistrationv1.Validation
	}
	auditAnnotation struct {
		*admissionregistrationv1.AuditAnnotation
	}
	variable struct {
		*admissionregistrationv1.Variable
	}
)

func (v *validation) GetExpression() string         { return v.Expression }
func (v *validation) ReturnTypes() []*cel.Type      { return []*cel.Type{cel.BoolType} }
func (v *message) GetExpression() string            { return v.MessageExpression }
func (v *message) ReturnTypes() []*cel.Type         { return []*cel.Type{cel.StringType} }
func (v *auditAnnotation) GetExpression() string    { return v.ValueExpression }
func (v *auditAnnotation) ReturnTypes() []*cel.Type { return []*cel.Type{cel.StringType, cel.NullType} }
func (v *variable) GetExpression() string           { return v.Expression }
func (v *variable) GetName() string                 { return v.Name }
func (v *variable) ReturnTypes() []*cel.Type        { return []*cel.Type{cel.AnyType, cel.DynType} }

func variables(list []admissionregistrationv1.Variable) []plugincel.NamedExpressionAccessor {
	out := make([]plugincel.NamedExpressionAccessor, len(list))
	for i := range list {
		out[i] = &variable{&list[i]}
	}
	return out
}

// compiler returns a compiler that knows a policy's variables.
func compiler(base *environment.EnvSet, list []admissionregistrationv1.Variable, opts plugincel.OptionalVariableDeclarations) (*plugincel.CompositedCompiler, error) {
	c, err := plugincel.NewCompositedCompiler(base)
	if err != nil {
		return nil, err
	}
	c.CompileAndStoreVariables(variables(list), opts, environment.StoredExpressions)
	return c, nil
}
