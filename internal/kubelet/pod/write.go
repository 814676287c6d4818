package pod

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/proa-dev/proa/internal/client"
)

// publish computes the status and writes it if it has changed. It returns when it
// wants to be called again at the latest.
func (a *Actor) publish(now time.Time) time.Time {
	if a.s.pod.Spec.NodeName == "" && a.s.gone {
		return time.Time{} // an orphan has nothing to write to
	}
	st := a.s.status(a.d.HostIPs, now)
	a.publishSnapshot(&st)
	if a.s.gone || a.writing {
		return time.Time{}
	}
	if a.same(&st) {
		return time.Time{}
	}
	if now.Before(a.retryAt) {
		return a.retryAt
	}
	if due := a.s.seen.Add(statusDelay); now.Before(due) && a.dull(&st) {
		return due
	}
	a.write(&st)
	return time.Time{}
}

// same compares with what the API has.
func (a *Actor) same(st *corev1.PodStatus) bool {
	// The server may normalise what it was sent: what was last written on this very
	// version of the object counts as the same, too.
	if a.written != nil && apiequality.Semantic.DeepEqual(st, a.written) {
		return true
	}
	return apiequality.Semantic.DeepEqual(st, &a.base.Status)
}

// unwritten reports whether the API does not have the current status yet.
func (a *Actor) unwritten() bool {
	st := a.s.status(a.d.HostIPs, time.Now())
	return !a.same(&st)
}

// dull: the status says only that the pod is being started.
func (a *Actor) dull(st *corev1.PodStatus) bool {
	if st.Phase != corev1.PodPending || a.s.kill != nil || a.s.rejected != nil {
		return false
	}
	for _, list := range [][]corev1.ContainerStatus{st.InitContainerStatuses, st.ContainerStatuses} {
		for i := range list {
			w := list[i].State.Waiting
			if w == nil || (w.Reason != "ContainerCreating" && w.Reason != "PodInitializing") {
				return false
			}
		}
	}
	return true
}

// maxConflicts bounds how often one status is written on a newer object.
const maxConflicts = 5

func (a *Actor) write(st *corev1.PodStatus) {
	a.writing = true
	base := a.base
	a.async(func(ctx context.Context) func() {
		got, err := a.put(ctx, base, st)
		return func() {
			a.writing = false
			switch {
			case err == nil:
				if !older(got, a.base) {
					a.base = got
					// Conditions of others that were new on the server are part of the base now.
					if a.s.pod.UID == got.UID && !older(got, a.s.pod) {
						a.s.setPod(got)
					}
				}
				a.written = st
				a.retryAt = time.Time{}
			case apierrors.IsNotFound(err):
				a.written = st // the watch will say that the object is gone
			default:
				if a.ctx.Err() == nil {
					a.log.Warn("writing the status", "err", err)
				}
				a.retryAt = time.Now().Add(time.Second)
			}
		}
	})
}

func (a *Actor) put(ctx context.Context, base *corev1.Pod, st *corev1.PodStatus) (*corev1.Pod, error) {
	for try := 0; ; try++ {
		obj := &corev1.Pod{TypeMeta: base.TypeMeta, ObjectMeta: *base.ObjectMeta.DeepCopy(), Spec: base.Spec, Status: *st.DeepCopy()}
		if try > 0 {
			keepForeign(&obj.Status, &base.Status)
		}
		got, err := client.Pods.UpdateStatus(ctx, a.d.Client, obj)
		if !apierrors.IsConflict(err) || try == maxConflicts {
			return got, err
		}
		fresh, gerr := client.Pods.Get(ctx, a.d.Client, base.Namespace, base.Name)
		if gerr != nil {
			return nil, gerr
		}
		if fresh.UID != base.UID {
			return nil, apierrors.NewNotFound(client.Pods.GVR.GroupResource(), base.Name)
		}
		if p := fresh.Status.Phase; (p == corev1.PodSucceeded || p == corev1.PodFailed) && st.Phase != p {
			st.Phase = p // a final phase is never left
		}
		base = fresh
	}
}

// keepForeign takes over from the newest status what others write.
func keepForeign(st, newest *corev1.PodStatus) {
	own := st.Conditions[:0]
	for _, c := range st.Conditions {
		if ownCondition(c.Type) || findCondition(newest.Conditions, c.Type) == nil {
			own = append(own, c)
		}
	}
	st.Conditions = own
	for _, c := range newest.Conditions {
		if !ownCondition(c.Type) {
			st.Conditions = append(st.Conditions, c)
		}
	}
	st.NominatedNodeName, st.ResourceClaimStatuses = newest.NominatedNodeName, newest.ResourceClaimStatuses
	st.Resize, st.ExtendedResourceClaimStatus = newest.Resize, newest.ExtendedResourceClaimStatus
	st.QOSClass = newest.QOSClass
}

func (a *Actor) publishSnapshot(st *corev1.PodStatus) {
	s := &a.s
	n := &Snapshot{Settled: a.settled, Containers: make(map[string][]ContainerInfo, len(s.containers))}
	p := *s.pod
	p.Status = *st
	n.Pod = &p
	if s.sandbox != nil {
		n.SandboxID = s.sandbox.id
	}
	for c := range s.all {
		for _, i := range c.instances {
			n.Running = n.Running || i.running()
			if i.lost && i.id == "" {
				continue
			}
			n.Containers[c.name] = append(n.Containers[c.name], ContainerInfo{ID: i.id, Attempt: i.attempt, State: i.state, LogPath: i.logPath})
		}
	}
	a.snapshot.Store(n)
}
