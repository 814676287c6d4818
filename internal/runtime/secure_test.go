package runtime_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func profile(kind runtimeapi.SecurityProfile_ProfileType, ref string) func(*conConfig) {
	return func(c *conConfig) {
		c.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{ProfileType: kind, LocalhostRef: ref}
	}
}

func capsAdded(names ...string) func(*conConfig) {
	return func(c *conConfig) {
		c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddCapabilities: names}
	}
}

func TestSeccomp(t *testing.T) {
	n := newNode(t)
	own := filepath.Join(n.dir, "own.json")
	if err := os.WriteFile(own, []byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":95}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	const report = "grep ^Seccomp: /proc/self/status; unshare -U true && echo unshared; mkdir /tmp/x && echo made; true"
	standard, localhost := runtimeapi.SecurityProfile_RuntimeDefault, runtimeapi.SecurityProfile_Localhost
	for _, c := range []struct {
		name   string
		change func(*conConfig)
		want   string
	}{
		{"the default profile forbids new user namespaces", profile(standard, ""), "Seccomp:\t2\nunshare: unshare(0x10000000): Operation not permitted\nmade\n"},
		{"nothing asked for is unconfined", func(*conConfig) {}, "Seccomp:\t0\nunshared\nmade\n"},
		{"unconfined", profile(runtimeapi.SecurityProfile_Unconfined, ""), "Seccomp:\t0\nunshared\nmade\n"},
		{"privileged is unconfined", func(c *conConfig) {
			profile(standard, "")(c)
			c.Linux.SecurityContext.Privileged = true
		}, "Seccomp:\t0\nunshared\nmade\n"},
		{"CAP_SYS_ADMIN opens the default profile", func(c *conConfig) {
			profile(standard, "")(c)
			capsAdded("SYS_ADMIN")(c)
		}, "Seccomp:\t2\nunshared\nmade\n"},
		{"a profile of the node", profile(localhost, own), "Seccomp:\t2\nunshared\nmkdir: can't create directory '/tmp/x': Operation not supported\n"},
		{"without new privileges", func(c *conConfig) {
			profile(standard, "")(c)
			c.Linux.SecurityContext.NoNewPrivs = true
			c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
		}, "Seccomp:\t2\nunshare: unshare(0x10000000): Operation not permitted\nmkdir: can't create directory '/tmp/x': Permission denied\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := n.script("exec 2>&1; "+report, c.change); got != c.want {
				t.Errorf("got:\n%s\nwant:\n%s", got, c.want)
			}
		})
	}

	pod, pc := n.pod()
	id := n.begin(pod, pc, config("sleep 1000", profile(standard, "")))
	if out, code := n.exec(id, "unshare", "-U", "true"); code == 0 {
		t.Errorf("a command in the container is not confined: %s", out)
	}
	if _, err := n.create(pod, pc, config("true", profile(localhost, filepath.Join(n.dir, "none.json")))); err == nil {
		t.Error("a container with a profile that does not exist is made")
	}
	if _, err := n.create(pod, pc, config("true", profile(localhost, ""))); err == nil {
		t.Error("a container with an empty profile name is made: it would run unconfined")
	}
}

// What cannot be given is refused: a container must not run with less than it asked for.
func TestAppArmorIsNotPassedOver(t *testing.T) {
	n := newNode(t)
	pod, pc := n.pod()
	with := func(kind runtimeapi.SecurityProfile_ProfileType, ref string) func(*conConfig) {
		return func(c *conConfig) {
			c.Linux.SecurityContext.Apparmor = &runtimeapi.SecurityProfile{ProfileType: kind, LocalhostRef: ref}
		}
	}
	for _, ref := range []string{"proa-no-such-profile", "localhost/proa-no-such-profile", ""} {
		if _, err := n.create(pod, pc, config("true", with(runtimeapi.SecurityProfile_Localhost, ref))); err == nil || !strings.Contains(err.Error(), "AppArmor") {
			t.Errorf("profile %q: %v", ref, err)
		}
	}
	if out := n.scriptIn(pod, pc, "echo runs", with(runtimeapi.SecurityProfile_RuntimeDefault, "")); out != "runs\n" {
		t.Errorf("%q", out)
	}
}
