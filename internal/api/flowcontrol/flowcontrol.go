// Package flowcontrol holds the rules of the API group
// flowcontrol.apiserver.k8s.io. It does not hold back requests.
package flowcontrol

import (
	"strings"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

const (
	defaultPrecedence = 1000
	defaultShares     = 30
	defaultQueues     = 64
	defaultHandSize   = 8
	defaultQueueLimit = 50
	maxQueues         = 10 * 1000 * 1000
)

// Resources returns the resources of the group.
func Resources() []*api.Resource {
	gv := flowcontrolv1.SchemeGroupVersion
	return []*api.Resource{flowSchemas(gv), priorityLevels(gv)}
}

func flowSchemas(gv schema.GroupVersion) *api.Resource {
	r := rules.Cluster[flowcontrolv1.FlowSchema, flowcontrolv1.FlowSchemaList](gv, "flowschemas")
	r.UnconditionalUpdate = true
	r.Columns = []metav1.TableColumnDefinition{
		rules.Name(),
		rules.Text("PriorityLevel", "The priority level of the requests that match."),
		rules.Integer("MatchingPrecedence", "Which of several matching schemas counts: the lowest."),
		rules.Text("DistinguisherMethod", "How requests are told apart."),
		rules.Age(),
		rules.Text("MissingPL", "Whether the priority level is missing."),
	}
	return api.Kind[*flowcontrolv1.FlowSchema]{
		Resource: r,
		Default: func(s *flowcontrolv1.FlowSchema) {
			if s.Spec.MatchingPrecedence == 0 {
				s.Spec.MatchingPrecedence = defaultPrecedence
			}
		},
		Validate:    validateSchema,
		CopyStatus:  func(dst, src *flowcontrolv1.FlowSchema) { dst.Status = *src.Status.DeepCopy() },
		SpecChanged: func(s, old *flowcontrolv1.FlowSchema) bool { return !rules.Same(s.Spec, old.Spec) },
		Row: func(s *flowcontrolv1.FlowSchema) []any {
			method, missing := rules.None, "?"
			if m := s.Spec.DistinguisherMethod; m != nil {
				method = string(m.Type)
			}
			for _, c := range s.Status.Conditions {
				if c.Type == flowcontrolv1.FlowSchemaConditionDangling {
					missing = string(c.Status)
				}
			}
			return []any{s.Name, s.Spec.PriorityLevelConfiguration.Name, int64(s.Spec.MatchingPrecedence), method, rules.Created(s), missing}
		},
	}.Erase()
}

func validateSchema(s *flowcontrolv1.FlowSchema) (errs field.ErrorList) {
	spec := field.NewPath("spec")
	if n := s.Spec.MatchingPrecedence; n <= 0 {
		errs = append(errs, field.Invalid(spec.Child("matchingPrecedence"), n, "must be a positive value"))
	} else if n > flowcontrolv1.FlowSchemaMaxMatchingPrecedence {
		errs = append(errs, field.Invalid(spec.Child("matchingPrecedence"), n, "must not be greater than 10000"))
	}
	if s.Spec.MatchingPrecedence == 1 && s.Name != flowcontrolv1.FlowSchemaNameExempt {
		errs = append(errs, field.Invalid(spec.Child("matchingPrecedence"), 1, "only the schema named 'exempt' may have matchingPrecedence 1"))
	}
	if m := s.Spec.DistinguisherMethod; m != nil {
		errs = append(errs, rules.OneOf(m.Type, spec.Child("distinguisherMethod", "type"), "",
			flowcontrolv1.FlowDistinguisherMethodByNamespaceType, flowcontrolv1.FlowDistinguisherMethodByUserType)...)
	}
	level := spec.Child("priorityLevelConfiguration", "name")
	if s.Spec.PriorityLevelConfiguration.Name == "" {
		errs = append(errs, field.Required(level, "must reference a priority level"))
	} else {
		errs = append(errs, rules.Subdomain(s.Spec.PriorityLevelConfiguration.Name, level)...)
	}
	for i := range s.Spec.Rules {
		errs = append(errs, validateRules(&s.Spec.Rules[i], spec.Child("rules").Index(i))...)
	}
	return errs
}

func validateRules(r *flowcontrolv1.PolicyRulesWithSubjects, at *field.Path) (errs field.ErrorList) {
	if len(r.Subjects) == 0 {
		errs = append(errs, field.Required(at.Child("subjects"), "subjects must contain at least one value"))
	}
	for i := range r.Subjects {
		errs = append(errs, validateSubject(&r.Subjects[i], at.Child("subjects").Index(i))...)
	}
	if len(r.ResourceRules) == 0 && len(r.NonResourceRules) == 0 {
		errs = append(errs, field.Required(at, "at least one of resourceRules and nonResourceRules has to be non-empty"))
	}
	for i := range r.ResourceRules {
		rule, p := &r.ResourceRules[i], at.Child("resourceRules").Index(i)
		errs = append(errs, atLeastOne(rule.Verbs, p.Child("verbs"), "verbs must contain at least one value")...)
		errs = append(errs, atLeastOne(rule.APIGroups, p.Child("apiGroups"), "resource rules must supply at least one api group")...)
		errs = append(errs, atLeastOne(rule.Resources, p.Child("resources"), "resource rules must supply at least one resource")...)
		if len(rule.Namespaces) == 0 && !rule.ClusterScope {
			errs = append(errs, field.Required(p.Child("namespaces"), "resource rules that are not cluster scoped must supply at least one namespace"))
		}
	}
	for i := range r.NonResourceRules {
		rule, p := &r.NonResourceRules[i], at.Child("nonResourceRules").Index(i)
		errs = append(errs, atLeastOne(rule.Verbs, p.Child("verbs"), "verbs must contain at least one value")...)
		errs = append(errs, atLeastOne(rule.NonResourceURLs, p.Child("nonResourceURLs"), "nonResourceURLs must contain at least one value")...)
		for j, url := range rule.NonResourceURLs {
			if url != "*" && !strings.HasPrefix(url, "/") {
				errs = append(errs, field.Invalid(p.Child("nonResourceURLs").Index(j), url, "must start with slash"))
			}
		}
	}
	return errs
}

// atLeastOne wants a list that is not empty, and in which "*" stands alone.
func atLeastOne(list []string, at *field.Path, message string) field.ErrorList {
	if len(list) == 0 {
		return field.ErrorList{field.Required(at, message)}
	}
	for _, v := range list {
		if v == "*" && len(list) > 1 {
			return field.ErrorList{field.Invalid(at, list, "if '*' is present, must not specify other values")}
		}
	}
	return nil
}

func validateSubject(s *flowcontrolv1.Subject, at *field.Path) (errs field.ErrorList) {
	switch s.Kind {
	case flowcontrolv1.SubjectKindServiceAccount:
		if s.ServiceAccount == nil {
			return field.ErrorList{field.Required(at.Child("serviceAccount"), "serviceAccount is required when subject kind is 'ServiceAccount'")}
		}
		errs = append(errs, rules.Required(s.ServiceAccount.Name, at.Child("serviceAccount", "name"), "")...)
		errs = append(errs, rules.Required(s.ServiceAccount.Namespace, at.Child("serviceAccount", "namespace"), "must specify namespace for service account")...)
	case flowcontrolv1.SubjectKindUser:
		if s.User == nil {
			return field.ErrorList{field.Required(at.Child("user"), "user is required when subject kind is 'User'")}
		}
		errs = append(errs, rules.Required(s.User.Name, at.Child("user", "name"), "")...)
	case flowcontrolv1.SubjectKindGroup:
		if s.Group == nil {
			return field.ErrorList{field.Required(at.Child("group"), "group is required when subject kind is 'Group'")}
		}
		errs = append(errs, rules.Required(s.Group.Name, at.Child("group", "name"), "")...)
	default:
		errs = append(errs, field.NotSupported(at.Child("kind"), s.Kind,
			[]flowcontrolv1.SubjectKind{flowcontrolv1.SubjectKindGroup, flowcontrolv1.SubjectKindServiceAccount, flowcontrolv1.SubjectKindUser}))
	}
	return errs
}

func priorityLevels(gv schema.GroupVersion) *api.Resource {
	r := rules.Cluster[flowcontrolv1.PriorityLevelConfiguration, flowcontrolv1.PriorityLevelConfigurationList](gv, "prioritylevelconfigurations")
	r.UnconditionalUpdate = true
	r.Columns = []metav1.TableColumnDefinition{
		rules.Name(),
		rules.Text("Type", "Whether the level is limited."),
		rules.Text("NominalConcurrencyShares", "The level's share of the server's requests."),
		rules.Text("Queues", "The number of queues."),
		rules.Text("HandSize", "How many queues a flow may use."),
		rules.Text("QueueLengthLimit", "How many requests wait in a queue at most."),
		rules.Age(),
	}
	return api.Kind[*flowcontrolv1.PriorityLevelConfiguration]{
		Resource:    r,
		Default:     defaultLevel,
		Validate:    validateLevel,
		CopyStatus:  func(dst, src *flowcontrolv1.PriorityLevelConfiguration) { dst.Status = *src.Status.DeepCopy() },
		SpecChanged: func(l, old *flowcontrolv1.PriorityLevelConfiguration) bool { return !rules.Same(l.Spec, old.Spec) },
		Row: func(l *flowcontrolv1.PriorityLevelConfiguration) []any {
			var shares, queues, hand, length any = rules.None, rules.None, rules.None, rules.None
			switch {
			case l.Spec.Limited != nil:
				if n := l.Spec.Limited.NominalConcurrencyShares; n != nil {
					shares = int64(*n)
				}
				if q := l.Spec.Limited.LimitResponse.Queuing; q != nil {
					queues, hand, length = int64(q.Queues), int64(q.HandSize), int64(q.QueueLengthLimit)
				}
			case l.Spec.Exempt != nil && l.Spec.Exempt.NominalConcurrencyShares != nil:
				shares = int64(*l.Spec.Exempt.NominalConcurrencyShares)
			}
			return []any{l.Name, string(l.Spec.Type), shares, queues, hand, length, rules.Created(l)}
		},
	}.Erase()
}

func defaultLevel(l *flowcontrolv1.PriorityLevelConfiguration) {
	switch {
	case l.Spec.Type == flowcontrolv1.PriorityLevelEnablementExempt:
		rules.Refer(&l.Spec.Exempt, flowcontrolv1.ExemptPriorityLevelConfiguration{})
		rules.Refer(&l.Spec.Exempt.NominalConcurrencyShares, 0)
		rules.Refer(&l.Spec.Exempt.LendablePercent, 0)
	case l.Spec.Limited != nil:
		rules.Refer(&l.Spec.Limited.NominalConcurrencyShares, defaultShares)
		rules.Refer(&l.Spec.Limited.LendablePercent, 0)
	}
	if l.Spec.Limited == nil || l.Spec.Limited.LimitResponse.Queuing == nil {
		return
	}
	q := l.Spec.Limited.LimitResponse.Queuing
	for _, d := range []struct {
		n     *int32
		value int32
	}{{&q.Queues, defaultQueues}, {&q.HandSize, defaultHandSize}, {&q.QueueLengthLimit, defaultQueueLimit}} {
		if *d.n == 0 {
			*d.n = d.value
		}
	}
}

func validateLevel(l *flowcontrolv1.PriorityLevelConfiguration) (errs field.ErrorList) {
	spec := field.NewPath("spec")
	switch l.Spec.Type {
	case flowcontrolv1.PriorityLevelEnablementExempt:
		if l.Spec.Limited != nil {
			errs = append(errs, field.Forbidden(spec.Child("limited"), "must be nil if the type is not Limited"))
		}
		if e := l.Spec.Exempt; e != nil {
			errs = append(errs, rules.NonnegativePointer(e.NominalConcurrencyShares, spec.Child("exempt", "nominalConcurrencyShares"))...)
			errs = append(errs, percent(e.LendablePercent, spec.Child("exempt", "lendablePercent"))...)
		}
	case flowcontrolv1.PriorityLevelEnablementLimited:
		if l.Spec.Exempt != nil {
			errs = append(errs, field.Forbidden(spec.Child("exempt"), "must be nil if the type is Limited"))
		}
		if l.Spec.Limited == nil {
			return append(errs, field.Required(spec.Child("limited"), "must not be empty when type is Limited"))
		}
		errs = append(errs, validateLimited(l.Spec.Limited, spec.Child("limited"))...)
	default:
		errs = append(errs, field.NotSupported(spec.Child("type"), l.Spec.Type,
			[]flowcontrolv1.PriorityLevelEnablement{flowcontrolv1.PriorityLevelEnablementExempt, flowcontrolv1.PriorityLevelEnablementLimited}))
	}
	return errs
}

func percent(n *int32, at *field.Path) field.ErrorList {
	if n != nil && (*n < 0 || *n > 100) {
		return field.ErrorList{field.Invalid(at, *n, "must be between 0 and 100, inclusive")}
	}
	return nil
}

func validateLimited(l *flowcontrolv1.LimitedPriorityLevelConfiguration, at *field.Path) field.ErrorList {
	errs := rules.NonnegativePointer(l.NominalConcurrencyShares, at.Child("nominalConcurrencyShares"))
	errs = append(errs, percent(l.LendablePercent, at.Child("lendablePercent"))...)
	if n := l.BorrowingLimitPercent; n != nil && *n < 0 {
		errs = append(errs, field.Invalid(at.Child("borrowingLimitPercent"), *n, "if specified, must be a non-negative integer"))
	}
	response := at.Child("limitResponse")
	queuing := response.Child("queuing")
	q := l.LimitResponse.Queuing
	switch l.LimitResponse.Type {
	case flowcontrolv1.LimitResponseTypeReject:
		if q != nil {
			errs = append(errs, field.Forbidden(queuing, "must be nil if limited.limitResponse.type is not Limited"))
		}
		return errs
	case flowcontrolv1.LimitResponseTypeQueue:
		if q == nil {
			return append(errs, field.Required(queuing, "must not be empty if limited.limitResponse.type is Limited"))
		}
	default:
		return append(errs, field.NotSupported(response.Child("type"), l.LimitResponse.Type,
			[]flowcontrolv1.LimitResponseType{flowcontrolv1.LimitResponseTypeQueue, flowcontrolv1.LimitResponseTypeReject}))
	}
	for _, f := range []struct {
		name  string
		value int32
	}{{"queues", q.Queues}, {"handSize", q.HandSize}, {"queueLengthLimit", q.QueueLengthLimit}} {
		if f.value <= 0 {
			errs = append(errs, field.Invalid(queuing.Child(f.name), f.value, "must be positive"))
		}
	}
	if q.Queues > maxQueues {
		errs = append(errs, field.Invalid(queuing.Child("queues"), q.Queues, "must not be greater than 10000000"))
	}
	if q.HandSize > q.Queues {
		errs = append(errs, field.Invalid(queuing.Child("handSize"), q.HandSize, "should not be greater than queues"))
	}
	return errs
}
