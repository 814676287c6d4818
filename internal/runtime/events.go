package runtime

import (
	"sync"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// events hands each container event to every stream.
type events struct {
	mu      sync.Mutex
	streams map[chan *runtimeapi.ContainerEventResponse]struct{}
}

func newEvents() *events {
	return &events{streams: map[chan *runtimeapi.ContainerEventResponse]struct{}{}}
}

// streamBuffer is how many events a reader may be behind before its stream is
// ended; it then lists anew.
const streamBuffer = 4096

func (e *events) publish(s *Server, c *container, kind runtimeapi.ContainerEventType) {
	e.mu.Lock()
	none := len(e.streams) == 0
	e.mu.Unlock()
	if none {
		return
	}
	// The statuses are read when they are sent: publish may be called with the
	// container locked.
	ev := &runtimeapi.ContainerEventResponse{ContainerId: c.ID, ContainerEventType: kind, CreatedAt: time.Now().UnixNano()}
	if sb, err := s.sandbox(c.Sandbox); err == nil {
		ev.PodSandboxStatus = &runtimeapi.PodSandboxStatus{Id: sb.ID}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for ch := range e.streams {
		select {
		case ch <- ev:
		default:
			delete(e.streams, ch)
			close(ch)
		}
	}
}

// GetContainerEvents sends container events until the stream ends.
func (s *Server) GetContainerEvents(_ *runtimeapi.GetEventsRequest, stream grpc.ServerStreamingServer[runtimeapi.ContainerEventResponse]) error {
	ch := make(chan *runtimeapi.ContainerEventResponse, streamBuffer)
	s.events.mu.Lock()
	s.events.streams[ch] = struct{}{}
	s.events.mu.Unlock()
	defer func() {
		s.events.mu.Lock()
		delete(s.events.streams, ch)
		s.events.mu.Unlock()
	}()
	// Headers tell an in-process reader that the stream is being served.
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	for {
		select {
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-s.ctx.Done():
			return nil
		case ev, ok := <-ch:
			if !ok {
				return nil
			}
			if err := stream.Send(s.complete(ev)); err != nil {
				return err
			}
		}
	}
}

// complete fills an event with the present state of its sandbox.
func (s *Server) complete(ev *runtimeapi.ContainerEventResponse) *runtimeapi.ContainerEventResponse {
	sb, err := s.sandbox(ev.PodSandboxStatus.GetId())
	if err != nil {
		return ev
	}
	out := &runtimeapi.ContainerEventResponse{ContainerId: ev.ContainerId, ContainerEventType: ev.ContainerEventType, CreatedAt: ev.CreatedAt, PodSandboxStatus: sb.status()}
	for _, c := range s.of(sb.ID) {
		out.ContainersStatuses = append(out.ContainersStatuses, s.statusOf(c))
	}
	return out
}
