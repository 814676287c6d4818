package core

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

func podTemplate() *api.Resource {
	k := api.Kind[*corev1.PodTemplate]{Resource: rules.Namespaced[corev1.PodTemplate, corev1.PodTemplateList](gv, "podtemplates")}
	k.Resource.CreateOnUpdate, k.Resource.UnconditionalUpdate = true, true
	k.Default = func(o *corev1.PodTemplate) { DefaultPodTemplate(&o.Template) }
	k.Validate = func(o *corev1.PodTemplate) field.ErrorList {
		return ValidatePodTemplateSpec(&o.Template, field.NewPath("template"))
	}
	k.SpecChanged = func(o, old *corev1.PodTemplate) bool { return !rules.Same(o.Template, old.Template) }
	k.Resource.Columns = []metav1.TableColumnDefinition{
		rules.Name(), rules.Text("Containers", "Names of each container in the template."), rules.Text("Images", "Images referenced by each container in the template."),
		rules.Text("Pod Labels", "The labels for the pod template."),
	}
	k.Row = func(o *corev1.PodTemplate) []any {
		names, images := ContainerNames(&o.Template.Spec)
		return []any{o.Name, names, images, labels.FormatLabels(o.Template.Labels)}
	}
	return k.Erase()
}
