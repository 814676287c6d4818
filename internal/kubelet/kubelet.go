// Package kubelet runs the pods that are bound to this node. It watches them and
// gives each to an actor (package pod), admits new ones, takes over what already
// runs after a restart, forwards the runtime's events, and serves the node's HTTP
// API. It reaches the cluster through package client and containers only through
// the CRI. It does not schedule, and does not set up networks: the runtime does.
package kubelet

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/kubelet/cri"
	"github.com/proa-dev/proa/internal/kubelet/image"
	"github.com/proa-dev/proa/internal/kubelet/logs"
	"github.com/proa-dev/proa/internal/kubelet/node"
	"github.com/proa-dev/proa/internal/kubelet/pod"
	"github.com/proa-dev/proa/internal/kubelet/server"
	"github.com/proa-dev/proa/internal/kubelet/source"
	"github.com/proa-dev/proa/internal/kubelet/volume"
)

// Recorder records events about objects.
type Recorder interface {
	Eventf(obj client.Object, eventType, reason, format string, args ...any)
}

// FieldRecorder is a Recorder that can say which part of an object an event is
// about ("spec.containers{web}").
type FieldRecorder interface {
	EventFieldf(obj client.Object, fieldPath, eventType, reason, format string, args ...any)
}

// Config of a kubelet.
type Config struct {
	NodeName string
	// NodeIPs are the node's addresses, the primary one first.
	NodeIPs []string
	Client  client.Interface
	Runtime cri.Runtime
	Images  cri.Images
	// RootDir is the state directory (pods/<uid>/…), LogDir that of containers' logs.
	RootDir, LogDir string
	// CgroupRoot is the cgroup that kubepods is in: "", or /name.
	CgroupRoot string
	// ImageRoot is where the runtime keeps images, to watch its disk ("": RootDir).
	ImageRoot     string
	ClusterDNS    []string
	ClusterDomain string
	// ResolvConf is the node's ("": /etc/resolv.conf).
	ResolvConf string
	MaxPods    int64
	Labels     map[string]string
	Taints     []corev1.Taint
	Reserved   corev1.ResourceList
	// CPUs and Memory replace what the machine says when set.
	CPUs, Memory int64
	Version      string

	// Listen is the address of the HTTPS server ("" for none), TLS its certificate
	// and client CA. Authorize says whether a request (its client certificate is
	// verified when present) may be served.
	Listen    string
	TLS       *tls.Config
	Authorize func(*http.Request) error

	Recorder Recorder
	Logger   *slog.Logger

	// NoMounts: memory-backed volumes stay on disk. For tests without privileges.
	NoMounts bool
}

// Kubelet is one node.
type Kubelet struct {
	cfg     Config
	log     *slog.Logger
	node    *node.Node
	deps    pod.Deps
	volumes *volume.Volumes
	users   *pod.Users
	rotator *logs.Rotator
	ready   chan struct{} // the runtime is ready
	synced  chan struct{}

	services client.Typed[*corev1.Service]

	mu     sync.Mutex
	actors map[types.UID]*entry
	found  map[types.UID]*pod.Found
	early  map[types.UID][]*runtimeapi.ContainerEventResponse
	wg     sync.WaitGroup
	evict  time.Time
}

type entry struct {
	actor   *pod.Actor
	pod     *corev1.Pod // as admitted: for the sum of requests
	settled bool
}

// New checks the configuration and reads the machine.
func New(cfg Config) (*Kubelet, error) {
	if cfg.NodeName == "" || cfg.Client == nil || cfg.Runtime == nil || cfg.Images == nil || cfg.RootDir == "" || cfg.LogDir == "" || cfg.Logger == nil {
		return nil, errors.New("kubelet: NodeName, Client, Runtime, Images, RootDir, LogDir and Logger are required")
	}
	if cfg.ClusterDomain == "" {
		cfg.ClusterDomain = "cluster.local"
	}
	if cfg.Version == "" {
		cfg.Version = "v1.37.2"
	}
	if cfg.ResolvConf == "" {
		cfg.ResolvConf = "/etc/resolv.conf"
	}
	for _, d := range []string{cfg.RootDir, filepath.Join(cfg.RootDir, "pods")} {
		if err := os.MkdirAll(d, 0o711); err != nil {
			return nil, fmt.Errorf("kubelet: making the state directory: %w", err)
		}
	}
	if err := os.MkdirAll(cfg.LogDir, 0o755); err != nil {
		return nil, fmt.Errorf("kubelet: making the log directory: %w", err)
	}
	k := &Kubelet{
		cfg: cfg, log: cfg.Logger,
		ready: make(chan struct{}), synced: make(chan struct{}),
		actors: map[types.UID]*entry{}, found: map[types.UID]*pod.Found{},
		early: map[types.UID][]*runtimeapi.ContainerEventResponse{},
	}
	n, err := node.New(node.Config{
		Name: cfg.NodeName, IPs: cfg.NodeIPs, Client: cfg.Client, Runtime: cfg.Runtime, Images: cfg.Images,
		Machine: node.Machine{Root: cfg.RootDir, ImageRoot: cfg.ImageRoot, CPUs: cfg.CPUs, Memory: cfg.Memory},
		MaxPods: cfg.MaxPods, Port: portOf(cfg.Listen), Version: cfg.Version, Labels: cfg.Labels, Taints: cfg.Taints, Reserved: cfg.Reserved,
		Event: func(o *corev1.Node, eventType, reason, format string, args ...any) {
			if cfg.Recorder != nil && o != nil {
				cfg.Recorder.Eventf(o, eventType, reason, format, args...)
			}
		},
		OnPressure:   k.pressure,
		RuntimeReady: sync.OnceFunc(func() { close(k.ready) }),
		Logger:       cfg.Logger,
	})
	if err != nil {
		return nil, fmt.Errorf("kubelet: %w", err)
	}
	k.node = n
	sources := source.New(cfg.Client)
	k.volumes = volume.New(volume.Config{
		RootDir: cfg.RootDir, Client: cfg.Client, Sources: sources, HostIPs: cfg.NodeIPs,
		Allocatable: n.Allocatable, Logger: cfg.Logger, NoMounts: cfg.NoMounts,
	})
	k.users = pod.NewUsers(k.volumes.PodDir)
	k.services = client.Services.Informer(cfg.Client, client.Scope{})
	k.rotator = logs.NewRotator(cfg.Runtime, cfg.Logger)
	capacity := n.Capacity()
	k.deps = pod.Deps{
		HostIPs: cfg.NodeIPs, Client: cfg.Client, Runtime: cfg.Runtime,
		Images:  image.New(cfg.Images, filepath.Join(cfg.RootDir, "image-pulls.json"), k.event, n.ImagesChanged, cfg.Logger),
		Volumes: k.volumes, Sources: sources, Users: k.users,
		ClusterDNS: cfg.ClusterDNS, ClusterDomain: cfg.ClusterDomain, ResolvConf: cfg.ResolvConf,
		RootDir: cfg.RootDir, LogDir: cfg.LogDir,
		UserAgent: userAgent(cfg.Version), CgroupRoot: cfg.CgroupRoot, CgroupV2: pod.IsCgroupV2(), MemoryCapacity: capacity.Memory().Value(),
		Allocatable: n.Allocatable, RecursiveReadOnly: k.recursiveReadOnly, Services: k.servicesOf, Event: k.event, TailLog: logs.Tail,
		RuntimeHandler: k.runtimeHandler, Settled: k.settled, Ended: k.ended, Logger: cfg.Logger,
	}
	return k, nil
}

func portOf(listen string) int32 {
	i := strings.LastIndexByte(listen, ':')
	n, err := strconv.ParseInt(listen[i+1:], 10, 32)
	if err != nil || n == 0 {
		return 10250
	}
	return int32(n)
}

// userAgent of probes: "kube-probe/1.37".
func userAgent(version string) string {
	parts := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
	return "kube-probe/" + strings.Join(parts[:min(2, len(parts))], ".")
}

func (k *Kubelet) event(p *corev1.Pod, container, eventType, reason, format string, args ...any) {
	if k.cfg.Recorder == nil || p == nil {
		return
	}
	if f, ok := k.cfg.Recorder.(FieldRecorder); ok && container != "" {
		f.EventFieldf(p, fieldPath(p, container), eventType, reason, format, args...)
		return
	}
	k.cfg.Recorder.Eventf(p, eventType, reason, format, args...)
}

func fieldPath(p *corev1.Pod, container string) string {
	for i := range p.Spec.InitContainers {
		if p.Spec.InitContainers[i].Name == container {
			return "spec.initContainers{" + container + "}"
		}
	}
	for i := range p.Spec.EphemeralContainers {
		if p.Spec.EphemeralContainers[i].Name == container {
			return "spec.ephemeralContainers{" + container + "}"
		}
	}
	return "spec.containers{" + container + "}"
}

func (k *Kubelet) servicesOf(namespace string) (own, all []*corev1.Service) {
	own = k.services.List(namespace, nil)
	if s, ok := k.services.Get(corev1.NamespaceDefault, "kubernetes"); ok {
		all = append(all, s)
	}
	return own, all
}

// recursiveReadOnly reports whether the default runtime handler has such mounts.
func (k *Kubelet) recursiveReadOnly() bool {
	n := k.node.Object()
	if n == nil {
		return false
	}
	for _, h := range n.Status.RuntimeHandlers {
		if h.Name == "" && h.Features != nil && h.Features.RecursiveReadOnlyMounts != nil {
			return *h.Features.RecursiveReadOnlyMounts
		}
	}
	return false
}

func (k *Kubelet) runtimeHandler(ctx context.Context, class string) (string, error) {
	gvr := schema.GroupVersionResource{Group: "node.k8s.io", Version: "v1", Resource: "runtimeclasses"}
	o, err := k.cfg.Client.Get(ctx, gvr, "", class)
	if apierrors.IsNotFound(err) {
		return "", fmt.Errorf("failed to get sandbox runtime: no such RuntimeClass %q", class)
	}
	if err != nil {
		return "", fmt.Errorf("failed to get sandbox runtime: %w", err)
	}
	rc, ok := o.(*nodev1.RuntimeClass)
	if !ok {
		return "", fmt.Errorf("failed to get sandbox runtime: RuntimeClass %q is a %T", class, o)
	}
	return rc.Handler, nil
}

// Run is the kubelet's life. Containers keep running when ctx ends.
func (k *Kubelet) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make(chan error, 4)
	run := func(name string, f func(context.Context) error) {
		k.wg.Go(func() {
			if err := f(ctx); err != nil && ctx.Err() == nil {
				select {
				case errs <- fmt.Errorf("kubelet: %s: %w", name, err):
				default:
				}
			}
		})
	}
	run("node", k.node.Run)
	run("pods", k.runPods)
	if k.cfg.Listen != "" {
		srv := server.New(server.Config{
			Listen: k.cfg.Listen, TLS: k.cfg.TLS, Authorize: k.cfg.Authorize, Runtime: k.cfg.Runtime, Images: k.cfg.Images,
			Pods: k.snapshots, NodeName: k.cfg.NodeName, RootDir: k.cfg.RootDir, LogDir: k.cfg.LogDir,
			Config: k.configz(), Version: k.cfg.Version, Logger: k.log,
		})
		run("server", srv.Run)
	}
	run("housekeeping", k.housekeeping)
	var err error
	select {
	case <-ctx.Done():
		err = ctx.Err()
	case err = <-errs:
	}
	cancel()
	k.wg.Wait()
	k.deps.Sources.Wait()
	return err
}

// Synced is closed when the pods of the node are known.
func (k *Kubelet) Synced() <-chan struct{} { return k.synced }

// runPods takes over what runs, then follows the pods of this node.
func (k *Kubelet) runPods(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-k.ready:
	}
	if err := k.services.WaitSynced(ctx); err != nil {
		return err
	}
	streaming := make(chan struct{})
	k.wg.Go(func() { k.follow(ctx, sync.OnceFunc(func() { close(streaming) })) })
	// A runtime that does not say when its stream is served is caught by the relist
	// after the start.
	t := time.NewTimer(20 * time.Millisecond)
	select {
	case <-streaming:
	case <-t.C:
	case <-ctx.Done():
	}
	t.Stop()
	if err := k.find(ctx); err != nil {
		return err
	}
	inf := client.Pods.Informer(k.cfg.Client, client.Scope{NodeName: k.cfg.NodeName})
	return inf.Watch(ctx, func(e client.Event) {
		if e.Type == client.Synced {
			k.onSynced(ctx)
			return
		}
		p, ok := e.Object.(*corev1.Pod)
		if !ok || p.Spec.NodeName != k.cfg.NodeName {
			return
		}
		if e.Type == client.Deleted {
			k.onDeleted(p)
			return
		}
		k.onPod(ctx, p)
	})
}

func (k *Kubelet) onPod(ctx context.Context, p *corev1.Pod) {
	k.mu.Lock()
	e := k.actors[p.UID]
	if e != nil {
		k.mu.Unlock()
		e.actor.Update(p)
		return
	}
	found := k.found[p.UID]
	delete(k.found, p.UID)
	var rejected *pod.Rejection
	fresh := found == nil && p.DeletionTimestamp == nil && !terminal(p)
	if fresh {
		rejected = k.admit(p)
	}
	a := pod.New(&k.deps, p, found, rejected)
	k.actors[p.UID] = &entry{actor: a, pod: p, settled: rejected != nil || terminal(p)}
	early := k.early[p.UID]
	delete(k.early, p.UID)
	k.mu.Unlock()
	if rejected != nil {
		k.event(p, "", corev1.EventTypeWarning, rejected.Reason, "%s", rejected.Message)
	}
	for _, ev := range early {
		a.Event(ev)
	}
	k.wg.Go(func() { a.Run(ctx) })
}

func terminal(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

func (k *Kubelet) onDeleted(p *corev1.Pod) {
	k.mu.Lock()
	e := k.actors[p.UID]
	k.mu.Unlock()
	if e != nil {
		e.actor.Gone(p)
	}
}

// onSynced ends what the API does not know: pods deleted while nobody looked.
func (k *Kubelet) onSynced(ctx context.Context) {
	select {
	case <-k.synced:
		return
	default:
	}
	k.mu.Lock()
	orphans := k.found
	k.found, k.early = map[types.UID]*pod.Found{}, nil
	var actors []*pod.Actor
	for uid, f := range orphans {
		namespace, name := namesOf(f)
		a := pod.Orphan(&k.deps, namespace, name, uid, f)
		k.actors[uid] = &entry{actor: a, settled: true}
		actors = append(actors, a)
	}
	dirs, err := k.volumes.Pods()
	var stale []types.UID
	for _, uid := range dirs {
		if k.actors[uid] == nil {
			stale = append(stale, uid)
		}
	}
	k.mu.Unlock()
	if err != nil {
		k.log.Warn("listing the directories of pods", "err", err)
	}
	for _, a := range actors {
		k.wg.Go(func() { a.Run(ctx) })
	}
	k.wg.Go(func() {
		for _, uid := range stale {
			if err := k.volumes.Remove(uid); err != nil {
				k.log.Warn("removing the directory of a pod that is gone", "uid", uid, "err", err)
			}
		}
	})
	close(k.synced)
}

func namesOf(f *pod.Found) (namespace, name string) {
	for _, s := range f.Sandboxes {
		return s.Metadata.GetNamespace(), s.Metadata.GetName()
	}
	for _, c := range f.Containers {
		return c.Status.Labels[cri.LabelPodNamespace], c.Status.Labels[cri.LabelPodName]
	}
	return "", ""
}

func (k *Kubelet) settled(uid types.UID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if e := k.actors[uid]; e != nil {
		e.settled = true
	}
}

func (k *Kubelet) ended(uid types.UID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.actors, uid)
}

// snapshots returns what the actors know.
func (k *Kubelet) snapshots() []*pod.Snapshot {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := make([]*pod.Snapshot, 0, len(k.actors))
	for _, e := range k.actors {
		out = append(out, e.actor.Snapshot())
	}
	return out
}
