package apiserver_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	restclient "k8s.io/client-go/rest"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver/rest"
)

// The budgets beside docs/performance.md: get 0.05 ms, list of 10,000 pods 15 ms
// (protobuf) and 25 ms (JSON), create 0.1 ms of CPU; a watch event to one watcher
// 2 us. CPU is of the whole process, so clients are a part of what is reported.

func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// measure reports the CPU that an operation takes.
func measure(b *testing.B) func() {
	before := cpu()
	b.ResetTimer()
	return func() {
		b.StopTimer()
		b.ReportMetric(float64((cpu()-before).Microseconds())/float64(b.N), "cpu-us/op")
	}
}

func realPod(i int) *corev1.Pod {
	p := pod(fmt.Sprintf("pod-%05d", i))
	yes := true
	p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "web-5d4f8c", UID: "5a6d0b5c-6d6c-4b1e-9b1a-1b1c1d1e1f10", Controller: &yes, BlockOwnerDeletion: &yes}}
	p.Spec.NodeName = fmt.Sprintf("node-%d", i%100)
	c := &p.Spec.Containers[0]
	c.Env = []corev1.EnvVar{{Name: "A", Value: "some value"}, {Name: "B", Value: "another value"}}
	c.Ports = []corev1.ContainerPort{{ContainerPort: 8080, Name: "http"}}
	c.VolumeMounts = []corev1.VolumeMount{{Name: "token", MountPath: "/var/run/secrets/kubernetes.io/serviceaccount", ReadOnly: true}}
	p.Spec.Volumes = []corev1.Volume{{Name: "token", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
	return p
}

func (s *server) fill(b *testing.B, n int) {
	b.Helper()
	st, ok := s.registry.Storage(corev1.SchemeGroupVersion.WithResource("pods"))
	if !ok {
		b.Fatal("no pods")
	}
	for i := range n {
		if _, err := st.Create(context.Background(), "default", realPod(i), metav1.CreateOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}

func (s *server) raw(b *testing.B) *http.Client {
	b.Helper()
	c, err := restclient.HTTPClientFor(&restclient.Config{Host: s.url, TLSClientConfig: s.config.TLSClientConfig})
	if err != nil {
		b.Fatal(err)
	}
	return c
}

func read(b testing.TB, c *http.Client, url, accept string) int64 {
	req, err := http.NewRequest("GET", url, nil)
	if err != nil {
		b.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer admin")
	req.Header.Set("Accept", accept)
	resp, err := c.Do(req)
	if err != nil {
		b.Fatal(err)
	}
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	if err != nil || resp.StatusCode != 200 {
		b.Fatal(resp.Status, err)
	}
	return n
}

const protobufType = "application/vnd.kubernetes.protobuf"

func BenchmarkGetPod(b *testing.B) {
	s := start(b)
	s.fill(b, 1)
	c := s.raw(b)
	for _, accept := range []string{"application/json", protobufType} {
		b.Run(accept[len("application/"):], func(b *testing.B) {
			b.ReportAllocs()
			defer measure(b)()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					read(b, c, s.url+"/api/v1/namespaces/default/pods/pod-00000", accept)
				}
			})
		})
	}
}

// BenchmarkHandlerGet is GET without a network: what the request path itself costs.
func BenchmarkHandlerGet(b *testing.B) {
	s := start(b)
	s.fill(b, 1)
	req, err := http.NewRequest("GET", "/api/v1/namespaces/default/pods/pod-00000", nil)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.ResetTimer()
	for b.Loop() {
		req.Header = http.Header{"Authorization": {"Bearer admin"}, "Accept": {protobufType}}
		w := &nowhere{header: http.Header{}}
		s.api.ServeHTTP(w, req)
		if w.code != 200 {
			b.Fatal(w.code)
		}
	}
}

type nowhere struct {
	header http.Header
	code   int
}

func (w *nowhere) Header() http.Header         { return w.header }
func (w *nowhere) Write(p []byte) (int, error) { return len(p), nil }
func (w *nowhere) WriteHeader(code int)        { w.code = code }

func BenchmarkList10k(b *testing.B) {
	s := start(b)
	s.fill(b, 10000)
	c := s.raw(b)
	for _, accept := range []string{"application/json", protobufType} {
		b.Run(accept[len("application/"):], func(b *testing.B) {
			read(b, c, s.url+"/api/v1/pods", accept) // the first encodes
			b.ReportAllocs()
			defer measure(b)()
			for b.Loop() {
				b.SetBytes(read(b, c, s.url+"/api/v1/pods", accept))
			}
		})
	}
}

func BenchmarkCreateConfigMap(b *testing.B) {
	s := start(b)
	c := s.protobuf(b)
	var n atomic.Int64
	b.ReportAllocs()
	b.SetParallelism(16)
	defer measure(b)()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := c.CoreV1().ConfigMaps("default").Create(context.Background(), configMap(fmt.Sprintf("m-%d", n.Add(1))), metav1.CreateOptions{}); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// BenchmarkWatchFanout updates one object and waits until watchers have read it.
// One op is one update to all watchers.
func BenchmarkWatchFanout(b *testing.B) {
	const watchers = 300
	s := start(b)
	s.fill(b, 1)
	c := s.raw(b)
	var seen atomic.Int64
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	for range watchers {
		wg.Go(func() {
			req, err := http.NewRequestWithContext(ctx, "GET", s.url+"/api/v1/namespaces/default/pods?watch=1", nil)
			if err != nil {
				b.Error(err)
				return
			}
			req.Header.Set("Authorization", "Bearer admin")
			resp, err := c.Do(req)
			if err != nil {
				b.Error(err)
				return
			}
			defer resp.Body.Close()
			r := bufio.NewReaderSize(resp.Body, 64<<10)
			for {
				part, err := r.ReadSlice('\n')
				if err == bufio.ErrBufferFull {
					continue
				}
				if err != nil || len(part) == 0 {
					return
				}
				seen.Add(1)
			}
		})
	}
	defer wg.Wait()
	defer cancel()
	for seen.Load() < watchers { // every watcher has its initial event
		time.Sleep(time.Millisecond)
	}
	st, _ := s.registry.Storage(corev1.SchemeGroupVersion.WithResource("pods"))
	i := 0
	all := func() {
		for end := time.Now().Add(20 * time.Second); seen.Load() < int64(watchers*(i+1)); {
			if time.Now().After(end) {
				b.Fatalf("%d of %d events arrived", seen.Load(), watchers*(i+1))
			}
			time.Sleep(100 * time.Microsecond)
		}
	}
	defer measure(b)()
	for b.Loop() {
		i++
		_, _, err := st.Update(ctx, "default", "pod-00000", "", relabel(i), rest.UpdateOptions{})
		if err != nil {
			b.Fatal(err)
		}
		if i%50 == 0 { // a burst, as a rollout makes them
			all()
		}
	}
	all()
	b.ReportMetric(float64(watchers*b.N)/b.Elapsed().Seconds(), "events/s")
}

func relabel(i int) rest.Change {
	return func(_ context.Context, old api.Object) (api.Object, error) {
		old.SetLabels(map[string]string{"i": strconv.Itoa(i)})
		return old, nil
	}
}
