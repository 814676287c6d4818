// Package events records what happened to an object as core/v1 Events. Recording
// never blocks and never fails the caller: events go through a bounded queue, and
// the same event again is counted up instead of written anew.
package events

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/proa-dev/proa/internal/client"
)

const (
	queueLength = 1024
	// remembered bounds how many recent events can be counted up.
	remembered = 1024
	// countUpWithin is how long after the last one the same event is the same.
	countUpWithin = 10 * time.Minute
)

// Recorder writes events of one component.
type Recorder struct {
	client          client.Interface
	component, host string
	log             *slog.Logger
	queue           chan *corev1.Event
	recent          map[key]*corev1.Event
	last            atomic.Int64
}

type key struct {
	uid                          types.UID
	name, namespace, field       string
	kind, reason, message, etype string
}

// New returns a recorder; Run writes what it takes.
func New(c client.Interface, component, host string, log *slog.Logger) *Recorder {
	return &Recorder{client: c, component: component, host: host, log: log, queue: make(chan *corev1.Event, queueLength), recent: map[key]*corev1.Event{}}
}

// Eventf records an event about an object.
func (r *Recorder) Eventf(obj client.Object, eventType, reason, format string, args ...any) {
	r.EventFieldf(obj, "", eventType, reason, format, args...)
}

// EventFieldf records an event about a part of an object.
func (r *Recorder) EventFieldf(obj client.Object, fieldPath, eventType, reason, format string, args ...any) {
	gvk := kindOf(obj)
	now := metav1.Now()
	namespace := obj.GetNamespace()
	if namespace == "" {
		namespace = metav1.NamespaceDefault
	}
	e := &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprintf("%s.%x", obj.GetName(), r.stamp(now.Time))},
		InvolvedObject: corev1.ObjectReference{Kind: gvk.Kind, APIVersion: gvk.GroupVersion().String(), Namespace: obj.GetNamespace(), Name: obj.GetName(),
			UID: obj.GetUID(), ResourceVersion: obj.GetResourceVersion(), FieldPath: fieldPath},
		Type: eventType, Reason: reason, Message: fmt.Sprintf(format, args...), FirstTimestamp: now, LastTimestamp: now, Count: 1,
		Source: corev1.EventSource{Component: r.component, Host: r.host}, ReportingController: r.component, ReportingInstance: r.host,
	}
	select {
	case r.queue <- e:
	default:
		r.log.Warn("an event was dropped: too many at once", "kind", gvk.Kind, "namespace", obj.GetNamespace(), "name", obj.GetName(), "reason", reason)
	}
}

// stamp is a time in nanoseconds that no other event of this recorder has: it is a
// part of the name.
func (r *Recorder) stamp(now time.Time) int64 {
	for {
		last := r.last.Load()
		next := max(now.UnixNano(), last+1)
		if r.last.CompareAndSwap(last, next) {
			return next
		}
	}
}

// kindOf names an object's kind; cached objects carry none themselves.
func kindOf(obj client.Object) schema.GroupVersionKind {
	if gvk := obj.GetObjectKind().GroupVersionKind(); gvk.Kind != "" {
		return gvk
	}
	return client.KindOf(obj)
}

// Run writes events until ctx ends.
func (r *Recorder) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-r.queue:
			if err := r.write(ctx, e); err != nil && ctx.Err() == nil && !apierrors.IsNotFound(err) && !apierrors.IsForbidden(err) {
				r.log.Warn("write event", "kind", e.InvolvedObject.Kind, "namespace", e.Namespace, "name", e.InvolvedObject.Name, "reason", e.Reason, "err", err)
			}
		}
	}
}

func (r *Recorder) write(ctx context.Context, e *corev1.Event) error {
	i := &e.InvolvedObject
	k := key{i.UID, i.Name, i.Namespace, i.FieldPath, i.Kind, e.Reason, e.Message, e.Type}
	if old := r.recent[k]; old != nil && e.LastTimestamp.Sub(old.LastTimestamp.Time) < countUpWithin {
		old.Count++
		old.LastTimestamp = e.LastTimestamp
		patch, err := json.Marshal(map[string]any{"count": old.Count, "lastTimestamp": e.LastTimestamp})
		if err != nil {
			return err
		}
		_, err = client.Events.Patch(ctx, r.client, e.Namespace, old.Name, "", types.MergePatchType, patch)
		if !apierrors.IsNotFound(err) {
			return err
		}
	}
	written, err := client.Events.Create(ctx, r.client, e)
	if err != nil {
		return err
	}
	if len(r.recent) >= remembered {
		clear(r.recent) // the next occurrence starts a new count
	}
	r.recent[k] = &corev1.Event{ObjectMeta: metav1.ObjectMeta{Name: written.Name}, Count: 1, LastTimestamp: e.LastTimestamp}
	return nil
}
