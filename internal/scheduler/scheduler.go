// Package scheduler binds pods to nodes. It keeps the cluster's nodes and what
// runs on them in arrays that events keep up to date, decides once for all pods
// of the same shape (a class), scores again only the nodes that changed, and
// binds in parallel.
//
// state.go holds nodes and pods, class.go the shared decisions, filter.go and
// topology.go the rules, queue.go what waits, report.go how a refusal is worded.
package scheduler

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/proa-dev/proa/internal/client"
)

// Recorder writes events about an object.
type Recorder interface {
	Eventf(obj client.Object, eventType, reason, format string, args ...any)
}

// Config is what a scheduler needs. Client and Recorder are required.
type Config struct {
	Client   client.Interface
	Recorder Recorder
	Logger   *slog.Logger
	// Name is the spec.schedulerName of the pods it binds; "" is default-scheduler.
	Name string
	// Seed breaks ties between equal nodes; runs with one seed repeat.
	Seed uint64
	// Bindings is how many are written at a time; 0 is 64.
	Bindings int
}

// Scheduler is one scheduler.
type Scheduler struct {
	cfg   Config
	log   *slog.Logger
	slots chan struct{} // bounds the bindings under way

	mu      sync.Mutex
	state   *state
	queue   *queue
	classes *classes
	wake    chan struct{} // has a token when the queue may have work
}

// New returns a scheduler that has not started.
func New(cfg Config) *Scheduler {
	if cfg.Name == "" {
		cfg.Name = corev1.DefaultSchedulerName
	}
	if cfg.Bindings <= 0 {
		cfg.Bindings = 64
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &Scheduler{
		cfg: cfg, log: cfg.Logger, slots: make(chan struct{}, cfg.Bindings),
		state: newState(), queue: newQueue(), classes: newClasses(cfg.Seed), wake: make(chan struct{}, 1),
	}
}

// Run schedules until ctx ends. It returns when every binding under way is done.
func (s *Scheduler) Run(ctx context.Context) error {
	nodes := client.Nodes.Informer(s.cfg.Client, client.Scope{})
	pods := client.Pods.Informer(s.cfg.Client, client.Scope{})
	namespaces := client.Namespaces.Informer(s.cfg.Client, client.Scope{})
	claims := client.PersistentVolumeClaims.Informer(s.cfg.Client, client.Scope{})
	volumes := client.PersistentVolumes.Informer(s.cfg.Client, client.Scope{})
	budgets := client.PodDisruptionBudgets.Informer(s.cfg.Client, client.Scope{})
	s.state.namespaces, s.state.claims, s.state.volumes, s.state.budgets = namespaces, claims, volumes, budgets

	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := make(chan error, 6)
	watch := func(informer client.Informer, fn func(client.Event)) {
		wg.Go(func() {
			if err := informer.Watch(ctx, fn); err != nil && ctx.Err() == nil {
				failed <- fmt.Errorf("scheduler: watch: %w", err)
				cancel()
			}
		})
	}
	// Nodes, claims and namespaces come first, so that no pod is judged by half a cluster.
	watch(nodes.Informer, s.nodeEvent)
	watch(claims.Informer, func(e client.Event) { s.retry(e, reasonClaim) })
	watch(volumes.Informer, func(e client.Event) { s.retry(e, reasonClaim) })
	watch(namespaces.Informer, func(client.Event) {})
	watch(budgets.Informer, func(client.Event) {})
	for _, i := range []client.Informer{nodes.Informer, claims.Informer, volumes.Informer, namespaces.Informer, budgets.Informer} {
		if err := i.WaitSynced(ctx); err != nil {
			return first(failed, ctx)
		}
	}
	watch(pods.Informer, s.podEvent)
	if err := pods.WaitSynced(ctx); err != nil {
		return first(failed, ctx)
	}
	for {
		wait := s.drain(ctx, &wg)
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return first(failed, ctx)
		case <-s.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

func first(failed chan error, ctx context.Context) error {
	select {
	case err := <-failed:
		return err
	default:
		if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
			return err
		}
		return nil
	}
}

func (s *Scheduler) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *Scheduler) nodeEvent(e client.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch e.Type {
	case client.Added, client.Modified:
		if s.state.setNode(e.Object.(*corev1.Node)) {
			s.queue.retryAll(time.Now())
			s.signal()
		}
	case client.Deleted:
		s.state.removeNode(e.Object.GetName())
	}
}

// retry moves pods that wait for a reason back to the queue.
func (s *Scheduler) retry(e client.Event, why reason) {
	if e.Type != client.Added && e.Type != client.Modified {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.queue.retryFor(why, time.Now()) {
		s.signal()
	}
}

func (s *Scheduler) podEvent(e client.Event) {
	if e.Type == client.Synced {
		s.signal()
		return
	}
	pod := e.Object.(*corev1.Pod)
	s.mu.Lock()
	defer s.mu.Unlock()
	done := e.Type == client.Deleted || finished(pod)
	switch {
	case pod.Spec.NodeName != "" || done:
		s.queue.remove(pod.UID)
		s.state.nominate(pod, "")
		changed := false
		if done {
			changed = s.state.removePod(pod.UID)
		} else {
			changed = s.state.addPod(pod, pod.Spec.NodeName)
		}
		// Room was made, or labels that an affinity looks at have changed.
		if changed && (done || e.Type == client.Modified || s.queue.waiting(reasonTopology)) {
			s.queue.retryAll(time.Now())
			s.signal()
		}
	case pod.Spec.SchedulerName != s.cfg.Name || pod.DeletionTimestamp != nil:
		s.queue.remove(pod.UID)
		s.state.nominate(pod, "")
	case len(pod.Spec.SchedulingGates) > 0:
		s.queue.remove(pod.UID) // the API server has said so in its condition
	default:
		if s.state.assumed(pod.UID) {
			return // its binding is under way
		}
		if _, kept := s.state.nominated[pod.UID]; !kept && e.Old == nil {
			s.state.nominate(pod, pod.Status.NominatedNodeName) // by an earlier run
		}
		if s.queue.add(pod, time.Now()) {
			s.signal()
		}
	}
}

func finished(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// idle is how long to sleep when nothing waits for a time: events wake the loop.
const idle = time.Hour

// drain schedules until the queue is empty and returns how long until a pod's
// back-off ends.
func (s *Scheduler) drain(ctx context.Context, wg *sync.WaitGroup) time.Duration {
	for ctx.Err() == nil {
		s.mu.Lock()
		pod, wait := s.queue.pop(time.Now())
		if pod == nil {
			s.mu.Unlock()
			return wait
		}
		node, refusal, room := s.decide(pod)
		if node == "" {
			s.queue.park(pod, refusal.reasons, time.Now())
			var victims, lesser []*corev1.Pod
			if room != nil {
				node = s.state.nodes[room.node].name
				lesser = s.state.lesser(pod, room.node)
				for _, p := range lesser {
					s.state.nominate(p, "")
				}
				s.state.nominate(pod, node)
				for _, v := range room.victims {
					victims = append(victims, v.pod)
				}
			}
			s.mu.Unlock()
			s.refuse(ctx, pod, refusal, wg)
			if room != nil {
				s.makeRoom(ctx, pod, node, victims, lesser, wg)
			}
			continue
		}
		s.state.nominate(pod, "")
		s.state.assume(pod, node)
		s.mu.Unlock()
		select {
		case s.slots <- struct{}{}:
		case <-ctx.Done():
			return idle
		}
		wg.Go(func() {
			defer func() { <-s.slots }()
			s.bind(ctx, pod, node)
		})
	}
	return idle
}

// decide picks a node for a pod, or says why none will do, and whether deleting less
// important pods would make room.
func (s *Scheduler) decide(pod *corev1.Pod) (string, *refusal, *preemption) {
	if r := s.state.claimsRefuse(pod); r != nil {
		return "", r, nil
	}
	restore := s.state.lift(pod)
	defer restore()
	node, r := s.classes.place(s.state, pod)
	if node != "" || r.total == 0 || r.text != "" {
		return node, r, nil
	}
	if r.preemption = s.state.mayPreempt(pod); r.preemption != "" {
		return "", r, nil
	}
	if r.total == r.unhelpful+r.noVictims {
		return "", r, nil
	}
	cl, err := s.classes.class(pod)
	if err != nil {
		return "", r, nil
	}
	cl.refresh(s.state)
	room, why := s.state.preempt(pod, cl, s.classes.rand.IntN(len(s.state.nodes)))
	if r.still = why; room != nil {
		r.unhelpful, r.noVictims, r.still = 0, 0, nil
	}
	return "", r, room
}

func (s *Scheduler) bind(ctx context.Context, pod *corev1.Pod, node string) {
	binding := &corev1.Binding{
		ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID},
		Target:     corev1.ObjectReference{Kind: "Node", Name: node},
	}
	_, err := s.cfg.Client.Create(ctx, client.Pods.GVR, pod.Namespace, pod.Name, "binding", binding, metav1.CreateOptions{})
	if err == nil {
		s.cfg.Recorder.Eventf(pod, corev1.EventTypeNormal, "Scheduled", "Successfully assigned %s/%s to %s", pod.Namespace, pod.Name, node)
		return
	}
	s.mu.Lock()
	s.state.forget(pod.UID)
	gone := apierrors.IsNotFound(err)
	if !gone && ctx.Err() == nil {
		s.queue.park(pod, []reason{reasonBinding}, time.Now())
	}
	s.mu.Unlock()
	if gone || ctx.Err() != nil {
		return
	}
	s.signal()
	s.log.Warn("bind pod", "kind", "Pod", "namespace", pod.Namespace, "name", pod.Name, "node", node, "err", err)
	s.cfg.Recorder.Eventf(pod, corev1.EventTypeWarning, "FailedScheduling", "binding rejected: %v", err)
}

// refuse tells the user why a pod waits: in its condition and as an event. The
// same words are not written twice.
func (s *Scheduler) refuse(ctx context.Context, pod *corev1.Pod, r *refusal, wg *sync.WaitGroup) {
	message := r.String()
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse && c.Reason == corev1.PodReasonUnschedulable && c.Message == message {
			return
		}
	}
	s.cfg.Recorder.Eventf(pod, corev1.EventTypeWarning, "FailedScheduling", "%s", message)
	select {
	case s.slots <- struct{}{}:
	case <-ctx.Done():
		return
	}
	wg.Go(func() {
		defer func() { <-s.slots }()
		now := metav1.Now()
		patch, err := json.Marshal(map[string]any{
			"metadata": map[string]any{"uid": pod.UID},
			"status": map[string]any{"conditions": []corev1.PodCondition{{
				Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonUnschedulable, Message: message,
				LastTransitionTime: now, ObservedGeneration: pod.Generation,
			}}},
		})
		if err == nil {
			_, err = client.Pods.Patch(ctx, s.cfg.Client, pod.Namespace, pod.Name, "status", types.StrategicMergePatchType, patch)
		}
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) && ctx.Err() == nil {
			s.log.Warn("write pod condition", "kind", "Pod", "namespace", pod.Namespace, "name", pod.Name, "err", err)
		}
	})
}
