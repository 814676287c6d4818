package rest

import (
	"context"
	"fmt"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver/cache"
)

func negative(n int32) field.ErrorList {
	return field.ErrorList{field.Invalid(field.NewPath("spec", "replicas"), n, "must be greater than or equal to 0")}
}

func success() *metav1.Status {
	return &metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusSuccess, Code: 201}
}

func (s *storage) CreateSubresource(ctx context.Context, namespace, name, subresource string, obj runtime.Object, opts metav1.CreateOptions) (runtime.Object, error) {
	switch {
	case s.gr.Resource == "pods" && s.gr.Group == "" && subresource == "binding":
		b, ok := obj.(*corev1.Binding)
		if !ok {
			return nil, apierrors.NewBadRequest(fmt.Sprintf("a Binding is wanted, not %T", obj))
		}
		return s.bind(ctx, namespace, name, b, opts)
	case s.gr.Resource == "pods" && s.gr.Group == "" && subresource == "eviction":
		e, ok := obj.(*policyv1.Eviction)
		if !ok {
			return nil, apierrors.NewBadRequest(fmt.Sprintf("an Eviction is wanted, not %T", obj))
		}
		return s.evict(ctx, namespace, name, e, opts)
	}
	return nil, apierrors.NewNotFound(s.gr, name)
}

// bind sets a pod's node, once (B1).
func (s *storage) bind(ctx context.Context, namespace, name string, b *corev1.Binding, opts metav1.CreateOptions) (runtime.Object, error) {
	var errs field.ErrorList
	if b.Target.Kind != "" && b.Target.Kind != "Node" {
		errs = append(errs, field.NotSupported(field.NewPath("target", "kind"), b.Target.Kind, []string{"Node", "<empty>"}))
	}
	if b.Target.Name == "" {
		errs = append(errs, field.Required(field.NewPath("target", "name"), ""))
	}
	if len(errs) > 0 {
		return nil, apierrors.NewInvalid(corev1.SchemeGroupVersion.WithKind("Binding").GroupKind(), b.Name, errs)
	}
	admitted, err := s.admitSubresource(ctx, namespace, name, "binding", b, &opts)
	if err != nil {
		return nil, err
	}
	b = admitted.(*corev1.Binding)
	req := &updateRequest{namespace: namespace, name: name, subresource: "binding", owners: keep, unadmitted: true,
		opts:     UpdateOptions{UpdateOptions: metav1.UpdateOptions{DryRun: opts.DryRun, FieldManager: opts.FieldManager}},
		project:  func(obj, _ api.Object) (api.Object, error) { return obj, nil },
		validate: func(api.Object, api.Object) field.ErrorList { return nil },
	}
	req.change = func(_ context.Context, old api.Object) (api.Object, error) {
		pod := old.(*corev1.Pod)
		refuse := func(format string, args ...any) error {
			return s.conflict(name, format, args...)
		}
		switch {
		case b.UID != "" && b.UID != pod.UID:
			return nil, refuse("Precondition failed: UID in precondition: %v, UID in object meta: %v", b.UID, pod.UID)
		case b.ResourceVersion != "" && b.ResourceVersion != pod.ResourceVersion:
			return nil, refuse("Precondition failed: ResourceVersion in precondition: %v, ResourceVersion in object meta: %v", b.ResourceVersion, pod.ResourceVersion)
		case pod.DeletionTimestamp != nil:
			return nil, refuse("pod %s is being deleted, cannot be assigned to a host", name)
		case pod.Spec.NodeName != "":
			return nil, refuse("pod %s is already assigned to node %q", name, pod.Spec.NodeName)
		case len(pod.Spec.SchedulingGates) > 0:
			return nil, refuse("pod %s has non-empty .spec.schedulingGates", name)
		}
		pod.Spec.NodeName = b.Target.Name
		for k, v := range b.Annotations {
			if pod.Annotations == nil {
				pod.Annotations = map[string]string{}
			}
			pod.Annotations[k] = v
		}
		for k, v := range b.Labels {
			if pod.Labels == nil {
				pod.Labels = map[string]string{}
			}
			pod.Labels[k] = v
		}
		condition := corev1.PodCondition{Type: corev1.PodScheduled, Status: corev1.ConditionTrue, LastTransitionTime: s.now(), ObservedGeneration: pod.Generation}
		for i := range pod.Status.Conditions {
			if pod.Status.Conditions[i].Type == corev1.PodScheduled {
				pod.Status.Conditions[i] = condition
				return pod, nil
			}
		}
		pod.Status.Conditions = append(pod.Status.Conditions, condition)
		return pod, nil
	}
	if _, _, err := s.update(ctx, req); err != nil {
		return nil, err
	}
	return success(), nil
}

// evict deletes a pod if its PodDisruptionBudgets allow it (C12).
func (s *storage) evict(ctx context.Context, namespace, name string, e *policyv1.Eviction, opts metav1.CreateOptions) (runtime.Object, error) {
	if e.Name != "" && e.Name != name {
		return nil, nameMismatch(e.Name, name)
	}
	admitted, err := s.admitSubresource(ctx, namespace, name, "eviction", e, &opts)
	if err != nil {
		return nil, err
	}
	e = admitted.(*policyv1.Eviction)
	del := metav1.DeleteOptions{}
	if e.DeleteOptions != nil {
		del = *e.DeleteOptions.DeepCopy()
	}
	if len(opts.DryRun) > 0 {
		del.DryRun = opts.DryRun
	}
	cur, err := s.Get(ctx, namespace, name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	pod := cur.Object().(*corev1.Pod)
	// What does not run takes no budget.
	free := pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodPending || pod.DeletionTimestamp != nil
	if !free {
		if err := s.spend(ctx, pod, dryRun(del.DryRun)); err != nil {
			return nil, err
		}
	}
	if del.Preconditions == nil {
		uid := pod.UID
		del.Preconditions = &metav1.Preconditions{UID: &uid}
	}
	if !free {
		if err := s.targeted(ctx, pod, del); err != nil {
			return nil, err
		}
	}
	if errs := validation.ValidateDeleteOptions(&del); len(errs) > 0 {
		return nil, apierrors.NewInvalid(metav1.SchemeGroupVersion.WithKind("DeleteOptions").GroupKind(), "", errs)
	}
	if _, _, err := s.delete(ctx, namespace, name, del, deleteRequest{unadmitted: true}); err != nil {
		return nil, err
	}
	return success(), nil
}

// admitSubresource asks admission about what is posted to a subresource. The
// writes that it leads to are part of that.
func (s *storage) admitSubresource(ctx context.Context, namespace, name, subresource string, obj api.Object, opts *metav1.CreateOptions) (runtime.Object, error) {
	attrs := &Attributes{Verb: Create, Resource: s.res, Subresource: subresource, Namespace: namespace, Name: name,
		Object: obj, User: UserFrom(ctx), DryRun: dryRun(opts.DryRun), Options: opts}
	cache.ClearKind(obj)
	if err := s.reg.cfg.Admission.Admit(ctx, attrs); err != nil {
		return nil, err
	}
	if fmt.Sprintf("%T", attrs.Object) != fmt.Sprintf("%T", obj) {
		return nil, apierrors.NewInternalError(fmt.Errorf("admission made %T of %T", attrs.Object, obj))
	}
	if err := s.reg.cfg.Admission.Validate(ctx, attrs); err != nil {
		return nil, err
	}
	return attrs.Object, nil
}

// targeted writes into a pod's status why it is about to be deleted (KEP-3329).
func (s *storage) targeted(ctx context.Context, pod *corev1.Pod, del metav1.DeleteOptions) error {
	_, _, err := s.update(ctx, &updateRequest{namespace: pod.Namespace, name: pod.Name, subresource: "status", owners: keep, unadmitted: true,
		opts: UpdateOptions{UpdateOptions: metav1.UpdateOptions{DryRun: del.DryRun}},
		change: func(_ context.Context, old api.Object) (api.Object, error) {
			p := old.(*corev1.Pod)
			if want := del.Preconditions.UID; want != nil && *want != p.UID {
				return nil, apierrors.NewConflict(s.gr, p.Name, fmt.Errorf("the UID in the precondition (%s) does not match the UID in record (%s)", *want, p.UID))
			}
			c := corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "EvictionByEvictionAPI", Message: "Eviction API: evicting",
				ObservedGeneration: p.Generation, LastTransitionTime: s.now()}
			for i := range p.Status.Conditions {
				if have := &p.Status.Conditions[i]; have.Type == c.Type {
					if have.Status == c.Status {
						c.LastTransitionTime = have.LastTransitionTime
					}
					*have = c
					return p, nil
				}
			}
			p.Status.Conditions = append(p.Status.Conditions, c)
			return p, nil
		}})
	return err
}

var budgetsGVR = policyv1.SchemeGroupVersion.WithResource("poddisruptionbudgets")

// spend takes one disruption from the budget that covers a pod, guarded by its revision.
func (s *storage) spend(ctx context.Context, pod *corev1.Pod, dry bool) error {
	budgets, ok := s.reg.storage(budgetsGVR)
	if !ok {
		return nil
	}
	list, err := budgets.List(ctx, pod.Namespace, ListOptions{})
	if err != nil {
		return err
	}
	var covers []*policyv1.PodDisruptionBudget
	for _, e := range list.Entries {
		b := e.Object().(*policyv1.PodDisruptionBudget)
		selector, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
		if err == nil && b.Spec.Selector != nil && selector.Matches(labels.Set(pod.Labels)) {
			covers = append(covers, b)
		}
	}
	switch len(covers) {
	case 0:
		return nil
	case 1:
	default:
		return apierrors.NewInternalError(fmt.Errorf("this pod has more than one PodDisruptionBudget, which the eviction subresource does not support"))
	}
	name := covers[0].Name
	if !podReady(pod) && freeWhenUnhealthy(covers[0]) {
		return nil
	}
	_, _, err = budgets.update(ctx, &updateRequest{namespace: pod.Namespace, name: name, subresource: "status", owners: keep, unadmitted: true,
		opts: UpdateOptions{UpdateOptions: metav1.UpdateOptions{DryRun: dryOption(dry)}},
		change: func(_ context.Context, old api.Object) (api.Object, error) {
			b := old.(*policyv1.PodDisruptionBudget)
			refuse := func(message string, retry int) error {
				err := apierrors.NewTooManyRequests("Cannot evict pod as it would violate the pod's disruption budget.", retry)
				err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes, metav1.StatusCause{Type: policyv1.DisruptionBudgetCause, Message: message})
				return err
			}
			if b.Status.ObservedGeneration < b.Generation {
				return nil, refuse(fmt.Sprintf("The disruption budget %s is still being processed by the server.", name), 10)
			}
			if b.Status.DisruptionsAllowed <= 0 {
				return nil, refuse(fmt.Sprintf("The disruption budget %s needs %d healthy pods and has %d currently", name, b.Status.DesiredHealthy, b.Status.CurrentHealthy), 0)
			}
			b.Status.DisruptionsAllowed--
			if b.Status.DisruptedPods == nil {
				b.Status.DisruptedPods = map[string]metav1.Time{}
			}
			b.Status.DisruptedPods[pod.Name] = s.now()
			return b, nil
		}})
	return err
}

// freeWhenUnhealthy says whether pods that are not ready take nothing from a budget
// (unhealthyPodEvictionPolicy, KEP-3017).
func freeWhenUnhealthy(b *policyv1.PodDisruptionBudget) bool {
	if p := b.Spec.UnhealthyPodEvictionPolicy; p != nil && *p == policyv1.AlwaysAllow {
		return true
	}
	return b.Status.ObservedGeneration >= b.Generation && b.Status.CurrentHealthy >= b.Status.DesiredHealthy && b.Status.DesiredHealthy > 0
}

func podReady(pod *corev1.Pod) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func dryOption(dry bool) []string {
	if dry {
		return []string{metav1.DryRunAll}
	}
	return nil
}

// projection says what a write of a subresource may change; nil: there is no such subresource.
func (s *storage) projection(subresource string) func(obj, old api.Object) (api.Object, error) {
	whole := func(obj, _ api.Object) (api.Object, error) { return obj, nil }
	pods := s.gr.Group == "" && s.gr.Resource == "pods"
	switch {
	case subresource == "scale" && s.res.Scale != nil:
		return whole
	case pods && subresource == "ephemeralcontainers":
		return func(obj, old api.Object) (api.Object, error) {
			out := old.DeepCopyObject().(*corev1.Pod)
			out.Spec.EphemeralContainers = obj.(*corev1.Pod).Spec.EphemeralContainers
			return out, nil
		}
	case pods && subresource == "resize":
		return func(obj, old api.Object) (api.Object, error) {
			out, in := old.DeepCopyObject().(*corev1.Pod), obj.(*corev1.Pod)
			if len(in.Spec.Containers) != len(out.Spec.Containers) {
				return nil, apierrors.NewBadRequest("a resize may not add or remove containers")
			}
			for i := range out.Spec.Containers {
				out.Spec.Containers[i].Resources = in.Spec.Containers[i].Resources
			}
			return out, nil
		}
	case s.gr.Group == "" && s.gr.Resource == "namespaces" && subresource == "finalize":
		return func(obj, old api.Object) (api.Object, error) {
			out := old.DeepCopyObject().(*corev1.Namespace)
			out.Spec.Finalizers = obj.(*corev1.Namespace).Spec.Finalizers
			return out, nil
		}
	case s.gr.Resource == "certificatesigningrequests" && subresource == "approval":
		return func(obj, old api.Object) (api.Object, error) {
			out := old.DeepCopyObject().(*certificatesv1.CertificateSigningRequest)
			// Who approves may say why on the object.
			out.Labels, out.Annotations, out.Finalizers = obj.GetLabels(), obj.GetAnnotations(), obj.GetFinalizers()
			out.Status.Conditions = obj.(*certificatesv1.CertificateSigningRequest).Status.Conditions
			return out, nil
		}
	}
	return nil
}

// validateSubresource checks a write of a subresource that has rules of its own.
func (s *storage) validateSubresource(subresource string, obj, old api.Object) (errs field.ErrorList) {
	switch subresource {
	case "ephemeralcontainers":
		now, was := obj.(*corev1.Pod).Spec.EphemeralContainers, old.(*corev1.Pod).Spec.EphemeralContainers
		for i := range was {
			if i >= len(now) || now[i].Name != was[i].Name || now[i].Image != was[i].Image {
				errs = append(errs, field.Forbidden(field.NewPath("spec", "ephemeralContainers").Index(i), "existing ephemeral containers may not be removed or changed"))
			}
		}
		if s.res.Validate != nil {
			// The rest of the pod was valid; its ephemeral containers are checked with it.
			for _, e := range s.res.Validate(obj) {
				if e.Type != field.ErrorTypeForbidden {
					errs = append(errs, e)
				}
			}
		}
	case "resize":
		if s.res.Validate != nil {
			errs = append(errs, s.res.Validate(obj)...)
		}
	}
	return errs
}
