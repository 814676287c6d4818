package podsecurity

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/resources"
	"github.com/proa-dev/proa/internal/apiserver/rest"
)

type state map[string]api.Object

func (s state) Get(gvr schema.GroupVersionResource, ns, name string) (api.Object, bool) {
	o, ok := s[gvr.Resource+"/"+ns+"/"+name]
	return o, ok
}

func (s state) List(gvr schema.GroupVersionResource, ns string) (out []api.Object) {
	for k, o := range s {
		if strings.HasPrefix(k, gvr.Resource+"/"+ns+"/") {
			out = append(out, o)
		}
	}
	return out
}

var podResource = &api.Resource{GVR: pods, GVK: corev1.SchemeGroupVersion.WithKind("Pod"), Namespaced: true}

func labelled(labels map[string]string) state {
	return state{"namespaces//n": &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: labels}}}
}

// The pods that k8s.io/pod-security-admission publishes for tests: of each
// version of each level, some that pass and some that fail.
func TestPublishedPods(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", "{{.Dir}}", "k8s.io/pod-security-admission/test").Output()
	if err != nil {
		t.Fatalf("find the published pods: %v", err)
	}
	var defaulted func(api.Object)
	for _, r := range resources.All() {
		if r.GVR == pods {
			defaulted = r.Default
		}
	}
	data := filepath.Join(strings.TrimSpace(string(out)), "testdata")
	n := 0
	err = filepath.WalkDir(data, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".yaml" {
			return err
		}
		rel, err := filepath.Rel(data, path)
		if err != nil {
			return err
		}
		parts := strings.Split(rel, string(filepath.Separator)) // level/version/pass|fail/name.yaml
		if len(parts) != 4 {
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		pod := &corev1.Pod{}
		if err := yaml.Unmarshal(b, pod); err != nil {
			return err
		}
		pod.Namespace = "n"
		defaulted(pod)
		n++
		p := New(labelled(map[string]string{"pod-security.kubernetes.io/enforce": parts[0], "pod-security.kubernetes.io/enforce-version": parts[1]}))
		got := p.Validate(t.Context(), &rest.Attributes{Verb: rest.Create, Resource: podResource, Namespace: "n", Name: pod.Name, Object: pod})
		if want := parts[2] == "pass"; (got == nil) != want {
			t.Errorf("%s: %v", rel, got)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if n < 1000 {
		t.Errorf("only %d pods were found", n)
	}
}

func pod(name string, change func(*corev1.PodSpec)) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: name}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
	if change != nil {
		change(&p.Spec)
	}
	return p
}

func TestWarningsAndErrors(t *testing.T) {
	hostNetwork := func(s *corev1.PodSpec) { s.HostNetwork = true }
	var warned []string
	ctx := rest.WithWarnings(t.Context(), func(text string) { warned = append(warned, text) })
	p := New(labelled(map[string]string{"pod-security.kubernetes.io/warn": "baseline"}))
	if err := p.Validate(ctx, &rest.Attributes{Verb: rest.Create, Resource: podResource, Namespace: "n", Name: "p", Object: pod("p", hostNetwork)}); err != nil {
		t.Error(err)
	}
	if want := `would violate PodSecurity "baseline:latest": host namespaces (hostNetwork=true)`; len(warned) != 1 || warned[0] != want {
		t.Errorf("warned %q, want %q", warned, want)
	}
	p = New(labelled(map[string]string{"pod-security.kubernetes.io/enforce": "baseline"}))
	err := p.Validate(ctx, &rest.Attributes{Verb: rest.Create, Resource: podResource, Namespace: "n", Name: "p", Object: pod("p", hostNetwork)})
	if want := `pods "p" is forbidden: violates PodSecurity "baseline:latest": host namespaces (hostNetwork=true)`; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestANamespaceThatGetsStricterWarnsOfItsPods(t *testing.T) {
	s := labelled(nil)
	for _, name := range []string{"b", "a"} {
		s["pods/n/"+name] = pod(name, func(s *corev1.PodSpec) { s.HostPID = true })
	}
	res := &api.Resource{GVR: namespaces, GVK: corev1.SchemeGroupVersion.WithKind("Namespace")}
	var warned []string
	ctx := rest.WithWarnings(t.Context(), func(text string) { warned = append(warned, text) })
	ns := func(level string) *corev1.Namespace {
		return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{"pod-security.kubernetes.io/enforce": level}}}
	}
	if err := New(s).Validate(ctx, &rest.Attributes{Verb: rest.Update, Resource: res, Name: "n", Object: ns("baseline"), Old: s["namespaces//n"]}); err != nil {
		t.Fatal(err)
	}
	want := []string{`existing pods in namespace "n" violate the new PodSecurity enforce level "baseline:latest"`, "a (and 1 other pod): host namespaces"}
	if strings.Join(warned, "|") != strings.Join(want, "|") {
		t.Errorf("warned %q, want %q", warned, want)
	}
	if err := New(s).Validate(ctx, &rest.Attributes{Verb: rest.Create, Resource: res, Name: "n", Object: ns("strict")}); err == nil || !strings.Contains(err.Error(), "metadata.labels[pod-security.kubernetes.io/enforce]") && !strings.Contains(err.Error(), "must be one of privileged, baseline, restricted") {
		t.Errorf("an unknown level: %v", err)
	}
}
