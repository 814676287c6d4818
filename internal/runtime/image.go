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
