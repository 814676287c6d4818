package admissionregistration

import (
	"net/url"
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

const (
	defaultTimeout = 10
	maxTimeout     = 30
	httpsPort      = 443
	maxConditions  = 64
)

func webhookColumns() []metav1.TableColumnDefinition {
	return []metav1.TableColumnDefinition{
		rules.Name(), rules.Integer("Webhooks", "Webhooks indicates the number of webhooks registered in this configuration"), rules.Age(),
	}
}

func validatingWebhooks(gv schema.GroupVersion) *api.Resource {
	r := extension(rules.Cluster[admissionregistrationv1.ValidatingWebhookConfiguration, admissionregistrationv1.ValidatingWebhookConfigurationList](gv, "validatingwebhookconfigurations"))
	r.Columns = webhookColumns()
	return api.Kind[*admissionregistrationv1.ValidatingWebhookConfiguration]{
		Resource: r,
		Default: func(c *admissionregistrationv1.ValidatingWebhookConfiguration) {
			for i := range c.Webhooks {
				w := &c.Webhooks[i]
				rules.Refer(&w.FailurePolicy, admissionregistrationv1.Fail)
				rules.Refer(&w.MatchPolicy, admissionregistrationv1.Equivalent)
				rules.Refer(&w.NamespaceSelector, metav1.LabelSelector{})
				rules.Refer(&w.ObjectSelector, metav1.LabelSelector{})
				rules.Refer(&w.TimeoutSeconds, defaultTimeout)
				defaultCall(w.Rules, &w.ClientConfig)
			}
		},
		Validate: func(c *admissionregistrationv1.ValidatingWebhookConfiguration) field.ErrorList {
			hooks := make([]webhook, len(c.Webhooks))
			for i := range c.Webhooks {
				w := &c.Webhooks[i]
				hooks[i] = webhook{
					w.Name, &w.ClientConfig, w.Rules, w.FailurePolicy, w.MatchPolicy, w.NamespaceSelector, w.ObjectSelector,
					w.SideEffects, w.TimeoutSeconds, w.AdmissionReviewVersions, w.MatchConditions,
				}
			}
			return validateWebhooks(hooks)
		},
		SpecChanged: func(c, old *admissionregistrationv1.ValidatingWebhookConfiguration) bool {
			return !rules.Same(c.Webhooks, old.Webhooks)
		},
		Row: func(c *admissionregistrationv1.ValidatingWebhookConfiguration) []any {
			return []any{c.Name, int64(len(c.Webhooks)), rules.Created(c)}
		},
	}.Erase()
}

func mutatingWebhooks(gv schema.GroupVersion) *api.Resource {
	r := extension(rules.Cluster[admissionregistrationv1.MutatingWebhookConfiguration, admissionregistrationv1.MutatingWebhookConfigurationList](gv, "mutatingwebhookconfigurations"))
	r.Columns = webhookColumns()
	return api.Kind[*admissionregistrationv1.MutatingWebhookConfiguration]{
		Resource: r,
		Default: func(c *admissionregistrationv1.MutatingWebhookConfiguration) {
			for i := range c.Webhooks {
				w := &c.Webhooks[i]
				rules.Refer(&w.FailurePolicy, admissionregistrationv1.Fail)
				rules.Refer(&w.MatchPolicy, admissionregistrationv1.Equivalent)
				rules.Refer(&w.NamespaceSelector, metav1.LabelSelector{})
				rules.Refer(&w.ObjectSelector, metav1.LabelSelector{})
				rules.Refer(&w.TimeoutSeconds, defaultTimeout)
				rules.Refer(&w.ReinvocationPolicy, admissionregistrationv1.NeverReinvocationPolicy)
				defaultCall(w.Rules, &w.ClientConfig)
			}
		},
		Validate: func(c *admissionregistrationv1.MutatingWebhookConfiguration) (errs field.ErrorList) {
			hooks := make([]webhook, len(c.Webhooks))
			for i := range c.Webhooks {
				w := &c.Webhooks[i]
				hooks[i] = webhook{
					w.Name, &w.ClientConfig, w.Rules, w.FailurePolicy, w.MatchPolicy, w.NamespaceSelector, w.ObjectSelector,
					w.SideEffects, w.TimeoutSeconds, w.AdmissionReviewVersions, w.MatchConditions,
				}
				if p := w.ReinvocationPolicy; p != nil {
					errs = append(errs, rules.OneOf(*p, field.NewPath("webhooks").Index(i).Child("reinvocationPolicy"), "",
						admissionregistrationv1.IfNeededReinvocationPolicy, admissionregistrationv1.NeverReinvocationPolicy)...)
				}
			}
			return append(validateWebhooks(hooks), errs...)
		},
		SpecChanged: func(c, old *admissionregistrationv1.MutatingWebhookConfiguration) bool {
			return !rules.Same(c.Webhooks, old.Webhooks)
		},
		Row: func(c *admissionregistrationv1.MutatingWebhookConfiguration) []any {
			return []any{c.Name, int64(len(c.Webhooks)), rules.Created(c)}
		},
	}.Erase()
}

func defaultCall(list []admissionregistrationv1.RuleWithOperations, client *admissionregistrationv1.WebhookClientConfig) {
	for i := range list {
		rules.Refer(&list[i].Scope, admissionregistrationv1.AllScopes)
	}
	if client.Service != nil {
		rules.Refer(&client.Service.Port, httpsPort)
	}
}

// webhook is what both kinds of webhooks have.
type webhook struct {
	name        string
	client      *admissionregistrationv1.WebhookClientConfig
	rules       []admissionregistrationv1.RuleWithOperations
	failure     *admissionregistrationv1.FailurePolicyType
	match       *admissionregistrationv1.MatchPolicyType
	namespaces  *metav1.LabelSelector
	objects     *metav1.LabelSelector
	sideEffects *admissionregistrationv1.SideEffectClass
	timeout     *int32
	reviews     []string
	conditions  []admissionregistrationv1.MatchCondition
}

func validateWebhooks(hooks []webhook) (errs field.ErrorList) {
	names := map[string]bool{}
	for i := range hooks {
		at := field.NewPath("webhooks").Index(i)
		w := &hooks[i]
		errs = append(errs, validateWebhook(w, at)...)
		if w.name != "" && names[w.name] {
			errs = append(errs, field.Duplicate(at.Child("name"), w.name))
		}
		names[w.name] = true
	}
	return errs
}

func validateWebhook(w *webhook, at *field.Path) field.ErrorList {
	errs := validation.IsFullyQualifiedName(at.Child("name"), w.name)
	reviews := at.Child("admissionReviewVersions")
	if len(w.reviews) == 0 {
		errs = append(errs, field.Required(reviews, "must specify one of v1, v1beta1"))
	} else if !slices.Contains(w.reviews, "v1") && !slices.Contains(w.reviews, "v1beta1") {
		errs = append(errs, field.Invalid(reviews, w.reviews, "must include at least one of v1, v1beta1"))
	}
	for i := range w.rules {
		errs = append(errs, validateRule(&w.rules[i], at.Child("rules").Index(i))...)
	}
	if w.failure != nil {
		errs = append(errs, validateFailure(*w.failure, at.Child("failurePolicy"))...)
	}
	if w.match != nil {
		errs = append(errs, validateMatchPolicy(*w.match, at.Child("matchPolicy"))...)
	}
	effects := at.Child("sideEffects")
	if w.sideEffects == nil {
		errs = append(errs, field.Required(effects, "must specify one of None, NoneOnDryRun"))
	} else {
		errs = append(errs, rules.OneOf(*w.sideEffects, effects, "must specify one of None, NoneOnDryRun",
			admissionregistrationv1.SideEffectClassNone, admissionregistrationv1.SideEffectClassNoneOnDryRun)...)
	}
	if t := w.timeout; t != nil && (*t < 1 || *t > maxTimeout) {
		errs = append(errs, field.Invalid(at.Child("timeoutSeconds"), *t, "the timeout value must be between 1 and 30 seconds"))
	}
	errs = append(errs, rules.Selector(w.namespaces, at.Child("namespaceSelector"))...)
	errs = append(errs, rules.Selector(w.objects, at.Child("objectSelector"))...)
	errs = append(errs, validateClient(w.client, at.Child("clientConfig"))...)
	return append(errs, validateConditions(w.conditions, at.Child("matchConditions"))...)
}

func validateFailure(p admissionregistrationv1.FailurePolicyType, at *field.Path) field.ErrorList {
	return rules.OneOf(p, at, "", admissionregistrationv1.Fail, admissionregistrationv1.Ignore)
}

func validateMatchPolicy(p admissionregistrationv1.MatchPolicyType, at *field.Path) field.ErrorList {
	return rules.OneOf(p, at, "", admissionregistrationv1.Equivalent, admissionregistrationv1.Exact)
}

func validateClient(c *admissionregistrationv1.WebhookClientConfig, at *field.Path) (errs field.ErrorList) {
	if (c.URL == nil) == (c.Service == nil) {
		return field.ErrorList{field.Required(at, "exactly one of url or service is required")}
	}
	if c.URL != nil {
		const form = "; desired format: https://host[/path]"
		where := at.Child("url")
		u, err := url.Parse(*c.URL)
		if err != nil {
			return field.ErrorList{field.Required(where, "url must be a valid URL: "+err.Error()+form)}
		}
		if u.Scheme != "https" {
			errs = append(errs, field.Invalid(where, u.Scheme, "'https' is the only allowed URL scheme"+form))
		}
		if u.Host == "" {
			errs = append(errs, field.Invalid(where, u.Host, "host must be specified"+form))
		}
		if u.User != nil {
			errs = append(errs, field.Invalid(where, u.User.String(), "user information is not permitted in the URL"))
		}
		if u.Fragment != "" {
			errs = append(errs, field.Invalid(where, u.Fragment, "fragments are not permitted in the URL"))
		}
		if u.RawQuery != "" {
			errs = append(errs, field.Invalid(where, u.RawQuery, "query parameters are not permitted in the URL"))
		}
		return errs
	}
	service := at.Child("service")
	errs = append(errs, rules.Required(c.Service.Name, service.Child("name"), "service name is required")...)
	errs = append(errs, rules.Required(c.Service.Namespace, service.Child("namespace"), "service namespace is required")...)
	if p := c.Service.Port; p != nil {
		errs = append(errs, rules.Messages(*p, service.Child("port"), validation.IsValidPortNum(int(*p)))...)
	}
	if p := c.Service.Path; p != nil && *p != "" && !strings.HasPrefix(*p, "/") {
		errs = append(errs, field.Invalid(service.Child("path"), *p, "must start with a '/'"))
	}
	return errs
}

func validateRule(r *admissionregistrationv1.RuleWithOperations, at *field.Path) (errs field.ErrorList) {
	operations := at.Child("operations")
	if len(r.Operations) == 0 {
		errs = append(errs, field.Required(operations, ""))
	}
	if len(r.Operations) > 1 && slices.Contains(r.Operations, admissionregistrationv1.OperationAll) {
		errs = append(errs, field.Invalid(operations, r.Operations, "if '*' is present, must not specify other operations"))
	}
	for i, o := range r.Operations {
		errs = append(errs, rules.OneOf(o, operations.Index(i), "", admissionregistrationv1.OperationAll, admissionregistrationv1.Connect,
			admissionregistrationv1.Create, admissionregistrationv1.Delete, admissionregistrationv1.Update)...)
	}
	list := func(values []string, name, what string, mayBeEmpty bool) {
		at := at.Child(name)
		if len(values) == 0 {
			errs = append(errs, field.Required(at, ""))
		}
		if len(values) > 1 && slices.Contains(values, "*") && name != "resources" {
			errs = append(errs, field.Invalid(at, values, "if '*' is present, must not specify other "+what))
		}
		for i, v := range values {
			if v == "" && !mayBeEmpty {
				errs = append(errs, field.Required(at.Index(i), ""))
			}
		}
	}
	list(r.APIGroups, "apiGroups", "API groups", true)
	list(r.APIVersions, "apiVersions", "API versions", false)
	list(r.Resources, "resources", "resources", false)
	if r.Scope != nil {
		errs = append(errs, rules.OneOf(*r.Scope, at.Child("scope"), "", admissionregistrationv1.AllScopes, admissionregistrationv1.ClusterScope, admissionregistrationv1.NamespacedScope)...)
	}
	return errs
}

func validateConditions(list []admissionregistrationv1.MatchCondition, at *field.Path) (errs field.ErrorList) {
	if len(list) > maxConditions {
		errs = append(errs, field.TooMany(at, len(list), maxConditions))
	}
	names := map[string]bool{}
	for i, c := range list {
		at := at.Index(i)
		if strings.TrimSpace(c.Expression) == "" {
			errs = append(errs, field.Required(at.Child("expression"), ""))
		}
		if c.Name == "" {
			errs = append(errs, field.Required(at.Child("name"), ""))
			continue
		}
		errs = append(errs, rules.Messages(c.Name, at.Child("name"), validation.IsQualifiedName(c.Name))...)
		if names[c.Name] {
			errs = append(errs, field.Duplicate(at.Child("name"), c.Name))
		}
		names[c.Name] = true
	}
	return errs
}
