//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// A1, D2: after kill -9 nothing acknowledged is lost and containers run on. This
// test is not parallel: it runs before those that are.
func TestKillInTheMiddle(t *testing.T) {
	n := inNamespace(t)
	n.kubectl("run", "hello", "--image=proa.example/hello:v1")
	n.kubectl("run", "tools", "--image="+tools, "--", "sleep", "86399")
	n.ready("hello")
	n.ready("tools")
	before := pid(n)
	acknowledged := make(chan int)
	go func() {
		defer close(acknowledged)
		for i := range 1000 {
			if _, err := n.try("create", "configmap", fmt.Sprintf("kept-%d", i)); err != nil {
				return
			}
			acknowledged <- i
		}
	}()
	last := 0
	for i := range acknowledged {
		if last = i; i == 5 {
			server.kill()
		}
	}
	if now := pid(n); now != before {
		t.Fatalf("the container's process was %s, is %s", before, now)
	}
	if err := server.start(); err != nil {
		t.Fatal(err)
	}
	for i := range last + 1 {
		n.kubectl("get", "configmap", fmt.Sprintf("kept-%d", i))
	}
	n.ready("hello")
	n.ready("tools")
	if now := pid(n); now != before {
		t.Errorf("the container was restarted: its process was %s, is %s", before, now)
	}
	if out := n.field("pod/tools", ".status.containerStatuses[0].restartCount"); out != "0" {
		t.Errorf("restart count %s", out)
	}
	if out := n.kubectl("exec", "tools", "--", "id", "-u"); out != "0\n" {
		t.Errorf("exec after a restart: %q", out)
	}
	n.kubectl("delete", "pod", "tools", "--timeout=60s", "--grace-period=1")
	n.eventually("the container's process ends", 5*time.Second, func() error {
		if out, err := try("pgrep", "-fx", "sleep 86399"); err == nil {
			return fmt.Errorf("process %s", out)
		}
		return nil
	})
}

func pid(n namespace) string {
	n.Helper()
	out, err := try("pgrep", "-fx", "sleep 86399")
	if err != nil {
		n.Fatal("no process of the container")
	}
	return strings.TrimSpace(out)
}
