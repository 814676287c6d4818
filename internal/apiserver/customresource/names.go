package customresource

import (
	"crypto/x509"
	"fmt"
	"slices"

	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structural "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// taken are the names that other definitions of a group have.
type taken struct{ resources, kinds map[string]bool }

// takenBy returns the names of all definitions of a group but one.
func takenBy(all []*apiextensionsv1.CustomResourceDefinition, group, but string) taken {
	t := taken{resources: map[string]bool{}, kinds: map[string]bool{}}
	for _, crd := range all {
		if crd.Spec.Group != group || crd.Name == but {
			continue
		}
		n := &crd.Status.AcceptedNames
		for _, name := range append([]string{n.Plural, n.Singular}, n.ShortNames...) {
			t.resources[name] = true
		}
		t.kinds[n.Kind], t.kinds[n.ListKind] = true, true
	}
	return t
}

// accept returns the names that a definition gets, and what there is to say
// about them. A name that it has already stays its own.
func accept(crd *apiextensionsv1.CustomResourceDefinition, t taken) (apiextensionsv1.CustomResourceDefinitionNames, apiextensionsv1.CustomResourceDefinitionCondition) {
	want, have := &crd.Spec.Names, &crd.Status.AcceptedNames
	out := *have.DeepCopy()
	condition := apiextensionsv1.CustomResourceDefinitionCondition{Type: apiextensionsv1.NamesAccepted, Status: apiextensionsv1.ConditionTrue,
		Reason: "NoConflicts", Message: "no conflicts found"}
	refuse := func(reason, message string) {
		condition.Status, condition.Reason, condition.Message = apiextensionsv1.ConditionFalse, reason, message
	}
	one := func(to *string, wanted, had string, used map[string]bool, reason string) {
		if wanted != had && used[wanted] {
			refuse(reason, fmt.Sprintf("%q is already in use", wanted))
			return
		}
		*to = wanted
	}
	one(&out.Plural, want.Plural, have.Plural, t.resources, "PluralConflict")
	one(&out.Singular, want.Singular, have.Singular, t.resources, "SingularConflict")
	var clash []string
	for _, name := range want.ShortNames {
		if !slices.Contains(have.ShortNames, name) && t.resources[name] {
			clash = append(clash, fmt.Sprintf("%q is already in use", name))
		}
	}
	switch len(clash) {
	case 0:
		out.ShortNames = slices.Clone(want.ShortNames)
	case 1:
		refuse("ShortNamesConflict", clash[0])
	default:
		refuse("ShortNamesConflict", "["+join(clash)+"]")
	}
	one(&out.Kind, want.Kind, have.Kind, t.kinds, "KindConflict")
	one(&out.ListKind, want.ListKind, have.ListKind, t.kinds, "ListKindConflict")
	out.Categories = slices.Clone(want.Categories)
	return out, condition
}

func join(list []string) string {
	out := ""
	for i, s := range list {
		if i > 0 {
			out += ", "
		}
		out += s
	}
	return out
}

// status returns a copy of a definition with the names and conditions that it
// should have, nil when it has them.
func status(in *apiextensionsv1.CustomResourceDefinition, t taken) *apiextensionsv1.CustomResourceDefinition {
	crd := withStatus(in)
	names, accepted := accept(in, t)
	crd.Status.AcceptedNames = names
	set := func(c apiextensionsv1.CustomResourceDefinitionCondition) {
		if old := apihelpers.FindCRDCondition(crd, c.Type); old == nil || !apihelpers.IsCRDConditionEquivalent(&c, old) {
			apihelpers.SetCRDCondition(crd, c)
		}
	}
	set(accepted)
	if !apihelpers.IsCRDConditionTrue(in, apiextensionsv1.Established) {
		c := apiextensionsv1.CustomResourceDefinitionCondition{Type: apiextensionsv1.Established, Status: apiextensionsv1.ConditionFalse,
			Reason: "NotAccepted", Message: "not all names are accepted"}
		if accepted.Status == apiextensionsv1.ConditionTrue {
			c.Status, c.Reason, c.Message = apiextensionsv1.ConditionTrue, "InitialNamesAccepted", "the initial names have been accepted"
			if !validBundle(in) {
				c.Status, c.Reason, c.Message = apiextensionsv1.ConditionFalse, "InvalidCABundle", "The conversion webhook CABundle is invalid"
			}
		}
		set(c)
	}
	// Only definitions that v1beta1 left behind can have such schemas: v1 refuses them.
	if had := apihelpers.FindCRDCondition(in, apiextensionsv1.NonStructuralSchema); had != nil || in.Spec.PreserveUnknownFields {
		if c := nonStructural(in); c != nil {
			set(*c)
		} else if had != nil {
			apihelpers.RemoveCRDCondition(crd, apiextensionsv1.NonStructuralSchema)
		}
	}
	if c := approved(in); c != nil {
		set(*c)
	}
	if equality.Semantic.DeepEqual(in.Status, crd.Status) {
		return nil
	}
	return crd
}

// withStatus returns a copy whose status can be written to. The rest is in's.
func withStatus(in *apiextensionsv1.CustomResourceDefinition) *apiextensionsv1.CustomResourceDefinition {
	out := *in
	in.Status.DeepCopyInto(&out.Status)
	return &out
}

// approved says whether a group of the Kubernetes project has its approval.
func approved(crd *apiextensionsv1.CustomResourceDefinition) *apiextensionsv1.CustomResourceDefinitionCondition {
	if !apihelpers.IsProtectedCommunityGroup(crd.Spec.Group) {
		return nil
	}
	state, message := apihelpers.GetAPIApprovalState(crd.Annotations)
	c := &apiextensionsv1.CustomResourceDefinitionCondition{Type: apiextensionsv1.KubernetesAPIApprovalPolicyConformant,
		Status: apiextensionsv1.ConditionFalse, Message: message}
	switch state {
	case apihelpers.APIApprovalInvalid:
		c.Reason = "InvalidAnnotation"
	case apihelpers.APIApprovalMissing:
		c.Reason = "MissingAnnotation"
	case apihelpers.APIApproved:
		c.Status, c.Reason = apiextensionsv1.ConditionTrue, "ApprovedAnnotation"
	case apihelpers.APIApprovalBypassed:
		c.Reason = "UnapprovedAnnotation"
	default:
		c.Status, c.Reason = apiextensionsv1.ConditionUnknown, "UnknownAnnotation"
	}
	return c
}

// nonStructural says what is wrong with schemas that an old version let in.
func nonStructural(crd *apiextensionsv1.CustomResourceDefinition) *apiextensionsv1.CustomResourceDefinitionCondition {
	c := &apiextensionsv1.CustomResourceDefinitionCondition{Type: apiextensionsv1.NonStructuralSchema, Status: apiextensionsv1.ConditionUnknown}
	var errs field.ErrorList
	if crd.Spec.PreserveUnknownFields {
		errs = append(errs, field.Invalid(field.NewPath("spec", "preserveUnknownFields"), true, "must be false"))
	}
	for i := range crd.Spec.Versions {
		v := &crd.Spec.Versions[i]
		if v.Schema == nil || v.Schema.OpenAPIV3Schema == nil {
			continue
		}
		internal := &apiextensions.JSONSchemaProps{}
		err := apiextensionsv1.Convert_v1_JSONSchemaProps_To_apiextensions_JSONSchemaProps(v.Schema.OpenAPIV3Schema, internal, nil)
		var s *structural.Structural
		if err == nil {
			s, err = structural.NewStructural(internal)
		}
		if err != nil {
			c.Reason, c.Message = "StructuralError", fmt.Sprintf("failed to check validation schema for version %s: %v", v.Name, err)
			return c
		}
		errs = append(errs, structural.ValidateStructural(field.NewPath("spec", "versions").Index(i).Child("schema", "openAPIV3Schema"), s)...)
	}
	if len(errs) == 0 {
		return nil
	}
	c.Status, c.Reason, c.Message = apiextensionsv1.ConditionTrue, "Violations", errs.ToAggregate().Error()
	return c
}

// validBundle reports whether the authorities of a conversion webhook can be read.
func validBundle(crd *apiextensionsv1.CustomResourceDefinition) bool {
	c := crd.Spec.Conversion
	if c == nil || c.Webhook == nil || c.Webhook.ClientConfig == nil {
		return true
	}
	bundle := c.Webhook.ClientConfig.CABundle
	return len(bundle) == 0 || x509.NewCertPool().AppendCertsFromPEM(bundle)
}
