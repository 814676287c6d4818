package apiserver_test

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

const (
	onCreate = admissionregistrationv1.Create
	onUpdate = admissionregistrationv1.Update
	onDelete = admissionregistrationv1.Delete
)

func dataMap(name string, data ...string) *corev1.ConfigMap {
	m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"}, Data: map[string]string{}}
	for i := 0; i+1 < len(data); i += 2 {
		m.Data[data[i]] = data[i+1]
	}
	return m
}

func TestAValidatingWebhookDenies(t *testing.T) {
	_, c := admitted(t)
	h := serveHook(t, func(r *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		if r.Name == "bad" || r.Operation == admissionv1.Delete {
			return deny("because it is bad")(r)
		}
		return allow(r)
	})
	validating(t, c, "v", admissionregistrationv1.ValidatingWebhook{ClientConfig: h.client(), Rules: rule("/v1:configmaps", onCreate, onUpdate, onDelete)})
	maps := c.CoreV1().ConfigMaps("default")
	_, err := maps.Create(t.Context(), dataMap("bad"), metav1.CreateOptions{})
	if want := `admission webhook "v.example.com" denied the request: because it is bad`; err == nil || err.Error() != want || !apierrors.IsBadRequest(err) && apierrors.ReasonForError(err) != "" {
		t.Errorf("got %v, want %s", err, want)
	}
	m, err := maps.Create(t.Context(), dataMap("good", "a", "1"), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	m.Data["a"] = "2"
	if _, err := maps.Update(t.Context(), m, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := maps.Delete(t.Context(), "good", metav1.DeleteOptions{}); err == nil {
		t.Error("the delete was not denied")
	}
	asked := h.requests()
	if len(asked) != 4 {
		t.Fatalf("%d calls", len(asked))
	}
	update, del := asked[2], asked[3]
	if update.Operation != admissionv1.Update || update.Resource.Resource != "configmaps" || update.Kind.Kind != "ConfigMap" || update.Namespace != "default" || update.UserInfo.Username != "admin" {
		t.Errorf("update %+v", update)
	}
	var now, was corev1.ConfigMap
	if json.Unmarshal(update.Object.Raw, &now) != nil || json.Unmarshal(update.OldObject.Raw, &was) != nil || now.Data["a"] != "2" || was.Data["a"] != "1" || now.Kind != "ConfigMap" || was.APIVersion != "v1" {
		t.Errorf("object %s, old %s", update.Object.Raw, update.OldObject.Raw)
	}
	if !strings.Contains(string(update.Options.Raw), `"kind":"UpdateOptions"`) || !strings.Contains(string(update.Options.Raw), `"apiVersion":"meta.k8s.io/v1"`) {
		t.Errorf("options %s", update.Options.Raw)
	}
	if string(del.Object.Raw) != "" && string(del.Object.Raw) != "null" || len(del.OldObject.Raw) == 0 {
		t.Errorf("delete: object %s, old %s", del.Object.Raw, del.OldObject.Raw)
	}
}

func TestMutatingWebhooksPatchInOrderAndAgain(t *testing.T) {
	_, c := admitted(t)
	first := serveHook(t, func(r *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		var m corev1.ConfigMap
		_ = json.Unmarshal(r.Object.Raw, &m)
		if m.Data["second"] != "" {
			return patch(`[{"op":"add","path":"/data/again","value":"yes"}]`)(r)
		}
		return patch(`[{"op":"add","path":"/data/first","value":"1"}]`)(r)
	})
	second := serveHook(t, patch(`[{"op":"add","path":"/data/second","value":"2"},{"op":"add","path":"/data/unknown-field-is-data","value":"x"}]`))
	mutating(t, c, "a", admissionregistrationv1.MutatingWebhook{ClientConfig: first.client(), Rules: rule("/v1:configmaps", onCreate), ReinvocationPolicy: ptr.To(admissionregistrationv1.IfNeededReinvocationPolicy)})
	mutating(t, c, "b", admissionregistrationv1.MutatingWebhook{ClientConfig: second.client(), Rules: rule("/v1:configmaps", onCreate)})
	m, err := c.CoreV1().ConfigMaps("default").Create(t.Context(), dataMap("m", "own", "0"), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if m.Data["first"] != "1" || m.Data["second"] != "2" || m.Data["again"] != "yes" || m.Data["own"] != "0" {
		t.Errorf("data %v", m.Data)
	}
	if len(first.requests()) != 2 || len(second.requests()) != 1 {
		t.Errorf("calls: first %d, second %d", len(first.requests()), len(second.requests()))
	}
}

func TestAPatchedPodIsDefaultedAndValidated(t *testing.T) {
	_, c := admitted(t)
	h := serveHook(t, patch(`[{"op":"add","path":"/spec/initContainers","value":[{"name":"added","image":"i"}]}]`))
	mutating(t, c, "m", admissionregistrationv1.MutatingWebhook{ClientConfig: h.client(), Rules: rule("/v1:pods", onCreate)})
	p, err := c.CoreV1().Pods("default").Create(t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Spec.InitContainers) != 1 || p.Spec.InitContainers[0].TerminationMessagePath == "" || p.Spec.InitContainers[0].ImagePullPolicy == "" {
		t.Errorf("init containers %+v", p.Spec.InitContainers)
	}
	if len(p.Spec.InitContainers[0].VolumeMounts) != 1 {
		t.Errorf("the service account's token was not mounted into what the webhook added: %+v", p.Spec.InitContainers[0].VolumeMounts)
	}
	bad := serveHook(t, patch(`[{"op":"replace","path":"/spec/restartPolicy","value":"Sometimes"}]`))
	mutating(t, c, "n", admissionregistrationv1.MutatingWebhook{ClientConfig: bad.client(), Rules: rule("/v1:pods", onCreate)})
	if _, err := c.CoreV1().Pods("default").Create(t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "q"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}, metav1.CreateOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("an invalid patch: %v", err)
	}
}

func TestAPatchedCustomResourceIsPrunedAndDefaulted(t *testing.T) {
	s, c := admitted(t)
	s.define(t, crontabCRD(nil))
	h := serveHook(t, patch(`[{"op":"add","path":"/spec/unknown","value":"x"},{"op":"add","path":"/spec/ports","value":[{"name":"a","port":1,"other":2}]}]`))
	mutating(t, c, "m", admissionregistrationv1.MutatingWebhook{ClientConfig: h.client(), Rules: rule("stable.example.com/v1:crontabs", onCreate)})
	got, err := s.dynamic(t).Resource(crontabs).Namespace("default").Create(t.Context(), crontab("a", map[string]any{"cronSpec": "* * * * *"}), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"cronSpec": "* * * * *", "image": "busybox", "replicas": int64(1), "ports": []any{map[string]any{"name": "a", "port": int64(1)}}}
	if spec := got.Object["spec"]; !reflect.DeepEqual(spec, want) {
		t.Errorf("spec %v, want %v", spec, want)
	}
}

func TestWhoIsAsked(t *testing.T) {
	for _, x := range []struct {
		name   string
		change func(*admissionregistrationv1.ValidatingWebhook)
		want   int
	}{
		{"everybody", func(*admissionregistrationv1.ValidatingWebhook) {}, 1},
		{"another operation", func(w *admissionregistrationv1.ValidatingWebhook) {
			w.Rules[0].Operations = []admissionregistrationv1.OperationType{onUpdate}
		}, 0},
		{"any operation", func(w *admissionregistrationv1.ValidatingWebhook) {
			w.Rules[0].Operations = []admissionregistrationv1.OperationType{"*"}
		}, 1},
		{"any resource, not its subresources", func(w *admissionregistrationv1.ValidatingWebhook) { w.Rules[0].Resources = []string{"*"} }, 1},
		{"subresources only", func(w *admissionregistrationv1.ValidatingWebhook) {
			w.Rules[0].Resources = []string{"configmaps/status"}
		}, 0},
		{"cluster scope", func(w *admissionregistrationv1.ValidatingWebhook) {
			w.Rules[0].Scope = ptr.To(admissionregistrationv1.ClusterScope)
		}, 0},
		{"this namespace", func(w *admissionregistrationv1.ValidatingWebhook) {
			w.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"team": "a"}}
		}, 1},
		{"another namespace", func(w *admissionregistrationv1.ValidatingWebhook) {
			w.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"team": "b"}}
		}, 0},
		{"labelled objects", func(w *admissionregistrationv1.ValidatingWebhook) {
			w.ObjectSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"x": "y"}}
		}, 0},
		{"a condition that holds", func(w *admissionregistrationv1.ValidatingWebhook) {
			w.MatchConditions = []admissionregistrationv1.MatchCondition{{Name: "c", Expression: "object.data.k == 'v' && request.userInfo.username == 'admin'"}}
		}, 1},
		{"a condition that does not hold", func(w *admissionregistrationv1.ValidatingWebhook) {
			w.MatchConditions = []admissionregistrationv1.MatchCondition{{Name: "c", Expression: "object.data.k == 'w'"}}
		}, 0},
		{"a condition on rights", func(w *admissionregistrationv1.ValidatingWebhook) {
			w.MatchConditions = []admissionregistrationv1.MatchCondition{{Name: "c", Expression: "!authorizer.group('').resource('pods').check('create').allowed()"}}
		}, 0},
	} {
		t.Run(x.name, func(t *testing.T) {
			_, c := admitted(t)
			h := serveHook(t, allow)
			w := admissionregistrationv1.ValidatingWebhook{ClientConfig: h.client(), Rules: rule("/v1:configmaps", onCreate)}
			x.change(&w)
			validating(t, c, "v", w)
			if _, err := c.CoreV1().ConfigMaps("default").Create(t.Context(), dataMap("m", "k", "v"), metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			if n := len(h.requests()); n != x.want {
				t.Errorf("asked %d times, want %d", n, x.want)
			}
		})
	}
}

func TestFailuresOfWebhooks(t *testing.T) {
	_, c := admitted(t)
	broken := serveHook(t, func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse { return nil })
	hook := admissionregistrationv1.ValidatingWebhook{ClientConfig: broken.client(), Rules: rule("/v1:configmaps", onCreate), FailurePolicy: ptr.To(admissionregistrationv1.Ignore)}
	validating(t, c, "open", hook)
	if _, err := c.CoreV1().ConfigMaps("default").Create(t.Context(), dataMap("a"), metav1.CreateOptions{}); err != nil {
		t.Errorf("failed, though failures are ignored: %v", err)
	}
	hook.Name, hook.FailurePolicy = "", nil
	validating(t, c, "closed", hook)
	_, err := c.CoreV1().ConfigMaps("default").Create(t.Context(), dataMap("b"), metav1.CreateOptions{})
	if !apierrors.IsInternalError(err) || !strings.Contains(err.Error(), `failed calling webhook "closed.example.com": failed to call webhook: an error on the server ("broken on purpose") has prevented the request from succeeding`) {
		t.Errorf("got %v", err)
	}
	hook.Name, hook.ClientConfig = "", admissionregistrationv1.WebhookClientConfig{Service: &admissionregistrationv1.ServiceReference{Namespace: "default", Name: "none"}, CABundle: broken.ca}
	validating(t, c, "away", hook)
	if err := c.AdmissionregistrationV1().ValidatingWebhookConfigurations().Delete(t.Context(), "closed", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	_, err = c.CoreV1().ConfigMaps("default").Create(t.Context(), dataMap("c"), metav1.CreateOptions{})
	if err == nil || !strings.Contains(err.Error(), `Post "https://none.default.svc:443?timeout=10s": service "none" not found`) && !strings.Contains(err.Error(), `Post "https://none.default.svc:443/?timeout=10s": service "none" not found`) {
		t.Errorf("got %v", err)
	}
}

func TestDryRunIsOnlyForHooksWithoutSideEffects(t *testing.T) {
	_, c := admitted(t)
	h := serveHook(t, allow)
	validating(t, c, "v", admissionregistrationv1.ValidatingWebhook{ClientConfig: h.client(), Rules: rule("/v1:configmaps", onCreate), SideEffects: ptr.To(admissionregistrationv1.SideEffectClassNoneOnDryRun)})
	if _, err := c.CoreV1().ConfigMaps("default").Create(t.Context(), dataMap("m"), metav1.CreateOptions{DryRun: []string{"All"}}); err != nil {
		t.Fatal(err)
	}
	if r := h.requests(); len(r) != 1 || r[0].DryRun == nil || !*r[0].DryRun {
		t.Errorf("asked %v", r)
	}
}

func TestSubresourcesAreShownAsTheyAre(t *testing.T) {
	_, c := admitted(t)
	h := serveHook(t, allow)
	all := admissionregistrationv1.RuleWithOperations{Operations: []admissionregistrationv1.OperationType{"*"}, Rule: admissionregistrationv1.Rule{APIGroups: []string{"*"}, APIVersions: []string{"*"}, Resources: []string{"*/*"}}}
	pod, err := c.CoreV1().Pods("default").Create(t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	template := corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"a": "b"}}, Spec: pod.Spec}
	template.Spec.RestartPolicy = corev1.RestartPolicyAlways
	if _, err := c.AppsV1().Deployments("default").Create(t.Context(), &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "d"}, Spec: appsv1.DeploymentSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}}, Template: template}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	mutating(t, c, "m", admissionregistrationv1.MutatingWebhook{ClientConfig: h.client(), Rules: []admissionregistrationv1.RuleWithOperations{all}})
	if _, err := c.AppsV1().Deployments("default").UpdateScale(t.Context(), "d", &autoscalingv1.Scale{ObjectMeta: metav1.ObjectMeta{Name: "d", Namespace: "default"}, Spec: autoscalingv1.ScaleSpec{Replicas: 3}}, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := c.CoreV1().Pods("default").Bind(t.Context(), &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "default"}, Target: corev1.ObjectReference{Kind: "Node", Name: "n"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := c.CoreV1().Pods("default").EvictV1(t.Context(), &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "default"}}); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range h.requests() {
		got = append(got, string(r.Operation)+" "+r.Resource.Resource+"/"+r.SubResource+" "+r.Kind.Kind)
	}
	want := []string{"UPDATE deployments/scale Scale", "CREATE pods/binding Binding", "CREATE pods/eviction Eviction"}
	if strings.Join(got, ", ") != strings.Join(want, ", ") {
		t.Errorf("asked about %q, want %q", got, want)
	}
}

func TestEquivalentVersionsAreConverted(t *testing.T) {
	_, c := admitted(t)
	h := serveHook(t, allow)
	mutating(t, c, "m", admissionregistrationv1.MutatingWebhook{ClientConfig: h.client(), Rules: rule("autoscaling/v2:horizontalpodautoscalers", onCreate), MatchPolicy: ptr.To(admissionregistrationv1.Equivalent)})
	if _, err := c.AutoscalingV1().HorizontalPodAutoscalers("default").Create(t.Context(), &autoscalingv1.HorizontalPodAutoscaler{ObjectMeta: metav1.ObjectMeta{Name: "h"},
		Spec: autoscalingv1.HorizontalPodAutoscalerSpec{ScaleTargetRef: autoscalingv1.CrossVersionObjectReference{Kind: "Deployment", Name: "d", APIVersion: "apps/v1"}, MaxReplicas: 3, TargetCPUUtilizationPercentage: ptr.To[int32](50)}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	asked := h.requests()
	if len(asked) != 1 || asked[0].Kind.Version != "v2" || asked[0].RequestKind.Version != "v1" || !strings.Contains(string(asked[0].Object.Raw), `"apiVersion":"autoscaling/v2"`) || !strings.Contains(string(asked[0].Object.Raw), "averageUtilization") {
		t.Errorf("asked %+v", h.raw)
	}
}

func TestWebhooksAreNotAskedAboutAdmissionItself(t *testing.T) {
	_, c := admitted(t)
	h := serveHook(t, deny("no"))
	all := []admissionregistrationv1.RuleWithOperations{{Operations: []admissionregistrationv1.OperationType{"*"}, Rule: admissionregistrationv1.Rule{APIGroups: []string{"*"}, APIVersions: []string{"*"}, Resources: []string{"*/*"}}}}
	validating(t, c, "v", admissionregistrationv1.ValidatingWebhook{ClientConfig: h.client(), Rules: all})
	mutating(t, c, "m", admissionregistrationv1.MutatingWebhook{ClientConfig: h.client(), Rules: all})
	if err := c.AdmissionregistrationV1().ValidatingWebhookConfigurations().Delete(t.Context(), "v", metav1.DeleteOptions{}); err != nil {
		t.Error(err)
	}
	if n := len(h.requests()); n != 0 {
		t.Errorf("asked %d times", n)
	}
}
