package rest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/resources"
	"github.com/proa-dev/proa/internal/apiserver/rest"
	"github.com/proa-dev/proa/internal/store"
	"github.com/proa-dev/proa/internal/store/memory"
)

var (
	configMaps  = schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
	pods        = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	namespaces  = schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}
	events      = schema.GroupVersionResource{Version: "v1", Resource: "events"}
	deployments = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "deployments"}
	budgets     = schema.GroupVersionResource{Group: "policy", Version: "v1", Resource: "poddisruptionbudgets"}
	hpav1       = schema.GroupVersionResource{Group: "autoscaling", Version: "v1", Resource: "horizontalpodautoscalers"}
	hpav2       = schema.GroupVersionResource{Group: "autoscaling", Version: "v2", Resource: "horizontalpodautoscalers"}
)

type world struct {
	t     testing.TB
	store *memory.Store
	reg   *rest.Registry
	ctx   context.Context
}

func newWorld(t testing.TB) *world { return newWorldOn(t, memory.New(), rest.Config{}) }

func newWorldOn(t testing.TB, s *memory.Store, cfg rest.Config) *world {
	t.Helper()
	cfg.Store, cfg.Resources, cfg.Scheme = s, resources.All(), resources.Scheme()
	reg, err := rest.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx := rest.WithFieldManager(context.Background(), "tester")
	if err := reg.Start(ctx); err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, store: s, reg: reg, ctx: ctx}
	t.Cleanup(w.close)
	return w
}

func (w *world) close() {
	w.reg.Close()
	_ = w.store.Close()
}

func (w *world) of(gvr schema.GroupVersionResource) rest.Storage {
	w.t.Helper()
	s, ok := w.reg.Storage(gvr)
	if !ok {
		w.t.Fatalf("%s is not served", gvr)
	}
	return s
}

func (w *world) create(gvr schema.GroupVersionResource, obj api.Object) api.Object {
	w.t.Helper()
	e, err := w.of(gvr).Create(w.ctx, obj.GetNamespace(), obj, metav1.CreateOptions{})
	if err != nil {
		w.t.Fatalf("create %s %s: %v", gvr.Resource, obj.GetName(), err)
	}
	return e.Object()
}

func (w *world) get(gvr schema.GroupVersionResource, namespace, name string) api.Object {
	w.t.Helper()
	e, err := w.of(gvr).Get(w.ctx, namespace, name, metav1.GetOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	return e.Object()
}

// change updates with fn and returns the result.
func (w *world) change(gvr schema.GroupVersionResource, namespace, name, sub string, fn func(api.Object)) (api.Object, error) {
	w.t.Helper()
	e, _, err := w.of(gvr).Update(w.ctx, namespace, name, sub, func(_ context.Context, o api.Object) (api.Object, error) {
		fn(o)
		return o, nil
	}, rest.UpdateOptions{})
	if err != nil {
		return nil, err
	}
	return e.Object(), nil
}

func (w *world) mustChange(gvr schema.GroupVersionResource, namespace, name, sub string, fn func(api.Object)) api.Object {
	w.t.Helper()
	o, err := w.change(gvr, namespace, name, sub, fn)
	if err != nil {
		w.t.Fatal(err)
	}
	return o
}

func (w *world) revision() int64 {
	r, err := w.store.Revision(w.ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

func configMap(name string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Data: map[string]string{"k": "v"}}
}

func pod(name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{"app": "web"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "nginx:1.29"}}},
	}
}

func deployment(name string) *appsv1.Deployment {
	n := int32(1)
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: appsv1.DeploymentSpec{Replicas: &n, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "web"}}, Spec: pod("x").Spec}},
	}
}

func TestCreateFillsInWhatTheServerKnows(t *testing.T) {
	w := newWorld(t)
	p := w.create(pods, pod("web")).(*corev1.Pod)
	if p.UID == "" || p.CreationTimestamp.IsZero() || p.Generation != 1 {
		t.Errorf("uid %q, created %v, generation %d", p.UID, p.CreationTimestamp, p.Generation)
	}
	if p.Status.Phase != corev1.PodPending || p.Spec.RestartPolicy != corev1.RestartPolicyAlways {
		t.Errorf("phase %q, restart policy %q", p.Status.Phase, p.Spec.RestartPolicy)
	}
	if p.ResourceVersion != strconv.FormatInt(w.revision(), 10) { // A3
		t.Errorf("resourceVersion %s, store is at %d", p.ResourceVersion, w.revision())
	}
}

func TestCreateRefuses(t *testing.T) {
	w := newWorld(t)
	w.create(configMaps, configMap("there"))
	with := func(fn func(*corev1.ConfigMap)) *corev1.ConfigMap {
		c := configMap("new")
		fn(c)
		return c
	}
	for _, c := range []struct {
		name string
		obj  *corev1.ConfigMap
		is   func(error) bool
		text string
	}{
		{"a name that exists", configMap("there"), apierrors.IsAlreadyExists, `configmaps "there" already exists`},
		{"a resourceVersion", with(func(c *corev1.ConfigMap) { c.ResourceVersion = "3" }), apierrors.IsBadRequest, "resourceVersion should not be set on objects to be created"},
		{"another namespace", with(func(c *corev1.ConfigMap) { c.Namespace = "other" }), apierrors.IsBadRequest, "the namespace of the provided object does not match the namespace sent on the request"},
		{"no name", with(func(c *corev1.ConfigMap) { c.Name = "" }), apierrors.IsInvalid, "name or generateName is required"},
		{"a bad name", with(func(c *corev1.ConfigMap) { c.Name = "A_b" }), apierrors.IsInvalid, `ConfigMap "A_b" is invalid: metadata.name: Invalid value: "A_b": a lowercase RFC 1123 subdomain`},
		{"a bad label", with(func(c *corev1.ConfigMap) { c.Labels = map[string]string{"a": "!"} }), apierrors.IsInvalid, "metadata.labels: Invalid value"},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := w.revision()
			_, err := w.of(configMaps).Create(w.ctx, "default", c.obj, metav1.CreateOptions{})
			if !c.is(err) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("got %v", err)
			}
			if w.revision() != before {
				t.Error("the store was written")
			}
		})
	}
}

func TestGenerateName(t *testing.T) {
	w := newWorld(t)
	seen := map[string]bool{}
	for range 50 {
		c := configMap("")
		c.GenerateName = "web-"
		got := w.create(configMaps, c)
		if !strings.HasPrefix(got.GetName(), "web-") || len(got.GetName()) != 9 || seen[got.GetName()] {
			t.Fatalf("name %q", got.GetName())
		}
		seen[got.GetName()] = true
	}
}

// A4: of two updates with one resourceVersion exactly one succeeds.
func TestUpdateConflicts(t *testing.T) {
	w := newWorld(t)
	made := w.create(configMaps, configMap("a")).(*corev1.ConfigMap)
	put := func(o *corev1.ConfigMap) error {
		_, _, err := w.of(configMaps).Update(w.ctx, "default", "a", "", func(context.Context, api.Object) (api.Object, error) { return o.DeepCopy(), nil }, rest.UpdateOptions{})
		return err
	}
	o := made.DeepCopy()
	o.Data["k"] = "2"
	if err := put(o); err != nil {
		t.Fatal(err)
	}
	err := put(o)
	want := `Operation cannot be fulfilled on configmaps "a": the object has been modified; please apply your changes to the latest version and try again`
	if !apierrors.IsConflict(err) || err.Error() != want {
		t.Errorf("got %v", err)
	}
	o.ResourceVersion = ""
	o.Data["k"] = "3"
	if err := put(o); err != nil {
		t.Errorf("unconditional: %v", err)
	}
	o.UID = "other"
	if err := put(o); !apierrors.IsConflict(err) || !strings.Contains(err.Error(), "Precondition failed: UID in precondition: other, UID in object meta: "+string(made.UID)) {
		t.Errorf("uid: %v", err)
	}
}

func TestUpdateOfNothingWritesNothing(t *testing.T) {
	w := newWorld(t)
	made := w.create(configMaps, configMap("a"))
	time.Sleep(1100 * time.Millisecond) // a manager's time would differ
	got := w.mustChange(configMaps, "default", "a", "", func(api.Object) {})
	if got.GetResourceVersion() != made.GetResourceVersion() {
		t.Errorf("resourceVersion moved from %s to %s", made.GetResourceVersion(), got.GetResourceVersion())
	}
}

// A12: generation moves with the spec; status and spec are written apart.
func TestStatusAndSpecAreApart(t *testing.T) {
	w := newWorld(t)
	w.create(deployments, deployment("d"))
	d := w.mustChange(deployments, "default", "d", "", func(o api.Object) {
		o.(*appsv1.Deployment).Status.Replicas = 7
		*o.(*appsv1.Deployment).Spec.Replicas = 2
	}).(*appsv1.Deployment)
	if d.Status.Replicas != 0 || d.Generation != 2 || *d.Spec.Replicas != 2 {
		t.Errorf("after a write of the spec: %+v", d)
	}
	d = w.mustChange(deployments, "default", "d", "status", func(o api.Object) {
		o.(*appsv1.Deployment).Status.Replicas = 7
		*o.(*appsv1.Deployment).Spec.Replicas = 9
		o.SetAnnotations(map[string]string{"patchedstatus": "true"})
	}).(*appsv1.Deployment)
	if d.Status.Replicas != 7 || d.Generation != 2 || *d.Spec.Replicas != 2 || d.Annotations["patchedstatus"] != "true" {
		t.Errorf("after a write of the status: %+v", d)
	}
}

// A13: an object with finalizers stays, and goes with the write that takes the last one.
func TestFinalizers(t *testing.T) {
	w := newWorld(t)
	c := configMap("a")
	c.Finalizers = []string{"example.com/x"}
	w.create(configMaps, c)
	e, gone, err := w.of(configMaps).Delete(w.ctx, "default", "a", metav1.DeleteOptions{})
	if err != nil || gone || e.Object().GetDeletionTimestamp() == nil {
		t.Fatalf("gone %v, err %v", gone, err)
	}
	if _, err := w.change(configMaps, "default", "a", "", func(o api.Object) { o.SetFinalizers([]string{"example.com/x", "example.com/y"}) }); !apierrors.IsInvalid(err) {
		t.Errorf("a new finalizer was accepted: %v", err)
	}
	w.mustChange(configMaps, "default", "a", "", func(o api.Object) { o.SetDeletionTimestamp(nil) })
	if w.get(configMaps, "default", "a").GetDeletionTimestamp() == nil {
		t.Error("deletionTimestamp was cleared")
	}
	before := w.revision()
	w.mustChange(configMaps, "default", "a", "", func(o api.Object) { o.SetFinalizers(nil) })
	if _, err := w.of(configMaps).Get(w.ctx, "default", "a", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("still there: %v", err)
	}
	if w.revision() != before+1 {
		t.Errorf("%d writes", w.revision()-before)
	}
}

func TestPodsAreDeletedWithGrace(t *testing.T) {
	w := newWorld(t)
	w.create(pods, pod("free"))
	if _, gone, err := w.of(pods).Delete(w.ctx, "default", "free", metav1.DeleteOptions{}); err != nil || !gone {
		t.Errorf("a pod without a node: gone %v, %v", gone, err)
	}
	p := pod("bound")
	p.Spec.NodeName = "n"
	w.create(pods, p)
	del := func(seconds *int64) (*corev1.Pod, bool) {
		e, gone, err := w.of(pods).Delete(w.ctx, "default", "bound", metav1.DeleteOptions{GracePeriodSeconds: seconds})
		if err != nil {
			t.Fatal(err)
		}
		return e.Object().(*corev1.Pod), gone
	}
	n := func(i int64) *int64 { return &i }
	got, gone := del(nil)
	if gone || *got.DeletionGracePeriodSeconds != 30 || got.Generation != 2 {
		t.Errorf("first delete: gone %v, %+v", gone, got.ObjectMeta)
	}
	first := got.DeletionTimestamp
	if got, _ = del(n(60)); *got.DeletionGracePeriodSeconds != 30 {
		t.Error("grace was made longer")
	}
	if got, _ = del(n(5)); *got.DeletionGracePeriodSeconds != 5 || first.Sub(got.DeletionTimestamp.Time) != 25*time.Second {
		t.Errorf("shortened: %v %v", *got.DeletionGracePeriodSeconds, got.DeletionTimestamp)
	}
	if _, gone = del(n(0)); !gone {
		t.Error("still there after a delete with grace 0")
	}
}

func TestDeletePropagation(t *testing.T) {
	orphan, foreground := metav1.DeletePropagationOrphan, metav1.DeletePropagationForeground
	yes := true
	for name, c := range map[string]struct {
		opts metav1.DeleteOptions
		want string
	}{
		"orphan":                  {metav1.DeleteOptions{PropagationPolicy: &orphan}, "orphan"},
		"foreground":              {metav1.DeleteOptions{PropagationPolicy: &foreground}, "foregroundDeletion"},
		"legacy orphanDependents": {metav1.DeleteOptions{OrphanDependents: &yes}, "orphan"},
		"background":              {metav1.DeleteOptions{}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.create(deployments, deployment("d"))
			e, gone, err := w.of(deployments).Delete(w.ctx, "default", "d", c.opts)
			if err != nil || gone != (c.want == "") {
				t.Fatalf("gone %v, %v", gone, err)
			}
			if got := strings.Join(e.Object().GetFinalizers(), ","); got != c.want {
				t.Errorf("finalizers %q, want %q", got, c.want)
			}
		})
	}
}

func TestNamespacesWaitForTheirContent(t *testing.T) {
	w := newWorld(t)
	w.create(namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "team"}})
	e, gone, err := w.of(namespaces).Delete(w.ctx, "", "team", metav1.DeleteOptions{})
	ns := e.Object().(*corev1.Namespace)
	if err != nil || gone || ns.Status.Phase != corev1.NamespaceTerminating || ns.DeletionTimestamp == nil {
		t.Fatalf("%v %v %+v", gone, err, ns)
	}
	w.mustChange(namespaces, "", "team", "finalize", func(o api.Object) { o.(*corev1.Namespace).Spec.Finalizers = nil })
	if _, err := w.of(namespaces).Get(w.ctx, "", "team", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("still there: %v", err)
	}
}

// A16: a dry run leaves no trace.
func TestDryRunWritesNothing(t *testing.T) {
	w := newWorld(t)
	w.create(configMaps, configMap("a"))
	before := w.revision()
	all := []string{metav1.DryRunAll}
	s := w.of(configMaps)
	if _, err := s.Create(w.ctx, "default", configMap("b"), metav1.CreateOptions{DryRun: all}); err != nil {
		t.Error(err)
	}
	if _, err := s.Create(w.ctx, "default", configMap("a"), metav1.CreateOptions{DryRun: all}); !apierrors.IsAlreadyExists(err) {
		t.Error(err)
	}
	e, _, err := s.Patch(w.ctx, "default", "a", "", types.MergePatchType, []byte(`{"data":{"k":"w"}}`), metav1.PatchOptions{DryRun: all})
	if err != nil || e.Object().(*corev1.ConfigMap).Data["k"] != "w" {
		t.Error(err)
	}
	if _, _, err := s.Delete(w.ctx, "default", "a", metav1.DeleteOptions{DryRun: all}); err != nil {
		t.Error(err)
	}
	if _, err := s.DeleteCollection(w.ctx, "default", metav1.DeleteOptions{DryRun: all}, rest.ListOptions{}); err != nil {
		t.Error(err)
	}
	if w.revision() != before {
		t.Errorf("the store moved from %d to %d", before, w.revision())
	}
}

// A10: pages come from one snapshot.
func TestPagesAreOneSnapshot(t *testing.T) {
	w := newWorld(t)
	for i := range 10 {
		w.create(configMaps, configMap(fmt.Sprintf("c%02d", i)))
	}
	s := w.of(configMaps)
	var names []string
	opts := rest.ListOptions{ListOptions: metav1.ListOptions{Limit: 3}}
	first := int64(0)
	for {
		l, err := s.List(w.ctx, "default", opts)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range l.Entries {
			names = append(names, e.Object().GetName())
		}
		if first == 0 {
			first = l.Revision
		}
		if l.Revision != first {
			t.Errorf("a page at %d, the first was at %d", l.Revision, first)
		}
		if l.Continue == "" {
			break
		}
		if left := int64(10 - len(names)); *l.RemainingItemCount != left {
			t.Errorf("remainingItemCount %d, want %d", *l.RemainingItemCount, left)
		}
		opts.Continue = l.Continue
		w.create(configMaps, configMap("c00"+strconv.Itoa(len(names)))) // not in this list
	}
	if len(names) != 10 {
		t.Errorf("%v", names)
	}
}

func TestExactAndExpiredRevisions(t *testing.T) {
	w := newWorld(t)
	s := w.of(configMaps)
	a := w.create(configMaps, configMap("a"))
	w.create(configMaps, configMap("b"))
	exact := rest.ListOptions{ListOptions: metav1.ListOptions{ResourceVersion: a.GetResourceVersion(), ResourceVersionMatch: metav1.ResourceVersionMatchExact}}
	l, err := s.List(w.ctx, "", exact)
	if err != nil || len(l.Entries) != 1 {
		t.Fatalf("%v %v", l, err)
	}
	c := w.create(configMaps, configMap("c"))
	exact.ResourceVersion = a.GetResourceVersion()
	page, err := s.List(w.ctx, "", rest.ListOptions{ListOptions: metav1.ListOptions{Limit: 1}})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.store.Compact(w.ctx, w.revision()); err != nil {
		t.Fatal(err)
	}
	d := newWorldOn(t, w.store, rest.Config{}) // a server that has nothing in memory
	w.create(configMaps, configMap("d"))
	if _, err := d.of(configMaps).List(d.ctx, "", exact); !apierrors.IsResourceExpired(err) {
		t.Errorf("exact at a compacted revision: %v", err)
	}
	_, err = s.List(w.ctx, "", rest.ListOptions{ListOptions: metav1.ListOptions{Limit: 1, Continue: page.Continue}})
	if err != nil {
		t.Errorf("the pinned snapshot is gone: %v", err)
	}
	if err := w.store.Compact(w.ctx, w.revision()); err != nil {
		t.Fatal(err)
	}
	if _, err = s.List(w.ctx, "", rest.ListOptions{ListOptions: metav1.ListOptions{Limit: 1, Continue: page.Continue}}); !apierrors.IsResourceExpired(err) {
		t.Errorf("a token outlives its revision: %v", err)
	}
	d = newWorldOn(t, w.store, rest.Config{}) // one that did not see the page's revision
	_, err = d.of(configMaps).List(d.ctx, "", rest.ListOptions{ListOptions: metav1.ListOptions{Continue: page.Continue}})
	status, ok := err.(apierrors.APIStatus)
	if !ok || status.Status().Code != 410 || status.Status().ListMeta.Continue == "" {
		t.Fatalf("continue at a compacted revision: %v", err)
	}
	l, err = d.of(configMaps).List(d.ctx, "", rest.ListOptions{ListOptions: metav1.ListOptions{Continue: status.Status().ListMeta.Continue}})
	if err != nil || len(l.Entries) != 3 {
		t.Errorf("the inconsistent rest: %v %v", l, err)
	}
	_ = c
	if _, err := d.of(configMaps).Watch(d.ctx, "", rest.ListOptions{ListOptions: metav1.ListOptions{ResourceVersion: a.GetResourceVersion()}}); !apierrors.IsResourceExpired(err) { // A7
		t.Errorf("watch from a compacted revision: %v", err)
	}
}

func TestFutureRevisionTimesOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		begin := time.Now()
		_, err := w.of(configMaps).Get(w.ctx, "default", "a", metav1.GetOptions{ResourceVersion: "1000"})
		if !apierrors.IsTimeout(err) || !apierrors.HasStatusCause(err, metav1.CauseTypeResourceVersionTooLarge) || time.Since(begin) != 3*time.Second {
			t.Errorf("after %v: %v", time.Since(begin), err)
		}
	})
}

func TestSelectors(t *testing.T) {
	w := newWorld(t)
	for i := range 6 {
		p := pod(fmt.Sprintf("p%d", i))
		p.Spec.NodeName = []string{"n1", "n2", ""}[i%3]
		p.Labels["tier"] = []string{"a", "b"}[i%2]
		w.create(pods, p)
	}
	for _, c := range []struct{ labels, fields, want string }{
		{"", "", "p0 p1 p2 p3 p4 p5"},
		{"tier=a", "", "p0 p2 p4"},
		{"", "spec.nodeName=n1", "p0 p3"},
		{"tier=b", "spec.nodeName=n1", "p3"},
		{"", "spec.nodeName!=n1", "p1 p2 p4 p5"},
		{"", "spec.nodeName=", "p2 p5"},
		{"", "metadata.name=p4", "p4"},
		{"", "metadata.name=p4,metadata.namespace=other", ""},
		{"", "status.phase=Pending", "p0 p1 p2 p3 p4 p5"},
		{"", "status.phase=Running", ""},
	} {
		for _, ns := range []string{"", "default"} {
			l, err := w.of(pods).List(w.ctx, ns, selectors(t, c.labels, c.fields))
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, e := range l.Entries {
				names = append(names, e.Object().GetName())
			}
			if got := strings.Join(names, " "); got != c.want {
				t.Errorf("labels %q fields %q in %q: %q, want %q", c.labels, c.fields, ns, got, c.want)
			}
		}
	}
	_, err := w.of(pods).List(w.ctx, "", selectors(t, "", "x=y"))
	if !apierrors.IsBadRequest(err) || err.Error() != "field label not supported: x" {
		t.Error(err)
	}
}

func selectors(t testing.TB, l, f string) rest.ListOptions {
	t.Helper()
	ls, err := labels.Parse(l)
	if err != nil {
		t.Fatal(err)
	}
	fs, err := fields.ParseSelector(f)
	if err != nil {
		t.Fatal(err)
	}
	return rest.ListOptions{Labels: ls, Fields: fs}
}

// next reads n events.
func next(t testing.TB, ctx context.Context, w rest.Watch, n int) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var out []string
	for len(out) < n {
		evs, err := w.Next(ctx)
		if err != nil {
			t.Fatalf("after %v: %v", out, err)
		}
		for _, e := range evs {
			if e.Entry == nil {
				out = append(out, e.Type)
				continue
			}
			o := e.Entry.Object()
			if o.GetResourceVersion() != strconv.FormatInt(e.Revision, 10) {
				t.Errorf("%s %s at revision %d has resourceVersion %s", e.Type, o.GetName(), e.Revision, o.GetResourceVersion())
			}
			out = append(out, e.Type+" "+o.GetName())
		}
	}
	return out
}

// A6: an object that leaves the selector is DELETED with its last state inside, one that enters is ADDED.
func TestWatchWithSelectors(t *testing.T) {
	w := newWorld(t)
	w.create(pods, pod("old"))
	for _, c := range []struct {
		name string
		opts rest.ListOptions
	}{
		{"all, filtered", selectors(t, "app=web,tier=a", "")},
		{"by node", selectors(t, "", "spec.nodeName=n")},
	} {
		t.Run(c.name, func(t *testing.T) {
			watch, err := w.of(pods).Watch(w.ctx, "default", c.opts)
			if err != nil {
				t.Fatal(err)
			}
			defer watch.Stop()
			p := pod("a")
			p.Labels["tier"] = "a"
			p.Spec.NodeName = "n"
			w.create(pods, p)
			w.create(pods, pod("other"))
			w.mustChange(pods, "default", "a", "", func(o api.Object) { o.SetAnnotations(map[string]string{"x": "y"}) })
			if got := strings.Join(next(t, w.ctx, watch, 2), ","); got != "ADDED a,MODIFIED a" {
				t.Error(got)
			}
			if c.opts.Labels != nil && !c.opts.Labels.Empty() {
				w.mustChange(pods, "default", "a", "", func(o api.Object) { o.SetLabels(map[string]string{"app": "web"}) })
				w.mustChange(pods, "default", "a", "", func(o api.Object) { o.SetLabels(map[string]string{"app": "web", "tier": "a"}) })
				if got := strings.Join(next(t, w.ctx, watch, 2), ","); got != "DELETED a,ADDED a" {
					t.Error(got)
				}
			}
			zero := int64(0)
			for _, name := range []string{"a", "other"} {
				if _, gone, err := w.of(pods).Delete(w.ctx, "default", name, metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil || !gone {
					t.Fatal(err)
				}
			}
			if got := strings.Join(next(t, w.ctx, watch, 1), ","); got != "DELETED a" {
				t.Error(got)
			}
		})
	}
}

// A11: a watch list ends its initial events with a marked bookmark; later
// bookmarks come once a minute while nothing else does.
func TestWatchListAndBookmarks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		for i := range 3 {
			w.create(configMaps, configMap(fmt.Sprint("c", i)))
		}
		yes, limit := true, int64(100)
		watch, err := w.of(configMaps).Watch(w.ctx, "", rest.ListOptions{ListOptions: metav1.ListOptions{
			SendInitialEvents: &yes, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan, AllowWatchBookmarks: true, TimeoutSeconds: &limit}})
		if err != nil {
			t.Fatal(err)
		}
		defer watch.Stop()
		if got := next(t, w.ctx, watch, 3); strings.Join(got, ",") != "ADDED c0,ADDED c1,ADDED c2" {
			t.Error(got)
		}
		evs, err := watch.Next(w.ctx)
		if err != nil || len(evs) != 1 || !evs[0].InitialEventsEnd || evs[0].Revision < w.revision() {
			t.Fatalf("%+v %v", evs, err)
		}
		w.create(deployments, deployment("d")) // another resource moves the revision on
		begin := time.Now()
		evs, err = watch.Next(w.ctx)
		if err != nil || len(evs) != 1 || evs[0].Type != "BOOKMARK" || evs[0].InitialEventsEnd || evs[0].Revision != w.revision() {
			t.Fatalf("%+v %v", evs, err)
		}
		if d := time.Since(begin); d > time.Minute || d < 50*time.Second {
			t.Errorf("a bookmark after %v", d)
		}
		if _, err = watch.Next(w.ctx); !errors.Is(err, io.EOF) {
			t.Errorf("at the end: %v", err)
		}
	})
}

// A8: who does not read is ended; others see everything.
func TestSlowWatcherIsEnded(t *testing.T) {
	w := newWorld(t)
	w.create(configMaps, configMap("a"))
	slow, err := w.of(configMaps).Watch(w.ctx, "default", rest.ListOptions{ListOptions: metav1.ListOptions{ResourceVersion: strconv.FormatInt(w.revision(), 10)}})
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Stop()
	fast, err := w.of(configMaps).Watch(w.ctx, "", rest.ListOptions{ListOptions: metav1.ListOptions{ResourceVersion: strconv.FormatInt(w.revision(), 10)}})
	if err != nil {
		t.Fatal(err)
	}
	defer fast.Stop()
	const writes = 5000
	done := make(chan int)
	go func() {
		n := 0
		for n < writes {
			evs, err := fast.Next(w.ctx)
			if err != nil {
				t.Error(err)
				break
			}
			n += len(evs)
		}
		done <- n
	}()
	for i := range writes {
		w.mustChange(configMaps, "default", "a", "", func(o api.Object) { o.(*corev1.ConfigMap).Data["k"] = strconv.Itoa(i) })
	}
	if n := <-done; n != writes {
		t.Errorf("the fast one saw %d", n)
	}
	if _, err := slow.Next(w.ctx); !apierrors.IsResourceExpired(err) {
		t.Errorf("the slow one: %v", err)
	}
}

// A3 to A7: concurrent writers and watchers; what each watcher saw is what the store did.
func TestWatchHistoryIsTheStores(t *testing.T) {
	w := newWorld(t)
	raw, err := w.store.Watch(w.ctx, "/registry/configmaps/", w.revision())
	if err != nil {
		t.Fatal(err)
	}
	from := strconv.FormatInt(w.revision(), 10)
	const watchers, writers, each = 8, 6, 150
	var watching, writing sync.WaitGroup
	seen := make([][]string, watchers)
	stop, cancel := context.WithCancel(w.ctx)
	defer cancel()
	for i := range watchers {
		ns := []string{"", "default"}[i%2]
		watch, err := w.of(configMaps).Watch(w.ctx, ns, rest.ListOptions{ListOptions: metav1.ListOptions{ResourceVersion: from}})
		if err != nil {
			t.Fatal(err)
		}
		watching.Go(func() {
			defer watch.Stop()
			for {
				evs, err := watch.Next(stop)
				if err != nil {
					return
				}
				for _, e := range evs {
					seen[i] = append(seen[i], fmt.Sprintf("%d %s", e.Revision, e.Type))
				}
			}
		})
	}
	for i := range writers {
		writing.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 1))
			s := w.of(configMaps)
			for n := range each {
				name := fmt.Sprint("c", r.IntN(5))
				var err error
				switch r.IntN(4) {
				case 0:
					_, err = s.Create(w.ctx, "default", configMap(name), metav1.CreateOptions{})
				case 1:
					_, _, err = s.Delete(w.ctx, "default", name, metav1.DeleteOptions{})
				default:
					_, _, err = s.Update(w.ctx, "default", name, "", func(_ context.Context, o api.Object) (api.Object, error) {
						if o == nil {
							return configMap(name), nil
						}
						o.(*corev1.ConfigMap).Data["k"] = fmt.Sprint(i, n)
						return o, nil
					}, rest.UpdateOptions{})
				}
				if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsAlreadyExists(err) {
					t.Error(err)
				}
			}
		})
	}
	writing.Wait()
	last := w.revision()
	var want []string
	exists := map[string]bool{}
	for done := false; !done; {
		b := <-raw.Batches()
		for _, e := range b.Events {
			typ := "MODIFIED"
			switch {
			case e.Type == store.Delete:
				typ = "DELETED"
				delete(exists, e.KV.Key)
			case !exists[e.KV.Key]:
				typ = "ADDED"
				exists[e.KV.Key] = true
			}
			want = append(want, fmt.Sprintf("%d %s", e.KV.ModRevision, typ))
		}
		done = b.Revision >= last
	}
	time.Sleep(50 * time.Millisecond)
	cancel()
	watching.Wait()
	for i, got := range seen {
		if strings.Join(got, ",") != strings.Join(want, ",") {
			t.Errorf("watcher %d saw %d events, the store made %d", i, len(got), len(want))
		}
	}
}

// A5: of many creates of one name one succeeds.
func TestConcurrentCreatesOfOneName(t *testing.T) {
	w := newWorld(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	made := 0
	for range 20 {
		wg.Go(func() {
			_, err := w.of(configMaps).Create(w.ctx, "default", configMap("a"), metav1.CreateOptions{})
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				made++
			} else if !apierrors.IsAlreadyExists(err) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if made != 1 {
		t.Errorf("%d creates succeeded", made)
	}
}

func TestRestartFindsEverything(t *testing.T) {
	w := newWorld(t)
	made := w.create(pods, pod("a"))
	w.reg.Close()
	again := newWorldOn(t, w.store, rest.Config{})
	got := again.get(pods, "default", "a")
	e, err := again.of(pods).Get(again.ctx, "default", "a", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got.GetResourceVersion() != made.GetResourceVersion() || got.GetUID() != made.GetUID() {
		t.Errorf("%+v", got)
	}
	b, err := e.Proto()
	if err != nil {
		t.Fatal(err)
	}
	var p corev1.Pod
	if err := p.Unmarshal(b); err != nil || p.ResourceVersion != got.GetResourceVersion() || p.Spec.Containers[0].Image != "nginx:1.29" || p.Labels["app"] != "web" {
		t.Errorf("the spliced protobuf says %+v, %v", p.ObjectMeta, err)
	}
}

func TestPatches(t *testing.T) {
	for _, c := range []struct {
		name string
		kind types.PatchType
		data string
		want string // image of the containers, or error
	}{
		{"strategic merge joins by name", types.StrategicMergePatchType, `{"spec":{"template":{"spec":{"containers":[{"name":"side","image":"b"}]}}}}`, "side=b c=nginx:1.29"},
		{"merge replaces the list", types.MergePatchType, `{"spec":{"template":{"spec":{"containers":[{"name":"side","image":"b"}]}}}}`, "side=b"},
		{"JSON patch", types.JSONPatchType, `[{"op":"replace","path":"/spec/template/spec/containers/0/image","value":"b"}]`, "c=b"},
		{"a JSON patch test that fails", types.JSONPatchType, `[{"op":"test","path":"/spec/replicas","value":9}]`, "error: the server rejected our request due to an error in our request"},
		{"no JSON", types.MergePatchType, `{`, "error: "},
		{"another type", types.MergePatchType, `{"spec":{"replicas":"many"}}`, "error: "},
		{"another name", types.MergePatchType, `{"metadata":{"name":"x"}}`, "error: the name of the object (x) does not match the name on the URL (d)"},
		{"an old resourceVersion", types.MergePatchType, `{"metadata":{"resourceVersion":"1"}}`, "error: Operation cannot be fulfilled on deployments.apps \"d\": the object has been modified"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.create(deployments, deployment("d"))
			e, _, err := w.of(deployments).Patch(w.ctx, "default", "d", "", c.kind, []byte(c.data), metav1.PatchOptions{})
			var got []string
			if err != nil {
				got = append(got, "error:", err.Error())
			} else {
				for _, ctr := range e.Object().(*appsv1.Deployment).Spec.Template.Spec.Containers {
					got = append(got, ctr.Name+"="+ctr.Image)
				}
			}
			if s := strings.Join(got, " "); !strings.HasPrefix(s, c.want) {
				t.Errorf("got %q", s)
			}
		})
	}
}

func TestConcurrentPatchesAllArrive(t *testing.T) {
	w := newWorld(t)
	w.create(configMaps, configMap("a"))
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if _, _, err := w.of(configMaps).Patch(w.ctx, "default", "a", "", types.MergePatchType, fmt.Appendf(nil, `{"data":{"k%d":"v"}}`, i), metav1.PatchOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := len(w.get(configMaps, "default", "a").(*corev1.ConfigMap).Data); n != 21 {
		t.Errorf("%d keys", n)
	}
}

func TestBinding(t *testing.T) {
	w := newWorld(t)
	w.create(pods, pod("a"))
	sub := w.of(pods).(rest.Subresources)
	bind := func(node string) error {
		_, err := sub.CreateSubresource(w.ctx, "default", "a", "binding", &corev1.Binding{
			ObjectMeta: metav1.ObjectMeta{Name: "a", Annotations: map[string]string{"x": "y"}}, Target: corev1.ObjectReference{Kind: "Node", Name: node}}, metav1.CreateOptions{})
		return err
	}
	if err := bind("n"); err != nil {
		t.Fatal(err)
	}
	p := w.get(pods, "default", "a").(*corev1.Pod)
	if p.Generation != 1 {
		t.Errorf("a binding is no change of what the pod runs: generation %d", p.Generation)
	}
	if p.Spec.NodeName != "n" || p.Annotations["x"] != "y" || len(p.Status.Conditions) != 1 || p.Status.Conditions[0].Status != corev1.ConditionTrue {
		t.Errorf("%+v", p)
	}
	if err := bind("m"); !apierrors.IsConflict(err) || !strings.Contains(err.Error(), `pod a is already assigned to node "n"`) { // B1
		t.Error(err)
	}
}

func TestEvictionHonoursTheBudget(t *testing.T) {
	w := newWorld(t)
	one := pod("a")
	one.Spec.NodeName = "n"
	w.create(pods, one)
	w.mustChange(pods, "default", "a", "status", func(o api.Object) {
		o.(*corev1.Pod).Status.Phase = corev1.PodRunning
		o.(*corev1.Pod).Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	})
	w.create(budgets, &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "b"},
		Spec: policyv1.PodDisruptionBudgetSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}}})
	status := func(allowed int32) {
		w.mustChange(budgets, "default", "b", "status", func(o api.Object) {
			b := o.(*policyv1.PodDisruptionBudget)
			b.Status = policyv1.PodDisruptionBudgetStatus{ObservedGeneration: b.Generation, DisruptionsAllowed: allowed, ExpectedPods: 1, DesiredHealthy: 1, CurrentHealthy: 1}
		})
	}
	evict := func(dry ...string) error {
		_, err := w.of(pods).(rest.Subresources).CreateSubresource(w.ctx, "default", "a", "eviction",
			&policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "a"}}, metav1.CreateOptions{DryRun: dry})
		return err
	}
	status(0)
	err := evict()
	if !apierrors.IsTooManyRequests(err) || !apierrors.HasStatusCause(err, policyv1.DisruptionBudgetCause) {
		t.Fatalf("got %v", err)
	}
	status(1)
	before := w.revision()
	if err := evict(metav1.DryRunAll); err != nil || w.revision() != before { // A16
		t.Errorf("dry run: %v, revision %d to %d", err, before, w.revision())
	}
	if err := evict(); err != nil {
		t.Fatal(err)
	}
	b := w.get(budgets, "default", "b").(*policyv1.PodDisruptionBudget)
	if b.Status.DisruptionsAllowed != 0 || len(b.Status.DisruptedPods) != 1 {
		t.Errorf("%+v", b.Status)
	}
	evicted := w.get(pods, "default", "a").(*corev1.Pod)
	if evicted.DeletionTimestamp == nil {
		t.Error("the pod is not being deleted")
	}
	if c := evicted.Status.Conditions; len(c) != 2 || c[1].Type != corev1.DisruptionTarget || c[1].Reason != "EvictionByEvictionAPI" {
		t.Errorf("conditions %+v", c)
	}
}

// KEP-3017: a pod that is not ready goes without the budget when the others suffice.
func TestEvictionOfAnUnhealthyPod(t *testing.T) {
	for name, c := range map[string]struct {
		policy  policyv1.UnhealthyPodEvictionPolicyType
		healthy int32
		allowed bool
	}{"enough others": {policyv1.IfHealthyBudget, 2, true}, "too few others": {policyv1.IfHealthyBudget, 1, false}, "always": {policyv1.AlwaysAllow, 0, true}} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			one := pod("a")
			one.Spec.NodeName = "n"
			w.create(pods, one)
			w.mustChange(pods, "default", "a", "status", func(o api.Object) { o.(*corev1.Pod).Status.Phase = corev1.PodRunning })
			w.create(budgets, &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "b"},
				Spec: policyv1.PodDisruptionBudgetSpec{UnhealthyPodEvictionPolicy: &c.policy, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}}})
			w.mustChange(budgets, "default", "b", "status", func(o api.Object) {
				b := o.(*policyv1.PodDisruptionBudget)
				b.Status = policyv1.PodDisruptionBudgetStatus{ObservedGeneration: b.Generation, ExpectedPods: 3, DesiredHealthy: 2, CurrentHealthy: c.healthy}
			})
			_, err := w.of(pods).(rest.Subresources).CreateSubresource(w.ctx, "default", "a", "eviction",
				&policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "a"}}, metav1.CreateOptions{})
			if (err == nil) != c.allowed {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestScale(t *testing.T) {
	w := newWorld(t)
	w.create(deployments, deployment("d"))
	sub := w.of(deployments).(rest.Subresources)
	got, err := sub.PatchScale(w.ctx, "default", "d", types.MergePatchType, []byte(`{"spec":{"replicas":4}}`), metav1.PatchOptions{})
	if err != nil || got.Spec.Replicas != 4 {
		t.Fatalf("%+v %v", got, err)
	}
	d := w.get(deployments, "default", "d").(*appsv1.Deployment)
	if *d.Spec.Replicas != 4 || d.Generation != 2 {
		t.Errorf("%d replicas, generation %d", *d.Spec.Replicas, d.Generation)
	}
	got, err = sub.GetScale(w.ctx, "default", "d")
	if err != nil || got.Status.Selector != "app=web" || got.ResourceVersion != d.ResourceVersion {
		t.Errorf("%+v %v", got, err)
	}
	if _, err := sub.PatchScale(w.ctx, "default", "d", types.MergePatchType, []byte(`{"spec":{"replicas":-1}}`), metav1.PatchOptions{}); !apierrors.IsInvalid(err) {
		t.Error(err)
	}
}

func TestEventsExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		make := func(name string) {
			w.create(events, &corev1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
				InvolvedObject: corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: "p"}, Reason: "Test", Type: "Normal"})
		}
		count := func() int {
			l, err := w.of(events).List(w.ctx, "", rest.ListOptions{})
			if err != nil {
				t.Fatal(err)
			}
			return len(l.Entries)
		}
		make("first")
		time.Sleep(30 * time.Minute)
		make("second")
		time.Sleep(29 * time.Minute)
		if n := count(); n != 2 {
			t.Errorf("%d events after 59 minutes", n)
		}
		time.Sleep(3 * time.Minute)
		if n := count(); n != 1 {
			t.Errorf("%d events after 62 minutes", n)
		}
		time.Sleep(time.Hour)
		if n := count(); n != 0 {
			t.Errorf("%d events after two hours", n)
		}
	})
}

func TestDeleteCollection(t *testing.T) {
	w := newWorld(t)
	for i := range 30 {
		c := configMap(fmt.Sprint("c", i))
		c.Labels = map[string]string{"odd": fmt.Sprint(i % 2)}
		w.create(configMaps, c)
	}
	out, err := w.of(configMaps).DeleteCollection(w.ctx, "default", metav1.DeleteOptions{}, selectors(t, "odd=1", ""))
	if err != nil || len(out) != 15 {
		t.Fatalf("%d %v", len(out), err)
	}
	l, err := w.of(configMaps).List(w.ctx, "default", rest.ListOptions{})
	if err != nil || len(l.Entries) != 15 {
		t.Errorf("%d left, %v", len(l.Entries), err)
	}
}

// The path /api/v1/namespaces/x names x twice: as the namespace and as the object.
func TestANamespaceIsFoundByItsPath(t *testing.T) {
	w := newWorld(t)
	w.create(namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "x"}})
	if _, err := w.of(namespaces).Get(w.ctx, "x", "x", metav1.GetOptions{}); err != nil {
		t.Error(err)
	}
}
