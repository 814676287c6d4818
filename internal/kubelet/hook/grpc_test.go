package hook

import (
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"
)

func TestGRPC(t *testing.T) {
	serve := func(register func(*grpc.Server)) int32 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := grpc.NewServer()
		register(s)
		done := make(chan struct{})
		go func() { defer close(done); _ = s.Serve(l) }()
		t.Cleanup(func() { s.Stop(); <-done })
		return int32(l.Addr().(*net.TCPAddr).Port)
	}
	state := health.NewServer()
	state.SetServingStatus("up", healthpb.HealthCheckResponse_SERVING)
	state.SetServingStatus("down", healthpb.HealthCheckResponse_NOT_SERVING)
	with := serve(func(s *grpc.Server) { healthpb.RegisterHealthServer(s, state) })
	without := serve(func(*grpc.Server) {})
	silent, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for _, x := range []struct {
		name    string
		port    int32
		service *string
		want    Outcome
		text    string
	}{
		{"the whole server", with, nil, Success, "service healthy"},
		{"a service that is up", with, ptr.To("up"), Success, "service healthy"},
		{"a service that is down", with, ptr.To("down"), Failure, `service unhealthy (responded with "NOT_SERVING")`},
		{"a service that is not there", with, ptr.To("none"), Failure, "health rpc probe failed"},
		{"a server that does not speak of health", without, nil, Failure, "does not implement the grpc health protocol"},
		{"a server that says nothing", int32(silent.Addr().(*net.TCPAddr).Port), nil, Failure, "timeout: failed to connect service"},
		{"nobody", 1, nil, Failure, "timeout: failed to connect service"},
	} {
		t.Run(x.name, func(t *testing.T) {
			start := time.Now()
			got, text, err := GRPC(t.Context(), Target{PodIP: "127.0.0.1", UserAgent: "kube-probe/1.37"}, &corev1.GRPCAction{Port: x.port, Service: x.service}, 300*time.Millisecond)
			if err != nil || got != x.want || !strings.Contains(text, x.text) {
				t.Errorf("%v %q %v", got, text, err)
			}
			if took := time.Since(start); took > 3*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}
