// Package node makes this machine a node of the cluster: it registers the Node
// object, keeps its status true, and renews its lease. Status is written when it
// has changed, and every five minutes; the lease says that the node is alive. It
// runs no pods.
package node

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/kubelet/cri"
)

const (
	leaseNamespace = corev1.NamespaceNodeLease
	leaseDuration  = 40 * time.Second
	// heartbeat is the period of the lease and of the look at the machine.
	heartbeat = 10 * time.Second
	// statusPeriod is when an unchanged status is written again.
	statusPeriod = 5 * time.Minute
	maxImages    = 50
)

// Config of New.
type Config struct {
	Name         string
	IPs          []string
	Client       client.Interface
	Runtime      cri.Runtime
	Images       cri.Images
	Machine      Machine
	MaxPods      int64
	Port         int32
	Version      string
	Labels       map[string]string
	Taints       []corev1.Taint
	Reserved     corev1.ResourceList
	Event        func(node *corev1.Node, eventType, reason, format string, args ...any)
	OnPressure   func(p Pressure)
	RuntimeReady func()
	Logger       *slog.Logger
}

// Pressure is what the node lacks.
type Pressure struct {
	Memory, Disk, PID bool
	// Available is the memory left when Memory is set.
	Available int64
}

// Node keeps one Node object.
type Node struct {
	cfg Config

	capacity, allocatable corev1.ResourceList
	info                  corev1.NodeSystemInfo
	handlers              []corev1.NodeRuntimeHandler
	features              *corev1.NodeFeatures

	mu      sync.Mutex
	current *corev1.Node
	images  []corev1.ContainerImage
	wake    chan struct{}
	last    Pressure
}

// New reads what the machine is. It does not talk to anybody.
func New(cfg Config) (*Node, error) {
	n := &Node{cfg: cfg, wake: make(chan struct{}, 1)}
	if cfg.MaxPods == 0 {
		n.cfg.MaxPods = 110
	}
	facts, err := cfg.Machine.Facts()
	if err != nil {
		return nil, fmt.Errorf("reading what this machine has: %w", err)
	}
	n.capacity = corev1.ResourceList{
		corev1.ResourceCPU:              *resource.NewQuantity(facts.CPUs, resource.DecimalSI),
		corev1.ResourceMemory:           *resource.NewQuantity(facts.Memory, resource.BinarySI),
		corev1.ResourceEphemeralStorage: *resource.NewQuantity(facts.Disk, resource.BinarySI),
		corev1.ResourcePods:             *resource.NewQuantity(n.cfg.MaxPods, resource.DecimalSI),
	}
	for size, bytes := range facts.HugePages {
		n.capacity[corev1.ResourceName(corev1.ResourceHugePagesPrefix+size)] = *resource.NewQuantity(bytes, resource.BinarySI)
	}
	n.allocatable = maps.Clone(n.capacity)
	take := func(r corev1.ResourceName, q resource.Quantity) {
		have := n.allocatable[r].DeepCopy()
		have.Sub(q)
		if have.Sign() < 0 {
			have = resource.Quantity{}
		}
		n.allocatable[r] = have
	}
	take(corev1.ResourceMemory, *resource.NewQuantity(memoryThreshold, resource.BinarySI))
	take(corev1.ResourceEphemeralStorage, *resource.NewQuantity(facts.Disk/10, resource.BinarySI))
	for r, q := range cfg.Reserved {
		take(r, q)
	}
	n.info = facts.Info
	n.info.KubeletVersion = cfg.Version
	n.info.OperatingSystem, n.info.Architecture = runtime.GOOS, runtime.GOARCH
	return n, nil
}

// Allocatable is what pods may use.
func (n *Node) Allocatable() corev1.ResourceList { return n.allocatable }

// Capacity is what the machine has.
func (n *Node) Capacity() corev1.ResourceList { return n.capacity }

// Object returns the node as last known (nil before it is registered).
func (n *Node) Object() *corev1.Node {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.current
}

// Pressure returns what the node lacked at the last look.
func (n *Node) Pressure() Pressure {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.last
}

// ImagesChanged makes the node list its images anew.
func (n *Node) ImagesChanged() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// Run registers the node and keeps it until ctx ends.
func (n *Node) Run(ctx context.Context) error {
	if err := n.register(ctx); err != nil {
		return err
	}
	n.cfg.Event(n.Object(), corev1.EventTypeNormal, "Starting", "Starting kubelet.")
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { n.follow(ctx) })
	wg.Go(func() { n.renew(ctx) })
	retry := 10 * time.Millisecond
	lastWrite := time.Time{}
	imagesAt := time.Time{}
	timer := time.NewTimer(0)
	defer timer.Stop()
	told := false
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		case <-n.wake:
			// Several pulls often end together.
			if !sleep(ctx, time.Second) {
				return ctx.Err()
			}
			imagesAt = time.Time{}
		}
		ready, reason := n.runtimeStatus(ctx)
		if !told && ready {
			told = true
			if n.cfg.RuntimeReady != nil {
				n.cfg.RuntimeReady()
			}
		}
		if ready && time.Since(imagesAt) > statusPeriod {
			n.listImages(ctx)
			imagesAt = time.Now()
		}
		p := n.pressure()
		if n.cfg.OnPressure != nil {
			n.cfg.OnPressure(p)
		}
		wrote, err := n.update(ctx, reason, p, time.Since(lastWrite) > statusPeriod)
		if err != nil && ctx.Err() == nil {
			n.cfg.Logger.Warn("updating the node's status", "err", err)
		}
		if wrote {
			lastWrite = time.Now()
		}
		next := heartbeat
		if !ready || err != nil {
			next = retry
			retry = min(2*retry, heartbeat)
		} else {
			retry = 10 * time.Millisecond
		}
		timer.Reset(next)
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

func (n *Node) labels() map[string]string {
	l := map[string]string{
		corev1.LabelHostname:      n.cfg.Name,
		corev1.LabelOSStable:      runtime.GOOS,
		corev1.LabelArchStable:    runtime.GOARCH,
		"beta.kubernetes.io/os":   runtime.GOOS,
		"beta.kubernetes.io/arch": runtime.GOARCH,
	}
	maps.Copy(l, n.cfg.Labels)
	return l
}

// register creates the object, or brings the labels of an existing one up to date.
func (n *Node) register(ctx context.Context) error {
	_, reason := n.runtimeStatus(ctx)
	delay := 10 * time.Millisecond
	for {
		err := n.tryRegister(ctx, reason)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		n.cfg.Logger.Warn("registering the node", "node", n.cfg.Name, "err", err)
		if !sleep(ctx, delay) {
			return ctx.Err()
		}
		delay = min(2*delay, 5*time.Second)
	}
}

func (n *Node) tryRegister(ctx context.Context, reason string) error {
	have, err := client.Nodes.Get(ctx, n.cfg.Client, "", n.cfg.Name)
	if apierrors.IsNotFound(err) {
		node := &corev1.Node{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
			ObjectMeta: metav1.ObjectMeta{
				Name: n.cfg.Name, Labels: n.labels(),
				Annotations: map[string]string{"volumes.kubernetes.io/controller-managed-attach-detach": "true"},
			},
			Spec: corev1.NodeSpec{Taints: n.cfg.Taints},
		}
		n.fill(&node.Status, nil, reason, n.pressure())
		have, err = client.Nodes.Create(ctx, n.cfg.Client, node)
		if err != nil {
			return fmt.Errorf("creating node %s: %w", n.cfg.Name, err)
		}
	} else if err != nil {
		return fmt.Errorf("looking up node %s: %w", n.cfg.Name, err)
	}
	changed := false
	if have.Labels == nil {
		have.Labels = map[string]string{}
	}
	for k, v := range n.labels() {
		if have.Labels[k] != v {
			have.Labels[k], changed = v, true
		}
	}
	if changed {
		if have, err = client.Nodes.Update(ctx, n.cfg.Client, have); err != nil {
			return fmt.Errorf("updating the labels of node %s: %w", n.cfg.Name, err)
		}
	}
	n.mu.Lock()
	n.current = have
	n.mu.Unlock()
	return nil
}

// follow keeps current the newest version: taints and labels are set by others.
func (n *Node) follow(ctx context.Context) {
	inf := client.Nodes.Informer(n.cfg.Client, client.Scope{Name: n.cfg.Name})
	_ = inf.Watch(ctx, func(e client.Event) {
		if e.Object == nil {
			return
		}
		node, ok := e.Object.(*corev1.Node)
		if !ok || node.Name != n.cfg.Name || e.Type == client.Deleted {
			return
		}
		n.mu.Lock()
		n.current = node
		n.mu.Unlock()
	})
}

// runtimeStatus asks the runtime how it is; reason is why the node is not ready.
func (n *Node) runtimeStatus(ctx context.Context) (ready bool, reason string) {
	st, err := n.cfg.Runtime.Status(ctx, &runtimeapi.StatusRequest{})
	if err != nil {
		return false, "container runtime is down: " + cri.ErrorText(err)
	}
	var problems []string
	ready = true
	for _, c := range st.GetStatus().GetConditions() {
		if c.Status {
			continue
		}
		switch c.Type {
		case runtimeapi.RuntimeReady:
			ready = false
			problems = append(problems, fmt.Sprintf("container runtime not ready: RuntimeReady=false reason:%s message:%s", c.Reason, c.Message))
		case runtimeapi.NetworkReady:
			ready = false
			problems = append(problems, fmt.Sprintf("container runtime network not ready: NetworkReady=false reason:%s message:%s", c.Reason, c.Message))
		}
	}
	if n.info.ContainerRuntimeVersion == "" {
		if v, err := n.cfg.Runtime.Version(ctx, &runtimeapi.VersionRequest{}); err == nil {
			n.info.ContainerRuntimeVersion = v.RuntimeName + "://" + v.RuntimeVersion
		}
	}
	n.handlers = nil
	for _, h := range st.RuntimeHandlers {
		out := corev1.NodeRuntimeHandler{Name: h.Name}
		if f := h.Features; f != nil {
			rro, uns := f.RecursiveReadOnlyMounts, f.UserNamespaces
			out.Features = &corev1.NodeRuntimeHandlerFeatures{RecursiveReadOnlyMounts: &rro, UserNamespaces: &uns}
		}
		n.handlers = append(n.handlers, out)
	}
	slices.SortFunc(n.handlers, func(a, b corev1.NodeRuntimeHandler) int { return strings.Compare(a.Name, b.Name) })
	if f := st.Features; f != nil {
		sgp := f.SupplementalGroupsPolicy
		n.features = &corev1.NodeFeatures{SupplementalGroupsPolicy: &sgp}
	}
	return ready, strings.Join(problems, ", ")
}

func (n *Node) listImages(ctx context.Context) {
	r, err := n.cfg.Images.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		n.cfg.Logger.Warn("listing images", "err", err)
		return
	}
	list := slices.Clone(r.Images)
	slices.SortStableFunc(list, func(a, b *runtimeapi.Image) int {
		switch {
		case a.Size != b.Size && a.Size > b.Size:
			return -1
		case a.Size != b.Size:
			return 1
		}
		return strings.Compare(a.Id, b.Id)
	})
	n.images = n.images[:0:0]
	for _, i := range list {
		if len(n.images) == maxImages {
			break
		}
		names := append(slices.Clone(i.RepoDigests), i.RepoTags...)
		if len(names) == 0 {
			continue
		}
		n.images = append(n.images, corev1.ContainerImage{Names: names[:min(len(names), 5)], SizeBytes: int64(i.Size)})
	}
}

// fill writes the status; old gives the transition times.
func (n *Node) fill(st *corev1.NodeStatus, old *corev1.NodeStatus, notReady string, p Pressure) {
	now := metav1.Time{Time: time.Now().Truncate(time.Second)}
	st.Capacity, st.Allocatable = n.mergeExtended(n.capacity, old, false), n.mergeExtended(n.allocatable, old, true)
	st.NodeInfo, st.Images = n.info, n.images
	if old != nil {
		st.NodeInfo.KubeProxyVersion = old.NodeInfo.KubeProxyVersion
	}
	st.Addresses = nil
	for _, ip := range n.cfg.IPs {
		st.Addresses = append(st.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: ip})
	}
	st.Addresses = append(st.Addresses, corev1.NodeAddress{Type: corev1.NodeHostName, Address: n.cfg.Name})
	st.DaemonEndpoints.KubeletEndpoint.Port = n.cfg.Port
	st.RuntimeHandlers, st.Features = n.handlers, n.features
	set := func(t corev1.NodeConditionType, status bool, reason, message string) {
		c := corev1.NodeCondition{Type: t, Status: corev1.ConditionFalse, Reason: reason, Message: message, LastHeartbeatTime: now, LastTransitionTime: now}
		if status {
			c.Status = corev1.ConditionTrue
		}
		for i := range st.Conditions {
			if st.Conditions[i].Type == t {
				if st.Conditions[i].Status == c.Status {
					c.LastTransitionTime = st.Conditions[i].LastTransitionTime
				}
				st.Conditions[i] = c
				return
			}
		}
		st.Conditions = append(st.Conditions, c)
	}
	pick := func(bad bool, t corev1.NodeConditionType, yes, yesMessage, no, noMessage string) {
		if bad {
			set(t, true, yes, yesMessage)
		} else {
			set(t, false, no, noMessage)
		}
	}
	pick(p.Memory, corev1.NodeMemoryPressure, "KubeletHasInsufficientMemory", "kubelet has insufficient memory available", "KubeletHasSufficientMemory", "kubelet has sufficient memory available")
	pick(p.Disk, corev1.NodeDiskPressure, "KubeletHasDiskPressure", "kubelet has disk pressure", "KubeletHasNoDiskPressure", "kubelet has no disk pressure")
	pick(p.PID, corev1.NodePIDPressure, "KubeletHasInsufficientPID", "kubelet has insufficient PID available", "KubeletHasSufficientPID", "kubelet has sufficient PID available")
	pick(notReady == "", corev1.NodeReady, "KubeletReady", "kubelet is posting ready status", "KubeletNotReady", notReady)
}

// mergeExtended keeps the extended resources that others have put on the node.
func (n *Node) mergeExtended(own corev1.ResourceList, old *corev1.NodeStatus, allocatable bool) corev1.ResourceList {
	out := maps.Clone(own)
	if old == nil {
		return out
	}
	for r, q := range old.Capacity {
		if !strings.Contains(string(r), "/") || strings.HasPrefix(string(r), "kubernetes.io/") {
			continue
		}
		if allocatable {
			if a, ok := old.Allocatable[r]; ok {
				out[r] = a
				continue
			}
		}
		out[r] = q
	}
	return out
}

// update writes the status if it has changed, or anyway when it is due.
func (n *Node) update(ctx context.Context, notReady string, p Pressure, due bool) (bool, error) {
	for try := 0; ; try++ {
		old := n.Object()
		node := old.DeepCopy()
		n.fill(&node.Status, &old.Status, notReady, p)
		if !due && equalStatus(&old.Status, &node.Status) {
			return false, nil
		}
		got, err := client.Nodes.UpdateStatus(ctx, n.cfg.Client, node)
		switch {
		case err == nil:
			n.tell(&old.Status, got)
			n.mu.Lock()
			n.current, n.last = got, p
			n.mu.Unlock()
			return true, nil
		case apierrors.IsNotFound(err):
			return false, n.tryRegister(ctx, notReady)
		case !apierrors.IsConflict(err) || try == 5:
			return false, err
		}
		fresh, err := client.Nodes.Get(ctx, n.cfg.Client, "", n.cfg.Name)
		if err != nil {
			return false, err
		}
		n.mu.Lock()
		n.current = fresh
		n.mu.Unlock()
	}
}

// tell records the events of conditions that have changed.
func (n *Node) tell(old *corev1.NodeStatus, node *corev1.Node) {
	was := map[corev1.NodeConditionType]corev1.ConditionStatus{}
	for _, c := range old.Conditions {
		was[c.Type] = c.Status
	}
	events := map[corev1.NodeConditionType][2]string{
		corev1.NodeReady:          {"NodeReady", "NodeNotReady"},
		corev1.NodeMemoryPressure: {"NodeHasInsufficientMemory", "NodeHasSufficientMemory"},
		corev1.NodeDiskPressure:   {"NodeHasDiskPressure", "NodeHasNoDiskPressure"},
		corev1.NodePIDPressure:    {"NodeHasInsufficientPID", "NodeHasSufficientPID"},
	}
	for _, c := range node.Status.Conditions {
		e, ok := events[c.Type]
		if !ok || was[c.Type] == c.Status {
			continue
		}
		reason := e[1]
		if c.Status == corev1.ConditionTrue {
			reason = e[0]
		}
		n.cfg.Event(node, corev1.EventTypeNormal, reason, "Node %s status is now: %s", n.cfg.Name, reason)
	}
}

// equalStatus compares without the heartbeat times.
func equalStatus(a, b *corev1.NodeStatus) bool {
	x, y := *a, *b
	x.Conditions, y.Conditions = slices.Clone(a.Conditions), slices.Clone(b.Conditions)
	for _, l := range [][]corev1.NodeCondition{x.Conditions, y.Conditions} {
		for i := range l {
			l[i].LastHeartbeatTime = metav1.Time{}
		}
	}
	return apiequality.Semantic.DeepEqual(&x, &y)
}

// renew keeps the lease.
func (n *Node) renew(ctx context.Context) {
	var lease *coordinationv1.Lease
	seconds := int32(leaseDuration / time.Second)
	delay := 50 * time.Millisecond
	for {
		err := func() error {
			now := metav1.MicroTime{Time: time.Now()}
			if lease == nil {
				got, err := client.Leases.Get(ctx, n.cfg.Client, leaseNamespace, n.cfg.Name)
				switch {
				case err == nil:
					lease = got
				case apierrors.IsNotFound(err):
					fresh := &coordinationv1.Lease{
						ObjectMeta: metav1.ObjectMeta{Namespace: leaseNamespace, Name: n.cfg.Name},
						Spec:       coordinationv1.LeaseSpec{HolderIdentity: &n.cfg.Name, LeaseDurationSeconds: &seconds, RenewTime: &now},
					}
					if o := n.Object(); o != nil {
						fresh.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: o.Name, UID: o.UID}}
					}
					lease, err = client.Leases.Create(ctx, n.cfg.Client, fresh)
					if err != nil {
						lease = nil
					}
					return err
				default:
					return err
				}
			}
			next := lease.DeepCopy()
			next.Spec.HolderIdentity, next.Spec.LeaseDurationSeconds, next.Spec.RenewTime = &n.cfg.Name, &seconds, &now
			got, err := client.Leases.Update(ctx, n.cfg.Client, next)
			if err != nil {
				lease = nil
				return err
			}
			lease = got
			return nil
		}()
		wait := heartbeat
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			n.cfg.Logger.Warn("renewing the node's lease", "err", err)
			wait, delay = delay, min(2*delay, 7*time.Second)
		} else {
			delay = 50 * time.Millisecond
		}
		if !sleep(ctx, wait) {
			return
		}
	}
}
