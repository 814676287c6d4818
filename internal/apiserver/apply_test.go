package apiserver_test

import (
	"net/http"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corev1ac "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/kubernetes"
)

func TestApplyThroughClientGo(t *testing.T) {
	s := start(t)
	for name, c := range map[string]*kubernetes.Clientset{"json": s.clientset(t), "protobuf": s.protobuf(t)} {
		t.Run(name, func(t *testing.T) {
			ctx, maps := t.Context(), c.CoreV1().ConfigMaps("default")
			want := corev1ac.ConfigMap("applied-"+name, "default").WithData(map[string]string{"k": "v"})
			made, err := maps.Apply(ctx, want, metav1.ApplyOptions{FieldManager: "one"})
			if err != nil || made.UID == "" || len(made.ManagedFields) != 1 || made.ManagedFields[0].Manager != "one" {
				t.Fatalf("%+v, %v", made, err)
			}
			want.Data["k"] = "w"
			_, err = maps.Apply(ctx, want, metav1.ApplyOptions{FieldManager: "two"})
			if !apierrors.IsConflict(err) || !apierrors.HasStatusCause(err, metav1.CauseTypeFieldManagerConflict) {
				t.Fatalf("got %v, want a conflict", err)
			}
			forced, err := maps.Apply(ctx, want, metav1.ApplyOptions{FieldManager: "two", Force: true})
			if err != nil || forced.Data["k"] != "w" {
				t.Fatalf("%+v, %v", forced, err)
			}
			// What a client reads in order to apply it again.
			got, err := maps.Get(ctx, made.Name, metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			mine, err := corev1ac.ExtractConfigMap(got, "two")
			if err != nil || mine.Data["k"] != "w" {
				t.Fatalf("%+v, %v", mine, err)
			}
		})
	}
}

func TestApplyOverHTTP(t *testing.T) {
	s := start(t)
	const path, body = "/api/v1/namespaces/default/configmaps/h", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"h"},"data":{"k":"v"}}`
	yaml := []string{"Content-Type", "application/apply-patch+yaml"}
	for _, c := range []struct {
		name, query, body string
		code              int
		message           string
	}{
		{"no manager", "", body, 422, `PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch`},
		{"dry run", "?fieldManager=m&dryRun=All", body, http.StatusCreated, `"manager":"m"`},
		{"new", "?fieldManager=m", body, http.StatusCreated, `"operation":"Apply"`},
		{"present", "?fieldManager=m", body, http.StatusOK, `"f:k":{}`},
		{"owners in the body", "?fieldManager=m", strings.Replace(body, `"name"`, `"managedFields":[],"name"`, 1), 400, "metadata.managedFields must be nil"},
		{"a manager too long", "?fieldManager=" + strings.Repeat("m", 129), body, 422, "fieldManager"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := s.do(t, "PATCH", path+c.query, c.body, yaml...)
			if a.code != c.code || !strings.Contains(a.body, c.message) {
				t.Errorf("got %d %s, want %d %s", a.code, a.body, c.code, c.message)
			}
		})
	}
	if a := s.do(t, "PATCH", path+"?force=true", `{}`, "Content-Type", "application/merge-patch+json"); a.code != 422 || !strings.Contains(a.body, "may not be specified for non-apply patch") {
		t.Errorf("force without apply: %d %s", a.code, a.body)
	}
	if a := s.do(t, "PUT", path, strings.Replace(body, `"v"}`, `"w"}`, 1), "Content-Type", "application/json", "User-Agent", "helm/v3 (x)"); a.code != 200 || !strings.Contains(a.body, `"manager":"helm"`) {
		t.Errorf("an update: %d %s", a.code, a.body)
	}
}
