package image

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/proa-dev/proa/internal/kubelet/internal/crifake"
)

func secret(registry, user, pass string) *corev1.Secret {
	auth := base64.StdEncoding.EncodeToString([]byte(user + ":" + pass))
	return &corev1.Secret{Type: corev1.SecretTypeDockerConfigJson, Data: map[string][]byte{
		corev1.DockerConfigJsonKey: fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, registry, auth),
	}}
}

func TestMatches(t *testing.T) {
	for _, tc := range []struct {
		pattern, repo string
		want          bool
	}{
		{"reg.io", "reg.io/a/b", true}, {"https://reg.io/v1/", "reg.io/a", true}, {"reg.io/a", "reg.io/a/b", true}, {"reg.io/a", "reg.io/ab", false},
		{"*.reg.io", "x.reg.io/a", true}, {"*.reg.io", "reg.io/a", false}, {"*.reg.io", "a.b.reg.io/a", false}, {"reg.io:5000", "reg.io/a", false},
		{"https://index.docker.io/v1/", "docker.io/library/nginx", true}, {"reg.io", "evilreg.io/a", false}, {"", "reg.io/a", false},
	} {
		if got := matches(tc.pattern, tc.repo); got != tc.want {
			t.Errorf("%q for %q: %v", tc.pattern, tc.repo, got)
		}
	}
}

func TestMostSpecificLoginFirst(t *testing.T) {
	got := credentials("reg.io/team/app:1", []*corev1.Secret{secret("reg.io", "wide", "1"), secret("reg.io/team", "narrow", "2"), secret("other.io", "x", "3")})
	var users []string
	for _, c := range got {
		users = append(users, c.auth.Username+":"+c.auth.Password)
	}
	if !slices.Equal(users, []string{"narrow:2", "wide:1"}) {
		t.Errorf("%v", users)
	}
}

func TestPrivateImageNeedsTheLogin(t *testing.T) {
	rt := crifake.New()
	rt.Pull = func(_ string, a *runtimeapi.AuthConfig) error {
		if a.GetUsername() != "u" || a.GetPassword() != "p" {
			return errors.New("unauthorized")
		}
		return nil
	}
	file := filepath.Join(t.TempDir(), "pulls.json")
	for _, again := range []bool{false, true} { // the record survives a restart
		p := New(rt, file, func(*corev1.Pod, string, string, string, string, ...any) {}, func() {}, slog.New(slog.DiscardHandler))
		ensure := func(uid string, secrets ...*corev1.Secret) *Error {
			pod := &corev1.Pod{}
			pod.UID = "u" + "id"
			pod.Name = uid
			_, err := p.Ensure(context.Background(), pod, "c", "reg.io/app:1", corev1.PullIfNotPresent, "", secrets, nil)
			p.Forget("uid")
			return err
		}
		if !again {
			if err := ensure("a", secret("reg.io", "u", "p")); err != nil {
				t.Fatal(err)
			}
		}
		if err := ensure("b"); err == nil || err.Reason != ReasonErrImagePull {
			t.Errorf("without a login: %v", err)
		}
		if err := ensure("c", secret("reg.io", "u", "wrong")); err == nil {
			t.Error("with a wrong login")
		}
		pulls := len(rt.Log())
		if err := ensure("d", secret("reg.io", "u", "p")); err != nil || len(rt.Log()) != pulls {
			t.Errorf("with the login: %v, pulled %v", err, rt.Log()[pulls:])
		}
	}
	rt.AddImage("preloaded:1")
	p := New(rt, file, func(*corev1.Pod, string, string, string, string, ...any) {}, func() {}, slog.New(slog.DiscardHandler))
	if _, err := p.Ensure(context.Background(), &corev1.Pod{}, "c", "preloaded:1", corev1.PullNever, "", nil, nil); err != nil {
		t.Error(err)
	}
}
