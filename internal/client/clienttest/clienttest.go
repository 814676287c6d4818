// Package clienttest is the suite that every form of client.Interface passes, so
// that a component cannot tell which one it has.
package clienttest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/proa-dev/proa/internal/client"
)

// Run runs the suite. fresh returns a client of an empty cluster, that has the
// namespace "default" and its service account.
func Run(t *testing.T, fresh func(t *testing.T) client.Interface) {
	for _, c := range []struct {
		name string
		test func(*testing.T, client.Interface)
	}{
		{"an object is created, read, changed and deleted", life},
		{"errors are the API's own", failures},
		{"lists select and are paged", lists},
		{"patches of every kind", patches},
		{"subresources", subresources},
		{"an informer shows the state in order", view},
		{"an informer keeps to its scope", scopes},
		{"a follower is told of the state, then of the changes", follow},
		{"a slow follower loses only what was overtaken", slow},
		{"a resource that is not served", unserved},
		{"the resources that are served", served},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, fresh(t)) })
	}
}

func configMap(name, value string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{"app": name}}, Data: map[string]string{"k": value}}
}

func pod(name, node string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
}

func create[T client.Object](t *testing.T, c client.Interface, kind client.Kind[T], obj T) T {
	t.Helper()
	out, err := kind.Create(t.Context(), c, obj)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func life(t *testing.T, c client.Interface) {
	ctx := t.Context()
	in := configMap("a", "1")
	made := create(t, c, client.ConfigMaps, in)
	if made.UID == "" || made.ResourceVersion == "" || in.UID != "" {
		t.Errorf("made %+v from %+v", made.ObjectMeta, in.ObjectMeta)
	}
	if made.Kind != "" || made.APIVersion != "" {
		t.Errorf("typed objects carry no kind, got %v", made.TypeMeta)
	}
	made.Data["k"] = "2"
	changed, err := client.ConfigMaps.Update(ctx, c, made)
	if err != nil || changed.Data["k"] != "2" || changed.ResourceVersion == made.ResourceVersion {
		t.Fatalf("update: %+v, %v", changed, err)
	}
	got, err := client.ConfigMaps.Get(ctx, c, "default", "a")
	if err != nil || got.Data["k"] != "2" || got.UID != made.UID {
		t.Fatalf("get: %+v, %v", got, err)
	}
	got.Data["k"] = "mine to write" // it belongs to the caller
	if again, _ := client.ConfigMaps.Get(ctx, c, "default", "a"); again.Data["k"] != "2" {
		t.Error("a caller's object is shared")
	}
	generated := create(t, c, client.ConfigMaps, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", GenerateName: "g-"}})
	if !strings.HasPrefix(generated.Name, "g-") || len(generated.Name) < 5 {
		t.Errorf("generated name %q", generated.Name)
	}
	if err := client.ConfigMaps.Delete(ctx, c, "default", "a", metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: ptr.To(types.UID("other"))}}); !apierrors.IsConflict(err) {
		t.Errorf("delete of another object: %v", err)
	}
	if err := client.ConfigMaps.Delete(ctx, c, "default", "a", metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &made.UID}}); err != nil {
		t.Fatal(err)
	}
	if _, err := client.ConfigMaps.Get(ctx, c, "default", "a"); !apierrors.IsNotFound(err) {
		t.Errorf("get of what was deleted: %v", err)
	}
}

func failures(t *testing.T, c client.Interface) {
	ctx := t.Context()
	made := create(t, c, client.ConfigMaps, configMap("a", "1"))
	if _, err := client.ConfigMaps.Create(ctx, c, configMap("a", "1")); !apierrors.IsAlreadyExists(err) {
		t.Errorf("create again: %v", err)
	}
	made.Data["k"] = "2"
	if _, err := client.ConfigMaps.Update(ctx, c, made); err != nil {
		t.Fatal(err)
	}
	if _, err := client.ConfigMaps.Update(ctx, c, made); !apierrors.IsConflict(err) {
		t.Errorf("update of an old state: %v", err)
	}
	_, err := client.ConfigMaps.Create(ctx, c, configMap("NO", "1"))
	var status apierrors.APIStatus
	if !apierrors.IsInvalid(err) || !errors.As(err, &status) || status.Status().Details == nil || len(status.Status().Details.Causes) == 0 {
		t.Errorf("invalid: %v", err)
	}
	if err := client.ConfigMaps.Delete(ctx, c, "default", "none", metav1.DeleteOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("delete of nothing: %v", err)
	}
	if _, err := client.ConfigMaps.List(ctx, c, "", metav1.ListOptions{LabelSelector: "!!"}); !apierrors.IsBadRequest(err) {
		t.Errorf("a selector that is none: %v", err)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if err := client.ConfigMaps.Informer(c, client.Scope{}).WaitSynced(ended); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("WaitSynced of an ended context: %v", err)
	}
}

func lists(t *testing.T, c client.Interface) {
	ctx := t.Context()
	for i := range 5 {
		create(t, c, client.ConfigMaps, configMap(fmt.Sprintf("m%d", i), "1"))
	}
	one, err := client.ConfigMaps.List(ctx, c, "default", metav1.ListOptions{LabelSelector: "app=m3"})
	if err != nil || len(one) != 1 || one[0].Name != "m3" {
		t.Errorf("by label: %v, %v", one, err)
	}
	one, err = client.ConfigMaps.List(ctx, c, "", metav1.ListOptions{FieldSelector: "metadata.name=m2"})
	if err != nil || len(one) != 1 || one[0].Name != "m2" {
		t.Errorf("by field: %v, %v", one, err)
	}
	var names []string
	opts := metav1.ListOptions{Limit: 2, LabelSelector: "app"}
	for pages := 0; ; pages++ {
		l, err := c.List(ctx, client.ConfigMaps.GVR, "default", opts)
		if err != nil || pages > 5 {
			t.Fatalf("page %d: %v", pages, err)
		}
		for _, o := range l.Items {
			names = append(names, o.GetName())
		}
		if l.ResourceVersion == "" {
			t.Error("a list without a revision")
		}
		if opts.Continue = l.Continue; l.Continue == "" {
			break
		}
	}
	if strings.Join(names, ",") != "m0,m1,m2,m3,m4" {
		t.Errorf("pages hold %v", names)
	}
}

func patches(t *testing.T, c client.Interface) {
	create(t, c, client.ConfigMaps, configMap("a", "1"))
	for kind, body := range map[types.PatchType]string{
		types.JSONPatchType:           `[{"op":"add","path":"/data/json","value":"x"}]`,
		types.MergePatchType:          `{"data":{"merge":"x"}}`,
		types.StrategicMergePatchType: `{"data":{"strategic":"x"}}`,
	} {
		if _, err := client.ConfigMaps.Patch(t.Context(), c, "default", "a", "", kind, []byte(body)); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
	}
	o, err := c.Patch(t.Context(), client.ConfigMaps.GVR, "default", "a", "", types.ApplyPatchType,
		[]byte("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: default}\ndata: {apply: x}\n"), metav1.PatchOptions{FieldManager: "tester"})
	if err != nil {
		t.Fatal(err)
	}
	m := o.(*corev1.ConfigMap)
	for _, key := range []string{"json", "merge", "strategic", "apply"} {
		if m.Data[key] != "x" {
			t.Errorf("the %s patch is not in %v", key, m.Data)
		}
	}
	if !slices.ContainsFunc(m.ManagedFields, func(f metav1.ManagedFieldsEntry) bool {
		return f.Manager == "tester" && f.Operation == metav1.ManagedFieldsOperationApply
	}) {
		t.Errorf("no manager tester in %v", m.ManagedFields)
	}
}

func subresources(t *testing.T, c client.Interface) {
	ctx := t.Context()
	create(t, c, client.Pods, pod("a", ""))
	if _, err := c.Create(ctx, client.Pods.GVR, "default", "a", "binding", &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Target: corev1.ObjectReference{Kind: "Node", Name: "n"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	p, err := client.Pods.Get(ctx, c, "default", "a")
	if err != nil || p.Spec.NodeName != "n" {
		t.Fatalf("after the binding: %v, %v", p.Spec.NodeName, err)
	}
	p.Status.Phase = corev1.PodRunning
	p.Spec.Containers[0].Image = "not-of-the-status"
	p, err = client.Pods.UpdateStatus(ctx, c, p)
	if err != nil || p.Status.Phase != corev1.PodRunning || p.Spec.Containers[0].Image != "i" {
		t.Errorf("after the status: %+v, %v", p, err)
	}
	eviction := &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "a"}, DeleteOptions: &metav1.DeleteOptions{GracePeriodSeconds: ptr.To(int64(0))}}
	if _, err := c.Create(ctx, client.Pods.GVR, "default", "a", "eviction", eviction, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if p, err := client.Pods.Get(ctx, c, "default", "a"); !apierrors.IsNotFound(err) && (err != nil || p.DeletionTimestamp == nil) {
		t.Errorf("after the eviction: %v, %v", p, err)
	}
}

// eventually waits for what an informer shows in its own time.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 1000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("not in 10 s: %s", what)
}

func view(t *testing.T, c client.Interface) {
	for _, name := range []string{"b", "a"} {
		create(t, c, client.ConfigMaps, configMap(name, "1"))
	}
	i := client.ConfigMaps.Informer(c, client.Scope{})
	if err := i.WaitSynced(t.Context()); err != nil {
		t.Fatal(err)
	}
	made := create(t, c, client.ConfigMaps, configMap("c", "1"))
	eventually(t, "the new object", func() bool { _, ok := i.Get("default", "c"); return ok })
	if fmt.Sprint(i.Revision()) < made.ResourceVersion && len(fmt.Sprint(i.Revision())) <= len(made.ResourceVersion) {
		t.Errorf("revision %d, want %s at least", i.Revision(), made.ResourceVersion)
	}
	var names []string
	for _, m := range i.List("default", labels.Everything()) {
		names = append(names, m.Name)
	}
	if strings.Join(names, ",") != "a,b,c" {
		t.Errorf("the view holds %v", names)
	}
	if len(i.List("none", nil)) != 0 {
		t.Error("another namespace is not empty")
	}
}

func scopes(t *testing.T, c client.Interface) {
	ctx := t.Context()
	create(t, c, client.Namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "other"}})
	create(t, c, client.ConfigMaps, configMap("a", "1"))
	there := configMap("a", "1")
	there.Namespace = "other"
	create(t, c, client.ConfigMaps, there)
	create(t, c, client.ConfigMaps, configMap("b", "1"))
	create(t, c, client.Pods, pod("p", "n"))
	create(t, c, client.Pods, pod("q", ""))
	for _, x := range []struct {
		informer client.Informer
		want     int
	}{
		{client.ConfigMaps.Informer(c, client.Scope{}).Informer, 3},
		{client.ConfigMaps.Informer(c, client.Scope{Namespace: "default"}).Informer, 2},
		{client.ConfigMaps.Informer(c, client.Scope{Namespace: "default", Name: "a"}).Informer, 1},
		{client.Pods.Informer(c, client.Scope{NodeName: "n"}).Informer, 1},
	} {
		if err := x.informer.WaitSynced(ctx); err != nil {
			t.Fatal(err)
		}
		if got := x.informer.List(""); len(got) != x.want {
			t.Errorf("%d objects, want %d", len(got), x.want)
		}
	}
	// A pod comes into the scope of a node by its binding.
	mine := client.Pods.Informer(c, client.Scope{NodeName: "n"})
	if _, err := c.Create(ctx, client.Pods.GVR, "default", "q", "binding", &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: "q"}, Target: corev1.ObjectReference{Kind: "Node", Name: "n"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the pod that was bound", func() bool { _, ok := mine.Get("default", "q"); return ok })
}

// log is what a follower was told.
type log struct {
	mu     sync.Mutex
	events []string
}

func (l *log) add(e client.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := string(e.Type)
	if e.Object != nil {
		text += " " + e.Object.GetName() + "=" + e.Object.(*corev1.ConfigMap).Data["k"]
	}
	if e.Old != nil {
		text += " was " + e.Old.(*corev1.ConfigMap).Data["k"]
	}
	l.events = append(l.events, text)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.events, "; ")
}

func follow(t *testing.T, c client.Interface) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	create(t, c, client.ConfigMaps, configMap("a", "1"))
	var told log
	done := make(chan error, 1)
	go func() { done <- client.ConfigMaps.Informer(c, client.Scope{Namespace: "default"}).Watch(ctx, told.add) }()
	eventually(t, "Synced", func() bool { return strings.Contains(told.String(), "SYNCED") })
	made := create(t, c, client.ConfigMaps, configMap("b", "1"))
	eventually(t, "the object", func() bool { return strings.Contains(told.String(), "b=1") })
	made.Data["k"] = "2"
	if _, err := client.ConfigMaps.Update(ctx, c, made); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the change", func() bool { return strings.Contains(told.String(), "b=2") })
	if err := client.ConfigMaps.Delete(ctx, c, "default", "b", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	const want = "ADDED a=1; SYNCED; ADDED b=1; MODIFIED b=2 was 1; DELETED b=2 was 2"
	eventually(t, "the end", func() bool { return strings.Contains(told.String(), "DELETED") })
	if got := told.String(); got != want {
		t.Errorf("told %s\nwant %s", got, want)
	}
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("Watch: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("Watch does not return when its context ends")
	}
}

func slow(t *testing.T, c client.Interface) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	made := create(t, c, client.ConfigMaps, configMap("a", "0"))
	gate, last, events := make(chan struct{}), make(chan struct{}), 0
	const changes = 300
	go func() {
		_ = client.ConfigMaps.Informer(c, client.Scope{Namespace: "default"}).Watch(ctx, func(e client.Event) {
			if e.Type == client.Synced {
				<-gate
				return
			}
			events++
			if e.Object.(*corev1.ConfigMap).Data["k"] == fmt.Sprint(changes) {
				close(last)
			}
		})
	}()
	for n := 1; n <= changes; n++ {
		made.Data["k"] = fmt.Sprint(n)
		var err error
		if made, err = client.ConfigMaps.Update(ctx, c, made); err != nil {
			t.Fatal(err)
		}
	}
	close(gate)
	select {
	case <-last:
	case <-time.After(10 * time.Second):
		t.Fatal("the newest state was not told")
	}
	if events > changes+1 {
		t.Errorf("%d events of %d changes", events, changes)
	}
}

func unserved(t *testing.T, c client.Interface) {
	gvr := schema.GroupVersionResource{Group: "nobody.example", Version: "v1", Resource: "things"}
	if _, err := c.Get(t.Context(), gvr, "default", "a"); !apierrors.IsNotFound(err) {
		t.Errorf("get: %v", err)
	}
	i := c.Informer(gvr, client.Scope{})
	if err := i.WaitSynced(t.Context()); err == nil {
		t.Error("the view of nothing is complete")
	}
	if err := i.Watch(t.Context(), func(client.Event) {}); err == nil {
		t.Error("the watch of nothing ends without an error")
	}
}

func served(t *testing.T, c client.Interface) {
	list, err := c.Resources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	known := map[schema.GroupVersionResource]client.ResourceInfo{}
	for _, r := range list {
		if strings.Contains(r.GVR.Resource, "/") {
			t.Errorf("a subresource is listed: %v", r)
		}
		known[r.GVR] = r
	}
	for gvr, want := range map[schema.GroupVersionResource]client.ResourceInfo{
		client.Pods.GVR:        {Kind: "Pod", Namespaced: true},
		client.Nodes.GVR:       {Kind: "Node"},
		client.Deployments.GVR: {Kind: "Deployment", Namespaced: true},
	} {
		if got := known[gvr]; got.Kind != want.Kind || got.Namespaced != want.Namespaced || !slices.Contains(got.Verbs, "watch") || !slices.Contains(got.Verbs, "deletecollection") {
			t.Errorf("%v: %+v", gvr, got)
		}
	}
	if _, ok := known[schema.GroupVersionResource{Group: "authorization.k8s.io", Version: "v1", Resource: "subjectaccessreviews"}]; ok {
		t.Error("a review is listed")
	}
}
