package rest_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver/rest"
)

// apply is a server-side apply by a manager; force and subresource are optional.
type apply struct {
	gvr                  schema.GroupVersionResource
	namespace, name, sub string
	manager, body        string
	force, dry           bool
	fieldValidation      string
}

func (w *world) tryApply(a apply) (api.Object, bool, error) {
	w.t.Helper()
	if a.namespace == "" {
		a.namespace = "default"
	}
	opts := metav1.PatchOptions{FieldManager: a.manager, FieldValidation: a.fieldValidation}
	if a.force {
		opts.Force = &a.force
	}
	if a.dry {
		opts.DryRun = []string{metav1.DryRunAll}
	}
	e, created, err := w.of(a.gvr).Patch(w.ctx, a.namespace, a.name, a.sub, types.ApplyYAMLPatchType, []byte(a.body), opts)
	if err != nil {
		return nil, false, err
	}
	return e.Object(), created, nil
}

func (w *world) apply(a apply) api.Object {
	w.t.Helper()
	o, _, err := w.tryApply(a)
	if err != nil {
		w.t.Fatal(err)
	}
	return o
}

func cm(data string) string {
	return "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: c\ndata: " + data
}

func (w *world) applyCM(manager, data string) *corev1.ConfigMap {
	w.t.Helper()
	return w.apply(apply{gvr: configMaps, name: "c", manager: manager, body: cm(data)}).(*corev1.ConfigMap)
}

// owners writes who owns what as lines of "manager operation[/subresource] fields".
func owners(o api.Object) []string {
	var out []string
	for _, e := range o.GetManagedFields() {
		sub := ""
		if e.Subresource != "" {
			sub = "/" + e.Subresource
		}
		out = append(out, fmt.Sprintf("%s %s%s %s", e.Manager, e.Operation, sub, e.FieldsV1.GetRawString()))
	}
	return out
}

func wantOwners(t testing.TB, o api.Object, want ...string) {
	t.Helper()
	if have := owners(o); !slices.Equal(have, want) {
		t.Errorf("owners are\n%s\nwant\n%s", strings.Join(have, "\n"), strings.Join(want, "\n"))
	}
}

func wantStatus(t testing.TB, err error, code int32, message string) *metav1.Status {
	t.Helper()
	status, ok := err.(apierrors.APIStatus)
	if !ok {
		t.Fatalf("got %v, want a status %d", err, code)
	}
	s := status.Status()
	if s.Code != code || !strings.Contains(s.Message, message) {
		t.Errorf("got %d %s, want %d %s", s.Code, s.Message, code, message)
	}
	return &s
}

func TestApplyCreatesUpdatesAndRemovesFields(t *testing.T) {
	w := newWorld(t)
	o, created, err := w.tryApply(apply{gvr: configMaps, name: "c", manager: "a", body: cm(`{x: "1", p: "2"}`)})
	if err != nil || !created {
		t.Fatal(created, err)
	}
	wantOwners(t, o, `a Apply {"f:data":{"f:p":{},"f:x":{}}}`)
	if o.GetUID() == "" || o.GetNamespace() != "default" {
		t.Errorf("metadata: %+v", o)
	}
	second := w.applyCM("a", `{x: "1", z: "3"}`)
	wantOwners(t, second, `a Apply {"f:data":{"f:x":{},"f:z":{}}}`)
	if _, ok := second.Data["p"]; ok || second.Data["z"] != "3" {
		t.Errorf("data: %v", second.Data)
	}
	if again := w.applyCM("a", `{x: "1", z: "3"}`); again.ResourceVersion != second.ResourceVersion {
		t.Error("an apply that changes nothing wrote something")
	}
}

func TestAppliersShareAndKeepFields(t *testing.T) {
	w := newWorld(t)
	w.applyCM("a", `{x: "1", p: "2"}`)
	o := w.applyCM("b", `{x: "1", z: "3"}`)
	wantOwners(t, o, `a Apply {"f:data":{"f:p":{},"f:x":{}}}`, `b Apply {"f:data":{"f:x":{},"f:z":{}}}`)
	o = w.applyCM("a", `{}`)
	if o.Data["x"] != "1" || o.Data["p"] != "" || o.Data["z"] != "3" {
		t.Errorf("data: %v", o.Data)
	}
}

func TestConflictsNameTheirManagers(t *testing.T) {
	w := newWorld(t)
	w.applyCM("a", `{x: "1", p: "2"}`)
	w.mustChange(configMaps, "default", "c", "", func(o api.Object) { o.(*corev1.ConfigMap).Data["p"] = "3" })
	_, _, err := w.tryApply(apply{gvr: configMaps, name: "c", manager: "b", body: cm(`{x: "9"}`)})
	s := wantStatus(t, err, 409, `Apply failed with 1 conflict: conflict with "a": .data.x`)
	if s.Reason != metav1.StatusReasonConflict || len(s.Details.Causes) != 1 || s.Details.Causes[0] != (metav1.StatusCause{Type: metav1.CauseTypeFieldManagerConflict, Message: `conflict with "a"`, Field: ".data.x"}) {
		t.Errorf("status: %+v", s)
	}
	_, _, err = w.tryApply(apply{gvr: configMaps, name: "c", manager: "b", body: cm(`{x: "9", p: "9"}`)})
	s = wantStatus(t, err, 409, "Apply failed with 2 conflicts: conflicts with \"a\":\n- .data.x\nconflicts with \"tester\" using v1:\n- .data.p")
	if len(s.Details.Causes) != 2 {
		t.Errorf("causes: %+v", s.Details.Causes)
	}
	o := w.apply(apply{gvr: configMaps, name: "c", manager: "b", body: cm(`{x: "9", p: "9"}`), force: true})
	wantOwners(t, o, `b Apply {"f:data":{"f:p":{},"f:x":{}}}`)
}

func TestWhatAnApplyMayNotSay(t *testing.T) {
	w := newWorld(t)
	w.applyCM("a", `{x: "1"}`)
	for name, c := range map[string]struct {
		a       apply
		code    int32
		message string
	}{
		"no manager":          {apply{body: cm(`{}`)}, 422, `PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required value: is required for apply patch`},
		"managed fields":      {apply{manager: "a", body: "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c, managedFields: [{manager: x}]}"}, 400, "metadata.managedFields must be nil"},
		"another kind":        {apply{manager: "a", body: "apiVersion: v1\nkind: Secret\nmetadata: {name: c}"}, 400, "invalid object type: /v1, Kind=Secret"},
		"no kind":             {apply{manager: "a", body: "metadata: {name: c}"}, 400, "invalid object type"},
		"no YAML":             {apply{manager: "a", body: "{"}, 400, "error decoding patch"},
		"an unknown field":    {apply{manager: "a", body: cm("{}") + "\nspec: {}"}, 500, ".spec: field not declared in schema"},
		"another name":        {apply{manager: "a", body: "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: d}"}, 400, "the name of the object (d) does not match the name on the URL (c)"},
		"an old version":      {apply{manager: "a", body: "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c, resourceVersion: '1'}"}, 409, "the object has been modified"},
		"another uid":         {apply{manager: "a", body: "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c, uid: x}"}, 409, "UID in precondition: x"},
		"twice, strictly":     {apply{manager: "a", fieldValidation: "Strict", body: cm("{x: '2'}") + "\ndata: {}"}, 400, "error strict decoding patch"},
		"a uid of no object":  {apply{name: "new", manager: "a", body: "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: new, uid: x}"}, 409, "uid mismatch: the provided object specified uid x, and no existing object was found"},
		"no name":             {apply{name: "new", manager: "a", body: "apiVersion: v1\nkind: ConfigMap\nmetadata: {}"}, 400, "name must be provided"},
		"status of no object": {apply{gvr: pods, name: "new", sub: "status", manager: "a", body: "apiVersion: v1\nkind: Pod\nmetadata: {name: new}"}, 404, "not found"},
		"what is invalid":     {apply{name: "Upper", manager: "a", body: "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: Upper}"}, 422, "metadata.name: Invalid value"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.a.gvr.Resource == "" {
				c.a.gvr = configMaps
			}
			if c.a.name == "" {
				c.a.name = "c"
			}
			_, _, err := w.tryApply(c.a)
			wantStatus(t, err, c.code, c.message)
		})
	}
}

func TestApplyWithTheNewestVersion(t *testing.T) {
	w := newWorld(t)
	o := w.applyCM("a", `{x: "1"}`)
	o = w.apply(apply{gvr: configMaps, name: "c", manager: "a", body: fmt.Sprintf("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c, resourceVersion: '%s'}\ndata: {x: '2'}", o.ResourceVersion)}).(*corev1.ConfigMap)
	if o.Data["x"] != "2" {
		t.Errorf("data: %v", o.Data)
	}
	wantOwners(t, o, `a Apply {"f:data":{"f:x":{}}}`)
}

func TestApplyDryRun(t *testing.T) {
	w := newWorld(t)
	before := w.revision()
	o := w.apply(apply{gvr: configMaps, name: "c", manager: "a", dry: true, body: cm(`{x: "1"}`)})
	wantOwners(t, o, `a Apply {"f:data":{"f:x":{}}}`)
	if w.revision() != before {
		t.Error("a dry run wrote something")
	}
	w.applyCM("a", `{x: "1"}`)
	before = w.revision()
	o = w.apply(apply{gvr: configMaps, name: "c", manager: "b", dry: true, force: true, body: cm(`{x: "2"}`)})
	wantOwners(t, o, `b Apply {"f:data":{"f:x":{}}}`)
	if w.revision() != before || w.get(configMaps, "default", "c").(*corev1.ConfigMap).Data["x"] != "1" {
		t.Error("a dry run wrote something")
	}
}

const deploymentYAML = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: d, labels: {app: d}}
spec:
  replicas: 3
  selector: {matchLabels: {app: d}}
  template:
    metadata: {labels: {app: d}}
    spec:
      containers:
      - {name: c, image: "nginx:1", ports: [{containerPort: 80}]}
`

func TestApplyOfListsByTheirKeys(t *testing.T) {
	w := newWorld(t)
	w.apply(apply{gvr: deployments, name: "d", manager: "a", body: deploymentYAML})
	o := w.apply(apply{gvr: deployments, name: "d", manager: "b", body: `
apiVersion: apps/v1
kind: Deployment
metadata: {name: d}
spec: {template: {spec: {containers: [{name: side, image: busybox, ports: [{containerPort: 81, protocol: UDP}]}, {name: c, env: [{name: A, value: b}]}]}}}
`}).(*appsv1.Deployment)
	if c := o.Spec.Template.Spec.Containers; len(c) != 2 || c[0].Name != "side" || c[1].Image != "nginx:1" || c[1].Env[0].Value != "b" || c[1].Ports[0].Protocol != "TCP" {
		t.Errorf("containers: %+v", c)
	}
	wantOwners(t, o,
		`a Apply {"f:metadata":{"f:labels":{"f:app":{}}},"f:spec":{"f:replicas":{},"f:selector":{},"f:template":{"f:metadata":{"f:labels":{"f:app":{}}},"f:spec":{"f:containers":{"k:{\"name\":\"c\"}":{".":{},"f:image":{},"f:name":{},"f:ports":{"k:{\"containerPort\":80,\"protocol\":\"TCP\"}":{".":{},"f:containerPort":{}}}}}}}}}`,
		`b Apply {"f:spec":{"f:template":{"f:spec":{"f:containers":{"k:{\"name\":\"c\"}":{".":{},"f:env":{"k:{\"name\":\"A\"}":{".":{},"f:name":{},"f:value":{}}},"f:name":{}},"k:{\"name\":\"side\"}":{".":{},"f:image":{},"f:name":{},"f:ports":{"k:{\"containerPort\":81,\"protocol\":\"UDP\"}":{".":{},"f:containerPort":{},"f:protocol":{}}}}}}}}}`)
	// What an applier does not say any more goes, unless another needs it.
	o = w.apply(apply{gvr: deployments, name: "d", manager: "b", body: "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}"}).(*appsv1.Deployment)
	if c := o.Spec.Template.Spec.Containers; len(c) != 1 || c[0].Name != "c" || len(c[0].Env) != 0 {
		t.Errorf("containers: %+v", c)
	}
}

func TestApplyOfTheStatus(t *testing.T) {
	w := newWorld(t)
	w.apply(apply{gvr: deployments, name: "d", manager: "a", body: deploymentYAML})
	status := func(n int) string {
		return fmt.Sprintf("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec: {replicas: 9}\nstatus: {replicas: %d, conditions: [{type: Available, status: 'True'}]}", n)
	}
	o := w.apply(apply{gvr: deployments, name: "d", sub: "status", manager: "ctl", body: status(1)}).(*appsv1.Deployment)
	if o.Status.Replicas != 1 || *o.Spec.Replicas != 3 || o.Generation != 1 {
		t.Errorf("deployment: %+v", o)
	}
	if have := owners(o); len(have) != 2 || have[1] != `ctl Apply/status {"f:status":{"f:conditions":{"k:{\"type\":\"Available\"}":{".":{},"f:status":{},"f:type":{}}},"f:replicas":{}}}` {
		t.Errorf("owners: %v", have)
	}
	_, _, err := w.tryApply(apply{gvr: deployments, name: "d", sub: "status", manager: "other", body: status(2)})
	wantStatus(t, err, 409, `conflict with "ctl" with subresource "status": .status.replicas`)
	// The object's own endpoint cannot take the status.
	o = w.apply(apply{gvr: deployments, name: "d", manager: "a", body: deploymentYAML + "status: {replicas: 7}\n"}).(*appsv1.Deployment)
	if o.Status.Replicas != 1 || len(owners(o)) != 2 || strings.Contains(owners(o)[0], "f:status") {
		t.Errorf("status %+v, owners %v", o.Status, owners(o))
	}
}

func TestScaleTakesTheReplicasFromTheirOwner(t *testing.T) {
	w := newWorld(t)
	w.apply(apply{gvr: deployments, name: "d", manager: "a", body: deploymentYAML})
	sub := w.of(deployments).(rest.Subresources)
	scale, err := sub.GetScale(w.ctx, "default", "d")
	if err != nil || scale.ManagedFields != nil {
		t.Fatal(scale, err)
	}
	body := []byte("apiVersion: autoscaling/v1\nkind: Scale\nmetadata: {name: d}\nspec: {replicas: 5}")
	_, err = sub.PatchScale(w.ctx, "default", "d", types.ApplyYAMLPatchType, body, metav1.PatchOptions{FieldManager: "hpa"})
	wantStatus(t, err, 409, `Apply failed with 1 conflict: conflict with "a": .spec.replicas`)
	_, err = sub.PatchScale(w.ctx, "default", "d", types.ApplyYAMLPatchType, body, metav1.PatchOptions{})
	wantStatus(t, err, 422, "fieldManager: Required value")
	force := true
	scale, err = sub.PatchScale(w.ctx, "default", "d", types.ApplyYAMLPatchType, body, metav1.PatchOptions{FieldManager: "hpa", Force: &force})
	if err != nil || scale.Spec.Replicas != 5 {
		t.Fatal(scale, err)
	}
	o := w.get(deployments, "default", "d").(*appsv1.Deployment)
	have := owners(o)
	if *o.Spec.Replicas != 5 || len(have) != 2 || strings.Contains(have[0], "f:replicas") || have[1] != `hpa Apply/scale {"f:spec":{"f:replicas":{}}}` {
		t.Errorf("%d replicas, owners %v", *o.Spec.Replicas, have)
	}
	if e := o.ManagedFields[1]; e.APIVersion != "apps/v1" || e.Time.IsZero() {
		t.Errorf("entry: %+v", e)
	}
	if _, err = sub.PatchScale(w.ctx, "default", "d", types.MergePatchType, []byte(`{"spec":{"replicas":6}}`), metav1.PatchOptions{FieldManager: "kubectl-scale"}); err != nil {
		t.Fatal(err)
	}
	o = w.get(deployments, "default", "d").(*appsv1.Deployment)
	if have = owners(o); len(have) != 2 || have[1] != `kubectl-scale Update/scale {"f:spec":{"f:replicas":{}}}` {
		t.Errorf("owners: %v", have)
	}
	_, _, err = w.tryApply(apply{gvr: deployments, name: "d", manager: "a", body: deploymentYAML})
	wantStatus(t, err, 409, `conflict with "kubectl-scale" with subresource "scale" using apps/v1`)
}

func TestClientSideApplyBecomesServerSide(t *testing.T) {
	w := newWorld(t)
	applied := func(data map[string]string) *corev1.ConfigMap {
		c := configMap("c")
		c.Data = data
		b, err := json.Marshal(&corev1.ConfigMap{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"}, ObjectMeta: metav1.ObjectMeta{Name: "c", Namespace: "default"}, Data: data})
		if err != nil {
			t.Fatal(err)
		}
		c.Annotations = map[string]string{"kubectl.kubernetes.io/last-applied-configuration": string(b)}
		return c
	}
	ctx := rest.WithFieldManager(w.ctx, "kubectl-client-side-apply")
	if _, err := w.of(configMaps).Create(ctx, "default", applied(map[string]string{"x": "1", "p": "2"}), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	// Another manager is refused what kubectl may take over.
	_, _, err := w.tryApply(apply{gvr: configMaps, name: "c", manager: "a", body: cm(`{x: "2"}`)})
	wantStatus(t, err, 409, `conflict with "kubectl-client-side-apply" using v1`)
	o := w.applyCM("kubectl", `{x: "2"}`)
	if o.Data["x"] != "2" || o.Data["p"] != "2" {
		t.Errorf("data: %v", o.Data)
	}
	if last := o.Annotations["kubectl.kubernetes.io/last-applied-configuration"]; strings.Contains(last, `"p"`) || !strings.Contains(last, `"x":"2"`) {
		t.Errorf("last applied: %s", last)
	}
}

func TestOwnersBeforeTheFirstApply(t *testing.T) {
	w := newWorld(t)
	w.create(configMaps, configMap("c"))
	o := w.mustChange(configMaps, "default", "c", "", func(o api.Object) { o.SetManagedFields([]metav1.ManagedFieldsEntry{{}}) })
	if o.GetManagedFields() != nil {
		t.Fatalf("owners: %v", owners(o))
	}
	o = w.mustChange(configMaps, "default", "c", "", func(o api.Object) { o.SetLabels(map[string]string{"a": "b"}) })
	if o.GetManagedFields() != nil {
		t.Fatalf("owners: %v", owners(o))
	}
	_, _, err := w.tryApply(apply{gvr: configMaps, name: "c", manager: "a", body: cm(`{k: other}`)})
	wantStatus(t, err, 409, `conflict with "before-first-apply" using v1`)
	o = w.applyCM("a", `{k: v}`)
	wantOwners(t, o, `a Apply {"f:data":{"f:k":{}}}`, `before-first-apply Update {"f:data":{".":{},"f:k":{}},"f:metadata":{"f:labels":{".":{},"f:a":{}}}}`)
}

// No apply takes away what another has put there, however many come at once (A17).
func TestAppliersAtOnceKeepEachOthersFields(t *testing.T) {
	w := newWorld(t)
	const appliers, rounds = 8, 10
	var wg sync.WaitGroup
	for i := range appliers {
		wg.Go(func() {
			for round := range rounds {
				body := cm(fmt.Sprintf(`{shared: s, k%d: "%d"}`, i, round))
				_, _, err := w.of(configMaps).Patch(w.ctx, "default", "c", "", types.ApplyYAMLPatchType, []byte(body), metav1.PatchOptions{FieldManager: fmt.Sprintf("m%d", i)})
				if err != nil {
					t.Errorf("applier %d: %v", i, err)
				}
			}
		})
	}
	wg.Wait()
	o := w.get(configMaps, "default", "c").(*corev1.ConfigMap)
	if len(o.Data) != appliers+1 || len(o.ManagedFields) != appliers {
		t.Fatalf("data %v, owners %v", o.Data, owners(o))
	}
	for i, e := range o.ManagedFields {
		key := fmt.Sprintf("k%s", strings.TrimPrefix(e.Manager, "m"))
		if e.FieldsV1.GetRawString() != fmt.Sprintf(`{"f:data":{"f:%s":{},"f:shared":{}}}`, key) || o.Data[key] != strconv.Itoa(rounds-1) {
			t.Errorf("owner %d: %s, data %v", i, owners(o)[i], o.Data)
		}
	}
}

func FuzzApply(f *testing.F) {
	for _, body := range []string{deploymentYAML, cm("{x: 1}"), "", "[]", "null", "apiVersion: apps/v1\nkind: Deployment\nmetadata: null\nspec: {replicas: 1.5}",
		"apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec: {template: {spec: {containers: [{name: c}, {name: c}]}}}",
		"apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d, labels: {a: 1}}\nspec: {template: {spec: {containers: [null, {}]}}}",
		"apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d, ownerReferences: [{uid: x}]}\nspec: {template: {spec: {containers: {a: b}}}}"} {
		f.Add(body)
	}
	shared := newWorld(f)
	f.Fuzz(func(t *testing.T, body string) {
		w := *shared
		w.t = t
		if _, _, err := w.of(deployments).Delete(w.ctx, "default", "d", metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			t.Fatal(err)
		}
		w.apply(apply{gvr: deployments, name: "d", manager: "a", body: deploymentYAML})
		for _, sub := range []string{"", "status"} {
			o, _, err := w.tryApply(apply{gvr: deployments, name: "d", sub: sub, manager: "b", body: body, force: true})
			if err != nil {
				if _, ok := err.(apierrors.APIStatus); !ok {
					t.Errorf("%T: %v", err, err)
				}
				continue
			}
			if o.GetName() != "d" || o.GetUID() == "" {
				t.Errorf("became %+v", o)
			}
		}
	})
}
