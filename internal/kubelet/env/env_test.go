package env

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func TestExpand(t *testing.T) {
	lookup := func(n string) (string, bool) {
		v, ok := map[string]string{"A": "1", "EMPTY": ""}[n]
		return v, ok
	}
	for in, want := range map[string]string{
		"plain": "plain", "$(A)": "1", "x$(A)y": "x1y", "$$(A)": "$(A)", "$$$(A)": "$1", "$(B)": "$(B)", "$(EMPTY)": "", "$A": "$A",
		"$": "$", "$(": "$(", "$(A": "$(A", "$$": "$", "$()": "$()", "a$b$(A)": "a$b1", "$($(A))": "$($(A))",
	} {
		if got := Expand(in, lookup); got != want {
			t.Errorf("%q gives %q, want %q", in, got, want)
		}
	}
}

func FuzzExpand(f *testing.F) {
	f.Add("a$(B)$$(C)")
	f.Fuzz(func(t *testing.T, in string) {
		out := Expand(in, func(string) (string, bool) { return "", false })
		if len(out) > len(in) {
			t.Errorf("%q grew to %q", in, out)
		}
	})
}

func TestFileKey(t *testing.T) {
	file := "# comment\nA='1'\n\nB='two\nlines' # why\r\nA='later'\n"
	for _, tc := range []struct {
		file, key, want string
		ok, fails       bool
	}{
		{file, "A", "later", true, false}, {file, "B", "two\nlines", true, false}, {file, "C", "", false, false},
		{"A=1", "A", "", false, true}, {"A='1", "A", "", false, true}, {"noequals\n", "A", "", false, true}, {" A='1'", "A", "", false, true}, {"A='1' x", "A", "", false, true},
	} {
		got, ok, err := FileKey([]byte(tc.file), tc.key)
		if got != tc.want || ok != tc.ok || (err != nil) != tc.fails {
			t.Errorf("%q %s: %q %v %v", tc.file, tc.key, got, ok, err)
		}
	}
}

func TestResource(t *testing.T) {
	q := resource.MustParse
	c := corev1.Container{Name: "c", Resources: corev1.ResourceRequirements{
		Requests: corev1.ResourceList{"cpu": q("250m")}, Limits: corev1.ResourceList{"memory": q("64Mi")},
	}}
	pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{c}}}
	alloc := corev1.ResourceList{"cpu": q("4"), "memory": q("8Gi")}
	for _, tc := range []struct{ res, div, want string }{
		{"requests.cpu", "", "1"}, {"requests.cpu", "1m", "250"}, {"limits.cpu", "1", "4"}, {"limits.memory", "1Mi", "64"}, {"limits.memory", "", "67108864"}, {"requests.memory", "", "0"},
	} {
		ref := &corev1.ResourceFieldSelector{ContainerName: "c", Resource: tc.res}
		if tc.div != "" {
			ref.Divisor = q(tc.div)
		}
		got, err := Resource(pod, nil, ref, alloc)
		if err != nil || got != tc.want {
			t.Errorf("%s / %s: %q %v, want %s", tc.res, tc.div, got, err, tc.want)
		}
	}
}
