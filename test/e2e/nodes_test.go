//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// several is a cluster of several nodes on this machine, in a network of its own
// beside the other tests' cluster.
type several struct {
	namespace
	data string
}

const severalNet = "proa-e2e-nodes"

func (s several) run(args ...string) (string, error) {
	out, err := try("nsenter", append([]string{"--net=/run/netns/" + severalNet, "env", "KUBECONFIG=" + s.data + "/admin.kubeconfig"}, args...)...)
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
	}
	return out, err
}

func (s several) proa(args ...string) string {
	s.Helper()
	out, err := s.run(append([]string{proa, "--data-dir", s.data}, args...)...)
	if err != nil {
		s.Fatal(err)
	}
	return out
}

func (s several) kubectl(args ...string) string {
	s.Helper()
	return s.proa(append([]string{"kubectl"}, args...)...)
}

const spread = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      topologySpreadConstraints: [{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: web}}}]
      containers: [{name: web, image: 'proa.example/hello:v1', ports: [{containerPort: 8080}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
`

func TestSeveralNodes(t *testing.T) {
	s := several{namespace{T: t}, data + "-nodes"}
	if out, err := try("sh", "-ec", "ip netns del "+severalNet+" 2>/dev/null || true; ip netns add "+severalNet+" && ip -n "+severalNet+" link set lo up && ip -n "+severalNet+" link add up0 type bridge && ip -n "+severalNet+
		" addr add 192.0.2.1/24 dev up0 && ip -n "+severalNet+" link set up0 up && ip -n "+severalNet+" route add default dev up0"); err != nil {
		t.Fatalf("make a network: %v %s", err, out)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, folder := range []string{s.data, s.data + "/nodes/2", s.data + "/nodes/3"} {
				b, _ := os.ReadFile(filepath.Join(folder, "proa.log"))
				t.Logf("%s: %s", folder, b)
			}
		}
		if out, err := s.run(proa, "--data-dir", s.data, "reset"); err != nil {
			t.Error(err, out)
		}
		if links, err := s.run("ip", "-br", "link"); err != nil || strings.Contains(links, "proa") {
			t.Errorf("an interface is left: %s %v", links, err)
		}
		mounts, _ := os.ReadFile("/proc/self/mountinfo")
		if _, err := os.Stat(s.data); err == nil || strings.Contains(string(mounts), s.data) {
			t.Error("the data folder, or a mount in it, is left")
		}
		_, _ = try("ip", "netns", "del", severalNet)
	})
	s.proa("up", "-d", "--no-kubeconfig", "--nodes", "3")
	s.proa("image", "import", filepath.Join(bin, "hello-v1.tar"))
	s.kubectl("apply", "-f", writeFile(t, "web.yaml", spread))
	s.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
	if nodes := strings.Fields(s.kubectl("get", "nodes", "-o", "jsonpath={.items[*].spec.podCIDR}")); len(nodes) != 3 {
		t.Errorf("the nodes' ranges: %v", nodes)
	}
	pods := func() []string {
		return strings.Fields(s.kubectl("get", "pods", "-l", "app=web", "-o", `jsonpath={range .items[*]}{.spec.nodeName}/{.metadata.name}/{.status.podIP}{"\n"}{end}`))
	}
	talk := func() {
		t.Helper()
		on := map[string]bool{}
		for _, from := range pods() {
			f := strings.Split(from, "/")
			on[f[0]] = true
			for _, to := range pods() {
				g := strings.Split(to, "/")
				// exec goes by the kubelet of the pod's node, the answer by the network between two.
				s.says(from+" asks "+to, "from "+g[1], 5*time.Second, func() (string, error) {
					return s.run(proa, "--data-dir", s.data, "kubectl", "exec", f[1], "--", "/hello", "get", "http://"+g[2]+":8080")
				})
			}
			s.says(from+" asks the Service", "hello v1", 5*time.Second, func() (string, error) {
				return s.run(proa, "--data-dir", s.data, "kubectl", "exec", f[1], "--", "/hello", "get", "http://web")
			})
			if out := s.kubectl("logs", f[1]); !strings.Contains(out, "listening") {
				t.Errorf("the log of %s: %s", from, out)
			}
		}
		if len(on) != 3 {
			t.Errorf("the pods are on %v", on)
		}
	}
	talk()

	s.proa("down")
	s.proa("up", "-d", "--no-kubeconfig") // as many as before, and with their pods
	before := strings.Join(pods(), " ")
	talk()
	if after := strings.Join(pods(), " "); after != before {
		t.Errorf("the pods were %s, and are %s", before, after)
	}

	// A name is given once: a token is not enough to become a node that is there. The
	// pin says whether the server is the right one.
	name := strings.Fields(s.kubectl("get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"))[1]
	invitation := strings.Fields(s.proa("token", "create", "--ttl", "10m"))
	if out, err := try(proa, "--data-dir", s.data+"/nodes/3", "down"); err != nil {
		t.Fatal(err, out)
	}
	for _, c := range []struct{ name, pin, want string }{
		{name, invitation[7], "is in the cluster already"},
		{"other", "sha256:" + strings.Repeat("0", 64), "is not the one with the pin"},
	} {
		enter := append([]string{"--net=" + s.data + "/nodes/3/netns", proa, "--data-dir", t.TempDir()}, invitation[1:7]...)
		if out, err := try("timeout", append([]string{"20", "nsenter"}, append(enter, c.pin, "--node-name", c.name)...)...); err == nil || !strings.Contains(out, c.want) {
			t.Errorf("join as %s: %v %s, want %q", c.name, err, out, c.want)
		}
	}
}
