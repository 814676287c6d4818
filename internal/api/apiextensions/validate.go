package apiextensions

import (
	"fmt"
	"slices"
	"strings"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api/rules"
)

// Groups of the Kubernetes project itself, whose definitions need its approval.
func protected(group string) bool {
	return group == "k8s.io" || group == "kubernetes.io" || strings.HasSuffix(group, ".k8s.io") || strings.HasSuffix(group, ".kubernetes.io")
}

const maxDeprecationWarning = 256

func validateDefinition(c *apiextensionsv1.CustomResourceDefinition) (errs field.ErrorList) {
	spec := field.NewPath("spec")
	s := &c.Spec
	if want := s.Names.Plural + "." + s.Group; c.Name != want {
		errs = append(errs, field.Invalid(field.NewPath("metadata", "name"), c.Name, "must be spec.names.plural+\".\"+spec.group"))
	}
	switch {
	case s.Group == "":
		errs = append(errs, field.Required(spec.Child("group"), ""))
	case !strings.Contains(s.Group, "."):
		errs = append(errs, rules.Subdomain(s.Group, spec.Child("group"))...)
		errs = append(errs, field.Invalid(spec.Child("group"), s.Group, "should be a domain with at least one dot"))
	default:
		errs = append(errs, rules.Subdomain(s.Group, spec.Child("group"))...)
	}
	if protected(s.Group) && c.Annotations[apiextensionsv1.KubeAPIApprovedAnnotation] == "" {
		errs = append(errs, field.Required(field.NewPath("metadata", "annotations").Key(apiextensionsv1.KubeAPIApprovedAnnotation),
			"protected groups must have approval annotation \""+apiextensionsv1.KubeAPIApprovedAnnotation+"\", see https://github.com/kubernetes/enhancements/pull/1111"))
	}
	errs = append(errs, rules.OneOf(s.Scope, spec.Child("scope"), "", apiextensionsv1.ClusterScoped, apiextensionsv1.NamespaceScoped)...)
	errs = append(errs, validateNames(&s.Names, spec.Child("names"))...)
	if s.PreserveUnknownFields {
		errs = append(errs, field.Invalid(spec.Child("preserveUnknownFields"), true, "must be false in order to use defaults in the schema"))
	}
	errs = append(errs, validateVersions(s, spec.Child("versions"))...)
	errs = append(errs, validateConversion(s, spec.Child("conversion"))...)
	return append(errs, validateStoredVersions(c)...)
}

func validateNames(n *apiextensionsv1.CustomResourceDefinitionNames, at *field.Path) (errs field.ErrorList) {
	label := func(value string, at *field.Path) {
		if value == "" {
			errs = append(errs, field.Required(at, ""))
			return
		}
		errs = append(errs, rules.Messages(value, at, validation.IsDNS1035Label(strings.ToLower(value)))...)
	}
	label(n.Plural, at.Child("plural"))
	label(n.Singular, at.Child("singular"))
	label(n.Kind, at.Child("kind"))
	label(n.ListKind, at.Child("listKind"))
	for i, short := range n.ShortNames {
		label(short, at.Child("shortNames").Index(i))
	}
	for i, category := range n.Categories {
		label(category, at.Child("categories").Index(i))
	}
	if n.ListKind != "" && n.ListKind == n.Kind {
		errs = append(errs, field.Invalid(at.Child("listKind"), n.ListKind, "kind and listKind may not be the same"))
	}
	return errs
}

func validateVersions(s *apiextensionsv1.CustomResourceDefinitionSpec, at *field.Path) (errs field.ErrorList) {
	if len(s.Versions) == 0 {
		return field.ErrorList{field.Required(at, "must specify at least one version")}
	}
	stored := 0
	names := map[string]bool{}
	for i := range s.Versions {
		v, p := &s.Versions[i], at.Index(i)
		if v.Storage {
			stored++
		}
		errs = append(errs, rules.Messages(v.Name, p.Child("name"), validation.IsDNS1035Label(v.Name))...)
		if names[v.Name] {
			errs = append(errs, field.Invalid(at, s.Versions, "must contain unique version names"))
		}
		names[v.Name] = true
		if w := v.DeprecationWarning; w != nil {
			warning := p.Child("deprecationWarning")
			if !v.Deprecated {
				errs = append(errs, field.Invalid(warning, *w, "can only be set for deprecated versions"))
			}
			if n := len(*w); n == 0 || n > maxDeprecationWarning {
				errs = append(errs, field.Invalid(warning, *w, fmt.Sprintf("must be between 1 and %d bytes", maxDeprecationWarning)))
			}
		}
		schema := p.Child("schema", "openAPIV3Schema")
		if v.Schema == nil || v.Schema.OpenAPIV3Schema == nil {
			errs = append(errs, field.Required(schema, "schemas are required"))
		} else {
			errs = append(errs, validateRoot(v.Schema.OpenAPIV3Schema, schema)...)
		}
		errs = append(errs, validateSubresources(v.Subresources, p.Child("subresources"))...)
		for j, c := range v.AdditionalPrinterColumns {
			errs = append(errs, validateColumn(&c, p.Child("additionalPrinterColumns").Index(j))...)
		}
		for j, f := range v.SelectableFields {
			errs = append(errs, rules.Required(f.JSONPath, p.Child("selectableFields").Index(j).Child("jsonPath"), "")...)
		}
	}
	if stored != 1 {
		errs = append(errs, field.Invalid(at, versionNames(s), "must have exactly one version marked as storage version"))
	}
	return errs
}

func versionNames(s *apiextensionsv1.CustomResourceDefinitionSpec) []string {
	names := make([]string, len(s.Versions))
	for i := range s.Versions {
		names[i] = s.Versions[i].Name
	}
	return names
}

func validateColumn(c *apiextensionsv1.CustomResourceColumnDefinition, at *field.Path) field.ErrorList {
	errs := rules.Required(c.Name, at.Child("name"), "")
	errs = append(errs, rules.OneOf(c.Type, at.Child("type"), "must be one of boolean,date,integer,number,string",
		"boolean", "date", "integer", "number", "string")...)
	if c.Format != "" && !slices.Contains([]string{"byte", "date", "date-time", "double", "float", "int32", "int64", "password"}, c.Format) {
		errs = append(errs, field.Invalid(at.Child("format"), c.Format, "must be one of byte,date,date-time,double,float,int32,int64,password"))
	}
	if c.JSONPath == "" {
		return append(errs, field.Required(at.Child("jsonPath"), ""))
	}
	if !strings.HasPrefix(c.JSONPath, ".") {
		errs = append(errs, field.Invalid(at.Child("jsonPath"), c.JSONPath, "must be a simple json path starting with ."))
	}
	return errs
}

func validateSubresources(s *apiextensionsv1.CustomResourceSubresources, at *field.Path) (errs field.ErrorList) {
	if s == nil || s.Scale == nil {
		return nil
	}
	scale := at.Child("scale")
	check := func(path string, at *field.Path, roots ...string) {
		if path == "" {
			errs = append(errs, field.Required(at, ""))
			return
		}
		for _, root := range roots {
			if strings.HasPrefix(path, root) {
				return
			}
		}
		errs = append(errs, field.Invalid(at, path, "should be a json path under "+strings.TrimSuffix(strings.Join(roots, " or "), ".")))
	}
	check(s.Scale.SpecReplicasPath, scale.Child("specReplicasPath"), ".spec.")
	check(s.Scale.StatusReplicasPath, scale.Child("statusReplicasPath"), ".status.")
	if p := s.Scale.LabelSelectorPath; p != nil && *p != "" {
		check(*p, scale.Child("labelSelectorPath"), ".spec.", ".status.")
	}
	return errs
}

func validateConversion(s *apiextensionsv1.CustomResourceDefinitionSpec, at *field.Path) (errs field.ErrorList) {
	c := s.Conversion
	if c == nil {
		return field.ErrorList{field.Required(at, "")}
	}
	errs = append(errs, rules.OneOf(c.Strategy, at.Child("strategy"), "", apiextensionsv1.NoneConverter, apiextensionsv1.WebhookConverter)...)
	hook := at.Child("webhook")
	if c.Strategy != apiextensionsv1.WebhookConverter {
		if c.Webhook != nil {
			errs = append(errs, field.Forbidden(hook, "should not be set when strategy is not set to Webhook"))
		}
		return errs
	}
	if c.Webhook == nil || c.Webhook.ClientConfig == nil {
		return append(errs, field.Required(hook.Child("clientConfig"), "required when strategy is set to Webhook"))
	}
	client := hook.Child("clientConfig")
	switch cc := c.Webhook.ClientConfig; {
	case (cc.URL == nil) == (cc.Service == nil):
		errs = append(errs, field.Required(client, "exactly one of url or service is required"))
	case cc.URL != nil && !strings.HasPrefix(*cc.URL, "https://"):
		errs = append(errs, field.Invalid(client.Child("url"), *cc.URL, "'https' is the only allowed URL scheme; desired format: https://host[/path]"))
	case cc.Service != nil:
		errs = append(errs, rules.Required(cc.Service.Name, client.Child("service", "name"), "service name is required")...)
		errs = append(errs, rules.Required(cc.Service.Namespace, client.Child("service", "namespace"), "service namespace is required")...)
	}
	versions := hook.Child("conversionReviewVersions")
	if len(c.Webhook.ConversionReviewVersions) == 0 {
		return append(errs, field.Required(versions, ""))
	}
	for _, v := range c.Webhook.ConversionReviewVersions {
		if v == "v1" || v == "v1beta1" {
			return errs
		}
	}
	return append(errs, field.Invalid(versions, c.Webhook.ConversionReviewVersions, "must include at least one of v1, v1beta1"))
}

func validateStoredVersions(c *apiextensionsv1.CustomResourceDefinition) (errs field.ErrorList) {
	at := field.NewPath("status", "storedVersions")
	if len(c.Status.StoredVersions) == 0 {
		return field.ErrorList{field.Invalid(at, c.Status.StoredVersions, "must have at least one stored version")}
	}
	names := versionNames(&c.Spec)
	for i, v := range c.Status.StoredVersions {
		if !slices.Contains(names, v) {
			errs = append(errs, field.Invalid(at.Index(i), v, fmt.Sprintf("missing from spec.versions; %s was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in %s and removes %s from status.storedVersions", v, v, v)))
		}
	}
	return errs
}

func validateDefinitionUpdate(c, old *apiextensionsv1.CustomResourceDefinition) field.ErrorList {
	spec := field.NewPath("spec")
	errs := validateDefinition(c)
	errs = append(errs, rules.Immutable(c.Spec.Group, old.Spec.Group, spec.Child("group"))...)
	errs = append(errs, rules.Immutable(c.Spec.Names.Plural, old.Spec.Names.Plural, spec.Child("names", "plural"))...)
	for _, condition := range old.Status.Conditions {
		// Once objects can exist, neither their place nor their kind may change.
		if condition.Type == apiextensionsv1.Established && condition.Status == apiextensionsv1.ConditionTrue {
			errs = append(errs, rules.Immutable(c.Spec.Scope, old.Spec.Scope, spec.Child("scope"))...)
			errs = append(errs, rules.Immutable(c.Spec.Names.Kind, old.Spec.Names.Kind, spec.Child("names", "kind"))...)
		}
	}
	return errs
}
