package hook

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func TestHTTP(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/ok", func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write([]byte(r.Header.Get("User-Agent") + " " + r.Header.Get("X-A") + " " + r.Host))
	})
	mux.HandleFunc("/big", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 1<<20)) })
	mux.HandleFunc("/bad", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", 500) })
	mux.HandleFunc("/here", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/bad", http.StatusFound) })
	mux.HandleFunc("/away", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://example.invalid/", http.StatusFound)
	})
	mux.HandleFunc("/slow", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	srv := httptest.NewServer(mux)
	defer srv.Close()
	_, port, _ := net.SplitHostPort(srv.Listener.Addr().String())
	n, _ := strconv.Atoi(port)
	target := Target{PodIP: "127.0.0.1", UserAgent: "kube-probe/1.37", Container: &corev1.Container{Name: "c", Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: int32(n)}}}}
	for _, tc := range []struct {
		path string
		want Outcome
		text string
	}{
		{"/ok", Success, "kube-probe/1.37 b app.local"},
		{"/bad", Failure, "HTTP probe failed with statuscode: 500"},
		{"/here", Failure, "HTTP probe failed with statuscode: 500"},
		{"/away", Warning, "Probe terminated redirects, Response body: "},
		{"/slow", Failure, "context deadline exceeded"},
	} {
		a := &corev1.HTTPGetAction{Path: tc.path, Port: intstr.FromString("web"), HTTPHeaders: []corev1.HTTPHeader{{Name: "X-A", Value: "b"}, {Name: "Host", Value: "app.local"}}}
		got, text, err := HTTP(context.Background(), target, a, 200*time.Millisecond)
		if err != nil || got != tc.want || !strings.Contains(text, tc.text) {
			t.Errorf("%s: %v %q %v", tc.path, got, text, err)
		}
	}
	if _, text, _ := HTTP(context.Background(), target, &corev1.HTTPGetAction{Path: "/big", Port: intstr.FromInt32(int32(n))}, time.Second); len(text) != BodyLimit {
		t.Errorf("read %d bytes", len(text))
	}
	if _, _, err := HTTP(context.Background(), target, &corev1.HTTPGetAction{Path: "/", Port: intstr.FromString("none")}, time.Second); err == nil {
		t.Error("an unknown port name was accepted")
	}
	if got, _, err := TCP(context.Background(), target, &corev1.TCPSocketAction{Port: intstr.FromString("web")}, time.Second); got != Success || err != nil {
		t.Errorf("tcp: %v %v", got, err)
	}
	srv.Close()
	if got, _, err := TCP(context.Background(), target, &corev1.TCPSocketAction{Port: intstr.FromString("web")}, time.Second); got != Failure || err != nil {
		t.Errorf("tcp to a closed port: %v %v", got, err)
	}
}
