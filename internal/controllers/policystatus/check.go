package policystatus

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/google/cel-go/cel"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apimachinery/pkg/util/version"
	plugincel "k8s.io/apiserver/pkg/admission/plugin/cel"
	apiservercel "k8s.io/apiserver/pkg/cel"
	"k8s.io/apiserver/pkg/cel/common"
	"k8s.io/apiserver/pkg/cel/environment"
	"k8s.io/apiserver/pkg/cel/library"
	"k8s.io/apiserver/pkg/cel/openapi"
)

// mostTypes bounds the kinds against which a policy is checked.
const mostTypes = 10

// variablesType is the type of the variable "variables".
const variablesType = "kubernetes.variables"

// check returns what is wrong with a policy's validations for the kinds that it matches.
func (x *Controller) check(ctx context.Context, p *admissionregistrationv1.ValidatingAdmissionPolicy) (out []admissionregistrationv1.ExpressionWarning, err error) {
	gvks, err := x.kinds(ctx, p)
	if err != nil || len(gvks) == 0 {
		return nil, err
	}
	var params *apiservercel.DeclType
	hasParams := p.Spec.ParamKind != nil
	if hasParams {
		if gv, err := schema.ParseGroupVersion(p.Spec.ParamKind.APIVersion); err == nil {
			if params, err = x.declared(gv.WithKind(p.Spec.ParamKind.Kind), "params"); err != nil {
				return nil, err
			}
		}
	}
	type target struct {
		gvk schema.GroupVersionKind
		env *cel.Env
	}
	var targets []target
	for i, gvk := range gvks {
		object, err := x.declared(gvk, fmt.Sprintf("object%d", i))
		if err != nil {
			return nil, err
		}
		if object == nil {
			continue
		}
		env, err := typed(object, params, hasParams, p.Spec.Variables)
		if err != nil {
			return nil, fmt.Errorf("prepare the types of %s: %w", gvk, err)
		}
		targets = append(targets, target{gvk, env})
	}
	against := func(at *field.Path, expression string) {
		var found []string
		for _, t := range targets {
			if _, issues := t.env.Compile(expression); issues != nil {
				found = append(found, fmt.Sprintf("%v: %s\n", t.gvk, issues))
			}
		}
		if len(found) > 0 {
			out = append(out, admissionregistrationv1.ExpressionWarning{FieldRef: at.String(), Warning: strings.Join(found, "\n")})
		}
	}
	for i, v := range p.Spec.Validations {
		at := field.NewPath("spec", "validations").Index(i)
		against(at.Child("expression"), v.Expression)
		if v.MessageExpression != "" {
			against(at.Child("messageExpression"), v.MessageExpression)
		}
	}
	return out, nil
}

// kinds are those that a policy's rules name; wildcards name none.
func (x *Controller) kinds(ctx context.Context, p *admissionregistrationv1.ValidatingAdmissionPolicy) (out []schema.GroupVersionKind, err error) {
	if p.Spec.MatchConstraints == nil {
		return nil, nil
	}
	served, err := x.client.Resources(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the resources: %w", err)
	}
	open := func(s string) bool { return strings.Contains(s, "*") }
	for _, rule := range p.Spec.MatchConstraints.ResourceRules {
		if slices.ContainsFunc(rule.APIGroups, open) || slices.ContainsFunc(rule.APIVersions, open) {
			continue
		}
		for _, r := range served {
			if slices.Contains(rule.APIGroups, r.GVR.Group) && slices.Contains(rule.APIVersions, r.GVR.Version) && slices.Contains(rule.Resources, r.GVR.Resource) {
				if gvk := r.GVR.GroupVersion().WithKind(r.Kind); !slices.Contains(out, gvk) && len(out) < mostTypes {
					out = append(out, gvk)
				}
			}
		}
	}
	slices.SortFunc(out, func(a, b schema.GroupVersionKind) int {
		return strings.Compare(a.Group+"\x00"+a.Version+"\x00"+a.Kind, b.Group+"\x00"+b.Version+"\x00"+b.Kind)
	})
	return out, nil
}

// declared is the type of a kind under a name that no other has; nil: unknown.
func (x *Controller) declared(gvk schema.GroupVersionKind, name string) (*apiservercel.DeclType, error) {
	s, err := x.schemas(gvk)
	if err != nil || s == nil {
		return nil, err
	}
	d := common.SchemaDeclType(&openapi.Schema{Schema: s}, true)
	if d == nil {
		return nil, nil
	}
	return d.MaybeAssignTypeName(gvk.Kind + name), nil
}

// typed is the environment in which object, oldObject and params have their types.
func typed(object, params *apiservercel.DeclType, hasParams bool, variables []admissionregistrationv1.Variable) (*cel.Env, error) {
	request, namespace := plugincel.BuildRequestType(), plugincel.BuildNamespaceType()
	kept := apiservercel.NewObjectType(variablesType, map[string]*apiservercel.DeclField{})
	types := []*apiservercel.DeclType{request, namespace, object, kept}
	opts := []cel.EnvOption{
		cel.Variable(plugincel.NamespaceVarName, namespace.CelType()), cel.Variable(plugincel.RequestVarName, request.CelType()),
		cel.Variable(plugincel.ObjectVarName, object.CelType()), cel.Variable(plugincel.OldObjectVarName, object.CelType()),
		cel.Variable(plugincel.AuthorizerVarName, library.AuthorizerType), cel.Variable(plugincel.RequestResourceAuthorizerVarName, library.ResourceCheckType),
		cel.Variable(plugincel.VariableVarName, kept.CelType()),
	}
	switch {
	case params != nil:
		types = append(types, params)
		opts = append(opts, cel.Variable(plugincel.ParamsVarName, params.CelType()))
	case hasParams:
		opts = append(opts, cel.Variable(plugincel.ParamsVarName, cel.DynType))
	}
	set, err := environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion()).Extend(environment.VersionedOptions{
		IntroducedVersion: version.MajorMinor(1, 0), EnvOptions: opts, DeclTypes: types})
	if err != nil {
		return nil, err
	}
	env, err := set.Env(environment.StoredExpressions)
	if err != nil {
		return nil, err
	}
	// A variable has the type of its expression, which may use those before it.
	for _, v := range variables {
		of := apiservercel.DynType
		if ast, issues := env.Compile(v.Expression); issues == nil {
			of = simple(ast.OutputType())
		}
		kept.Fields[v.Name] = apiservercel.NewDeclField(v.Name, of, true, nil, nil)
	}
	return env, nil
}

// simple is the declared form of CEL's own types; what is more is not checked.
func simple(t *cel.Type) *apiservercel.DeclType {
	switch t {
	case cel.BoolType:
		return apiservercel.BoolType
	case cel.BytesType:
		return apiservercel.BytesType
	case cel.DoubleType:
		return apiservercel.DoubleType
	case cel.DurationType:
		return apiservercel.DurationType
	case cel.IntType:
		return apiservercel.IntType
	case cel.StringType:
		return apiservercel.StringType
	case cel.TimestampType:
		return apiservercel.TimestampType
	case cel.UintType:
		return apiservercel.UintType
	}
	return apiservercel.DynType
}
