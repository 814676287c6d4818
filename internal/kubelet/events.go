package kubelet

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/proa-dev/proa/internal/kubelet/cri"
	"github.com/proa-dev/proa/internal/kubelet/pod"
)

// relistPeriod is for runtimes without an event stream.
const relistPeriod = 10 * time.Second

// find lists what the runtime has, by pod.
func (k *Kubelet) find(ctx context.Context) error {
	sandboxes, err := k.cfg.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return fmt.Errorf("listing sandboxes: %w", err)
	}
	containers, err := k.cfg.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return fmt.Errorf("listing containers: %w", err)
	}
	of := func(uid string) *pod.Found {
		f := k.found[types.UID(uid)]
		if f == nil {
			f = &pod.Found{}
			k.found[types.UID(uid)] = f
		}
		return f
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, s := range sandboxes.Items {
		uid := s.GetMetadata().GetUid()
		if uid == "" || s.Labels[cri.LabelPodUID] != uid {
			continue // not made by a kubelet
		}
		st, err := k.cfg.Runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: s.Id})
		if cri.IsNotFound(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("looking at sandbox %s: %w", s.Id, err)
		}
		f := of(uid)
		f.Sandboxes = append(f.Sandboxes, st.Status)
	}
	for _, c := range containers.Containers {
		uid := c.Labels[cri.LabelPodUID]
		if uid == "" {
			continue
		}
		st, err := k.cfg.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: c.Id})
		if cri.IsNotFound(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("looking at container %s: %w", c.Id, err)
		}
		f := of(uid)
		f.Containers = append(f.Containers, pod.FoundContainer{Sandbox: c.PodSandboxId, Status: st.Status})
	}
	uids := make([]types.UID, 0, len(k.found))
	for uid := range k.found {
		uids = append(uids, uid)
	}
	k.users.Adopt(uids)
	return nil
}

// follow forwards the runtime's events to the actors; when the stream breaks it is
// opened again and what was missed is found by a list.
func (k *Kubelet) follow(ctx context.Context, ready func()) {
	delay := 50 * time.Millisecond
	first := true
	for ctx.Err() == nil {
		began := time.Now()
		err := cri.Events(ctx, k.cfg.Runtime, func() {
			ready()
			if !first {
				k.wg.Go(func() { k.relist(ctx) })
			}
		}, k.onEvent)
		first = false
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, cri.ErrNoEvents) {
			k.log.Info("the runtime has no container events: listing containers instead", "period", relistPeriod)
			ready()
			for wait(ctx, relistPeriod) {
				k.relist(ctx)
			}
			return
		}
		k.log.Warn("following the runtime's events", "err", err)
		if time.Since(began) > time.Minute {
			delay = 50 * time.Millisecond
		}
		if !wait(ctx, delay) {
			return
		}
		delay = min(2*delay, 10*time.Second)
		k.relist(ctx)
	}
}

func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

func (k *Kubelet) onEvent(e *runtimeapi.ContainerEventResponse) {
	uid := types.UID(e.GetPodSandboxStatus().GetMetadata().GetUid())
	for _, cs := range e.ContainersStatuses {
		if uid == "" {
			uid = types.UID(cs.Labels[cri.LabelPodUID])
		}
	}
	k.mu.Lock()
	if uid == "" {
		uid = k.owner(e.ContainerId)
	}
	en := k.actors[uid]
	if en == nil && k.early != nil && uid != "" {
		k.early[uid] = append(k.early[uid], e)
	}
	k.mu.Unlock()
	if en != nil {
		en.actor.Event(e)
	}
}

// owner finds the pod of a container or sandbox by its id. Called with mu held.
func (k *Kubelet) owner(id string) types.UID {
	for uid, e := range k.actors {
		s := e.actor.Snapshot()
		if s.SandboxID == id {
			return uid
		}
		for _, list := range s.Containers {
			for _, c := range list {
				if c.ID == id {
					return uid
				}
			}
		}
	}
	return ""
}

// relist compares the runtime's containers and sandboxes with what the actors know
// and tells them the differences as events.
func (k *Kubelet) relist(ctx context.Context) {
	list, err := k.cfg.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		if ctx.Err() == nil {
			k.log.Warn("listing containers", "err", err)
		}
		return
	}
	seen := make(map[string]bool, len(list.Containers))
	known := map[string]runtimeapi.ContainerState{}
	for _, s := range k.snapshots() {
		for _, l := range s.Containers {
			for _, c := range l {
				known[c.ID] = c.State
			}
		}
	}
	for _, c := range list.Containers {
		seen[c.Id] = true
		state, ok := known[c.Id]
		if c.Labels[cri.LabelPodUID] == "" || (ok && state == c.State) {
			continue
		}
		st, err := k.cfg.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: c.Id})
		if err != nil {
			continue
		}
		sb, err := k.cfg.Runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: c.PodSandboxId})
		if err != nil {
			continue
		}
		k.onEvent(&runtimeapi.ContainerEventResponse{
			ContainerId: c.Id, ContainerEventType: eventType(c.State), CreatedAt: time.Now().UnixNano(),
			PodSandboxStatus: sb.Status, ContainersStatuses: []*runtimeapi.ContainerStatus{st.Status},
		})
	}
	for id, state := range known {
		if !seen[id] && state != runtimeapi.ContainerState_CONTAINER_EXITED {
			k.onEvent(&runtimeapi.ContainerEventResponse{ContainerId: id, ContainerEventType: runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT})
		}
	}
}

func eventType(s runtimeapi.ContainerState) runtimeapi.ContainerEventType {
	switch s {
	case runtimeapi.ContainerState_CONTAINER_CREATED:
		return runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT
	case runtimeapi.ContainerState_CONTAINER_RUNNING:
		return runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT
	}
	return runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT
}
