package cri

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// remoteRuntime is a runtime behind a socket.
type remoteRuntime struct {
	c runtimeapi.RuntimeServiceClient
}

func (r *remoteRuntime) Version(ctx context.Context, q *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return call(ctx, callTimeout, r.c.Version, q)
}

func (r *remoteRuntime) Status(ctx context.Context, q *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	return call(ctx, callTimeout, r.c.Status, q)
}

func (r *remoteRuntime) PodSandboxStatus(ctx context.Context, q *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	return call(ctx, callTimeout, r.c.PodSandboxStatus, q)
}

func (r *remoteRuntime) ListPodSandbox(ctx context.Context, q *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	return call(ctx, callTimeout, r.c.ListPodSandbox, q)
}

func (r *remoteRuntime) RemovePodSandbox(ctx context.Context, q *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	return call(ctx, callTimeout, r.c.RemovePodSandbox, q)
}

func (r *remoteRuntime) StopPodSandbox(ctx context.Context, q *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	return call(ctx, callTimeout, r.c.StopPodSandbox, q)
}

func (r *remoteRuntime) CreateContainer(ctx context.Context, q *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	return call(ctx, callTimeout, r.c.CreateContainer, q)
}

func (r *remoteRuntime) StartContainer(ctx context.Context, q *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	return call(ctx, callTimeout, r.c.StartContainer, q)
}

func (r *remoteRuntime) RemoveContainer(ctx context.Context, q *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	return call(ctx, callTimeout, r.c.RemoveContainer, q)
}

func (r *remoteRuntime) ListContainers(ctx context.Context, q *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	return call(ctx, callTimeout, r.c.ListContainers, q)
}

func (r *remoteRuntime) ContainerStatus(ctx context.Context, q *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	return call(ctx, callTimeout, r.c.ContainerStatus, q)
}

func (r *remoteRuntime) UpdateContainerResources(ctx context.Context, q *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	return call(ctx, callTimeout, r.c.UpdateContainerResources, q)
}

func (r *remoteRuntime) ReopenContainerLog(ctx context.Context, q *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	return call(ctx, callTimeout, r.c.ReopenContainerLog, q)
}

func (r *remoteRuntime) Exec(ctx context.Context, q *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	return call(ctx, callTimeout, r.c.Exec, q)
}

func (r *remoteRuntime) Attach(ctx context.Context, q *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	return call(ctx, callTimeout, r.c.Attach, q)
}

func (r *remoteRuntime) PortForward(ctx context.Context, q *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	return call(ctx, callTimeout, r.c.PortForward, q)
}

func (r *remoteRuntime) ListContainerStats(ctx context.Context, q *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	return call(ctx, callTimeout, r.c.ListContainerStats, q)
}

func (r *remoteRuntime) ListPodSandboxStats(ctx context.Context, q *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	return call(ctx, callTimeout, r.c.ListPodSandboxStats, q)
}

// RunPodSandbox may set up networks: it gets twice the usual time.
func (r *remoteRuntime) RunPodSandbox(ctx context.Context, q *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	return call(ctx, 2*callTimeout, r.c.RunPodSandbox, q)
}

func (r *remoteRuntime) StopContainer(ctx context.Context, q *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	return call(ctx, callTimeout+time.Duration(q.Timeout)*time.Second, r.c.StopContainer, q)
}

func (r *remoteRuntime) ExecSync(ctx context.Context, q *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	var limit time.Duration
	if q.Timeout > 0 {
		limit = callTimeout + time.Duration(q.Timeout)*time.Second
	}
	return call(ctx, limit, r.c.ExecSync, q)
}

func (r *remoteRuntime) GetContainerEvents(q *runtimeapi.GetEventsRequest, out grpc.ServerStreamingServer[runtimeapi.ContainerEventResponse]) error {
	in, err := r.c.GetContainerEvents(out.Context(), q)
	if err != nil {
		return fmt.Errorf("opening the stream: %w", err)
	}
	if err := out.SendHeader(nil); err != nil {
		return err
	}
	for {
		e, err := in.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := out.Send(e); err != nil {
			return err
		}
	}
}

// remoteImages is the image service behind a socket.
type remoteImages struct{ c runtimeapi.ImageServiceClient }

func (r *remoteImages) ListImages(ctx context.Context, q *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	return call(ctx, callTimeout, r.c.ListImages, q)
}

func (r *remoteImages) ImageStatus(ctx context.Context, q *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	return call(ctx, callTimeout, r.c.ImageStatus, q)
}

func (r *remoteImages) RemoveImage(ctx context.Context, q *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	return call(ctx, callTimeout, r.c.RemoveImage, q)
}

func (r *remoteImages) ImageFsInfo(ctx context.Context, q *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	return call(ctx, callTimeout, r.c.ImageFsInfo, q)
}

// PullImage takes as long as the network needs; the caller's context ends it.
func (r *remoteImages) PullImage(ctx context.Context, q *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	return call(ctx, 0, r.c.PullImage, q)
}
