// Package cri is the kubelet's side of the Container Runtime Interface. The
// interfaces have the signatures of the CRI's servers, so that in process the
// runtime's server object is called directly; Dial gives the same interfaces over
// a unix socket (containerd, CRI-O). It holds no state of pods.
package cri

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Runtime is the part of runtimeapi.RuntimeServiceServer that the kubelet uses.
type Runtime interface {
	Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error)
	Status(context.Context, *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error)

	RunPodSandbox(context.Context, *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error)
	StopPodSandbox(context.Context, *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error)
	RemovePodSandbox(context.Context, *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error)
	PodSandboxStatus(context.Context, *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error)
	ListPodSandbox(context.Context, *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error)

	CreateContainer(context.Context, *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error)
	StartContainer(context.Context, *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error)
	StopContainer(context.Context, *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error)
	RemoveContainer(context.Context, *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error)
	ListContainers(context.Context, *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error)
	ContainerStatus(context.Context, *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error)
	UpdateContainerResources(context.Context, *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error)
	ReopenContainerLog(context.Context, *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error)

	ExecSync(context.Context, *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error)
	Exec(context.Context, *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error)
	Attach(context.Context, *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error)
	PortForward(context.Context, *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error)

	ListContainerStats(context.Context, *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error)
	ListPodSandboxStats(context.Context, *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error)

	GetContainerEvents(*runtimeapi.GetEventsRequest, grpc.ServerStreamingServer[runtimeapi.ContainerEventResponse]) error
}

// Images is the part of runtimeapi.ImageServiceServer that the kubelet uses.
type Images interface {
	ListImages(context.Context, *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error)
	ImageStatus(context.Context, *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error)
	PullImage(context.Context, *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error)
	RemoveImage(context.Context, *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error)
	ImageFsInfo(context.Context, *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error)
}

// Labels and annotations that the kubelet puts on sandboxes and containers. They
// are those of every Kubernetes kubelet, so that crictl and others find pods.
const (
	LabelPodName       = "io.kubernetes.pod.name"
	LabelPodNamespace  = "io.kubernetes.pod.namespace"
	LabelPodUID        = "io.kubernetes.pod.uid"
	LabelContainerName = "io.kubernetes.container.name"

	AnnotationHash          = "io.kubernetes.container.hash"
	AnnotationRestartCount  = "io.kubernetes.container.restartCount"
	AnnotationMessagePath   = "io.kubernetes.container.terminationMessagePath"
	AnnotationMessagePolicy = "io.kubernetes.container.terminationMessagePolicy"
	AnnotationGracePeriod   = "io.kubernetes.pod.terminationGracePeriod"
	AnnotationSource        = "kubernetes.io/config.source"
)

// IsNotFound reports whether the runtime does not know the sandbox or container.
func IsNotFound(err error) bool { return status.Code(unwrap(err)) == codes.NotFound }

// Message returns the text of an error without the "rpc error: …" frame.
func Message(err error) string {
	if err == nil {
		return ""
	}
	if s, ok := status.FromError(unwrap(err)); ok && s.Code() != codes.OK {
		return s.Message()
	}
	return err.Error()
}

// ErrorText returns the text that Kubernetes shows for an error of the runtime.
func ErrorText(err error) string {
	if s, ok := status.FromError(unwrap(err)); ok && s.Code() != codes.OK && s.Code() != codes.Unknown {
		return fmt.Sprintf("rpc error: code = %s desc = %s", s.Code(), s.Message())
	}
	return Message(err)
}

func unwrap(err error) error {
	var s interface{ GRPCStatus() *status.Status }
	if errors.As(err, &s) {
		return s.(error)
	}
	return err
}

// ErrNoEvents is returned by Events when the runtime has no event stream.
var ErrNoEvents = errors.New("the runtime has no container events")

// Events calls fn for each container event until ctx ends or the stream breaks;
// ready is called when the stream is being served.
func Events(ctx context.Context, rt Runtime, ready func(), fn func(*runtimeapi.ContainerEventResponse)) error {
	err := rt.GetContainerEvents(&runtimeapi.GetEventsRequest{}, &eventSink{ctx: ctx, fn: fn, ready: ready})
	if status.Code(unwrap(err)) == codes.Unimplemented {
		return ErrNoEvents
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = ctx.Err()
		if err == nil {
			err = io.ErrUnexpectedEOF
		}
	}
	return fmt.Errorf("reading container events: %w", err)
}

// eventSink is the server side of a stream whose client is a function.
type eventSink struct {
	ctx   context.Context
	fn    func(*runtimeapi.ContainerEventResponse)
	ready func()
}

func (s *eventSink) Send(e *runtimeapi.ContainerEventResponse) error {
	if err := s.ctx.Err(); err != nil {
		return err
	}
	s.fn(e)
	return nil
}
func (s *eventSink) SetHeader(metadata.MD) error { return nil }

// SendHeader is the runtime's way to say that it has subscribed the stream.
func (s *eventSink) SendHeader(metadata.MD) error {
	if s.ready != nil {
		s.ready()
	}
	return nil
}
func (s *eventSink) SetTrailer(metadata.MD)   {}
func (s *eventSink) Context() context.Context { return s.ctx }
func (s *eventSink) SendMsg(m any) error {
	e, ok := m.(*runtimeapi.ContainerEventResponse)
	if !ok {
		return fmt.Errorf("container events: unexpected message %T", m)
	}
	return s.Send(e)
}
func (s *eventSink) RecvMsg(any) error { return io.EOF }

// maxMessage is the largest CRI message: ExecSync answers with up to 16 MiB twice.
const maxMessage = 40 << 20

// Dial connects to a runtime behind a unix socket ("unix:///run/…" or a path).
func Dial(endpoint string) (Runtime, Images, io.Closer, error) {
	if strings.HasPrefix(endpoint, "/") {
		endpoint = "unix://" + endpoint
	}
	if !strings.HasPrefix(endpoint, "unix:") {
		return nil, nil, nil, fmt.Errorf("container runtime endpoint %q: only unix sockets are supported", endpoint)
	}
	conn, err := grpc.NewClient(endpoint,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithIdleTimeout(0))
	if err != nil {
		return nil, nil, nil, fmt.Errorf("connecting to container runtime %s: %w", endpoint, err)
	}
	return &remoteRuntime{c: runtimeapi.NewRuntimeServiceClient(conn)}, &remoteImages{c: runtimeapi.NewImageServiceClient(conn)}, conn, nil
}

// callTimeout bounds the calls that only look something up.
const callTimeout = 2 * time.Minute

// call turns a client method into one with the server's signature.
func call[Q, A any](ctx context.Context, timeout time.Duration, f func(context.Context, Q, ...grpc.CallOption) (A, error), q Q) (A, error) {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	return f(ctx, q)
}
