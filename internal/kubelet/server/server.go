// Package server is the HTTPS API of a node: logs, exec, attach, port-forward,
// pods, statistics and metrics. Every request but /healthz passes the hook that
// authorizes it. Streams are proxied byte for byte to the runtime's streaming
// server; this package speaks neither SPDY nor the WebSocket subprotocols.
package server

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/proa-dev/proa/internal/kubelet/cri"
	"github.com/proa-dev/proa/internal/kubelet/logs"
	"github.com/proa-dev/proa/internal/kubelet/pod"
)

// Config of New.
type Config struct {
	Listen          string
	TLS             *tls.Config
	Authorize       func(*http.Request) error
	Runtime         cri.Runtime
	Images          cri.Images
	Pods            func() []*pod.Snapshot
	NodeName        string
	RootDir, LogDir string
	Config          any
	Version         string
	Logger          *slog.Logger
}

// Server serves one node.
type Server struct {
	cfg Config
	mux *http.ServeMux
	cpu cpuRates
}

func New(cfg Config) *Server {
	s := &Server{cfg: cfg, mux: http.NewServeMux(), cpu: cpuRates{last: map[string]cpuSample{}}}
	m := s.mux
	ok := func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok")) }
	m.HandleFunc("/healthz", ok)
	m.HandleFunc("/healthz/ping", ok)
	m.HandleFunc("/healthz/log", ok)
	m.HandleFunc("/healthz/syncloop", ok)
	m.HandleFunc("GET /pods", s.pods)
	m.HandleFunc("GET /pods/{$}", s.pods)
	m.HandleFunc("GET /runningpods/", s.runningPods)
	m.HandleFunc("GET /runningpods", s.runningPods)
	m.HandleFunc("GET /configz", func(w http.ResponseWriter, _ *http.Request) { s.json(w, s.cfg.Config) })
	m.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", s.logs)
	m.HandleFunc("GET /stats/summary", s.summary)
	m.HandleFunc("POST /stats/summary", s.summary)
	m.HandleFunc("GET /metrics", s.metrics)
	m.HandleFunc("GET /metrics/resource", s.resourceMetrics)
	m.HandleFunc("GET /metrics/cadvisor", s.cadvisorMetrics)
	m.HandleFunc("GET /metrics/probes", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Type", metricsType) })
	for _, p := range []string{"/exec/{namespace}/{pod}/{container}", "/exec/{namespace}/{pod}/{uid}/{container}"} {
		m.HandleFunc("GET "+p, s.exec)
		m.HandleFunc("POST "+p, s.exec)
	}
	for _, p := range []string{"/attach/{namespace}/{pod}/{container}", "/attach/{namespace}/{pod}/{uid}/{container}"} {
		m.HandleFunc("GET "+p, s.attach)
		m.HandleFunc("POST "+p, s.attach)
	}
	for _, p := range []string{"/portForward/{namespace}/{pod}", "/portForward/{namespace}/{pod}/{uid}"} {
		m.HandleFunc("GET "+p, s.portForward)
		m.HandleFunc("POST "+p, s.portForward)
	}
	for _, p := range []string{"/run/{namespace}/{pod}/{container}", "/run/{namespace}/{pod}/{uid}/{container}"} {
		m.HandleFunc("POST "+p, s.run)
	}
	return s
}

// ServeHTTP checks the right to do it, then does it.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/healthz" {
		if s.cfg.Authorize == nil {
			http.Error(w, "Forbidden: the node has no authorizer", http.StatusForbidden)
			return
		}
		if err := s.cfg.Authorize(r); err != nil {
			code := http.StatusForbidden
			if r.TLS != nil && len(r.TLS.VerifiedChains) == 0 && r.Header.Get("Authorization") == "" {
				code = http.StatusUnauthorized
			}
			http.Error(w, err.Error(), code)
			return
		}
	}
	s.mux.ServeHTTP(w, r)
}

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	if s.cfg.TLS == nil {
		return errors.New("the node's server needs a certificate")
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.cfg.Listen)
	if err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	// Streams are hijacked connections: HTTP/1.1 only.
	conf := s.cfg.TLS.Clone()
	conf.NextProtos = []string{"http/1.1"}
	srv := &http.Server{
		Handler: s, TLSConfig: conf, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 90 * time.Second,
		BaseContext:  func(net.Listener) context.Context { return ctx },
		ErrorLog:     slog.NewLogLogger(s.cfg.Logger.Handler(), slog.LevelDebug),
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		<-ctx.Done()
		srv.Close()
	}()
	err = srv.Serve(tls.NewListener(l, conf))
	if ctx.Err() != nil {
		<-done
		return ctx.Err()
	}
	return err
}

func (s *Server) json(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		s.cfg.Logger.Debug("writing an answer", "err", err)
	}
}

func (s *Server) pods(w http.ResponseWriter, _ *http.Request) {
	list := corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}, Items: []corev1.Pod{}}
	for _, p := range s.sorted() {
		list.Items = append(list.Items, *p.Pod)
	}
	s.json(w, &list)
}

func (s *Server) runningPods(w http.ResponseWriter, _ *http.Request) {
	list := corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}, Items: []corev1.Pod{}}
	for _, p := range s.sorted() {
		if !p.Running {
			continue
		}
		out := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: p.Pod.Name, Namespace: p.Pod.Namespace, UID: p.Pod.UID}}
		for _, name := range sortedKeys(p.Containers) {
			l := p.Containers[name]
			if len(l) > 0 && l[0].State == runtimeapi.ContainerState_CONTAINER_RUNNING {
				out.Spec.Containers = append(out.Spec.Containers, corev1.Container{Name: name})
			}
		}
		list.Items = append(list.Items, out)
	}
	s.json(w, &list)
}

func (s *Server) sorted() []*pod.Snapshot {
	all := s.cfg.Pods()
	slices.SortFunc(all, func(a, b *pod.Snapshot) int {
		return strings.Compare(a.Pod.Namespace+"/"+a.Pod.Name, b.Pod.Namespace+"/"+b.Pod.Name)
	})
	return all
}

// find returns the pod of a request, the one that runs if there are two of a name.
func (s *Server) find(r *http.Request) *pod.Snapshot {
	ns, name, uid := r.PathValue("namespace"), r.PathValue("pod"), r.PathValue("uid")
	var best *pod.Snapshot
	for _, p := range s.cfg.Pods() {
		if p.Pod.Namespace != ns || p.Pod.Name != name || (uid != "" && string(p.Pod.UID) != uid) {
			continue
		}
		if best == nil || (p.Running && !best.Running) || p.Pod.CreationTimestamp.After(best.Pod.CreationTimestamp.Time) {
			best = p
		}
	}
	return best
}

func (s *Server) logs(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("container")
	p := s.find(r)
	if p == nil {
		http.Error(w, fmt.Sprintf("pod %q does not exist", r.PathValue("pod")), http.StatusNotFound)
		return
	}
	st, known := containerStatus(p.Pod, name)
	if !known {
		http.Error(w, fmt.Sprintf("container %q not found in pod %q", name, p.Pod.Name), http.StatusNotFound)
		return
	}
	q := r.URL.Query()
	o, previous, err := logOptions(q.Get)
	if err != nil {
		http.Error(w, err.Error(), http.StatusUnprocessableEntity)
		return
	}
	id, err := logContainer(p.Pod.Name, name, st, previous)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	var info *pod.ContainerInfo
	for i := range p.Containers[name] {
		if p.Containers[name][i].ID == id {
			info = &p.Containers[name][i]
		}
	}
	if info == nil {
		http.Error(w, fmt.Sprintf("unable to retrieve container logs for %s", st.ContainerID), http.StatusBadRequest)
		return
	}
	path := info.LogPath
	if path == "" {
		path = filepath.Join(s.cfg.LogDir, p.Pod.Namespace+"_"+p.Pod.Name+"_"+string(p.Pod.UID), name, strconv.FormatUint(uint64(info.Attempt), 10)+".log")
	}
	running := func() bool {
		now := s.find(r)
		if now == nil || now.Pod.UID != p.Pod.UID {
			return false
		}
		for _, c := range now.Containers[name] {
			if c.ID == id {
				return c.State == runtimeapi.ContainerState_CONTAINER_RUNNING
			}
		}
		return false
	}
	w.Header().Set("Content-Type", "text/plain")
	out := &logWriter{w: w}
	if o.Follow {
		w.Header().Set("Transfer-Encoding", "chunked")
		out.flusher, _ = w.(http.Flusher)
		out.Flush()
	}
	err = logs.Read(r.Context(), s.cfg.LogDir, path, o, running, out)
	if err != nil && !out.wrote && r.Context().Err() == nil {
		if errors.Is(err, fs.ErrNotExist) {
			http.Error(w, fmt.Sprintf("unable to retrieve container logs for %s", st.ContainerID), http.StatusBadRequest)
			return
		}
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

type logWriter struct {
	w       http.ResponseWriter
	flusher http.Flusher
	wrote   bool
}

func (l *logWriter) Write(b []byte) (int, error) {
	l.wrote = true
	return l.w.Write(b)
}

func (l *logWriter) Flush() {
	if l.flusher != nil {
		l.flusher.Flush()
	}
}

func isTrue(v string) bool {
	b, err := strconv.ParseBool(v)
	return err == nil && b
}

// logOptions reads PodLogOptions from the query.
func logOptions(get func(string) string) (logs.Options, bool, error) {
	o := logs.Options{Follow: isTrue(get("follow")), Timestamps: isTrue(get("timestamps")), Tail: -1}
	if v := cmpOr(get("tailLines"), get("tail")); v != "" && v != "all" {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || n < 0 {
			return o, false, fmt.Errorf("tailLines: Invalid value: %q: must be greater than or equal to 0", v)
		}
		o.Tail = n
	}
	if v := get("limitBytes"); v != "" {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || n < 1 {
			return o, false, fmt.Errorf("limitBytes: Invalid value: %q: must be greater than 0", v)
		}
		o.Limit = n
	}
	switch since, at := get("sinceSeconds"), get("sinceTime"); {
	case since != "" && at != "":
		return o, false, errors.New("at most one of `sinceTime` or `sinceSeconds` may be specified")
	case since != "":
		n, err := strconv.ParseInt(since, 10, 64)
		if err != nil || n < 1 {
			return o, false, fmt.Errorf("sinceSeconds: Invalid value: %q: must be greater than 0", since)
		}
		o.Since = time.Now().Add(-time.Duration(n) * time.Second)
	case at != "":
		t, err := time.Parse(time.RFC3339, at)
		if err != nil {
			return o, false, fmt.Errorf("sinceTime: Invalid value: %q", at)
		}
		o.Since = t
	}
	switch v := get("stream"); v {
	case "", corev1.LogStreamAll:
	case corev1.LogStreamStdout, corev1.LogStreamStderr:
		if o.Tail >= 0 {
			return o, false, errors.New("`tailLines` and specific `stream` are mutually exclusive for now")
		}
		o.Stream = strings.ToLower(v)
	default:
		return o, false, fmt.Errorf("stream: Unsupported value: %q: supported values: \"All\", \"Stdout\", \"Stderr\"", v)
	}
	return o, isTrue(get("previous")), nil
}

func cmpOr(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// containerStatus finds a container of the spec and its status (nil: none yet).
func containerStatus(p *corev1.Pod, name string) (*corev1.ContainerStatus, bool) {
	known := false
	for _, l := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range l {
			known = known || l[i].Name == name
		}
	}
	for i := range p.Spec.EphemeralContainers {
		known = known || p.Spec.EphemeralContainers[i].Name == name
	}
	for _, l := range [][]corev1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses, p.Status.EphemeralContainerStatuses} {
		for i := range l {
			if l[i].Name == name {
				return &l[i], known
			}
		}
	}
	return &corev1.ContainerStatus{Name: name}, known
}

// logContainer says which instance's log is meant.
func logContainer(podName, name string, st *corev1.ContainerStatus, previous bool) (string, error) {
	last := st.LastTerminationState.Terminated
	id := ""
	switch {
	case previous:
		if last == nil || last.ContainerID == "" {
			return "", fmt.Errorf("previous terminated container %q in pod %q not found", name, podName)
		}
		id = last.ContainerID
	case st.State.Running != nil:
		id = st.ContainerID
	case st.State.Terminated != nil:
		id = st.State.Terminated.ContainerID
		if id == "" {
			if last == nil || last.ContainerID == "" {
				return "", fmt.Errorf("container %q in pod %q is terminated", name, podName)
			}
			id = last.ContainerID
		}
	case last != nil && last.ContainerID != "":
		id = last.ContainerID
	case st.State.Waiting != nil:
		reason := st.State.Waiting.Reason
		switch reason {
		case "ErrImagePull":
			reason = "image can't be pulled"
		case "ImagePullBackOff":
			reason = "trying and failing to pull image"
		}
		return "", fmt.Errorf("container %q in pod %q is waiting to start: %v", name, podName, reason)
	default:
		return "", fmt.Errorf("container %q in pod %q is waiting to start - no logs yet", name, podName)
	}
	_, after, ok := strings.Cut(id, "://")
	if !ok {
		after = id
	}
	return after, nil
}
