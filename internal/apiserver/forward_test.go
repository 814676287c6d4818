package apiserver_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/streaming/pkg/httpstream"
	serverspdy "k8s.io/streaming/pkg/httpstream/spdy"

	"github.com/proa-dev/proa/internal/apiserver"
)

// streams is a kubelet that speaks SPDY and handles each stream that a client opens.
func streams(t *testing.T, protocol string, handle func(httpstream.Stream)) *kubelet {
	return newKubelet(t, func(w http.ResponseWriter, r *http.Request) {
		if _, err := httpstream.Handshake(r, w, []string{protocol}); err != nil {
			return
		}
		conn := serverspdy.NewResponseUpgrader().UpgradeResponse(w, r, func(s httpstream.Stream, replied <-chan struct{}) error {
			go func() {
				<-replied
				handle(s)
			}()
			return nil
		})
		if conn == nil {
			t.Error("the kubelet could not upgrade")
			return
		}
		<-conn.CloseChan()
	})
}

func TestPortForwardOverSPDY(t *testing.T) {
	k := streams(t, portforward.PortForwardProtocolV1Name, func(s httpstream.Stream) {
		if s.Headers().Get("streamType") == "data" {
			_, _ = io.Copy(s, s)
		}
		_ = s.Close()
	})
	s := start(t, func(c *apiserver.Config) { c.Nodes = k })
	s.runningPod(t, "p", "c")
	rt, upgrader, err := spdy.RoundTripperFor(s.config)
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(s.url + "/api/v1/namespaces/default/pods/p/portforward")
	if err != nil {
		t.Fatal(err)
	}
	stop, ready := make(chan struct{}), make(chan struct{})
	var out, errOut bytes.Buffer
	f, err := portforward.NewOnAddresses(spdy.NewDialer(upgrader, &http.Client{Transport: rt}, "POST", u), []string{"127.0.0.1"}, []string{"0:80"}, stop, ready, &out, &errOut)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := f.ForwardPorts(); err != nil {
			t.Errorf("forward: %v", err)
		}
	})
	defer wg.Wait()
	defer close(stop)
	select {
	case <-ready:
	case <-time.After(10 * time.Second):
		t.Fatalf("not ready: %s", errOut.String())
	}
	ports, err := f.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports[0].Local))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	message := bytes.Repeat([]byte("0123456789"), 50000)
	go func() { _, _ = conn.Write(message) }()
	got := make([]byte, len(message))
	if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, message) {
		t.Fatalf("echo: %v", err)
	}
}

func TestExecFallsBackToSPDY(t *testing.T) {
	k := streams(t, "v4.channel.k8s.io", func(s httpstream.Stream) {
		if s.Headers().Get("streamType") == "stdout" {
			_, _ = io.WriteString(s, "from the container")
		}
		_ = s.Close()
	})
	s := start(t, func(c *apiserver.Config) { c.Nodes = k })
	s.runningPod(t, "p", "c")
	u, err := url.Parse(s.url + "/api/v1/namespaces/default/pods/p/exec?stdout=true&command=sh")
	if err != nil {
		t.Fatal(err)
	}
	ws, err := remotecommand.NewWebSocketExecutor(s.config, "GET", u.String())
	if err != nil {
		t.Fatal(err)
	}
	old, err := remotecommand.NewSPDYExecutor(s.config, "POST", u)
	if err != nil {
		t.Fatal(err)
	}
	exec, err := remotecommand.NewFallbackExecutor(ws, old, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := exec.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: &out}); err != nil || out.String() != "from the container" {
		t.Fatalf("%q %v", out.String(), err)
	}
}
