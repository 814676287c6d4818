// Package podsecurity holds pods to the Pod Security Standards that the labels
// of their namespace ask for (KEP-2579): enforced on pods, told as warnings and
// audit annotations about pods and what makes pods. The standards themselves are
// those of k8s.io/pod-security-admission.
package podsecurity

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	security "k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver/rest"
)

// Bounds of the check of pods that are there when a namespace gets stricter.
const (
	mostPods  = 3000
	checkTime = time.Second
)

// Reader looks objects up in the newest known state. They are shared: read only.
type Reader interface {
	Get(gvr schema.GroupVersionResource, namespace, name string) (api.Object, bool)
	List(gvr schema.GroupVersionResource, namespace string) []api.Object
}

var (
	namespaces = corev1.SchemeGroupVersion.WithResource("namespaces")
	pods       = corev1.SchemeGroupVersion.WithResource("pods")
	privileged = security.LevelVersion{Level: security.LevelPrivileged, Version: security.LatestVersion()}
	defaults   = security.Policy{Enforce: privileged, Audit: privileged, Warn: privileged}
)

// Plugin is the PodSecurity admission plugin, with Kubernetes' default configuration.
type Plugin struct {
	reader Reader

	once      sync.Once
	evaluator policy.Evaluator
	err       error
}

// New returns the plugin.
func New(reader Reader) *Plugin { return &Plugin{reader: reader} }

// standards are made when the first namespace asks for them.
func (p *Plugin) standards() (policy.Evaluator, error) {
	p.once.Do(func() {
		version := security.MajorMinorVersion(1, 37)
		p.evaluator, p.err = policy.NewEvaluator(policy.DefaultChecks(), &version)
	})
	if p.err != nil {
		return nil, apierrors.NewInternalError(fmt.Errorf("prepare the pod security standards: %w", p.err))
	}
	return p.evaluator, nil
}

func (p *Plugin) Validate(ctx context.Context, a *rest.Attributes) error {
	if a.Verb != rest.Create && a.Verb != rest.Update {
		return nil
	}
	switch a.Resource.GVR {
	case namespaces:
		if a.Subresource == "" {
			return p.namespace(ctx, a)
		}
		return nil
	case pods:
		switch a.Subresource {
		case "exec", "attach", "binding", "eviction", "log", "portforward", "proxy", "status":
			return nil
		}
		return p.pod(ctx, a)
	}
	if a.Subresource != "" || !makesPods(a.Resource.GVR) {
		return nil
	}
	wanted, errs := p.wanted(a.Namespace)
	if len(errs) == 0 && wanted.Warn.Level == security.LevelPrivileged && wanted.Audit.Level == security.LevelPrivileged {
		return nil
	}
	meta, spec := template(a.Object)
	if spec == nil {
		return nil
	}
	return p.evaluate(ctx, a, wanted, errs.ToAggregate(), meta, spec, false)
}

// wanted is what a namespace's labels ask for.
func (p *Plugin) wanted(namespace string) (security.Policy, errorList) {
	obj, ok := p.reader.Get(namespaces, "", namespace)
	if !ok {
		return defaults, nil
	}
	return read(obj.GetLabels())
}

func (p *Plugin) pod(ctx context.Context, a *rest.Attributes) error {
	wanted, errs := p.wanted(a.Namespace)
	if len(errs) == 0 && wanted.FullyPrivileged() {
		rest.Annotate(ctx, annotation(security.EnforcedPolicyAnnotationKey), wanted.Enforce.String())
		return nil
	}
	pod, ok := a.Object.(*corev1.Pod)
	if !ok {
		return apierrors.NewBadRequest("failed to decode pod")
	}
	if old, ok := a.Old.(*corev1.Pod); ok && a.Verb == rest.Update && !significant(pod, old) {
		return nil
	}
	return p.evaluate(ctx, a, wanted, errs.ToAggregate(), &pod.ObjectMeta, &pod.Spec, true)
}

func annotation(key string) string { return security.AuditAnnotationPrefix + key }

func (p *Plugin) evaluate(ctx context.Context, a *rest.Attributes, wanted security.Policy, wantedErr error, meta *metav1.ObjectMeta, spec *corev1.PodSpec, enforce bool) error {
	evaluator, err := p.standards()
	if err != nil {
		return err
	}
	if wantedErr != nil {
		rest.Annotate(ctx, annotation("error"), fmt.Sprintf("Failed to parse policy: %v", wantedErr))
	}
	results := map[security.LevelVersion]policy.AggregateCheckResult{}
	check := func(lv security.LevelVersion) policy.AggregateCheckResult {
		r, ok := results[lv]
		if !ok {
			r = policy.AggregateCheckResults(evaluator.EvaluatePod(lv, meta, spec))
			results[lv] = r
		}
		return r
	}
	var refused error
	if enforce {
		rest.Annotate(ctx, annotation(security.EnforcedPolicyAnnotationKey), wanted.Enforce.String())
		if r := check(wanted.Enforce); !r.Allowed {
			refused = apierrors.NewForbidden(a.Resource.GVR.GroupResource(), a.Name, fmt.Errorf("violates PodSecurity %q: %s", wanted.Enforce.String(), r.ForbiddenDetail()))
		}
	}
	if r := check(wanted.Audit); !r.Allowed {
		rest.Annotate(ctx, annotation(security.AuditViolationsAnnotationKey), fmt.Sprintf("would violate PodSecurity %q: %s", wanted.Audit.String(), r.ForbiddenDetail()))
	}
	if refused != nil {
		return refused // says more than a warning
	}
	if r := check(wanted.Warn); !r.Allowed {
		rest.Warn(ctx, fmt.Sprintf("would violate PodSecurity %q: %s", wanted.Warn.String(), r.ForbiddenDetail()))
	}
	return nil
}

// namespace checks the labels of a namespace, and warns about pods that what it
// asks for now would not allow.
func (p *Plugin) namespace(ctx context.Context, a *rest.Attributes) error {
	ns, ok := a.Object.(*corev1.Namespace)
	if !ok {
		return apierrors.NewBadRequest("failed to decode namespace")
	}
	wanted, errs := read(ns.Labels)
	old, isUpdate := a.Old.(*corev1.Namespace)
	if !isUpdate {
		if len(errs) > 0 {
			return apierrors.NewInvalid(a.Resource.GVK.GroupKind(), ns.Name, errs)
		}
		return nil
	}
	before, oldErrs := read(old.Labels)
	if len(errs) > 0 && !reflect.DeepEqual(errs, oldErrs) {
		return apierrors.NewInvalid(a.Resource.GVK.GroupKind(), ns.Name, errs)
	}
	now, was := wanted.Enforce, before.Enforce
	if now == was || now.Level == security.LevelPrivileged || now.Version == was.Version && security.CompareLevels(now.Level, was.Level) < 1 {
		return nil
	}
	evaluator, err := p.standards()
	if err != nil {
		return err
	}
	for _, w := range p.existing(ctx, evaluator, ns.Name, now) {
		rest.Warn(ctx, w)
	}
	return nil
}

// existing returns warnings about the pods of a namespace, one of each controller first.
func (p *Plugin) existing(ctx context.Context, evaluator policy.Evaluator, namespace string, enforce security.LevelVersion) []string {
	limit := checkTime
	if deadline, ok := ctx.Deadline(); ok {
		limit = min(limit, time.Until(deadline)/2)
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var first, more []*corev1.Pod
	seen := map[types.UID]bool{}
	for _, obj := range p.reader.List(pods, namespace) {
		pod, ok := obj.(*corev1.Pod)
		if !ok {
			continue
		}
		owner := metav1.GetControllerOfNoCopy(pod)
		switch {
		case owner == nil:
			first = append(first, pod)
		case seen[owner.UID]:
			more = append(more, pod)
		default:
			seen[owner.UID] = true
			first = append(first, pod)
		}
	}
	all := append(first, more...)
	type count struct {
		name string // the first of the pods with one reason
		n    int
	}
	found, checked := map[string]*count{}, 0
	for _, pod := range all[:min(len(all), mostPods)] {
		checked++
		if r := policy.AggregateCheckResults(evaluator.EvaluatePod(enforce, &pod.ObjectMeta, &pod.Spec)); !r.Allowed {
			c := found[r.ForbiddenReason()]
			if c == nil {
				c = &count{name: pod.Name}
				found[r.ForbiddenReason()] = c
			}
			c.name = min(c.name, pod.Name)
			c.n++
		}
		if ctx.Err() != nil {
			break
		}
	}
	var out, reasons []string
	if checked < len(all) {
		out = append(out, fmt.Sprintf("new PodSecurity enforce level only checked against the first %d of %d existing pods", checked, len(all)))
	}
	if len(found) > 0 {
		out = append(out, fmt.Sprintf("existing pods in namespace %q violate the new PodSecurity enforce level %q", namespace, enforce.String()))
	}
	for reason, c := range found {
		switch c.n {
		case 1:
			reasons = append(reasons, c.name+": "+reason)
		case 2:
			reasons = append(reasons, c.name+" (and 1 other pod): "+reason)
		default:
			reasons = append(reasons, fmt.Sprintf("%s (and %d other pods): %s", c.name, c.n-1, reason))
		}
	}
	slices.Sort(reasons)
	return append(out, reasons...)
}
