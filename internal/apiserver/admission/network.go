package admission

import (
	"context"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/proa-dev/proa/internal/apiserver/rest"
)

var ingressClassesGVR = networkingv1.SchemeGroupVersion.WithResource("ingressclasses")

// ingressClassAnnotation named the class before spec.ingressClassName did.
const ingressClassAnnotation = "kubernetes.io/ingress.class"

// DefaultIngressClass gives a new Ingress without a class the default one: of
// several, the newest (ties by name).
type DefaultIngressClass struct{ Reader Reader }

func (p DefaultIngressClass) Admit(_ context.Context, a *rest.Attributes) error {
	if !is(a, networkingv1.GroupName, "ingresses", rest.Create) {
		return nil
	}
	ingress, ok := a.Object.(*networkingv1.Ingress)
	if !ok || ingress.Spec.IngressClassName != nil {
		return nil
	}
	if _, named := ingress.Annotations[ingressClassAnnotation]; named {
		return nil
	}
	var best *networkingv1.IngressClass
	for _, obj := range p.Reader.List(ingressClassesGVR, "") {
		c, ok := obj.(*networkingv1.IngressClass)
		if !ok || c.Annotations[networkingv1.AnnotationIsDefaultIngressClass] != "true" {
			continue
		}
		if best == nil || c.CreationTimestamp.After(best.CreationTimestamp.Time) || c.CreationTimestamp.Equal(&best.CreationTimestamp) && c.Name < best.Name {
			best = c
		}
	}
	if best != nil {
		name := best.Name
		ingress.Spec.IngressClassName = &name
	}
	return nil
}
