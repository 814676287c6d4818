package runtime

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/proa-dev/proa/internal/runtime/images"
)

func u64(v uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: v} }

func (s *Server) statsOf(c *container) *runtimeapi.ContainerStats {
	u, now := s.cgroups.usage(c.Cgroup), time.Now().UnixNano()
	return &runtimeapi.ContainerStats{
		Attributes: &runtimeapi.ContainerAttributes{Id: c.ID, Metadata: c.Config.Metadata, Labels: c.Config.Labels, Annotations: c.Config.Annotations},
		Cpu:        &runtimeapi.CpuUsage{Timestamp: now, UsageCoreNanoSeconds: u64(u.cpuNanos)},
		Memory: &runtimeapi.MemoryUsage{Timestamp: now, WorkingSetBytes: u64(u.workingSet), UsageBytes: u64(u.memory), RssBytes: u64(u.rss),
			PageFaults: u64(u.faults), MajorPageFaults: u64(u.mfaults)},
	}
}

// ContainerStats returns what one container uses.
func (s *Server) ContainerStats(_ context.Context, req *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	c, err := s.container(req.ContainerId)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ContainerStatsResponse{Stats: s.statsOf(c)}, nil
}

func (s *Server) runningOnes() (out []*container) {
	s.mu.Lock()
	list := make([]*container, 0, len(s.containers))
	for _, c := range s.containers {
		list = append(list, c)
	}
	s.mu.Unlock()
	for _, c := range list {
		c.mu.Lock()
		if c.state() == runtimeapi.ContainerState_CONTAINER_RUNNING {
			out = append(out, c)
		}
		c.mu.Unlock()
	}
	return out
}

// ListContainerStats returns what the running containers use.
func (s *Server) ListContainerStats(_ context.Context, req *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	f := req.GetFilter()
	out := &runtimeapi.ListContainerStatsResponse{}
	for _, c := range s.runningOnes() {
		if (f.GetId() == "" || f.GetId() == c.ID) && (f.GetPodSandboxId() == "" || f.GetPodSandboxId() == c.Sandbox) && matches(f.GetLabelSelector(), c.Config.Labels) {
			out.Stats = append(out.Stats, s.statsOf(c))
		}
	}
	return out, nil
}

// ListPodSandboxStats returns what the containers of each sandbox use.
func (s *Server) ListPodSandboxStats(_ context.Context, req *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	f := req.GetFilter()
	byID := map[string]*runtimeapi.PodSandboxStats{}
	out := &runtimeapi.ListPodSandboxStatsResponse{}
	for _, c := range s.runningOnes() {
		sb, err := s.sandbox(c.Sandbox)
		if err != nil || f.GetId() != "" && f.GetId() != sb.ID || !matches(f.GetLabelSelector(), sb.Config.Labels) {
			continue
		}
		st := byID[sb.ID]
		if st == nil {
			st = &runtimeapi.PodSandboxStats{
				Attributes: &runtimeapi.PodSandboxAttributes{Id: sb.ID, Metadata: sb.Config.Metadata, Labels: sb.Config.Labels, Annotations: sb.Config.Annotations},
				Linux: &runtimeapi.LinuxPodSandboxStats{Cpu: &runtimeapi.CpuUsage{UsageCoreNanoSeconds: u64(0)},
					Memory: &runtimeapi.MemoryUsage{WorkingSetBytes: u64(0), UsageBytes: u64(0)}},
			}
			byID[sb.ID] = st
			out.Stats = append(out.Stats, st)
		}
		cs := s.statsOf(c)
		st.Linux.Containers = append(st.Linux.Containers, cs)
		st.Linux.Cpu.Timestamp, st.Linux.Memory.Timestamp = cs.Cpu.Timestamp, cs.Memory.Timestamp
		st.Linux.Cpu.UsageCoreNanoSeconds.Value += cs.Cpu.UsageCoreNanoSeconds.Value
		st.Linux.Memory.WorkingSetBytes.Value += cs.Memory.WorkingSetBytes.Value
		st.Linux.Memory.UsageBytes.Value += cs.Memory.UsageBytes.Value
	}
	return out, nil
}

func (s *Server) imageOf(img images.Image) *runtimeapi.Image {
	out := &runtimeapi.Image{Id: img.ID, RepoTags: img.RepoTags, RepoDigests: img.RepoDigests, Size: uint64(img.Size), Pinned: img.Pinned}
	if cfg, err := s.cfg.Images.Config(img.ID); err == nil {
		var uid int64
		name := cfg.Config.User
		for i, r := range name {
			if r == ':' {
				name = name[:i]
				break
			}
		}
		if _, err := fmt.Sscanf(name, "%d", &uid); err == nil {
			out.Uid = &runtimeapi.Int64Value{Value: uid}
		} else {
			out.Username = name
		}
	}
	return out
}

// ListImages lists the images of this node.
func (s *Server) ListImages(_ context.Context, req *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	out := &runtimeapi.ListImagesResponse{}
	if ref := req.GetFilter().GetImage().GetImage(); ref != "" {
		img, err := s.cfg.Images.Resolve(ref)
		if err == nil {
			out.Images = append(out.Images, s.imageOf(img))
		}
		return out, nil
	}
	list, err := s.cfg.Images.List()
	if err != nil {
		return nil, err
	}
	for _, img := range list {
		out.Images = append(out.Images, s.imageOf(img))
	}
	return out, nil
}

// ImageStatus describes an image; none when it is not here.
func (s *Server) ImageStatus(_ context.Context, req *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	img, err := s.cfg.Images.Resolve(req.GetImage().GetImage())
	if errors.Is(err, images.ErrNotFound) {
		return &runtimeapi.ImageStatusResponse{}, nil
	}
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return &runtimeapi.ImageStatusResponse{Image: s.imageOf(img)}, nil
}

// PullImage fetches an image.
func (s *Server) PullImage(ctx context.Context, req *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	a := req.GetAuth()
	img, err := s.cfg.Images.Pull(ctx, req.GetImage().GetImage(), images.Auth{Username: a.GetUsername(), Password: a.GetPassword(), Auth: a.GetAuth(),
		IdentityToken: a.GetIdentityToken(), RegistryToken: a.GetRegistryToken()}, nil)
	switch {
	case errors.Is(err, images.ErrNotFound):
		return nil, status.Error(codes.NotFound, err.Error())
	case errors.Is(err, images.ErrUnauthorized):
		return nil, status.Error(codes.PermissionDenied, err.Error())
	case err != nil:
		return nil, err
	}
	return &runtimeapi.PullImageResponse{ImageRef: img.ID}, nil
}

// RemoveImage removes an image by name or ID.
func (s *Server) RemoveImage(_ context.Context, req *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	return &runtimeapi.RemoveImageResponse{}, s.cfg.Images.Remove(req.GetImage().GetImage())
}

// ImageFsInfo says how much the images take.
func (s *Server) ImageFsInfo(context.Context, *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	bytes, _, err := s.cfg.Images.Usage()
	if err != nil {
		return nil, err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(s.cfg.Images.Root(), &st); err != nil {
		return nil, fmt.Errorf("look at the images' file system: %w", err)
	}
	return &runtimeapi.ImageFsInfoResponse{ImageFilesystems: []*runtimeapi.FilesystemUsage{{Timestamp: time.Now().UnixNano(),
		FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: s.cfg.Images.Root()}, UsedBytes: u64(bytes), InodesUsed: u64(0)}}}, nil
}
