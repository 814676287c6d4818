package rest_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver/rest"
	"github.com/proa-dev/proa/internal/store/memory"
)

// What kubectl run leaves behind, as Kubernetes has it: defaults are the
// creator's, what admission and the scheduler set is nobody's.
func TestOwnersOfAPod(t *testing.T) {
	w := newWorldOn(t, memory.New(), rest.Config{Admission: admitFunc(func(a *rest.Attributes) {
		if p, ok := a.Object.(*corev1.Pod); ok && a.Verb == rest.Create {
			p.Spec.ServiceAccountName = "default"
		}
	})})
	ctx := rest.WithFieldManager(w.ctx, "kubectl")
	if _, err := w.of(pods).Create(ctx, "default", pod("web"), metav1.CreateOptions{FieldManager: "kubectl-run"}); err != nil {
		t.Fatal(err)
	}
	run := `kubectl-run Update {"f:metadata":{"f:labels":{".":{},"f:app":{}}},"f:spec":{"f:containers":{"k:{\"name\":\"c\"}":{".":{},"f:image":{},"f:imagePullPolicy":{},"f:name":{},"f:resources":{},"f:terminationMessagePath":{},"f:terminationMessagePolicy":{}}},"f:dnsPolicy":{},"f:enableServiceLinks":{},"f:restartPolicy":{},"f:schedulerName":{},"f:securityContext":{},"f:terminationGracePeriodSeconds":{}}}`
	wantOwners(t, w.get(pods, "default", "web"), run)
	if _, err := w.of(pods).(rest.Subresources).CreateSubresource(w.ctx, "default", "web", "binding", &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Target: corev1.ObjectReference{Kind: "Node", Name: "n"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	wantOwners(t, w.get(pods, "default", "web"), run)
	kubelet := rest.WithFieldManager(w.ctx, "kubelet")
	_, _, err := w.of(pods).Update(kubelet, "default", "web", "status", func(_ context.Context, o api.Object) (api.Object, error) {
		p := o.(*corev1.Pod)
		p.Spec.RestartPolicy = "" // what a status update says of the spec counts for nothing
		p.Status.Phase, p.Status.PodIP = corev1.PodRunning, "10.0.0.7"
		p.Status.PodIPs = []corev1.PodIP{{IP: "10.0.0.7"}}
		return p, nil
	}, rest.UpdateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	status := `kubelet Update/status {"f:status":{"f:phase":{},"f:podIP":{},"f:podIPs":{".":{},"k:{\"ip\":\"10.0.0.7\"}":{".":{},"f:ip":{}}}}}`
	wantOwners(t, w.get(pods, "default", "web"), run, status)
	o := w.mustChange(pods, "default", "web", "", func(o api.Object) { delete(o.GetLabels(), "app") })
	wantOwners(t, o, strings.Replace(run, `"f:metadata":{"f:labels":{".":{},"f:app":{}}},`, "", 1), status)
}

type admitFunc func(a *rest.Attributes)

func (f admitFunc) Admit(_ context.Context, a *rest.Attributes) error { f(a); return nil }
func (admitFunc) Validate(context.Context, *rest.Attributes) error    { return nil }

func TestAnUpdateTakesWhatItChanges(t *testing.T) {
	w := newWorld(t)
	w.applyCM("a", `{p: "1", x: "2"}`)
	e, _, err := w.of(configMaps).Patch(w.ctx, "default", "c", "", types.MergePatchType, []byte(`{"data":{"x":"3","z":"4"}}`), metav1.PatchOptions{FieldManager: "patcher"})
	if err != nil {
		t.Fatal(err)
	}
	wantOwners(t, e.Object(), `a Apply {"f:data":{"f:p":{}}}`, `patcher Update {"f:data":{"f:x":{},"f:z":{}}}`)
	if u := e.Object().GetManagedFields()[1]; u.APIVersion != "v1" || u.FieldsType != "FieldsV1" || u.Time.IsZero() {
		t.Errorf("entry: %+v", u)
	}
	before := w.revision()
	if _, _, err := w.of(configMaps).Patch(w.ctx, "default", "c", "", types.MergePatchType, []byte(`{"data":{"x":"3"}}`), metav1.PatchOptions{FieldManager: "other"}); err != nil {
		t.Fatal(err)
	}
	if w.revision() != before {
		t.Error("a patch that changes nothing wrote something")
	}
}

func TestClientsWriteOwners(t *testing.T) {
	good := metav1.ManagedFieldsEntry{Manager: "me", Operation: "Update", APIVersion: "v1", FieldsType: "FieldsV1", FieldsV1: metav1.NewFieldsV1(`{ "f:data": {"f:k":{}, ".":{} } }`)}
	bad := good
	bad.FieldsV1 = metav1.NewFieldsV1(`{"f:data":1}`)
	noType, noVersion, noOperation := good, good, good
	noType.FieldsType, noVersion.APIVersion, noOperation.Operation = "", "", "Patch"
	kept := `tester Update {"f:data":{".":{},"f:k":{}}}`
	for name, c := range map[string]struct {
		set  []metav1.ManagedFieldsEntry
		want []string
	}{
		"nothing":      {nil, []string{kept}},
		"none":         {[]metav1.ManagedFieldsEntry{}, nil},
		"an empty one": {[]metav1.ManagedFieldsEntry{{}}, nil},
		"another":      {[]metav1.ManagedFieldsEntry{good}, []string{`me Update {"f:data":{".":{},"f:k":{}}}`}},
		"no set":       {[]metav1.ManagedFieldsEntry{bad}, []string{kept}},
		"no type":      {[]metav1.ManagedFieldsEntry{noType}, []string{kept}},
		"no version":   {[]metav1.ManagedFieldsEntry{noVersion}, []string{kept}},
		"no operation": {[]metav1.ManagedFieldsEntry{noOperation}, []string{kept}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.create(configMaps, configMap("c"))
			o := w.mustChange(configMaps, "default", "c", "", func(o api.Object) { o.SetManagedFields(c.set) })
			wantOwners(t, o, c.want...)
		})
	}
	for name, patch := range map[types.PatchType]string{
		types.MergePatchType:          `{"metadata":{"managedFields":[{}]}}`,
		types.StrategicMergePatchType: `{"metadata":{"managedFields":[{}]}}`,
		types.JSONPatchType:           `[{"op":"replace","path":"/metadata/managedFields","value":[{}]}]`,
	} {
		t.Run(string(name), func(t *testing.T) {
			w := newWorld(t)
			w.create(configMaps, configMap("c"))
			e, _, err := w.of(configMaps).Patch(w.ctx, "default", "c", "", name, []byte(patch), metav1.PatchOptions{})
			if err != nil {
				t.Fatal(err)
			}
			wantOwners(t, e.Object())
		})
	}
	t.Run("through the status", func(t *testing.T) {
		w := newWorld(t)
		w.create(pods, pod("web"))
		before := owners(w.get(pods, "default", "web"))
		o := w.mustChange(pods, "default", "web", "status", func(o api.Object) { o.SetManagedFields([]metav1.ManagedFieldsEntry{{}}) })
		wantOwners(t, o, before...)
	})
}

func TestOldUpdatersAreMerged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.applyCM("a", `{p: "1"}`)
		for i := range 13 {
			time.Sleep(time.Second)
			ctx := rest.WithFieldManager(w.ctx, fmt.Sprintf("m%02d", i))
			_, _, err := w.of(configMaps).Update(ctx, "default", "c", "", func(_ context.Context, o api.Object) (api.Object, error) {
				o.(*corev1.ConfigMap).Data[fmt.Sprintf("k%02d", i)] = "v"
				return o, nil
			}, rest.UpdateOptions{})
			if err != nil {
				t.Fatal(err)
			}
		}
		have := owners(w.get(configMaps, "default", "c"))
		if len(have) != 11 || have[1] != `ancient-changes Update {"f:data":{"f:k00":{},"f:k01":{},"f:k02":{},"f:k03":{}}}` || have[2] != `m04 Update {"f:data":{"f:k04":{}}}` {
			t.Errorf("owners:\n%s", strings.Join(have, "\n"))
		}
	})
}

func TestOwnersOfOtherVersions(t *testing.T) {
	w := newWorld(t)
	one := int32(1)
	w.create(hpav1, &autoscalingv1.HorizontalPodAutoscaler{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "h"}, Spec: autoscalingv1.HorizontalPodAutoscalerSpec{
		ScaleTargetRef: autoscalingv1.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: "d"}, MinReplicas: &one, MaxReplicas: 3}})
	o := w.apply(apply{gvr: hpav2, name: "h", manager: "b", force: true, body: "apiVersion: autoscaling/v2\nkind: HorizontalPodAutoscaler\nmetadata: {name: h}\nspec: {maxReplicas: 5}"})
	have := owners(o)
	if len(have) != 2 || have[0] != `b Apply {"f:spec":{"f:maxReplicas":{}}}` || strings.Contains(have[1], "maxReplicas") || !strings.Contains(have[1], "f:minReplicas") {
		t.Errorf("owners: %v", have)
	}
	if m := o.GetManagedFields(); m[0].APIVersion != "autoscaling/v2" || m[1].APIVersion != "autoscaling/v1" {
		t.Errorf("versions: %s, %s", m[0].APIVersion, m[1].APIVersion)
	}
	o = w.mustChange(hpav2, "default", "h", "", func(o api.Object) {
		m := o.GetManagedFields()
		m[1].APIVersion = "autoscaling/v9" // not served: what it says means nothing any more
		o.SetManagedFields(m)
		o.SetLabels(map[string]string{"a": "b"})
	})
	wantOwners(t, o, `b Apply {"f:spec":{"f:maxReplicas":{}}}`, `tester Update {"f:metadata":{"f:labels":{".":{},"f:a":{}}}}`)
}

func TestEveryEncodingHasTheOwners(t *testing.T) {
	w := newWorld(t)
	w.create(pods, pod("web"))
	e, err := w.of(pods).Get(w.ctx, "default", "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	text, err := e.JSON()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := e.Proto()
	if err != nil {
		t.Fatal(err)
	}
	fromJSON, fromProto := &corev1.Pod{}, &corev1.Pod{}
	if err := json.Unmarshal(text, fromJSON); err != nil {
		t.Fatal(err)
	}
	if err := fromProto.Unmarshal(raw); err != nil {
		t.Fatal(err)
	}
	want := owners(e.Object())
	if len(want) != 1 {
		t.Fatalf("owners: %v", want)
	}
	wantOwners(t, fromJSON, want...)
	wantOwners(t, fromProto, want...)
}

var widgets = schema.GroupVersionResource{Group: "example.com", Version: "v1", Resource: "widgets"}

// widgets adds a custom resource.
func (w *world) widgets() {
	w.t.Helper()
	gvk := widgets.GroupVersion().WithKind("Widget")
	if err := w.reg.Add(w.ctx, &api.Resource{GVR: widgets, GVK: gvk, Singular: "widget", Namespaced: true, UnconditionalUpdate: true,
		New:     func() runtime.Object { return &unstructured.Unstructured{} },
		NewList: func() runtime.Object { return &unstructured.UnstructuredList{} }}); err != nil {
		w.t.Fatal(err)
	}
}

func TestOwnersOfCustomResources(t *testing.T) {
	w := newWorld(t)
	w.widgets()
	body := func(spec string) string {
		return "apiVersion: example.com/v1\nkind: Widget\nmetadata: {name: w}\nspec: " + spec
	}
	o := w.apply(apply{gvr: widgets, name: "w", manager: "a", body: body(`{size: 1, colours: [red], deep: {x: 1}}`)})
	wantOwners(t, o, `a Apply {"f:spec":{".":{},"f:colours":{},"f:deep":{".":{},"f:x":{}},"f:size":{}}}`)
	o = w.mustChange(widgets, "default", "w", "", func(o api.Object) {
		if err := unstructured.SetNestedField(o.(*unstructured.Unstructured).Object, int64(2), "spec", "size"); err != nil {
			t.Fatal(err)
		}
	})
	wantOwners(t, o, `a Apply {"f:spec":{".":{},"f:colours":{},"f:deep":{".":{},"f:x":{}}}}`, `tester Update {"f:spec":{"f:size":{}}}`)
	_, _, err := w.tryApply(apply{gvr: widgets, name: "w", manager: "a", body: body(`{size: 3}`)})
	wantStatus(t, err, 409, `conflict with "tester" using example.com/v1: .spec.size`)
	o = w.apply(apply{gvr: widgets, name: "w", manager: "a", force: true, body: body(`{size: 3}`)})
	if spec, _, _ := unstructured.NestedMap(o.(*unstructured.Unstructured).Object, "spec"); fmt.Sprint(spec) != "map[size:3]" {
		t.Errorf("spec: %v", spec)
	}
}

// What does not fit into the store because of its owners is kept without them.
func TestOwnersGiveWay(t *testing.T) {
	w := newWorld(t)
	many := func(n int) string {
		fields := map[string]any{}
		for i := range n {
			fields[fmt.Sprintf("%0250d", i)] = "v"
		}
		b, err := json.Marshal(map[string]any{"apiVersion": "example.com/v1", "kind": "Widget", "metadata": map[string]any{"name": "w"}, "spec": fields})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	w.widgets()
	for name, c := range map[string]struct{ fields, owners int }{"fits": {4000, 1}, "is too large with its owners": {8000, 0}} {
		t.Run(name, func(t *testing.T) {
			u := &unstructured.Unstructured{}
			if err := u.UnmarshalJSON([]byte(many(c.fields))); err != nil {
				t.Fatal(err)
			}
			u.SetName(fmt.Sprintf("w%d", c.fields))
			e, err := w.of(widgets).Create(w.ctx, "default", u, metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if n := len(e.Object().GetManagedFields()); n != c.owners {
				t.Errorf("%d bytes: %d owners, want %d", len(e.Stored()), n, c.owners)
			}
		})
	}
	_, _, err := w.tryApply(apply{gvr: widgets, name: "w", manager: "a", body: many(8000)})
	wantStatus(t, err, 413, "larger than the store accepts")
}

func TestTheStatusOfADeploymentHasNoSayAboutItsLabels(t *testing.T) {
	w := newWorld(t)
	w.apply(apply{gvr: deployments, name: "d", manager: "a", body: deploymentYAML})
	o := w.mustChange(deployments, "default", "d", "status", func(o api.Object) {
		d := o.(*appsv1.Deployment)
		d.Status.ObservedGeneration = 1
		d.Labels["ignored"] = "here"
	})
	if o.GetLabels()["ignored"] != "" {
		t.Errorf("labels: %v", o.GetLabels())
	}
	if have := owners(o); len(have) != 2 || have[1] != `tester Update/status {"f:status":{"f:observedGeneration":{}}}` {
		t.Errorf("owners: %v", have)
	}
}

// Events are served in two groups.
func TestOwnersOfAnotherGroup(t *testing.T) {
	w := newWorld(t)
	newer := schema.GroupVersionResource{Group: "events.k8s.io", Version: "v1", Resource: "events"}
	w.create(events, &corev1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "e"}, InvolvedObject: corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: "p"}, Reason: "R", Message: "m", Type: "Normal"})
	o := w.apply(apply{gvr: newer, name: "e", manager: "a", force: true, body: "apiVersion: events.k8s.io/v1\nkind: Event\nmetadata: {name: e, labels: {a: b}}"})
	have := owners(o)
	if len(have) != 2 || have[0] != `a Apply {"f:metadata":{"f:labels":{"f:a":{}}}}` || !strings.HasPrefix(have[1], `tester Update {"f:involvedObject":{}`) {
		t.Errorf("owners: %v", have)
	}
}
