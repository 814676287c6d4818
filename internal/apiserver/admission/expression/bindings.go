package expression

import (
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/admission"
	plugincel "k8s.io/apiserver/pkg/admission/plugin/cel"
	"k8s.io/apiserver/pkg/authorization/authorizer"

	"github.com/proa-dev/proa/internal/apiserver/admission/request"
)

// Bindings are the values of the variables, beside the objects.
type Bindings struct {
	Request   *admissionv1.AdmissionRequest
	Namespace *corev1.Namespace
	Optional  plugincel.OptionalVariableBindings
}

// Bind returns the values for a write as a target shows it; params may be nil.
func Bind(v *admission.VersionedAttributes, t *request.Target, namespace *corev1.Namespace, params runtime.Object, authz authorizer.UnconditionalAuthorizer) *Bindings {
	return &Bindings{
		Request:   plugincel.CreateAdmissionRequest(v.Attributes, metav1.GroupVersionResource(t.Resource), metav1.GroupVersionKind(t.Kind)),
		Namespace: plugincel.CreateNamespaceObject(namespace),
		Optional:  plugincel.OptionalVariableBindings{VersionedParams: params, Authorizer: authz},
	}
}
