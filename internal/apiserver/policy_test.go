package apiserver_test

import (
	"strings"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	restclient "k8s.io/client-go/rest"
	"k8s.io/utils/ptr"
)

func matches(resource string, ops ...admissionregistrationv1.OperationType) *admissionregistrationv1.MatchResources {
	m := &admissionregistrationv1.MatchResources{}
	for _, r := range rule(resource, ops...) {
		m.ResourceRules = append(m.ResourceRules, admissionregistrationv1.NamedRuleWithOperations{RuleWithOperations: r})
	}
	return m
}

func validatingPolicy(t testing.TB, c *kubernetes.Clientset, name string, spec admissionregistrationv1.ValidatingAdmissionPolicySpec, binding admissionregistrationv1.ValidatingAdmissionPolicyBindingSpec) {
	t.Helper()
	if _, err := c.AdmissionregistrationV1().ValidatingAdmissionPolicies().Create(t.Context(), &admissionregistrationv1.ValidatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	binding.PolicyName = name
	if len(binding.ValidationActions) == 0 {
		binding.ValidationActions = []admissionregistrationv1.ValidationAction{admissionregistrationv1.Deny}
	}
	if _, err := c.AdmissionregistrationV1().ValidatingAdmissionPolicyBindings().Create(t.Context(), &admissionregistrationv1.ValidatingAdmissionPolicyBinding{ObjectMeta: metav1.ObjectMeta{Name: name + "-b"}, Spec: binding}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func mutatingPolicy(t testing.TB, c *kubernetes.Clientset, name string, spec admissionregistrationv1.MutatingAdmissionPolicySpec, binding admissionregistrationv1.MutatingAdmissionPolicyBindingSpec) {
	t.Helper()
	if spec.ReinvocationPolicy == "" {
		spec.ReinvocationPolicy = admissionregistrationv1.NeverReinvocationPolicy
	}
	if _, err := c.AdmissionregistrationV1().MutatingAdmissionPolicies().Create(t.Context(), &admissionregistrationv1.MutatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	binding.PolicyName = name
	if _, err := c.AdmissionregistrationV1().MutatingAdmissionPolicyBindings().Create(t.Context(), &admissionregistrationv1.MutatingAdmissionPolicyBinding{ObjectMeta: metav1.ObjectMeta{Name: name + "-b"}, Spec: binding}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func deploymentOf(name string, replicas int32) *appsv1.Deployment {
	labels := map[string]string{"app": name}
	return &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"}, Spec: appsv1.DeploymentSpec{Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}}}
}

func TestAValidatingPolicyDenies(t *testing.T) {
	_, c := admitted(t)
	validatingPolicy(t, c, "p", admissionregistrationv1.ValidatingAdmissionPolicySpec{
		MatchConstraints: matches("apps/v1:deployments", onCreate, onUpdate),
		Variables:        []admissionregistrationv1.Variable{{Name: "n", Expression: "object.spec.replicas"}},
		MatchConditions:  []admissionregistrationv1.MatchCondition{{Name: "not-exempt", Expression: "object.metadata.name != 'exempt' && object.kind == 'Deployment' && namespaceObject.metadata.labels['team'] == 'a'"}},
		Validations: []admissionregistrationv1.Validation{
			{Expression: "variables.n <= 2", MessageExpression: "'too many: ' + string(variables.n)"},
			{Expression: "object.metadata.name != 'secret'", Message: "not that name", Reason: ptr.To(metav1.StatusReasonForbidden)},
		},
	}, admissionregistrationv1.ValidatingAdmissionPolicyBindingSpec{})
	d := c.AppsV1().Deployments("default")
	_, err := d.Create(t.Context(), deploymentOf("d", 3), metav1.CreateOptions{})
	if want := `deployments.apps "d" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'p-b' denied request: too many: 3`; !apierrors.IsInvalid(err) || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if _, err := d.Create(t.Context(), deploymentOf("secret", 1), metav1.CreateOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("got %v", err)
	}
	if _, err := d.Create(t.Context(), deploymentOf("exempt", 9), metav1.CreateOptions{}); err != nil {
		t.Errorf("got %v", err)
	}
	if _, err := d.Create(t.Context(), deploymentOf("d", 2), metav1.CreateOptions{}); err != nil {
		t.Errorf("got %v", err)
	}
}

func TestPolicyParams(t *testing.T) {
	_, c := admitted(t)
	spec := admissionregistrationv1.ValidatingAdmissionPolicySpec{
		ParamKind: &admissionregistrationv1.ParamKind{APIVersion: "v1", Kind: "ConfigMap"}, MatchConstraints: matches("apps/v1:deployments", onCreate),
		Validations: []admissionregistrationv1.Validation{{Expression: "params != null && object.spec.replicas <= int(params.data.most) && params.kind == 'ConfigMap'", Message: "over the most"}},
	}
	validatingPolicy(t, c, "p", spec, admissionregistrationv1.ValidatingAdmissionPolicyBindingSpec{ParamRef: &admissionregistrationv1.ParamRef{Name: "limits", ParameterNotFoundAction: ptr.To(admissionregistrationv1.DenyAction)}})
	d := c.AppsV1().Deployments("default")
	if _, err := d.Create(t.Context(), deploymentOf("d", 1), metav1.CreateOptions{}); err == nil || !strings.Contains(err.Error(), "failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction") {
		t.Errorf("without the parameter: %v", err)
	}
	if _, err := c.CoreV1().ConfigMaps("default").Create(t.Context(), dataMap("limits", "most", "2"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Create(t.Context(), deploymentOf("d", 2), metav1.CreateOptions{}); err != nil {
		t.Errorf("within the limit: %v", err)
	}
	if _, err := d.Create(t.Context(), deploymentOf("e", 3), metav1.CreateOptions{}); err == nil || !strings.Contains(err.Error(), "over the most") {
		t.Errorf("over the limit: %v", err)
	}
}

type warnings struct{ texts []string }

func (w *warnings) HandleWarningHeader(_ int, _, text string) { w.texts = append(w.texts, text) }

func TestAPolicyThatOnlyWarns(t *testing.T) {
	s, c := admitted(t)
	validatingPolicy(t, c, "p", admissionregistrationv1.ValidatingAdmissionPolicySpec{MatchConstraints: matches("/v1:configmaps", onCreate),
		Validations: []admissionregistrationv1.Validation{{Expression: "false", Message: "never"}}}, admissionregistrationv1.ValidatingAdmissionPolicyBindingSpec{ValidationActions: []admissionregistrationv1.ValidationAction{admissionregistrationv1.Warn, admissionregistrationv1.Audit}})
	config, w := restclient.CopyConfig(s.config), &warnings{}
	config.WarningHandler = w
	warned, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := warned.CoreV1().ConfigMaps("default").Create(t.Context(), dataMap("m"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if len(w.texts) != 1 || w.texts[0] != "Validation failed for ValidatingAdmissionPolicy 'p' with binding 'p-b': never" {
		t.Errorf("warnings %q", w.texts)
	}
}

func TestExpressionsThatDoNotCompileAreRefused(t *testing.T) {
	_, c := admitted(t)
	_, err := c.AdmissionregistrationV1().ValidatingAdmissionPolicies().Create(t.Context(), &admissionregistrationv1.ValidatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: "p"},
		Spec: admissionregistrationv1.ValidatingAdmissionPolicySpec{MatchConstraints: matches("/v1:configmaps", onCreate), Variables: []admissionregistrationv1.Variable{{Name: "n", Expression: "1"}},
			Validations: []admissionregistrationv1.Validation{{Expression: "variables.n + 1"}, {Expression: "variables.n == 1 && nothing"}}}}, metav1.CreateOptions{})
	if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), `spec.validations[0].expression: Invalid value: "variables.n + 1": must evaluate to bool`) ||
		!strings.Contains(err.Error(), `spec.validations[1].expression: Invalid value: "variables.n == 1 && nothing": compilation failed: ERROR: <input>:1:21: undeclared reference to 'nothing'`) {
		t.Errorf("got %v", err)
	}
	h := serveHook(t, allow)
	_, err = c.AdmissionregistrationV1().ValidatingWebhookConfigurations().Create(t.Context(), &admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "w"}, Webhooks: []admissionregistrationv1.ValidatingWebhook{{
		Name: "w.example.com", ClientConfig: h.client(), SideEffects: ptr.To(admissionregistrationv1.SideEffectClassNone), AdmissionReviewVersions: []string{"v1"}, Rules: rule("/v1:configmaps", onCreate),
		MatchConditions: []admissionregistrationv1.MatchCondition{{Name: "c", Expression: "... [}"}}}}}, metav1.CreateOptions{})
	if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), `webhooks[0].matchConditions[0].expression: Invalid value: "... [}": compilation failed`) {
		t.Errorf("got %v", err)
	}
}

func TestMutatingPolicies(t *testing.T) {
	_, c := admitted(t)
	mutatingPolicy(t, c, "apply", admissionregistrationv1.MutatingAdmissionPolicySpec{MatchConstraints: matches("/v1:pods", onCreate),
		Mutations: []admissionregistrationv1.Mutation{{PatchType: admissionregistrationv1.PatchTypeApplyConfiguration, ApplyConfiguration: &admissionregistrationv1.ApplyConfiguration{
			Expression: `Object{metadata: Object.metadata{labels: {"by": "policy"}}, spec: Object.spec{initContainers: [Object.spec.initContainers{name: "mesh", image: "mesh:1", restartPolicy: "Always"}]}}`}}}}, admissionregistrationv1.MutatingAdmissionPolicyBindingSpec{})
	mutatingPolicy(t, c, "patch", admissionregistrationv1.MutatingAdmissionPolicySpec{MatchConstraints: matches("/v1:pods", onCreate),
		Variables: []admissionregistrationv1.Variable{{Name: "who", Expression: "request.userInfo.username"}},
		Mutations: []admissionregistrationv1.Mutation{{PatchType: admissionregistrationv1.PatchTypeJSONPatch, JSONPatch: &admissionregistrationv1.JSONPatch{
			Expression: `[JSONPatch{op: "test", path: "/metadata/labels/by", value: "policy"}, JSONPatch{op: "add", path: "/metadata/annotations", value: {"who": variables.who}}]`}}}}, admissionregistrationv1.MutatingAdmissionPolicyBindingSpec{})
	p, err := c.CoreV1().Pods("default").Create(t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Labels: map[string]string{"own": "1"}}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if p.Labels["by"] != "policy" || p.Labels["own"] != "1" || p.Annotations["who"] != "admin" {
		t.Errorf("metadata %v %v", p.Labels, p.Annotations)
	}
	if len(p.Spec.InitContainers) != 1 || p.Spec.InitContainers[0].Image != "mesh:1" || p.Spec.InitContainers[0].TerminationMessagePath == "" || len(p.Spec.Containers) != 1 {
		t.Errorf("spec %+v", p.Spec)
	}
}

func TestAMutatingPolicyThatFailsDenies(t *testing.T) {
	_, c := admitted(t)
	mutatingPolicy(t, c, "bad", admissionregistrationv1.MutatingAdmissionPolicySpec{MatchConstraints: matches("/v1:configmaps", onCreate),
		Mutations: []admissionregistrationv1.Mutation{{PatchType: admissionregistrationv1.PatchTypeJSONPatch, JSONPatch: &admissionregistrationv1.JSONPatch{
			Expression: `[JSONPatch{op: "replace", path: "/data/none/none", value: "x"}]`}}}}, admissionregistrationv1.MutatingAdmissionPolicyBindingSpec{})
	_, err := c.CoreV1().ConfigMaps("default").Create(t.Context(), dataMap("m"), metav1.CreateOptions{})
	if err == nil || !strings.Contains(err.Error(), "policy 'bad' with binding 'bad-b' denied request: JSON Patch:") {
		t.Errorf("got %v", err)
	}
}
