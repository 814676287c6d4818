package admissionregistration

import (
	"slices"
	"strings"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

// maxAudits is how many annotations a policy may give to audit events.
const maxAudits = 20

func validatingPolicies(gv schema.GroupVersion) *api.Resource {
	r := extension(rules.Cluster[admissionregistrationv1.ValidatingAdmissionPolicy, admissionregistrationv1.ValidatingAdmissionPolicyList](gv, "validatingadmissionpolicies"))
	r.Columns = []metav1.TableColumnDefinition{
		rules.Name(),
		rules.Integer("Validations", "Validations indicates the number of validation rules defined in this configuration"),
		rules.Text("ParamKind", "ParamKind specifies the kind of resources used to parameterize this policy"),
		rules.Age(),
	}
	return api.Kind[*admissionregistrationv1.ValidatingAdmissionPolicy]{
		Resource: r,
		Default: func(p *admissionregistrationv1.ValidatingAdmissionPolicy) {
			rules.Refer(&p.Spec.FailurePolicy, admissionregistrationv1.Fail)
			defaultMatch(p.Spec.MatchConstraints)
		},
		Validate:   validateValidating,
		CopyStatus: func(dst, src *admissionregistrationv1.ValidatingAdmissionPolicy) { dst.Status = *src.Status.DeepCopy() },
		ValidateStatusUpdate: func(p, _ *admissionregistrationv1.ValidatingAdmissionPolicy) field.ErrorList {
			return rules.Conditions(p.Status.Conditions, field.NewPath("status", "conditions"))
		},
		SpecChanged: func(p, old *admissionregistrationv1.ValidatingAdmissionPolicy) bool {
			return !rules.Same(p.Spec, old.Spec)
		},
		Row: func(p *admissionregistrationv1.ValidatingAdmissionPolicy) []any {
			return []any{p.Name, int64(len(p.Spec.Validations)), paramKind(p.Spec.ParamKind), rules.Created(p)}
		},
	}.Erase()
}

func validateValidating(p *admissionregistrationv1.ValidatingAdmissionPolicy) field.ErrorList {
	spec := field.NewPath("spec")
	s := &p.Spec
	errs := validateCommon(s.ParamKind, s.MatchConstraints, s.Variables, s.FailurePolicy, s.MatchConditions, spec)
	if len(s.Validations) == 0 && len(s.AuditAnnotations) == 0 {
		const message = "validations or auditAnnotations must be non-empty"
		errs = append(errs, field.Required(spec.Child("validations"), message+"; at least one validation or audit annotation is required"))
	}
	for i, v := range s.Validations {
		at := spec.Child("validations").Index(i)
		if strings.TrimSpace(v.Expression) == "" {
			errs = append(errs, field.Required(at.Child("expression"), "expression is not specified"))
		}
		if v.Message != "" && strings.TrimSpace(v.Message) == "" {
			errs = append(errs, field.Invalid(at.Child("message"), v.Message, "message must be non-empty if specified"))
		}
		if strings.Contains(strings.TrimSpace(v.Message), "\n") {
			errs = append(errs, field.Invalid(at.Child("message"), v.Message, "message must not contain line breaks"))
		}
		if r := v.Reason; r != nil {
			errs = append(errs, rules.OneOf(*r, at.Child("reason"), "", metav1.StatusReasonForbidden, metav1.StatusReasonInvalid,
				metav1.StatusReasonRequestEntityTooLarge, metav1.StatusReasonUnauthorized)...)
		}
	}
	if n := len(s.AuditAnnotations); n > maxAudits {
		errs = append(errs, field.Invalid(spec.Child("auditAnnotations"), n, "must not have more than 20 auditAnnotations"))
	}
	keys := map[string]bool{}
	for i, a := range s.AuditAnnotations {
		at := spec.Child("auditAnnotations").Index(i)
		errs = append(errs, rules.Messages(a.Key, at.Child("key"), validation.IsQualifiedName(a.Key))...)
		if keys[a.Key] {
			errs = append(errs, field.Duplicate(at.Child("key"), a.Key))
		}
		keys[a.Key] = true
		if strings.TrimSpace(a.ValueExpression) == "" {
			errs = append(errs, field.Required(at.Child("valueExpression"), "valueExpression is not specified"))
		}
	}
	return errs
}

func mutatingPolicies(gv schema.GroupVersion) *api.Resource {
	r := extension(rules.Cluster[admissionregistrationv1.MutatingAdmissionPolicy, admissionregistrationv1.MutatingAdmissionPolicyList](gv, "mutatingadmissionpolicies"))
	r.Columns = []metav1.TableColumnDefinition{
		rules.Name(),
		rules.Integer("Mutations", "Mutations indicates the number of mutations rules defined in this configuration"),
		rules.Text("ParamKind", "ParamKind specifies the kind of resources used to parameterize this policy"),
		rules.Age(),
	}
	return api.Kind[*admissionregistrationv1.MutatingAdmissionPolicy]{
		Resource: r,
		Default: func(p *admissionregistrationv1.MutatingAdmissionPolicy) {
			rules.Refer(&p.Spec.FailurePolicy, admissionregistrationv1.Fail)
			defaultMatch(p.Spec.MatchConstraints)
		},
		Validate: validateMutating,
		SpecChanged: func(p, old *admissionregistrationv1.MutatingAdmissionPolicy) bool {
			return !rules.Same(p.Spec, old.Spec)
		},
		Row: func(p *admissionregistrationv1.MutatingAdmissionPolicy) []any {
			return []any{p.Name, int64(len(p.Spec.Mutations)), paramKind(p.Spec.ParamKind), rules.Created(p)}
		},
	}.Erase()
}

func validateMutating(p *admissionregistrationv1.MutatingAdmissionPolicy) field.ErrorList {
	spec := field.NewPath("spec")
	s := &p.Spec
	errs := validateCommon(s.ParamKind, s.MatchConstraints, s.Variables, s.FailurePolicy, s.MatchConditions, spec)
	if len(s.Mutations) == 0 {
		errs = append(errs, field.Required(spec.Child("mutations"), "mutations must contain at least one item"))
	}
	for i, m := range s.Mutations {
		at := spec.Child("mutations").Index(i)
		apply, patch := at.Child("applyConfiguration"), at.Child("jsonPatch")
		switch m.PatchType {
		case admissionregistrationv1.PatchTypeApplyConfiguration:
			if m.ApplyConfiguration == nil {
				errs = append(errs, field.Required(apply, "must be specified when patchType is ApplyConfiguration"))
			} else if strings.TrimSpace(m.ApplyConfiguration.Expression) == "" {
				errs = append(errs, field.Required(apply.Child("expression"), "expression is not specified"))
			}
			if m.JSONPatch != nil {
				errs = append(errs, field.Invalid(patch, "{}", "must not be specified when patchType is ApplyConfiguration"))
			}
		case admissionregistrationv1.PatchTypeJSONPatch:
			if m.JSONPatch == nil {
				errs = append(errs, field.Required(patch, "must be specified when patchType is JSONPatch"))
			} else if strings.TrimSpace(m.JSONPatch.Expression) == "" {
				errs = append(errs, field.Required(patch.Child("expression"), "expression is not specified"))
			}
			if m.ApplyConfiguration != nil {
				errs = append(errs, field.Invalid(apply, "{}", "must not be specified when patchType is JSONPatch"))
			}
		default:
			errs = append(errs, rules.OneOf(m.PatchType, at.Child("patchType"), "",
				admissionregistrationv1.PatchTypeApplyConfiguration, admissionregistrationv1.PatchTypeJSONPatch)...)
		}
	}
	return append(errs, rules.OneOf(s.ReinvocationPolicy, spec.Child("reinvocationPolicy"), "",
		admissionregistrationv1.IfNeededReinvocationPolicy, admissionregistrationv1.NeverReinvocationPolicy)...)
}

// validateCommon checks what both kinds of policies have.
func validateCommon(kind *admissionregistrationv1.ParamKind, match *admissionregistrationv1.MatchResources, variables []admissionregistrationv1.Variable,
	failure *admissionregistrationv1.FailurePolicyType, conditions []admissionregistrationv1.MatchCondition, spec *field.Path) (errs field.ErrorList) {
	if failure == nil {
		errs = append(errs, field.Required(spec.Child("failurePolicy"), ""))
	} else {
		errs = append(errs, validateFailure(*failure, spec.Child("failurePolicy"))...)
	}
	if kind != nil {
		at := spec.Child("paramKind")
		errs = append(errs, rules.Required(kind.APIVersion, at.Child("apiVersion"), "")...)
		if kind.APIVersion != "" {
			if _, err := schema.ParseGroupVersion(kind.APIVersion); err != nil {
				errs = append(errs, field.Invalid(at.Child("apiVersion"), kind.APIVersion, err.Error()))
			}
		}
		errs = append(errs, rules.Required(kind.Kind, at.Child("kind"), "")...)
	}
	at := spec.Child("matchConstraints")
	switch {
	case match == nil:
		errs = append(errs, field.Required(at, ""))
	default:
		errs = append(errs, validateMatch(match, at)...)
		if len(match.ResourceRules) == 0 {
			errs = append(errs, field.Required(at.Child("resourceRules"), ""))
		}
	}
	names := map[string]bool{}
	for i, v := range variables {
		at := spec.Child("variables").Index(i)
		errs = append(errs, rules.Required(v.Name, at.Child("name"), "name is not specified")...)
		if names[v.Name] {
			errs = append(errs, field.Duplicate(at.Child("name"), v.Name))
		}
		names[v.Name] = true
		if strings.TrimSpace(v.Expression) == "" {
			errs = append(errs, field.Required(at.Child("expression"), "expression is not specified"))
		}
	}
	return append(errs, validateConditions(conditions, spec.Child("matchConditions"))...)
}

func validateMatch(m *admissionregistrationv1.MatchResources, at *field.Path) (errs field.ErrorList) {
	if m.MatchPolicy == nil {
		errs = append(errs, field.Required(at.Child("matchPolicy"), ""))
	} else {
		errs = append(errs, validateMatchPolicy(*m.MatchPolicy, at.Child("matchPolicy"))...)
	}
	errs = append(errs, rules.Selector(m.NamespaceSelector, at.Child("namespaceSelector"))...)
	errs = append(errs, rules.Selector(m.ObjectSelector, at.Child("objectSelector"))...)
	for i := range m.ResourceRules {
		errs = append(errs, validateRule(&m.ResourceRules[i].RuleWithOperations, at.Child("resourceRules").Index(i))...)
	}
	for i := range m.ExcludeResourceRules {
		errs = append(errs, validateRule(&m.ExcludeResourceRules[i].RuleWithOperations, at.Child("excludeResourceRules").Index(i))...)
	}
	return errs
}

func bindingColumns() []metav1.TableColumnDefinition {
	return []metav1.TableColumnDefinition{
		rules.Name(),
		rules.Text("PolicyName", "PolicyName indicates the policy definition which the policy binding binded to"),
		rules.Text("ParamRef", "ParamRef indicates the param resource which sets the configration param"),
		rules.Age(),
	}
}

func validatingBindings(gv schema.GroupVersion) *api.Resource {
	r := extension(rules.Cluster[admissionregistrationv1.ValidatingAdmissionPolicyBinding, admissionregistrationv1.ValidatingAdmissionPolicyBindingList](gv, "validatingadmissionpolicybindings"))
	r.Columns = bindingColumns()
	return api.Kind[*admissionregistrationv1.ValidatingAdmissionPolicyBinding]{
		Resource: r,
		Default:  func(b *admissionregistrationv1.ValidatingAdmissionPolicyBinding) { defaultMatch(b.Spec.MatchResources) },
		Validate: func(b *admissionregistrationv1.ValidatingAdmissionPolicyBinding) field.ErrorList {
			spec := field.NewPath("spec")
			errs := validateBinding(b.Spec.PolicyName, b.Spec.ParamRef, b.Spec.MatchResources, spec)
			actions := spec.Child("validationActions")
			if len(b.Spec.ValidationActions) == 0 {
				errs = append(errs, field.Required(actions, ""))
			}
			for i, a := range b.Spec.ValidationActions {
				errs = append(errs, rules.OneOf(a, actions.Index(i), "", admissionregistrationv1.Audit, admissionregistrationv1.Deny, admissionregistrationv1.Warn)...)
				if slices.Contains(b.Spec.ValidationActions[:i], a) {
					errs = append(errs, field.Duplicate(actions.Index(i), a))
				}
			}
			if slices.Contains(b.Spec.ValidationActions, admissionregistrationv1.Deny) && slices.Contains(b.Spec.ValidationActions, admissionregistrationv1.Warn) {
				errs = append(errs, field.Invalid(actions, b.Spec.ValidationActions, "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)"))
			}
			return errs
		},
		SpecChanged: func(b, old *admissionregistrationv1.ValidatingAdmissionPolicyBinding) bool {
			return !rules.Same(b.Spec, old.Spec)
		},
		Row: func(b *admissionregistrationv1.ValidatingAdmissionPolicyBinding) []any {
			return []any{b.Name, b.Spec.PolicyName, paramRef(b.Spec.ParamRef), rules.Created(b)}
		},
	}.Erase()
}

func mutatingBindings(gv schema.GroupVersion) *api.Resource {
	r := extension(rules.Cluster[admissionregistrationv1.MutatingAdmissionPolicyBinding, admissionregistrationv1.MutatingAdmissionPolicyBindingList](gv, "mutatingadmissionpolicybindings"))
	r.Columns = bindingColumns()
	return api.Kind[*admissionregistrationv1.MutatingAdmissionPolicyBinding]{
		Resource: r,
		Default:  func(b *admissionregistrationv1.MutatingAdmissionPolicyBinding) { defaultMatch(b.Spec.MatchResources) },
		Validate: func(b *admissionregistrationv1.MutatingAdmissionPolicyBinding) field.ErrorList {
			return validateBinding(b.Spec.PolicyName, b.Spec.ParamRef, b.Spec.MatchResources, field.NewPath("spec"))
		},
		SpecChanged: func(b, old *admissionregistrationv1.MutatingAdmissionPolicyBinding) bool {
			return !rules.Same(b.Spec, old.Spec)
		},
		Row: func(b *admissionregistrationv1.MutatingAdmissionPolicyBinding) []any {
			return []any{b.Name, b.Spec.PolicyName, paramRef(b.Spec.ParamRef), rules.Created(b)}
		},
	}.Erase()
}

func validateBinding(name string, ref *admissionregistrationv1.ParamRef, match *admissionregistrationv1.MatchResources, spec *field.Path) (errs field.ErrorList) {
	if name == "" {
		errs = append(errs, field.Required(spec.Child("policyName"), ""))
	} else {
		errs = append(errs, rules.Subdomain(name, spec.Child("policyName"))...)
	}
	if ref != nil {
		at := spec.Child("paramRef")
		switch {
		case ref.Name == "" && ref.Selector == nil:
			errs = append(errs, field.Required(at, "one of name or selector must be specified"))
		case ref.Name != "" && ref.Selector != nil:
			errs = append(errs, field.Forbidden(at.Child("name"), "name and selector are mutually exclusive"))
		}
		errs = append(errs, rules.Selector(ref.Selector, at.Child("selector"))...)
		if ref.ParameterNotFoundAction == nil {
			errs = append(errs, field.Required(at.Child("parameterNotFoundAction"), ""))
		} else {
			errs = append(errs, rules.OneOf(*ref.ParameterNotFoundAction, at.Child("parameterNotFoundAction"), "",
				admissionregistrationv1.AllowAction, admissionregistrationv1.DenyAction)...)
		}
	}
	if match != nil {
		errs = append(errs, validateMatch(match, spec.Child("matchResources"))...)
	}
	return errs
}
